//! The gateway beside what people use for the same today: what it costs, and what becomes of the messages when
//! the API fails or the process is killed.

use std::{fs, io, time::Duration};

use crate::{
    account::Account,
    devices::Load,
    install::install,
    picture::{Curve, Panel, draw},
    process::{Upstream, build_gateway},
    results::{Results, folder, median},
    scenarios::{Fault, Figures, fault, saturated, steady},
    subject::{Kind, mq_bridge_program},
};

/// The first is what the others are compared with.
const SUBJECTS: [Kind; 6] = [
    Kind::Gateway,
    Kind::Bridge,
    Kind::BridgeOneThread,
    Kind::MqttJs,
    Kind::MqttJsAckAfter,
    Kind::NodeRed,
];
const LOAD: Load = Load { messages: 10_000, devices: 100, size: 0, per_second: None };
const RATES: [u32; 2] = [500, 3000];
/// How long a steady load lasts, in seconds.
const STEADY: u32 = 4;
const FAULTY: Load = Load { messages: 4000, per_second: Some(500), ..LOAD };
/// An API that takes a while has calls under way when the fault comes.
const SLOW: Duration = Duration::from_millis(10);

/// Installs the peers, measures, prints; and keeps it, if it is to be kept.
pub async fn run(rounds: usize, only: &str, record: bool) -> Result<(), String> {
    build_gateway()?;
    install().await?;
    let mut subjects = SUBJECTS.to_vec();
    subjects.extend(mq_bridge_program().map(|_| Kind::MqBridge));
    let mut peers = Peers { rounds, only, subjects, results: Results::new("Peers, ") };
    let curves = peers.speed().await;
    peers.faults().await;
    if record {
        peers.record(curves).map_err(|error| error.to_string())?;
    }
    Ok(())
}

struct Peers<'a> {
    rounds: usize,
    only: &'a str,
    subjects: Vec<Kind>,
    results: Results,
}

impl Peers<'_> {
    /// What each costs; the curves are CPU against rate.
    async fn speed(&mut self) -> Vec<Curve> {
        self.results.table();
        let subjects = self.subjects.iter();
        let mut curves: Vec<_> = subjects
            .map(|kind| Curve { name: kind.name().to_owned(), points: Vec::new() })
            .collect();
        for rate in RATES {
            let load = Load { messages: u64::from(rate * STEADY), per_second: Some(rate), ..LOAD };
            let medians = self.compare(&format!("{rate}/s"), load).await;
            for (curve, cpu) in curves.iter_mut().zip(medians) {
                curve.points.extend(cpu.map(|cpu| (f64::from(rate), cpu)));
            }
        }
        self.compare("backlog of 10,000", LOAD).await;
        curves.retain(|curve| !curve.points.is_empty());
        curves
    }

    /// All of them in turn, as often as there are rounds; whoever fails is not asked again. The CPU of each.
    async fn compare(&mut self, scenario: &str, load: Load) -> Vec<Option<f64>> {
        if !scenario.contains(self.only) {
            return Vec::new();
        }
        let mut results: Vec<io::Result<Vec<Figures>>> =
            self.subjects.iter().map(|_| Ok(Vec::new())).collect();
        for _ in 0..self.rounds {
            for (kind, result) in self.subjects.iter().zip(&mut results) {
                let Ok(figures) = result else { continue };
                let measured = match load.per_second {
                    None => saturated(*kind, load, Upstream::default()).await,
                    Some(_) => steady(*kind, load).await,
                };
                match measured {
                    Ok(measured) => figures.push(measured),
                    Err(trouble) => *result = Err(trouble),
                }
            }
        }
        let base = results[0].as_deref().unwrap_or_default();
        for (kind, result) in self.subjects.iter().zip(&results) {
            match result {
                Ok(own) => self.results.row(scenario, kind.name(), own, base),
                Err(trouble) => {
                    self.results.say(&format!("| {scenario} | {} | {trouble} |", kind.name()));
                }
            }
        }
        let cpu = |own: &Vec<Figures>| median(own.iter().map(|figures| figures.cpu));
        results.iter().map(|result| result.as_ref().ok().map(cpu)).collect()
    }

    /// What becomes of the messages, once: these are no figures that vary by a few in a hundred.
    async fn faults(&mut self) {
        let Load { messages, devices, .. } = FAULTY;
        self.results.say(&format!(
            "\nOf {messages} messages of {devices} devices, 500 in a second, with an API of 10 ms:\n"
        ));
        self.results.say("| fault in the middle | who | lost | more than once | out of order |");
        self.results.say("| --- | --- | --- | --- | --- |");
        let faults = [
            ("the API answers 503 for 3 s", Fault::Down(Duration::from_secs(3))),
            ("SIGKILL, and started again", Fault::Killed),
        ];
        for (name, what) in faults.into_iter().filter(|(name, _)| name.contains(self.only)) {
            for kind in &self.subjects {
                let result = fault(*kind, FAULTY, Upstream::slow(SLOW), what).await;
                let shown = match result {
                    Ok(Account { lost, repeated, out_of_order }) => {
                        format!("{lost} | {repeated} | {out_of_order}")
                    }
                    Err(trouble) => trouble.to_string(),
                };
                self.results.say(&format!("| {name} | {} | {shown} |", kind.name()));
            }
        }
        if !self.subjects.contains(&Kind::MqBridge) {
            self.results.say("\nmq-bridge was not measured: `MQ_BRIDGE` named none.");
        }
    }

    fn record(&mut self, curves: Vec<Curve>) -> io::Result<()> {
        self.results.say("\nCPU against rate, in the newest run: [picture](peers.svg).");
        self.results.record()?;
        let panel = Panel { title: "CPU for each message, us", x: "messages in a second", curves };
        fs::write(folder().join("peers.svg"), draw(&[panel]))
    }
}
