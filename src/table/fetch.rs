//! Rows of `[[fetch]]`: something is fetched from the API and pushed, after an answer to a device or by itself.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use super::every::Every;
use crate::{
    call::{Call, Endpoint, StatusCode, Unfit},
    filter::{self, Context, Filter, FilterError, MAX_OUTPUT_BYTES, Val},
    json,
    template::Template,
};

/// Longest Correlation Data, in bytes. A packet has room for 65,535; an identifier is short.
const MAX_CORRELATION_BYTES: usize = 4096;

/// `[[fetch]]`: something is got from the API and pushed to a device.
#[derive(Debug)]
pub struct Fetch {
    /// Unique among fetches.
    pub name: Arc<str>,
    /// What is called; without it the input is the answer that triggered the fetch.
    pub call: Option<Endpoint>,
    /// Topic of the push.
    pub push: Template,
    /// Response Topic put on the push, where the device answers.
    pub response_topic: Option<Template>,
    /// Over the answer of its call, before anything is pushed: makes the object to remember of the device.
    pub remember: Option<Filter>,
    /// Each output is one push. Without it the answer is pushed as it came.
    pub payload: Option<Filter>,
    /// Over each push: its Correlation Data, and what makes two pushes the same item.
    pub correlation: Option<Filter>,
    /// Statuses of the API that mean that there is nothing to push.
    pub empty_on: Vec<StatusCode>,
    /// The same item is not pushed again before this time has passed; without it, always.
    pub redeliver_after: Option<Duration>,
    /// The broker keeps each push for whoever subscribes later.
    pub retain: bool,
    /// How it runs by itself; without it, routes name it in `then`.
    pub every: Option<Every>,
}

/// One entry of `then`.
#[derive(Debug)]
pub struct Then {
    /// What is fetched.
    pub fetch: Arc<Fetch>,
    /// When it runs.
    pub condition: Condition,
    /// The route listens where the device answers this fetch's pushes: a message there means that the device has dealt
    /// with what was pushed before.
    pub is_reply_to_push: bool,
}

/// When an entry of `then` runs.
#[derive(Debug)]
pub enum Condition {
    /// After every success.
    Always,
    /// When the filter is true of the answer.
    When(Filter),
    /// When the filter's value differs from the one last seen for this device. Nothing runs for no value or null.
    OnChange(Filter),
}

/// One push, not published yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Push {
    /// What is published.
    pub payload: Bytes,
    /// Its Correlation Data, which also tells one item from another.
    pub correlation: Option<Bytes>,
}

impl Fetch {
    /// `remember`, `payload` and `correlation`, where it has them.
    pub fn filters(&self) -> impl Iterator<Item = &Filter> {
        self.remember.iter().chain(&self.payload).chain(&self.correlation)
    }

    /// The call of a fetch that runs by itself. It speaks for no device: limits and outages see one of a name that no
    /// topic can have.
    ///
    /// # Errors
    /// [`Unfit`] when it has a name in it, which the configuration rules out.
    pub fn call_by_itself(&self, endpoint: &Endpoint, deadline: Duration) -> Result<Call, Unfit> {
        let (path, headers) = endpoint.request(|_| None, None)?;
        let device = format!("#{}", self.name).into();
        let call = Call::new(self.name.clone(), device, endpoint.method.clone(), path, deadline);
        Ok(Call { headers, sign: endpoint.sign.clone(), ..call })
    }

    /// Takes the answer apart into pushes; none when there is nothing to push. Without a filter it is pushed as
    /// it came, but only if it is JSON: a page of a proxy is no news for a device.
    ///
    /// # Errors
    /// When the answer is no JSON, or a filter fails or puts out too much.
    pub fn pushes(&self, answer: &Bytes, context: &Context) -> Result<Vec<Push>, FilterError> {
        if answer.is_empty() && self.payload.is_none() {
            return Ok(Vec::new());
        }
        let Some(payload) = &self.payload else {
            let correlation = if let Some(correlation) = &self.correlation {
                self::correlation(correlation, filter::parse(answer)?, context)?
            } else {
                json::check(answer)?;
                None
            };
            return Ok(vec![Push { payload: answer.clone(), correlation }]);
        };
        let input = if answer.is_empty() { Val::Null } else { filter::parse(answer)? };
        let mut room = MAX_OUTPUT_BYTES;
        let outputs = payload.run(input, context)?.into_iter();
        outputs
            .map(|value| {
                let payload = filter::to_json(&value, room)?;
                room -= payload.len();
                let correlation = match &self.correlation {
                    Some(correlation) => self::correlation(correlation, value, context)?,
                    None => None,
                };
                Ok(Push { payload, correlation })
            })
            .collect()
    }
}

fn correlation(
    correlation: &Filter,
    push: Val,
    context: &Context,
) -> Result<Option<Bytes>, FilterError> {
    let outputs = correlation.run(push, context)?;
    let id = outputs.first().filter(|id| !matches!(id, Val::Null));
    id.map(|id| filter::to_bytes(id, MAX_CORRELATION_BYTES)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pushes(
        payload: Option<&str>,
        correlation: Option<&str>,
        answer: &[u8],
    ) -> Result<Vec<(String, Option<String>)>, FilterError> {
        let filter = |text: Option<&str>| text.map(|text| Filter::compile(text).unwrap());
        let fetch = Fetch {
            name: "f".into(),
            call: None,
            push: Template::parse("t").unwrap(),
            response_topic: None,
            remember: None,
            payload: filter(payload),
            correlation: filter(correlation),
            empty_on: Vec::new(),
            redeliver_after: None,
            retain: false,
            every: None,
        };
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        let pushes = fetch.pushes(&Bytes::copy_from_slice(answer), &Context::default())?;
        Ok(pushes.iter().map(|p| (text(&p.payload), p.correlation.as_ref().map(text))).collect())
    }

    #[test]
    fn without_a_filter_an_answer_is_pushed_as_it_came_if_it_is_json() {
        let one = |text: &str| Ok(vec![(text.to_owned(), None)]);
        assert_eq!(pushes(None, None, b"{\"a\": 1.50}"), one("{\"a\": 1.50}"));
        assert_eq!(pushes(None, None, b""), Ok(vec![]));
        for lie in ["<html>", "{\"a\":", "NaN", "\u{1f}\u{8b}"] {
            assert!(pushes(None, None, lie.as_bytes()).is_err(), "{lie}");
        }
        let told = pushes(None, Some(".id"), b"{\"id\": \"c-1\"}");
        assert_eq!(told, Ok(vec![("{\"id\": \"c-1\"}".into(), Some("c-1".into()))]));
        assert!(pushes(None, Some(".id"), b"<html>").is_err());
    }

    #[test]
    fn each_output_is_a_push_with_what_tells_it_from_others() {
        let items = b"[{\"id\":1},{\"id\":\"b\"},{\"id\":null}]";
        let expected =
            [("{\"id\":1}", Some("1")), ("{\"id\":\"b\"}", Some("b")), ("{\"id\":null}", None)];
        let expected = expected.map(|(push, id)| (push.to_owned(), id.map(str::to_owned)));
        assert_eq!(pushes(Some(".[]"), Some(".id"), items), Ok(expected.to_vec()));
        assert_eq!(pushes(Some("select(.id)"), None, b"{}"), Ok(vec![]));
        assert_eq!(pushes(Some("[.]"), None, b""), Ok(vec![("[null]".to_owned(), None)]));
    }

    #[test]
    fn what_is_put_out_is_bounded() {
        let long = format!("\"{}\"", "x".repeat(10_000));
        let error =
            |payload, correlation| pushes(payload, correlation, long.as_bytes()).unwrap_err().0;
        assert!(
            error(Some("[.,.,.,.,.,.,.,.,.,.] | .[],.[],.[] | [.,.,.,.,.,.,.,.,.,.]"), None)
                .contains("more than")
        );
        assert!(error(None, Some(".")).contains("more than 4096"));
        assert!(error(Some("1 / 0"), None).contains("no JSON"));
    }
}
