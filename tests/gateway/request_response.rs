//! MQTT v5 request and response: Response Topic, Correlation Data byte for byte, content type,
//! status, and where failures are answered.

use mqtt_rest_gateway::config::SHIPPED;
use serde_json::{Value, json};
use wiremock::ResponseTemplate;

use crate::harness::{Broker, Gateway, Options, Upstream, nobody};

const TELEMETRY: &str = "/v1/devices/d1/telemetry";

#[tokio::test]
async fn correlation_data_comes_back_byte_for_byte() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let answer = ResponseTemplate::new(201).set_body_raw("a=1;b=2", "text/x-pairs; charset=utf-8");
    upstream.responds("POST", TELEMETRY, answer).await;
    let _gateway = Gateway::start(&broker, &upstream).await;
    let mut device = broker.device("d1").await;
    let every_byte: Vec<u8> = (0..=255).collect();
    for correlation in [every_byte, vec![0xff, 0xfe, 0x00], vec![]] {
        let mut message = device.message("telemetry", r#"{"status":"online"}"#);
        message.props.response_topic = Some("v1/device/d1/a/b".into());
        message.props.correlation = Some(correlation.clone());
        device.publish(message).await;
        let reply = device.next().await;
        assert_eq!(reply.topic, "v1/device/d1/a/b");
        assert_eq!(reply.props.correlation, Some(correlation));
        assert_eq!(reply.payload, b"a=1;b=2");
        assert_eq!(reply.props.content_type.as_deref(), Some("text/x-pairs; charset=utf-8"));
        assert_eq!((reply.user("status"), reply.user("route")), ("201", "telemetry"));
        assert!(!reply.retain);
    }
}

#[tokio::test]
async fn without_a_response_topic_telemetry_is_not_answered() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    upstream.answers("POST", TELEMETRY, 200, json!({})).await;
    let gateway = Gateway::start(&broker, &upstream).await;
    let mut device = broker.device("d1").await;
    device.send("telemetry", json!({"status": "online"})).await;
    gateway.metric_reaches("mqtt_rest_gateway_messages_settled_total", &["delivered"], 1).await;
    device.silent().await;
}

#[tokio::test]
async fn a_refusal_of_the_api_is_a_reply_and_a_dead_letter() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    upstream
        .answers("POST", TELEMETRY, 422, json!({"error": "Missing 'telemetries' object"}))
        .await;
    let _gateway = Gateway::start(&broker, &upstream).await;
    let mut device = broker.device("d1").await;
    let mut dead = broker.observer("mqtt-rest-gateway/dead-letter/#").await;
    let answer = device.ask("telemetry", json!({"status": "online"})).await;
    assert_eq!(answer.user("status"), "422");
    assert_eq!(answer.json(), json!({"error": "Missing 'telemetries' object"}));
    let letter = dead.next().await;
    assert_eq!(letter.topic, "mqtt-rest-gateway/dead-letter/telemetry");
    assert_eq!(letter.json(), json!({"status": "online"}));
    assert_eq!(letter.user("topic"), "v1/device/d1/telemetry");
    assert_eq!(
        (letter.user("reason"), letter.user("status"), letter.user("attempts")),
        ("rejected", "422", "1")
    );
    assert_eq!((letter.user("device_id"), letter.user("access_key")), ("d1", ""));
    assert!(letter.user("received_at").starts_with("20"), "{}", letter.user("received_at"));

    // Without a Response Topic the failure goes where devices can expect failures.
    device.send("telemetry", json!({"status": "online"})).await;
    let failure = device.next().await;
    assert_eq!(failure.topic, "v1/device/d1/errors");
    assert_eq!((failure.user("status"), failure.user("route")), ("422", "telemetry"));
}

#[tokio::test]
async fn failures_of_the_gateway_have_a_code_and_a_status() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    upstream.responds("POST", TELEMETRY, ResponseTemplate::new(503)).await;
    let gateway = Options::default()
        .set("UPSTREAM_DEADLINE", "500ms")
        .set("UPSTREAM_ATTEMPT_TIMEOUT", "200ms")
        .start(&broker, &upstream)
        .await;
    let mut device = broker.device("d1").await;
    let mut dead = broker.observer("mqtt-rest-gateway/dead-letter/#").await;
    let answer = device.ask("telemetry", json!({"status": "online"})).await;
    assert_eq!(answer.user("status"), "504");
    assert_eq!(answer.json()["code"], "deadline");
    let letter = dead.next().await;
    assert_eq!((letter.user("reason"), letter.user("status")), ("deadline", "504"));
    assert!(letter.user("attempts").parse::<u32>().unwrap() > 1);

    // Hanging instead of refusing ends the same way.
    let slow = ResponseTemplate::new(200).set_delay(std::time::Duration::from_mins(1));
    upstream.responds("POST", TELEMETRY, slow).await;
    let answer = device.ask("telemetry", json!({"status": "online"})).await;
    assert_eq!((answer.user("status"), &answer.json()["code"]), ("504", &Value::from("deadline")));
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["deadline"], 2).await;
}

#[tokio::test]
async fn an_unreachable_upstream_is_a_bad_gateway() {
    let (broker, (_socket, nobody)) = (Broker::start().await, nobody());
    // Rows that may be repeated are held until the upstream is back; this one may not.
    let name = "name     = \"telemetry\"\n";
    assert!(SHIPPED.contains(name));
    let gateway = Options::default()
        .config(&SHIPPED.replace(name, &format!("{name}retry = \"never\"\n")))
        .set("BROKER_URL", &broker.url())
        .set("UPSTREAM_URL", &format!("http://{nobody}"))
        .set("UPSTREAM_DEADLINE", "500ms")
        .set("UPSTREAM_ATTEMPT_TIMEOUT", "200ms")
        .spawn()
        .await;
    gateway.ready().await;
    let mut device = broker.device("d1").await;
    let answer = device.ask("telemetry", json!({"status": "online"})).await;
    assert_eq!(
        (answer.user("status"), &answer.json()["code"]),
        ("502", &Value::from("unreachable"))
    );
}
