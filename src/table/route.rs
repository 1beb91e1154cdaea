//! A route: what it listens on and what it makes of a message. Pure: a message goes in, a body or a
//! refusal comes out.

use std::{fmt, sync::Arc};

use bytes::Bytes;

use super::{
    fetch::{Condition, Then},
    identity::Identity,
    refusal::Refusal,
};
use crate::{
    call::{Batch, Endpoint, Retry},
    filter::{self, Context, Filter, FilterError, Val},
    json,
    message::Message,
    rate::Rate,
    template::Template,
    topic::{self, Pattern},
};

/// Most levels and bytes of a Response Topic below the device's own part: nobody needs more, and some brokers end
/// the connection over a topic with very many levels.
const MAX_RESPONSE_LEVELS: usize = 16;
const MAX_RESPONSE_BYTES: usize = 512;

/// `[[route]]`: a message from a device becomes a call.
#[derive(Debug)]
pub struct Route {
    /// Unique; the label in metrics, logs and dead letters.
    pub name: Arc<str>,
    /// Which topics it listens on.
    pub on: Pattern,
    /// What is called; without it only `answer` and `then` run.
    pub call: Option<Endpoint>,
    /// Where the answer goes when the message names no Response Topic.
    pub reply: Option<Template>,
    /// The broker keeps the answer on `reply` for whoever subscribes later.
    pub retain: bool,
    /// Translates the payload.
    pub body: Option<Filter>,
    /// Without `call`: makes the answer.
    pub answer: Option<Filter>,
    /// Who may speak, and whose key the call carries.
    pub credentials: Credentials,
    /// When the call may be repeated.
    pub retry: Retry,
    /// The limit on attempts of one device on this row.
    pub rate: Option<Rate>,
    /// How calls of different devices travel together.
    pub batch: Option<Arc<Batch>>,
    /// After a success, over the answer: makes the object to remember of the device.
    pub remember: Option<Filter>,
    /// What to fetch after success, in this order.
    pub then: Vec<Then>,
    /// Whether one of its filters reads the payload, before the call or after it.
    pub reads_payload: bool,
}

/// How large a payload may be, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct MaxBytes {
    /// Largest body that is sent to the API, as it came or translated.
    pub request: usize,
    /// Largest payload or answer that a filter reads.
    pub filter: usize,
}

/// Who may speak, and whose key its calls carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credentials {
    /// The message must bring its key.
    Message,
    /// The message must bring its key; one without credentials is not meant for the gateway and is ignored.
    MessageOrIgnore,
    /// The message's key, else the one last accepted upstream for this device.
    Remembered,
    /// Nothing is asked and no key goes upstream: whoever may write on the topic is its device.
    None,
}

impl Route {
    /// Where the message wants its answer. A Response Topic outside the device's own subtree is refused: a device
    /// must not make the gateway speak to another one.
    ///
    /// # Errors
    /// [`Refusal::ResponseTopic`].
    pub fn response_topic<'m>(
        &self,
        message: &'m Message,
        identity: &Identity,
    ) -> Result<Option<&'m str>, Refusal> {
        let Some(wanted) = message.properties.response_topic.as_deref() else { return Ok(None) };
        let (topic, capture) = (&message.topic, &identity.capture);
        let below = self.on.below(topic, capture, wanted);
        let is_short = |below: &str| {
            (1..=MAX_RESPONSE_BYTES).contains(&below.len())
                && below.split('/').count() <= MAX_RESPONSE_LEVELS
        };
        if below.is_some_and(is_short) && topic::is_publishable(wanted) {
            return Ok(Some(wanted));
        }
        let own = self.on.own(topic, capture).unwrap_or_default();
        Err(Refusal::ResponseTopic(own.chars().take(100).chain(['/']).collect()))
    }

    /// Refuses a payload that is too large to be sent, or to be read by the row's filters.
    ///
    /// # Errors
    /// [`Refusal::TooLarge`].
    pub fn check_size(&self, message: &Message, max: &MaxBytes) -> Result<(), Refusal> {
        let size = message.payload.len();
        let limits = [(self.call.is_some(), max.request), (self.reads_payload, max.filter)];
        match limits.into_iter().find(|(applies, max)| *applies && size > *max) {
            Some((_, max)) => Err(Refusal::TooLarge { size, max }),
            None => Ok(()),
        }
    }

    /// The body to send: the payload as it came, or translated by the row's filter. `memory` is what is
    /// remembered of the device.
    ///
    /// # Errors
    /// [`Refusal::TooLarge`] or [`Refusal::BadPayload`].
    pub fn body(
        &self,
        endpoint: &Endpoint,
        message: &Message,
        memory: impl FnOnce() -> Val,
        max: &MaxBytes,
    ) -> Result<Option<Bytes>, Refusal> {
        self.check_size(message, max)?;
        let bytes = &message.payload;
        let not_json = |error: &dyn fmt::Display| {
            Refusal::BadPayload(format!("the payload is not JSON: {error}"))
        };
        let Some(translate) = &self.body else {
            if !endpoint.takes_body() {
                return Ok(None);
            }
            json::check(bytes).map_err(|error| not_json(&error))?;
            return Ok(Some(bytes.clone()));
        };
        let payload = filter::parse(bytes).map_err(|error| not_json(&error))?;
        let read = if translate.reads_payload() { payload.clone() } else { Val::Null };
        let context = Context { memory: memory(), payload: read };
        let cannot = |error: FilterError| {
            Refusal::BadPayload(format!("the payload cannot be translated: {error}"))
        };
        match translate.run(payload, &context).map_err(cannot)?.as_slice() {
            [body] => filter::to_json(body, max.request).map(Some).map_err(cannot),
            outputs => Err(Refusal::BadPayload(format!(
                "the payload translates into {} bodies instead of one",
                outputs.len()
            ))),
        }
    }

    /// The filters that decide what follows an answer.
    pub fn deciding(&self) -> impl Iterator<Item = &Filter> {
        let then = self.then.iter().filter_map(|then| match &then.condition {
            Condition::Always => None,
            Condition::When(filter) | Condition::OnChange(filter) => Some(filter),
        });
        self.remember.iter().chain(then)
    }
}

impl Credentials {
    /// What can be written in the table.
    pub const WORDS: [(&'static str, Self); 4] = [
        ("message", Self::Message),
        ("message_or_ignore", Self::MessageOrIgnore),
        ("remembered", Self::Remembered),
        ("none", Self::None),
    ];

    /// As it is written in the table.
    pub fn as_str(self) -> &'static str {
        Self::WORDS.iter().find(|(_, value)| *value == self).map_or("", |(word, _)| word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    /// What a row with these lines makes of a payload.
    fn body(lines: &str, payload: &[u8]) -> Result<Option<Bytes>, Refusal> {
        let text = format!(
            "[upstream]\nurl = \"http://hub\"\nmax_request_bytes = 40\nmax_filter_bytes = 30\n\
             [[route]]\nname = \"r\"\non = \"{{device_id}}\"\n{lines}"
        );
        let config = fixtures::config(&text);
        let route = &config.table.routes[0];
        let message = fixtures::message("d1", &[], payload);
        let memory = || filter::parse(b"{\"m\":1}").unwrap();
        route.body(route.call.as_ref().unwrap(), &message, memory, &config.exchange.max_bytes)
    }

    const POST: &str = "call = \"POST /x\"";

    #[test]
    fn without_a_filter_a_payload_goes_as_it_came_if_it_is_json() {
        for payload in ["{\"a\": 1e400}", "\"\\ud83d\"", " [1.50, 2] "] {
            assert_eq!(body(POST, payload.as_bytes()).unwrap().unwrap(), payload);
        }
        for payload in ["", "x", "{\"t\":NaN}", "\u{feff}{}", "{} {}"] {
            let refused = body(POST, payload.as_bytes());
            assert!(matches!(refused, Err(Refusal::BadPayload(_))), "{payload}: {refused:?}");
        }
        let large = Err(Refusal::TooLarge { size: 42, max: 40 });
        assert_eq!(body(POST, format!("\"{}\"", "x".repeat(40)).as_bytes()), large);
    }

    #[test]
    fn other_methods_carry_nothing() {
        for call in ["GET", "HEAD", "DELETE"] {
            assert_eq!(body(&format!("call = \"{call} /x\""), b"not json"), Ok(None), "{call}");
        }
    }

    #[test]
    fn a_filter_makes_one_body_and_no_more_than_may_be_sent() {
        let row = |filter: &str| format!("{POST}\nbody = '{filter}'");
        let made = |filter: &str, payload: &str| body(&row(filter), payload.as_bytes());
        assert_eq!(made("{v: .a}", "{\"a\":1}").unwrap().unwrap(), "{\"v\":1}");
        assert_eq!(made("[$memory.m, $payload.a]", "{\"a\":2}").unwrap().unwrap(), "[1,2]");
        for (filter, payload, why) in [
            (".[]", "[]", "0 bodies"),
            (".[]", "[1,2]", "2 bodies"),
            (".a.b", "{\"a\":1}", "cannot be translated"),
            (". * 100", "\"x\"", "more than 40 bytes"),
            ("1 / .a", "{\"a\":0}", "no JSON"),
            (".", "{\"a\"", "not JSON"),
            (".", "\"\\ud83d\"", "not JSON"),
        ] {
            match made(filter, payload) {
                Err(Refusal::BadPayload(text)) => assert!(text.contains(why), "{filter}: {text}"),
                other => panic!("{filter}: {other:?}"),
            }
        }
        let large = format!("\"{}\"", "x".repeat(30));
        assert_eq!(made(".", &large), Err(Refusal::TooLarge { size: 32, max: 30 }));
    }

    #[test]
    fn a_payload_that_is_read_after_the_call_is_no_larger_either() {
        let lines = format!("{POST}\nremember = '$payload | {{a}}'");
        let large = format!("\"{}\"", "x".repeat(30));
        assert_eq!(body(&lines, large.as_bytes()), Err(Refusal::TooLarge { size: 32, max: 30 }));
        let unread = format!("{POST}\nremember = '{{a}}'");
        assert!(body(&unread, large.as_bytes()).is_ok());
    }
}
