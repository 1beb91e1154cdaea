//! How fast is the gateway? `cargo run --release -p bench` builds it, runs everything on loopback, and prints
//! every figure beside the least possible bridge's, measured in the same run; with `--peers`, beside what else people use.
//!
//! The machine is shared: single figures vary, ratios of neighbours less. Every pair is measured several
//! times, in turn; the medians stand in the table.

#![expect(clippy::print_stdout, reason = "this is what it is for")]
#![expect(unreachable_pub, reason = "a program: nothing is reachable from outside")]
#![expect(clippy::cast_precision_loss, reason = "figures are read by people")]

mod account;
mod api;
mod bridge;
mod costs;
mod devices;
mod install;
mod peers;
mod picture;
mod post;
mod process;
mod protocol;
mod protocols;
mod report;
mod results;
mod scale;
mod scenarios;
mod subject;
mod train;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};
use tokio::runtime;

use crate::protocol::Protocol;

#[derive(Parser)]
#[command(about = "Measures the gateway against the least possible bridge")]
#[expect(clippy::struct_excessive_bools, reason = "each is an option of the command line")]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// How often each pair is measured.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Only the scenarios whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Measure beside what else people use, and who loses, repeats or reorders messages. Installs it, with npm.
    #[arg(long)]
    peers: bool,
    /// Measure how it grows: with devices, rows, payloads, a slower API, a backlog.
    #[arg(long)]
    scale: bool,
    /// Measure what a message costs over HTTP/1.1 and HTTP/2, with TLS and without.
    #[arg(long)]
    protocols: bool,
    /// Measure where the CPU goes: instructions and system calls of one message. Needs valgrind, perf, and to be root.
    #[arg(long)]
    costs: bool,
    /// Measure nothing: do work by which a compiler can tell which code is hot. `deploy/optimized` calls it.
    #[arg(long)]
    train: bool,
    /// Write the table to bench/RESULTS.md and the picture to bench/results.svg, peers.svg or scale.svg, as well.
    #[arg(long)]
    record: bool,
}

/// What the processes beside the measured one are.
#[derive(Subcommand)]
enum Command {
    #[command(hide = true)]
    Api {
        #[arg(long)]
        delay_ms: u64,
        /// One request at a time.
        #[arg(long)]
        serial: bool,
        #[arg(long, value_enum)]
        protocol: Protocol,
        /// Where its certificate is written.
        #[arg(long)]
        certificate: PathBuf,
    },
    #[command(hide = true)]
    Bridge {
        broker: u16,
        api: u16,
        #[arg(long)]
        one_thread: bool,
        #[arg(long)]
        batch: bool,
    },
    #[command(hide = true)]
    Post { api: u16, messages: u64, devices: u64 },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Needed to build a client, also for one that never speaks TLS. It fails where one is installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut runtime = match arguments.command {
        Some(Command::Bridge { one_thread: true, .. }) => runtime::Builder::new_current_thread(),
        _ => runtime::Builder::new_multi_thread(),
    };
    let result = runtime.enable_all().build().map_err(|error| error.to_string());
    match result.and_then(|runtime| runtime.block_on(run(arguments))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => {
            println!("{trouble}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), String> {
    let Arguments { command, rounds, only, peers, scale, protocols, costs, train, record } =
        arguments;
    match command {
        Some(Command::Api { delay_ms, serial, protocol, certificate }) => {
            let delay = Duration::from_millis(delay_ms);
            let served = api::serve(delay, serial, protocol, &certificate).await;
            served.map_err(|error| error.to_string())
        }
        Some(Command::Bridge { broker, api, batch, .. }) => bridge::run(broker, api, batch).await,
        Some(Command::Post { api, messages, devices }) => post::run(api, messages, devices).await,
        None if peers => peers::run(rounds, &only, record).await,
        None if scale => scale::run(rounds, &only, record).await,
        None if protocols => protocols::run(rounds, &only, record).await,
        None if train => train::run().await,
        None if costs => costs::run(record).await,
        None => report::run(rounds, &only, record).await,
    }
}
