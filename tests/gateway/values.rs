//! Names in a path that the payload, or a user property, fills in: one segment each, or the message is refused.

use serde_json::{Value, json};
use wiremock::matchers::any;

use crate::harness::{Broker, Device, Gateway, Options, Upstream, run};

const CONFIG: &str = r#"
[upstream]
url = "http://hub/api"
[replies]
errors = "v1/device/{device_id}/errors"

[[route]]
name   = "value"
on     = "v1/device/{device_id}/value"
call   = "PUT /{device_id}/assets/{asset}/tags/{tag}?quality={quality}"
values = { asset = ".assetId", tag = ".tag", quality = '.q // "good"' }
body   = "{value: .v, of: $message.properties.n}"

[[route]]
name   = "asked"
on     = "v1/device/{device_id}/asked"
call   = "GET /things/{id}"
takes  = "text"
values = { id = "$message.properties.thing" }

# A repetition of a message has the same key.
[[route]]
name    = "once"
on      = "v1/device/{device_id}/once"
call    = "POST /once"
values  = { id = "$message.properties.message_id" }
headers = { Idempotency-Key = "{device_id}-{id}" }
"#;

async fn stage() -> (Broker, Upstream, Gateway, Device) {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let options = Options::default().config(CONFIG).set("BROKER_URL", &broker.url());
    let gateway = options.set("UPSTREAM_URL", &format!("{}/api", upstream.url())).spawn().await;
    gateway.ready().await;
    let device = broker.device("d1").await;
    upstream.responds_to(any(), 200, json!({})).await;
    (broker, upstream, gateway, device)
}

#[tokio::test]
async fn ids_in_the_payload_become_one_segment_each() {
    let (_broker, upstream, _gateway, mut device) = stage().await;
    let payload = json!({"assetId": "pump 7/x", "tag": 17, "v": 1.5});
    assert_eq!(device.ask("value", payload).await.user("status"), "200");
    let payload = json!({"assetId": "a?b#c", "tag": "ü", "q": "bad&x=1", "v": 2});
    assert_eq!(device.ask("value", payload).await.user("status"), "200");
    let mut message = device.message("asked", "");
    message.props.user.push(("thing".to_owned(), "t-1".to_owned()));
    message.props.response_topic = Some(device.topic("answers"));
    device.publish(message).await;
    assert_eq!(device.on("v1/device/d1/answers").await.user("status"), "200");
    let requests = upstream.requests().await;
    let paths: Vec<_> = requests.iter().map(|r| (r.url.path(), r.url.query())).collect();
    let expected = [
        ("/api/d1/assets/pump%207%2Fx/tags/17", Some("quality=good")),
        ("/api/d1/assets/a%3Fb%23c/tags/%C3%BC", Some("quality=bad%26x%3D1")),
        ("/api/things/t-1", None),
    ];
    assert_eq!(paths, expected);
    assert_eq!(requests[0].body_json::<Value>().unwrap(), json!({"value": 1.5, "of": null}));
}

#[tokio::test]
async fn a_messages_own_id_can_be_a_header() {
    let (_broker, upstream, _gateway, mut device) = stage().await;
    for id in ["m-1", "m-1", "m 2"] {
        let mut message = device.message("once", "{}");
        message.props.user.push(("message_id".to_owned(), id.to_owned()));
        message.props.response_topic = Some(device.topic("answers"));
        device.publish(message).await;
        assert_eq!(device.on("v1/device/d1/answers").await.user("status"), "200");
    }
    let requests = upstream.requests().await;
    let keys: Vec<_> = requests.iter().map(|r| r.headers["idempotency-key"].clone()).collect();
    assert_eq!(keys, ["d1-m-1", "d1-m-1", "d1-m 2"]);
    // One that no header can have, and none at all.
    for (id, code) in [(Some("\u{e9}"), "bad_header"), (None, "bad_segment")] {
        let mut message = device.message("once", "{}");
        message.props.user.extend(id.map(|id| ("message_id".to_owned(), id.to_owned())));
        device.publish(message).await;
        assert_eq!(device.on("v1/device/d1/errors").await.json()["code"], code);
    }
    assert_eq!(upstream.requests().await.len(), 3);
}

#[tokio::test]
async fn what_is_no_segment_makes_no_call() {
    let (_broker, upstream, gateway, mut device) = stage().await;
    let long = "x".repeat(1025);
    let bad = [
        json!(null),
        json!({"a": 1}),
        json!(["a"]),
        json!(""),
        json!("."),
        json!(".."),
        json!("a/../b"),
        json!("a\nb"),
        json!(long),
    ];
    for (count, value) in (1..).zip(bad) {
        device.send("value", json!({"assetId": value, "tag": "t"})).await;
        let error = device.on("v1/device/d1/errors").await;
        assert_eq!((error.user("status"), &error.json()["code"]), ("400", &json!("bad_segment")));
        gateway
            .metric_is("mqtt_rest_gateway_messages_settled_total", &["bad_segment"], count)
            .await;
    }
    // A filter that fails, and a payload that is none.
    for payload in [r#"{"assetId": 1, "tag": 2, "q": 3"#, "[1]"] {
        let message = device.message("value", payload);
        device.publish(message).await;
        assert_eq!(device.on("v1/device/d1/errors").await.json()["code"], "bad_payload");
    }
    // A property that is not there.
    device.send("asked", json!("")).await;
    assert_eq!(device.on("v1/device/d1/errors").await.json()["code"], "bad_segment");
    assert_eq!(upstream.requests().await.len(), 0);
}

#[tokio::test]
async fn explain_shows_what_the_payload_has_filled_in() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    std::fs::write(&file, CONFIG).unwrap();
    let explain = ["--config", file.to_str().unwrap(), "explain", "v1/device/d1/value"];
    let message = ["--payload", "-", "--property", "device_id=d1", "--property", "access_key=k"];
    let (code, out, error) =
        run(&[&explain[..], &message].concat(), r#"{"assetId": "p 7", "tag": "t"}"#).await;
    assert_eq!((code, error.as_str()), (0, ""), "{out}");
    for line in [
        "request  PUT http://hub/api/d1/assets/p%207/tags/t?quality=good",
        "{asset}, {quality}, {tag} of the payload",
    ] {
        assert!(out.contains(line), "{line} is not in {out}");
    }
}
