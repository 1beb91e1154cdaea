//! Why a command does not succeed, and the exit code that says so.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use crate::{
    config::ConfigError, gateway::StartError, mqtt::OneOffError, replay::ReplayError,
    upstream::ClientError,
};

/// Exit code for a configuration that cannot be used, `EX_CONFIG` of sysexits.
pub(super) const BAD_CONFIGURATION: u8 = 78;
/// Exit code for everything that has none of its own.
pub(super) const FAILED: u8 = 1;

/// Why a command does not succeed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommandError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Files of cases, or the tables that they name, cannot be used: a line for each mistake.
    #[error("{}", .0.join("\n"))]
    Cases(Vec<String>),
    /// `replay`.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// `test`: the upstream of a table cannot be set up.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Tokio.
    #[error("the runtime cannot start: {0}")]
    Runtime(io::Error),
    /// SIGTERM, SIGINT and SIGHUP.
    #[error("signals cannot be caught: {0}")]
    Signals(io::Error),
    /// A pipe whose reader went away, for example.
    #[error("standard output: {0}")]
    Output(io::Error),
    /// The gateway cannot start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// `run`, `drain`: a second signal came before the gateway had stopped.
    #[error("stopped at once by a second signal; unfinished messages stay with the broker")]
    SecondSignal,
    /// `run`, `drain`.
    #[error("the grace ran out; unfinished messages stay with the broker")]
    GraceRanOut,
    /// `drain`.
    #[error("another client uses this client id; stop it first. The session was left to it")]
    SessionInUse,
    /// `run`, `drain`: the connection task ended by itself.
    #[error("ended by a defect of the gateway; unfinished messages stay with the broker")]
    Defect,
    /// `drain --timeout`.
    #[error("not drained in time: the session still exists")]
    DrainTimedOut,
    /// `drain`: a signal came first.
    #[error("stopped before the session was drained: it still exists; run `drain` again")]
    DrainStopped,
    /// `drain`.
    #[error("messages arrived at the last moment: the session still exists; run `drain` again")]
    LateMessages,
    /// `check --connect`: a line for each side that was not reached.
    #[error("{}", .0.join("\n"))]
    Unreached(Vec<String>),
    /// `drain`: the session cannot be ended.
    #[error(transparent)]
    EndSession(#[from] OneOffError),
    /// A sentence of the part that failed.
    #[error("{0}")]
    Other(String),
    /// What the command has printed says why; only the exit code is left to say.
    #[error("exit code {0}")]
    Printed(u8),
}

impl From<String> for CommandError {
    fn from(sentence: String) -> Self {
        Self::Other(sentence)
    }
}

impl CommandError {
    /// Prints it to standard error, and returns the exit code.
    pub(super) fn report(&self) -> ExitCode {
        // An error that cannot be written cannot be reported either.
        let _ = match self {
            // Every line names its file already.
            Self::Config(_) | Self::Cases(_) => writeln!(io::stderr(), "{self}"),
            Self::Printed(_) => Ok(()),
            _ => writeln!(io::stderr(), "mqtt-rest-gateway: {self}"),
        };
        match self {
            Self::Config(_) | Self::Cases(_) => BAD_CONFIGURATION.into(),
            Self::Printed(code) => (*code).into(),
            _ => FAILED.into(),
        }
    }
}
