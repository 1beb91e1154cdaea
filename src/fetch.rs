//! What an answer can set off: something is fetched and pushed to the device.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use crate::{
    call::{Endpoint, StatusCode},
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
    /// Each output is one push. Without it the answer is pushed as it came.
    pub payload: Option<Filter>,
    /// Over each push: its Correlation Data, and what makes two pushes the same item.
    pub correlation: Option<Filter>,
    /// Statuses that mean "nothing there".
    pub empty_on: Vec<StatusCode>,
    /// The same item is not pushed again sooner.
    pub redeliver_after: Option<Duration>,
}

/// One entry of `then`.
#[derive(Debug)]
pub struct Then {
    /// Which fetch, as an index into the table's fetches.
    pub fetch: usize,
    /// When it runs.
    pub condition: Condition,
    /// The route is where the device answers this fetch's pushes, so running it again means that
    /// what was pushed before has been dealt with.
    pub answers: bool,
}

/// When an entry of `then` runs.
#[derive(Debug)]
pub enum Condition {
    /// After every success.
    Always,
    /// When the filter is true of the answer.
    When(Filter),
    /// When the filter's value differs from the one last seen for this device; no value or null is
    /// no news.
    OnChange(Filter),
}

/// One push to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Push {
    /// What is published.
    pub payload: Bytes,
    /// Its Correlation Data, which also tells one item from another.
    pub correlation: Option<Bytes>,
}

impl Fetch {
    /// Its filters.
    pub fn filters(&self) -> impl Iterator<Item = &Filter> {
        self.payload.iter().chain(&self.correlation)
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
