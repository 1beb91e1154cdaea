//! Devices without keys (`credentials = "none"`), most of which speak MQTT 3.1.1: the topic says who speaks, and the
//! broker who may write there.

use serde_json::{Value, json};

use crate::{
    harness::{Broker, Gateway, Options, PlainDevice, Upstream, credentials, run},
    scripted_api::{Reply, ScriptedApi},
};

/// Plugs of the kind that says `tele/<device>/SENSOR` every few minutes.
const PLUGS: &str = r#"
[upstream]
url = "http://hub"

[device]
capture     = "device"
credentials = "none"

[replies]
errors = "gateway/errors/{device}"

[[route]]
name     = "sensor"
on       = "tele/{device}/SENSOR"
call     = "POST /plugs/{device}/sensor"
remember = "{calls: (($memory.calls // 0) + 1), limit}"
then     = [{ fetch = "limit", on_change = ".limit" }, { fetch = "orders", when = ".orders" }]

[[route]]
name   = "ask"
on     = "stat/{device}/ASK"
answer = "{calls: $memory.calls}"
reply  = "cmnd/{device}/TOLD"

[[route]]
name  = "state"
on    = "stat/{device}/RESULT"
call  = "PUT /plugs/{device}"
reply = "cmnd/{device}/SAVED"

[[fetch]]
name = "limit"
push = "cmnd/{device}/LIMIT"

[[fetch]]
name            = "orders"
call            = "GET /plugs/{device}/orders"
push            = "cmnd/{device}/ORDER"
payload         = ".[]"
correlation     = ".id"
redeliver_after = "1h"
"#;

async fn stage() -> (Broker, Upstream, Gateway, PlainDevice) {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let gateway = Options::default().config(PLUGS).start(&broker, &upstream).await;
    let plug = broker.plain_device("plug1", "cmnd/plug1/#").await;
    (broker, upstream, gateway, plug)
}

#[tokio::test]
async fn a_message_without_any_property_reaches_the_api_and_its_answer_the_device() {
    let (_broker, upstream, gateway, mut plug) = stage().await;
    upstream.answers("PUT", "/plugs/plug1", 200, json!({"saved": true})).await;
    plug.publish("stat/plug1/RESULT", r#"{"POWER": "ON"}"#).await;
    assert_eq!(plug.on("cmnd/plug1/SAVED").await.text(), r#"{"saved":true}"#);
    let request = &upstream.requests().await[0];
    assert_eq!((request.url.path(), &*request.body), ("/plugs/plug1", &br#"{"POWER": "ON"}"#[..]));
    assert!(!request.headers.contains_key("authorization"), "{:?}", request.headers);
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["delivered"], 1).await;
}

#[tokio::test]
async fn what_is_remembered_pushed_and_changed_is_known_of_each_device() {
    let (broker, upstream, gateway, mut plug) = stage().await;
    let mut other = broker.plain_device("plug2", "cmnd/plug2/#").await;
    let says = async |limit: Value, orders: bool| {
        let answer = json!({"limit": limit, "orders": orders});
        upstream.answers("POST", "/plugs/plug1/sensor", 200, answer).await;
    };
    upstream.answers("GET", "/plugs/plug1/orders", 200, json!([{"id": 1}])).await;
    upstream.answers("POST", "/plugs/plug2/sensor", 200, json!({})).await;
    says(json!(10), true).await;
    for _ in 0..2 {
        plug.publish("tele/plug1/SENSOR", "{}").await;
    }
    assert_eq!(plug.on("cmnd/plug1/LIMIT").await.text(), r#"{"limit":10,"orders":true}"#);
    assert_eq!(plug.on("cmnd/plug1/ORDER").await.text(), r#"{"id":1}"#);
    gateway.metric_is("mqtt_rest_gateway_fetches_total", &["orders", "repeated"], 1).await;
    // 401 and 403 say something of the gateway's credentials, and nothing of the device.
    for status in [401, 403] {
        upstream.answers("POST", "/plugs/plug1/sensor", status, json!({})).await;
        plug.publish("tele/plug1/SENSOR", "{}").await;
    }
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["rejected"], 2).await;
    plug.publish("stat/plug1/ASK", "").await;
    assert_eq!(plug.on("cmnd/plug1/TOLD").await.text(), r#"{"calls":2}"#);
    other.publish("tele/plug2/SENSOR", "{}").await;
    other.publish("stat/plug2/ASK", "").await;
    assert_eq!(other.on("cmnd/plug2/TOLD").await.text(), r#"{"calls":1}"#);
    plug.silent().await;
    other.silent().await;
}

#[tokio::test]
async fn the_topic_says_who_speaks_and_nothing_else_may() {
    let (broker, upstream, gateway, _plug) = stage().await;
    upstream.answers("PUT", "/plugs/plug1", 200, json!({"saved": true})).await;
    let mut device = broker.listener("modern", "#").await;
    let mut send = async |user: Vec<(String, String)>| {
        let mut message = device.message("", "{}");
        message.topic = "stat/plug1/RESULT".to_owned();
        message.props.user = user;
        device.publish(message).await;
    };
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    // Its id agrees; its key is nobody's business.
    send(credentials("plug1")).await;
    send(vec![pair("access_key", "k"), pair("access_key", "k")]).await;
    send(vec![]).await;
    upstream.arrived("PUT /plugs/plug1", 3).await;
    // It says another device, or two; a gateway has said it.
    send([credentials("plug2"), vec![pair("kept", "yes")]].concat()).await;
    send(vec![pair("device_id", "plug1"), pair("device_id", "plug1")]).await;
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["identity"], 2).await;
    send([credentials("plug1"), vec![pair("via", "a-gateway")]].concat()).await;
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["loop"], 1).await;
    let requests = upstream.requests().await;
    assert_eq!(requests.len(), 3);
    assert!(requests.iter().all(|request| !request.headers.contains_key("authorization")));
    assert!(!format!("{requests:?}").contains("key-of-plug1"));
    for status in ["200", "200", "200", "403", "403"] {
        assert_eq!(device.on("cmnd/plug1/SAVED").await.user("status"), status);
    }
    let letter = device.on("mqtt-rest-gateway/dead-letter/state").await;
    assert_eq!((letter.user("kept"), letter.user("access_key")), ("yes", ""));
    assert!(!format!("{letter:?}").contains("key-of-plug2"), "{letter:?}");
    assert!(!gateway.log().contains("key-of-"), "{}", gateway.log());
}

#[tokio::test]
async fn of_two_devices_one_hangs_and_the_other_goes_on() {
    let broker = Broker::start().await;
    let api = ScriptedApi::start(|seen| {
        if seen.path.starts_with("/plugs/hung") { Reply::Hang } else { Reply::status(200) }
    })
    .await;
    let options = Options::default().config(PLUGS).set("BROKER_URL", &broker.url());
    let options = options.set("UPSTREAM_URL", &format!("http://127.0.0.1:{}", api.port));
    let gateway = options.set("BROKER_MAX_PENDING", "20").spawn().await;
    gateway.ready().await;
    let mut hung = broker.plain_device("hung", "none").await;
    let mut well = broker.plain_device("well", "none").await;
    hung.publish("tele/hung/SENSOR", "{}").await;
    for n in 0..50 {
        well.publish("tele/well/SENSOR", json!({ "n": n }).to_string()).await;
    }
    gateway.metric_reaches("mqtt_rest_gateway_messages_settled_total", &["delivered"], 50).await;
    let numbers: Vec<_> = api
        .seen()
        .iter()
        .filter(|seen| seen.path.starts_with("/plugs/well"))
        .map(|seen| seen.body.clone())
        .collect();
    assert_eq!(numbers, (0..50).map(|n| json!({ "n": n }).to_string()).collect::<Vec<_>>());
}

/// A replica takes what its group publishes, and a device's message for what it is: the property says so.
#[tokio::test]
async fn in_a_group_a_reply_is_known_by_its_mark() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    upstream.answers("PUT", "/plugs/plug1", 200, json!({})).await;
    let options = Options::default().config(PLUGS).set("BROKER_SHARE_GROUP", "plugs");
    let gateway = options.start(&broker, &upstream).await;
    let mut device = broker.listener("modern", "stat/plug1/#").await;
    let mut message = device.message("", "{}");
    message.topic = "stat/plug1/RESULT".to_owned();
    // Where it names a row's own topic for its answer, no row takes the answer for a message.
    message.props.user.clear();
    message.props.response_topic = Some("stat/plug1/RESULT".to_owned());
    device.publish(message).await;
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["loop"], 1).await;
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["delivered"], 1).await;
    assert_eq!(upstream.count("PUT /plugs/plug1").await, 1);
}

#[tokio::test]
async fn a_table_without_keys_is_shown_without_them() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("plugs.toml");
    std::fs::write(&file, PLUGS).unwrap();
    let file = file.to_str().unwrap();
    let (code, out, error) = run(&["--config", file, "check"], "").await;
    assert_eq!((code, error.as_str()), (0, ""), "{out}");
    assert!(out.contains("sensor, ask, state take whoever writes on a device's topics"), "{out}");
    let explain = ["--config", file, "explain", "tele/plug1/SENSOR", "--payload", "-"];
    let (code, out, _) = run(&[&explain[..], &["--property", "access_key=k"]].concat(), "{}").await;
    assert!(code == 0 && out.contains("POST http://hub/plugs/plug1/sensor"), "{out}");
    assert!(!out.contains("authorization"), "{out}");
    let (_, out, _) = run(&["--config", file, "routes", "--json"], "").await;
    assert!(out.contains(r#""credentials":"none""#), "{out}");
}
