//! Is the gateway ready, and if not, why not: told from progress, not from being alive.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use crate::{
    metrics::Metrics,
    mqtt::Status,
    upstream::{Outage, Upstream},
};

/// What readiness is made of.
pub struct Health {
    broker: watch::Receiver<Status>,
    upstream: Upstream,
    metrics: Arc<Metrics>,
    /// Messages that are held without one being settled for so long are not making progress.
    patience: Duration,
    started: Instant,
    stopping: AtomicBool,
}

impl Health {
    /// Watches the broker's connection and the metrics' progress.
    pub fn new(
        broker: watch::Receiver<Status>,
        upstream: Upstream,
        metrics: Arc<Metrics>,
        patience: Duration,
    ) -> Self {
        Self {
            broker,
            upstream,
            metrics,
            patience,
            started: Instant::now(),
            stopping: AtomicBool::new(false),
        }
    }

    /// The gateway has been told to stop.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Why the gateway is not ready; empty when it is.
    pub fn unready(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.stopping.load(Ordering::Relaxed) {
            reasons.push("stopping".to_owned());
        }
        match &*self.broker.borrow() {
            Status::Subscribed => {}
            Status::Draining => reasons.push("draining: nothing new is taken".to_owned()),
            Status::NoSession => reasons.push("draining: there was no session".to_owned()),
            Status::Connected => reasons.push("broker: subscriptions not confirmed yet".to_owned()),
            Status::Down(trouble) => reasons.push(format!("broker: not connected: {trouble}")),
            Status::Refused(filters) => {
                reasons.push(format!("broker: subscriptions refused: {}", filters.join(", ")));
            }
            Status::Ended => reasons.push("broker: disconnected".to_owned()),
        }
        let (pending, since) = self.metrics.progress();
        let since = since.unwrap_or_else(|| self.started.elapsed());
        if let Some(Outage { since, sign }) = self.upstream.outage() {
            let seconds = since.elapsed().as_secs();
            reasons.push(format!(
                "upstream: down for {seconds} s, {pending} messages held, trying again: {sign}"
            ));
        } else if pending > 0 && since > self.patience {
            let seconds = since.as_secs();
            reasons
                .push(format!("upstream: {pending} messages held, none settled for {seconds} s"));
        }
        reasons
    }
}
