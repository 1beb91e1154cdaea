//! The metrics that a configuration brings with it: whatever they will be called is known at start.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::SystemTime,
};

use super::Config;
use crate::{
    exchange::Outcome,
    failure::FailureKind,
    metrics::{Known, Readings, SideLabel},
    mqtt::CONNECTION_FAILURES,
};

impl Config {
    /// Says where those figures are read that the configuration has; `window` is how many messages may be pending.
    pub(crate) fn give_readings(&self, readings: &Readings, window: Arc<AtomicUsize>) {
        readings.pending_limit.is(move || window.load(Ordering::Relaxed));
        let most = self.broker.max_pending_bytes;
        readings.pending_bytes_limit.is(move || most);
        for (side, tls) in [("broker", &self.broker.tls), ("upstream", &self.upstream.tls)] {
            let tls = tls.clone();
            let seconds = move || {
                let end = tls.not_after()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
                usize::try_from(end.as_secs()).ok()
            };
            // Without a certificate of ours there is no end of one.
            if seconds().is_some() {
                let end = readings.certificates.get_or_create_owned(&SideLabel { side });
                end.is(move || seconds().unwrap_or_default());
            }
        }
    }

    /// The series that begin at 0.
    pub fn known_series(&self) -> Known {
        let (routes, fetches) = (&self.table.routes, &self.table.fetches);
        let calling = routes.iter().filter(|route| route.call.is_some()).map(|route| &route.name);
        let fetching = fetches.iter().filter(|fetch| fetch.call.is_some()).map(|fetch| &fetch.name);
        let batches = routes.iter().filter(|route| route.batch.is_some());
        let keys = self.exchange.keys.as_ref().map(|_| Arc::from("keys_file"));
        let has_letters = self.exchange.dead_letter.is_some();
        Known {
            routes: self.table.names().cloned().collect(),
            callers: calling.chain(fetching).cloned().collect(),
            batches: batches.map(|route| route.name.clone()).collect(),
            fetches: fetches.iter().map(|fetch| fetch.name.clone()).collect(),
            secrets: self.upstream.secrets.files().cloned().chain(keys).collect(),
            outcomes: Outcome::codes(),
            letters: if has_letters { Outcome::letter_codes() } else { Vec::new() },
            attempts: &FailureKind::ATTEMPTS,
            connection_failures: &CONNECTION_FAILURES,
        }
    }
}
