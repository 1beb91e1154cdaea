//! A gauge that is read when it is scraped: what it shows costs nothing in between.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder},
    metrics::{MetricType, TypedMetric},
};

/// Clones read the same. It is 0 until it is said where to read.
#[derive(Clone, Default)]
pub(crate) struct Reading(Arc<OnceLock<Box<dyn Fn() -> usize + Send + Sync>>>);

impl Reading {
    /// From now on it is read here; what is said later changes nothing.
    pub(crate) fn is(&self, read: impl Fn() -> usize + Send + Sync + 'static) {
        // One place says it, once.
        let _ = self.0.set(Box::new(read));
    }

    /// What it shows now.
    pub(crate) fn now(&self) -> usize {
        self.0.get().map_or(0, |read| read())
    }
}

impl fmt::Debug for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reading({})", self.now())
    }
}

impl TypedMetric for Reading {
    const TYPE: MetricType = MetricType::Gauge;
}

impl EncodeMetric for Reading {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_gauge(&i64::try_from(self.now()).unwrap_or(i64::MAX))
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}
