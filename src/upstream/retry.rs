//! Which results are worth another attempt, and when. The verdict is pure; the policy waits.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use tokio::time::Instant;
use tower::retry::Policy;

use super::breaker::Breaker;
use crate::{
    backoff::Backoff,
    call::{Answer, Call, Failure, FailureKind, Retry, StatusCode},
};

/// What the result of one attempt means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Final, good or bad.
    Done,
    /// Transient: try again, not before this long if the upstream said so.
    Again(Option<Duration>),
}

/// The retry policy of one call; cloned for each.
#[derive(Clone)]
pub(super) struct RetryTransient {
    backoff: Backoff,
    breaker: Arc<Breaker>,
    attempts: u32,
}

impl RetryTransient {
    pub(super) fn new(backoff: Backoff, breaker: Arc<Breaker>) -> Self {
        Self { backoff, breaker, attempts: 0 }
    }
}

fn verdict(call: &Call, result: &Result<Answer, Failure>) -> Verdict {
    let (transient, unprocessed, after) = match result {
        Ok(answer) => (
            answer.is_transient(),
            matches!(
                answer.status,
                StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
            ),
            answer.retry_after,
        ),
        Err(failure) => match failure.kind {
            FailureKind::Unreachable(_) => (true, true, None),
            FailureKind::Timeout | FailureKind::Broken(_) => (true, false, None),
            FailureKind::AnswerTooLarge(_)
            | FailureKind::Deadline(_)
            | FailureKind::Expired
            | FailureKind::Held
            | FailureKind::Throttled(_) => (false, false, None),
        },
    };
    let allowed = match call.retry {
        Retry::Always => true,
        Retry::Idempotent => unprocessed || call.method.is_idempotent(),
        Retry::Never => false,
    };
    if transient && allowed { Verdict::Again(after) } else { Verdict::Done }
}

impl Policy<Call, Answer, Failure> for RetryTransient {
    type Future = Pin<Box<dyn Future<Output = ()> + Send>>;

    fn retry(
        &mut self,
        call: &mut Call,
        result: &mut Result<Answer, Failure>,
    ) -> Option<Self::Future> {
        let unsent = |failure: &Failure| {
            matches!(failure.kind, FailureKind::Throttled(_) | FailureKind::Held)
        };
        self.attempts += u32::from(!result.as_ref().is_err_and(unsent));
        if let Verdict::Again(after) = verdict(call, result) {
            let wait = after.unwrap_or_else(|| self.backoff.after(self.attempts - 1));
            let next = Instant::now() + wait;
            match self.breaker.deadline(call) {
                // While everybody fails, the breaker says when to try again.
                None => return Some(Box::pin(std::future::ready(()))),
                _ if call.expires.is_some_and(|expires| expires <= next) => {
                    *result = Err(FailureKind::Expired.into());
                }
                Some(deadline) if next < deadline => {
                    tracing::debug!(route = %call.name, device = %call.device, ?wait, "retry");
                    return Some(Box::pin(tokio::time::sleep(wait)));
                }
                Some(_) => {
                    // The last word of a call that ran out of time is that it did.
                    if let Ok(answer) = result {
                        *result = Err(FailureKind::Deadline(answer.status).into());
                    }
                }
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
mod tests {
    use super::*;
    use crate::{call::Method, upstream::BreakerSettings};

    fn breaker() -> Arc<Breaker> {
        let probe = Backoff { initial: Duration::ZERO, max: Duration::ZERO };
        Breaker::new(BreakerSettings { devices: 3, probe }, Arc::default())
    }

    fn call(method: Method, retry: Retry) -> Call {
        Call {
            name: "r".into(),
            device: "d".into(),
            method,
            path: "/".to_owned(),
            body: None,
            key: None,
            retry,
            made: Instant::now(),
            deadline: Duration::from_secs(30),
            expires: None,
            batch: None,
        }
    }

    fn answer(status: u16) -> Answer {
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            content_type: None,
            body: bytes::Bytes::new(),
            retry_after: None,
            attempts: 1,
        }
    }

    #[tokio::test]
    async fn every_result_has_its_verdict() {
        let failed = |kind| Err::<Answer, _>(Failure::from(kind));
        // Result, then whether it is repeated: POST always, PUT idempotent, POST idempotent.
        let rows = [
            (Ok(answer(200)), [false, false, false]),
            (Ok(answer(302)), [false, false, false]),
            (Ok(answer(400)), [false, false, false]),
            (Ok(answer(401)), [false, false, false]),
            (Ok(answer(404)), [false, false, false]),
            (Ok(answer(422)), [false, false, false]),
            (Ok(answer(501)), [false, false, false]),
            (Ok(answer(408)), [true, true, false]),
            (Ok(answer(429)), [true, true, true]),
            (Ok(answer(500)), [true, true, false]),
            (Ok(answer(502)), [true, true, false]),
            (Ok(answer(503)), [true, true, true]),
            (Ok(answer(504)), [true, true, false]),
            (failed(FailureKind::Unreachable(String::new())), [true, true, true]),
            (failed(FailureKind::Timeout), [true, true, false]),
            (failed(FailureKind::Broken(String::new())), [true, true, false]),
            (failed(FailureKind::AnswerTooLarge(1)), [false, false, false]),
            (failed(FailureKind::Throttled(Duration::ZERO)), [false, false, false]),
        ];
        for (result, expected) in rows {
            let again = [
                call(Method::POST, Retry::Always),
                call(Method::PUT, Retry::Idempotent),
                call(Method::POST, Retry::Idempotent),
            ]
            .map(|call| verdict(&call, &result) != Verdict::Done);
            assert_eq!(again, expected, "{result:?}");
            assert_eq!(verdict(&call(Method::GET, Retry::Never), &result), Verdict::Done);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_are_counted_and_the_deadline_ends_them() {
        let backoff = Backoff { initial: Duration::from_secs(1), max: Duration::from_secs(1) };
        let mut policy = RetryTransient::new(backoff, breaker());
        let mut call = call(Method::POST, Retry::Always);
        let mut result = Ok(answer(503));
        policy.retry(&mut call, &mut result).unwrap().await;
        call.deadline = Duration::ZERO;
        assert!(policy.retry(&mut call, &mut result).is_none());
        let failure = result.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Deadline(StatusCode::SERVICE_UNAVAILABLE));
        assert_eq!(failure.attempts, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_would_expire_first_is_not_tried_again() {
        let backoff = Backoff { initial: Duration::ZERO, max: Duration::ZERO };
        let mut result = Ok(Answer { retry_after: Some(Duration::from_secs(7)), ..answer(429) });
        let mut call = call(Method::POST, Retry::Always);
        call.expires = Some(Instant::now() + Duration::from_secs(5));
        assert!(RetryTransient::new(backoff, breaker()).retry(&mut call, &mut result).is_none());
        assert_eq!(result.unwrap_err().kind, FailureKind::Expired);
    }

    #[tokio::test(start_paused = true)]
    async fn retry_after_is_obeyed_to_the_second() {
        let backoff = Backoff { initial: Duration::ZERO, max: Duration::ZERO };
        let mut result = Ok(Answer { retry_after: Some(Duration::from_secs(7)), ..answer(429) });
        let began = Instant::now();
        let mut call = call(Method::POST, Retry::Always);
        RetryTransient::new(backoff, breaker()).retry(&mut call, &mut result).unwrap().await;
        assert_eq!(began.elapsed().as_secs(), 7);
    }
}
