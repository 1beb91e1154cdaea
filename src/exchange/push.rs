//! Gets one thing from the API and pushes it to the device, each item once.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use super::{
    devices::Devices,
    fetched::{Fetched, Trouble, Unfetched, Unusable},
    filters::Filters,
    items::Item,
};
use crate::{
    call::{Answer, Call, JSON},
    filter::FilterError,
    message::{Properties, Publication, Purpose, VIA},
    mqtt::Publisher,
    table::{
        Taken,
        fetch::{Fetch, Push},
    },
    topic::{self, Captures},
    traces::Span,
    upstream::Upstream,
};

/// Fetches and pushes.
pub(super) struct Pusher {
    /// The gateway's client identifier, the value of `via`.
    pub(super) via: Arc<str>,
    /// How long one fetch may take, all attempts.
    pub(super) deadline: Duration,
    /// What is known of the devices: what was pushed to each.
    pub(super) devices: Arc<Devices>,
    /// Runs `payload` and `correlation`.
    pub(super) filters: Filters,
    /// Where things are got.
    pub(super) upstream: Upstream,
    /// Where they are pushed.
    pub(super) publisher: Publisher,
}

impl Pusher {
    /// Gets what a fetch names, or takes the answer that triggered it, and pushes what is in it.
    ///
    /// # Errors
    /// [`Unfetched`] when nothing can be got or pushed, or the gateway stops.
    pub(super) async fn fetch(
        &self,
        fetch: &Fetch,
        taken: &Taken<'_>,
        trigger: &Answer,
        span: Option<&Span>,
    ) -> Result<Fetched, Unfetched> {
        let topic = topic(fetch, taken.captures).ok_or(Unusable::Topic)?;
        let answer = match &fetch.call {
            None => trigger.clone(),
            Some(endpoint) => {
                let call = taken.fetch(&fetch.name, endpoint, self.deadline)?;
                let call = Call { trace: span.cloned(), ..call };
                let answer = self.upstream.call(call, None).await?;
                if fetch.empty_on.contains(&answer.status) {
                    return Ok(Fetched::Empty);
                }
                if !answer.status.is_success() {
                    return Err(Unfetched::Trouble(Trouble::Answered(answer.without_large_body())));
                }
                self.devices.met(&taken.speaker, &taken.authorization);
                if let Some(remember) = &fetch.remember {
                    self.filters.remember(remember, self.filters.read(&answer.body)?, taken)?;
                }
                answer
            }
        };
        let pushes = self.pushes(fetch, taken, &answer.body)?;
        Ok(self.push(fetch, taken, &topic, pushes, &answer, span).await)
    }

    /// Pushes what was not pushed within `redeliver_after`.
    async fn push(
        &self,
        fetch: &Fetch,
        taken: &Taken<'_>,
        topic: &str,
        pushes: Vec<Push>,
        answer: &Answer,
        span: Option<&Span>,
    ) -> Fetched {
        let speaker = &taken.speaker;
        // A row without `call` is the device's own request for this push: it gets it, pushed before or not.
        let again = if taken.route.call.is_none() { None } else { fetch.redeliver_after };
        let mut fetched = Fetched::Empty;
        for push in pushes {
            let item = Item::new(topic, push.correlation.as_ref().unwrap_or(&push.payload));
            if again.is_some_and(|period| self.devices.pushed_within(speaker, item, period)) {
                if fetched == Fetched::Empty {
                    fetched = Fetched::Repeated;
                }
                continue;
            }
            let content_type = answer.content_type.as_deref().filter(|_| fetch.payload.is_none());
            let (topic, via) = (topic.to_owned(), &self.via);
            let value = |name: &str| taken.captures.get(name);
            let publication = publication(fetch, push, topic, content_type, via, value);
            self.publisher.publish(publication.traced(span)).await;
            if fetch.redeliver_after.is_some() {
                self.devices.mark_pushed(speaker, item);
            }
            fetched = Fetched::Pushed;
        }
        fetched
    }

    fn pushes(
        &self,
        fetch: &Fetch,
        taken: &Taken<'_>,
        answer: &Bytes,
    ) -> Result<Vec<Push>, FilterError> {
        if fetch.filters().next().is_some() {
            self.filters.check_size(answer)?;
        }
        fetch.pushes(answer, &self.filters.context(taken, fetch.filters().sum()))
    }
}

/// What is published of a push; `value` gives what the names in its Response Topic stand for.
pub(super) fn publication<'v>(
    fetch: &Fetch,
    push: Push,
    topic: String,
    content_type: Option<&str>,
    via: &str,
    value: impl Fn(&str) -> Option<&'v str>,
) -> Publication {
    Publication {
        purpose: Purpose::Push,
        topic,
        payload: push.payload,
        retain: fetch.retain,
        properties: Properties {
            user: [(VIA, via)].into_iter().collect(),
            response_topic: fetch.response_topic.as_ref().and_then(|topic| topic.topic(value)),
            correlation_data: push.correlation,
            content_type: Some(content_type.unwrap_or(JSON).to_owned()),
            ..Properties::default()
        },
    }
}

/// The topic that a fetch pushes on; none if it is no topic to publish on.
pub(crate) fn topic(fetch: &Fetch, captures: &Captures) -> Option<String> {
    fetch.push.topic(|name| captures.get(name)).filter(|topic| topic::is_publishable(topic))
}
