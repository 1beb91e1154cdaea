//! The reply: what the device is told about the end of its message, and where.

use bytes::Bytes;
use serde_json::json;

use super::outcome::Outcome;
use crate::{
    call::JSON,
    message::{Message, Properties, Publication, Purpose, VIA},
    table::Incoming,
    template::Template,
};

/// Where the reply and the dead letter of one message go.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Destinations {
    /// The message's own Response Topic if it is allowed, else the row's `reply`.
    pub(crate) reply: Option<String>,
    /// Where failures go that have no other place.
    pub(crate) errors: Option<String>,
    /// The dead-letter topic.
    pub(crate) dead_letter: Option<String>,
    /// The broker is to keep an answer: the row says so, and it goes to the row's own topic. What a device names it
    /// can retain nothing on.
    pub(crate) retain: bool,
}

impl Destinations {
    /// Those of this message. `errors` and `dead_letter` are the templates of the configuration.
    pub(crate) fn of(
        incoming: &Incoming<'_>,
        errors: Option<&Template>,
        dead_letter: Option<&Template>,
    ) -> Self {
        let value = |name: &str| {
            if name == "route" { Some(&**incoming.name()) } else { incoming.captures.get(name) }
        };
        // One that nothing can be published on is counted where that is found out.
        let topic = |template: &Template| template.topic(value);
        let named = incoming.response_topic().map(str::to_owned);
        Self {
            retain: named.is_none() && incoming.route.is_some_and(|route| route.retain),
            reply: named.or_else(|| incoming.route?.reply.as_ref().and_then(topic)),
            errors: errors.and_then(topic),
            dead_letter: dead_letter.and_then(topic),
        }
    }

    /// Where a failure is told: where the answer would go, else on the topic for errors.
    pub(crate) fn failure(&self) -> Option<&String> {
        self.reply.as_ref().or(self.errors.as_ref())
    }

    /// Where the reply with this outcome goes.
    pub(crate) fn reply_with(&self, outcome: &Outcome) -> Option<&String> {
        match outcome {
            Outcome::Skipped | Outcome::Ignored(_) => None,
            Outcome::Delivered(_) => self.reply.as_ref(),
            Outcome::Rejected(_)
            | Outcome::Failed(_)
            | Outcome::Refused(_)
            | Outcome::Unknown
            | Outcome::Panicked => self.failure(),
        }
    }
}

/// The reply, if there is a place for it: what the row's `answer` has made, the API's answer as it came, or the error
/// in JSON.
pub(super) fn reply(
    outcome: &Outcome,
    made: Option<Bytes>,
    message: &Message,
    to: &Destinations,
    route: &str,
    via: &str,
) -> Option<Publication> {
    let topic = to.reply_with(outcome)?.clone();
    let json = |body| (body, Some(JSON.to_owned()));
    let (payload, content_type) = match (made, outcome.answer()) {
        (Some(made), _) => json(made),
        (None, Some(answer)) => {
            (answer.body.clone(), answer.content_type.as_deref().map(str::to_owned))
        }
        (None, None) => json(error_body(outcome)),
    };
    let status = outcome.status().to_string();
    let user = [("status", status.as_str()), ("route", route), (VIA, via)];
    Some(Publication {
        purpose: Purpose::Reply,
        topic,
        payload,
        // A failure is no state of anything.
        retain: to.retain && matches!(outcome, Outcome::Delivered(_)),
        properties: Properties {
            user: user.into_iter().collect(),
            correlation_data: message.properties.correlation_data.clone(),
            content_type,
            ..Properties::default()
        },
    })
}

fn error_body(outcome: &Outcome) -> Bytes {
    let error = outcome.told().unwrap_or_default();
    json!({ "error": error, "code": outcome.code() }).to_string().into()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        failure::{Failure, FailureKind},
        fixtures::{self, answer},
        table::{Ignored, refusal::Refusal},
    };

    const TABLE: &str = r#"
[upstream]
url = "http://hub"
[replies]
errors = "d/{device_id}/errors"
[dead_letter]
topic = "dead/{route}/{device_id}"
[[route]]
name  = "asks"
on    = "d/{device_id}/asks"
call  = "GET /{device_id}"
reply = "d/{device_id}/answers"
[[route]]
name = "tells"
on   = "d/{device_id}/tells"
call = "POST /{device_id}"
"#;

    /// Where the answers to a message on this topic go.
    fn destinations(table: &str, topic: &str, response_topic: Option<&str>) -> Destinations {
        let config = fixtures::config(table);
        let mut message = fixtures::message(topic, &[], b"{}");
        message.properties.response_topic = response_topic.map(str::to_owned);
        let (subscription, captures) = config.table.patterns.find(topic).unzip();
        let (captures, device) = (captures.unwrap_or_default(), Arc::from("d1"));
        let incoming = config.table.incoming(&message, subscription, &captures, &device);
        let exchange = &config.exchange;
        Destinations::of(&incoming, exchange.errors.as_ref(), exchange.dead_letter.as_ref())
    }

    #[test]
    fn a_message_is_answered_where_it_asks_or_where_its_row_says() {
        let reply = |topic, response_topic| destinations(TABLE, topic, response_topic).reply;
        assert_eq!(reply("d/d1/asks", None).as_deref(), Some("d/d1/answers"));
        assert_eq!(reply("d/d1/asks", Some("d/d1/x")).as_deref(), Some("d/d1/x"));
        assert_eq!(reply("d/d1/asks", Some("d/d2/x")).as_deref(), Some("d/d1/answers"));
        assert_eq!(reply("d/d1/tells", None), None);
        assert_eq!(reply("d/d1/tells", Some("d/d1/x")).as_deref(), Some("d/d1/x"));
        assert_eq!(reply("d/d1/tells", Some("d/+/x")), None);
        let to = destinations(TABLE, "d/d1/tells", None);
        assert_eq!(to.errors.as_deref(), Some("d/d1/errors"));
        assert_eq!(to.dead_letter.as_deref(), Some("dead/tells/d1"));
        // No row, no captures: nowhere to answer, and no name for the dead letter's topic.
        assert_eq!(destinations(TABLE, "other", Some("other/x")), Destinations::default());
    }

    #[test]
    fn failures_are_told_on_the_topic_for_errors_and_successes_only_to_who_asks() {
        let (asked, silent) =
            (destinations(TABLE, "d/d1/asks", None), destinations(TABLE, "d/d1/tells", None));
        let failed = Failure { kind: FailureKind::Expired, attempts: 0 };
        for (outcome, told) in [
            (Outcome::of(answer(201), true), false),
            (Outcome::of(answer(404), false), true),
            (Outcome::Failed(failed), true),
            (Outcome::Refused(Refusal::NoRoute), true),
            (Outcome::Unknown, true),
            (Outcome::Panicked, true),
        ] {
            assert_eq!(asked.reply_with(&outcome), asked.reply.as_ref(), "{outcome:?}");
            let errors = silent.errors.as_ref().filter(|_| told);
            assert_eq!(silent.reply_with(&outcome), errors, "{outcome:?}");
        }
        let ignored = [Ignored::Loop, Ignored::NotARequest].map(Outcome::Ignored);
        for silent in ignored.iter().chain(&[Outcome::Skipped]) {
            assert_eq!(asked.reply_with(silent), None);
        }
    }

    #[test]
    fn an_answer_is_retained_where_the_row_says_so_on_the_rows_own_topic() {
        let row = TABLE.replace("reply =", "retain = true\nreply =");
        let retained = |response_topic, status| {
            let to = destinations(&row, "d/d1/asks", response_topic);
            let message = fixtures::message("d/d1/asks", &[], b"");
            reply(&Outcome::of(answer(status), status < 400), None, &message, &to, "asks", "gw")
                .unwrap()
                .retain
        };
        assert!(retained(None, 200));
        assert!(!retained(Some("d/d1/x"), 200), "who asks for it there wants it once");
        assert!(!retained(None, 404), "a failure is no state of anything");
    }

    #[test]
    fn a_reply_has_the_answer_as_it_came_or_an_error_in_json() {
        let to = destinations(TABLE, "d/d1/asks", None);
        let mut message = fixtures::message("d/d1/asks", &[], b"");
        message.properties.correlation_data = Some(Bytes::from_static(b"\0c"));
        let made = |made, outcome| reply(&outcome, made, &message, &to, "asks", "gw").unwrap();
        let reply = |outcome: Outcome| made(None, outcome);
        let page = crate::call::Answer {
            content_type: Some("text/html".into()),
            body: Bytes::from_static(b"<html>"),
            ..answer(403)
        };
        let told = reply(Outcome::of(page, false));
        assert!(!told.retain);
        assert_eq!((told.topic.as_str(), &*told.payload), ("d/d1/answers", &b"<html>"[..]));
        assert_eq!(told.properties.content_type.as_deref(), Some("text/html"));
        assert_eq!(told.properties.correlation_data.as_deref(), Some(&b"\0c"[..]));
        let user: Vec<_> = told.properties.user.iter().collect();
        assert_eq!(user, [("status", "403"), ("route", "asks"), (VIA, "gw")]);
        let told = made(Some(Bytes::from_static(b"1")), Outcome::of(answer(200), true));
        assert_eq!(
            (&*told.payload, told.properties.content_type.as_deref()),
            (&b"1"[..], Some(JSON))
        );
        let told = reply(Outcome::Failed(FailureKind::AttemptTimeout.into()));
        assert_eq!(told.properties.content_type.as_deref(), Some(JSON));
        let error: serde_json::Value = serde_json::from_slice(&told.payload).unwrap();
        assert_eq!(
            error,
            json!({"error": "the upstream did not answer in time", "code": "deadline"})
        );
        assert_eq!(told.properties.user.get("status").next(), Some("504"));
    }
}
