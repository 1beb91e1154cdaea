//! Why dead letters are not replayed.

use std::{io, path::PathBuf, sync::Arc};

use crate::{
    mqtt::{ConnectionSetupError, Status},
    secrets::password::PasswordError,
};

/// Why a replay does not succeed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReplayError {
    /// The arguments name the gateway's own client identifier.
    #[error("--client-id: the gateway's own session would be taken from it")]
    OwnSession,
    /// The configuration has no topic for dead letters.
    #[error("[dead_letter] topic: none is set, so nothing is kept")]
    NothingKept,
    /// The topic of letters or answers cannot be subscribed to.
    #[error("`{topic}`: {trouble}")]
    Topic { topic: String, trouble: String },
    /// The file has no password.
    #[error("--password-file {}: {error}", .file.display())]
    Password { file: PathBuf, error: PasswordError },
    /// The file with keys cannot be read.
    #[error("{}: {error}", .file.display())]
    Unreadable { file: PathBuf, error: io::Error },
    /// A line of it is none. Does not show it: it may hold a key.
    #[error("{}: line {line}: write `device,key`", .file.display())]
    NoKeys { file: PathBuf, line: usize },
    /// The connection cannot be set up.
    #[error(transparent)]
    Connection(#[from] ConnectionSetupError),
    /// The broker is not reached, or does not let them be read.
    #[error("the letters of {client_id} cannot be read: {status:?}")]
    Unread { client_id: Arc<str>, status: Status },
    /// Some are still there.
    #[error("{0} letters remain, and those behind them that the broker has not sent")]
    Remain(usize),
    /// A pipe whose reader went away, for example.
    #[error("standard output: {0}")]
    Output(io::Error),
}

/// Why a letter cannot be sent.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unsendable {
    #[error("this is no dead letter")]
    OtherMessage,
    #[error("its payload was too large for the broker and is not there")]
    PayloadCut,
    #[error("no row listens on its topic, or the topic was cut")]
    UnknownTopic,
    #[error("letters hold no keys: name the device's in the file for --keys")]
    KeyMissing,
    #[error("its row has no place for an answer")]
    AnswerImpossible,
}
