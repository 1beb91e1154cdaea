//! The breaker, step by step.

use http::StatusCode;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A breaker, a row, and the time.
struct Scene {
    breaker: Breaker,
    row: Arc<str>,
    now: Instant,
}

impl Scene {
    fn new(probe_path: Option<&str>) -> Self {
        let now = Instant::now();
        let probe = Backoff { initial: SECOND, max: 30 * SECOND };
        let settings =
            BreakerSettings { devices: 3, probe, probe_path: probe_path.map(Into::into) };
        let breaker =
            Breaker::new(settings, Backoff { initial: SECOND, max: 10 * SECOND }, 30 * SECOND, now);
        Self { breaker, row: "r".into(), now }
    }

    fn learn(&mut self, device: u64, sign: Sign) {
        self.breaker.learn(&self.row, device, sign, &"500", self.now);
    }

    fn fails(&mut self, device: u64) {
        self.learn(device, Sign::Failed);
    }

    fn serves(&mut self, device: u64) {
        self.learn(device, Sign::Served);
    }

    /// A call that has failed so often waits.
    fn waits(&mut self, failures: u32) -> CallId {
        let first = self.breaker.first_failure(&self.row, self.now);
        let (deadline, retry_after, others_served) = (30 * SECOND, None, None);
        let spent = Duration::ZERO;
        let row = &self.row.clone();
        let call = FailedCall { row, failures, first, spent, deadline, others_served, retry_after };
        self.breaker.wait(&call, self.now)
    }

    fn later(&mut self, time: Duration) -> Vec<CallId> {
        self.now += time;
        let due = self.breaker.poll(self.now);
        due.released.into_iter().map(|(id, _)| id).collect()
    }

    fn is_down(&self) -> bool {
        !self.breaker.outages().is_empty()
    }
}

#[test]
fn one_failing_device_is_no_outage() {
    let mut scene = Scene::new(Some("/"));
    scene.serves(9);
    for _ in 0..100 {
        scene.fails(1);
    }
    assert!(!scene.is_down());
    for device in 1..20 {
        scene.fails(device);
        scene.serves(9);
    }
    assert!(!scene.is_down());
}

#[test]
fn several_devices_on_a_row_or_no_connection_are_an_outage_and_a_success_ends_it() {
    let mut scene = Scene::new(Some("/"));
    for device in 1..=3 {
        assert!(!scene.is_down());
        scene.fails(device);
        scene.fails(device);
        if device == 2 {
            // No other device is known.
            break;
        }
    }
    assert!(scene.is_down());
    let other: Arc<str> = "other".into();
    scene.breaker.learn(&other, 9, Sign::Served, &"", scene.now);
    assert!(scene.is_down(), "another row says nothing about this one");
    scene.learn(9, Sign::Refused);
    assert!(scene.is_down(), "nor does a call that is refused for good");
    scene.serves(9);
    assert!(!scene.is_down());

    let mut scene = Scene::new(Some("/"));
    for _ in 0..3 {
        assert!(!scene.is_down());
        scene.breaker.learn(&scene.row, 1, Sign::Unreachable, &"refused", scene.now);
    }
    assert_eq!(scene.breaker.outages()[0].sign, "refused");
}

#[test]
fn devices_that_fail_while_others_are_served_are_no_witnesses() {
    let mut scene = Scene::new(Some("/"));
    for device in 10..15 {
        scene.serves(device);
    }
    // Three of them fail all the time, and others are served in between.
    for _ in 0..2 {
        for device in 1..=2 {
            scene.fails(device);
        }
        scene.serves(10);
        scene.fails(3);
        scene.serves(10);
    }
    for device in 1..=3 {
        scene.fails(device);
    }
    assert!(!scene.is_down());
    // When others fail as well, it is an outage.
    for device in 10..13 {
        scene.fails(device);
    }
    assert!(scene.is_down());
}

#[test]
fn the_probe_tells_a_bad_message_from_an_outage_where_only_one_device_speaks() {
    let mut scene = Scene::new(Some("/health"));
    scene.fails(1);
    let id = scene.waits(1);
    assert!(scene.breaker.poll(scene.now).probe);
    assert!(!scene.breaker.poll(scene.now).probe, "one at a time");
    scene
        .breaker
        .learn_from_probe(Err(ProbeFailure::Answered(StatusCode::SERVICE_UNAVAILABLE)), scene.now);
    assert_eq!(scene.breaker.outages()[0].sign, "the API answers 503 Service Unavailable");
    assert!(scene.breaker.next_timeout(scene.now).is_some_and(|next| next > scene.now));
    scene.now += 10 * SECOND;
    let due = scene.breaker.poll(scene.now);
    assert!(due.probe);
    assert_eq!(due.released.len(), 1, "a call is tried meanwhile");
    scene.fails(1);
    let again = scene.waits(2);
    scene.breaker.learn_from_probe(Ok(()), scene.now);
    assert!(!scene.is_down() && again != id);
    assert_eq!(scene.later(Duration::ZERO), [again], "the call that waited because of it is ready");
}

#[test]
fn without_a_probe_an_outage_ends_when_no_call_waits_any_more() {
    let mut scene = Scene::new(None);
    (1..=3).for_each(|device| scene.fails(device));
    let id = scene.waits(1);
    assert!(scene.is_down());
    assert!(!scene.breaker.poll(scene.now).probe);
    let row = scene.row.clone();
    scene.breaker.cancel(&row, id);
    scene.later(SECOND);
    assert!(!scene.is_down() && scene.breaker.is_idle());
}

#[test]
fn in_an_outage_one_call_at_a_time_is_tried_and_the_one_with_fewest_failures_first() {
    let mut scene = Scene::new(Some("/"));
    (1..=3).for_each(|device| scene.fails(device));
    let ids: Vec<_> = [5, 1, 3].into_iter().map(|failures| scene.waits(failures)).collect();
    let mut tried = Vec::new();
    for _ in 0..100 {
        let released = scene.later(SECOND / 10);
        assert!(released.len() <= 1);
        tried.extend(released);
    }
    assert_eq!(tried, [ids[1], ids[2], ids[0]]);
}

#[test]
fn calls_that_waited_come_back_at_a_growing_rate() {
    let mut scene = Scene::new(Some("/"));
    (1..=3).for_each(|device| scene.fails(device));
    for _ in 0..100 {
        scene.waits(1);
    }
    let mut sizes = Vec::new();
    let mut under_way = 1;
    while under_way > 0 {
        // Each call that was released is served.
        (0..under_way).for_each(|_| scene.serves(9));
        under_way = scene.later(Duration::from_millis(1)).len();
        sizes.push(under_way);
    }
    assert_eq!(sizes.iter().sum::<usize>(), 100);
    assert!(sizes.iter().take(4).eq(&[3, 6, 12, 24]) || sizes[0] <= 4, "{sizes:?}");
    assert!(sizes.windows(2).all(|pair| pair[1] <= 2 * pair[0] + 1), "{sizes:?}");
}

#[test]
fn no_call_waits_longer_than_the_longest_wait() {
    let mut scene = Scene::new(Some("/"));
    (1..=3).for_each(|device| scene.fails(device));
    for _ in 0..100 {
        scene.waits(9);
    }
    let mut tried = scene.later(14 * SECOND).len();
    assert!(tried <= 1);
    tried += scene.later(17 * SECOND).len();
    assert_eq!(tried, 100);
}

#[test]
fn retry_after_for_one_device_is_obeyed_and_for_everybody_until_a_call_is_served() {
    let mut scene = Scene::new(Some("/"));
    (1..=3).for_each(|device| scene.fails(device));
    let mut asked = |for_device: bool| {
        let first = scene.breaker.first_failure("r", scene.now);
        let row = &scene.row.clone();
        let call = FailedCall {
            row,
            failures: 1,
            first,
            spent: Duration::ZERO,
            deadline: SECOND,
            others_served: None,
            retry_after: Some(RetryAfter { wait: 100 * SECOND, for_device }),
        };
        scene.breaker.wait(&call, scene.now)
    };
    let (for_device, general) = (asked(true), asked(false));
    assert!(scene.later(40 * SECOND).is_empty(), "longer than a call waits without being asked");
    scene.serves(9);
    assert_eq!(scene.later(SECOND), [general]);
    assert_eq!(scene.later(60 * SECOND), [for_device]);
}

#[test]
fn credentials_that_are_refused_are_an_outage_that_no_probe_ends() {
    let mut scene = Scene::new(Some("/"));
    scene.serves(9);
    for _ in 0..3 {
        assert!(!scene.is_down());
        scene.breaker.learn(&scene.row, 1, Sign::Barred, &"it answers 401", scene.now);
    }
    assert_eq!(scene.breaker.outages()[0].sign, "it answers 401");
    let other: Arc<str> = "other".into();
    scene.breaker.learn(&other, 9, Sign::Served, &"", scene.now);
    // The call waits long past its deadline, and the probe, which carries no credentials, is answered all the time.
    let mut waiting = vec![scene.waits(3)];
    for _ in 0..100 {
        let released = scene.later(SECOND);
        if !released.is_empty() {
            assert_eq!(released, waiting);
            scene.breaker.learn(&scene.row, 1, Sign::Barred, &"it answers 403", scene.now);
            waiting = vec![scene.waits(9)];
        }
        scene.breaker.learn_from_probe(Ok(()), scene.now);
        assert!(scene.is_down());
    }
    assert_eq!(scene.breaker.outages()[0].sign, "it answers 403", "it says what is wrong now");
    // Let in, and refused for another reason: whoever answers so knows our credentials.
    scene.learn(1, Sign::Refused);
    scene.breaker.learn_from_probe(Ok(()), scene.now);
    assert!(!scene.is_down());
}
