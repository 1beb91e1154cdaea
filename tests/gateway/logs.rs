//! The log: a device can neither write lines of its own into it nor fill it.

use serde_json::{Value, json};

use crate::{
    fake_broker::FakeBroker,
    harness::{Broker, Gateway, Options, Upstream},
    wire::{Props, Publish},
};

/// What a device would write if it could: colours, a line of its own, C1 controls, another direction.
const EVIL: &str =
    "d\u{1b}[31m\r\n2026-01-01T00:00:00Z ERROR FORGED\u{85}\u{9b}2J\u{202e}\u{2028}\"\u{7f}";

/// Everything that a device can put somewhere, with control characters in all of it; Mosquitto would
/// refuse it, other brokers pass it on.
async fn evil_messages(options: Options) -> Gateway {
    let (broker, upstream) = (FakeBroker::start().await, Upstream::start().await);
    let evil_answer = json!({"command": true, "latest_fw_version": EVIL, EVIL: EVIL});
    let path = wiremock::matchers::any();
    upstream.responds_to(path, 200, evil_answer).await;
    let options = options.set("BROKER_URL", &broker.url()).set("UPSTREAM_URL", &upstream.url());
    let gateway = options.set("LOG_LEVEL", "trace").spawn().await;
    let mut link = broker.serve(false, Props::default()).await;
    let topics = ["telemetry", "get", "config", "commands/update", "firmware", EVIL];
    let mut sent = 0;
    for topic in topics {
        for credentials in [true, false] {
            sent += 1;
            let own = [("device_id", EVIL), ("access_key", "k"), (EVIL, EVIL)];
            let user = own.into_iter().skip(if credentials { 0 } else { 2 });
            let publish = Publish {
                topic: format!("v1/device/{EVIL}/{topic}"),
                payload: json!({"id": EVIL, "status": EVIL}).to_string().into_bytes(),
                qos: 1,
                packet_id: sent,
                props: Props {
                    user: user.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
                    response_topic: Some(EVIL.to_owned()).filter(|_| sent % 3 == 0),
                    content_type: Some(EVIL.to_owned()),
                    ..Props::default()
                },
                ..Publish::default()
            };
            link.deliver(&publish).await;
        }
    }
    // Whatever the gateway publishes is acknowledged; the log is what matters.
    while gateway.metric("mqtt_rest_gateway_messages_settled_total", &[]).await < sent.into() {
        for packet in link.until_quiet(std::time::Duration::from_millis(100)).await {
            if let crate::wire::Packet::Publish(publish) = packet {
                link.puback(publish.packet_id).await;
            }
        }
    }
    // A line behind all others: what stands before it has come through the pipe.
    gateway.signal("HUP");
    gateway.logs("SIGHUP").await;
    gateway
}

#[tokio::test]
async fn no_message_writes_lines_of_its_own() {
    let gateway = evil_messages(Options::default()).await;
    for line in gateway.log().lines() {
        let (time, rest) = line.split_at(20.min(line.len()));
        assert!(time.starts_with("20") && time.contains('T'), "not a line of ours: {line:?}");
        assert!(!rest.trim_start().starts_with("ERROR FORGED"), "{line:?}");
        let bad = line.chars().find(|c| c.is_control() || "\u{202e}\u{2028}".contains(*c));
        assert!(bad.is_none(), "{bad:?} in {line:?}");
    }
}

#[tokio::test]
async fn json_lines_stay_lines_of_json_with_plain_values() {
    let gateway = evil_messages(Options::default().set("LOG_FORMAT", "json")).await;
    let mut devices = 0;
    for line in gateway.log().lines() {
        let fields: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line:?}"));
        let bad = line.chars().find(|c| c.is_control() || "\u{202e}\u{2028}".contains(*c));
        assert!(bad.is_none(), "{bad:?} in {line:?}");
        if let Some(device) = fields["device"].as_str().filter(|device| !device.is_empty()) {
            assert_eq!(device, EVIL, "as it is, not quoted twice");
            devices += 1;
        }
    }
    assert!(devices > 3, "{devices}");
}

#[tokio::test]
async fn a_device_cannot_fill_the_log() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let gateway = Gateway::start(&broker, &upstream).await;
    let mut device = broker.device("mad").await;
    for _ in 0..300 {
        device.publish(device.message("telemetry", "not json")).await;
    }
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["bad_payload"], 300).await;
    // Another reason is a line of its own, and all others stand before it.
    let mut stranger = device.message("telemetry", "{}");
    stranger.props.user.clear();
    device.publish(stranger).await;
    gateway.logs("no_credentials").await;
    let log = gateway.log();
    let lines = log.lines().filter(|line| line.contains("bad_payload")).count();
    assert_eq!(lines, 10, "{log}");
}

#[tokio::test]
async fn sighup_does_not_end_the_gateway() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let mut gateway = Gateway::start(&broker, &upstream).await;
    gateway.signal("HUP");
    gateway.logs("SIGHUP").await;
    let mut device = broker.device("d1").await;
    upstream.answers("POST", "/v1/devices/d1/telemetry", 200, json!({})).await;
    device.ask("telemetry", json!({})).await;
    assert_eq!(gateway.stop().await.code(), Some(0));
}
