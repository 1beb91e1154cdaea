//! The figures: one function for each way of measuring, each with a broker and an API of its own.

use std::{io, time::Duration};

use serde_json::Value;
use testkit::Broker;
use tokio::time::{Instant, sleep};

use crate::{
    account::Account,
    devices::{Load, TELEMETRY, publish, publish_on},
    process::{Api, PATIENCE, Process, Upstream, broker, own},
    subject::{Kind, Subject},
};

/// What one run showed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Figures {
    /// CPU of the process, in microseconds for each message.
    pub cpu: f64,
    /// Messages in a second, from the first to the last that arrived.
    pub rate: f64,
    /// From the device to the API, in milliseconds.
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    /// In MiB.
    pub memory: f64,
}

impl Figures {
    fn new(stats: &Value, cpu: Duration, memory: u64) -> Self {
        let number = |name: &str| stats[name].as_u64().unwrap_or_default() as f64;
        let messages = number("messages");
        Self {
            cpu: cpu.as_secs_f64() * 1e6 / messages,
            rate: (messages - 1.0) * 1e9 / (number("last") - number("first")),
            p50: number("p50") / 1e6,
            p99: number("p99") / 1e6,
            p999: number("p999") / 1e6,
            memory: memory as f64 / f64::from(1 << 20),
        }
    }
}

/// A message on the topics of this last level crosses: the subject is subscribed to them. How long it took from its start.
pub async fn crosses(broker: &Broker, api: &Api, level: &str) -> io::Result<Duration> {
    let began = Instant::now();
    let load = Load { messages: 1, devices: 1, size: 0, per_second: None };
    // Until somebody is subscribed the broker throws it away.
    while api.stats().await?["messages"] == 0 {
        if began.elapsed() > PATIENCE {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "nothing arrived"));
        }
        publish_on(broker.port, level, load).await?;
        sleep(Duration::from_millis(2)).await;
    }
    Ok(began.elapsed())
}

/// A session with this backlog waits for the subject.
async fn backlog(kind: Kind, broker: &Broker, load: Load) -> io::Result<()> {
    let api = Api::start(Upstream::default()).await?;
    let subject = Subject::start(kind, broker.port, &api)?;
    crosses(broker, &api, TELEMETRY).await?;
    sleep(Duration::from_millis(200)).await;
    subject.process.stop().await?;
    publish(broker.port, load).await
}

/// As fast as it can: a backlog.
pub async fn saturated(kind: Kind, load: Load, upstream: Upstream) -> io::Result<Figures> {
    let broker = broker().await;
    backlog(kind, &broker, load).await?;
    let api = Api::start(upstream).await?;
    let subject = Subject::start(kind, broker.port, &api)?;
    let stats = api.arrived(load.messages).await?;
    // What is behind the last arrival, its acknowledgement, belongs to it.
    sleep(upstream.delay + Duration::from_millis(50)).await;
    let figures = Figures::new(&stats, subject.process.cpu(), subject.process.peak_memory());
    subject.process.stop().await?;
    Ok(figures)
}

/// At a rate that it can keep up with.
pub async fn steady(kind: Kind, load: Load) -> io::Result<Figures> {
    steady_at(kind, load, Upstream::default()).await
}

/// The same with an API of some kind.
pub async fn steady_at(kind: Kind, load: Load, upstream: Upstream) -> io::Result<Figures> {
    // Everybody has been there: connections stand, caches are full.
    let warm = Load { messages: load.devices * 2, ..load };
    steady_after(kind, warm, load, upstream, TELEMETRY).await
}

/// At a rate, after other messages, on the topics that end with this level.
pub async fn steady_after(
    kind: Kind,
    warm: Load,
    load: Load,
    upstream: Upstream,
    level: &str,
) -> io::Result<Figures> {
    let broker = broker().await;
    let api = Api::start(upstream).await?;
    let subject = Subject::start(kind, broker.port, &api)?;
    crosses(&broker, &api, level).await?;
    sleep(upstream.delay).await;
    api.reset().await?;
    publish_on(broker.port, level, warm).await?;
    api.arrived(warm.messages).await?;
    sleep(upstream.delay + Duration::from_millis(300)).await;
    api.reset().await?;
    let before = subject.process.cpu();
    publish_on(broker.port, level, load).await?;
    let stats = api.arrived(load.messages).await?;
    sleep(upstream.delay + Duration::from_millis(50)).await;
    let cpu = subject.process.cpu().saturating_sub(before);
    let figures = Figures::new(&stats, cpu, subject.process.peak_memory());
    subject.process.stop().await?;
    Ok(figures)
}

/// What happens in the middle of a load.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// The API answers 503 for this long.
    Down(Duration),
    /// The subject is killed, and started again at once.
    Killed,
}

/// How long nothing must arrive after a fault, refused or not, until what is missing is lost.
const QUIET: Duration = Duration::from_secs(5);

/// What becomes of a load at a rate that meets a fault in its middle.
pub async fn fault(
    kind: Kind,
    load: Load,
    upstream: Upstream,
    fault: Fault,
) -> io::Result<Account> {
    let broker = broker().await;
    let api = Api::start(upstream).await?;
    let mut subject = Subject::start(kind, broker.port, &api)?;
    crosses(&broker, &api, TELEMETRY).await?;
    api.reset().await?;
    let rate = load.per_second.expect("a load that has a middle has a rate");
    let half = Duration::from_secs_f64(load.messages as f64 / f64::from(rate) / 2.0);
    let publishing = tokio::spawn(publish(broker.port, load));
    sleep(half).await;
    match fault {
        Fault::Down(time) => api.down(time).await?,
        Fault::Killed => {
            subject.process.kill().await?;
            subject = Subject::start(kind, broker.port, &api)?;
        }
    }
    publishing.await??;
    api.quiet(QUIET).await?;
    drop(subject);
    Ok(Account::of(&api.arrivals().await?, load.messages, load.devices))
}

/// The most memory while a backlog drains for a while, in MiB.
pub async fn memory(kind: Kind, load: Load, patience: Duration) -> io::Result<f64> {
    draining(kind, load, patience).await.map(|figures| figures.memory)
}

/// While a backlog drains for a while, from the start of the process.
pub async fn draining(kind: Kind, load: Load, patience: Duration) -> io::Result<Figures> {
    let broker = broker().await;
    backlog(kind, &broker, load).await?;
    let api = Api::start(Upstream::default()).await?;
    let subject = Subject::start(kind, broker.port, &api)?;
    let end = Instant::now() + patience;
    while Instant::now() < end && api.stats().await?["messages"] != load.messages {
        sleep(Duration::from_millis(200)).await;
    }
    // Where nothing is left, what is behind the last arrival belongs to it.
    sleep(Duration::from_millis(50)).await;
    Ok(Figures::new(&api.stats().await?, subject.process.cpu(), subject.process.peak_memory()))
}

/// Peak memory when this many devices have sent a message, in MiB.
pub async fn known(kind: Kind, load: Load) -> io::Result<f64> {
    let broker = broker().await;
    let api = Api::start(Upstream::default()).await?;
    let subject = Subject::start(kind, broker.port, &api)?;
    crosses(&broker, &api, TELEMETRY).await?;
    publish(broker.port, load).await?;
    let stats = api.arrived(load.messages).await?;
    Ok(Figures::new(&stats, Duration::ZERO, subject.process.peak_memory()).memory)
}

/// From the start of the process until it is subscribed.
pub async fn start(kind: Kind) -> io::Result<Duration> {
    let broker = broker().await;
    let api = Api::start(Upstream::default()).await?;
    let began = Instant::now();
    let _subject = Subject::start(kind, broker.port, &api)?;
    crosses(&broker, &api, TELEMETRY).await?;
    Ok(began.elapsed())
}

/// The same bodies, without a broker.
pub async fn bare_http(load: Load) -> io::Result<Figures> {
    let api = Api::start(Upstream::default()).await?;
    let arguments = [u64::from(api.port), load.messages, load.devices].map(|n| n.to_string());
    let process = Process::spawn(own().arg("post").args(arguments))?;
    let stats = api.arrived(load.messages).await?;
    Ok(Figures::new(&stats, process.cpu(), process.peak_memory()))
}
