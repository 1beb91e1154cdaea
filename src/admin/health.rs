//! Whether the gateway is ready, and why it is not. A process that lives but settles no messages is not ready.

mod reminder;
#[cfg(test)]
mod tests;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

pub(crate) use self::reminder::remind;
use crate::{
    metrics::Metrics,
    mqtt::Status,
    shares::Window,
    upstream::{Outage, Upstream},
};

/// Everything that readiness depends on.
pub(crate) struct Health {
    broker: watch::Receiver<Status>,
    upstream: Upstream,
    metrics: Arc<Metrics>,
    /// When messages are pending and none was settled for this time, the gateway counts as stuck.
    patience: Duration,
    /// How many messages may be pending.
    receive_window: Arc<AtomicUsize>,
    /// How many bytes of payload may be pending.
    max_pending_bytes: usize,
    started: Instant,
    stopping: AtomicBool,
}

impl Health {
    /// Reads the connection's status from `broker`, and the progress of messages from `metrics`.
    pub(crate) fn new(
        broker: watch::Receiver<Status>,
        upstream: Upstream,
        metrics: Arc<Metrics>,
        patience: Duration,
        receive_window: Arc<AtomicUsize>,
        max_pending_bytes: usize,
    ) -> Self {
        Self {
            broker,
            upstream,
            metrics,
            patience,
            receive_window,
            max_pending_bytes,
            started: Instant::now(),
            stopping: AtomicBool::new(false),
        }
    }

    /// The gateway has been told to stop.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    fn window(&self) -> Window {
        let messages = self.receive_window.load(Ordering::Relaxed);
        Window { messages, bytes: self.max_pending_bytes }
    }

    /// Why the gateway is not ready; empty when it is.
    pub(crate) fn unready(&self) -> Vec<String> {
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
        let outages = self.upstream.outages();
        for Outage { row, since, sign } in &outages {
            let seconds = since.elapsed().as_secs();
            reasons.push(format!(
                "upstream: down for {seconds} s for row `{row}`, {pending} messages held, trying again: {sign}"
            ));
        }
        if let Some(fault) = self.upstream.local_fault() {
            reasons.push(format!("this machine: cannot make calls: {fault}"));
        }
        if outages.is_empty() && pending > 0 && since > self.patience {
            let seconds = since.as_secs();
            reasons
                .push(format!("upstream: {pending} messages held, none settled for {seconds} s"));
        }
        let shares = self.metrics.shares();
        if let Some((device, held)) = shares.largest()
            && let Some(over) =
                shares.over_share(&device, self.window(), self.upstream.answering_time())
            && held * 2 > self.window().messages
        {
            let (all, stuck) = (self.window().messages, over.stuck.as_secs());
            reasons.push(format!(
                "window: device {device:?} holds {held} of {all} messages that may be pending, none done for {stuck} s"
            ));
        }
        reasons
    }
}
