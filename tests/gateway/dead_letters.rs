//! Dead letters are the last copy of a message: whether anybody takes them is never left unsaid.

use serde_json::json;

use crate::harness::{Broker, Gateway, Upstream};

const LETTERS: &str = "mqtt_rest_gateway_dead_letters_total";

#[tokio::test]
async fn dead_letters_without_a_subscriber_are_counted_and_logged() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let gateway = Gateway::start(&broker, &upstream).await;
    let mut device = broker.device("d1").await;
    upstream.answers("POST", "/v1/devices/d1/telemetry", 422, json!({})).await;
    device.send("telemetry", json!({})).await;
    let row = r#"route="telemetry",reason="rejected""#;
    gateway.metric_is(LETTERS, &[row, r#"kept="no""#], 1).await;
    gateway.logs("dead letters go nowhere").await;

    let mut reader = broker.observer("mqtt-rest-gateway/dead-letter/#").await;
    device.send("telemetry", json!({})).await;
    assert_eq!(reader.next().await.user("reason"), "rejected");
    gateway.metric_is(LETTERS, &[row, r#"kept="yes""#], 1).await;
    gateway.metric_is(LETTERS, &[r#"kept="no""#], 1).await;
}

#[tokio::test]
async fn dead_letters_that_the_broker_refuses_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let acl = dir.path().join("acl");
    std::fs::write(&acl, "topic readwrite v1/#\n").unwrap();
    let broker = Broker::configured(&format!("acl_file {}", acl.display())).await;
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&broker, &upstream).await;
    let mut device = broker.device("d1").await;
    device.send("nowhere", json!({})).await;
    device.send("config/update", json!({})).await;
    gateway.metric_is(LETTERS, &[r#"route="update_config""#, r#"kept="refused""#], 1).await;
}

#[tokio::test]
async fn dead_letter_and_log_have_the_first_words_of_the_answer() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let gateway = Gateway::start(&broker, &upstream).await;
    let mut reader = broker.observer("mqtt-rest-gateway/dead-letter/#").await;
    let mut device = broker.device("d1").await;
    let answer = json!({"error": "brightness must be a number", "key": "key-of-d1"});
    upstream.answers("POST", "/v1/devices/d1/telemetry", 422, answer).await;
    let mut message = device.message("telemetry", "{}");
    let own = [("topic", "v1/device/other/telemetry"), ("Access_Key", "key-of-d1"), ("model", "m")];
    message.props.user.extend(own.map(|(name, value)| (name.to_owned(), value.to_owned())));
    device.publish(message).await;
    let letter = reader.next().await;
    assert!(letter.user("answer").contains("brightness must be a number"), "{letter:?}");
    // Whoever reads it as a dictionary, by the last of each name, reads the same.
    let last = |name: &str| letter.props.user.iter().rfind(|(n, _)| n == name).unwrap().1.clone();
    assert_eq!(last("topic"), "v1/device/d1/telemetry");
    assert_eq!(last("model"), "m");
    assert!(!format!("{letter:?}").contains("key-of-d1"), "{letter:?}");
    gateway.logs("brightness must be a number").await;
    assert!(!gateway.log().contains("key-of-d1"));
}

#[tokio::test]
async fn a_dead_letter_above_the_packet_size_goes_without_its_payload() {
    let broker = Broker::configured("max_packet_size 1500").await;
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&broker, &upstream).await;
    let mut reader = broker.observer("mqtt-rest-gateway/dead-letter/#").await;
    let mut device = broker.device("d1").await;
    upstream.answers("POST", "/v1/devices/d1/telemetry", 422, json!({})).await;
    device.send("telemetry", json!({"long": "x".repeat(1300)})).await;
    let letter = reader.next().await;
    assert_eq!((letter.user("reason"), letter.payload.len()), ("rejected", 0));
    assert!(letter.user("payload").starts_with("left out: 1311 bytes"), "{letter:?}");
    gateway.metric_is(LETTERS, &[r#"kept="yes""#], 1).await;
}
