//! Runs the scenarios and writes the figures down: a table, and a picture of three curves.

use std::{fs, io, time::Duration};

use testkit::program_path;

use crate::{
    devices::Load,
    picture::{Curve, Panel, draw},
    process::{Upstream, build_gateway},
    results::{Results, folder, median},
    scenarios::{Figures, bare_http, known, memory, saturated, start, steady},
    subject::{Kind, mq_bridge_program},
};

/// How long a steady load lasts, in seconds.
const STEADY: u32 = 4;

/// Builds the gateway, measures, prints; and keeps it, if it is to be kept.
pub async fn run(rounds: usize, only: &str, record: bool) -> Result<(), String> {
    build_gateway()?;
    let mut bench = Bench { rounds, only, record, results: Results::new("") };
    bench.run().await.map_err(|error| error.to_string())
}

struct Bench<'a> {
    rounds: usize,
    only: &'a str,
    record: bool,
    results: Results,
}

impl Bench<'_> {
    async fn run(&mut self) -> io::Result<()> {
        self.table().await?;
        self.single_figures().await?;
        let panels = self.curves().await?;
        if self.record {
            self.results.record()?;
            fs::write(folder().join("results.svg"), draw(&panels))?;
        }
        Ok(())
    }

    fn wanted(&self, name: &str) -> bool {
        name.contains(self.only)
    }

    /// Everything that is compared, each with the least bridge in the same round.
    async fn table(&mut self) -> io::Result<()> {
        self.results.table();
        let mut kinds = vec![Kind::Bridge, Kind::BridgeOneThread, Kind::Gateway];
        let saturating = Load { messages: 100_000, devices: 100, size: 0, per_second: None };
        let mut scenarios =
            vec![("saturated".to_owned(), saturating, Upstream::default(), kinds.clone())];
        // It keeps no session while it is stopped, so no backlog waits for it.
        kinds.extend(mq_bridge_program().map(|_| Kind::MqBridge));
        for rate in [500, 3000] {
            let messages = u64::from(rate * STEADY);
            let load = Load { messages, per_second: Some(rate), ..saturating };
            scenarios.push((format!("{rate}/s"), load, Upstream::default(), kinds.clone()));
        }
        let many = Load { messages: 60_000, devices: 1000, ..saturating };
        let slow = |delay| Upstream::slow(Duration::from_millis(delay));
        scenarios.push(("50 ms API".to_owned(), many, slow(50), vec![Kind::GatewayWide]));
        let mass = vec![Kind::Gateway, Kind::GatewayBatch, Kind::BridgeBatch];
        scenarios.push((
            "mass".to_owned(),
            Load { messages: 200_000, ..many },
            Upstream::default(),
            mass.clone(),
        ));
        // 1,000 requests in a second are all that it can do.
        let few = Load { messages: 10_000, ..many };
        scenarios.push((
            "mass, API of 1,000/s".to_owned(),
            few,
            Upstream { serial: true, ..slow(1) },
            mass,
        ));
        for (name, load, upstream, kinds) in scenarios {
            if self.wanted(&name) {
                self.compare(&name, load, upstream, &kinds).await?;
            }
        }
        if self.wanted("bare HTTP") {
            let figures = bare_http(saturating).await?;
            self.results.row("saturated", "bare HTTP client", &[figures], &[figures]);
        }
        Ok(())
    }

    /// All of them in turn, as often as there are rounds; the first is what the others are compared with.
    async fn compare(
        &mut self,
        scenario: &str,
        load: Load,
        upstream: Upstream,
        kinds: &[Kind],
    ) -> io::Result<()> {
        let mut figures = vec![Vec::new(); kinds.len()];
        for _ in 0..self.rounds {
            for (kind, figures) in kinds.iter().zip(&mut figures) {
                figures.push(match load.per_second {
                    None => saturated(*kind, load, upstream).await?,
                    Some(_) => steady(*kind, load).await?,
                });
            }
        }
        for (kind, own) in kinds.iter().zip(&figures) {
            self.results.row(scenario, kind.name(), own, &figures[0]);
        }
        Ok(())
    }

    async fn single_figures(&mut self) -> io::Result<()> {
        if self.wanted("figures") {
            let load =
                Load { messages: 100_000, devices: 100_000, size: 0, per_second: Some(8000) };
            let most = known(Kind::Gateway, load).await?;
            let load = Load { messages: 4000, devices: 100, size: 0, per_second: Some(1000) };
            let at_rate = steady(Kind::Gateway, load).await?.memory;
            let mut starts = Vec::new();
            for _ in 0..self.rounds {
                starts.push(start(Kind::Gateway).await?.as_secs_f64() * 1e3);
            }
            let size = fs::metadata(program_path())?.len();
            self.results.say(&format!(
                "\nPeak memory at 1,000 msg/s: {at_rate:.1} MiB; with 100,000 devices known: {most:.1} MiB. Start to subscribed: {:.0} ms. \
                 Program: {size} bytes.",
                median(starts.into_iter())
            ));
            let load = Load { messages: 200_000, devices: 100, size: 1024, per_second: None };
            let Figures { rate, memory, .. } =
                saturated(Kind::Gateway, load, Upstream::default()).await?;
            self.results.say(&format!(
                "A backlog of 200,000 messages of 1 KiB drains at {rate:.0} msg/s with at most {memory:.1} MiB."
            ));
        }
        Ok(())
    }

    async fn curves(&mut self) -> io::Result<Vec<Panel>> {
        let mut panels = Vec::new();
        if !self.wanted("curves") {
            return Ok(panels);
        }
        let base = Load { messages: 0, devices: 100, size: 0, per_second: None };
        let mut curves = Vec::new();
        for kind in [Kind::Bridge, Kind::Gateway] {
            let (mut p50, mut p99) = (Vec::new(), Vec::new());
            for rate in [500, 1000, 2000, 4000, 8000] {
                let load = Load { messages: u64::from(rate * 2), per_second: Some(rate), ..base };
                let figures = steady(kind, load).await?;
                p50.push((f64::from(rate), figures.p50));
                p99.push((f64::from(rate), figures.p99));
            }
            curves.push(Curve { name: format!("{} p50", kind.name()), points: p50 });
            curves.push(Curve { name: format!("{} p99", kind.name()), points: p99 });
        }
        panels.push(Panel { title: "latency, ms", x: "messages in a second", curves });
        let mut curves = Vec::new();
        for kind in [Kind::Bridge, Kind::Gateway, Kind::GatewayWide] {
            let mut points = Vec::new();
            for (delay, messages) in [(1, 60_000), (5, 40_000), (20, 20_000), (100, 5000)] {
                let load = Load { messages, devices: 1000, ..base };
                let figures =
                    saturated(kind, load, Upstream::slow(Duration::from_millis(delay))).await?;
                points.push((delay as f64, figures.rate));
            }
            curves.push(Curve { name: kind.name().to_owned(), points });
        }
        panels.push(Panel { title: "messages in a second", x: "delay of the API, ms", curves });
        let mut points = Vec::new();
        for messages in [1000, 10_000, 100_000, 1_000_000] {
            let load = Load { messages, ..base };
            let most = memory(Kind::Gateway, load, Duration::from_secs(12)).await?;
            points.push((messages as f64, most));
        }
        let flat: Vec<_> = points.iter().map(|(x, y)| format!("{x:.0}: {y:.1}")).collect();
        self.results.say(&format!("\nPeak memory in MiB by backlog: {}.", flat.join(", ")));
        let curves = vec![Curve { name: Kind::Gateway.name().to_owned(), points }];
        panels.push(Panel { title: "peak memory, MiB", x: "backlog, messages", curves });
        Ok(panels)
    }
}
