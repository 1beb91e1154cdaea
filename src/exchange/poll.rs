//! Fetches that no message sets off: each asks the API again and again, and what is news is published.
//!
//! A run begins when the one before has ended: an outage holds one call of each fetch, and queues none. A fetch speaks
//! for no device and carries no device's key.

use std::{collections::HashMap, panic::AssertUnwindSafe, sync::Arc};

use futures_util::FutureExt;
use tokio::{
    sync::watch,
    task::{JoinSet, yield_now},
    time::sleep,
};

use super::{
    Settings,
    fetched::{Fetched, Trouble, Unfetched},
    filters::check_size,
    items::Item,
    push::publication,
};
use crate::{
    call::{Answer, Call},
    filter::{self, Context, Val},
    fingerprint::fingerprint,
    message::Publication,
    metrics::Metrics,
    mqtt::{Publisher, Status},
    table::{
        Table,
        every::{Every, Levels, Unpublishable},
        fetch::{Fetch, Push},
    },
    topic,
    traces::{Span, Tracer},
    upstream::Upstream,
};

/// Runs fetches by themselves.
pub(crate) struct Poller {
    /// What the configuration says about exchanges.
    pub(crate) settings: Settings,
    /// Where things are got.
    pub(crate) upstream: Upstream,
    /// Where they are published.
    pub(crate) publisher: Publisher,
    /// How the connection to the broker stands.
    pub(crate) broker: watch::Receiver<Status>,
    /// What is counted.
    pub(crate) metrics: Arc<Metrics>,
    /// Begins spans; none where traces are off.
    pub(crate) tracer: Option<Tracer>,
}

/// The value that each item had when it was last published. Those that an answer does not have are forgotten, so there
/// are no more than one run puts out.
#[derive(Debug, Default)]
pub(crate) struct Seen(HashMap<Item, u64>);

impl Poller {
    /// Begins to run the table's fetches that run by themselves. They end when what is returned is dropped.
    pub(crate) fn start(self: Arc<Self>, table: &Table) -> JoinSet<()> {
        let mut running = JoinSet::new();
        for fetch in table.fetches.iter().filter(|fetch| fetch.every.is_some()) {
            let (poller, fetch) = (self.clone(), fetch.clone());
            running.spawn(async move { poller.run(&fetch).await });
        }
        running
    }

    async fn run(&self, fetch: &Fetch) {
        let Some(every) = &fetch.every else { return };
        let (mut broker, mut seen) = (self.broker.clone(), Seen::default());
        loop {
            // What cannot be published need not be asked for; and a gateway that drains asks for nothing new.
            let stands =
                |status: &Status| matches!(status, Status::Subscribed | Status::Refused(_));
            if broker.wait_for(stands).await.is_err() {
                return;
            }
            let run = AssertUnwindSafe(self.once(fetch, every, &mut seen)).catch_unwind();
            match run.await {
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(_) => {
                    let name = &*fetch.name;
                    tracing::error!(fetch = name, "a fetch failed on a defect of the gateway");
                }
            }
            sleep(every.period).await;
        }
    }

    /// Runs a fetch once. Returns what came of it, in a word, or `None` when the gateway stops.
    pub(crate) async fn once(
        &self,
        fetch: &Fetch,
        every: &Every,
        seen: &mut Seen,
    ) -> Option<&'static str> {
        let span = self.tracer.as_ref().map(|tracer| tracer.fetch(&fetch.name));
        let outcome = match self.fetch(fetch, every, seen, span.as_ref()).await {
            Ok(fetched) => fetched.label(),
            Err(Unfetched::Stopping) => return None,
            Err(Unfetched::Trouble(trouble)) => {
                tracing::warn!(fetch = &*fetch.name, %trouble, "nothing pushed");
                if let Some(span) = &span {
                    span.failed("failed", trouble.to_string());
                }
                "failed"
            }
        };
        if let Some(span) = &span {
            span.fetched(outcome);
        }
        self.metrics.fetched(&fetch.name, outcome);
        Some(outcome)
    }

    async fn fetch(
        &self,
        fetch: &Fetch,
        every: &Every,
        seen: &mut Seen,
        span: Option<&Span>,
    ) -> Result<Fetched, Unfetched> {
        let Some(endpoint) = &fetch.call else { return Ok(Fetched::Empty) };
        let call = fetch.call_by_itself(endpoint, self.settings.deadline)?;
        let call = Call { trace: span.cloned(), ..call };
        let answer = self.upstream.call(call, None).await?;
        let pushes = if fetch.empty_on.contains(&answer.status) {
            Vec::new()
        } else if !answer.status.is_success() {
            return Err(Unfetched::Trouble(Trouble::Answered(answer.without_large_body())));
        } else {
            if every.reads_pushes() || fetch.filters().next().is_some() {
                check_size(&answer.body, self.settings.max_bytes.filter)?;
            }
            fetch.pushes(&answer.body, &Context::default())?
        };
        let mut fetched = Fetched::Empty;
        let before = std::mem::take(seen);
        for push in pushes {
            match self.news(fetch, every, push, &answer, &before, seen) {
                Ok(Some(news)) => {
                    self.publisher.publish(news.traced(span)).await;
                    fetched = Fetched::Pushed;
                }
                Ok(None) if fetched == Fetched::Empty => fetched = Fetched::Repeated,
                Ok(None) => {}
                Err(trouble) => {
                    self.metrics.fetched(&fetch.name, "failed");
                    tracing::warn!(fetch = &*fetch.name, %trouble, "not pushed");
                }
            }
            // Its filters take their time, and so do those of the next one.
            yield_now().await;
        }
        Ok(fetched)
    }

    /// What is to be published of a push, if it is news.
    fn news(
        &self,
        fetch: &Fetch,
        every: &Every,
        push: Push,
        answer: &Answer,
        before: &Seen,
        seen: &mut Seen,
    ) -> Result<Option<Publication>, Unpublishable> {
        let input = if every.reads_pushes() { filter::parse(&push.payload)? } else { Val::Null };
        let levels =
            if every.values.is_empty() { Levels::default() } else { every.levels(&input)? };
        let topic = fetch.push.topic(|name| levels.get(name));
        let topic = topic.filter(|topic| topic::is_publishable(topic));
        let topic = topic.ok_or(Unpublishable::Topic)?;
        if let Some(on_change) = &every.on_change {
            let Some(value) = Every::compared(on_change, &input)? else { return Ok(None) };
            let item = Item::new(&topic, push.correlation.as_deref().unwrap_or_default());
            let value = fingerprint(&value);
            seen.0.insert(item, value);
            if before.0.get(&item) == Some(&value) {
                return Ok(None);
            }
        }
        let content_type = answer.content_type.as_deref().filter(|_| fetch.payload.is_none());
        let via = &self.settings.via;
        let name = |name: &str| levels.get(name);
        Ok(Some(publication(fetch, push, topic, content_type, via, name)))
    }
}
