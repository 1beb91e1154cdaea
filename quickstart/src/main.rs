//! Everything in one process, to look at: an MQTT broker, a REST API, two devices, and between them
//! the real gateway with its shipped table.
//!
//! `cargo run -p quickstart` tells what crosses and then goes on until Ctrl-C. With `--once` it ends
//! by itself: exit code 0 when every row of the table has crossed, else 1 and a list of what is
//! missing.

mod api;
mod broker;
mod devices;
mod hub;
mod live;
mod play;
mod script;
mod story;

use std::{
    collections::BTreeMap,
    error::Error,
    io::{self, Write as _},
    net::SocketAddr,
    process::ExitCode,
    time::Duration,
};

use mqtt_rest_gateway::{
    Status,
    config::{Config, SHIPPED},
    gateway::{Gateway, StartError, Stopped},
    log,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, timeout_at},
};

use crate::{api::Api, broker::Broker, devices::Device, story::tell};

const USAGE: &str = "usage: quickstart [--once]

Starts a broker, a REST API, the gateway and two devices in one process and tells what crosses.

  --once  end when every row of the table has crossed; exit code 1 if one has not after 30 s";

/// How long all may take until the script has been played.
const PATIENCE: Duration = Duration::from_secs(30);
/// What was seen and not told yet; far more than one message can bring about.
const EVENTS: usize = 1024;
/// Where the shipped configuration puts the admin endpoint.
const USUAL_ADMIN: &str = "127.0.0.1:9180";

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let once = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => false,
        ["--once"] => true,
        ["--help" | "-h"] => {
            tell(USAGE);
            return ExitCode::SUCCESS;
        }
        _ => {
            complain(USAGE);
            return ExitCode::from(2);
        }
    };
    match run(once).await {
        Ok(complaints) if complaints.is_empty() => ExitCode::SUCCESS,
        Ok(complaints) => {
            complain(&format!("quickstart: this went wrong:\n  {}", complaints.join("\n  ")));
            ExitCode::FAILURE
        }
        Err(error) => {
            complain(&format!("quickstart: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Starts everything, plays, and stops everything. The complaints about what was seen, if any.
async fn run(once: bool) -> Result<Vec<String>, Box<dyn Error>> {
    let deadline = Instant::now() + PATIENCE;
    let (events, mut seen) = mpsc::channel(EVENTS);
    let api = Api::start(events.clone()).await?;
    let broker = Broker::start().await?;
    let running = Running::start(&broker.url(), &api.url(), deadline).await?;
    let operator = devices::operator(&broker.url(), events.clone()).await?;
    let mut devices = Vec::new();
    for device in hub::DEVICES {
        devices.push(Device::connect(&broker.url(), device, events.clone()).await?);
    }
    tell(format_args!(
        "Everything runs in this process, on loopback:\n  \
         broker    {} (embedded, in memory)\n  \
         REST API  {} (a stand-in)\n  \
         gateway   with the shipped config.toml, {} routes\n  \
         devices   {}\n",
        broker.url(),
        api.url(),
        running.rows.len(),
        hub::DEVICES.map(|(id, _)| id).join(", "),
    ));

    let complaints = {
        let mut interrupted = std::pin::pin!(interrupted());
        tokio::select! {
            complaints = play::play(&devices, &mut seen, &running.rows, deadline) => {
                let complaints = complaints?;
                if complaints.is_empty() {
                    let (rows, messages) = (running.rows.len(), script::STEPS.len());
                    tell(format_args!("All {rows} rows of the table have crossed, in {messages} messages."));
                }
                if complaints.is_empty() && !once {
                    look(&broker, running.admin);
                    tokio::select! {
                        ended = live::live(&devices, &mut seen) => ended?,
                        signal = &mut interrupted => signal?,
                    }
                    tell("\nStopping.");
                }
                complaints
            }
            signal = &mut interrupted => {
                signal?;
                vec!["interrupted".to_owned()]
            }
        }
    };

    for device in devices {
        device.disconnect().await;
    }
    running.stop().await?;
    // A connection that is gone already needs no good-bye.
    let _ = operator.disconnect().await;
    broker.stop().await?;
    api.stop();
    Ok(complaints)
}

/// The gateway at work.
struct Running {
    /// The names of the table's rows.
    rows: Vec<String>,
    admin: Option<SocketAddr>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Stopped>,
}

impl Running {
    /// Starts it and waits until it is subscribed: what is published before is not for it.
    async fn start(broker: &str, api: &str, deadline: Instant) -> Result<Self, Box<dyn Error>> {
        let config = config(broker, api, USUAL_ADMIN)?;
        log::install(&config.log);
        let rows = config.table.routes.iter().map(|row| row.name.to_string()).collect();
        let gateway = match Gateway::bind(config).await {
            // Another gateway has the port; any other one will do.
            Err(StartError::Admin(..)) => {
                Gateway::bind(self::config(broker, api, "127.0.0.1:0")?).await
            }
            other => other,
        }?;
        let admin = gateway.admin_address();
        let mut status = gateway.broker();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(gateway.run(async {
            // Stops as well when the other end is gone.
            let _ = stopped.await;
        }));
        let settled = |status: &Status| matches!(status, Status::Subscribed | Status::Refused(_));
        match timeout_at(deadline, status.wait_for(settled)).await {
            Ok(Ok(status)) if matches!(*status, Status::Subscribed) => {}
            Ok(Ok(status)) => return Err(format!("the broker refused: {:?}", *status).into()),
            Ok(Err(_)) => return Err("the gateway ended at once".into()),
            Err(_) => return Err("the gateway cannot subscribe".into()),
        }
        Ok(Self { rows, admin, stop, task })
    }

    async fn stop(self) -> Result<(), Box<dyn Error>> {
        // If it has ended already there is nobody to tell.
        let _ = self.stop.send(());
        match self.task.await? {
            Stopped::Clean => Ok(()),
            Stopped::GraceRanOut | Stopped::Failed | Stopped::SessionInUse => {
                Err("the gateway did not stop cleanly".into())
            }
        }
    }
}

/// The shipped configuration; only the addresses, and how much is logged, are ours.
fn config(broker: &str, api: &str, admin: &str) -> Result<Config, Box<dyn Error>> {
    let env = [
        ("GATEWAY_BROKER_URL", broker),
        ("GATEWAY_UPSTREAM_URL", api),
        ("GATEWAY_ADMIN_LISTEN", admin),
        ("GATEWAY_SHUTDOWN_GRACE", "5s"),
        // The devices' MQTT library logs an error when it disconnects as told.
        ("GATEWAY_LOG_LEVEL", "warn,mqtt5::client=off"),
    ];
    let env: BTreeMap<_, _> = env.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    Config::parse(SHIPPED, &env).map_err(|mistakes| {
        mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n").into()
    })
}

/// Says where to look and what to try.
fn look(broker: &Broker, admin: Option<SocketAddr>) {
    let (host, port) = (broker.address().ip(), broker.address().port());
    let (id, key) = hub::DEVICES[0];
    let admin = admin.map_or("(off)".to_owned(), |address| address.to_string());
    tell(format_args!(
        "
Look:
  http://{admin}/ in a browser
  curl http://{admin}/readyz
  curl http://{admin}/metrics
  curl http://{admin}/routes

Listen:
  mosquitto_sub -V 5 -h {host} -p {port} -t '#' -F '%t  %p  %P'

Send a telemetry by hand:
  mosquitto_pub -V 5 -h {host} -p {port} -q 1 -t v1/device/{id}/telemetry \\
    -D publish user-property device_id {id} -D publish user-property access_key {key} \\
    -m '{{\"status\":\"online\",\"telemetries\":{{\"brightness\":50}}}}'

Ask for the configuration by hand; the answer comes to the Response Topic:
  mosquitto_pub -V 5 -h {host} -p {port} -q 1 -t v1/device/{id}/config \\
    -D publish user-property device_id {id} -D publish user-property access_key {key} \\
    -D publish response-topic v1/device/{id}/my-answers -D publish correlation-data 42 -n

It goes on until Ctrl-C:
"
    ));
}

fn complain(text: &str) {
    // Where standard error is closed there is no other place to report it.
    let _ = writeln!(io::stderr(), "{text}");
}

/// Resolves on Ctrl-C, or when the process is told to end.
async fn interrupted() -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        signal = tokio::signal::ctrl_c() => signal,
        _ = terminate.recv() => Ok(()),
    }
}
