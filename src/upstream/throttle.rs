//! Rate limits: attempts in all and attempts per device, kept by `governor`.
//!
//! An attempt waits for its turn if the turn comes before the call's deadline; else it is refused at
//! once with the time it would have to wait.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use governor::{
    DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter,
    clock::{Clock, DefaultClock},
};
use tokio::time::Instant;
use tower::{Layer, Service, ServiceExt};

use super::breaker::Breaker;
use crate::{
    call::{Answer, Call, Failure, FailureKind},
    rate::Rate,
};

/// How often the limiter looks for devices that have been idle long enough to be forgotten, in
/// attempts.
const SWEEP_EVERY: u32 = 4096;

fn quota(rate: Rate) -> Quota {
    Quota::with_period(rate.per / rate.count.get())
        .expect("a rate that leaves no time between turns is no rate")
        .allow_burst(rate.count)
}

type PerDevice = DefaultKeyedRateLimiter<Arc<str>>;

/// The limits in force, as the configuration and the table say.
#[derive(Debug, Clone, Default)]
pub struct Rates {
    /// Attempts in all.
    pub total: Option<Rate>,
    /// Attempts of one device.
    pub per_device: Option<Rate>,
    /// Attempts of one device for one row, by the row's name.
    pub rows: Vec<(Arc<str>, Rate)>,
}

struct Limits {
    total: Option<DefaultDirectRateLimiter>,
    per_device: Option<PerDevice>,
    rows: HashMap<Arc<str>, PerDevice>,
    attempts: AtomicU32,
    clock: DefaultClock,
}

impl Limits {
    fn new(rates: &Rates) -> Option<Self> {
        let keyed = |rate: Rate| RateLimiter::keyed(quota(rate));
        let limits = Self {
            total: rates.total.map(|rate| RateLimiter::direct(quota(rate))),
            per_device: rates.per_device.map(keyed),
            rows: rates.rows.iter().map(|(row, rate)| (row.clone(), keyed(*rate))).collect(),
            attempts: AtomicU32::new(0),
            clock: DefaultClock::default(),
        };
        let none = limits.total.is_none() && limits.per_device.is_none() && limits.rows.is_empty();
        (!none).then_some(limits)
    }

    /// Waits for a turn, the narrowest limit first, so that a device over its own limit uses up no
    /// turn of the others.
    async fn turn(&self, call: &Call, breaker: &Breaker) -> Result<(), FailureKind> {
        self.sweep();
        let now = || self.clock.now();
        let narrow = [self.rows.get(&call.name), self.per_device.as_ref()];
        for limiter in narrow.into_iter().flatten() {
            while let Err(not_until) = limiter.check_key(&call.device) {
                wait(call, breaker, not_until.wait_time_from(now())).await?;
            }
        }
        if let Some(limiter) = &self.total {
            while let Err(not_until) = limiter.check() {
                wait(call, breaker, not_until.wait_time_from(now())).await?;
            }
        }
        Ok(())
    }

    /// Forgets devices that have been idle for so long that nothing holds them back.
    fn sweep(&self) {
        if self.attempts.fetch_add(1, Ordering::Relaxed).is_multiple_of(SWEEP_EVERY) {
            for limiter in self.rows.values().chain(&self.per_device) {
                limiter.retain_recent();
                limiter.shrink_to_fit();
            }
        }
    }
}

/// Waits, unless the turn would come too late.
async fn wait(call: &Call, breaker: &Breaker, wait: Duration) -> Result<(), FailureKind> {
    let next = Instant::now() + wait;
    let late = |end: Option<Instant>| end.is_some_and(|end| end <= next);
    if late(breaker.deadline(call)) || late(call.expires) {
        return Err(FailureKind::Throttled(wait));
    }
    tokio::time::sleep_until(next).await;
    Ok(())
}

/// Adds the limits to a service.
#[derive(Clone)]
pub(super) struct ThrottleLayer {
    limits: Option<Arc<Limits>>,
    breaker: Arc<Breaker>,
}

impl ThrottleLayer {
    pub(super) fn new(rates: &Rates, breaker: Arc<Breaker>) -> Self {
        Self { limits: Limits::new(rates).map(Arc::new), breaker }
    }
}

impl<S> Layer<S> for ThrottleLayer {
    type Service = Throttle<S>;

    fn layer(&self, inner: S) -> Throttle<S> {
        Throttle { inner, limits: self.limits.clone(), breaker: self.breaker.clone() }
    }
}

/// A service whose calls take turns.
#[derive(Clone)]
pub(super) struct Throttle<S> {
    inner: S,
    limits: Option<Arc<Limits>>,
    breaker: Arc<Breaker>,
}

impl<S> Service<Call> for Throttle<S>
where
    S: Service<Call, Response = Answer, Error = Failure> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Answer;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, Failure>> + Send>>;

    // Always ready: a turn belongs to a call, and which call it is is known only in `call`.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let (inner, limits, breaker) =
            (self.inner.clone(), self.limits.clone(), self.breaker.clone());
        Box::pin(async move {
            if let Some(limits) = limits {
                limits.turn(&call, &breaker).await?;
            }
            inner.oneshot(call).await
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(name: &str, device: &str) -> Call {
        Call {
            name: name.into(),
            device: device.into(),
            method: crate::call::Method::POST,
            path: "/".to_owned(),
            body: None,
            key: None,
            retry: crate::call::Retry::Always,
            made: Instant::now(),
            deadline: Duration::from_secs(1),
            expires: None,
            batch: None,
        }
    }

    #[tokio::test]
    async fn each_limit_holds_for_its_own_and_a_refusal_uses_up_no_turn() {
        let rate = |text: &str| text.parse::<Rate>().unwrap();
        let rates = Rates {
            total: Some(rate("4/h")),
            per_device: Some(rate("3/h")),
            rows: vec![("rare".into(), rate("1/h"))],
        };
        let limits = Limits::new(&rates).unwrap();
        let probe = crate::backoff::Backoff { initial: Duration::ZERO, max: Duration::ZERO };
        let settings = crate::upstream::BreakerSettings { devices: 3, probe };
        let breaker = Breaker::new(settings, Arc::default());
        let taken = async |name, device| limits.turn(&call(name, device), &breaker).await.is_ok();
        assert!(taken("rare", "a").await);
        assert!(!taken("rare", "a").await, "the row's limit, per device");
        assert!(taken("often", "a").await && taken("often", "a").await);
        assert!(!taken("often", "a").await, "the device's limit");
        assert!(taken("often", "b").await, "the refusals have used up no turn of the total");
        let refused = limits.turn(&call("often", "c"), &breaker).await.unwrap_err();
        assert!(matches!(refused, FailureKind::Throttled(wait) if wait > Duration::from_mins(10)));
    }
}
