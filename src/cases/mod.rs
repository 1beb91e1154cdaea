//! Cases of a table, played offline: a message, the calls that must come of it and what the API answers to each, then what
//! must be published and how the message must end. The exchange, the table and the upstream are those that run in the
//! gateway; only the API and the broker stand in this process, and time passes as it is needed.

mod api;
mod compare;
mod content;
mod file;
mod play;
mod report;
mod schema;

use std::{
    collections::BTreeSet,
    io,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderName, StatusCode};

use self::{compare::Difference, content::Content};
pub(crate) use self::{file::read, schema::SCHEMA};
use crate::{
    config::{Config, Mistakes},
    message::Properties,
    upstream::ClientError,
};

/// A case: messages in sequence, of devices that nothing is known of at first.
#[derive(Debug)]
pub(crate) struct Case {
    /// What it shows.
    pub(crate) name: String,
    /// The line that it begins in.
    pub(crate) line: usize,
    /// What time it is at its beginning.
    at: SystemTime,
    steps: Vec<Step>,
}

/// One message or one run of a fetch, and what must come of it. What is `None` is not looked at.
#[derive(Debug)]
struct Step {
    line: usize,
    /// How much time passes before.
    after: Duration,
    input: Input,
    /// All calls, in order.
    calls: Option<Vec<Exchanged>>,
    /// All pushes, in order.
    pushes: Option<Vec<Published>>,
    /// The reply; empty: there is none.
    reply: Option<Vec<Published>>,
    /// The dead letter; empty: there is none.
    dead_letter: Option<Vec<Published>>,
    /// How it ends, in a word.
    outcome: Option<String>,
}

/// What begins a step.
#[derive(Debug)]
enum Input {
    /// A device sends a message.
    Message { topic: String, payload: Bytes, properties: Properties },
    /// The time has come for a fetch that runs by itself; its name.
    Fetch(String),
}

/// A call that must be made, and what the API answers.
#[derive(Debug, Default, Clone)]
struct Exchanged {
    /// Method and path.
    call: Option<String>,
    /// Headers; an empty value: there is no such header.
    headers: Vec<(HeaderName, String)>,
    body: Option<Content>,
    answer: Answer,
}

/// What the API does with a call.
#[derive(Debug, Clone)]
enum Answer {
    /// It answers.
    Answers { status: StatusCode, headers: Vec<(HeaderName, String)>, body: Content },
    /// It does not.
    Fails(Fails),
}

/// How the API fails to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fails {
    /// The connection is refused.
    Unreachable,
    /// The connection is closed before the answer.
    Broken,
    /// The answer does not come.
    Hangs,
}

impl Fails {
    const WORDS: [(&str, Self); 3] =
        [("unreachable", Self::Unreachable), ("broken", Self::Broken), ("hangs", Self::Hangs)];
}

/// What must be published. What is `None` is not looked at.
#[derive(Debug, Default, Clone)]
struct Published {
    topic: Option<String>,
    payload: Option<Content>,
    correlation: Option<String>,
    response_topic: Option<String>,
    content_type: Option<String>,
    retain: Option<bool>,
    /// User properties; an empty value: there is no such property.
    properties: Vec<(String, String)>,
}

/// What became of one case.
#[derive(Debug)]
pub(crate) struct Played {
    name: String,
    line: usize,
    differences: Vec<Difference>,
    /// What the gateway would have written to its log for the messages with differences.
    log: String,
}

/// What became of one file of cases.
#[derive(Debug)]
pub(crate) struct PlayedFile {
    file: PathBuf,
    cases: Vec<Played>,
    /// Rows of the table that no message of a case has come to.
    untried: Vec<String>,
}

impl PlayedFile {
    fn failed(&self) -> usize {
        self.cases.iter().filter(|case| !case.differences.is_empty()).count()
    }
}

/// Why a file of cases cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CasesError {
    /// The file cannot be read.
    #[error("{}: {error}", .file.display())]
    Unreadable { file: PathBuf, error: io::Error },
    /// Its text is wrong.
    #[error("{0}")]
    Mistakes(Mistakes),
}

/// Plays all cases of a file against this table.
///
/// # Errors
/// [`ClientError`] when the table's upstream cannot be set up.
pub(crate) async fn play(
    file: PathBuf,
    cases: &[Case],
    config: &Config,
) -> Result<PlayedFile, ClientError> {
    let mut tried = BTreeSet::new();
    let mut played = Vec::new();
    for case in cases {
        played.push(play::case(case, config, &mut tried).await?);
    }
    let rows = config.table.routes.iter().map(|route| route.name.to_string());
    let untried = rows.filter(|name| !tried.contains(name)).collect();
    Ok(PlayedFile { file, cases: played, untried })
}

/// Whether every case has ended as it says, and what is told about it: for people, or for programs.
pub(crate) fn report(files: &[PlayedFile], json: bool) -> (bool, String) {
    let good = files.iter().all(|file| file.failed() == 0);
    (good, if json { report::json(files) } else { report::text(files) })
}
