//! Verdicts, waits and ends.

use std::time::Duration;

use super::*;
use crate::{
    call::Method,
    upstream::{
        breaker::MAX_OBEYED_RETRY_AFTER,
        fixtures::{self, NO_WAIT, answer, shared_breaker},
    },
};

fn call(method: Method, retry: Retry) -> Call {
    Call { method, retry, ..fixtures::call("r", "d") }
}

#[tokio::test]
async fn every_result_has_its_verdict() {
    let failed = |kind| Err::<Answer, _>(Failure::from(kind));
    // Result, then whether it is repeated: POST always, PUT idempotent, POST idempotent, GET never.
    let rows = [
        (Ok(answer(200)), [false, false, false, false]),
        (Ok(answer(302)), [false, false, false, false]),
        (Ok(answer(400)), [false, false, false, false]),
        (Ok(answer(401)), [false, false, false, false]),
        (Ok(answer(404)), [false, false, false, false]),
        (Ok(answer(422)), [false, false, false, false]),
        (Ok(answer(501)), [false, false, false, false]),
        (Ok(answer(408)), [true, true, false, false]),
        (Ok(answer(429)), [true, true, true, false]),
        (Ok(answer(500)), [true, true, false, false]),
        (Ok(answer(502)), [true, true, false, false]),
        (Ok(answer(503)), [true, true, true, false]),
        (Ok(answer(504)), [true, true, false, false]),
        (failed(FailureKind::Unreachable(String::new())), [true, true, true, false]),
        // No attempt at all.
        (failed(FailureKind::Local(String::new())), [true, true, true, true]),
        // The API has not let it in.
        (failed(FailureKind::Barred(StatusCode::UNAUTHORIZED)), [true, true, true, true]),
        (failed(FailureKind::AttemptTimeout), [true, true, false, false]),
        (failed(FailureKind::Broken(String::new())), [true, true, false, false]),
        (failed(FailureKind::AnswerTooLarge(1)), [false, false, false, false]),
        (failed(FailureKind::Coding(String::new())), [false, false, false, false]),
        (failed(FailureKind::Throttled(Duration::ZERO)), [false, false, false, false]),
        (failed(FailureKind::Deadline(StatusCode::BAD_GATEWAY)), [false, false, false, false]),
        (failed(FailureKind::Expired), [false, false, false, false]),
    ];
    for (result, expected) in rows {
        let again = [
            call(Method::POST, Retry::Always),
            call(Method::PUT, Retry::Idempotent),
            call(Method::POST, Retry::Idempotent),
            call(Method::GET, Retry::Never),
        ]
        .map(|call| verdict(&call, result.as_ref()) == Verdict::Again);
        assert_eq!(again, expected, "{result:?}");
    }
}

#[test]
fn every_result_says_something_about_the_api_or_nothing() {
    let call = Call { ok_on: [StatusCode::CONFLICT].into(), ..call(Method::POST, Retry::Always) };
    for status in [204, 409] {
        assert_eq!(sign(&call, Ok(&answer(status))), Sign::Served, "{status}");
    }
    for status in [302, 400, 401, 404, 422, 501] {
        assert_eq!(sign(&call, Ok(&answer(status))), Sign::Refused, "{status}");
    }
    for status in [408, 429, 500, 502, 503, 504] {
        assert_eq!(sign(&call, Ok(&answer(status))), Sign::Failed, "{status}");
    }
    let failed = |kind| sign(&call, Err(&Failure::from(kind)));
    assert_eq!(failed(FailureKind::Unreachable(String::new())), Sign::Unreachable);
    assert_eq!(failed(FailureKind::Barred(StatusCode::UNAUTHORIZED)), Sign::Barred);
    assert_eq!(failed(FailureKind::AttemptTimeout), Sign::Hung);
    assert_eq!(failed(FailureKind::Broken(String::new())), Sign::Failed);
    assert_eq!(failed(FailureKind::AnswerTooLarge(1)), Sign::Refused);
    assert_eq!(failed(FailureKind::Coding(String::new())), Sign::Refused);
    for kind in [
        FailureKind::Expired,
        FailureKind::Local(String::new()),
        FailureKind::Throttled(Duration::ZERO),
        FailureKind::Deadline(StatusCode::BAD_GATEWAY),
    ] {
        assert_eq!(failed(kind), Sign::Nothing);
    }
}

/// One attempt with this result, and the wait that follows; how the call has ended, if it has.
async fn attempt(
    policy: &mut RetryTransient,
    call: &mut Attempt,
    result: Result<Answer, Failure>,
) -> Option<Failure> {
    let mut result = result.map_err(Unanswered::from);
    policy.retry(call, &mut result)?.await;
    let mut end = Err(Failure::unmade(call.trial.ended()?.clone()).into());
    assert!(policy.retry(call, &mut end).is_none());
    match end {
        Err(Unanswered::Failed(failure)) => Some(failure),
        Ok(_) | Err(Unanswered::Stopping) => None,
    }
}

/// Another device is served, again and again.
fn keep_serving(breaker: &Arc<SharedBreaker>) -> tokio::task::JoinHandle<()> {
    let breaker = breaker.clone();
    tokio::spawn(async move {
        loop {
            sleep(Duration::from_millis(100)).await;
            serve(&breaker);
        }
    })
}

/// Another device is served.
fn serve(breaker: &Arc<SharedBreaker>) {
    breaker.learn(&fixtures::call("r", "well"), Sign::Served, &"");
}

#[tokio::test(start_paused = true)]
async fn attempts_are_counted_and_the_deadline_ends_them_while_others_are_served() {
    let second = Backoff { initial: Duration::from_secs(1), max: Duration::from_secs(1) };
    let breaker = shared_breaker(second);
    serve(&breaker);
    let mut policy = RetryTransient::new(second, breaker.clone());
    let since = Some(Duration::ZERO);
    let mut call = Attempt::first(Call { since, ..call(Method::POST, Retry::Always) });
    // Nobody else is served: it is held, however long.
    let mut attempts = 0;
    let began = Instant::now();
    while began.elapsed() < Duration::from_mins(10) {
        attempts += 1;
        assert_eq!(attempt(&mut policy, &mut call, Ok(answer(503))).await, None);
    }
    let serving = keep_serving(&breaker);
    let began = Instant::now();
    let failure = loop {
        attempts += 1;
        if let Some(end) = attempt(&mut policy, &mut call, Ok(answer(503))).await {
            break end;
        }
    };
    serving.abort();
    assert_eq!(failure.kind, FailureKind::Deadline(StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!(failure.attempts, attempts);
    let took = began.elapsed().as_secs();
    assert!((20..=31).contains(&took), "the gap before counts for a while: {took}");
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_when_the_message_expires_or_the_gateway_stops() {
    let breaker = shared_breaker(NO_WAIT);
    let busy = || Ok(Answer { retry_after: Some(Duration::from_secs(70)), ..answer(429) });
    let began = Instant::now();
    let expires = Some(began + Duration::from_secs(5));
    let call = || call(Method::POST, Retry::Always);
    let mut policy = RetryTransient::new(NO_WAIT, breaker.clone());
    let mut expiring = Attempt::first(Call { expires, ..call() });
    policy.retry(&mut expiring, &mut busy()).unwrap().await;
    assert_eq!(began.elapsed().as_secs(), 5);
    let wait = policy.retry(&mut Attempt::first(call()), &mut busy()).unwrap();
    breaker.stop();
    wait.await;
    assert_eq!(began.elapsed().as_secs(), 5);
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_obeyed_to_the_second_and_ends_nothing_before_it_is_over() {
    let breaker = shared_breaker(NO_WAIT);
    let serving = keep_serving(&breaker);
    let busy = || Ok(Answer { retry_after: Some(Duration::from_secs(70)), ..answer(429) });
    let since = Some(Duration::ZERO);
    let mut call = Attempt::first(Call { since, ..call(Method::POST, Retry::Always) });
    let mut policy = RetryTransient::new(NO_WAIT, breaker.clone());
    let began = Instant::now();
    // Longer than the deadline, and tried once more.
    assert_eq!(attempt(&mut policy, &mut call, busy()).await, None);
    assert_eq!(began.elapsed().as_secs(), 70);
    let end = attempt(&mut policy, &mut call, busy()).await.unwrap();
    assert_eq!(end.kind, FailureKind::Deadline(StatusCode::TOO_MANY_REQUESTS));
    assert!(began.elapsed() < Duration::from_secs(72), "it is known at once");
    serving.abort();
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_of_nothing_or_in_the_past_is_no_hot_loop() {
    let second = Backoff { initial: Duration::from_secs(1), max: Duration::from_secs(1) };
    let breaker = shared_breaker(second);
    let mut policy = RetryTransient::new(second, breaker);
    let mut call = Attempt::first(call(Method::POST, Retry::Always));
    let began = Instant::now();
    for _ in 0..100 {
        let mut result = Ok(Answer { retry_after: Some(Duration::ZERO), ..answer(429) });
        policy.retry(&mut call, &mut result).unwrap().await;
    }
    assert!(began.elapsed() > Duration::from_secs(20), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_device_asked_to_wait_longer_than_any_call_waits_is_not_tried_before() {
    let breaker = shared_breaker(NO_WAIT);
    let mut call = Attempt::first(call(Method::POST, Retry::Always));
    let hour = Duration::from_hours(1);
    let busy = || Ok(Answer { retry_after: Some(hour), ..answer(429) });
    let mut policy = RetryTransient::new(NO_WAIT, breaker.clone());
    // As long as nobody is served it is held, and tried now and then.
    let began = Instant::now();
    assert_eq!(attempt(&mut policy, &mut call, busy()).await, None);
    assert_eq!(began.elapsed(), MAX_OBEYED_RETRY_AFTER);
    let serving = keep_serving(&breaker);
    let end = attempt(&mut policy, &mut call, busy()).await.unwrap();
    serving.abort();
    assert_eq!((end.kind, end.attempts), (FailureKind::Throttled(hour), 2));
    assert!(
        began.elapsed() < MAX_OBEYED_RETRY_AFTER + Duration::from_secs(32),
        "others are served for a while"
    );
    assert_eq!(breaker.paused("r", "d"), Some(hour), "nor is the next one of this device");
    assert_eq!((breaker.paused("other", "d"), breaker.paused("r", "e")), (None, None));
    tokio::time::advance(hour).await;
    assert_eq!(breaker.paused("r", "d"), None);
}

#[tokio::test(start_paused = true)]
async fn a_fault_of_this_machine_says_nothing_about_the_api() {
    let second = Backoff { initial: Duration::from_secs(1), max: Duration::from_secs(1) };
    let breaker = shared_breaker(second);
    let mut policy = RetryTransient::new(second, breaker.clone());
    let (since, deadline) = (Some(Duration::ZERO), Duration::ZERO);
    let mut call = Attempt::first(Call { deadline, since, ..call(Method::POST, Retry::Never) });
    for _ in 0..20 {
        let mut result = Err(FailureKind::Local("too many open files".to_owned()).into());
        policy.retry(&mut call, &mut result).unwrap().await;
        serve(&breaker);
    }
    assert!(breaker.outages().is_empty());
    assert_eq!(breaker.local_fault().as_deref(), Some("too many open files"));
}
