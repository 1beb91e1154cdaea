//! Calls of a row whose bodies are joined: one call for many, and one bad body costs the others nothing.

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Value, json};
use wiremock::{Match, Request, ResponseTemplate};

use crate::harness::{Broker, Device, Gateway, Options, Upstream, run};

const SETTLED: &str = "mqtt_rest_gateway_messages_settled_total";

const CONFIG: &str = r#"
[upstream]
url = "http://hub"
[device]
credentials = "none"
[dead_letter]
topic = "dead/{route}"

[[route]]
name         = "line"
on           = "v1/device/{device_id}/sensor/{object}"
call         = "POST /write?precision=s"
takes        = "text"
when         = 'test("^-?[0-9.]+$")'
content_type = "text/plain"
body         = '"\($captures.object),device=\($captures.device_id) value=\(.)"'
batch        = { max = 500, linger = "1ms" }

[[route]]
name     = "log"
on       = "v1/device/{device_id}/log/{unit}"
call     = "POST /push"
takes    = "text"
body     = "{streams: [{stream: {unit: $captures.unit}, values: [.]}]}"
batch    = { max = 500, join = "{streams: map(.streams[])}" }
"#;

/// One call at a time in each row, so that what comes meanwhile waits.
async fn stage() -> (Broker, Upstream, Gateway, Device) {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let gateway = Options::default().config(CONFIG).start(&broker, &upstream).await;
    let device = broker.device("any").await;
    (broker, upstream, gateway, device)
}

async fn send(device: &mut Device, name: &str, below: &str, payload: &str) {
    let mut message = device.message(below, payload);
    message.topic = format!("v1/device/{name}/{below}");
    message.props.user.clear();
    device.publish(message).await;
}

/// Sends from these devices while a first call hangs for a while.
async fn together(
    upstream: &Upstream,
    device: &mut Device,
    at: &str,
    messages: &[(&str, &str, &str)],
) {
    let slow = ResponseTemplate::new(204).set_delay(Duration::from_millis(500));
    upstream.responds_times("POST", at, 1, slow).await;
    send(device, "first", messages[0].1, "0").await;
    upstream.arrived(&format!("POST {at}"), 1).await;
    for (name, below, payload) in messages {
        send(device, name, below, payload).await;
    }
}

/// A body with this in it.
struct With(&'static str);

impl Match for With {
    fn matches(&self, request: &Request) -> bool {
        String::from_utf8_lossy(&request.body).contains(self.0)
    }
}

async fn bodies(upstream: &Upstream) -> Vec<String> {
    let requests = upstream.requests().await;
    requests.iter().map(|r| String::from_utf8(r.body.clone()).unwrap()).collect()
}

#[tokio::test]
async fn lines_of_many_devices_go_as_one_call() {
    let (_broker, upstream, gateway, mut device) = stage().await;
    upstream.responds("POST", "/write", ResponseTemplate::new(204)).await;
    let messages =
        [("a", "sensor/temp", "21.5"), ("b", "sensor/temp", "nan"), ("c", "sensor/temp", "-3")];
    together(&upstream, &mut device, "/write", &messages).await;
    gateway.metric_is(SETTLED, &["delivered"], 3).await;
    gateway.metric_is(SETTLED, &["skipped"], 1).await;
    let expected = "temp,device=a value=21.5\ntemp,device=c value=-3";
    assert_eq!(bodies(&upstream).await, ["temp,device=first value=0", expected]);
    let request = &upstream.requests().await[1];
    assert_eq!(request.url.query(), Some("precision=s"));
    assert_eq!(request.headers["content-type"], "text/plain");
}

#[tokio::test]
async fn one_bad_body_costs_the_others_nothing() {
    let (broker, upstream, gateway, mut device) = stage().await;
    let mut dead = broker.listener("dead", "dead/#").await;
    upstream.responds("POST", "/write", ResponseTemplate::new(204)).await;
    upstream.responds_to(With("value=666"), 400, json!({"error": "field type conflict"})).await;
    let messages =
        [("a", "sensor/temp", "1"), ("b", "sensor/temp", "666"), ("c", "sensor/temp", "3")];
    together(&upstream, &mut device, "/write", &messages).await;
    gateway.metric_is(SETTLED, &["delivered"], 3).await;
    gateway.metric_is(SETTLED, &["rejected"], 1).await;
    let letter = dead.next().await;
    assert_eq!((letter.user("topic"), &*letter.payload), ("v1/device/b/sensor/temp", &b"666"[..]));
    dead.silent().await;
    let line = |device: &str, value: &str| format!("temp,device={device} value={value}");
    let lines = [line("a", "1"), line("b", "666"), line("c", "3")];
    let bodies = bodies(&upstream).await;
    assert_eq!(bodies[1], lines.join("\n"), "together first");
    let singly: BTreeSet<_> = bodies[2..].iter().cloned().collect();
    assert_eq!((bodies.len(), singly), (5, lines.into()));
}

#[tokio::test]
async fn json_is_joined_by_a_filter() {
    let (_broker, upstream, gateway, mut device) = stage().await;
    upstream.responds("POST", "/push", ResponseTemplate::new(204)).await;
    let messages = [("a", "log/sshd", "one"), ("b", "log/cron", "two")];
    together(&upstream, &mut device, "/push", &messages).await;
    gateway.metric_is(SETTLED, &["delivered"], 3).await;
    let bodies = bodies(&upstream).await;
    let body: Value = serde_json::from_str(bodies.last().unwrap()).unwrap();
    let stream = |unit: &str, line: &str| json!({"stream": {"unit": unit}, "values": [line]});
    assert_eq!(body, json!({"streams": [stream("sshd", "one"), stream("cron", "two")]}));
    assert_eq!(bodies.len(), 2);
}

#[tokio::test]
async fn explain_says_that_bodies_are_joined() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    std::fs::write(&file, CONFIG).unwrap();
    let explain = ["--config", file.to_str().unwrap(), "explain", "v1/device/a/sensor/temp"];
    let (code, out, error) = run(&[&explain[..], &["--payload", "-"]].concat(), "21.5").await;
    assert_eq!((code, error.as_str()), (0, ""), "{out}");
    for line in [
        "request  POST http://hub/write?precision=s",
        "or with others: the same, bodies joined, 500 at most",
        "content-type: text/plain",
        "body     temp,device=a value=21.5",
    ] {
        assert!(out.contains(line), "{line} is not in {out}");
    }
}
