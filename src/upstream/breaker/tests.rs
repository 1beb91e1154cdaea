//! The breaker, played through by hand.

use super::*;
use crate::call::{Method, Retry, StatusCode};

const SECOND: Duration = Duration::from_secs(1);

fn breaker() -> Arc<Breaker> {
    let probe = Backoff { initial: SECOND, max: SECOND };
    Breaker::new(BreakerSettings { devices: 3, probe }, Arc::default())
}

fn call(device: &str, expires: Option<Instant>) -> Call {
    Call {
        name: "r".into(),
        device: device.into(),
        method: Method::POST,
        path: "/".to_owned(),
        body: None,
        key: None,
        retry: Retry::Always,
        made: Instant::now(),
        deadline: SECOND,
        expires,
        batch: None,
    }
}

fn answered(status: u16) -> Result<Answer, Failure> {
    StatusCode::from_u16(status).map_err(|_| FailureKind::Timeout.into()).map(|status| Answer {
        status,
        content_type: None,
        body: bytes::Bytes::new(),
        retry_after: None,
        attempts: 1,
    })
}

fn result(sign: Sign) -> Result<Answer, Failure> {
    match sign {
        Sign::Up => answered(200),
        Sign::Doubt => answered(500),
        _ => Err(FailureKind::Unreachable("refused".to_owned()).into()),
    }
}

async fn attempt(breaker: &Arc<Breaker>, device: &str, sign: Sign) {
    let permit = breaker.admit(&call(device, None)).await.unwrap();
    breaker.learn(permit, device, &result(sign));
}

#[tokio::test(start_paused = true)]
async fn one_device_that_fails_is_its_own_trouble() {
    let breaker = breaker();
    for _ in 0..100 {
        attempt(&breaker, "bad", Sign::Doubt).await;
    }
    for device in ["b", "c", "d", "e"] {
        attempt(&breaker, device, Sign::Doubt).await;
        attempt(&breaker, "good", Sign::Up).await;
    }
    assert_eq!(breaker.outage(), None);
}

#[tokio::test(start_paused = true)]
async fn several_devices_or_no_connection_mean_the_upstream_is_down() {
    let several = breaker();
    for device in ["a", "b", "c"] {
        attempt(&several, device, Sign::Doubt).await;
    }
    assert!(several.outage().is_some());
    let unreachable = breaker();
    for _ in 0..3 {
        attempt(&unreachable, "a", Sign::Down).await;
    }
    assert!(unreachable.outage().is_some());
}

#[tokio::test(start_paused = true)]
async fn one_call_at_a_time_tries_and_the_first_success_frees_all() {
    let breaker = breaker();
    for _ in 0..3 {
        attempt(&breaker, "a", Sign::Down).await;
    }
    let held: Vec<_> = (0..5)
        .map(|n| {
            let breaker = breaker.clone();
            tokio::spawn(async move {
                let permit = breaker.admit(&call(&n.to_string(), None)).await.unwrap();
                let probe = permit.probe;
                tokio::time::sleep(SECOND).await;
                // The first two find it still down.
                let lasts = breaker.outage().map(|outage| outage.since.elapsed());
                let down = lasts.is_some_and(|lasts| lasts < 5 * SECOND);
                breaker.learn(permit, "x", &result(if down { Sign::Down } else { Sign::Up }));
                probe
            })
        })
        .collect();
    tokio::time::sleep(3600 * SECOND).await;
    let probes = {
        let mut probes = 0;
        for task in held {
            probes += u32::from(task.await.unwrap());
        }
        probes
    };
    assert!(probes >= 2, "{probes} calls tried on their own");
    assert_eq!(breaker.outage(), None);
}

#[tokio::test(start_paused = true)]
async fn deadlines_begin_anew_after_an_outage() {
    let breaker = breaker();
    let (call, made) = (call("a", None), Instant::now());
    assert_eq!(breaker.deadline(&call), Some(made + SECOND));
    for _ in 0..3 {
        attempt(&breaker, "a", Sign::Down).await;
    }
    assert_eq!(breaker.deadline(&call), None);
    tokio::time::sleep(600 * SECOND).await;
    attempt(&breaker, "a", Sign::Up).await;
    assert_eq!(breaker.deadline(&call), Some(Instant::now() + SECOND));
}

#[tokio::test(start_paused = true)]
async fn a_held_call_ends_when_it_expires_or_the_gateway_stops() {
    let breaker = breaker();
    for _ in 0..3 {
        attempt(&breaker, "a", Sign::Down).await;
    }
    // Somebody is trying, so nobody else may.
    tokio::time::sleep(10 * SECOND).await;
    let _probe = breaker.admit(&call("probe", None)).await.unwrap();
    let expires = Instant::now() + 5 * SECOND;
    let failure = breaker.admit(&call("a", Some(expires))).await.err().unwrap();
    assert_eq!(failure.kind, FailureKind::Held);
    assert_eq!(Instant::now(), expires);
    breaker.stop();
    assert!(breaker.admit(&call("a", None)).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_dropped_lets_the_next_one_try() {
    let breaker = breaker();
    for _ in 0..3 {
        attempt(&breaker, "a", Sign::Down).await;
    }
    drop(breaker.admit(&call("a", None)).await.unwrap());
    assert!(breaker.admit(&call("b", None)).await.unwrap().probe);
}

#[test]
fn every_result_is_a_sign() {
    for status in [200, 302, 400, 401, 404, 422, 501] {
        assert_eq!(sign(&answered(status)), Sign::Up, "{status}");
    }
    for status in [408, 429, 500, 502, 503, 504] {
        assert_eq!(sign(&answered(status)), Sign::Doubt, "{status}");
    }
    let failed = |kind| sign(&Err(Failure::from(kind)));
    assert_eq!(failed(FailureKind::Unreachable(String::new())), Sign::Down);
    assert_eq!(failed(FailureKind::Timeout), Sign::Doubt);
    assert_eq!(failed(FailureKind::Broken(String::new())), Sign::Doubt);
}
