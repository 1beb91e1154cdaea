//! What follows an answer: what it gives news of is fetched and pushed to the device, once.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use crate::{
    call::{Answer, Limits, Retry},
    devices::{Devices, Item, Kept, News},
    fetch::{Condition, Fetch, Push},
    filter::{self, Context, Filter, FilterError, MAX_OUTPUT_BYTES, Val},
    fingerprint::fingerprint,
    message::{Properties, Publication, Purpose, VIA},
    metrics::Metrics,
    mqtt::Publisher,
    route::Route,
    table::{Table, Taken},
    topic::{self, Captures},
    upstream::Upstream,
};

/// Fetches and pushes.
pub struct Pusher {
    /// The gateway's client identifier, the value of `via`.
    via: Arc<str>,
    /// How long one fetch may take, all attempts.
    deadline: Duration,
    table: Arc<Table>,
    devices: Devices,
    upstream: Upstream,
    publisher: Publisher,
    metrics: Arc<Metrics>,
}

impl Pusher {
    /// Wires a pusher.
    pub fn new(
        via: Arc<str>,
        deadline: Duration,
        table: Arc<Table>,
        devices: Devices,
        upstream: Upstream,
        publisher: Publisher,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { via, deadline, table, devices, upstream, publisher, metrics }
    }

    /// What is known of the devices.
    pub fn devices(&self) -> &Devices {
        &self.devices
    }

    /// Remembers what the route says, and fetches what the answer gives news of, in the row's
    /// order. A fetch that fails stops no other: its news stays news and comes again.
    pub async fn follow(&self, taken: &Taken<'_>, answer: &Answer) {
        let Taken { route, caller, .. } = taken;
        if route.then.is_empty() && route.remember.is_none() {
            return;
        }
        // Most devices are told the same most of the time, and it is nothing new.
        let said = fingerprint((&route.name, &answer.body));
        let changeable = route.deciding().any(Filter::is_changeable);
        if changeable || !self.devices.is_quiet(caller, said) {
            // On the heap, where few messages come: it holds a whole call.
            if !Box::pin(self.follow_news(taken, answer)).await {
                self.devices.quiet(caller, said);
            }
        }
    }

    /// Whether anything followed.
    async fn follow_news(&self, taken: &Taken<'_>, answer: &Answer) -> bool {
        let Taken { route, caller, .. } = taken;
        let input = filter::parse(&answer.body).unwrap_or_default();
        let mut followed = false;
        if let Some(remember) = &route.remember {
            let context = self.context(taken, remember.reads_payload());
            let values = self.run(remember, input.clone(), &context, route);
            followed |= values.is_err();
            for value in values.unwrap_or_default() {
                let kept = self.devices.remember(caller, &value);
                if kept == Kept::Not {
                    let (route, device) = (&*route.name, &*caller.device);
                    tracing::warn!(route, device, "not remembered: no object, or too large");
                }
                followed |= kept != Kept::Known;
            }
        }
        let context = self.context(taken, route.deciding().any(Filter::reads_payload));
        for (index, then) in route.then.iter().enumerate() {
            let entry = fingerprint((&route.name, index));
            let news = self.news(entry, &then.condition, &input, &context, taken);
            followed |= !matches!(news, Ok(None));
            let Ok(Some(news)) = news else { continue };
            let fetch = &self.table.fetches[then.fetch];
            if then.answers
                && let Some(topic) = push_topic(fetch, caller.captures)
            {
                self.devices.answered(&caller.device, &topic);
            }
            match self.fetch(fetch, taken, &answer.body).await {
                Ok(word) => {
                    self.metrics.fetched(&fetch.name, word);
                    self.devices.saw(&caller.device, news);
                }
                Err(trouble) => {
                    self.metrics.fetched(&fetch.name, "failed");
                    let (fetch, device) = (&*fetch.name, &*caller.device);
                    tracing::warn!(fetch, device, trouble, "nothing pushed");
                }
            }
        }
        followed
    }

    /// Whether an entry of `then` runs, and what to remember once it has.
    fn news(
        &self,
        entry: u64,
        condition: &Condition,
        answer: &Val,
        context: &Context,
        taken: &Taken<'_>,
    ) -> Result<Option<News>, FilterError> {
        Ok(match condition {
            Condition::Always => Some(News::none(entry)),
            Condition::When(when) => {
                let values = self.run(when, answer.clone(), context, taken.route)?;
                values.iter().any(filter::is_true).then(|| News::none(entry))
            }
            Condition::OnChange(value) => {
                let values = self.run(value, answer.clone(), context, taken.route)?;
                let value = values.first().filter(|value| !matches!(value, Val::Null));
                let text =
                    value.map(|value| filter::to_json(value, MAX_OUTPUT_BYTES)).transpose()?;
                let news = text.map(|text| News::of(entry, &text));
                news.filter(|news| self.devices.is_news(&taken.caller.device, *news))
            }
        })
    }

    /// Gets one thing and pushes it. A word for what came of it, or what went wrong.
    async fn fetch(
        &self,
        fetch: &Fetch,
        taken: &Taken<'_>,
        trigger: &Bytes,
    ) -> Result<&'static str, String> {
        let Taken { caller, route, .. } = taken;
        let body = match &fetch.call {
            None => trigger.clone(),
            Some(endpoint) => {
                let limits = Limits { deadline: self.deadline, expires: None };
                let call = endpoint
                    .call(&fetch.name, caller, None, Retry::Always, limits)
                    .map_err(|segment| segment.to_string())?;
                let answer = self.upstream.call(call).await.map_err(|f| f.to_string())?;
                self.devices.verdict(caller, answer.status);
                if fetch.empty_on.contains(&answer.status) {
                    return Ok("empty");
                }
                if !answer.status.is_success() {
                    return Err(format!("the upstream answered {}", answer.status));
                }
                answer.body
            }
        };
        let context = self.context(taken, fetch.filters().any(Filter::reads_payload));
        let pushes = fetch.pushes(&body, &context).map_err(|e| e.to_string())?;
        let topic = push_topic(fetch, caller.captures).ok_or("no topic to push on")?;
        // Who asks for a push by a row of its own gets it, pushed before or not.
        let again = if route.call.is_none() { None } else { fetch.redeliver_after };
        let mut word = "empty";
        for push in pushes {
            let item = Item::new(&topic, push.correlation.as_ref().unwrap_or(&push.payload));
            if again.is_some_and(|p| self.devices.pushed_within(&caller.device, item, p)) {
                word = if word == "empty" { "repeated" } else { word };
                continue;
            }
            self.publisher.publish(self.publication(fetch, push, &topic, caller.captures)).await;
            if fetch.redeliver_after.is_some() {
                self.devices.pushed(&caller.device, item);
            }
            word = "pushed";
        }
        Ok(word)
    }

    fn publication(
        &self,
        fetch: &Fetch,
        push: Push,
        topic: &str,
        captures: &Captures,
    ) -> Publication {
        let response_topic = fetch.response_topic.as_ref();
        Publication {
            purpose: Purpose::Push,
            topic: topic.to_owned(),
            payload: push.payload,
            properties: Properties {
                user: vec![(VIA.to_owned(), self.via.to_string())],
                response_topic: response_topic.and_then(|t| t.topic(|name| captures.get(name))),
                correlation_data: push.correlation,
                content_type: Some("application/json".to_owned()),
                ..Properties::default()
            },
        }
    }

    /// What filters see besides their input. The payload is parsed only for those that read it.
    pub fn context(&self, taken: &Taken<'_>, reads_payload: bool) -> Context {
        let Taken { message, caller, .. } = taken;
        let payload = if reads_payload {
            filter::parse(&message.payload).unwrap_or_default()
        } else {
            Val::Null
        };
        Context { memory: self.devices.memory(caller), payload }
    }

    /// Runs a filter over an answer. That one fails is said here: the message is delivered all the
    /// same.
    pub fn run(
        &self,
        filter: &Filter,
        input: Val,
        context: &Context,
        route: &Route,
    ) -> Result<Vec<Val>, FilterError> {
        filter.run(input, context).inspect_err(|error| {
            self.metrics.filter_failed(&route.name);
            tracing::warn!(route = %route.name, ?filter, %error, "filter failed");
        })
    }
}

fn push_topic(fetch: &Fetch, captures: &Captures) -> Option<String> {
    fetch.push.topic(|name| captures.get(name)).filter(|topic| topic::is_publishable(topic))
}
