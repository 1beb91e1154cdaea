//! How long the broker waits for PUBACKs, by row.

use std::{sync::Arc, time::Duration};

use prometheus_client::metrics::{family::Family, histogram::Histogram};

use super::{Register, labels::RouteLabel, messages};
use crate::topic::PatternIndex;

/// The series of all rows, from which each session takes those of its own.
#[derive(Debug)]
pub(super) struct Waits(Family<RouteLabel, Histogram, fn() -> Histogram>);

impl Waits {
    pub(super) fn new(all: &mut Register<'_>) -> Self {
        let seconds = Family::new_with_constructor(messages::seconds as fn() -> _);
        let help = "Time from a PUBLISH of the broker to its PUBACK, by row";
        Self(all.put("acknowledgement_duration_seconds", help, seconds))
    }

    pub(super) fn of(&self, route: &Arc<str>) -> Histogram {
        self.0.get_or_create_owned(&RouteLabel { route: route.clone() })
    }
}

/// The series of one session: those of its subscriptions in their order, and at the end that of a message of none. Without
/// any, nothing is counted.
#[derive(Debug)]
pub(crate) struct Acknowledgements(pub(super) Vec<Histogram>);

impl Acknowledgements {
    /// A PUBACK, or PUBREC, is written, this long after its PUBLISH came.
    pub(crate) fn written(&self, subscription: Option<PatternIndex>, waited: Duration) {
        let row = subscription.and_then(|PatternIndex(row)| self.0.get(row));
        if let Some(seconds) = row.or(self.0.last()) {
            seconds.observe(waited.as_secs_f64());
        }
    }
}
