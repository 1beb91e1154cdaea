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

use serde::Serialize;
use tokio::{sync::watch, time::Instant};

pub(crate) use self::reminder::remind;
use crate::{
    metrics::Metrics,
    mqtt::Status,
    shares::Window,
    upstream::{Outage, Upstream},
};

/// Why the gateway is not ready.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Reason {
    /// The reason, in a sentence.
    pub(crate) text: String,
    /// What the operator can do about it; empty if nothing.
    pub(crate) remedy: &'static str,
}

impl Reason {
    fn new(text: impl Into<String>, remedy: &'static str) -> Self {
        Self { text: text.into(), remedy }
    }
}

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

    /// How much may be pending.
    pub(super) fn window(&self) -> Window {
        let messages = self.receive_window.load(Ordering::Relaxed);
        Window { messages, bytes: self.max_pending_bytes }
    }

    /// How long the gateway has run.
    pub(super) fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// The rows that are down.
    pub(super) fn outages(&self) -> Vec<Outage> {
        self.upstream.outages()
    }

    /// Why the gateway is not ready; empty when it is.
    pub(crate) fn unready(&self) -> Vec<Reason> {
        let mut reasons = Vec::new();
        if self.stopping.load(Ordering::Relaxed) {
            reasons.push(Reason::new("stopping", ""));
        }
        reasons.extend(self.broker_trouble());
        let (pending, since) = self.metrics.progress();
        let since = since.unwrap_or_else(|| self.started.elapsed());
        let outages = self.upstream.outages();
        for Outage { row, since, sign } in &outages {
            let seconds = since.elapsed().as_secs();
            reasons.push(Reason::new(
                format!("upstream: down for {seconds} s for row `{row}`, {pending} messages held, trying again: {sign}"),
                "See to the API: messages are held, and go on by themselves when it is back.",
            ));
        }
        if let Some(fault) = self.upstream.local_fault() {
            reasons.push(Reason::new(
                format!("this machine: cannot make calls: {fault}"),
                "Give this machine more files, memory or ports; the API has nothing to do with it.",
            ));
        }
        if outages.is_empty() && pending > 0 && since > self.patience {
            let seconds = since.as_secs();
            reasons.push(Reason::new(
                format!("upstream: {pending} messages held, none settled for {seconds} s"),
                "The API answers some devices badly: the attempts by status in /metrics say how.",
            ));
        }
        reasons.extend(self.crowding());
        reasons
    }

    /// What is wrong with the broker's connection.
    fn broker_trouble(&self) -> Option<Reason> {
        let reason = match &*self.broker.borrow() {
            Status::Subscribed => return None,
            Status::Draining => Reason::new("draining: nothing new is taken", ""),
            Status::NoSession => Reason::new("draining: there was no session", ""),
            Status::Connected => Reason::new("broker: subscriptions not confirmed yet", ""),
            Status::Down(trouble) => Reason::new(
                format!("broker: not connected: {trouble}"),
                "See whether the broker runs, and [broker] url, user and password are right; it is tried again all the time.",
            ),
            Status::Refused(filters) => Reason::new(
                format!("broker: subscriptions refused: {}", filters.join(", ")),
                "Let the gateway's user read these topics in the broker's access list.",
            ),
            Status::Ended => Reason::new("broker: disconnected", ""),
        };
        Some(reason)
    }

    /// The device that has more than half of a window nearly full and does not get on.
    fn crowding(&self) -> Option<Reason> {
        let (shares, window) = (self.metrics.shares(), self.window());
        let (device, held) = shares.largest()?;
        let over = shares.over_share(&device, window, self.upstream.answering_time())?;
        let (all, stuck) = (window.messages, over.stuck.as_secs());
        (held * 2 > all).then(|| {
            Reason::new(
                format!("window: device {device:?} holds {held} of {all} messages that may be pending, none done for {stuck} s"),
                "See to the calls of this device: it is slow, fails, or has sent a backlog.",
            )
        })
    }
}
