//! The program: arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    mqtt_rest_gateway::cli::main(mqtt_rest_gateway::cli::Cli::parse())
}
