//! Rate limits for attempts: in all, per device, and per device and row. `governor` does the counting.
//!
//! Only an attempt that the API counts uses up its turn. If an attempt did not reach the API, or the API did not act on it,
//! the next attempt of the call has the same turn. So the calls that are held in an outage need not wait for the rate
//! limit when it is over.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use foldhash::HashMap;
use governor::{
    DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter,
    clock::{Clock, DefaultClock},
};
use tokio::time::Instant;
use tower::{Service, ServiceExt};

use super::{breaker::MAX_OBEYED_RETRY_AFTER, shared_breaker::SharedBreaker};
use crate::{
    call::{self, Answer, Attempt, Call, Trial},
    failure::{Failure, FailureKind, Unanswered},
    rate::Rate,
};

/// After this many attempts the devices are forgotten that have been idle long enough.
const SWEEP_EVERY: u32 = 4096;

fn quota(rate: Rate) -> Quota {
    Quota::with_period(rate.per / rate.count.get())
        .expect("a rate leaves at least a nanosecond between two turns, which its parser checks")
        .allow_burst(rate.count)
}

type PerDevice = DefaultKeyedRateLimiter<Arc<str>>;

/// The rate limits of the configuration and of the table.
#[derive(Debug, Clone, Default)]
pub struct Rates {
    /// Attempts in all.
    pub total: Option<Rate>,
    /// Attempts of one device.
    pub per_device: Option<Rate>,
    /// Attempts of one device for one row, by the row's name.
    pub rows: Vec<(Arc<str>, Rate)>,
}

struct Limiters {
    total: Option<DefaultDirectRateLimiter>,
    per_device: Option<PerDevice>,
    rows: HashMap<Arc<str>, PerDevice>,
    attempts: AtomicU32,
    clock: DefaultClock,
}

impl Limiters {
    fn new(rates: &Rates) -> Option<Self> {
        let keyed = |rate: Rate| RateLimiter::keyed(quota(rate));
        let limiters = Self {
            total: rates.total.map(|rate| RateLimiter::direct(quota(rate))),
            per_device: rates.per_device.map(keyed),
            rows: rates.rows.iter().map(|(row, rate)| (row.clone(), keyed(*rate))).collect(),
            attempts: AtomicU32::new(0),
            clock: DefaultClock::default(),
        };
        let none =
            limiters.total.is_none() && limiters.per_device.is_none() && limiters.rows.is_empty();
        (!none).then_some(limiters)
    }

    /// Waits for a turn of each limit. The narrowest comes first, so that a device over its own limit uses up no turn of the
    /// wider ones. The wait does not count against the message's deadline. A call over a limit of its device is refused when
    /// the turn would come later than the deadline; the limit for all devices only delays.
    async fn turn(&self, wanted: &Wanted<'_>) -> Result<(), Unanswered> {
        self.sweep();
        let now = || self.clock.now();
        let narrow = [self.rows.get(wanted.name), self.per_device.as_ref()];
        for limiter in narrow.into_iter().flatten() {
            while let Err(not_until) = limiter.check_key(wanted.device) {
                wanted.wait(not_until.wait_time_from(now()), wanted.deadline).await?;
            }
        }
        if let Some(limiter) = &self.total {
            while let Err(not_until) = limiter.check() {
                wanted.wait(not_until.wait_time_from(now()), Duration::MAX).await?;
            }
        }
        Ok(())
    }

    /// Forgets the devices that have been idle for so long that their limits are unused again.
    fn sweep(&self) {
        if self.attempts.fetch_add(1, Ordering::Relaxed).is_multiple_of(SWEEP_EVERY) {
            for limiter in self.rows.values().chain(&self.per_device) {
                limiter.retain_recent();
                limiter.shrink_to_fit();
            }
        }
    }
}

/// The call that wants a turn.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    name: &'a Arc<str>,
    device: &'a Arc<str>,
    deadline: Duration,
    expires: Option<Instant>,
    trial: &'a Trial,
    breaker: &'a Arc<SharedBreaker>,
}

impl Wanted<'_> {
    /// Waits, unless it would be for `most` or longer, or the message expires before. Ends when the gateway stops. In a
    /// box: what is seldom needed takes no room in each attempt.
    fn wait(
        &self,
        wait: Duration,
        most: Duration,
    ) -> Pin<Box<dyn Future<Output = Result<(), Unanswered>> + Send + '_>> {
        Box::pin(async move {
            let next = Instant::now() + wait;
            if wait >= most || self.expires.is_some_and(|expires| expires <= next) {
                return Err(Failure::unmade(FailureKind::Throttled(wait)).into());
            }
            self.trial.excuse(wait);
            let _delayed = self.breaker.mark_delayed(self.device);
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                () = self.breaker.stopped() => return Err(Unanswered::Stopping),
            }
            self.breaker.throttled(self.name, wait);
            Ok(())
        })
    }

    /// Waits until the API wants calls of this device again, if it has asked for a pause.
    async fn pause(&self) -> Result<(), Unanswered> {
        match self.breaker.paused(self.name, self.device) {
            Some(wait) => self.wait(wait, MAX_OBEYED_RETRY_AFTER).await,
            None => Ok(()),
        }
    }
}

/// Gives out the turns of all limits.
pub(super) struct Turns {
    limiters: Option<Limiters>,
    breaker: Arc<SharedBreaker>,
}

impl Turns {
    pub(super) fn new(rates: &Rates, breaker: Arc<SharedBreaker>) -> Self {
        Self { limiters: Limiters::new(rates), breaker }
    }

    /// Waits for a turn.
    pub(super) async fn take(
        &self,
        name: &Arc<str>,
        device: &Arc<str>,
        lifetime: call::Lifetime,
        trial: &Trial,
    ) -> Result<(), Unanswered> {
        let (breaker, call::Lifetime { deadline, expires, .. }) = (&self.breaker, lifetime);
        let wanted = Wanted { name, device, deadline, expires, trial, breaker };
        wanted.pause().await?;
        match &self.limiters {
            Some(limiters) => limiters.turn(&wanted).await,
            None => Ok(()),
        }
    }

    /// Waits for the call's turn if it needs one. Fails if the call may not be made any more.
    async fn admit(&self, call: &mut Attempt) -> Result<(), Unanswered> {
        if let Some(why) = call.trial.ended() {
            return Err(Failure::unmade(why.clone()).into());
        }
        if call.expires.is_some_and(|expires| expires <= Instant::now()) {
            return Err(Failure::unmade(FailureKind::Expired).into());
        }
        if call.earlier > 0 && self.breaker.is_stopping() {
            return Err(Unanswered::Stopping);
        }
        if !call.has_turn {
            let Call { deadline, expires, since, .. } = **call;
            let lifetime = call::Lifetime { deadline, expires, since };
            self.take(&call.name, &call.device, lifetime, &call.trial).await?;
        }
        call.hurried = self.breaker.is_hurried(call);
        call.queued = Some(Instant::now());
        Ok(())
    }
}

/// A service whose calls wait for their turns.
#[derive(Clone)]
pub(super) struct Throttle<S> {
    pub(super) inner: S,
    pub(super) turns: Arc<Turns>,
}

impl<S> Service<Attempt> for Throttle<S>
where
    S: Service<Attempt, Response = Answer, Error = Failure> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Answer;
    type Error = Unanswered;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, Unanswered>> + Send>>;

    // Always ready: the turn depends on the call, which is known only in `call`.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Unanswered>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut call: Attempt) -> Self::Future {
        let (mut inner, turns) = (self.inner.clone(), self.turns.clone());
        Box::pin(async move {
            turns.admit(&mut call).await?;
            Ok(inner.ready().await?.call(call).await?)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::fixtures::{NO_WAIT, shared_breaker};

    /// For how long there is no turn, if that is why there is no answer.
    fn throttled(why: &Unanswered) -> Option<Duration> {
        match why {
            Unanswered::Failed(Failure { kind: FailureKind::Throttled(wait), attempts: 0 }) => {
                Some(*wait)
            }
            _ => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_limit_holds_for_its_own_and_a_refusal_uses_up_no_turn() {
        let rate = |text: &str| text.parse::<Rate>().unwrap();
        let rates = Rates {
            total: Some(rate("4/h")),
            per_device: Some(rate("3/h")),
            rows: vec![("rare".into(), rate("1/h"))],
        };
        let turns = Turns::new(&rates, shared_breaker(NO_WAIT));
        let lifetime =
            call::Lifetime { deadline: Duration::from_secs(1), expires: None, since: None };
        let take = async |name: &str, device: &str| {
            turns.take(&name.into(), &device.into(), lifetime, &Trial::default()).await
        };
        assert!(take("rare", "a").await.is_ok());
        assert!(take("rare", "a").await.is_err(), "the row's limit, per device");
        assert!(take("often", "a").await.is_ok() && take("often", "a").await.is_ok());
        let refused = take("often", "a").await.unwrap_err();
        assert!(throttled(&refused).unwrap() > Duration::from_mins(10));
        assert!(take("often", "b").await.is_ok(), "the refusals have used up no turn of the total");
    }

    #[tokio::test]
    async fn the_limit_for_all_delays_and_the_wait_does_not_count() {
        let rates = Rates { total: Some("20/s".parse().unwrap()), ..Rates::default() };
        let breaker = shared_breaker(NO_WAIT);
        let turns = Turns::new(&rates, breaker.clone());
        let lifetime = call::Lifetime { deadline: Duration::ZERO, expires: None, since: None };
        let trial = Trial::default();
        for _ in 0..22 {
            turns.take(&"r".into(), &"d".into(), lifetime, &trial).await.unwrap();
        }
        assert!(trial.excused() > Duration::from_millis(20), "{:?}", trial.excused());
        breaker.stop();
        let mut taken = Ok(());
        while taken.is_ok() {
            taken = turns.take(&"r".into(), &"d".into(), lifetime, &trial).await;
        }
        assert_eq!(
            taken,
            Err(Unanswered::Stopping),
            "no call waits for a turn when the gateway stops"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_keeps_its_turn_waits_for_none() {
        let rates = Rates { per_device: Some("1/h".parse().unwrap()), ..Rates::default() };
        let turns = Turns::new(&rates, shared_breaker(NO_WAIT));
        let mut call = Attempt::first(crate::upstream::fixtures::call("r", "d"));
        assert!(turns.admit(&mut call).await.is_ok());
        assert!(turns.admit(&mut call.clone()).await.is_err());
        call.has_turn = true;
        assert!(turns.admit(&mut call).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_device_that_was_asked_to_wait_waits_before_its_next_message_too() {
        let breaker = shared_breaker(NO_WAIT);
        let turns = Turns::new(&Rates::default(), breaker.clone());
        let mut call = Attempt::first(crate::upstream::fixtures::call("r", "d"));
        let began = Instant::now();
        breaker.pause("r", "d", Duration::from_secs(90));
        turns.admit(&mut call).await.unwrap();
        assert_eq!(began.elapsed().as_secs(), 90);
        breaker.pause("r", "d", Duration::from_hours(1));
        assert!(throttled(&turns.admit(&mut call).await.unwrap_err()).is_some());
    }
}
