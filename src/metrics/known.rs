//! What is known of the series at start, so that they begin at 0: Prometheus sees no increase in a counter that is born
//! with its first event.

use std::sync::Arc;

/// The names and words that the labels will have, as far as the configuration and the code decide them.
#[derive(Debug, Default)]
pub struct Known {
    /// Rows, and what stands for a message of none.
    pub routes: Vec<Arc<str>>,
    /// Rows and fetches that make calls.
    pub callers: Vec<Arc<str>>,
    /// Rows whose calls may travel together.
    pub batches: Vec<Arc<str>>,
    /// Fetches.
    pub fetches: Vec<Arc<str>>,
    /// Secrets that are read from files.
    pub secrets: Vec<Arc<str>>,
    /// How messages end; the most frequent word first.
    pub outcomes: Vec<&'static str>,
    /// The reasons that dead letters have; none if there are none.
    pub letters: Vec<&'static str>,
    /// How attempts fail.
    pub attempts: &'static [&'static str],
    /// Why a connection to the broker fails or ends.
    pub connection_failures: &'static [&'static str],
}
