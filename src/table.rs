//! The table in force, and the first thing that is asked of it: is this message for us, and who
//! sent it?

use std::sync::Arc;

use crate::{
    call::Caller,
    fetch::Fetch,
    identity::Identity,
    message::{Message, VIA},
    refusal::Refusal,
    route::{Credentials, Route},
    secret::Secret,
    topic::Captures,
};

/// All rows.
#[derive(Debug)]
pub struct Table {
    /// Rows of `[[route]]`; no two match the same topic.
    pub routes: Vec<Route>,
    /// Rows of `[[fetch]]`.
    pub fetches: Vec<Fetch>,
    /// Where a message says who speaks.
    pub identity: Identity,
}

/// A message that a route has taken, and who sent it.
#[derive(Clone)]
pub struct Taken<'m> {
    /// The message.
    pub message: &'m Message,
    /// Its route.
    pub route: &'m Route,
    /// Who its calls speak for.
    pub caller: Caller<'m>,
}

/// Why a message is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotTaken {
    /// It was not meant for the gateway.
    Ignored(Ignored),
    /// It was, and is refused.
    Refused(Refusal),
}

/// Why a message was not meant for the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ignored {
    /// A gateway published it: it carries `via`, and no credentials.
    Loop,
    /// It carries no credentials on a topic that devices and gateway share.
    NotARequest,
}

impl From<Refusal> for NotTaken {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Table {
    /// Takes a message that came for `route`, if it came for one. `remembered` gives the key last
    /// accepted for the device.
    ///
    /// # Errors
    /// [`NotTaken`] when it carries `via` and no credentials, names nobody or somebody else, or wants its answer
    /// where its device may not speak.
    pub fn take<'m>(
        &self,
        message: &'m Message,
        route: Option<&'m Route>,
        captures: &'m Captures,
        device: &Arc<str>,
        remembered: impl FnOnce() -> Option<Secret>,
    ) -> Result<Taken<'m>, NotTaken> {
        let is_ours = message.user_property(VIA).next().is_some();
        let Some(route) = route else {
            let refused = NotTaken::from(Refusal::NoRoute);
            return Err(if is_ours { NotTaken::Ignored(Ignored::Loop) } else { refused });
        };
        // No gateway sends credentials: a message with valid ones is a device's, whatever else it carries, an
        // echo of what it was pushed for example.
        let own = self.identity.key(message, captures);
        if is_ours && !matches!(own, Ok(Some(_))) {
            return Err(NotTaken::Ignored(Ignored::Loop));
        }
        let key = match (own?, route.credentials) {
            (Some(key), _) => key,
            (None, Credentials::MessageOrIgnore) => {
                return Err(NotTaken::Ignored(Ignored::NotARequest));
            }
            (None, Credentials::Message) => return Err(self.identity.missing().into()),
            (None, Credentials::Remembered) => {
                remembered().ok_or_else(|| self.identity.missing())?
            }
        };
        route.check_response_topic(message, &self.identity)?;
        Ok(Taken { message, route, caller: Caller { device: device.clone(), key, captures } })
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::SystemTime};

    use tokio::time::Instant;

    use super::*;
    use crate::{config::Config, message::Properties};

    const TABLE: &str = r#"
[upstream]
url = "http://hub"
[device]
capture = "id"
[[route]]
name = "own"
on   = "d/{id}/own"
call = "POST /{id}"
[[route]]
name        = "shared"
on          = "d/{id}/shared"
call        = "GET /{id}"
credentials = "message_or_ignore"
[[route]]
name        = "trusting"
on          = "d/{id}/trusting"
call        = "PUT /{id}"
credentials = "remembered"
"#;

    /// What becomes of a message with these user properties on `d/d1/{row}`: whose key, or why not.
    fn take(row: &str, user: &[(&str, &str)], reply: Option<&str>) -> Result<Secret, NotTaken> {
        let config = Config::parse(TABLE, &BTreeMap::new()).unwrap();
        let topic = format!("d/d1/{row}");
        let user = user.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let properties = Properties {
            user: user.collect(),
            response_topic: reply.map(str::to_owned),
            ..Properties::default()
        };
        let (received_at, arrived) = (SystemTime::now(), Instant::now());
        let payload = bytes::Bytes::new();
        let message = Message { topic, payload, properties, received_at, arrived };
        let found = config.subscriptions().find(&message.topic);
        let (index, captures) = found.map_or((None, Captures::default()), |(i, c)| (Some(i), c));
        let route = index.map(|index| &config.table.routes[index]);
        let remembered = || Some(Secret::new("known"));
        let taken = config.table.take(&message, route, &captures, &"d1".into(), remembered);
        taken.map(|taken| taken.caller.key)
    }

    const ID: (&str, &str) = ("device_id", "d1");
    const KEY: (&str, &str) = ("access_key", "k");
    const MARK: (&str, &str) = ("via", "mqtt-rest-gateway");

    #[test]
    fn each_row_takes_the_key_it_says() {
        let key = |text: &str| Ok(Secret::new(text));
        for row in ["own", "shared", "trusting"] {
            assert_eq!(take(row, &[ID, KEY], None), key("k"), "{row}");
            let half = take(row, &[ID], None);
            assert!(matches!(half, Err(NotTaken::Refused(Refusal::NoCredentials(_)))), "{row}");
            let other = take(row, &[("device_id", "d2"), KEY], None);
            assert!(matches!(other, Err(NotTaken::Refused(Refusal::Identity(_)))), "{row}");
        }
        assert!(matches!(
            take("own", &[], None),
            Err(NotTaken::Refused(Refusal::NoCredentials(_)))
        ));
        assert_eq!(take("shared", &[], None), Err(NotTaken::Ignored(Ignored::NotARequest)));
        assert_eq!(take("trusting", &[], None), key("known"));
        assert_eq!(take("other", &[ID, KEY], None), Err(Refusal::NoRoute.into()));
    }

    #[test]
    fn a_key_is_told_what_it_may_be() {
        for key in ["two words", "", "\u{e9}", "a\nb"] {
            let Err(NotTaken::Refused(refusal)) = take("own", &[ID, ("access_key", key)], None)
            else {
                panic!("{key:?} is taken");
            };
            assert!(refusal.to_string().contains("none of them a space"), "{refusal}");
        }
    }

    #[test]
    fn what_a_gateway_says_is_no_request_and_what_a_device_echoes_is() {
        for row in ["own", "shared", "trusting", "other"] {
            for user in [&[MARK][..], &[MARK, ID], &[MARK, KEY], &[MARK, ("device_id", "d2"), KEY]]
            {
                let looped = Err(NotTaken::Ignored(Ignored::Loop));
                assert_eq!(take(row, user, None), looped, "{row} {user:?}");
            }
        }
        for row in ["own", "shared", "trusting"] {
            assert_eq!(take(row, &[MARK, ID, KEY], None), Ok(Secret::new("k")), "{row}");
        }
    }

    #[test]
    fn an_answer_goes_below_the_devices_own_topics() {
        let reply = |topic: &str| take("own", &[ID, KEY], Some(topic)).is_ok();
        assert!(reply("d/d1/x") && reply(&format!("d/d1{}", "/a".repeat(16))));
        for topic in ["d/d1", "d/d1/", "d/d10/x", "d/d2/x", "x", "d/d1/+", "d/d1/a\u{7}"] {
            assert!(!reply(topic), "{topic}");
        }
        assert!(!reply(&format!("d/d1{}", "/a".repeat(17))));
        assert!(!reply(&format!("d/d1/{}", "a".repeat(513))));
    }
}
