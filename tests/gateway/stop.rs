//! Stopping: signals, exit codes, and what becomes of messages under way.

use std::time::Duration;

use serde_json::json;
use wiremock::ResponseTemplate;

use crate::harness::{Broker, Gateway, Options, Upstream, run};

const TELEMETRY: &str = "/v1/devices/d1/telemetry";

fn slow(seconds: u64) -> ResponseTemplate {
    ResponseTemplate::new(200).set_body_json(json!({})).set_delay(Duration::from_secs(seconds))
}

#[tokio::test]
async fn a_clean_stop_finishes_what_is_under_way_and_leaves_the_rest() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    upstream.responds("POST", TELEMETRY, slow(1)).await;
    let mut gateway = Gateway::start(&broker, &upstream).await;
    let mut device = broker.device("d1").await;
    for n in 0..2 {
        let mut message = device.message("telemetry", json!({"n": n}).to_string());
        message.props.response_topic = Some(device.topic("answers"));
        device.publish(message).await;
    }
    upstream.arrived("POST /v1/devices/d1/telemetry", 1).await;
    // A neighbour's message, settled behind one that will not be.
    let mut neighbour = broker.device("d2").await;
    upstream.answers("POST", "/v1/devices/d2/telemetry", 200, json!({})).await;
    neighbour.ask("telemetry", json!({})).await;
    assert_eq!(gateway.stop().await.code(), Some(0));
    assert_eq!(device.next().await.user("status"), "200", "what was under way is answered");
    let first = "POST /v1/devices/d1/telemetry";
    assert_eq!(upstream.count(first).await, 1, "the second was not begun");

    // The session was neither ended nor unsubscribed: the second comes to the next gateway, and so
    // does what was sent in between; the first does not come again.
    device.send("telemetry", json!({"n": 2})).await;
    upstream.responds("POST", TELEMETRY, slow(0)).await;
    let _gateway = Gateway::start(&broker, &upstream).await;
    upstream.arrived("POST /v1/devices/d1/telemetry", 3).await;
    assert_eq!(
        upstream.count("POST /v1/devices/d2/telemetry").await,
        1,
        "nor does the neighbour's"
    );
    let bodies: Vec<_> = upstream
        .requests()
        .await
        .iter()
        .filter(|request| request.url.path() == TELEMETRY)
        .map(|r| String::from_utf8(r.body.clone()).unwrap())
        .collect();
    assert_eq!(bodies, [r#"{"n":0}"#, r#"{"n":1}"#, r#"{"n":2}"#]);
}

#[tokio::test]
async fn an_interrupt_is_clean_as_well_when_idle() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let mut gateway = Gateway::start(&broker, &upstream).await;
    gateway.signal("INT");
    assert_eq!(gateway.ended().await.code(), Some(0));
}

#[tokio::test]
async fn while_stopping_it_is_not_ready_and_a_second_signal_ends_it_at_once() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    upstream.responds("POST", TELEMETRY, slow(60)).await;
    let mut gateway = Gateway::start(&broker, &upstream).await;
    let mut device = broker.device("d1").await;
    device.send("telemetry", json!({})).await;
    upstream.arrived("POST /v1/devices/d1/telemetry", 1).await;
    gateway.signal("TERM");
    crate::harness::eventually("stopping", || async {
        gateway.get("/readyz").await.1.contains("stopping").then_some(())
    })
    .await;
    gateway.signal("TERM");
    assert_eq!(gateway.ended().await.code(), Some(1));
}

#[tokio::test]
async fn the_grace_bounds_the_stop() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    upstream.responds("POST", TELEMETRY, slow(60)).await;
    let mut gateway =
        Options::default().set("SHUTDOWN_GRACE", "300ms").start(&broker, &upstream).await;
    let mut device = broker.device("d1").await;
    device.send("telemetry", json!({})).await;
    upstream.arrived("POST /v1/devices/d1/telemetry", 1).await;
    assert_eq!(gateway.stop().await.code(), Some(1));
    gateway.logs("grace_ran_out").await;
}

#[tokio::test]
async fn a_bad_configuration_ends_with_78_before_any_socket() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    std::fs::write(&file, "[broker]\nkeep_alive = \"soon\"\n").unwrap();
    for command in [&["run"][..], &["check"], &["routes"], &[]] {
        let (code, _, error) =
            run(&[&["--config", file.to_str().unwrap()], command].concat(), "").await;
        assert_eq!(code, 78, "{error}");
        assert!(error.contains("line 2: [broker] keep_alive"), "{error}");
    }
    let (code, _, error) = run(&["--config", "/nowhere.toml"], "").await;
    assert_eq!(code, 78);
    assert!(error.contains("/nowhere.toml"), "{error}");
}

/// What is settled behind a message that hangs does not come back with it.
#[tokio::test]
async fn at_the_end_of_the_grace_what_is_settled_is_acknowledged() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    upstream.responds("POST", TELEMETRY, slow(60)).await;
    upstream.answers("POST", "/v1/devices/d2/telemetry", 200, json!({})).await;
    let options =
        Options::default().set("SHUTDOWN_GRACE", "500ms").set("BROKER_ACK_HOLD", "forever");
    let mut gateway = options.start(&broker, &upstream).await;
    broker.device("d1").await.send("telemetry", json!({})).await;
    upstream.arrived("POST /v1/devices/d1/telemetry", 1).await;
    let mut neighbour = broker.device("d2").await;
    for _ in 0..5 {
        neighbour.ask("telemetry", json!({})).await;
    }
    assert_eq!(gateway.stop().await.code(), Some(1));
    upstream.answers("POST", TELEMETRY, 200, json!({})).await;
    let _gateway = Gateway::start(&broker, &upstream).await;
    upstream.arrived("POST /v1/devices/d1/telemetry", 2).await;
    neighbour.ask("telemetry", json!({})).await;
    assert_eq!(upstream.count("POST /v1/devices/d2/telemetry").await, 6);
}

/// DISCONNECT cannot be sent: to wait for it would use up the grace.
#[tokio::test]
async fn a_stop_does_not_wait_for_a_broker_that_is_gone() {
    let (mut broker, upstream) = (Broker::start().await, Upstream::start().await);
    upstream.responds("POST", TELEMETRY, slow(1)).await;
    let mut gateway = Gateway::start(&broker, &upstream).await;
    let mut device = broker.device("d1").await;
    let mut message = device.message("telemetry", "{}");
    message.props.response_topic = Some(device.topic("answers"));
    device.publish(message).await;
    upstream.arrived("POST /v1/devices/d1/telemetry", 1).await;
    broker.stop().await;
    let began = tokio::time::Instant::now();
    assert_eq!(gateway.stop().await.code(), Some(1));
    // Of 25 s.
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    gateway.logs("the broker cannot be reached; messages").await;
}
