//! Payloads that are no JSON, bodies that are none, and what filters see of a message: its levels, its topic, its
//! properties.

use serde_json::json;
use wiremock::{Request, ResponseTemplate};

use crate::harness::{Broker, Device, Gateway, Options, Upstream};

const CONFIG: &str = r#"
[upstream]
url = "http://hub"
max_filter_bytes = "1KiB"
[replies]
errors = "v1/device/{device_id}/errors"

[[route]]
name         = "line"
on           = "v1/device/{device_id}/sensor/{object}"
call         = "POST /api/v2/write?precision=s"
takes        = "text"
content_type = "text/plain; charset=utf-8"
body         = '"\($captures.object),device=\($captures.device_id) value=\(.)"'

[[route]]
name         = "lines"
on           = "v1/device/{device_id}/many"
call         = "POST /lines"
content_type = "application/x-ndjson"
body         = '.[], ""'

[[route]]
name         = "form"
on           = "v1/device/{device_id}/form"
call         = "POST /form"
content_type = "application/x-www-form-urlencoded"
body         = '{To: .to, Body: "\(.text) & more"}'

[[route]]
name         = "picture"
on           = "v1/device/{device_id}/picture"
call         = "PUT /pictures/{device_id}"
takes        = "bytes"
content_type = "image/jpeg"
"#;

async fn stage(config: &str) -> (Broker, Upstream, Gateway, Device) {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let gateway = Options::default().config(config).start(&broker, &upstream).await;
    let device = broker.device("d1").await;
    (broker, upstream, gateway, device)
}

/// Publishes this payload; the only request that comes of it.
async fn request(
    upstream: &Upstream,
    device: &mut Device,
    below: &str,
    payload: &[u8],
    call: &str,
) -> Request {
    let before = upstream.requests().await.len();
    let message = device.message(below, payload);
    device.publish(message).await;
    upstream.arrived(call, 1).await;
    let mut requests = upstream.requests().await;
    assert_eq!(requests.len(), before + 1);
    requests.remove(before)
}

fn is(request: &Request, content_type: &str, body: &[u8]) {
    assert_eq!(request.headers["content-type"], content_type);
    assert_eq!(request.body, body, "{}", String::from_utf8_lossy(&request.body));
}

#[tokio::test]
async fn a_text_becomes_a_line() {
    let (_broker, upstream, gateway, mut device) = stage(CONFIG).await;
    upstream.responds("POST", "/api/v2/write", ResponseTemplate::new(204)).await;
    let call = "POST /api/v2/write";
    let line = request(&upstream, &mut device, "sensor/temp", b"21.5", call).await;
    is(&line, "text/plain; charset=utf-8", b"temp,device=d1 value=21.5");
    assert_eq!(line.url.query(), Some("precision=s"));
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["delivered"], 1).await;
    // What is no text is refused, and so is one that is larger than a filter reads.
    for (payload, code) in [(&b"\xff\xfe"[..], "bad_payload"), (&[b'1'; 1025], "too_large")] {
        let message = device.message("sensor/temp", payload);
        device.publish(message).await;
        assert_eq!(device.on("v1/device/d1/errors").await.json()["code"], code);
    }
    assert_eq!(upstream.count(call).await, 1);
}

#[tokio::test]
async fn outputs_become_lines_or_a_form() {
    let (_broker, upstream, _gateway, mut device) = stage(CONFIG).await;
    for call in ["/lines", "/form"] {
        upstream.responds("POST", call, ResponseTemplate::new(200)).await;
    }
    let payload = br#"[{"index":{}}, {"v":1.50}]"#;
    let lines = request(&upstream, &mut device, "many", payload, "POST /lines").await;
    is(&lines, "application/x-ndjson", b"{\"index\":{}}\n{\"v\":1.50}\n");
    let payload = br#"{"to":["+1", 2],"text":"100%"}"#;
    let form = request(&upstream, &mut device, "form", payload, "POST /form").await;
    is(&form, "application/x-www-form-urlencoded", b"To=%2B1&To=2&Body=100%25+%26+more");
    let message = device.message("form", r#"{"to":{"a":1}}"#);
    device.publish(message).await;
    let error = device.on("v1/device/d1/errors").await.json();
    assert_eq!(error["code"], "bad_payload");
    assert!(error["error"].as_str().unwrap().contains("`To` is a list or an object"), "{error}");
}

#[tokio::test]
async fn bytes_go_byte_for_byte() {
    let (_broker, upstream, gateway, mut device) = stage(CONFIG).await;
    upstream.responds("PUT", "/pictures/d1", ResponseTemplate::new(201)).await;
    // Larger than a filter may read, and every byte there is.
    let jpeg: Vec<u8> = (0..10_000_u32).map(|n| n.to_le_bytes()[0] ^ 0xff).collect();
    let picture = request(&upstream, &mut device, "picture", &jpeg, "PUT /pictures/d1").await;
    is(&picture, "image/jpeg", &jpeg);
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["delivered"], 1).await;
}

/// Every filter of a row and its fetch reads the levels and the properties; no key is among them.
#[tokio::test]
async fn every_filter_sees_levels_topic_and_properties_but_no_key() {
    const CONFIG: &str = r#"
[upstream]
url = "http://hub"
[filters]
seen = "[$captures, $message]"
[[route]]
name     = "all"
on       = "v1/device/{device_id}/{kind}/x"
call     = "POST /all"
body     = { filter = "seen" }
remember = "{kind: $captures.kind}"
then     = [
  { fetch = "news", on_change = "$message.properties.n" },
  { fetch = "news", when = '$captures.kind == "never" or $message.topic == "never"' },
]
[[route]]
name   = "asked"
on     = "v1/device/{device_id}/asked"
answer = "[$memory.kind, $captures.device_id, $message.topic]"
reply  = "v1/device/{device_id}/answer"
[[fetch]]
name        = "news"
push        = "v1/device/{device_id}/news"
payload     = { filter = "seen" }
correlation = '"\($captures.kind)-\($message.properties.n)"'
"#;
    let (_broker, upstream, gateway, mut device) = stage(CONFIG).await;
    upstream.answers("POST", "/all", 200, json!({})).await;
    let seen = |n: &str| {
        json!([
            {"device_id": "d1", "kind": "k"},
            {"topic": "v1/device/d1/k/x", "properties": {"device_id": "d1", "n": n}},
        ])
    };
    // The answer is the same each time: what the message carries decides.
    for (round, (n, news)) in (1..).zip([("1", true), ("1", false), ("2", true), ("1", true)]) {
        let mut message = device.message("k/x", "{}");
        let more = [("n", n), ("n", "later"), ("note", "key-of-d1"), ("Access-Key", "x")];
        message.props.user.extend(more.map(|(name, value)| (name.to_owned(), value.to_owned())));
        device.publish(message).await;
        if news {
            let push = device.on("v1/device/d1/news").await;
            assert_eq!(push.json(), seen(n));
            assert_eq!(push.props.correlation.as_deref(), Some(format!("k-{n}").as_bytes()));
        }
        gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["delivered"], round).await;
        device.silent().await;
    }
    let bodies = upstream.requests().await;
    assert_eq!(bodies[2].body_json::<serde_json::Value>().unwrap(), seen("2"));
    device.send("asked", json!(null)).await;
    let answer = device.on("v1/device/d1/answer").await.json();
    assert_eq!(answer, json!(["k", "d1", "v1/device/d1/asked"]));
}
