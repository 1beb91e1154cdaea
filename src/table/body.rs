//! From a message that a row has taken to the body of its call, and what filters see of it on the way.

use bytes::Bytes;

use super::{Taken, keys::Keys, refusal::Refusal, route::MaxBytes};
use crate::{
    call::Endpoint,
    filter::{self, Context, Filter, FilterError, Reads, Val},
};

impl Taken<'_> {
    /// What filters see besides their input. Of the message only what they read is made; a payload that is not what
    /// the row takes is null.
    pub fn context(&self, reads: Reads, memory: Val) -> Context {
        let Self { message, route, captures, .. } = self;
        let mut context = Context { memory, ..Context::default() };
        if reads.payload {
            context.payload = route.takes.read(&message.payload).unwrap_or_default();
        }
        if reads.captures {
            context.captures =
                filter::object(captures.iter().map(|(name, level)| (name, filter::text(level))));
        }
        if reads.message {
            let topic = filter::text(&message.topic);
            context.message =
                filter::object([("topic", topic), ("properties", self.properties())].into_iter());
        }
        context
    }

    /// The user properties, without what is a key, or is called nearly like it.
    fn properties(&self) -> Val {
        let Self { message, speaker, identity, .. } = self;
        let keys = Keys::new(message, &identity.key_property, speaker.key.as_ref());
        let (properties, _) = keys.others(message);
        filter::object(properties.into_iter().map(|(name, value)| (name, filter::text(value))))
    }

    /// Whether the message passes the row's `when`.
    ///
    /// # Errors
    /// [`Refusal::BadPayload`] when the payload is not what the row takes, or the filter fails on it.
    pub fn passes(&self, memory: impl FnOnce() -> Val) -> Result<bool, Refusal> {
        let Some(when) = &self.route.when else { return Ok(true) };
        let fails =
            |error: FilterError| Refusal::BadPayload(format!("`when` fails on it: {error}"));
        Ok(self.open(when.reads(), memory)?.run(when).map_err(fails)?.iter().any(filter::is_true))
    }

    /// Reads the payload for filters that read this.
    ///
    /// # Errors
    /// [`Refusal::BadPayload`] when the payload is not what the row takes.
    pub(super) fn open(
        &self,
        reads: Reads,
        memory: impl FnOnce() -> Val,
    ) -> Result<Opened, Refusal> {
        let payload = self.route.takes.read(&self.message.payload)?;
        // Not read twice.
        let others = Reads { payload: false, ..reads };
        let context = Context { payload: payload.clone(), ..self.context(others, memory()) };
        Ok(Opened { payload, context })
    }

    /// The body to send: the payload as it came, or translated by the row's filter, for which it is opened.
    ///
    /// # Errors
    /// [`Refusal::BadPayload`].
    pub(super) fn body(
        &self,
        endpoint: &Endpoint,
        opened: Option<&Opened>,
        max: &MaxBytes,
    ) -> Result<Option<Bytes>, Refusal> {
        let Self { message, route, .. } = self;
        let (Some(translate), Some(opened)) = (&route.body, opened) else {
            if !endpoint.takes_body() {
                return Ok(None);
            }
            route.takes.check(&message.payload)?;
            return Ok(Some(message.payload.clone()));
        };
        let cannot = |error: FilterError| {
            Refusal::BadPayload(format!("the payload cannot be translated: {error}"))
        };
        let outputs = opened.run(translate).map_err(cannot)?;
        route.content_type.kind.body(&outputs, max.request).map(Some).map_err(cannot)
    }
}

/// A payload that is read, with what filters over it see besides.
pub(super) struct Opened {
    payload: Val,
    context: Context,
}

impl Opened {
    /// Runs a filter over it.
    ///
    /// # Errors
    /// [`FilterError`] when it fails.
    pub(super) fn run(&self, filter: &Filter) -> Result<Vec<Val>, FilterError> {
        filter.run(self.payload.clone(), &self.context)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{call::Lifetime, fixtures};

    /// What a row with these lines makes of a payload.
    fn body(lines: &str, payload: &[u8]) -> Result<Option<Bytes>, Refusal> {
        let text = format!(
            "[upstream]\nurl = \"http://hub\"\nmax_request_bytes = 40\nmax_filter_bytes = 30\n\
             [[route]]\nname = \"r\"\non = \"{{device_id}}\"\n{lines}"
        );
        let config = fixtures::config(&text);
        let user =
            [("device_id", "d1"), ("access_key", "k1"), ("n", "1"), ("n", "2"), ("acces-key", "k")];
        let message = fixtures::message("d1", &user, payload);
        let (subscription, captures) = config.table.patterns.find(&message.topic).unzip();
        let (captures, device) = (captures.unwrap(), "d1".into());
        let incoming = config.table.incoming(&message, subscription, &captures, &device);
        let taken = config.table.take(&incoming, || None).unwrap();
        let memory = || filter::parse(b"{\"m\":1}").unwrap();
        let lifetime = Lifetime { deadline: Duration::MAX, expires: None, since: None };
        let (endpoint, max) = (taken.route.call.as_ref().unwrap(), &config.exchange.max_bytes);
        taken.call(endpoint, memory, max, lifetime).map(|call| call.body)
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

    #[test]
    fn texts_become_lines_and_bytes_go_as_they_came() {
        let text = "call = \"POST /x\"\ntakes = \"text\"\ncontent_type = \"text/plain\"";
        assert_eq!(body(text, b"nan").unwrap().unwrap(), "nan");
        let line = format!("{text}\nbody = '\"t,d=\\($captures.device_id) v=\\(.)\", $payload'");
        assert_eq!(body(&line, b"21.5").unwrap().unwrap(), "t,d=d1 v=21.5\n21.5");
        for row in [text, &line] {
            match body(row, b"\xff") {
                Err(Refusal::BadPayload(why)) => assert!(why.contains("UTF-8"), "{why}"),
                other => panic!("{other:?}"),
            }
        }
        let long = "x".repeat(31);
        assert!(body(text, long.as_bytes()).is_ok(), "no filter reads it");
        assert_eq!(body(&line, long.as_bytes()), Err(Refusal::TooLarge { size: 31, max: 30 }));
        let bytes = "call = \"PUT /x\"\ntakes = \"bytes\"\ncontent_type = \"image/jpeg\"";
        assert_eq!(&*body(bytes, b"\xff\xd8\0").unwrap().unwrap(), b"\xff\xd8\0");
    }

    #[test]
    fn filters_see_the_topic_and_the_properties_without_the_key() {
        let filter = "[$captures[], $message.topic, ($message.properties | .[], length)]";
        let row = format!("{POST}\nbody = '{filter}'");
        assert_eq!(body(&row, b"1").unwrap().unwrap(), r#"["d1","d1","d1","1",2]"#);
    }
}
