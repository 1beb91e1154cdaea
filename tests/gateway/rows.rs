//! What rows say of their messages and of the API's answers: which are let go, what counts as a success, what the
//! device is told.

use serde_json::json;
use wiremock::ResponseTemplate;

use crate::harness::{Broker, Device, Gateway, Options, Upstream, run};

const SETTLED: &str = "mqtt_rest_gateway_messages_settled_total";

const CONFIG: &str = r#"
[upstream]
url = "http://hub"
[replies]
errors = "v1/device/{device_id}/errors"
[dead_letter]
topic = "dead/{route}"

[[route]]
name     = "power"
on       = "v1/device/{device_id}/power"
when     = ".p as $now | ($now - ($memory.p // -1000)) | fabs >= 5"
call     = "POST /power"
remember = "{p: $payload.p}"
rate     = "4/h"
then     = ["news"]

[[route]]
name   = "things"
on     = "v1/device/{device_id}/things"
call   = "POST /things"
ok_on  = [409]
then   = [{ fetch = "news", when = ".known" }]

[[route]]
name   = "shaped"
on     = "v1/device/{device_id}/shaped"
call   = "POST /shaped"
answer = "select(.data.id != 0) | {id: .data.id, of: $captures.device_id}"

[[route]]
name   = "own"
on     = "v1/device/{device_id}/own"
when   = '$message.properties.ask == "yes"'
answer = "1"
reply  = "v1/device/{device_id}/answer"

[[fetch]]
name    = "news"
push    = "v1/device/{device_id}/news"
payload = "."
"#;

async fn stage() -> (Broker, Upstream, Gateway, Device) {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let gateway = Options::default().config(CONFIG).start(&broker, &upstream).await;
    let device = broker.device("d1").await;
    (broker, upstream, gateway, device)
}

/// A dead band: what differs too little from what was last sent is not sent. An API that answers nothing, or no JSON, is
/// no hindrance. What is skipped takes no turn of the rate.
#[tokio::test]
async fn a_message_that_does_not_pass_when_is_skipped() {
    let (broker, upstream, gateway, mut device) = stage().await;
    let mut dead = broker.listener("dead", "dead/#").await;
    let nothing = ResponseTemplate::new(204);
    upstream.responds_times("POST", "/power", 2, nothing).await;
    let powers = [(100.0, true), (102.0, false), (105.5, true), (101.0, false), (99.0, true)];
    for (index, (power, sent)) in powers.into_iter().enumerate() {
        if index == 4 {
            let text = ResponseTemplate::new(200).set_body_raw("stored", "text/plain");
            upstream.responds("POST", "/power", text).await;
        }
        device.send("power", json!({"p": power})).await;
        let outcome = if sent { "delivered" } else { "skipped" };
        let before = powers.iter().take(index + 1).filter(|(_, other)| *other == sent).count();
        gateway.metric_is(SETTLED, &[outcome], before as u64).await;
        if index == 0 || index == 2 {
            assert_eq!(device.on("v1/device/d1/news").await.json(), json!(null));
        }
    }
    // The last one was remembered although its answer was no JSON.
    for power in [98.0, 100.0, 102.0] {
        device.send("power", json!({"p": power})).await;
    }
    gateway.metric_is(SETTLED, &["skipped"], 5).await;
    device.send("power", json!({"p": 104.0})).await;
    gateway.metric_is(SETTLED, &["delivered"], 4).await;
    let bodies = upstream.requests().await;
    let sent: Vec<_> = bodies.iter().map(|r| r.body_json::<serde_json::Value>().unwrap()).collect();
    assert_eq!(sent, [100.0, 105.5, 99.0, 104.0].map(|p| json!({"p": p})));
    // A filter that fails is seen.
    device.send("power", json!({"p": "high"})).await;
    let error = device.on("v1/device/d1/errors").await.json();
    assert_eq!(error["code"], "bad_payload");
    assert!(error["error"].as_str().unwrap().contains("`when` fails"), "{error}");
    assert_eq!(dead.next().await.user("reason"), "bad_payload");
    // Skipped, and silent, although it asks for an answer.
    let mut message = device.message("power", r#"{"p": 104}"#);
    message.props.response_topic = Some(device.topic("answers"));
    device.publish(message).await;
    gateway.metric_is(SETTLED, &["skipped"], 6).await;
    device.silent().await;
    dead.silent().await;
    assert_eq!(gateway.metric("mqtt_rest_gateway_dead_letters_total", &[]).await, 1);
}

#[tokio::test]
async fn a_row_without_a_call_has_a_condition_too() {
    let (_broker, _upstream, gateway, mut device) = stage().await;
    device.send("own", json!(null)).await;
    gateway.metric_is(SETTLED, &["skipped"], 1).await;
    device.silent().await;
    let mut message = device.message("own", "null");
    message.props.user.push(("ask".to_owned(), "yes".to_owned()));
    device.publish(message).await;
    assert_eq!(device.on("v1/device/d1/answer").await.json(), json!(1));
}

#[tokio::test]
async fn a_status_that_the_row_takes_for_a_success_is_one() {
    let (broker, upstream, gateway, mut device) = stage().await;
    let mut dead = broker.listener("dead", "dead/#").await;
    upstream.answers("POST", "/things", 409, json!({"known": true})).await;
    let answer = device.ask("things", json!({})).await;
    assert_eq!((answer.user("status"), answer.json()), ("409", json!({"known": true})));
    assert_eq!(device.on("v1/device/d1/news").await.json(), json!({"known": true}));
    gateway.metric_is(SETTLED, &["delivered"], 1).await;
    upstream.answers("POST", "/things", 422, json!({"known": true})).await;
    assert_eq!(device.ask("things", json!({})).await.user("status"), "422");
    assert_eq!(dead.next().await.user("status"), "422");
    device.silent().await;
    dead.silent().await;
}

#[tokio::test]
async fn the_reply_is_what_answer_makes_of_the_apis() {
    let (_broker, upstream, gateway, mut device) = stage().await;
    upstream.answers("POST", "/shaped", 201, json!({"data": {"id": 7, "more": "x"}})).await;
    let answer = device.ask("shaped", json!({})).await;
    assert_eq!((answer.user("status"), answer.json()), ("201", json!({"id": 7, "of": "d1"})));
    assert_eq!(answer.props.content_type.as_deref(), Some("application/json"));
    // What it fails on goes as it came.
    for (count, body) in (1..).zip([json!([1]), json!("text")]) {
        upstream.answers("POST", "/shaped", 200, body.clone()).await;
        assert_eq!(device.ask("shaped", json!({})).await.json(), body);
        gateway.metric_is("mqtt_rest_gateway_filter_errors_total", &["shaped"], count).await;
    }
    let page = ResponseTemplate::new(200).set_body_raw("<html>", "text/html");
    upstream.responds("POST", "/shaped", page).await;
    let answer = device.ask("shaped", json!({})).await;
    assert_eq!(answer.props.content_type.as_deref(), Some("text/html"));
    // A refusal is the API's own, whatever `answer` says.
    upstream.answers("POST", "/shaped", 404, json!({"data": {"id": 7}})).await;
    assert_eq!(device.ask("shaped", json!({})).await.json(), json!({"data": {"id": 7}}));
    // It puts out nothing: nothing is replied.
    upstream.answers("POST", "/shaped", 200, json!({"data": {"id": 0}})).await;
    let mut message = device.message("shaped", "{}");
    message.props.response_topic = Some(device.topic("answers"));
    device.publish(message).await;
    gateway.metric_is(SETTLED, &["delivered"], 5).await;
    device.silent().await;
}

#[tokio::test]
async fn explain_says_that_a_message_is_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    std::fs::write(&file, CONFIG).unwrap();
    let explain = async |power: &str| {
        let config = ["--config", file.to_str().unwrap(), "explain", "v1/device/d1/power"];
        let message =
            ["--payload", "-", "--property", "device_id=d1", "--property", "access_key=k"];
        run(&[&config[..], &message].concat(), power).await
    };
    let (code, out, error) = explain(r#"{"p": -999}"#).await;
    assert_eq!((code, error.as_str()), (0, ""));
    assert!(out.contains("skipped  `when` is not true of it"), "{out}");
    let (_, out, _) = explain(r#"{"p": 5}"#).await;
    assert!(out.contains("request  POST http://hub/power"), "{out}");
}

#[tokio::test]
async fn routes_show_what_a_row_takes_and_lets_go() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    std::fs::write(&file, CONFIG).unwrap();
    let (code, out, _) = run(&["--config", file.to_str().unwrap(), "routes", "--json"], "").await;
    assert_eq!(code, 0);
    let table: serde_json::Value = serde_json::from_str(&out).unwrap();
    let (power, things) = (&table["routes"][0], &table["routes"][1]);
    assert!(power["when"].as_str().unwrap().starts_with(".p as $now"), "{power}");
    assert_eq!(
        (&power["takes"], &power["content_type"]),
        (&json!("json"), &json!("application/json"))
    );
    assert_eq!((&things["when"], &things["ok_on"]), (&json!(null), &json!([409])));
}
