//! Which results are worth another attempt, and what they say about the API. The verdict is pure; the policy waits.

use std::{future::Future, pin::Pin, sync::Arc};

use tokio::time::{Instant, sleep};
use tower::retry::Policy;

use super::{
    breaker::{Failing, First, Next, Sign, Told},
    hold::Hold,
};
use crate::{
    backoff::Backoff,
    call::{Answer, Call, Failure, FailureKind, Retry, StatusCode},
};

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

fn verdict(call: &Call, result: &Result<Answer, Failure>) -> Verdict {
    let transient = match result {
        Ok(answer) => answer.is_transient(),
        Err(failure) => failure.kind.is_transient(),
    };
    let local = result.as_ref().is_err_and(|f| matches!(f.kind, FailureKind::Local(_)));
    let allowed = match call.retry {
        _ if local => true,
        Retry::Always => true,
        Retry::Idempotent => {
            is_unsent(result) || is_unprocessed(result) || call.method.is_idempotent()
        }
        Retry::Never => false,
    };
    if transient && allowed { Verdict::Again } else { Verdict::Done }
}

/// Nothing has reached the API.
fn is_unsent(result: &Result<Answer, Failure>) -> bool {
    result.as_ref().is_err_and(|failure| {
        matches!(failure.kind, FailureKind::Unreachable(_) | FailureKind::Local(_))
    })
}

/// The API has not acted on it, by its own word.
fn is_unprocessed(result: &Result<Answer, Failure>) -> bool {
    result.as_ref().is_ok_and(|answer| {
        matches!(answer.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
    })
}

/// It has not got as far as to count against a rate.
fn is_uncounted(result: &Result<Answer, Failure>) -> bool {
    is_unsent(result)
        || is_unprocessed(result)
        || result.as_ref().is_ok_and(|answer| {
            matches!(answer.status, StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT)
        })
}

/// What the result says about the API.
fn sign(result: &Result<Answer, Failure>) -> Sign {
    match result {
        Ok(answer) if answer.is_transient() => {
            Sign::Failed(format!("the API answers {}", answer.status))
        }
        Ok(answer) if answer.status.is_success() => Sign::Served,
        Ok(_) => Sign::Refused,
        Err(failure) => match &failure.kind {
            FailureKind::Unreachable(_) => Sign::Unreachable(failure.to_string()),
            FailureKind::Timeout | FailureKind::Broken(_) => Sign::Failed(failure.to_string()),
            FailureKind::AnswerTooLarge(_) | FailureKind::Coding(_) => Sign::Refused,
            FailureKind::Deadline(_)
            | FailureKind::Expired
            | FailureKind::Held
            | FailureKind::Local(_)
            | FailureKind::Throttled(_) => Sign::None,
        },
    }
}

impl RetryTransient {
    /// The wait before the next attempt, or before it is known that there is none.
    fn wait(
        &mut self,
        call: &mut Call,
        result: &Result<Answer, Failure>,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let (hold, expires) = (self.hold.clone(), call.expires);
        let delayed = hold.delayed(&call.device);
        if let Err(Failure { kind: FailureKind::Local(fault), .. }) = result {
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
        let told = result.as_ref().ok().and_then(|answer| {
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
        let out_of_time = match result {
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

impl Policy<Call, Answer, Failure> for RetryTransient {
    type Future = Pin<Box<dyn Future<Output = ()> + Send>>;

    fn retry(
        &mut self,
        call: &mut Call,
        result: &mut Result<Answer, Failure>,
    ) -> Option<Self::Future> {
        if call.trial.ended().is_none() {
            let sign = sign(result);
            if sign != Sign::None {
                let hung =
                    result.as_ref().is_err_and(|failure| failure.kind == FailureKind::Timeout);
                self.hold.learn(call, sign, hung);
            }
            let unmade = |failure: &Failure| {
                matches!(failure.kind, FailureKind::Throttled(_) | FailureKind::Held)
            };
            self.attempts += u32::from(!result.as_ref().is_err_and(unmade));
            if verdict(call, result) == Verdict::Again {
                call.has_turn = is_uncounted(result);
                call.attempts = self.attempts;
                return Some(self.wait(call, result));
            }
        }
        match result {
            Ok(answer) => answer.attempts = self.attempts,
            Err(failure) => failure.attempts = self.attempts,
        }
        None
    }

    fn clone_request(&mut self, call: &Call) -> Option<Call> {
        Some(call.clone())
    }
}

#[cfg(test)]
mod tests;
