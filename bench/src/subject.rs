//! Who is measured: the gateway, the least bridge, and the peers where they are installed.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use tempfile::TempDir;
use testkit::{free_port, program_path};
use tokio::process::Command;

use crate::{
    devices::TELEMETRY,
    install,
    process::{Api, Process, own},
};

/// One kind of bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Gateway,
    /// With as many HTTP exchanges at once as messages may be held, so that the window alone bounds.
    GatewayWide,
    /// With `batch` in the row of telemetry.
    GatewayBatch,
    /// With room for this many known devices, in place of the shipped 100,000.
    GatewayRemembers(u32),
    /// With a table of this many rows.
    GatewayRows(u32),
    /// On tokio's runtime as most programs have it.
    Bridge,
    BridgeOneThread,
    /// On one thread, in batches.
    BridgeBatch,
    MqBridge,
    /// Acknowledged by the library, as a message comes in.
    MqttJs,
    /// Acknowledged when the API took it.
    MqttJsAckAfter,
    NodeRed,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::GatewayWide => "gateway, max_in_flight 512",
            Self::GatewayBatch => "gateway, batch",
            Self::GatewayRemembers(_) => "gateway, remembered raised",
            Self::GatewayRows(_) => "gateway, more rows",
            Self::Bridge => "least bridge",
            Self::BridgeOneThread => "least bridge, one thread",
            Self::BridgeBatch => "least bridge, one thread, batch",
            Self::MqBridge => "mq-bridge",
            Self::MqttJs => "MQTT.js",
            Self::MqttJsAckAfter => "MQTT.js, acknowledges after",
            Self::NodeRed => "Node-RED",
        }
    }
}

/// A running one.
pub struct Subject {
    pub process: Process,
    _dir: TempDir,
}

impl Subject {
    pub fn start(kind: Kind, broker: u16, api: &Api) -> io::Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut command = command(kind, broker, api, dir.path())?;
        Ok(Self { process: Process::spawn(&mut command)?, _dir: dir })
    }

    /// As an argument of this program, which runs it as its own process.
    pub fn start_under(under: &[String], kind: Kind, broker: u16, api: &Api) -> io::Result<Self> {
        let dir = tempfile::tempdir()?;
        let (Some(program), inner) = (under.first(), command(kind, broker, api, dir.path())?)
        else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let (inner, mut outer) = (inner.as_std(), Command::new(program));
        outer.args(&under[1..]).arg(inner.get_program()).args(inner.get_args());
        outer.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        Ok(Self { process: Process::spawn(&mut outer)?, _dir: dir })
    }
}

fn command(kind: Kind, broker: u16, api: &Api, dir: &Path) -> io::Result<Command> {
    let ports = [broker.to_string(), api.port.to_string()];
    let mut command;
    match kind {
        Kind::Gateway
        | Kind::GatewayWide
        | Kind::GatewayBatch
        | Kind::GatewayRemembers(_)
        | Kind::GatewayRows(_) => {
            command = Command::new(program_path());
            command
                .env("GATEWAY_BROKER_URL", format!("mqtt://127.0.0.1:{broker}"))
                .env("GATEWAY_ADMIN_LISTEN", format!("127.0.0.1:{}", free_port()))
                .envs(api.settings());
            if kind == Kind::GatewayWide {
                command.env("GATEWAY_UPSTREAM_MAX_IN_FLIGHT", "512");
            }
            if let Kind::GatewayRemembers(devices) = kind {
                command.env("GATEWAY_DEVICE_REMEMBERED", devices.to_string());
            }
            let table = match kind {
                Kind::GatewayBatch => Some(batch()),
                Kind::GatewayRows(rows) => Some(table(rows)),
                _ => None,
            };
            if let Some(table) = table {
                let file = dir.join("config.toml");
                fs::write(&file, table)?;
                command.arg("--config").arg(file);
            }
        }
        Kind::Bridge | Kind::BridgeOneThread | Kind::BridgeBatch => {
            command = own();
            command.arg("bridge").args(ports);
            command.args((kind != Kind::Bridge).then_some("--one-thread"));
            command.args((kind == Kind::BridgeBatch).then_some("--batch"));
        }
        Kind::MqBridge => {
            let file = dir.join("mq-bridge.yaml");
            fs::write(&file, mq_bridge(broker, api.port))?;
            command = Command::new(mq_bridge_program().ok_or(io::ErrorKind::NotFound)?);
            command.arg("--config").arg(file);
        }
        Kind::MqttJs | Kind::MqttJsAckAfter => {
            command = Command::new("node");
            command.arg(install::place().join("bridge.mjs")).args(ports);
            command.args((kind == Kind::MqttJsAckAfter).then_some("ack-after"));
        }
        Kind::NodeRed => {
            let place = install::place();
            // It writes beside its flows.
            fs::copy(place.join("node-red.json"), dir.join("flows.json"))?;
            let [broker, api] = ports;
            command = Command::new("node");
            command.arg(place.join("node_modules/node-red/red.js")).arg("--userDir").arg(dir);
            command.arg("--settings").arg(place.join("node-red.js"));
            command.env("BROKER", broker).env("API", api).env("UI", free_port().to_string());
        }
    }
    Ok(command)
}

const SHIPPED: &str = include_str!("../../config.toml");
const ROUTE: &str = "\n[[route]]\n";
/// Rows of the shipped table.
pub const SHIPPED_ROWS: u32 = 12;

/// The shipped configuration with one line more.
fn batch() -> String {
    SHIPPED.replace("# batch = ", "batch = ")
}

/// The shipped configuration with copies of its first row at the end, on topics of their own.
fn table(rows: u32) -> String {
    let telemetry = SHIPPED.split(ROUTE).nth(1).expect("the shipped table has rows");
    let copies = (SHIPPED_ROWS..rows).map(|row| {
        let level = level(row);
        let renamed = telemetry.replace("= \"telemetry\"", &format!("= \"{level}\""));
        ROUTE.to_owned() + &renamed.replace("}/telemetry\"\ncall", &format!("}}/{level}\"\ncall"))
    });
    SHIPPED.to_owned() + &copies.collect::<String>()
}

/// The last level of the topics of a row that [`table`] has added.
pub fn level(row: u32) -> String {
    format!("{TELEMETRY}_{row}")
}

/// Where mq-bridge is, if it is installed: `MQ_BRIDGE` names it.
pub fn mq_bridge_program() -> Option<PathBuf> {
    env::var_os("MQ_BRIDGE").map(PathBuf::from).filter(|program| program.exists())
}

/// One URL for all devices: it has no path by device.
fn mq_bridge(broker: u16, api: u16) -> String {
    format!(
        "routes:
  bench:
    concurrency: 64
    input:
      mqtt:
        url: tcp://127.0.0.1:{broker}
        topic: v1/device/+/telemetry
        client_id: mq-bridge
        max_inflight: 512
        session_expiry_interval: 3600
    output:
      http:
        url: http://127.0.0.1:{api}/v1/devices/any/telemetry
"
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use mqtt_rest_gateway::config::Config;

    use super::*;

    fn rows(table: &str) -> Vec<bool> {
        let config = Config::parse(table, &BTreeMap::new()).unwrap();
        config.table.routes.iter().map(|route| route.batch.is_some()).collect()
    }

    #[test]
    fn tables_made_of_the_shipped_one_are_what_they_are_called() {
        assert_eq!(rows(SHIPPED), vec![false; SHIPPED_ROWS as usize]);
        assert_eq!(rows(&batch()).iter().filter(|has| **has).count(), 1);
        assert_eq!(rows(&table(20)).len(), 20);
    }
}
