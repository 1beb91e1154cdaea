//! What follows an answer: what it gives news of is fetched and pushed to the device, once.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use crate::{
    call::{Answer, JSON, Limits, Retry},
    devices::{Devices, Kept, News},
    failure::Stopping,
    fetch::{Condition, Fetch, Push},
    fetched::{Fetched, Trouble, Unfetched, Unusable},
    filter::{self, Context, Filter, FilterError, MAX_OUTPUT_BYTES, Val},
    fingerprint::fingerprint,
    items::Item,
    message::{Properties, Publication, Purpose, VIA},
    metrics::Metrics,
    mqtt::Publisher,
    route::Route,
    table::{Table, Taken},
    topic::{self, Captures},
    upstream::Upstream,
};

/// What the configuration says about pushes.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The gateway's client identifier, the value of `via`.
    pub via: Arc<str>,
    /// How long one fetch may take, all attempts.
    pub deadline: Duration,
    /// Largest answer that a filter reads, in bytes.
    pub max_filter_bytes: usize,
}

/// Fetches and pushes.
pub struct Pusher {
    settings: Settings,
    table: Arc<Table>,
    devices: Devices,
    upstream: Upstream,
    publisher: Publisher,
    metrics: Arc<Metrics>,
}

/// What came of an answer.
#[derive(Debug, Default)]
pub struct Followed {
    /// How many calls of fetches had a result.
    pub fetched: usize,
    /// What went wrong with the others.
    pub troubles: Vec<Trouble>,
    /// Whether anything followed, or should have.
    news: bool,
}

/// What is to be fetched: entries of `then`, and what to remember once each is done.
#[derive(Default)]
struct Due {
    entries: Vec<(usize, News)>,
    /// Whether the answer said anything, or could not be read.
    news: bool,
}

impl Pusher {
    /// Wires a pusher.
    pub fn new(
        settings: Settings,
        table: Arc<Table>,
        devices: Devices,
        upstream: Upstream,
        publisher: Publisher,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { settings, table, devices, upstream, publisher, metrics }
    }

    /// What is known of the devices.
    pub fn devices(&self) -> &Devices {
        &self.devices
    }

    /// Remembers what the route says, and fetches what the answer gives news of, in the row's
    /// order. A fetch that fails stops no other: its news stays news and comes again.
    ///
    /// # Errors
    /// [`Stopping`] when something that should have been fetched is held, and the gateway stops.
    pub async fn follow(&self, taken: &Taken<'_>, answer: &Answer) -> Result<Followed, Stopping> {
        let Taken { route, caller, .. } = taken;
        if route.then.is_empty() && route.remember.is_none() {
            return Ok(Followed::default());
        }
        // Most devices are told the same most of the time, and it is nothing new.
        let said = fingerprint((&route.name, &answer.body));
        let changeable = route.deciding().any(Filter::is_changeable);
        if !changeable && self.devices.is_quiet(caller, said) {
            return Ok(Followed::default());
        }
        // On the heap, where few messages come: it holds a whole call.
        let followed = Box::pin(self.follow_news(taken, answer)).await?;
        if !followed.news {
            self.devices.quiet(caller, said);
        }
        Ok(followed)
    }

    async fn follow_news(&self, taken: &Taken<'_>, answer: &Answer) -> Result<Followed, Stopping> {
        let Taken { route, caller, .. } = taken;
        // Everything is decided before anything is waited for: no parsed value lives while a call is under way.
        let due = self.due(taken, answer);
        let mut followed = Followed { news: due.news, ..Followed::default() };
        for (index, news) in due.entries {
            let then = &route.then[index];
            let fetch = &self.table.fetches[then.fetch];
            if then.answers
                && let Some(topic) = push_topic(fetch, caller.captures)
            {
                self.devices.answered(&caller.device, &topic);
            }
            match self.fetch(fetch, taken, answer).await {
                Ok(fetched) => {
                    self.metrics.fetched(&fetch.name, fetched.label());
                    self.devices.saw(&caller.device, news);
                    followed.fetched += usize::from(fetch.call.is_some());
                }
                Err(Unfetched::Stopping) => return Err(Stopping),
                Err(Unfetched::Trouble(trouble)) => {
                    self.metrics.fetched(&fetch.name, "failed");
                    let (fetch, device) = (&*fetch.name, &*caller.device);
                    tracing::warn!(fetch, device, trouble = %trouble, "nothing pushed");
                    followed.troubles.push(trouble);
                }
            }
        }
        Ok(followed)
    }

    /// What the answer gives news of; what is to be remembered is.
    fn due(&self, taken: &Taken<'_>, answer: &Answer) -> Due {
        let Taken { route, caller, .. } = taken;
        let mut due = Due::default();
        let input =
            if route.deciding().next().is_some() { self.read(&answer.body) } else { Ok(Val::Null) };
        if let Err(error) = &input {
            self.metrics.filter_failed(&route.name);
            due.news = true;
            let (route, device) = (&*route.name, &*caller.device);
            tracing::warn!(route, device, error = %error, "nothing that depends on the answer follows");
        }
        if let (Some(remember), Ok(input)) = (&route.remember, &input) {
            let context = self.context(taken, remember.reads_payload());
            let values = self.run(remember, input.clone(), &context, route);
            due.news |= values.is_err();
            for value in values.unwrap_or_default() {
                let kept = self.devices.remember(caller, &value);
                if kept == Kept::Not {
                    let (route, device) = (&*route.name, &*caller.device);
                    tracing::warn!(route, device, "not remembered: no object, or too large");
                }
                due.news |= kept != Kept::Known;
            }
        }
        let context = self.context(taken, route.deciding().any(Filter::reads_payload));
        for (index, then) in route.then.iter().enumerate() {
            let entry = fingerprint((&route.name, index));
            let news = match (&then.condition, &input) {
                (Condition::Always, _) => Ok(Some(News::none(entry))),
                (condition, Ok(input)) => self.news(entry, condition, input, &context, taken),
                (_, Err(_)) => Ok(None),
            };
            due.news |= !matches!(news, Ok(None));
            due.entries.extend(news.ok().flatten().map(|news| (index, news)));
        }
        due
    }

    /// An answer as filters have it; nothing is null.
    fn read(&self, answer: &Bytes) -> Result<Val, FilterError> {
        self.check_size(answer)?;
        if answer.is_empty() {
            return Ok(Val::Null);
        }
        filter::parse(answer)
            .map_err(|error| FilterError(format!("the answer is no JSON: {error}")))
    }

    fn check_size(&self, answer: &Bytes) -> Result<(), FilterError> {
        let (size, max) = (answer.len(), self.settings.max_filter_bytes);
        if size > max {
            return Err(FilterError(format!(
                "the answer has {size} bytes; a filter reads at most {max}"
            )));
        }
        Ok(())
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

    /// Gets one thing and pushes it.
    async fn fetch(
        &self,
        fetch: &Fetch,
        taken: &Taken<'_>,
        trigger: &Answer,
    ) -> Result<Fetched, Unfetched> {
        let Taken { caller, route, .. } = taken;
        let topic = push_topic(fetch, caller.captures).ok_or(Unusable::Topic)?;
        let answer = match &fetch.call {
            None => trigger.clone(),
            Some(endpoint) => {
                let limits =
                    Limits { deadline: self.settings.deadline, expires: None, since: None };
                let call = endpoint.call(&fetch.name, caller, None, Retry::Always, limits)?;
                let answer = self.upstream.call(call).await?;
                if fetch.empty_on.contains(&answer.status) {
                    return Ok(Fetched::Empty);
                }
                if !answer.status.is_success() {
                    return Err(Unfetched::Trouble(Trouble::Answered(answer)));
                }
                self.devices.met(caller);
                answer
            }
        };
        let pushes = self.pushes(fetch, taken, &answer.body)?;
        // Who asks for a push by a row of its own gets it, pushed before or not.
        let again = if route.call.is_none() { None } else { fetch.redeliver_after };
        let mut fetched = Fetched::Empty;
        for push in pushes {
            let item = Item::new(&topic, push.correlation.as_ref().unwrap_or(&push.payload));
            if again.is_some_and(|p| self.devices.pushed_within(&caller.device, item, p)) {
                if fetched == Fetched::Empty {
                    fetched = Fetched::Repeated;
                }
                continue;
            }
            let content_type = answer.content_type.as_ref().filter(|_| fetch.payload.is_none());
            let publication = self.publication(fetch, push, &topic, content_type, caller.captures);
            self.publisher.publish(publication).await;
            if fetch.redeliver_after.is_some() {
                self.devices.pushed(&caller.device, item);
            }
            fetched = Fetched::Pushed;
        }
        Ok(fetched)
    }

    fn pushes(
        &self,
        fetch: &Fetch,
        taken: &Taken<'_>,
        answer: &Bytes,
    ) -> Result<Vec<Push>, FilterError> {
        if fetch.filters().next().is_some() {
            self.check_size(answer)?;
        }
        let context = self.context(taken, fetch.filters().any(Filter::reads_payload));
        fetch.pushes(answer, &context)
    }

    fn publication(
        &self,
        fetch: &Fetch,
        push: Push,
        topic: &str,
        content_type: Option<&String>,
        captures: &Captures,
    ) -> Publication {
        let response_topic = fetch.response_topic.as_ref();
        Publication {
            purpose: Purpose::Push,
            topic: topic.to_owned(),
            payload: push.payload,
            properties: Properties {
                user: vec![(VIA.to_owned(), self.settings.via.to_string())],
                response_topic: response_topic.and_then(|t| t.topic(|name| captures.get(name))),
                correlation_data: push.correlation,
                content_type: Some(content_type.map_or(JSON, String::as_str).to_owned()),
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
