//! Who is measured: the gateway, the least bridge, and mq-bridge where it is installed.

use std::{env, fs, io, path::PathBuf};

use tempfile::TempDir;
use testkit::free_port;
use tokio::process::Command;

use crate::process::{Process, gateway, own};

/// One kind of bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Gateway,
    /// With as many HTTP exchanges at once as messages may be held, so that the window alone bounds.
    GatewayWide,
    /// With `batch` in the row of telemetry.
    GatewayBatch,
    /// On tokio's runtime as most programs have it.
    Bridge,
    BridgeOneThread,
    MqBridge,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::GatewayWide => "gateway, max_in_flight 512",
            Self::GatewayBatch => "gateway, batch",
            Self::Bridge => "least bridge",
            Self::BridgeOneThread => "least bridge, one thread",
            Self::MqBridge => "mq-bridge",
        }
    }
}

/// A running one.
pub struct Subject {
    pub process: Process,
    _dir: TempDir,
}

impl Subject {
    pub fn start(kind: Kind, broker: u16, api: u16) -> io::Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut command = match kind {
            Kind::Gateway | Kind::GatewayWide | Kind::GatewayBatch => {
                let mut command = Command::new(gateway());
                command
                    .env("GATEWAY_BROKER_URL", format!("mqtt://127.0.0.1:{broker}"))
                    .env("GATEWAY_UPSTREAM_URL", format!("http://127.0.0.1:{api}"))
                    .env("GATEWAY_ADMIN_LISTEN", format!("127.0.0.1:{}", free_port()));
                if kind == Kind::GatewayWide {
                    command.env("GATEWAY_UPSTREAM_MAX_IN_FLIGHT", "512");
                }
                if kind == Kind::GatewayBatch {
                    let file = dir.path().join("config.toml");
                    fs::write(&file, batch())?;
                    command.arg("--config").arg(file);
                }
                command
            }
            Kind::Bridge | Kind::BridgeOneThread => {
                let mut command = own();
                command.args(["bridge", &broker.to_string(), &api.to_string()]);
                command.args((kind == Kind::BridgeOneThread).then_some("--one-thread"));
                command
            }
            Kind::MqBridge => {
                let file = dir.path().join("mq-bridge.yaml");
                fs::write(&file, mq_bridge(broker, api))?;
                let mut command = Command::new(mq_bridge_program().ok_or(io::ErrorKind::NotFound)?);
                command.arg("--config").arg(file);
                command
            }
        };
        Ok(Self { process: Process::spawn(&mut command)?, _dir: dir })
    }
}

/// The shipped configuration with one line more.
fn batch() -> String {
    let shipped = include_str!("../../config.toml");
    shipped.replace("# batch = ", "batch = ")
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
