//! Work for a gateway that was compiled to write down which code runs how often (`deploy/optimized`): all that is
//! spoken to the API, at a rate and among many, batches, and every kind of request with its answer. What is done
//! here the compiler takes for worth its while, and what is not for rare.
//!
//! Each gateway is ended in order: that is when it writes.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
};

use serde_json::{Value, json};
use testkit::{
    Broker, Options,
    scripted_api::{Reply, answer_each},
};

use crate::{
    devices::Load,
    process::{Upstream, build_gateway},
    protocol::Protocol,
    scenarios::{saturated, steady_at},
    subject::Kind,
};

/// Of each kind.
const REQUESTS: u64 = 200;
/// What a device asks, by what is below its part of the topic.
const KINDS: [&str; 7] =
    ["telemetry", "config/update", "commands/update", "update", "commands", "config", "get"];

/// Does it all once.
pub async fn run() -> Result<(), String> {
    build_gateway()?;
    work().await.map_err(|error| error.to_string())
}

async fn work() -> io::Result<()> {
    for protocol in Protocol::ALL {
        let upstream = Upstream { protocol, ..Upstream::default() };
        let many = Load { messages: 20_000, devices: 100, size: 0, per_second: None };
        let few = Load { messages: 2000, per_second: Some(1000), ..many };
        steady_at(Kind::Gateway, few, upstream).await?;
        saturated(Kind::Gateway, many, upstream).await?;
    }
    let mass = Load { messages: 40_000, devices: 1000, size: 0, per_second: None };
    saturated(Kind::GatewayBatch, mass, Upstream::default()).await?;
    requests().await;
    Ok(())
}

/// A device that asks, and what has changed is pushed to it. Now and then the API is busy, or knows no answer.
async fn requests() {
    let (broker, versions) = (Broker::start().await, AtomicU64::new(0));
    let api = answer_each(move |_| {
        let version = versions.fetch_add(1, Ordering::Relaxed);
        let changed = json!({"success": true, "version": version, "config_version": version, "command": true});
        match version % 50 {
            10 => Reply::status(404),
            20 => Reply::status(503),
            _ => Reply::status(200).body(changed.to_string()),
        }
    })
    .await;
    let options = Options::default().set("BROKER_URL", &broker.url());
    let options = options.set("UPSTREAM_URL", &format!("http://127.0.0.1:{api}"));
    let mut gateway = options.spawn().await;
    gateway.ready().await;
    let mut device = broker.device("d1").await;
    for n in 0..REQUESTS {
        for below in KINDS {
            let payload = match below {
                "telemetry" => json!({"status": "online", "telemetries": {"fan_speed": n}}),
                "config/update" => json!({"version": n}),
                "commands/update" => json!({"id": "c", "status": "done"}),
                "update" => json!({"firmware_version": "1.0.0"}),
                _ => Value::Null,
            };
            device.ask(below, payload).await;
        }
    }
    gateway.stop().await;
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use mqtt_rest_gateway::config::{Config, SHIPPED};

    use super::*;

    #[test]
    fn every_kind_of_request_is_one_of_the_shipped_table() {
        let config = Config::parse(SHIPPED, &BTreeMap::new()).unwrap();
        for below in KINDS {
            let topic = format!("v1/device/d1/{below}");
            assert!(config.table.patterns.find(&topic).is_some(), "{topic}");
        }
    }
}
