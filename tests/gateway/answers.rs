//! Answers that lie, or say too much: a success that is no JSON, a fetch that fails, an answer too large to be
//! read. Nothing is pushed or remembered for them, the device is told what failed, and the next good answer is pushed.

use std::time::Duration;

use serde_json::{Value, json};
use wiremock::ResponseTemplate;

use crate::harness::{Broker, Device, Gateway, Options, Upstream, nobody};

const DEVICE: &str = "/v1/devices/d1";

async fn stage() -> (Broker, Upstream, Gateway, Device) {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let gateway = Gateway::start(&broker, &upstream).await;
    let device = broker.device("d1").await;
    (broker, upstream, gateway, device)
}

/// What a proxy answers in the API's place.
fn page() -> ResponseTemplate {
    ResponseTemplate::new(200).set_body_raw("<html>please log in</html>", "text/html")
}

fn at(below: &str) -> String {
    format!("{DEVICE}/{below}").trim_end_matches('/').to_owned()
}

#[tokio::test]
async fn a_page_of_html_is_not_pushed_and_the_next_json_is() {
    let (_broker, upstream, gateway, mut device) = stage().await;
    upstream.answers("POST", &at("telemetry"), 200, json!({"config_version": 7})).await;
    for lie in [
        page(),
        ResponseTemplate::new(200).set_body_raw([0x1f, 0x8b, 8, 0, 0], "application/json"),
        ResponseTemplate::new(200).set_body_raw("{\"version\":7", "application/json"),
        ResponseTemplate::new(200).set_body_raw("{\"a\":NaN}", "application/json"),
    ] {
        upstream.responds("GET", &at("config"), lie).await;
        assert_eq!(device.ask("telemetry", json!({})).await.user("status"), "200");
    }
    gateway.metric_is("mqtt_rest_gateway_fetches_total", &["config", "failed"], 4).await;
    gateway.logs("a fetch failed: nothing is pushed").await;
    // The API's own type goes with what is passed through.
    let right = ResponseTemplate::new(200);
    let right = right.set_body_raw("{\"version\":7}", "application/json; charset=utf-8");
    upstream.responds("GET", &at("config"), right).await;
    device.send("telemetry", json!({})).await;
    let push = device.next().await;
    assert_eq!(push.json(), json!({"version": 7}));
    assert_eq!(push.props.content_type.as_deref(), Some("application/json; charset=utf-8"));
}

#[tokio::test]
async fn an_answer_that_is_no_json_is_logged_and_nothing_follows_from_it() {
    let (_broker, upstream, gateway, mut device) = stage().await;
    let large = format!("{{\"command\":true,\"x\":\"{}\"}}", "x".repeat(300 * 1024));
    let large = ResponseTemplate::new(200).set_body_raw(large, "application/json");
    for (count, lie) in [(1, page()), (2, page()), (3, large)] {
        upstream.responds("POST", &at("telemetry"), lie).await;
        assert_eq!(device.ask("telemetry", json!({})).await.user("status"), "200");
        gateway.metric_is("mqtt_rest_gateway_filter_errors_total", &["telemetry"], count).await;
    }
    gateway.logs("fetches that depend on it are skipped").await;
    // Not remembered as done: the page says nothing of what the device has.
    upstream.responds("PUT", DEVICE, page()).await;
    device.ask("update", json!({"firmware_version": "2"})).await;
    let news = json!({"latest_fw_version": "2", "latest_fw_file_id": 5});
    upstream.answers("POST", &at("telemetry"), 200, news.clone()).await;
    upstream.answers("GET", DEVICE, 200, json!({"firmware_version": "1"})).await;
    device.send("telemetry", json!({})).await;
    assert_eq!(device.next().await.json(), news, "as far as is known it has another version");
    assert_eq!(upstream.count("GET /v1/devices/d1/command").await, 0);
}

#[tokio::test]
async fn an_empty_answer_is_no_filter_error() {
    let (_broker, upstream, gateway, mut device) = stage().await;
    upstream.responds("POST", &at("telemetry"), ResponseTemplate::new(204)).await;
    device.ask("telemetry", json!({})).await;
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["delivered"], 1).await;
    assert_eq!(gateway.metric("mqtt_rest_gateway_filter_errors_total", &[]).await, 0);
}

#[tokio::test]
async fn a_snapshot_whose_fetches_all_fail_is_answered_as_failed() {
    let (broker, upstream, gateway, mut device) = stage().await;
    let mut dead = broker.observer("mqtt-rest-gateway/dead-letter/#").await;
    let all = ["space", "config", "command", "licenses", "files", ""];
    for (below, status) in all.iter().zip([403, 401, 404, 403, 403, 403]) {
        upstream.answers("GET", &at(below), status, json!({"error": below})).await;
    }
    let answer = device.ask("get", json!({})).await;
    assert_eq!((answer.user("status"), answer.json()), ("404", json!({"error": "command"})));
    assert_eq!(dead.next().await.user("reason"), "rejected");
    for below in all {
        upstream.responds("GET", &at(below), page()).await;
    }
    let answer = device.ask("get", json!({})).await;
    assert_eq!((answer.user("status"), &answer.json()["code"]), ("502", &json!("broken")));
    assert_eq!(dead.next().await.user("reason"), "broken");
    // A part is better than nothing: the failure is logged, the rest is pushed.
    upstream.answers("GET", &at("config"), 200, json!({"version": 1})).await;
    assert_eq!(device.ask("get", json!({})).await.user("status"), "204");
    assert_eq!(device.next().await.topic, "v1/device/d1/config");
    gateway
        .metric_is("mqtt_rest_gateway_messages_settled_total", &["snapshot", "delivered"], 1)
        .await;
    gateway
        .metric_is("mqtt_rest_gateway_messages_settled_total", &["snapshot", "rejected"], 1)
        .await;
    dead.silent().await;
}

#[tokio::test]
async fn a_snapshot_that_is_held_when_the_gateway_stops_comes_to_the_next_one() {
    let (broker, (_socket, address)) = (Broker::start().await, nobody());
    let options = || Options::default().set("UPSTREAM_BREAKER_PROBE", "50ms");
    let away = options().set("BROKER_URL", &broker.url());
    let mut gateway = away.set("UPSTREAM_URL", &format!("http://{address}")).spawn().await;
    gateway.ready().await;
    let mut device = broker.device("d1").await;
    device.send("get", json!({})).await;
    gateway.logs("cannot be reached").await;
    assert_eq!(gateway.stop().await.code(), Some(0));
    let upstream = Upstream::start().await;
    for below in ["space", "config", "command", "licenses"] {
        upstream.answers("GET", &at(below), 200, json!({"version": 1})).await;
    }
    let gateway = options().start(&broker, &upstream).await;
    let pushed = [device.next().await.topic, device.next().await.topic];
    assert_eq!(pushed, ["v1/device/d1/space_info", "v1/device/d1/config"]);
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["delivered"], 1).await;
}

#[tokio::test]
async fn a_fetch_answered_401_forgets_nothing_of_the_device() {
    let (_broker, upstream, gateway, mut device) = stage().await;
    let flags = json!({"config_version": 3, "space_data_version": 2, "latest_fw_version": "9"});
    upstream.answers("POST", &at("telemetry"), 200, flags).await;
    upstream.answers("GET", &at("config"), 200, json!({"version": 3})).await;
    upstream.answers("GET", &at("space"), 401, json!({"error": "not in a space"})).await;
    upstream.answers("GET", DEVICE, 200, json!({"firmware_version": "8"})).await;
    upstream.answers("PUT", DEVICE, 200, json!({})).await;
    for _ in 0..3 {
        assert_eq!(device.ask("telemetry", json!({})).await.user("status"), "200");
    }
    gateway.metric_is("mqtt_rest_gateway_fetches_total", &["space_info", "failed"], 3).await;
    let topics = [device.next().await.topic, device.next().await.topic];
    assert_eq!(topics, ["v1/device/d1/config", "v1/device/d1/firmware"], "once each");
    // The key is remembered as well.
    let mut keyless = device.message("update", "{\"name\":\"x\"}");
    keyless.props.user.clear();
    device.publish(keyless).await;
    upstream.arrived("PUT /v1/devices/d1", 1).await;
    device.silent().await;
}

#[tokio::test]
async fn a_thousand_licenses_are_pushed_once() {
    let (_broker, upstream, gateway, mut device) = stage().await;
    // As many as a filter may put out, in about as many bytes as it may read.
    let license = |id: usize| {
        json!({"id": id, "action": "add", "license_key": "x".repeat(90), "name": "n", "a": 1, "b": 2, "c": 3,
            "d": null, "e": true})
    };
    let licenses: Vec<Value> = (0..1000).map(license).collect();
    upstream.answers("POST", &at("telemetry"), 200, json!({"new_licenses": true})).await;
    upstream.answers("GET", &at("license"), 200, json!(licenses)).await;
    device.send("telemetry", json!({})).await;
    for id in 0..1000 {
        let push = device.next().await.json();
        assert_eq!(
            (&push["id"], &push["add"], push.get("action")),
            (&json!(id), &json!(true), None)
        );
    }
    for _ in 0..2 {
        device.ask("telemetry", json!({})).await;
    }
    gateway.metric_is("mqtt_rest_gateway_fetches_total", &["license", "repeated"], 2).await;
    device.silent().await;
}

#[tokio::test]
async fn a_payload_too_large_for_a_filter_is_refused_and_others_are_not() {
    let (_broker, upstream, _gateway, mut device) = stage().await;
    upstream.answers("POST", &at("telemetry"), 200, json!({})).await;
    let large = json!({"status": "done", "x": "x".repeat(300 * 1024)});
    for row in ["update", "commands/update"] {
        let answer = device.ask(row, large.clone()).await;
        assert_eq!((answer.user("status"), &answer.json()["code"]), ("413", &json!("too_large")));
    }
    assert_eq!(device.ask("telemetry", large).await.user("status"), "200", "it is not read");
}

#[tokio::test]
async fn no_parsed_value_is_kept_while_the_api_thinks() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let gateway = Gateway::start(&broker, &upstream).await;
    let before = gateway.peak_memory();
    // Parsed it takes some 10 MB.
    let objects = format!("[{}{{}}]", "{},".repeat(80_000));
    let payload = format!("{{\"status\":\"done\",\"x\":{objects}}}");
    let mut devices = Vec::new();
    for number in 0..16 {
        let id = format!("d{number}");
        let under = |below: &str| format!("/v1/devices/{id}/{below}");
        upstream.answers("POST", &under("command"), 200, json!({})).await;
        let slow = ResponseTemplate::new(200).set_body_json(json!({}));
        let slow = slow.set_delay(Duration::from_secs(2));
        upstream.responds("GET", &under("command"), slow).await;
        devices.push(broker.device(&id).await);
    }
    for device in &mut devices {
        let message = device.message("commands/update", payload.clone());
        device.publish(message).await;
    }
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["delivered"], 16).await;
    let grown = gateway.peak_memory() - before;
    assert!(grown < 100 << 20, "{} MiB for 16 messages of 240 kB", grown >> 20);
}
