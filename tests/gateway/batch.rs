//! Calls of different devices that travel together: together when they wait anyway, each with its own end.

use std::time::Duration;

use mqtt_rest_gateway::config::SHIPPED;
use serde_json::{Value, json};
use tokio::time::sleep;
use wiremock::ResponseTemplate;

use crate::{
    fixture::path,
    harness::{Broker, Device, Gateway, Options, Upstream, run},
    link::Cut,
    load::{Seed, between},
    rig::Rig,
};

const MASS: &str = "/v1/devices/telemetries";

/// The shipped configuration with the one line that turns it on.
pub fn shipped_with_batch() -> String {
    assert!(SHIPPED.contains("# batch = "));
    SHIPPED.replace("# batch = ", "batch = ")
}

/// One call at a time, so that what comes meanwhile waits.
async fn stage() -> (Broker, Upstream, Gateway) {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let options = Options::default().config(&shipped_with_batch());
    let gateway = options.set("UPSTREAM_MAX_IN_FLIGHT", "100").start(&broker, &upstream).await;
    (broker, upstream, gateway)
}

/// Sends telemetry of each while a first call hangs for a while; the entries of the next one.
async fn together(broker: &Broker, upstream: &Upstream, devices: &mut [Device]) -> Value {
    let first = ResponseTemplate::new(201).set_body_json(json!({"first": {}}));
    let first = first.set_delay(Duration::from_millis(500));
    upstream.responds_times("POST", MASS, 1, first).await;
    broker.device("first").await.send("telemetry", json!({})).await;
    upstream.arrived(&format!("POST {MASS}"), 1).await;
    for device in devices {
        let mut message = device.message("telemetry", json!({"of": device.id}).to_string());
        message.props.response_topic = Some(device.topic("answers"));
        device.publish(message).await;
    }
    upstream.arrived(&format!("POST {MASS}"), 2).await;
    let requests = upstream.requests().await;
    let mass: Vec<_> = requests.iter().filter(|request| request.url.path() == MASS).collect();
    assert!(!mass[1].headers.contains_key("authorization"), "each entry has its own key");
    mass[1].body_json().unwrap()
}

#[tokio::test]
async fn calls_that_wait_travel_as_one_and_each_device_gets_its_own_answer() {
    let (broker, upstream, gateway) = stage().await;
    let mut devices = [broker.device("a").await, broker.device("b").await];
    let answer = json!({"a": {"command": true}, "b": {"config_version": 4}});
    upstream.answers("POST", MASS, 201, answer).await;
    upstream.answers("GET", "/v1/devices/a/command", 200, json!({"id": 1})).await;
    upstream.answers("GET", "/v1/devices/b/config", 200, json!({"version": 4})).await;
    let entries = together(&broker, &upstream, &mut devices).await;
    let expected = json!({
        "a": {"of": "a", "access_token": "key-of-a"},
        "b": {"of": "b", "access_token": "key-of-b"},
    });
    assert_eq!(entries, expected);
    let [a, b] = &mut devices;
    // Its own answer, and the push that follows from it.
    let answer = a.on("v1/device/a/answers").await;
    assert_eq!((answer.user("status"), answer.json()), ("201", json!({"command": true})));
    assert_eq!(a.on("v1/device/a/commands").await.json(), json!({"id": 1}));
    assert_eq!(b.on("v1/device/b/answers").await.json(), json!({"config_version": 4}));
    assert_eq!(b.on("v1/device/b/config").await.json(), json!({"version": 4}));
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["delivered"], 3).await;
    assert_eq!(upstream.count(&format!("POST {}", path("a"))).await, 0);
}

#[tokio::test]
async fn a_call_that_is_alone_is_not_kept_waiting() {
    let (broker, upstream, _gateway) = stage().await;
    upstream.answers("POST", MASS, 201, json!({"a": {}})).await;
    let mut device = broker.device("a").await;
    assert_eq!(device.ask("telemetry", json!({})).await.user("status"), "201");
    assert_eq!(upstream.calls().await, [format!("POST {MASS}")]);
}

#[tokio::test]
async fn a_bad_entry_costs_the_others_nothing() {
    let (broker, upstream, gateway) = stage().await;
    let mut dead = broker.listener("dead", "mqtt-rest-gateway/dead-letter/#").await;
    let mut devices =
        [broker.device("a").await, broker.device("b").await, broker.device("c").await];
    // `c` is not mentioned at all.
    let answer = json!({"a": {"ok": 1}, "b": {"error": "Invalid access token"}});
    upstream.answers("POST", MASS, 422, answer).await;
    upstream.answers("POST", &path("b"), 401, json!({"error": "Not authorized"})).await;
    upstream.answers("POST", &path("c"), 200, json!({"ok": 3})).await;
    together(&broker, &upstream, &mut devices).await;
    let [a, b, c] = &mut devices;
    let answer = a.next().await;
    assert_eq!((answer.user("status"), answer.json()), ("200", json!({"ok": 1})));
    // What the batch does not settle is asked by itself, and has its own status.
    let answer = b.next().await;
    assert_eq!((answer.user("status"), answer.json()), ("401", json!({"error": "Not authorized"})));
    let letter = dead.next().await;
    assert_eq!(
        (letter.user("reason"), letter.user("topic")),
        ("rejected", "v1/device/b/telemetry")
    );
    assert_eq!(c.next().await.json(), json!({"ok": 3}));
    assert_eq!(upstream.count(&format!("POST {}", path("a"))).await, 0);
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &[], 4).await;
}

#[tokio::test]
async fn when_a_batch_fails_each_call_is_made_by_itself() {
    let (broker, upstream, gateway) = stage().await;
    for (status, body) in [(500, json!({})), (404, json!({})), (200, json!("ok")), (201, json!([]))]
    {
        upstream.answers("POST", MASS, status, body).await;
        for device in ["a", "b"] {
            upstream.answers("POST", &path(device), 200, json!({"single": true})).await;
            let answer = broker.device(device).await.ask("telemetry", json!({})).await;
            assert_eq!(answer.json(), json!({"single": true}), "{status}");
        }
    }
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["delivered"], 8).await;
    gateway.metric_is("mqtt_rest_gateway_upstream_outages_total", &[], 0).await;
    // No object can have a key put in.
    upstream.answers("POST", MASS, 201, json!({"a": {}})).await;
    let mut device = broker.device("a").await;
    assert_eq!(device.ask("telemetry", json!([1])).await.json(), json!({"single": true}));
}

/// A parser of the API that takes fewer levels than ours refuses the batch for one body: the others go by
/// themselves, and only that one fails.
#[tokio::test]
async fn a_body_too_deep_for_the_api_costs_the_others_nothing() {
    let (broker, upstream, gateway) = stage().await;
    let mut devices = [broker.device("a").await, broker.device("deep").await];
    upstream.answers("POST", MASS, 400, json!({"error": "nested too deeply"})).await;
    upstream.answers("POST", &path("first"), 200, json!({})).await;
    upstream.answers("POST", &path("a"), 200, json!({"ok": 1})).await;
    upstream.answers("POST", &path("deep"), 400, json!({"error": "nested too deeply"})).await;
    let deep = (0..100).fold(json!(1), |value, _| json!([value]));
    let first = ResponseTemplate::new(201).set_body_json(json!({"first": {}}));
    let first = first.set_delay(Duration::from_millis(500));
    upstream.responds_times("POST", MASS, 1, first).await;
    broker.device("first").await.send("telemetry", json!({})).await;
    upstream.arrived(&format!("POST {MASS}"), 1).await;
    for device in &mut devices {
        let body = if device.id == "deep" { json!({"x": deep}) } else { json!({}) };
        let mut message = device.message("telemetry", body.to_string());
        message.props.response_topic = Some(device.topic("answers"));
        device.publish(message).await;
    }
    let [a, deep] = &mut devices;
    let answer = a.next().await;
    assert_eq!((answer.user("status"), answer.json()), ("200", json!({"ok": 1})));
    assert_eq!(deep.next().await.user("status"), "400");
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["delivered"], 2).await;
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["rejected"], 1).await;
    assert_eq!(upstream.count(&format!("POST {MASS}")).await, 2, "both travelled together");
}

#[tokio::test]
async fn explain_shows_the_call_and_its_batch() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    std::fs::write(&file, shipped_with_batch()).unwrap();
    let config = ["--config", file.to_str().unwrap(), "explain", "v1/device/d1/telemetry"];
    let message = ["--payload", "-", "--property", "device_id=d1", "--property", "access_key=k"];
    let (code, out, error) = run(&[&config[..], &message].concat(), "{}").await;
    assert_eq!(code, 0, "{error}");
    for line in [
        "request  POST https://hub.example.com/v1/devices/d1/telemetry",
        "or with others: POST https://hub.example.com/v1/devices/telemetries, 100 at most",
    ] {
        assert!(out.contains(line), "{line} is not in {out}");
    }
}

#[tokio::test]
async fn faults_cost_no_loss_no_order_and_no_second_post() {
    let seed = Seed::new().await;
    let mut rng = seed.rng();
    // Calls of many devices are slow here: the API notes one after the other.
    let rig = Rig::new().await.config(&shipped_with_batch());
    rig.api.delay(Duration::from_millis(5));
    let (mut rig, gateway, sending) = rig.start(&mut rng).await;
    for cut in 1..=4 {
        gateway.metric_reaches("mqtt_rest_gateway_broker_connects_total", &[], cut).await;
        sleep(between(&mut rng, 50, 400)).await;
        rig.to_broker.cut(if rng.bool() { Cut::Reset } else { Cut::Close });
        rig.api.fails((0..2).map(|_| format!("d{}", rng.usize(..20))));
        sleep(between(&mut rng, 50, 400)).await;
        rig.api.fails([]);
    }
    rig.ends(gateway, sending).await.exactly_once();
    assert!(rig.api.batches() > 0);
}

#[tokio::test]
async fn killed_with_batches_under_way_nothing_is_lost() {
    let seed = Seed::new().await;
    let mut rng = seed.rng();
    let rig = Rig::new().await.config(&shipped_with_batch());
    rig.api.delay(Duration::from_millis(5));
    let (mut rig, mut gateway, sending) = rig.start(&mut rng).await;
    for _ in 0..4 {
        sleep(between(&mut rng, 50, 500)).await;
        gateway.kill().await;
        gateway = rig.gateway().await;
    }
    let account = rig.ends(gateway, sending).await;
    account.nothing_lost_and_all_in_order();
    assert!(account.twice.is_empty(), "{account:?}");
}
