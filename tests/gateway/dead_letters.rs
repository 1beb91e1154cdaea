//! Dead letters are the last copy of a message: whether anybody takes them is never left unsaid.

use serde_json::json;

use crate::harness::{Broker, Gateway, Upstream};

const LETTERS: &str = "gateway_dead_letters_total";

#[tokio::test]
async fn letters_that_nobody_takes_are_counted_and_said() {
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
async fn letters_that_the_broker_refuses_are_counted_so() {
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
