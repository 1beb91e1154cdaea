//! How the gateway grows: what a message costs it, its memory, and its latency, against one size after the other.
//!
//! A family is a size that grows: a table, and a row of three panels. Its lines are ways to let it grow, and each point of a
//! line is a trial, with a broker, an API and a gateway of its own.

use std::{fs, io, time::Duration};

use crate::{
    devices::{Load, TELEMETRY},
    picture::{self, Curve, Panel},
    process::{Upstream, build_gateway},
    results::{Results, folder, median},
    scenarios::{Figures, draining, steady_after},
    subject::{Kind, SHIPPED_ROWS, level},
};

/// Messages in a second: what the gateway keeps up with on a machine that it shares with broker, API and devices.
const RATE: u32 = 3000;
/// The same for many devices, each of which is met once before anything is measured. A gateway that falls behind then takes
/// more memory for each of them.
const MEETING: u32 = 4000;
/// How long a load at a rate lasts, in seconds.
const STEADY: u32 = 2;
/// Trials that last no longer are made several times.
const SHORT: Duration = Duration::from_secs(5);
/// How long a backlog drains.
const DRAINING: Duration = Duration::from_secs(12);
/// What a message that waits takes in mosquitto, in bytes, with its topic and its properties.
const WAITING: u64 = 1300;

/// Measures and prints; and keeps it, if it is to be kept.
pub async fn run(rounds: usize, only: &str, record: bool) -> Result<(), String> {
    build_gateway()?;
    measure(rounds, only, record).await.map_err(|error| error.to_string())
}

async fn measure(rounds: usize, only: &str, record: bool) -> io::Result<()> {
    let mut results = Results::new("Scale, ");
    let mut panels = Vec::new();
    for family in families().into_iter().filter(|family| family.grows.contains(only)) {
        let grows = family.grows;
        results.say("");
        results
            .say(&format!("| {grows} | how | CPU us/msg | msg/s | p50 ms | p99 ms | peak MiB |"));
        results.say("| --- | --- | --- | --- | --- | --- | --- |");
        let mut measured = Vec::new();
        for Line { how, trials } in family.lines {
            let mut points = Vec::new();
            for (size, trial) in trials {
                if let Some(lack) = trial.lack() {
                    results.say(&format!("| {size} | {how} | {lack} | | | | |"));
                    continue;
                }
                let figures = trial.run(rounds).await?;
                results.say(&format!("| {size} | {how} | {} |", cells(&figures)));
                points.push((f64::from(size), figures));
            }
            measured.push((how, points));
        }
        panels.extend(draw(grows, family.waits, &measured));
    }
    if record {
        results.record()?;
        fs::write(folder().join("scale.svg"), picture::draw(&panels))?;
    }
    Ok(())
}

fn cells(figures: &Figures) -> String {
    let Figures { cpu, rate, p50, p99, memory, .. } = figures;
    format!("{cpu:.1} | {rate:.0} | {p50:.2} | {p99:.2} | {memory:.1}")
}

/// A line's name and its points.
type Measured = (&'static str, Vec<(f64, Figures)>);

/// The panels of a family. What has waited has no latency worth a curve, but a rate at which it drains.
fn draw(grows: &'static str, waits: bool, lines: &[Measured]) -> [Panel; 3] {
    let curves = |what: &str, of: fn(&Figures) -> f64| {
        let curve = move |(how, points): &Measured| {
            // There is no 0 on a logarithmic axis.
            let points = points.iter().filter(|(size, _)| *size > 0.0);
            let points = points.map(|(size, figures)| (*size, of(figures)));
            Curve { name: format!("{how}{what}"), points: points.collect() }
        };
        lines.iter().map(curve).collect::<Vec<_>>()
    };
    let panel = |title, curves| Panel { title, x: grows, curves };
    let last = if waits {
        panel("messages in a second", curves("", |f| f.rate))
    } else {
        let (p50, p99) = (curves(", p50", |f| f.p50), curves(", p99", |f| f.p99));
        panel("latency, ms", p50.into_iter().zip(p99).flat_map(<[Curve; 2]>::from).collect())
    };
    [
        panel("CPU, us a message", curves("", |f| f.cpu)),
        panel("peak memory, MiB", curves("", |f| f.memory)),
        last,
    ]
}

/// A size that grows.
struct Family {
    grows: &'static str,
    /// The messages wait for the gateway.
    waits: bool,
    lines: Vec<Line>,
}

/// One way to let it grow, and what is tried at which size.
struct Line {
    how: &'static str,
    trials: Vec<(u32, Trial)>,
}

impl Line {
    fn new<const N: usize>(
        how: &'static str,
        sizes: [u32; N],
        trial: impl Fn(u32) -> Trial,
    ) -> Self {
        Self { how, trials: sizes.map(|size| (size, trial(size))).into() }
    }
}

/// One run.
struct Trial {
    kind: Kind,
    /// What comes before it is measured.
    warm: Load,
    /// Without a rate it waits for the gateway.
    load: Load,
    /// Of the API.
    delay: Duration,
    /// The last level of the topics.
    level: String,
}

impl Trial {
    /// As many messages in a second, after each device has been there once.
    fn steady(devices: u32, rate: u32) -> Self {
        let load = Load {
            messages: u64::from(rate * STEADY),
            devices: devices.into(),
            size: 0,
            per_second: Some(rate),
        };
        let meeting = if load.devices > load.messages { MEETING } else { rate };
        let warm = Load { messages: load.devices.max(500), per_second: Some(meeting), ..load };
        let level = TELEMETRY.to_owned();
        Self { kind: Kind::Gateway, warm, load, delay: Duration::ZERO, level }
    }

    /// What the machine has too little of for it.
    fn lack(&self) -> Option<String> {
        let needed = if self.load.per_second.is_none() { self.load.messages * WAITING } else { 0 };
        let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        let free = line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? >> 10;
        let needed = needed >> 20;
        (free < needed).then(|| format!("the broker needs {needed} MiB, {free} are free"))
    }

    /// Medians, where it is short.
    async fn run(&self, rounds: usize) -> io::Result<Figures> {
        let rounds = if self.lasts() <= SHORT { rounds } else { 1 };
        let mut figures = Vec::new();
        for _ in 0..rounds {
            figures.push(self.once().await?);
        }
        let of = |figure: fn(&Figures) -> f64| median(figures.iter().map(figure));
        Ok(Figures {
            cpu: of(|f| f.cpu),
            rate: of(|f| f.rate),
            p50: of(|f| f.p50),
            p99: of(|f| f.p99),
            p999: of(|f| f.p999),
            memory: of(|f| f.memory),
        })
    }

    async fn once(&self) -> io::Result<Figures> {
        let Self { kind, warm, load, delay, level } = self;
        if load.per_second.is_none() {
            return draining(*kind, *load, DRAINING).await;
        }
        let upstream = Upstream::slow(*delay);
        steady_after(*kind, *warm, *load, upstream, level).await
    }

    /// About how long.
    fn lasts(&self) -> Duration {
        let seconds =
            |load: &Load| load.messages as f64 / f64::from(load.per_second.unwrap_or(MEETING));
        Duration::from_secs_f64(seconds(&self.warm) + seconds(&self.load)) + self.delay * 3
    }
}

fn families() -> [Family; 5] {
    [devices(), rows(), payloads(), delays(), backlogs()]
}

fn devices() -> Family {
    let of = |kind| move |devices| Trial { kind, ..Trial::steady(devices, RATE) };
    let most = Kind::GatewayRemembers(1_000_000);
    let lines = vec![
        Line::new(
            "remembered 100,000, as shipped",
            [1, 10, 100, 1000, 10_000, 100_000, 300_000],
            of(Kind::Gateway),
        ),
        Line::new("remembered 1,000,000", [10_000, 100_000, 1_000_000], of(most)),
    ];
    Family { grows: "devices known", waits: false, lines }
}

fn rows() -> Family {
    let to = |level: fn(u32) -> String| {
        move |rows| Trial {
            kind: Kind::GatewayRows(rows),
            level: level(rows),
            ..Trial::steady(1000, RATE)
        }
    };
    let lines = vec![
        Line::new("to the first row", [SHIPPED_ROWS, 500], to(|_| TELEMETRY.to_owned())),
        Line::new("to the last row", [50, 200, 500], to(|rows| level(rows - 1))),
    ];
    Family { grows: "rows of the table", waits: false, lines }
}

fn payloads() -> Family {
    let of = |size| {
        let trial = Trial::steady(100, 300);
        let size = usize::try_from(size).expect("it is at most 256 KiB");
        let (warm, load) = (Load { size, ..trial.warm }, Load { size, ..trial.load });
        Trial { warm, load, ..trial }
    };
    let lines = vec![Line::new("300/s", [130, 1000, 10_000, 65_536, 262_144], of)];
    Family { grows: "payload, bytes", waits: false, lines }
}

fn delays() -> Family {
    let at = |rate| {
        move |delay: u32| {
            let trial = Trial::steady(1000, rate);
            // Enough for connections to stand.
            let warm = Load { messages: 300, per_second: Some(300), ..trial.warm };
            Trial { warm, delay: Duration::from_millis(delay.into()), ..trial }
        }
    };
    let delays = [0, 1, 10, 100, 500, 2000];
    let lines = vec![Line::new("100/s", delays, at(100)), Line::new("1,000/s", delays, at(1000))];
    Family { grows: "delay of the API, ms", waits: false, lines }
}

fn backlogs() -> Family {
    let of = |messages: u32| {
        let trial = Trial::steady(1000, RATE);
        let load = Load { messages: messages.into(), per_second: None, ..trial.load };
        Trial { load, ..trial }
    };
    let lines = vec![Line::new("1,000 devices", [1000, 10_000, 100_000, 1_000_000, 5_000_000], of)];
    Family { grows: "backlog, messages", waits: true, lines }
}
