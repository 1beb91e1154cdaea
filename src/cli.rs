//! The command line: `run`, `check`, `routes`, `explain`, `drain`.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use clap::{Args, Parser, Subcommand};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::Instant,
};

use crate::{
    config::Config,
    describe, explain,
    gateway::{Gateway, Stopped},
    message::{Message, Properties},
    mqtt, printable, replay, telemetry, upstream,
};

/// Exit code for a configuration that cannot be used, `EX_CONFIG` of sysexits.
const BAD_CONFIGURATION: u8 = 78;

/// Forwards messages of MQTT devices to a REST API and publishes the answers.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Cli {
    /// Configuration file; without it the compiled-in config.toml is in force.
    #[arg(long, global = true, env = "GATEWAY_CONFIG", value_name = "FILE", value_parser = file)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway (what happens without a command).
    Run,
    /// Report every mistake in the configuration; exit code 78 if there is one.
    Check {
        /// Also try the broker and the upstream.
        #[arg(long)]
        connect: bool,
    },
    /// Send kept dead letters through the running gateway again, one by one, in order. The first time there
    /// is nothing to send: from then on the broker keeps them.
    Replay(replay::Arguments),
    /// Print the table in force.
    Routes {
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Print the request that a message would cause, or why it would be refused. Sends nothing.
    Explain(Explain),
    /// Deliver what the broker still holds for this client id, take nothing new, and end the session:
    /// for a replica, or a gateway, that is gone for good.
    Drain {
        /// It is drained when nothing has come for so long.
        #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
        quiet: Duration,
        /// Give up after so long; the session is then still there.
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        timeout: Option<Duration>,
    },
}

#[derive(Debug, Args)]
struct Explain {
    /// Topic of the message.
    topic: String,
    /// File with the payload; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    payload: Option<PathBuf>,
    /// User property; may stand more than once.
    #[arg(long, value_name = "K=V", value_parser = property)]
    property: Vec<(String, String)>,
    /// Response Topic.
    #[arg(long, value_name = "TOPIC")]
    response_topic: Option<String>,
}

/// A file's name. None at all is an empty one, as an environment may have it.
#[expect(clippy::unnecessary_wraps, reason = "the form that the library asks for")]
fn file(text: &str) -> Result<PathBuf, String> {
    Ok(text.into())
}

fn property(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').ok_or("write NAME=VALUE")?;
    Ok((pair.0.to_owned(), pair.1.to_owned()))
}

/// Runs the command line to its end.
pub fn main(cli: Cli) -> ExitCode {
    let env: BTreeMap<String, String> = std::env::vars().collect();
    let file = cli.config.as_deref().filter(|file| !file.as_os_str().is_empty());
    let config = match Config::load(file, &env) {
        Ok(config) => config,
        Err(error) => {
            // Not prefixed: every line already names the file.
            let _ = writeln!(io::stderr(), "{error}");
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    // One thread: what a message costs is little work and many handovers, and those are cheap as long as
    // nobody has to be woken on another core (bench/RESULTS.md has the figures).
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("no runtime: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let result = match cli.command.unwrap_or(Command::Run) {
        Command::Run => runtime.block_on(run(config)),
        Command::Drain { quiet, timeout } => runtime.block_on(drain(config, quiet, timeout)),
        Command::Check { connect } => runtime.block_on(check(&config, file, connect)),
        Command::Replay(arguments) => {
            telemetry::install(&config.log);
            runtime.block_on(replay::replay(config, arguments))
        }
        Command::Routes { json } => print(&if json {
            describe::table_json(&config.table)
        } else {
            describe::table(&config.table)
        }),
        Command::Explain(arguments) => {
            arguments
                .message()
                .and_then(|message| // What stands in it may come from a stranger's message.
                print(&printable::lines(&explain::message(&config, &message))))
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => {
            complain(&trouble);
            ExitCode::FAILURE
        }
    }
}

async fn run(config: Config) -> Result<(), String> {
    start(&config);
    let gateway = Gateway::bind(config).await.map_err(|error| error.to_string())?;
    live(gateway, std::future::pending()).await.map(|_told| ())
}

async fn drain(config: Config, quiet: Duration, limit: Option<Duration>) -> Result<(), String> {
    start(&config);
    let broker = config.broker.clone();
    let gateway = Gateway::bind_draining(config).await.map_err(|error| error.to_string())?;
    let (drained, metrics) = (gateway.drained(quiet), gateway.metrics());
    let mut late = false;
    let done = async {
        match limit {
            None => drained.await,
            Some(limit) => late = tokio::time::timeout(limit, drained).await.is_err(),
        }
    };
    match Box::pin(live(gateway, done)).await? {
        End::Done if late => Err("not drained in time; the session is still there".to_owned()),
        End::Done if metrics.progress().0 > 0 => {
            Err("messages came at the last moment; the session is still there, drain again"
                .to_owned())
        }
        End::Told => {
            Err("told to stop before it was drained; the session is still there".to_owned())
        }
        End::Done => {
            mqtt::end_session(&broker).await?;
            tracing::info!(client_id = &*broker.client_id, "drained; the session is ended");
            Ok(())
        }
    }
}

fn start(config: &Config) {
    telemetry::install(&config.log);
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"), broker = %config.broker.address,
        upstream = %config.upstream.url, routes = config.table.routes.len(), "starting"
    );
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
}

/// Why a gateway ended well.
enum End {
    /// A signal.
    Told,
    /// There was nothing left to do.
    Done,
}

/// Runs the gateway until a signal, or until it is done.
async fn live(gateway: Gateway, done: impl Future<Output = ()>) -> Result<End, String> {
    if let Some(address) = gateway.admin_address() {
        tracing::info!(%address, "admin endpoint");
    }
    let unusable = |error: io::Error| format!("signals cannot be caught: {error}");
    let mut terminate = signal(SignalKind::terminate()).map_err(unusable)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(unusable)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(unusable)?;
    // It asks many a daemon to read its files again; unheard it would end the process at once.
    let deaf = async move {
        while hangup.recv().await.is_some() {
            tracing::warn!(
                "SIGHUP is ignored: the configuration is read at start; restart instead"
            );
        }
        std::future::pending::<()>().await;
    };
    let (told, stop) = tokio::sync::oneshot::channel::<()>();
    let again = async move {
        let mut wait = async || {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        wait().await;
        // The receiver is gone only when the gateway has ended.
        let _ = told.send(());
        wait().await;
    };
    let mut end = End::Done;
    let shutdown = async {
        tokio::select! {
            _ = stop => end = End::Told,
            () = done => {}
        }
    };
    let stopped = tokio::select! {
        stopped = gateway.run(shutdown) => stopped,
        () = deaf => Stopped::Failed,
        () = again => {
            return Err("told to stop a second time; what was unfinished comes back".to_owned());
        }
    };
    match stopped {
        Stopped::Clean => Ok(end),
        Stopped::GraceRanOut => Err("the grace ran out; what was unfinished comes back".to_owned()),
        Stopped::Contested => Err(
            "another client uses this client id: it is not gone; stop it first. Nothing is ended"
                .to_owned(),
        ),
        Stopped::Failed => Err("a defect ended it; what was unfinished comes back".to_owned()),
    }
}

async fn check(config: &Config, file: Option<&Path>, connect: bool) -> Result<(), String> {
    let table = &config.table;
    let source =
        file.map_or("the compiled-in configuration".to_owned(), |file| file.display().to_string());
    print(&format!(
        "{source} is valid: {} routes, {} fetches",
        table.routes.len(),
        table.fetches.len()
    ))?;
    for warning in config.warnings() {
        print(&format!("warning: {warning}"))?;
    }
    if !connect {
        return Ok(());
    }
    let patterns = config.subscriptions().patterns;
    let (broker, upstream) =
        tokio::join!(mqtt::probe(&config.broker, &patterns), upstream::probe(&config.upstream));
    let mut bad = Vec::new();
    for (name, result) in [("broker", broker), ("upstream", upstream)] {
        match result {
            Ok(report) => print(&format!("{name}: {report}"))?,
            Err(trouble) => bad.push(format!("{name}: {trouble}")),
        }
    }
    if bad.is_empty() { Ok(()) } else { Err(bad.join("\n")) }
}

impl Explain {
    fn message(self) -> Result<Message, String> {
        let payload = match &self.payload {
            None => Vec::new(),
            Some(file) if file.as_os_str() == "-" => {
                let mut payload = Vec::new();
                io::stdin()
                    .read_to_end(&mut payload)
                    .map_err(|error| format!("standard input: {error}"))?;
                payload
            }
            Some(file) => fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?,
        };
        Ok(Message {
            topic: self.topic,
            payload: Bytes::from(payload),
            properties: Properties {
                user: self.property,
                response_topic: self.response_topic,
                ..Properties::default()
            },
            received_at: SystemTime::now(),
            arrived: Instant::now(),
        })
    }
}

/// Prints to standard output. A reader that went away is not an error worth a panic.
fn print(text: &str) -> Result<(), String> {
    writeln!(io::stdout(), "{}", text.trim_end())
        .map_err(|error| format!("standard output: {error}"))
}

/// Prints to standard error.
fn complain(trouble: &dyn std::fmt::Display) {
    // Where nothing can be said, nothing can be said about it either.
    let _ = writeln!(io::stderr(), "mqtt-rest-gateway: {trouble}");
}
