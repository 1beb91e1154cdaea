//! Plays one case: its messages go through an exchange of their own, one after the other.

use std::{
    collections::BTreeSet,
    io, mem,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};
use tracing::Level;

use super::{
    Case, Played, Step,
    api::Api,
    compare::{Differences, PUSH},
};
use crate::{
    config::Config,
    exchange::Exchange,
    message::{Message, Publication, Purpose},
    metrics::Metrics,
    mqtt::in_process::InProcess,
    topic::{Captures, PatternIndex},
    upstream::{Rates, Settings, Upstream},
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
}

/// Plays a case. The rows that its messages come to are added to `tried`.
///
/// # Errors
/// A sentence when the table's upstream cannot be set up.
pub(super) async fn case(
    case: &Case,
    config: &Config,
    tried: &mut BTreeSet<String>,
) -> Result<Played, String> {
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
    fn new(config: &'c Config) -> Result<Self, String> {
        let api = Api::new(&config.upstream);
        let settings = Settings {
            in_process: Some(api.door()),
            // They go by a clock that does not know how much time has passed here.
            rates: Rates::default(),
            ..config.upstream.clone()
        };
        let metrics = Arc::<Metrics>::default();
        let upstream = Upstream::new(&settings, metrics.clone()).map_err(|e| e.to_string())?;
        let (broker, publisher) = InProcess::new();
        let exchange = Exchange::new(
            config.exchange.clone(),
            config.table.clone(),
            config.remembered_devices,
            upstream.clone(),
            publisher,
            metrics,
        );
        Ok(Self { config, api, upstream, broker, exchange })
    }

    /// Whether the message has come to an end.
    async fn step(
        &mut self,
        step: &Step,
        differences: &mut Differences,
        tried: &mut BTreeSet<String>,
    ) -> bool {
        sleep(step.after).await;
        self.api.expect(step.calls.clone());
        let message = Message {
            topic: step.topic.clone(),
            payload: step.payload.clone(),
            properties: step.properties.clone(),
            received_at: wall_clock::now(),
            arrived: Instant::now(),
        };
        let patterns = &self.config.table.patterns;
        let (subscription, captures) = patterns.find(&message.topic).unzip();
        let captures = captures.unwrap_or_default();
        let sender = subscription.and_then(|row| patterns.sender(row, &captures));
        let sender = sender.unwrap_or_else(|| step.topic.as_str().into());
        if subscription.is_some() {
            tried.insert(self.exchange.route_name(subscription).to_string());
        } else {
            let topic = format!("a row that listens on `{}`", step.topic);
            differences.add("topic", Some(topic), None);
        }
        let (outcome, published) = self.serve(message, subscription, captures, sender).await;
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
        subscription: Option<PatternIndex>,
        captures: Captures,
        sender: Arc<str>,
    ) -> (&'static str, Vec<Publication>) {
        let Self { broker, exchange, config, .. } = self;
        let mut published = Vec::new();
        let delivery = broker.deliver(message, subscription, captures, sender);
        let clock = exchange.clock(subscription);
        let patience = (config.upstream.deadline + Duration::from_mins(1)) * DEADLINES;
        let mut serve = pin!(timeout(patience, exchange.serve(delivery, Ok(clock))));
        let outcome = loop {
            tokio::select! {
                biased;
                publication = broker.published() => published.push(publication),
                outcome = &mut serve => break outcome.ok().flatten(),
            }
        };
        // What was handed over last.
        while let Ok(publication) = timeout(Duration::ZERO, broker.published()).await {
            published.push(publication);
        }
        if outcome.is_none() {
            self.upstream.stop();
        }
        (outcome.unwrap_or(HELD), published)
    }
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
