//! Every reason not to be ready, and that there is none otherwise.

use std::collections::BTreeMap;

use tokio::time::advance;

use super::*;
use crate::config::{Config, SHIPPED};

const PATIENCE: Duration = Duration::from_secs(30);
const WINDOW: usize = 100;

struct Scene {
    health: Health,
    broker: watch::Sender<Status>,
    metrics: Arc<Metrics>,
    row: Arc<str>,
}

impl Scene {
    /// A gateway that is ready.
    fn new() -> Self {
        // The client wants one; it fails where another test was first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = Config::parse(SHIPPED, &BTreeMap::new()).unwrap();
        let metrics = Arc::new(Metrics::default());
        let upstream = Upstream::new(&config.upstream, metrics.clone()).unwrap();
        let (broker, status) = watch::channel(Status::Subscribed);
        let window = Arc::new(AtomicUsize::new(WINDOW));
        let health = Health::new(status, upstream, metrics.clone(), PATIENCE, window, 1 << 30);
        Self { health, broker, metrics, row: "telemetry".into() }
    }

    fn reasons(&self) -> String {
        self.health.unready().join("\n")
    }
}

#[tokio::test(start_paused = true)]
async fn every_status_of_the_broker_but_one_is_a_reason() {
    let scene = Scene::new();
    assert_eq!(scene.reasons(), "");
    for (status, reason) in [
        (Status::Down("refused".to_owned()), "broker: not connected: refused"),
        (Status::Connected, "broker: subscriptions not confirmed yet"),
        (Status::Refused(vec!["a/+".to_owned(), "b".to_owned()]), "refused: a/+, b"),
        (Status::Draining, "draining: nothing new is taken"),
        (Status::NoSession, "draining: there was no session"),
        (Status::Ended, "broker: disconnected"),
    ] {
        scene.broker.send_replace(status);
        assert!(scene.reasons().ends_with(reason), "{}", scene.reasons());
    }
    scene.broker.send_replace(Status::Subscribed);
    scene.health.stop();
    assert_eq!(scene.reasons(), "stopping");
}

#[tokio::test(start_paused = true)]
async fn messages_that_make_no_progress_are_a_reason_and_none_at_all_is_not() {
    let scene = Scene::new();
    advance(2 * PATIENCE).await;
    assert_eq!(scene.reasons(), "", "nothing to do is no standstill");
    scene.metrics.received(&scene.row);
    scene.metrics.received(&scene.row);
    scene.metrics.settled(&scene.row, "delivered", 200);
    advance(PATIENCE).await;
    assert_eq!(
        scene.reasons(),
        "",
        "one is held, and another was settled just as long ago as may be"
    );
    advance(Duration::from_secs(1)).await;
    assert_eq!(scene.reasons(), "upstream: 1 messages held, none settled for 31 s");
    scene.metrics.settled(&scene.row, "delivered", 200);
    assert_eq!(scene.reasons(), "");
}

#[tokio::test(start_paused = true)]
async fn a_device_that_holds_more_than_half_of_a_window_nearly_full_is_a_reason() {
    let scene = Scene::new();
    let shares = scene.metrics.shares().clone();
    let take = |device: &str, count: usize| -> Vec<_> {
        let device = Arc::from(device);
        (0..count).map(|_| shares.take(&device, 1, Duration::ZERO)).collect()
    };
    let mut places = take("greedy", WINDOW / 2);
    places.extend(take("other", WINDOW / 4));
    assert_eq!(scene.reasons(), "", "just half of it");
    places.extend(take("greedy", 1));
    let reasons = scene.reasons();
    assert!(reasons.starts_with("window: device \"greedy\" holds 51 of 100 messages"), "{reasons}");
    drop(places);
    assert_eq!(scene.reasons(), "");
}
