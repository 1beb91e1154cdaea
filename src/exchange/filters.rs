//! The filters of a row, as they run after its call: over an answer, with what is known of the device.

use std::sync::Arc;

use bytes::Bytes;

use super::devices::{Devices, Remembered};
use crate::{
    call::Answer,
    filter::{self, Context, Filter, FilterError, MAX_OUTPUT_BYTES, Reads, Val},
    metrics::Metrics,
    table::{Taken, refusal::Refusal},
};

/// Runs filters. Cheap to clone.
#[derive(Clone)]
pub(super) struct Filters {
    devices: Arc<Devices>,
    metrics: Arc<Metrics>,
    /// Largest answer that a filter reads, in bytes.
    max_bytes: usize,
}

/// What a row's `answer` makes of the API's answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Shaped {
    /// There is none, or it fails: the answer goes to the device as it came.
    AsItCame,
    /// This goes instead.
    Made(Bytes),
    /// It puts out nothing: nothing is replied.
    Nothing,
}

impl Filters {
    /// Filters that read answers of at most `max_bytes`.
    pub(super) fn new(devices: Arc<Devices>, metrics: Arc<Metrics>, max_bytes: usize) -> Self {
        Self { devices, metrics, max_bytes }
    }

    /// What filters that read this see besides their input.
    pub(super) fn context(&self, taken: &Taken<'_>, reads: Reads) -> Context {
        taken.context(reads, self.devices.memory(&taken.speaker))
    }

    /// Runs one. A failure is logged and counted here: the message has its outcome all the same.
    ///
    /// # Errors
    /// [`FilterError`] when it fails or puts out too much.
    pub(super) fn run(
        &self,
        filter: &Filter,
        input: Val,
        context: &Context,
        route: &Arc<str>,
    ) -> Result<Vec<Val>, FilterError> {
        filter.run(input, context).inspect_err(|error| {
            self.metrics.filter_failed(route);
            tracing::warn!(%route, filter = filter.text(), %error, "filter failed");
        })
    }

    /// Remembers of the device what a `remember` makes of an answer; whether that has changed anything, or could not be
    /// done.
    ///
    /// # Errors
    /// [`FilterError`] when it fails.
    pub(super) fn remember(
        &self,
        remember: &Filter,
        answer: Val,
        taken: &Taken<'_>,
    ) -> Result<bool, FilterError> {
        let Taken { route, speaker, .. } = taken;
        let context = self.context(taken, remember.reads());
        let mut has_effect = false;
        for value in self.run(remember, answer, &context, &route.name)? {
            let remembered = self.devices.remember(speaker, &value);
            if remembered == Remembered::Refused {
                let (route, device) = (&*route.name, &*speaker.device);
                tracing::warn!(
                    route,
                    device,
                    "the result of `remember` is no object or too large: it is not remembered"
                );
            }
            has_effect |= remembered != Remembered::Unchanged;
        }
        Ok(has_effect)
    }

    /// What the `answer` of a row that calls nothing makes of what is known; none if it puts out nothing.
    ///
    /// # Errors
    /// [`Refusal::BadPayload`] when the filter fails: that is not the same as nothing known yet.
    pub(super) fn answer(
        &self,
        answer: &Filter,
        taken: &Taken<'_>,
    ) -> Result<Option<Bytes>, Refusal> {
        let context = self.context(taken, answer.reads());
        let values = self.run(answer, Val::Null, &context, &taken.route.name);
        let body = values.and_then(|values| {
            values.first().map(|value| filter::to_json(value, MAX_OUTPUT_BYTES)).transpose()
        });
        body.map_err(|error| Refusal::BadPayload(format!("no answer can be made: {error}")))
    }

    /// The reply that the `answer` of a row with a call makes of the API's answer.
    pub(super) fn shape(&self, taken: &Taken<'_>, answer: &Answer) -> Shaped {
        let Some(filter) = &taken.route.answer else { return Shaped::AsItCame };
        let (context, name) = (self.context(taken, filter.reads()), &taken.route.name);
        let body = match self.read(&answer.body) {
            Ok(input) => self.run(filter, input, &context, name),
            Err(error) => {
                self.metrics.filter_failed(name);
                tracing::warn!(route = &**name, %error, "no reply can be made of the answer");
                return Shaped::AsItCame;
            }
        };
        let body = body.and_then(|values| {
            values.first().map(|value| filter::to_json(value, MAX_OUTPUT_BYTES)).transpose()
        });
        match body {
            Ok(Some(body)) => Shaped::Made(body),
            Ok(None) => Shaped::Nothing,
            Err(_) => Shaped::AsItCame,
        }
    }

    /// An answer as filters have it; an empty one is null.
    ///
    /// # Errors
    /// [`FilterError`] when it is too large or no JSON.
    pub(super) fn read(&self, answer: &Bytes) -> Result<Val, FilterError> {
        check_size(answer, self.max_bytes)?;
        if answer.is_empty() {
            return Ok(Val::Null);
        }
        filter::parse(answer)
            .map_err(|error| FilterError(format!("the answer is no JSON: {error}")))
    }

    /// Refuses an answer that is too large for a filter.
    ///
    /// # Errors
    /// [`FilterError`].
    pub(super) fn check_size(&self, answer: &Bytes) -> Result<(), FilterError> {
        check_size(answer, self.max_bytes)
    }
}

/// Refuses an answer that is too large for a filter that reads at most `max` bytes.
///
/// # Errors
/// [`FilterError`].
pub(super) fn check_size(answer: &Bytes, max: usize) -> Result<(), FilterError> {
    let size = answer.len();
    if size > max {
        return Err(FilterError(format!(
            "the answer has {size} bytes; a filter reads at most {max}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{call::Authorization, fixtures, table::identity::Speaker, topic::Captures};

    /// What a row with this `answer` answers to a device of which `{"a":1}` is remembered.
    fn answer(filter: &str, payload: &[u8]) -> Result<Option<Bytes>, Refusal> {
        let row = format!(
            "[upstream]\nurl = \"http://hub\"\n[[route]]\nname = \"r\"\non = \"{{device_id}}\"\n\
             answer = '{filter}'"
        );
        let config = fixtures::config(&row);
        let (route, captures) = (&config.table.routes[0], Captures::default());
        let message = fixtures::message("d1", &[], payload);
        let (speaker, authorization) =
            (Speaker { device: "d1".into(), key: None }, Authorization::None);
        let devices = Arc::new(Devices::new(1));
        devices.met(&speaker, &authorization);
        devices.remember(&speaker, &filter::parse(b"{\"a\":1}").unwrap());
        let (message, captures, identity) = (&message, &captures, &config.table.identity);
        let taken = Taken { message, route, captures, speaker, authorization, identity };
        let filters = Filters::new(devices, Arc::default(), 100);
        filters.answer(route.answer.as_ref().unwrap(), &taken)
    }

    #[test]
    fn an_answer_is_made_of_memory_and_payload_and_one_that_fails_is_not_an_unknown_one() {
        let made = |text: &str| Ok(Some(Bytes::copy_from_slice(text.as_bytes())));
        assert_eq!(answer("$memory.a", b""), made("1"));
        assert_eq!(
            answer("{m: $memory.a, p: $payload.b}", b"{\"b\":2}"),
            made("{\"m\":1,\"p\":2}")
        );
        assert_eq!(answer("$memory.b // empty", b""), Ok(None));
        let failed = answer("$memory.a.b", b"");
        assert!(matches!(failed, Err(Refusal::BadPayload(_))), "{failed:?}");
    }
}
