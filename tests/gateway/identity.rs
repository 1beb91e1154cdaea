//! Who speaks: topic and property must agree, keys are remembered and forgotten.

use serde_json::json;

use crate::harness::{Broker, Device, Gateway, Options, Upstream};

#[tokio::test]
async fn a_message_speaks_only_for_the_device_of_its_topic() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    upstream.answers("POST", "/v1/devices/d1/telemetry", 200, json!({})).await;
    let gateway = Gateway::start(&broker, &upstream).await;
    let mut device = broker.device("d1").await;
    let id = |value: &str| ("device_id".to_owned(), value.to_owned());
    let key = |value: &str| ("access_key".to_owned(), value.to_owned());
    let rows = [
        (vec![], "401", "no_credentials"),
        (vec![id("d1")], "401", "no_credentials"),
        (vec![key("k")], "401", "no_credentials"),
        (vec![id("d1"), key("")], "401", "no_credentials"),
        (vec![id("d1"), key("a\u{e9}b")], "401", "no_credentials"),
        (vec![id("d1"), key("two words")], "401", "no_credentials"),
        (vec![id("d1"), key(&"k".repeat(60_000))], "401", "no_credentials"),
        (vec![id("d2"), key("k")], "403", "identity"),
        (vec![id("D1"), key("k")], "403", "identity"),
        (vec![id(""), key("k")], "403", "identity"),
        (vec![id("d1"), id("d1"), key("k")], "403", "identity"),
        (vec![id("d1"), id("d2"), key("k")], "403", "identity"),
        (vec![id("d1"), key("k"), key("k")], "403", "identity"),
    ];
    for (user, status, code) in rows {
        let mut message = device.message("telemetry", "{}");
        message.props.user = user.clone();
        device.publish(message).await;
        let failure = device.next().await;
        assert_eq!(failure.topic, "v1/device/d1/errors");
        assert_eq!(
            (failure.user("status"), failure.json()["code"].as_str()),
            (status, Some(code)),
            "{user:.80?}"
        );
    }
    assert_eq!(upstream.calls().await.len(), 0, "refused before any call");
    device.send("telemetry", json!({})).await;
    gateway.metric_reaches("mqtt_rest_gateway_messages_settled_total", &["delivered"], 1).await;
}

#[tokio::test]
async fn a_remembered_key_serves_two_rows_and_is_forgotten_on_401() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    upstream.answers("POST", "/v1/devices/d1/telemetry", 200, json!({})).await;
    upstream.answers("PUT", "/v1/devices/d1", 200, json!({})).await;
    let _gateway = Gateway::start(&broker, &upstream).await;
    let mut device = broker.device("d1").await;
    let bare = |device: &Device, below: &str| {
        let mut message = device.message(below, r#"{"name":"n"}"#);
        message.props.user.clear();
        message.props.response_topic = Some(device.topic("answers"));
        message
    };
    // Nothing remembered yet.
    let message = bare(&device, "update");
    device.publish(message).await;
    assert_eq!(device.next().await.user("status"), "401");
    // A key that the upstream has accepted is remembered, for the rows that say so.
    device.ask("telemetry", json!({})).await;
    let message = bare(&device, "update");
    device.publish(message).await;
    assert_eq!(device.next().await.user("status"), "200");
    let requests = upstream.requests().await;
    assert_eq!(requests.last().unwrap().headers["authorization"], "key-of-d1");
    let message = bare(&device, "config/update");
    device.publish(message).await;
    assert_eq!(
        device.next().await.user("status"),
        "401",
        "this row wants the key with the message"
    );

    // A stranger's wrong key does not make the gateway forget the right one.
    upstream
        .answers("POST", "/v1/devices/d1/telemetry", 401, json!({"error": "Not authorized"}))
        .await;
    let mut wrong = device.message("telemetry", "{}");
    wrong.props.user[1].1 = "wrong".into();
    wrong.props.response_topic = Some(device.topic("answers"));
    device.publish(wrong).await;
    assert_eq!(device.next().await.user("status"), "401");
    let message = bare(&device, "update");
    device.publish(message).await;
    assert_eq!(device.next().await.user("status"), "200");
    // The key itself refused is forgotten.
    assert_eq!(device.ask("telemetry", json!({})).await.user("status"), "401");
    let message = bare(&device, "update");
    device.publish(message).await;
    let failure = device.next().await;
    assert_eq!(
        (failure.user("status"), failure.json()["code"].as_str()),
        ("401", Some("no_credentials"))
    );
    assert_eq!(upstream.count("PUT /v1/devices/d1").await, 2);
}

#[tokio::test]
async fn a_device_cannot_make_the_gateway_speak_to_another() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    upstream.answers("POST", "/v1/devices/d1/telemetry", 200, json!({"ok": true})).await;
    let gateway = Gateway::start(&broker, &upstream).await;
    let mut device = broker.device("d1").await;
    let mut others = broker.observer("#").await;
    for topic in [
        "v1/device/d2/config",
        "v1/device/d1",
        "v1/device/d1/",
        "v1/device/d11/x",
        "v1/device/d1/../d2/x/+",
        "v1/device/d1/#",
        "v1/device/d1/+/x",
        &format!("v1/device/d1/{}x", "a/".repeat(16)),
        &format!("v1/device/d1/{}", "a".repeat(513)),
        "$SYS/x",
        "other",
        "",
    ] {
        let mut message = device.message("telemetry", "{}");
        message.props.response_topic = Some(topic.into());
        // mosquitto itself ends the connection of who names a wildcard or nothing.
        if topic.contains(['+', '#']) || topic.is_empty() {
            continue;
        }
        device.publish(message).await;
        let failure = device.next().await;
        assert_eq!(failure.topic, "v1/device/d1/errors", "{topic}");
        assert_eq!(
            (failure.user("status"), failure.json()["code"].as_str()),
            ("403", Some("response_topic")),
            "{topic}"
        );
    }
    assert_eq!(upstream.calls().await.len(), 0);
    // One that matches a route is the device's own business; the answer is not a request.
    let mut message = device.message("telemetry", "{}");
    message.props.response_topic = Some("v1/device/d1/config/update".into());
    device.publish(message).await;
    assert_eq!(device.next().await.topic, "v1/device/d1/config/update");
    gateway.metric_reaches("mqtt_rest_gateway_messages_settled_total", &["delivered"], 1).await;
    assert_eq!(upstream.calls().await, ["POST /v1/devices/d1/telemetry"]);
    loop {
        let heard = others.next().await;
        assert!(!heard.topic.starts_with("v1/device/d2"), "{heard:?}");
        if heard.topic == "v1/device/d1/config/update" {
            break;
        }
    }
}

#[tokio::test]
async fn a_message_with_credentials_and_via_is_a_request() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    upstream.answers("POST", "/v1/devices/d1/command", 200, json!({"ok": true})).await;
    let gateway = Gateway::start(&broker, &upstream).await;
    let mut device = broker.device("d1").await;
    for via in ["mqtt-rest-gateway", "another"] {
        let mut message = device.message("commands/update", "{\"id\":1}");
        message.props.user.insert(0, ("via".to_owned(), via.to_owned()));
        message.props.response_topic = Some(device.topic("answers"));
        device.publish(message).await;
        assert_eq!(device.next().await.json(), json!({"ok": true}), "{via}");
    }
    // Without credentials of its own, or with half of them, it is a gateway's publication and no request.
    for user in [vec![], vec![("device_id".to_owned(), "d1".to_owned())]] {
        let mut message = device.message("update", "{}");
        message.props.user = user;
        message.props.user.push(("via".to_owned(), "mqtt-rest-gateway".to_owned()));
        device.publish(message).await;
    }
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["loop"], 2).await;
    gateway.logs("ignored").await;
    device.silent().await;
}

/// Two sites that call their sensors alike, and a row whose last level is the device.
const SITES: &str = r#"
[upstream]
url = "http://hub"

[device]
capture = "sensor"
id_property = "device_id"

[replies]
errors = "plant/{site}/{sensor}/errors"

[[route]]
name     = "reading"
on       = "plant/{site}/{sensor}/reading"
call     = "POST /sites/{site}/sensors/{sensor}"
remember = "{secret}"

[[route]]
name        = "rename"
on          = "plant/{site}/{sensor}/rename"
call        = "PUT /sites/{site}/sensors/{sensor}"
credentials = "remembered"

[[route]]
name   = "known"
on     = "plant/{site}/{sensor}/known"
answer = "{secret: $memory.secret}"

[[route]]
name = "up"
on   = "up/{site}/{sensor}"
call = "POST /up/{sensor}"
"#;

fn of_site(device: &Device, site: &str, below: &str, with_key: bool) -> crate::wire::Publish {
    let mut message = device.message(below, "{}");
    message.topic = format!("plant/{site}/temp/{below}");
    message.props.response_topic = Some(format!("plant/{site}/temp/answers"));
    if !with_key {
        message.props.user.clear();
    }
    message
}

#[tokio::test]
async fn devices_of_one_name_at_two_sites_are_two() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    upstream.answers("POST", "/sites/north/sensors/temp", 200, json!({"secret": "n"})).await;
    upstream.answers("PUT", "/sites/north/sensors/temp", 200, json!({})).await;
    let _gateway = Options::default().config(SITES).start(&broker, &upstream).await;
    let mut device = broker.listener("temp", "plant/+/temp/answers").await;
    let rows = [
        ("north", "reading", true, "200", json!({"secret": "n"})),
        // The other one has no key yet, and no memory.
        ("south", "rename", false, "401", json!(null)),
        ("south", "known", true, "200", json!({"secret": null})),
        ("north", "rename", false, "200", json!({})),
        ("north", "known", true, "200", json!({"secret": "n"})),
    ];
    for (site, below, with_key, status, body) in rows {
        let message = of_site(&device, site, below, with_key);
        device.publish(message).await;
        let answer = device.on(&format!("plant/{site}/temp/answers")).await;
        assert_eq!(answer.user("status"), status, "{site} {below}");
        assert!(status != "200" || answer.json() == body, "{site} {below}: {:?}", answer.json());
    }
}

#[tokio::test]
async fn a_response_topic_begins_with_the_whole_level_of_the_device() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    upstream.answers("POST", "/up/s1", 200, json!({"ok": true})).await;
    let _gateway = Options::default().config(SITES).start(&broker, &upstream).await;
    let mut device = broker.listener("s1", "up/#").await;
    let ask = |device: &Device, to: &str| {
        let mut message = device.message("", "{}");
        message.topic = "up/a/s1".to_owned();
        message.props.response_topic = Some(to.to_owned());
        message
    };
    for other in ["up/a/s10", "up/a/s1", "up/a/s1/", "up/a/s2/x"] {
        let message = ask(&device, other);
        device.publish(message).await;
    }
    let message = ask(&device, "up/a/s1/answers");
    device.publish(message).await;
    let answer = device.on("up/a/s1/answers").await;
    assert_eq!((answer.user("status"), answer.json()), ("200", json!({"ok": true})));
    assert_eq!(upstream.count("POST /up/s1").await, 1, "the others were refused before any call");
}
