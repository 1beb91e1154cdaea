//! What follows an answer: what the row says is remembered, and what the answer gives news of is fetched and pushed.

use std::sync::Arc;

use super::{
    devices::{Devices, Kept, News},
    fetched::{Trouble, Unfetched},
    filters::Filters,
    push::{self, Pusher},
};
use crate::{
    call::Answer,
    failure::Stopping,
    filter::{self, Context, Filter, FilterError, MAX_OUTPUT_BYTES, Val},
    fingerprint::fingerprint,
    metrics::Metrics,
    table::{
        Taken,
        fetch::{Condition, Then},
    },
};

/// Decides what follows. One for all devices.
pub(super) struct Follower {
    devices: Arc<Devices>,
    filters: Filters,
    pusher: Pusher,
    metrics: Arc<Metrics>,
}

/// What came of what followed.
#[derive(Debug, Default)]
pub(super) struct Followed {
    /// How many calls of fetches had a result.
    pub(super) fetched: usize,
    /// What went wrong with the others.
    pub(super) troubles: Vec<Trouble>,
}

/// What is to be fetched: entries of `then`, and what to remember once each is done.
#[derive(Default)]
struct Due<'r> {
    entries: Vec<(&'r Then, News)>,
    /// Whether the answer said anything new, or could not be read.
    news: bool,
}

impl Follower {
    /// Wires a follower.
    pub(super) fn new(
        devices: Arc<Devices>,
        filters: Filters,
        pusher: Pusher,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { devices, filters, pusher, metrics }
    }

    /// Remembers what the row says, and fetches what the answer gives news of, in the row's order; after a
    /// large answer first what needs no call.
    ///
    /// # Errors
    /// [`Stopping`] when something that should have been fetched is held, and the gateway stops.
    pub(super) async fn follow(
        &self,
        taken: &Taken<'_>,
        answer: Answer,
    ) -> Result<Followed, Stopping> {
        let Taken { route, speaker, .. } = taken;
        if route.then.is_empty() && route.remember.is_none() {
            return Ok(Followed::default());
        }
        let fingerprint = fingerprint((&route.name, &answer.body));
        let changeable = route.deciding().any(Filter::is_changeable);
        if !changeable && self.devices.is_quiet(speaker, fingerprint) {
            return Ok(Followed::default());
        }
        // Everything is decided before anything is waited for: no parsed value lives while a call is under way.
        let due = self.due(taken, &answer);
        if !due.news {
            self.devices.mark_quiet(speaker, fingerprint);
            return Ok(Followed::default());
        }
        // On the heap, where few messages come: it holds a whole call.
        Box::pin(self.fetch(due, taken, answer)).await
    }

    /// Fetches what is due. A fetch that fails stops no other: its news stays news and comes again.
    async fn fetch(
        &self,
        mut due: Due<'_>,
        taken: &Taken<'_>,
        mut answer: Answer,
    ) -> Result<Followed, Stopping> {
        let device = &taken.speaker.device;
        let mut followed = Followed::default();
        if answer.is_large() {
            due.entries.sort_by_key(|(then, _)| then.fetch.call.is_some());
        }
        for (then, news) in due.entries {
            let fetch = &then.fetch;
            if fetch.call.is_some() {
                answer = answer.without_large_body();
            }
            if then.is_reply_to_push
                && let Some(topic) = push::topic(fetch, taken.captures)
            {
                self.devices.forget_pushed_on(device, &topic);
            }
            match self.pusher.fetch(fetch, taken, &answer).await {
                Ok(fetched) => {
                    self.metrics.fetched(&fetch.name, fetched.label());
                    self.devices.mark_seen(device, news);
                    followed.fetched += usize::from(fetch.call.is_some());
                }
                Err(Unfetched::Stopping) => return Err(Stopping),
                Err(Unfetched::Trouble(trouble)) => {
                    self.metrics.fetched(&fetch.name, "failed");
                    let (fetch, device) = (&*fetch.name, &**device);
                    tracing::warn!(fetch, device, trouble = %trouble, "nothing pushed");
                    followed.troubles.push(trouble);
                }
            }
        }
        Ok(followed)
    }

    /// What the answer gives news of. What the row wants remembered is remembered.
    fn due<'r>(&self, taken: &Taken<'r>, answer: &Answer) -> Due<'r> {
        let Taken { route, speaker, .. } = taken;
        let mut due = Due::default();
        let reads_answer = route.deciding().next().is_some();
        let input = if reads_answer { self.filters.read(&answer.body) } else { Ok(Val::Null) };
        match &input {
            Ok(input) => due.news |= self.remember(taken, input),
            Err(error) => {
                self.metrics.filter_failed(&route.name);
                due.news = true;
                let (route, device) = (&*route.name, &*speaker.device);
                tracing::warn!(route, device, %error, "nothing that depends on the answer follows");
            }
        }
        let context = self.filters.context(taken, route.deciding().any(Filter::reads_payload));
        for (index, then) in route.then.iter().enumerate() {
            let entry = fingerprint((&route.name, index));
            let news = match (&then.condition, &input) {
                (Condition::Always, _) => Ok(Some(News::none(entry))),
                (condition, Ok(input)) => self.news(entry, condition, input, &context, taken),
                (Condition::When(_) | Condition::OnChange(_), Err(_)) => Ok(None),
            };
            due.news |= !matches!(news, Ok(None));
            due.entries.extend(news.ok().flatten().map(|news| (then, news)));
        }
        due
    }

    /// Remembers what the row's `remember` makes of the answer; whether that is anything new, or could not be done.
    fn remember(&self, taken: &Taken<'_>, input: &Val) -> bool {
        let Taken { route, speaker, .. } = taken;
        let Some(remember) = &route.remember else { return false };
        let context = self.filters.context(taken, remember.reads_payload());
        let Ok(values) = self.filters.run(remember, input.clone(), &context, &route.name) else {
            return true;
        };
        let mut news = false;
        for value in values {
            let kept = self.devices.remember(speaker, &value);
            if kept == Kept::Not {
                let (route, device) = (&*route.name, &*speaker.device);
                tracing::warn!(route, device, "not remembered: no object, or too large");
            }
            news |= kept != Kept::Known;
        }
        news
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
        let run = |filter| self.filters.run(filter, answer.clone(), context, &taken.route.name);
        Ok(match condition {
            Condition::Always => Some(News::none(entry)),
            Condition::When(when) => {
                run(when)?.iter().any(filter::is_true).then(|| News::none(entry))
            }
            Condition::OnChange(value) => {
                let values = run(value)?;
                let value = values.first().filter(|value| !matches!(value, Val::Null));
                let text =
                    value.map(|value| filter::to_json(value, MAX_OUTPUT_BYTES)).transpose()?;
                let news = text.map(|text| News::of(entry, &text));
                news.filter(|news| self.devices.is_news(&taken.speaker.device, *news))
            }
        })
    }
}
