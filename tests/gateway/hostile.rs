//! Hostile input: levels, payloads, properties and upstream answers. Each ends in exactly one
//! documented outcome, and a well-behaved neighbour notices nothing.

use std::time::Duration;

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use wiremock::ResponseTemplate;

use crate::{
    fake_broker::FakeBroker,
    harness::{Broker, Gateway, Options, Upstream},
    wire::{Props, Publish},
};

/// The neighbour's message gets through.
async fn neighbour_is_well(broker: &Broker, upstream: &Upstream) {
    upstream.answers("POST", "/v1/devices/neighbour/telemetry", 200, json!({"fine": true})).await;
    let mut neighbour = broker.device("neighbour").await;
    assert_eq!(neighbour.ask("telemetry", json!({})).await.json(), json!({"fine": true}));
}

#[tokio::test]
async fn no_level_can_choose_another_path() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let gateway = Gateway::start(&broker, &upstream).await;
    let mut dead = broker.listener("dead", "mqtt-rest-gateway/dead-letter/#").await;
    let mut device = broker.listener("hostile", "nothing").await;
    let long = "x".repeat(60_000);
    let levels = [
        ("..", "bad_segment", None),
        (".", "bad_segment", None),
        ("", "bad_segment", None),
        (long.as_str(), "bad_segment", None),
        ("%2e%2e", "rejected", Some("/v1/devices/%252e%252e/telemetry")),
        ("%2f", "rejected", Some("/v1/devices/%252f/telemetry")),
        ("a?b=c", "rejected", Some("/v1/devices/a%3Fb%3Dc/telemetry")),
        ("a b\\c;d", "rejected", Some("/v1/devices/a%20b%5Cc%3Bd/telemetry")),
        ("{device_id}", "rejected", Some("/v1/devices/%7Bdevice_id%7D/telemetry")),
        ("ünï", "rejected", Some("/v1/devices/%C3%BCn%C3%AF/telemetry")),
    ];
    for (index, (level, reason, path)) in levels.into_iter().enumerate() {
        let mut message = device.message("telemetry", "{}");
        message.topic = format!("v1/device/{level}/telemetry");
        message.props.user =
            vec![("device_id".into(), level.into()), ("access_key".into(), "k".into())];
        if level.len() > 1000 {
            // The property would not fit beside the topic; the identity is refused just as well.
            message.props.user[0].1 = "x".into();
        }
        device.publish(message).await;
        let letter = dead.next().await;
        let reason = if level.len() > 1000 { "identity" } else { reason };
        assert_eq!(letter.user("reason"), reason, "{level:.40}");
        let calls = upstream.calls().await;
        match path {
            Some(path) => assert_eq!(calls.last().unwrap(), &format!("POST {path}"), "{level:.40}"),
            None => assert!(calls.is_empty(), "{level:.40}: {calls:?}"),
        }
        let count = u64::try_from(index).unwrap() + 1;
        gateway
            .metric_reaches("mqtt_rest_gateway_messages_settled_total", &["telemetry"], count)
            .await;
    }
    neighbour_is_well(&broker, &upstream).await;
}

#[tokio::test]
async fn every_payload_has_its_outcome() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    upstream.answers("POST", "/v1/devices/d1/telemetry", 200, json!({})).await;
    let options = Options::default().set("BROKER_MAX_PACKET", "16MiB");
    let _gateway = options.start(&broker, &upstream).await;
    let mut device = broker.device("d1").await;
    let deep = |levels: usize| ("[".repeat(levels) + &"]".repeat(levels)).into_bytes();
    let rows: Vec<(Vec<u8>, &str)> = vec![
        (b"".to_vec(), "400"),
        (b"hello".to_vec(), "400"),
        (b"{\"a\":".to_vec(), "400"),
        (b"{} {}".to_vec(), "400"),
        (b"\"\xff\xfe\"".to_vec(), "400"),
        (vec![0; 100], "400"),
        (deep(500), "400"),
        (deep(500_000), "400"),
        (vec![b' '; 10 * 1024 * 1024], "413"),
        (format!("\"{}\"", "x".repeat(2 * 1024 * 1024)).into_bytes(), "413"),
        (format!("\"{}\"", "x".repeat(900 * 1024)).into_bytes(), "200"),
        (deep(100), "200"),
        (b"null".to_vec(), "200"),
    ];
    for (payload, status) in rows {
        let mut message = device.message("telemetry", payload.clone());
        message.props.response_topic = Some(device.topic("answers"));
        device.publish(message).await;
        let answer = device.on("v1/device/d1/answers").await;
        let what = format!("{} bytes, {:?}", payload.len(), &payload[..payload.len().min(20)]);
        assert_eq!(answer.user("status"), status, "{what}");
        if status != "200" {
            let code = answer.json()["code"].clone();
            assert_eq!(code, if status == "413" { "too_large" } else { "bad_payload" }, "{what}");
        }
    }
    assert_eq!(upstream.calls().await.len(), 3, "what is refused is not sent");
    neighbour_is_well(&broker, &upstream).await;
}

#[tokio::test]
async fn other_properties_do_no_harm() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    upstream.answers("POST", "/v1/devices/d1/telemetry", 200, json!({"ok": 1})).await;
    let _gateway = Gateway::start(&broker, &upstream).await;
    let mut device = broker.device("d1").await;
    let mut message = device.message("telemetry", "{}");
    message.props.response_topic = Some(device.topic("answers"));
    message.props.content_type = Some("text/html\r\nx-evil: 1".replace(['\r', '\n'], " "));
    for n in 0..200 {
        message.props.user.push((format!("host-{n}"), "authorization: other".into()));
    }
    message.props.user.push(("http_path".into(), "/v1/devices/d2".into()));
    message.props.user.push(("huge".into(), "x".repeat(60_000)));
    device.publish(message).await;
    assert_eq!(device.next().await.json(), json!({"ok": 1}));
    let request = &upstream.requests().await[0];
    assert_eq!(request.url.path(), "/v1/devices/d1/telemetry");
    assert_eq!(request.headers["authorization"], "key-of-d1");
    assert_eq!(request.headers["content-type"], "application/json");
    assert!(!request.headers.keys().any(|name| name.as_str().starts_with("host-")));
}

/// An HTTP server that says exactly these bytes to every call, then hangs or hangs up. To the probe it says that it is
/// there: else nobody could tell that from an outage.
async fn rogue(answer: &'static [u8], then_hang: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                if request.starts_with(b"GET / ") {
                    let _ = stream.write_all(b"HTTP/1.1 204 -\r\n\r\n").await;
                    return;
                }
                let _ = stream.write_all(answer).await;
                while then_hang && stream.write_all(b"0123456789").await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            });
        }
    });
    url
}

#[tokio::test]
async fn every_upstream_answer_has_its_outcome() {
    let endless: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n";
    let rows: [(&[u8], bool, &str, &str); 5] = [
        (endless, true, "504", "deadline"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhalf", false, "502", "broken"),
        (b"", false, "502", "broken"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", false, "502", "broken"),
        (b"HTTP/1.1 999999 ?\r\n\r\n", false, "502", "broken"),
    ];
    for (answer, hang, status, code) in rows {
        let broker = Broker::start().await;
        let url = rogue(answer, hang).await;
        let gateway = Options::default()
            .set("BROKER_URL", &broker.url())
            .set("UPSTREAM_URL", &url)
            .set("UPSTREAM_DEADLINE", "700ms")
            .set("UPSTREAM_ATTEMPT_TIMEOUT", "300ms")
            .spawn()
            .await;
        gateway.ready().await;
        let mut device = broker.device("d1").await;
        let reply = device.ask("telemetry", json!({})).await;
        let what = String::from_utf8_lossy(answer);
        assert_eq!(
            (reply.user("status"), reply.json()["code"].as_str()),
            (status, Some(code)),
            "{what}"
        );
        gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &[], 1).await;
    }
}

#[tokio::test]
async fn answers_of_the_wrong_kind_are_passed_on_or_refused() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let options = Options::default().set("UPSTREAM_DEADLINE", "500ms");
    let gateway = options.set("UPSTREAM_ATTEMPT_TIMEOUT", "400ms").start(&broker, &upstream).await;
    let mut device = broker.device("d1").await;
    let mut dead = broker.listener("dead", "mqtt-rest-gateway/dead-letter/#").await;
    let at = "/v1/devices/d1/telemetry";
    let html = "<html><h1>Bad Gateway</h1>";

    // HTML in a 200: delivered and passed on, and nothing follows from it.
    upstream.responds("POST", at, ResponseTemplate::new(200).set_body_raw(html, "text/html")).await;
    let reply = device.ask("telemetry", json!({})).await;
    assert_eq!((reply.user("status"), reply.payload.as_slice()), ("200", html.as_bytes()));
    assert_eq!(reply.props.content_type.as_deref(), Some("text/html"));

    // HTML in a 500: transient, until the deadline.
    upstream.responds("POST", at, ResponseTemplate::new(500).set_body_raw(html, "text/html")).await;
    let reply = device.ask("telemetry", json!({})).await;
    assert_eq!((reply.user("status"), reply.json()["code"].as_str()), ("504", Some("deadline")));
    assert_eq!(dead.next().await.user("reason"), "deadline");

    // 5 MB.
    let large = ResponseTemplate::new(200).set_body_bytes(vec![b'x'; 5 * 1024 * 1024]);
    upstream.responds("POST", at, large).await;
    let reply = device.ask("telemetry", json!({})).await;
    assert_eq!(
        (reply.user("status"), reply.json()["code"].as_str()),
        ("502", Some("answer_too_large"))
    );
    assert_eq!((dead.next().await.user("attempts"), dead.silent().await).0, "1");

    // Elsewhere: not followed, the key goes nowhere else.
    let elsewhere = Upstream::start().await;
    let location = format!("{}/stolen", elsewhere.url());
    for status in [301, 302, 307, 308] {
        let redirect = ResponseTemplate::new(status).insert_header("location", location.as_str());
        upstream.responds("POST", at, redirect).await;
        let reply = device.ask("telemetry", json!({})).await;
        assert_eq!(reply.user("status"), status.to_string());
        assert_eq!(dead.next().await.user("reason"), "rejected");
    }
    assert_eq!(elsewhere.calls().await.len(), 0);
    // Each message ended once.
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &[], 7).await;
    neighbour_is_well(&broker, &upstream).await;
}

/// What no real broker passes on, a lenient one may.
#[tokio::test]
async fn what_a_lenient_broker_passes_on_is_refused_as_well() {
    let broker = FakeBroker::start().await;
    let upstream = Upstream::start().await;
    let options = Options::default().set("BROKER_URL", &broker.url());
    let gateway = options.set("UPSTREAM_URL", &upstream.url()).spawn().await;
    let mut link = broker.serve(false, Props::default()).await;
    let user =
        |id: &str| vec![("device_id".to_owned(), id.to_owned()), ("access_key".into(), "k".into())];
    let message = |packet_id, id: &str, response_topic: Option<&str>| Publish {
        topic: format!("v1/device/{id}/telemetry"),
        payload: b"{}".to_vec(),
        qos: 1,
        dup: false,
        retain: false,
        packet_id,
        props: Props {
            user: user(id),
            response_topic: response_topic.map(str::to_owned),
            ..Props::default()
        },
    };
    // A level with control characters: no topic of the device's can be published on, so there is a
    // dead letter and no reply.
    link.deliver(&message(1, "a\u{7}b", None)).await;
    let letter = link.expect_publish().await;
    assert_eq!(letter.topic, "mqtt-rest-gateway/dead-letter/telemetry");
    assert_eq!(
        (letter.user("reason"), letter.user("topic")),
        ("bad_segment", "v1/device/a\\u{7}b/telemetry")
    );
    link.puback(letter.packet_id).await;
    assert_eq!(link.expect_puback().await, 1);
    // Response Topics that are no topics.
    let topics = ["v1/device/d1/+/x", "v1/device/d1/#", "v1/device/d1/a\u{1}", ""];
    for (packet_id, topic) in (2..).zip(topics) {
        link.deliver(&message(packet_id, "d1", Some(topic))).await;
        let failure = link.expect_publish().await;
        assert_eq!(
            (failure.topic.as_str(), failure.user("status")),
            ("v1/device/d1/errors", "403"),
            "{topic}"
        );
        link.puback(failure.packet_id).await;
        let letter = link.expect_publish().await;
        assert_eq!(letter.user("reason"), "response_topic");
        link.puback(letter.packet_id).await;
        assert_eq!(link.expect_puback().await, packet_id);
    }
    assert_eq!(upstream.calls().await.len(), 0);
    gateway.metric_reaches("mqtt_rest_gateway_messages_settled_total", &[], 5).await;
}
