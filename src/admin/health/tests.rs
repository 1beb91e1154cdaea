//! Every reason not to be ready, and that there is none otherwise.

use std::collections::BTreeMap;

use tokio::time::advance;

use super::*;
use crate::{
    config::{Config, SHIPPED},
    fixtures,
    log::fixtures::Page,
    upstream::InProcess,
};

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
        let mut config = Config::parse(SHIPPED, &BTreeMap::new()).unwrap();
        // Nobody is there.
        let refuse = |_: &http::Uri, _| Err(std::io::ErrorKind::ConnectionRefused.into());
        config.upstream.in_process = Some(InProcess::new(refuse));
        let metrics = Arc::new(Metrics::default());
        let upstream = Upstream::new(&config.upstream, metrics.clone()).unwrap();
        let (broker, status) = watch::channel(Status::Subscribed);
        let window = Arc::new(AtomicUsize::new(WINDOW));
        let health = Health::new(status, upstream, metrics.clone(), PATIENCE, window, 1 << 30);
        Self { health, broker, metrics, row: "telemetry".into() }
    }

    fn reasons(&self) -> String {
        let reasons = self.health.unready();
        reasons.iter().map(|reason| reason.text.as_str()).collect::<Vec<_>>().join("\n")
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
    scene.metrics.settled(&scene.row, "delivered", Instant::now());
    advance(PATIENCE).await;
    assert_eq!(
        scene.reasons(),
        "",
        "one is held, and another was settled just as long ago as may be"
    );
    advance(Duration::from_secs(1)).await;
    assert_eq!(scene.reasons(), "upstream: 1 messages held, none settled for 31 s");
    scene.metrics.settled(&scene.row, "delivered", Instant::now());
    assert_eq!(scene.reasons(), "");
}

#[tokio::test(start_paused = true)]
async fn a_device_that_holds_more_than_half_of_a_window_nearly_full_is_a_reason() {
    let scene = Scene::new();
    let shares = scene.metrics.shares().clone();
    let take = |device: &str, count: usize| -> Vec<_> {
        let device = Arc::from(device);
        (0..count).map(|_| shares.take(&device, 1, Duration::ZERO, Instant::now())).collect()
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

/// The lines of a log that remind of something, each with what it says.
fn reminders(page: &Page) -> Vec<(String, serde_json::Value)> {
    let lines = page.lines().into_iter();
    let lines = lines.map(|line| (line["message"].as_str().unwrap().to_owned(), line));
    lines.filter(|(message, _)| message.contains("still")).collect()
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_said_again_every_few_minutes_as_long_as_it_lasts() {
    let page = Page::open();
    let scene = Scene::new();
    let upstream = scene.health.upstream.clone();
    let reminder = tokio::spawn(remind(Arc::new(scene.health)));
    for _ in 0..3 {
        scene.metrics.received(&scene.row);
    }
    advance(Duration::from_secs(100)).await;
    assert_eq!(reminders(&page), [], "there is no outage");

    let held = {
        let upstream = upstream.clone();
        tokio::spawn(async move { upstream.call(fixtures::call("telemetry", "d1"), None).await })
    };
    // As long as this test has nothing to do, the clock goes on by itself.
    tokio::time::sleep(Duration::from_mins(21)).await;
    assert_eq!(upstream.outages().len(), 1);
    let said = reminders(&page);
    assert_eq!(said.len(), 4, "one every five minutes: {said:?}");
    let mut lasted = 0;
    for (message, line) in &said {
        assert_eq!(line["rows"], "telemetry");
        assert_eq!(line["count"], 1);
        assert_eq!(line["pending"], 3);
        assert!(line["sign"].as_str().unwrap().contains("refused"), "{line}");
        assert!(message.starts_with("the upstream is still down"), "{message}");
        let seconds = line["lasted_seconds"].as_u64().unwrap();
        assert!(seconds > lasted, "{said:?}");
        lasted = seconds;
    }
    held.abort();
    reminder.abort();
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_is_away_is_said_again_until_it_is_back() {
    let page = Page::open();
    let scene = Scene::new();
    scene.broker.send_replace(Status::Down("refused".to_owned()));
    let reminder = tokio::spawn(remind(Arc::new(scene.health)));
    let minutes = |minutes| tokio::time::sleep(Duration::from_mins(minutes));
    minutes(6).await;
    // Another state of the same outage: it has lasted all the time.
    scene.broker.send_replace(Status::Refused(vec!["a/+".to_owned()]));
    minutes(6).await;
    let said = reminders(&page);
    let [(_, first), (message, second)] = &*said else { panic!("{said:?}") };
    assert!(message.starts_with("still not subscribed"), "{message}");
    assert_eq!((&first["lasted_seconds"], &first["trouble"]), (&300.into(), &"refused".into()));
    assert_eq!(second["lasted_seconds"], 600);
    assert_eq!(second["trouble"], "the broker refuses a/+");
    scene.broker.send_replace(Status::Subscribed);
    minutes(20).await;
    assert_eq!(reminders(&page).len(), 2);
    // A new outage that has just begun when others would be said again.
    tokio::time::sleep(Duration::from_secs(2 * 60 + 50)).await;
    scene.broker.send_replace(Status::Down("refused".to_owned()));
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(reminders(&page).len(), 2);
    minutes(5).await;
    assert_eq!(reminders(&page).len(), 3);
    reminder.abort();
}
