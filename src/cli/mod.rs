//! The command line: what each command does, and with which exit code it ends.

mod check;
mod error;
mod explain;
mod health;
mod help;
mod man;
mod test;
mod top;

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use tokio::signal::unix::{SignalKind, signal};

use self::error::CommandError;
use crate::{
    cases,
    config::{self, Config, SHIPPED},
    gateway::{Gateway, Stopped},
    log::{self, printable},
    mqtt, replay,
    table::describe,
    version,
};

/// Forwards messages of MQTT devices to a REST API and publishes the answers.
#[derive(Debug, Parser)]
#[command(version, long_version = version::LONG, about, after_long_help = help::after())]
pub struct Cli {
    /// Configuration file; without it the compiled-in config.toml is in force.
    #[arg(long, global = true, env = "GATEWAY_CONFIG", value_name = "FILE", value_parser = file)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway. The same as no command.
    Run,
    /// Report every mistake in the configuration; exit code 78 if there is one.
    Check(check::Arguments),
    /// Publish dead letters again as the messages that they were, one by one, in order, for the running gateway. The
    /// first run only subscribes to them: from then on the broker keeps them for the next one.
    Replay(replay::Arguments),
    /// Print the table in force.
    Routes {
        /// Print it as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print the request that a message would cause and where its answers would go, or why it would be refused. Sends
    /// nothing, reads no secret, shows no key. Exit code 3 if the message would be refused.
    Explain(explain::Arguments),
    /// Play cases of the table: messages, the calls that must come of them and what the API answers, and what must be
    /// published. Connects to nothing, reads no secret. Exit code 1 if a case does not end as it says.
    Test(test::Arguments),
    /// Show how a running gateway stands: broker, API, rows, what waits, and the last failures, each with what to do about
    /// it. The page at `/` of the admin endpoint shows the same.
    Top(top::Arguments),
    /// Print the shipped configuration file, to begin one's own with.
    Config {
        /// Print what is in force instead: file, environment and defaults in one, and where each value comes from.
        /// Secrets are left out.
        #[arg(long)]
        effective: bool,
    },
    /// Deliver what the broker still holds for this client id, accept nothing new, and end the session: for a
    /// gateway, or one of its replicas, that is gone for good.
    Drain {
        /// End the session after this time without a message.
        #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
        quiet: Duration,
        /// Give up after this time. The session then still exists.
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        timeout: Option<Duration>,
    },
    /// Ask a running gateway whether it lives; exit code 1 if not. For health checks of images, which have no shell.
    Health(health::Arguments),
    /// Print the JSON Schema of the configuration, for editors. With `#:schema ./FILE` as the first line of a configuration
    /// they complete its keys, say what each means and mark what is wrong.
    Schema {
        /// Print that of files of cases instead, which `test` plays.
        #[arg(long)]
        cases: bool,
    },
    /// Print a script that completes commands and options in a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Print the manual page, for `man -l -`.
    Man,
}

/// A file's name, which may be empty: `GATEWAY_CONFIG=` in an environment means no file.
#[expect(clippy::unnecessary_wraps, reason = "the form that the library asks for")]
fn file(text: &str) -> Result<PathBuf, String> {
    Ok(text.into())
}

/// Runs the command line to its end.
pub fn main(cli: Cli) -> ExitCode {
    let env: BTreeMap<String, String> = std::env::vars().collect();
    let file = cli.config.as_deref().filter(|file| !file.as_os_str().is_empty());
    match execute(cli.command.unwrap_or(Command::Run), file, &env) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}

fn execute(
    command: Command,
    file: Option<&Path>,
    env: &BTreeMap<String, String>,
) -> Result<(), CommandError> {
    // One thread: what a message costs is little work and many handovers, and those are cheap as long as
    // nobody has to be woken on another core (bench/RESULTS.md has the figures).
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().start_paused(matches!(command, Command::Test(_))).build();
    let runtime = runtime.map_err(CommandError::Runtime)?;
    let config = || Config::load(file, env);
    let without_secrets = || Config::load_without_secrets(file, env);
    match command {
        Command::Run => runtime.block_on(run(config()?))?,
        Command::Drain { quiet, timeout } => runtime.block_on(drain(config()?, quiet, timeout))?,
        Command::Check(arguments) => {
            runtime.block_on(check::check(&arguments, file, config()))?;
        }
        Command::Replay(arguments) => {
            let config = config()?;
            log::install(&config.log);
            runtime.block_on(replay::replay(config, arguments))?;
        }
        Command::Routes { json } => {
            let table = without_secrets()?.table;
            print(&if json { describe::table_json(&table) } else { describe::table(&table) })?;
        }
        Command::Explain(arguments) => {
            let explained = explain::message(&without_secrets()?, &arguments.message()?);
            // Its text may come from a stranger's message.
            print(&printable::lines(&explained.text))?;
            if explained.is_refused {
                return Err(CommandError::Printed(help::REFUSED));
            }
        }
        Command::Config { effective: false } => print(SHIPPED)?,
        Command::Config { effective: true } => print(&config::effective(file, env)?)?,
        Command::Health(arguments) => {
            runtime.block_on(health::health(arguments, without_secrets))?;
        }
        Command::Schema { cases: false } => print(&config::schema())?,
        Command::Schema { cases: true } => print(cases::SCHEMA)?,
        Command::Completions { shell } => print(&man::completions(Cli::command(), shell))?,
        Command::Man => print(&man::page(Cli::command())?)?,
        Command::Top(arguments) => runtime.block_on(top::top(arguments, without_secrets))?,
        Command::Test(arguments) => runtime.block_on(test::test(&arguments, file, env))?,
    }
    Ok(())
}

async fn run(config: Config) -> Result<(), CommandError> {
    start(&config);
    let gateway = Gateway::bind(config).await?;
    Box::pin(run_until_signal(gateway, std::future::pending())).await.map(|_end| ())
}

async fn drain(
    config: Config,
    quiet: Duration,
    limit: Option<Duration>,
) -> Result<(), CommandError> {
    start(&config);
    let broker = config.broker.clone();
    let gateway = Gateway::bind_draining(config).await?;
    let (drained, metrics) = (gateway.drained(quiet), gateway.metrics());
    let mut timed_out = false;
    let done = async {
        match limit {
            None => drained.await,
            Some(limit) => timed_out = tokio::time::timeout(limit, drained).await.is_err(),
        }
    };
    match Box::pin(run_until_signal(gateway, done)).await? {
        End::Done if timed_out => Err(CommandError::DrainTimedOut),
        End::Done if metrics.progress().0 > 0 => Err(CommandError::LateMessages),
        End::Signal => Err(CommandError::DrainStopped),
        End::Done => {
            mqtt::end_session(&broker).await?;
            tracing::info!(client_id = &*broker.client_id, "drained; the session is ended");
            Ok(())
        }
    }
}

fn start(config: &Config) {
    log::install(&config.log);
    tracing::info!(
        version = version::LONG, broker = %config.broker.address,
        upstream = %config.upstream.url, routes = config.table.routes.len(), "starting"
    );
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
}

/// Why a gateway ended without an error.
enum End {
    /// A signal.
    Signal,
    /// It was done.
    Done,
}

/// Runs the gateway until a signal, or until it is done.
async fn run_until_signal(
    gateway: Gateway,
    done: impl Future<Output = ()>,
) -> Result<End, CommandError> {
    if let Some(address) = gateway.admin_address() {
        tracing::info!(%address, "admin endpoint");
    }
    let mut terminate = signal(SignalKind::terminate()).map_err(CommandError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(CommandError::Signals)?;
    // SIGHUP asks many a daemon to read its files again; not caught, it would end the process at once.
    let hangups = signal(SignalKind::hangup()).map_err(CommandError::Signals)?;
    let renewal = gateway.renewal().run(hangups);
    let (stop, stopped_by_signal) = tokio::sync::oneshot::channel::<()>();
    let second_signal = async move {
        let mut wait = async || {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        wait().await;
        // The receiver is gone only when the gateway has ended.
        let _ = stop.send(());
        wait().await;
    };
    let mut end = End::Done;
    let shutdown = async {
        tokio::select! {
            _ = stopped_by_signal => end = End::Signal,
            () = done => {}
        }
    };
    let stopped = tokio::select! {
        stopped = gateway.run(shutdown) => stopped,
        () = renewal => Stopped::Failed,
        () = second_signal => return Err(CommandError::SecondSignal),
    };
    match stopped {
        Stopped::Clean => Ok(end),
        Stopped::GraceRanOut => Err(CommandError::GraceRanOut),
        Stopped::SessionInUse => Err(CommandError::SessionInUse),
        Stopped::Failed => Err(CommandError::Defect),
    }
}

/// Prints to standard output. A reader that went away is not an error worth a panic.
fn print(text: &str) -> Result<(), CommandError> {
    writeln!(io::stdout(), "{}", text.trim_end()).map_err(CommandError::Output)
}
