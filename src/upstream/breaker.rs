//! The circuit breaker: is it one device that fails, or the upstream as a whole?
//!
//! Failures that no device can cause (no connection) and failures of several devices with no success
//! in between mean that the upstream is down. Then calls are held, for as long as it takes, and their
//! deadlines begin anew when it is over: nothing is lost for an outage. One call at a time tries
//! whether the upstream is back; the first success lets all of them go on.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tower::{Layer, Service, ServiceExt};

use crate::{
    backoff::Backoff,
    call::{Answer, Call, Failure, FailureKind},
    fingerprint::fingerprint,
    metrics::Metrics,
};

/// So many times in a row no connection means that there is none to be had.
const UNREACHABLE: u32 = 3;
/// Longest `Retry-After` that keeps the breaker from trying: one call in a while hurts nobody.
const MAX_RETRY_AFTER: Duration = Duration::from_mins(5);
/// A wait without an end.
const FOREVER: Duration = Duration::from_hours(24 * 365);

/// What the configuration says about the breaker.
#[derive(Debug, Clone, Copy)]
pub struct BreakerSettings {
    /// So many devices failing, and none succeeding in between, mean that the upstream is down.
    pub devices: usize,
    /// Waits between attempts to find it back.
    pub probe: Backoff,
}

/// Whether the upstream is up, shared by all calls.
pub(super) struct Breaker {
    settings: BreakerSettings,
    state: Mutex<State>,
    /// Changes whenever held calls should look again.
    changed: watch::Sender<()>,
    stopping: watch::Sender<bool>,
    metrics: Arc<Metrics>,
}

struct State {
    /// The end of the last outage.
    up_since: Instant,
    phase: Phase,
}

enum Phase {
    /// Up, as far as we know; and what has failed since the last success.
    Closed { unreachable: u32, devices: Vec<u64> },
    /// Down.
    Open { outage: Outage, probe_at: Instant, probes: u32, probing: bool },
}

/// The upstream is down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outage {
    /// Since when.
    pub since: Instant,
    /// What the last attempt before said.
    pub sign: String,
}

/// What an attempt says about the upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sign {
    /// It works, whatever it answered.
    Up,
    /// It may be this device, it may be everybody.
    Doubt,
    /// No device can cause this.
    Down,
    /// The attempt was not made.
    None,
}

impl Breaker {
    pub(super) fn new(settings: BreakerSettings, metrics: Arc<Metrics>) -> Arc<Self> {
        metrics.upstream_up(true);
        let phase = Phase::Closed { unreachable: 0, devices: Vec::new() };
        let state = Mutex::new(State { up_since: Instant::now(), phase });
        let (changed, stopping) = (watch::Sender::new(()), watch::Sender::new(false));
        Arc::new(Self { settings, state, changed, stopping, metrics })
    }

    /// When the call's time is up. Never, while the upstream is down.
    pub(super) fn deadline(&self, call: &Call) -> Option<Instant> {
        let state = self.state();
        match &state.phase {
            Phase::Closed { .. } => Some(call.made.max(state.up_since) + call.deadline),
            Phase::Open { .. } => None,
        }
    }

    /// The outage, if there is one.
    pub(super) fn outage(&self) -> Option<Outage> {
        match &self.state().phase {
            Phase::Closed { .. } => None,
            Phase::Open { outage, .. } => Some(outage.clone()),
        }
    }

    /// Holds nobody any longer: calls that are held, and that would be, fail at once.
    pub(super) fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// Waits until the call may be tried.
    async fn admit(self: &Arc<Self>, call: &Call) -> Result<Permit, Failure> {
        let (mut changed, mut stopping) = (self.changed.subscribe(), self.stopping.subscribe());
        loop {
            changed.mark_unchanged();
            let probe_at = match &mut self.state().phase {
                Phase::Closed { .. } => return Ok(Permit { breaker: self.clone(), probe: false }),
                Phase::Open { probing: true, .. } => Instant::now() + FOREVER,
                Phase::Open { probing, probe_at, .. } if *probe_at <= Instant::now() => {
                    *probing = true;
                    return Ok(Permit { breaker: self.clone(), probe: true });
                }
                Phase::Open { probe_at, .. } => *probe_at,
            };
            let expires = call.expires.unwrap_or_else(|| Instant::now() + FOREVER);
            tokio::select! {
                // The senders are ours.
                _ = changed.changed() => {}
                () = sleep_until(probe_at) => {}
                () = sleep_until(expires) => return Err(FailureKind::Held.into()),
                _ = stopping.wait_for(|stopping| *stopping) => return Err(FailureKind::Held.into()),
            }
        }
    }

    /// Learns from an attempt.
    fn learn(&self, permit: Permit, device: &str, result: &Result<Answer, Failure>) {
        let sign = sign(result);
        let retry_after = result.as_ref().ok().and_then(|answer| answer.retry_after);
        let retry_after = retry_after.unwrap_or_default().min(MAX_RETRY_AFTER);
        let mut state = self.state();
        let now = Instant::now();
        match (&mut state.phase, sign) {
            (_, Sign::None) => return,
            (Phase::Closed { unreachable, devices }, Sign::Up) => {
                *unreachable = 0;
                devices.clear();
                return;
            }
            (Phase::Closed { unreachable, devices }, Sign::Doubt | Sign::Down) => {
                let device = fingerprint(device);
                if sign == Sign::Down {
                    *unreachable += 1;
                } else if !devices.contains(&device) {
                    devices.push(device);
                }
                if *unreachable < UNREACHABLE && devices.len() < self.settings.devices {
                    return;
                }
                let sign = match result {
                    Ok(answer) => format!("it answers {} to everybody", answer.status),
                    Err(failure) => failure.to_string(),
                };
                tracing::error!(
                    sign,
                    "the upstream is down: holding messages, none is given up; trying again by itself"
                );
                let wait = self.settings.probe.after(0).max(retry_after);
                let probe_at = now + wait;
                let outage = Outage { since: now, sign };
                state.phase = Phase::Open { outage, probe_at, probes: 0, probing: false };
                self.metrics.upstream_up(false);
            }
            (Phase::Open { outage, .. }, Sign::Up) => {
                let lasted = outage.since.elapsed();
                tracing::info!(?lasted, "the upstream is back");
                state.up_since = now;
                state.phase = Phase::Closed { unreachable: 0, devices: Vec::new() };
                self.metrics.upstream_up(true);
            }
            (Phase::Open { probe_at, probes, .. }, Sign::Doubt | Sign::Down) => {
                if !permit.probe {
                    return;
                }
                *probes += 1;
                let wait = self.settings.probe.after(*probes);
                *probe_at = now + wait.max(retry_after);
            }
        }
        drop(state);
        // Also ends the probe, and wakes who is held.
        drop(permit);
        self.changed.send_replace(());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to make one attempt.
struct Permit {
    breaker: Arc<Breaker>,
    /// Everybody else waits for this one.
    probe: bool,
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.probe
            && let Phase::Open { probing, .. } = &mut self.breaker.state().phase
        {
            *probing = false;
            self.breaker.changed.send_replace(());
        }
    }
}

fn sign(result: &Result<Answer, Failure>) -> Sign {
    match result {
        Ok(answer) if answer.is_transient() => Sign::Doubt,
        Ok(_) => Sign::Up,
        Err(failure) => match failure.kind {
            FailureKind::Unreachable(_) => Sign::Down,
            FailureKind::Timeout | FailureKind::Broken(_) => Sign::Doubt,
            FailureKind::AnswerTooLarge(_) => Sign::Up,
            FailureKind::Deadline(_)
            | FailureKind::Expired
            | FailureKind::Held
            | FailureKind::Throttled(_) => Sign::None,
        },
    }
}

/// Adds the breaker to a service.
#[derive(Clone)]
pub(super) struct BreakerLayer(pub(super) Arc<Breaker>);

impl<S> Layer<S> for BreakerLayer {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner, breaker: self.0.clone() }
    }
}

/// A service whose calls are held while the upstream is down.
#[derive(Clone)]
pub(super) struct Guarded<S> {
    inner: S,
    breaker: Arc<Breaker>,
}

impl<S> Service<Call> for Guarded<S>
where
    S: Service<Call, Response = Answer, Error = Failure> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Answer;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, Failure>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let (inner, breaker) = (self.inner.clone(), self.breaker.clone());
        Box::pin(async move {
            let permit = breaker.admit(&call).await?;
            let device = call.device.clone();
            let result = inner.oneshot(call).await;
            breaker.learn(permit, &device, &result);
            result
        })
    }
}

#[cfg(test)]
mod tests;
