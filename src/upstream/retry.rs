//! Which results are worth another attempt, and what they say about the API. The verdict is pure; the policy waits.

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use tokio::time::{Instant, sleep};
use tower::retry::Policy;

use super::{
    breaker::{Failing, First, Next, Told},
    hold::Hold,
};
use crate::{
    backoff::Backoff,
    call::{Answer, Call, Retry, StatusCode},
    failure::{Failure, FailureKind, Sign, Transience, Unanswered},
};

/// The result of one attempt.
type Seen<'r> = Result<&'r Answer, &'r Failure>;

/// What the result of one attempt means for its call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Final, good or bad.
    Done,
    /// Transient: try again.
    Again,
}

/// The retry policy of one call; cloned for each.
#[derive(Clone)]
pub(super) struct RetryTransient {
    backoff: Backoff,
    hold: Arc<Hold>,
    attempts: u32,
    /// The first attempt has failed.
    first: Option<First>,
}

impl RetryTransient {
    pub(super) fn new(backoff: Backoff, hold: Arc<Hold>) -> Self {
        Self { backoff, hold, attempts: 0, first: None }
    }
}

fn verdict(call: &Call, seen: Seen<'_>) -> Verdict {
    let again = match transience(seen) {
        Transience::Final => false,
        Transience::Unmade => true,
        Transience::Unprocessed => call.retry != Retry::Never,
        Transience::Transient => match call.retry {
            Retry::Always => true,
            Retry::Idempotent => call.method.is_idempotent(),
            Retry::Never => false,
        },
    };
    if again { Verdict::Again } else { Verdict::Done }
}

fn transience(seen: Seen<'_>) -> Transience {
    match seen {
        Ok(answer) => Transience::of(answer.status),
        Err(failure) => failure.kind.transience(),
    }
}

/// It has not got as far as to count against a rate.
fn is_uncounted(seen: Seen<'_>) -> bool {
    match transience(seen) {
        Transience::Unprocessed | Transience::Unmade => true,
        Transience::Final | Transience::Transient => seen.is_ok_and(|answer| {
            matches!(answer.status, StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT)
        }),
    }
}

/// What the result says about the API.
fn sign(seen: Seen<'_>) -> Sign {
    match seen {
        Ok(answer) => Sign::of(answer.status),
        Err(failure) => failure.kind.sign(),
    }
}

/// A result, for the line of the log about an outage.
struct Words<'r>(Seen<'r>);

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Ok(answer) => write!(f, "the API answers {}", answer.status),
            Err(failure) => failure.fmt(f),
        }
    }
}

impl RetryTransient {
    /// The wait before the next attempt, or before it is known that there is none.
    fn wait(
        &mut self,
        call: &mut Call,
        seen: Seen<'_>,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let (hold, expires) = (self.hold.clone(), call.expires);
        let delayed = hold.delayed(&call.device);
        if let Err(Failure { kind: FailureKind::Local(fault), .. }) = seen {
            hold.fails_locally(fault);
            let wait = self.backoff.after(self.attempts);
            call.trial.excuse(wait);
            return Box::pin(async move {
                tokio::select! {
                    () = sleep(wait) => {}
                    () = hold.stopped() => {}
                    () = expired(expires) => {}
                }
                drop(delayed);
            });
        }
        let told = seen.ok().and_then(|answer| {
            let personal = answer.status == StatusCode::TOO_MANY_REQUESTS;
            answer.retry_after.map(|wait| Told { wait, personal })
        });
        let clock = hold.serving(&call.name);
        call.since.get_or_insert_with(|| hold.reading(&call.name));
        let wait = hold.wait(&Failing {
            row: &call.name,
            failures: self.attempts,
            first: *self.first.get_or_insert_with(|| hold.first(&call.name)),
            proven: call.trial.proven(),
            spent: call.spent(clock),
            deadline: call.deadline,
            told,
        });
        tracing::debug!(route = %call.name, device = ?call.device, ?told, "retry");
        // A call that runs out of time says so, and what the last answer was.
        let out_of_time = match seen {
            Ok(answer) => FailureKind::Deadline(answer.status),
            Err(failure) => failure.kind.clone(),
        };
        let (trial, name, device) = (call.trial.clone(), call.name.clone(), call.device.clone());
        Box::pin(async move {
            match wait.over(expires).await {
                Some(Next::Again { proven }) => trial.prove(proven),
                Some(Next::GiveUp) => trial.end(out_of_time),
                Some(Next::Pause(wait)) => {
                    hold.pause(&name, &device, wait);
                    trial.end(FailureKind::Throttled(wait));
                }
                // The next attempt is not made.
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

impl Policy<Call, Answer, Unanswered> for RetryTransient {
    type Future = Pin<Box<dyn Future<Output = ()> + Send>>;

    fn retry(
        &mut self,
        call: &mut Call,
        result: &mut Result<Answer, Unanswered>,
    ) -> Option<Self::Future> {
        let seen = match &*result {
            Ok(answer) => Ok(answer),
            Err(Unanswered::Failed(failure)) => Err(failure),
            Err(Unanswered::Stopping) => return None,
        };
        if call.trial.ended().is_none() {
            self.hold.learn(call, sign(seen), &Words(seen));
            self.attempts += seen.map_or_else(|failure| failure.attempts, |_| 1);
            if verdict(call, seen) == Verdict::Again {
                call.has_turn = is_uncounted(seen);
                call.attempts = self.attempts;
                return Some(self.wait(call, seen));
            }
        }
        match result {
            Ok(answer) => answer.attempts = self.attempts,
            Err(Unanswered::Failed(failure)) => failure.attempts = self.attempts,
            Err(Unanswered::Stopping) => {}
        }
        None
    }

    fn clone_request(&mut self, call: &Call) -> Option<Call> {
        Some(call.clone())
    }
}

#[cfg(test)]
mod tests;
