//! The examples end to end: devices that speak MQTT 3.1.1, mosquitto, the compiled gateway, and an API that refuses what
//! it does not know: another path, another header, another body.

use serde_json::{Value, json};
use wiremock::Request;

use crate::harness::{Broker, Gateway, Options, Upstream};

const INFLUXDB: &str = include_str!("../../examples/influxdb.toml");
const ZIGBEE: &str = include_str!("../../examples/zigbee2mqtt-tasmota.toml");
const OWNTRACKS: &str = include_str!("../../examples/owntracks.toml");

/// A gateway with this table, a secret of its own, and an API below this path.
async fn gateway(
    table: &str,
    secret: (&str, &str),
    broker: &Broker,
    upstream: &Upstream,
    path: &str,
) -> Gateway {
    let options = Options::default().config(table).set("BROKER_URL", &broker.url());
    let options = options.set(&format!("SECRETS_{}", secret.0), secret.1);
    let gateway = options.set("UPSTREAM_URL", &format!("{}{path}", upstream.url())).spawn().await;
    gateway.ready().await;
    gateway
}

/// Whether a request has this method, path and query, and these headers.
fn is(request: &Request, call: &str, headers: &[(&str, &str)]) -> bool {
    let url = &request.url;
    let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
    let has = |(name, value): &(&str, &str)| {
        request.headers.get(*name).is_some_and(|found| found.as_bytes() == value.as_bytes())
    };
    format!("{} {}{query}", request.method, url.path()) == call && headers.iter().all(has)
}

/// So many messages have ended so, and none has become a dead letter.
async fn ended(gateway: &Gateway, counts: &[(&str, u64)]) {
    for (outcome, count) in counts {
        let label = format!("outcome=\"{outcome}\"");
        gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &[&label], *count).await;
    }
    assert_eq!(gateway.metric("mqtt_rest_gateway_dead_letters_total", &[]).await, 0);
    let all: u64 = counts.iter().map(|(_, count)| count).sum();
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &[], all).await;
}

#[tokio::test]
async fn readings_of_esphome_become_lines_of_influxdb() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let takes = |request: &Request| {
        let headers =
            [("authorization", "Token s3cret"), ("content-type", "text/plain; charset=utf-8")];
        let is_line = |line: &str| {
            let mut words = line.split(' ');
            let is_series =
                ["temperature,node=n1", "temperature,node=n2"].contains(&words.next().unwrap());
            let is_value = words.next().is_some_and(|field| field.starts_with("value=2"));
            let time = words.next().and_then(|time| time.parse::<u64>().ok());
            is_series && is_value && time.is_some_and(|time| time > 1_700_000_000)
        };
        let body = std::str::from_utf8(&request.body).unwrap();
        is(request, "POST /api/v2/write?org=acme&bucket=iot&precision=s", &headers)
            && body.lines().all(is_line)
    };
    upstream.responds_to(takes, 204, Value::Null).await;
    let gateway = gateway(INFLUXDB, ("INFLUX", "s3cret"), &broker, &upstream, "").await;
    let mut first = broker.plain_device("n1", "nothing").await;
    let mut second = broker.plain_device("n2", "nothing").await;
    first.publish("n1/sensor/temperature/state", "21.5").await;
    second.publish("n2/sensor/temperature/state", "22").await;
    second.publish("n2/sensor/temperature/state", "nan").await;
    ended(&gateway, &[("delivered", 2), ("skipped", 1)]).await;
    let lines: usize = upstream
        .requests()
        .await
        .iter()
        .map(|request| String::from_utf8_lossy(&request.body).lines().count())
        .sum();
    assert_eq!(lines, 2);
    assert!(!gateway.log().contains("s3cret"), "{}", gateway.log());
}

#[tokio::test]
async fn zigbee_and_tasmota_meet_one_api_of_devices() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let expected = [
        ("PUT /v1/devices/kitchen%2Ffloor_light", json!({"state": "ON", "brightness": 90})),
        ("POST /v1/devices/plug1/power", json!({"power": 100, "kwh": 7.5})),
        ("POST /v1/devices/plug1/power", json!({"power": 106.5, "kwh": 7.6})),
        ("PUT /v1/devices/plug1/presence", json!({"online": false})),
    ];
    for (call, body) in expected.clone() {
        let takes = move |request: &Request| {
            is(request, call, &[("x-api-key", "s3cret"), ("content-type", "application/json")])
                && request.body_json::<Value>().ok().as_ref() == Some(&body)
        };
        upstream.responds_to(takes, 200, json!({})).await;
    }
    let gateway = gateway(ZIGBEE, ("API", "s3cret"), &broker, &upstream, "/v1").await;
    let mut hub = broker.plain_device("zigbee2mqtt", "nothing").await;
    let mut plug = broker.plain_device("plug1", "nothing").await;
    for (topic, payload) in [
        ("zigbee2mqtt/bridge/state", "online"),
        ("zigbee2mqtt/kitchen/floor_light/availability", "online"),
        ("zigbee2mqtt/kitchen/floor_light", r#"{"state":"ON","brightness":90,"linkquality":7}"#),
        ("zigbee2mqtt/kitchen/floor_light/set", r#"{"state":"OFF"}"#),
    ] {
        hub.publish(topic, payload).await;
    }
    for power in ["100,\"Total\":7.5", "102,\"Total\":7.55", "106.5,\"Total\":7.6"] {
        plug.publish("tele/plug1/SENSOR", format!("{{\"ENERGY\":{{\"Power\":{power}}}}}")).await;
    }
    plug.publish("tele/plug1/LWT", "Offline").await;
    // What the bridge says of itself is swallowed by a row without a call.
    ended(&gateway, &[("delivered", 4), ("not_a_request", 1), ("skipped", 3)]).await;
    let mut calls = upstream.calls().await;
    let mut wanted: Vec<_> = expected.iter().map(|(call, _)| (*call).to_owned()).collect();
    calls.sort();
    wanted.sort();
    assert_eq!(calls, wanted);
}

#[tokio::test]
async fn a_phone_of_owntracks_hears_what_the_recorder_answers() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let location = json!({"_type": "location", "lat": 52.5, "lon": 13.4, "tst": 1});
    let takes = {
        let location = location.clone();
        move |request: &Request| {
            let headers = [
                ("x-limit-u", "ann"),
                ("x-limit-d", "phone"),
                ("authorization", "Basic Z2F0ZXdheTpzM2NyZXQ="),
            ];
            is(request, "POST /pub", &headers)
                && request.body_json::<Value>().ok().as_ref() == Some(&location)
        }
    };
    let command = json!({"_type": "cmd", "action": "reportLocation"});
    upstream.responds_to(takes, 200, json!([command])).await;
    let gateway = gateway(OWNTRACKS, ("RECORDER", "s3cret"), &broker, &upstream, "").await;
    let mut phone = broker.plain_device("phone", "owntracks/ann/phone/cmd").await;
    phone.publish("owntracks/ann/phone", location.to_string()).await;
    let heard = phone.on("owntracks/ann/phone/cmd").await;
    assert_eq!(serde_json::from_slice::<Value>(&heard.payload).unwrap(), command);
    phone.publish("owntracks/ann/phone", "").await;
    ended(&gateway, &[("delivered", 1), ("skipped", 1)]).await;
}
