//! The table in force: which of its rows takes a message, who speaks, and which calls are made for it. Pure.

pub mod describe;
pub mod fetch;
pub mod identity;
pub mod refusal;
pub mod route;

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use self::{
    fetch::Fetch,
    identity::{Identity, Speaker},
    refusal::Refusal,
    route::{Credentials, MaxBytes, Route},
};
use crate::{
    call::{Authorization, Call, Endpoint, Lifetime, Retry, Trial},
    filter::Val,
    message::{Message, VIA},
    secret::Secret,
    template::BadSegment,
    topic::Captures,
};

/// The label of messages that no row takes.
static NO_ROUTE: LazyLock<Arc<str>> = LazyLock::new(|| "none".into());

/// All rows.
#[derive(Debug)]
pub struct Table {
    /// Rows of `[[route]]`; no two match the same topic.
    pub routes: Vec<Route>,
    /// Rows of `[[fetch]]`.
    pub fetches: Vec<Arc<Fetch>>,
    /// The names by which a message says who speaks.
    pub identity: Identity,
}

/// A message that has come in.
pub struct Incoming<'m> {
    /// The message.
    pub message: &'m Message,
    /// The row that its topic matches; none if an earlier table left a subscription in the session.
    pub route: Option<&'m Route>,
    /// What its topic captured.
    pub captures: &'m Captures,
    /// The device that its topic names.
    pub device: &'m Arc<str>,
    /// Where it wants its answer, if it says so and may have it there.
    response_topic: Result<Option<&'m str>, Refusal>,
}

impl<'m> Incoming<'m> {
    /// The label of its row.
    pub fn name(&self) -> &'m Arc<str> {
        self.route.map_or(&*NO_ROUTE, |route| &route.name)
    }

    /// Its Response Topic, if it may have its answer there.
    pub fn response_topic(&self) -> Option<&'m str> {
        self.response_topic.as_ref().ok().copied().flatten()
    }
}

/// A message that a row has taken: it is known who speaks and what the calls for it carry.
pub struct Taken<'m> {
    /// The message.
    pub message: &'m Message,
    /// Its row.
    pub route: &'m Route,
    /// What its topic captured.
    pub captures: &'m Captures,
    /// Who it comes from.
    pub speaker: Speaker,
    /// What its calls carry.
    pub authorization: Authorization,
}

impl Taken<'_> {
    /// The call of its row, complete. `memory` is what is remembered of the device.
    ///
    /// # Errors
    /// [`Refusal`] when the payload is not what the row takes, or a captured level cannot stand in the path.
    pub fn call(
        &self,
        endpoint: &Endpoint,
        memory: impl FnOnce() -> Val,
        max: &MaxBytes,
        lifetime: Lifetime,
    ) -> Result<Call, Refusal> {
        let Self { message, route, .. } = self;
        let body = route.body(endpoint, message, memory, max)?;
        let call = self.request(&route.name, endpoint, lifetime)?;
        Ok(Call { body, retry: route.retry, batch: route.batch.clone(), ..call })
    }

    /// The call of a fetch that its answer sets off.
    ///
    /// # Errors
    /// [`BadSegment`] when a captured level cannot stand in the path.
    pub fn fetch(
        &self,
        name: &Arc<str>,
        endpoint: &Endpoint,
        deadline: Duration,
    ) -> Result<Call, BadSegment> {
        self.request(name, endpoint, Lifetime { deadline, expires: None, since: None })
    }

    fn request(
        &self,
        name: &Arc<str>,
        endpoint: &Endpoint,
        lifetime: Lifetime,
    ) -> Result<Call, BadSegment> {
        let Lifetime { deadline, expires, since } = lifetime;
        Ok(Call {
            name: name.clone(),
            device: self.speaker.device.clone(),
            method: endpoint.method.clone(),
            path: endpoint.path(self.captures)?,
            body: None,
            authorization: self.authorization.clone(),
            retry: Retry::Always,
            deadline,
            since,
            trial: Trial::default(),
            has_turn: false,
            attempts: 0,
            queued: None,
            hurried: false,
            expires,
            batch: None,
        })
    }
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
    /// A gateway published it: it carries `via` and no valid credentials.
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
    /// The row of a subscription: each row has one, in the same order.
    pub fn route(&self, subscription: Option<usize>) -> Option<&Route> {
        self.routes.get(subscription?)
    }

    /// The label of that row.
    pub fn name(&self, subscription: Option<usize>) -> &Arc<str> {
        self.route(subscription).map_or(&*NO_ROUTE, |route| &route.name)
    }

    /// Whether a row has the broker keep what is published.
    pub fn retains(&self) -> bool {
        self.routes.iter().any(|route| route.retain)
            || self.fetches.iter().any(|fetch| fetch.retain)
    }

    /// A message that has come for this subscription.
    pub fn incoming<'m>(
        &'m self,
        message: &'m Message,
        subscription: Option<usize>,
        captures: &'m Captures,
        device: &'m Arc<str>,
    ) -> Incoming<'m> {
        let route = self.route(subscription);
        let response_topic = match route {
            Some(route) => route.response_topic(message, &self.identity),
            None => Ok(None),
        };
        Incoming { message, route, captures, device, response_topic }
    }

    /// Takes a message. `remembered` gives the key last accepted for the device.
    ///
    /// # Errors
    /// [`NotTaken`] when it came for no row, carries `via` and no credentials, names nobody or somebody else, or
    /// wants its answer where its device may not speak.
    pub fn take<'m>(
        &self,
        incoming: &Incoming<'m>,
        remembered: impl FnOnce() -> Option<Secret>,
    ) -> Result<Taken<'m>, NotTaken> {
        let Incoming { message, route, captures, device, response_topic } = incoming;
        let is_ours = message.user_property(VIA).next().is_some();
        let Some(route) = route else {
            let refused = NotTaken::from(Refusal::NoRoute);
            return Err(if is_ours { NotTaken::Ignored(Ignored::Loop) } else { refused });
        };
        // No gateway sends credentials: a message with valid ones is a device's, whatever else it carries, an
        // echo of what it was pushed for example.
        let own = self.identity.authenticate(message, captures);
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
        response_topic.clone()?;
        let authorization = Authorization::SpeakersKey(key.clone());
        let speaker = Speaker { device: (*device).clone(), key: Some(key) };
        Ok(Taken { message, route, captures, speaker, authorization })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

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
        let config = fixtures::config(TABLE);
        let mut message = fixtures::message(&format!("d/d1/{row}"), user, b"");
        message.properties.response_topic = reply.map(str::to_owned);
        let (subscription, captures) = config.subscriptions().find(&message.topic).unzip();
        let (captures, device) = (captures.unwrap_or_default(), "d1".into());
        let incoming = config.table.incoming(&message, subscription, &captures, &device);
        let taken = config.table.take(&incoming, || Some(Secret::new("known")))?;
        assert_eq!(taken.speaker.device, device);
        assert_eq!(taken.authorization.speakers_key(), taken.speaker.key.as_ref());
        assert_eq!(incoming.response_topic(), reply);
        Ok(taken.speaker.key.unwrap())
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

    const ROWS: &str = r#"
[upstream]
url = "http://hub"
max_request_bytes = 40
[[route]]
name  = "t"
on    = "d/{device_id}/{kind}/up"
call  = "PUT /d/{device_id}/{kind}?x=1"
body  = "{v: .a, m: $memory.m}"
batch = { call = "POST /all", key = "k" }
"#;

    /// The call that a message with this payload becomes.
    fn call(kind: &str, payload: &str) -> Result<Call, Refusal> {
        let config = fixtures::config(ROWS);
        let topic = format!("d/d 1/{kind}/up");
        let user = [("device_id", "d 1"), KEY];
        let message = fixtures::message(&topic, &user, payload.as_bytes());
        let (subscription, captures) = config.subscriptions().find(&topic).unzip();
        let (captures, device) = (captures.unwrap(), "d 1".into());
        let incoming = config.table.incoming(&message, subscription, &captures, &device);
        let taken = config.table.take(&incoming, || None).unwrap();
        let endpoint = taken.route.call.as_ref().unwrap();
        let (deadline, expires) = (Duration::from_secs(7), message.expires());
        let lifetime = Lifetime { deadline, expires, since: Some(Duration::from_secs(3)) };
        let memory = || crate::filter::parse(b"{\"m\":1}").unwrap();
        taken.call(endpoint, memory, &config.exchange.max_bytes, lifetime)
    }

    #[test]
    fn a_message_becomes_a_call_that_is_complete() {
        let call = call("x", "{\"a\":2}").unwrap();
        assert_eq!((&*call.name, &*call.device, call.method.as_str()), ("t", "d 1", "PUT"));
        assert_eq!(call.path, "/d/d%201/x?x=1");
        assert_eq!(call.body.as_deref(), Some(&b"{\"v\":2,\"m\":1}"[..]));
        assert_eq!(call.authorization, Authorization::SpeakersKey(Secret::new("k")));
        assert_eq!((call.deadline.as_secs(), call.since.unwrap().as_secs()), (7, 3));
        assert!(call.batch.is_some() && call.expires.is_none());
        assert_eq!((call.attempts, call.has_turn, call.hurried), (0, false, false));
    }

    #[test]
    fn a_message_that_makes_no_call_is_refused() {
        assert!(matches!(call("..", "{}"), Err(Refusal::BadSegment(_))));
        assert!(matches!(call("x", "{"), Err(Refusal::BadPayload(_))));
        let large = format!("{{\"a\":\"{}\"}}", "x".repeat(40));
        assert_eq!(call("x", &large).err(), Some(Refusal::TooLarge { size: 48, max: 40 }));
    }
}
