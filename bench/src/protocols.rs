//! What a message costs by what is spoken to the API: HTTP/1.1 or HTTP/2, with TLS or without.

use std::io;

use crate::{
    devices::Load,
    process::{Upstream, build_gateway},
    protocol::Protocol,
    results::Results,
    scenarios::{saturated, steady_at},
    subject::Kind,
};

/// How long a steady load lasts, in seconds.
const STEADY: u32 = 4;

/// Measures and prints; and keeps it, if it is to be kept.
pub async fn run(rounds: usize, only: &str, record: bool) -> Result<(), String> {
    build_gateway()?;
    measure(rounds, only, record).await.map_err(|error| error.to_string())
}

async fn measure(rounds: usize, only: &str, record: bool) -> io::Result<()> {
    let mut results = Results::new("What is spoken to the API, ");
    results.table();
    let load = Load { messages: 100_000, devices: 100, size: 0, per_second: None };
    let at = |rate| Load { messages: u64::from(rate * STEADY), per_second: Some(rate), ..load };
    let scenarios = [("saturated", load), ("500/s", at(500)), ("3000/s", at(3000))];
    for (name, load) in scenarios.into_iter().filter(|(name, _)| name.contains(only)) {
        let mut figures = Protocol::ALL.map(|_| Vec::new());
        for _ in 0..rounds {
            for (protocol, figures) in Protocol::ALL.into_iter().zip(&mut figures) {
                let upstream = Upstream { protocol, ..Upstream::default() };
                figures.push(match load.per_second {
                    None => saturated(Kind::Gateway, load, upstream).await?,
                    Some(_) => steady_at(Kind::Gateway, load, upstream).await?,
                });
            }
        }
        for (protocol, own) in Protocol::ALL.into_iter().zip(&figures) {
            results.row(name, protocol.name(), own, &figures[0]);
        }
    }
    if record { results.record() } else { Ok(()) }
}
