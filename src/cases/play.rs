//! Plays one case: its messages go through an exchange of their own, one after the other.

use std::{
    collections::{BTreeMap, BTreeSet},
    io, mem,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tracing::Level;

use super::{
    Case, Input, Played, Step,
    api::Api,
    compare::{Differences, PUSH},
};
use crate::{
    config::Config,
    exchange::{Exchange, Poller, Seen},
    message::{Message, Publication, Purpose},
    metrics::Metrics,
    mqtt::{Status, in_process::InProcess},
    upstream::{ClientError, Rates, Settings, Upstream},
    wall_clock,
};

/// The outcome of a message that is held: nothing is given up in an outage, however long it lasts.
const HELD: &str = "held";
/// A message without an outcome after this many deadlines never has one.
const DEADLINES: u32 = 100;

/// A gateway without its sockets.
struct Rig<'c> {
    config: &'c Config,
    api: Api,
    upstream: Upstream,
    broker: InProcess,
    exchange: Exchange,
    poller: Poller,
    /// What each fetch has published.
    seen: BTreeMap<Arc<str>, Seen>,
}

/// Plays a case. The rows that its messages come to are added to `tried`.
///
/// # Errors
/// [`ClientError`] when the table's upstream cannot be set up.
pub(super) async fn case(
    case: &Case,
    config: &Config,
    tried: &mut BTreeSet<String>,
) -> Result<Played, ClientError> {
    wall_clock::set(case.at);
    let log = Log::default();
    let lines = {
        let log = log.clone();
        tracing_subscriber::fmt()
            .with_writer(move || log.clone())
            .with_max_level(Level::WARN)
            .with_ansi(false)
            .with_target(false)
            .without_time()
            .finish()
    };
    // All tasks of a case run on this thread.
    let _logging = tracing::subscriber::set_default(lines);
    let mut rig = Rig::new(config)?;
    let mut differences = Differences::default();
    let mut said = String::new();
    for (index, step) in case.steps.iter().enumerate() {
        differences.line = step.line;
        let before = differences.found.len();
        if !rig.step(step, &mut differences, tried).await && index + 1 < case.steps.len() {
            let next = Some("an end, since another message follows".to_owned());
            differences.add("outcome", next, Some(HELD.to_owned()));
            said.push_str(&log.take());
            break;
        }
        let lines = log.take();
        if differences.found.len() > before {
            said.push_str(&lines);
        }
    }
    let differences = differences.found;
    Ok(Played { name: case.name.clone(), line: case.line, differences, log: said })
}

impl<'c> Rig<'c> {
    fn new(config: &'c Config) -> Result<Self, ClientError> {
        let api = Api::new(&config.upstream);
        let settings = Settings {
            in_process: Some(api.door()),
            // They go by a clock that does not know how much time has passed here.
            rates: Rates::default(),
            ..config.upstream.clone()
        };
        let metrics = Arc::<Metrics>::default();
        let upstream = Upstream::new(&settings, metrics.clone())?;
        let (broker, publisher) = InProcess::new();
        let exchange = Exchange::new(
            config.exchange.clone(),
            config.table.clone(),
            config.remembered_devices,
            upstream.clone(),
            publisher.clone(),
            metrics.clone(),
            None,
        );
        let poller = Poller {
            settings: config.exchange.clone(),
            upstream: upstream.clone(),
            publisher,
            broker: watch::channel(Status::Subscribed).1,
            metrics,
            tracer: None,
        };
        let seen = BTreeMap::new();
        Ok(Self { config, api, upstream, broker, exchange, poller, seen })
    }

    /// Whether the step has come to an end.
    async fn step(
        &mut self,
        step: &Step,
        differences: &mut Differences,
        tried: &mut BTreeSet<String>,
    ) -> bool {
        sleep(step.after).await;
        self.api.expect(step.calls.clone());
        let (outcome, published) = match &step.input {
            Input::Message { topic, payload, properties } => {
                let message = Message {
                    topic: topic.clone(),
                    payload: payload.clone(),
                    properties: properties.clone(),
                    received_at: wall_clock::now(),
                    trace: None,
                    arrived: Instant::now(),
                };
                self.serve(message, differences, tried).await
            }
            Input::Fetch(name) => self.fetch(name, differences).await,
        };
        if let Some(expected) = &step.outcome
            && expected != outcome
        {
            differences.add("outcome", Some(expected.clone()), Some(outcome.to_owned()));
        }
        if let Some(expected) = &step.calls {
            differences.calls(expected, &self.api.heard());
        }
        let kinds =
            [(PUSH, &step.pushes), ("reply", &step.reply), ("dead_letter", &step.dead_letter)];
        for (kind, expected) in kinds {
            let found = published.iter().filter(|publication| kind_of(publication) == kind);
            if let Some(expected) = expected {
                differences.publications(kind, expected, &found.collect::<Vec<_>>());
            }
        }
        outcome != HELD
    }

    /// Takes a message to its end: how it ended, and what was published.
    async fn serve(
        &mut self,
        message: Message,
        differences: &mut Differences,
        tried: &mut BTreeSet<String>,
    ) -> (&'static str, Vec<Publication>) {
        let patterns = &self.config.table.patterns;
        let (subscription, captures) = patterns.find(&message.topic).unzip();
        let captures = captures.unwrap_or_default();
        let sender = subscription.and_then(|row| patterns.sender(row, &captures));
        let sender = sender.unwrap_or_else(|| message.topic.as_str().into());
        if subscription.is_some() {
            tried.insert(self.exchange.route_name(subscription).to_string());
        } else {
            let topic = format!("a row that listens on `{}`", message.topic);
            differences.add("topic", Some(topic), None);
        }
        let delivery = self.broker.deliver(message, subscription, captures, sender);
        let clock = self.exchange.clock(subscription);
        let serve = self.exchange.serve(delivery, Ok(clock));
        to_its_end(serve, &mut self.broker, &self.upstream, self.config.upstream.deadline).await
    }

    /// Runs a fetch once: what came of it, and what was published.
    async fn fetch(
        &mut self,
        name: &str,
        differences: &mut Differences,
    ) -> (&'static str, Vec<Publication>) {
        let fetches = &self.config.table.fetches;
        let fetch = fetches.iter().find(|fetch| &*fetch.name == name);
        let Some((fetch, every)) = fetch.and_then(|fetch| Some((fetch, fetch.every.as_ref()?)))
        else {
            let expected = format!("a fetch `{name}` with `every`");
            differences.add("fetch", Some(expected), None);
            return ("failed", Vec::new());
        };
        let seen = self.seen.entry(fetch.name.clone()).or_default();
        let run = self.poller.once(fetch, every, seen);
        to_its_end(run, &mut self.broker, &self.upstream, self.config.upstream.deadline).await
    }
}

/// Waits for an end, and collects what is published until then. What has none is ended.
async fn to_its_end(
    end: impl Future<Output = Option<&'static str>>,
    broker: &mut InProcess,
    upstream: &Upstream,
    deadline: Duration,
) -> (&'static str, Vec<Publication>) {
    let mut published = Vec::new();
    let mut end = pin!(timeout((deadline + Duration::from_mins(1)) * DEADLINES, end));
    let outcome = loop {
        tokio::select! {
            biased;
            publication = broker.published() => published.push(publication),
            outcome = &mut end => break outcome.ok().flatten(),
        }
    };
    // What was handed over last.
    while let Ok(publication) = timeout(Duration::ZERO, broker.published()).await {
        published.push(publication);
    }
    if outcome.is_none() {
        upstream.stop();
    }
    (outcome.unwrap_or(HELD), published)
}

fn kind_of(publication: &Publication) -> &'static str {
    match publication.purpose {
        Purpose::Push => PUSH,
        Purpose::Reply => "reply",
        Purpose::DeadLetter(_) => "dead_letter",
    }
}

/// What the gateway says.
#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// What has been said since the last time.
    fn take(&self) -> String {
        let bytes = mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
