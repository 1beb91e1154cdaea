//! Which results are worth another attempt, and what they say about the API. The verdict is a pure function; the policy
//! around it waits.

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use tokio::time::{Instant, sleep};
use tower::retry::Policy;

use super::{
    breaker::{FailedCall, FirstFailure, Next, RetryAfter},
    shared_breaker::SharedBreaker,
};
use crate::{
    backoff::Backoff,
    call::{Answer, Attempt, Call, Retry, StatusCode},
    failure::{Failure, FailureKind, Sign, Transience, Unanswered},
    log::seconds,
};

/// The result of one attempt.
type Attempted<'r> = Result<&'r Answer, &'r Failure>;

/// What the result of one attempt means for its call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It is the call's result, good or bad.
    Final,
    /// The call is tried again.
    Again,
}

/// The retry policy of one call; cloned for each.
#[derive(Clone)]
pub(super) struct RetryTransient {
    backoff: Backoff,
    breaker: Arc<SharedBreaker>,
    attempts: u32,
    /// When the first attempt failed.
    first: Option<FirstFailure>,
}

impl RetryTransient {
    pub(super) fn new(backoff: Backoff, breaker: Arc<SharedBreaker>) -> Self {
        Self { backoff, breaker, attempts: 0, first: None }
    }
}

fn verdict(call: &Call, result: Attempted<'_>) -> Verdict {
    let again = match transience(result) {
        Transience::Final => false,
        Transience::Unmade => true,
        Transience::Unprocessed => call.retry != Retry::Never,
        Transience::Transient => match call.retry {
            Retry::Always => true,
            Retry::Idempotent => call.method.is_idempotent(),
            Retry::Never => false,
        },
    };
    if again { Verdict::Again } else { Verdict::Final }
}

fn transience(result: Attempted<'_>) -> Transience {
    match result {
        Ok(answer) => Transience::of(answer.status),
        Err(failure) => failure.kind.transience(),
    }
}

/// Whether the attempt did not get far enough to count against a rate limit of the API.
fn is_uncounted(result: Attempted<'_>) -> bool {
    match transience(result) {
        Transience::Unprocessed | Transience::Unmade => true,
        Transience::Final | Transience::Transient => result.is_ok_and(|answer| {
            matches!(answer.status, StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT)
        }),
    }
}

/// What the result says about the API.
fn sign(call: &Call, result: Attempted<'_>) -> Sign {
    match result {
        Ok(answer) if call.accepts(answer.status) => Sign::Served,
        Ok(answer) => Sign::of(answer.status),
        Err(failure) => failure.kind.sign(),
    }
}

/// A result in words, for the log's line about an outage.
struct InWords<'r>(Attempted<'r>);

impl fmt::Display for InWords<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Ok(answer) => write!(f, "the API answers {}", answer.status),
            Err(failure) => failure.fmt(f),
        }
    }
}

impl RetryTransient {
    /// Waits until the next attempt may be made, or until it is known that there is none.
    fn wait(
        &mut self,
        call: &Attempt,
        result: Attempted<'_>,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let (breaker, expires) = (self.breaker.clone(), call.expires);
        let delayed = breaker.mark_delayed(&call.device);
        if let Err(Failure { kind: FailureKind::Local(fault), .. }) = result {
            breaker.local_fault_happened(fault);
            let wait = self.backoff.after(self.attempts);
            call.trial.excuse(wait);
            return Box::pin(async move {
                tokio::select! {
                    () = sleep(wait) => {}
                    () = breaker.stopped() => {}
                    () = expired(expires) => {}
                }
                drop(delayed);
            });
        }
        let retry_after = result.ok().and_then(|answer| {
            let for_device = answer.status == StatusCode::TOO_MANY_REQUESTS;
            answer.retry_after.map(|wait| RetryAfter { wait, for_device })
        });
        let clock = breaker.serving_time(&call.name);
        call.trial.failed(breaker.serving_time_now(&call.name));
        let wait = breaker.wait(&FailedCall {
            row: &call.name,
            failures: self.attempts,
            first: *self.first.get_or_insert_with(|| breaker.first_failure(&call.name)),
            others_served: call.trial.others_served(),
            spent: call.spent(clock),
            deadline: call.deadline,
            retry_after,
        });
        let retry_after_seconds = retry_after.map(|retry_after| seconds(retry_after.wait));
        tracing::debug!(route = %call.name, device = %call.device, retry_after_seconds, "retry");
        // What the call fails with if its deadline passes: the deadline, and the last answer.
        let out_of_time = match result {
            Ok(answer) => FailureKind::Deadline(answer.status),
            Err(failure) => failure.kind.clone(),
        };
        let call = call.clone();
        Box::pin(async move {
            match wait.over(expires).await {
                Some(Next::Again { others_served }) => call.trial.begin_attempt(others_served),
                Some(Next::GiveUp) => call.trial.end(out_of_time),
                Some(Next::Pause(wait)) => {
                    breaker.pause(&call.name, &call.device, wait);
                    call.trial.end(FailureKind::Throttled(wait));
                }
                // The layer below refuses the next attempt.
                None => {}
            }
            drop(delayed);
        })
    }
}

async fn expired(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl Policy<Attempt, Answer, Unanswered> for RetryTransient {
    type Future = Pin<Box<dyn Future<Output = ()> + Send>>;

    fn retry(
        &mut self,
        call: &mut Attempt,
        result: &mut Result<Answer, Unanswered>,
    ) -> Option<Self::Future> {
        let attempt = match &*result {
            Ok(answer) => Ok(answer),
            Err(Unanswered::Failed(failure)) => Err(failure),
            Err(Unanswered::Stopping) => return None,
        };
        if call.trial.ended().is_none() {
            self.breaker.learn(call, sign(call, attempt), &InWords(attempt));
            self.attempts += attempt.map_or_else(|failure| failure.attempts, |_| 1);
            if verdict(call, attempt) == Verdict::Again {
                call.has_turn = is_uncounted(attempt);
                call.earlier = self.attempts;
                return Some(self.wait(call, attempt));
            }
        }
        match result {
            Ok(answer) => answer.attempts = self.attempts,
            Err(Unanswered::Failed(failure)) => failure.attempts = self.attempts,
            Err(Unanswered::Stopping) => {}
        }
        None
    }

    fn clone_request(&mut self, call: &Attempt) -> Option<Attempt> {
        Some(call.clone())
    }
}

#[cfg(test)]
mod tests;
