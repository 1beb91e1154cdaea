//! Sessions that outlive their configuration or their gateway: subscriptions of an earlier table or group,
//! and a drain beside a gateway that runs.

use serde_json::{Value, json};

use crate::{
    fake_broker::FakeBroker,
    harness::{Broker, Gateway, Options, QUIET, Upstream, eventually},
    wire::{Packet, Props},
};

const POST: &str = "POST /v1/devices/d1/telemetry";

async fn upstream() -> Upstream {
    let upstream = Upstream::start().await;
    upstream.answers("POST", "/v1/devices/d1/telemetry", 200, json!({})).await;
    upstream
}

/// Sends messages, numbered; each must arrive once.
async fn each_arrives_once(broker: &Broker, upstream: &Upstream, from: u64) {
    let mut device = broker.device("d1").await;
    let until = from + 50;
    for n in from..until {
        device.send("telemetry", json!({ "n": n })).await;
    }
    let numbers = async || -> Vec<u64> {
        let requests = upstream.requests().await;
        let number = |body: Value| body["n"].as_u64().unwrap();
        requests.iter().map(|r| number(r.body_json().unwrap())).filter(|n| *n >= from).collect()
    };
    eventually("all arrive", || async { (numbers().await.len() >= 50).then_some(()) }).await;
    tokio::time::sleep(QUIET).await;
    assert_eq!(numbers().await, (from..until).collect::<Vec<_>>());
}

/// The plain filters stay in the session beside those of the group, and the other way round, unless
/// they are ended.
#[tokio::test]
async fn another_share_group_on_the_same_session_brings_nothing_twice() {
    let (broker, upstream) = (Broker::start().await, upstream().await);
    let rounds = [("", ""), ("g", ""), ("h", "g"), ("", "h")];
    for ((group, former), from) in rounds.into_iter().zip((0..).step_by(100)) {
        let options = Options::default()
            .set("BROKER_SHARE_GROUP", group)
            .set("BROKER_FORMER_SHARE_GROUP", former);
        let mut gateway = options.start(&broker, &upstream).await;
        if from > 0 {
            gateway.logs("ended a subscription of an earlier configuration").await;
        }
        each_arrives_once(&broker, &upstream, from).await;
        gateway.stop().await;
    }
}

/// Where `former_share_group` is not set the operator finds it in the log.
#[tokio::test]
async fn messages_by_another_groups_subscription_are_logged() {
    let (broker, upstream) = (Broker::start().await, upstream().await);
    let options = |group| Options::default().set("BROKER_SHARE_GROUP", group);
    let mut gateway = options("g").start(&broker, &upstream).await;
    gateway.stop().await;
    let gateway = options("h").start(&broker, &upstream).await;
    broker.device("d1").await.send("telemetry", json!({ "n": 0 })).await;
    gateway.logs("name that group in former_share_group").await;
}

#[tokio::test]
async fn a_row_that_is_gone_is_unsubscribed_from_when_its_first_message_comes() {
    let table = |rows: &[&str]| {
        let rows = rows.iter().map(|row| {
            format!(
                "[[route]]\nname = \"{row}\"\non = \"v1/device/{{device_id}}/{row}\"\n\
                 call = \"POST /v1/devices/{{device_id}}/{row}\"\n"
            )
        });
        format!("[upstream]\nurl = \"http://hub\"\n{}", rows.collect::<String>())
    };
    for group in ["", "gateways"] {
        let (broker, upstream) = (Broker::start().await, upstream().await);
        let options = |rows: &[&str]| {
            Options::default().config(&table(rows)).set("BROKER_SHARE_GROUP", group)
        };
        let mut gateway = options(&["telemetry", "old"]).start(&broker, &upstream).await;
        gateway.stop().await;
        let gateway = options(&["telemetry"]).start(&broker, &upstream).await;
        let mut device = broker.device("d1").await;
        device.send("old", json!({})).await;
        gateway.logs("looking for the subscription that brought it").await;
        gateway.logs("ended a subscription of an earlier configuration").await;
        gateway.logs("v1/device/+/old").await;
        for _ in 0..5 {
            device.send("old", json!({})).await;
        }
        device.send("telemetry", json!({ "n": 0 })).await;
        upstream.arrived(POST, 1).await;
        gateway.metric_is("gateway_messages_settled_total", &["no_route"], 1).await;
    }
}

#[tokio::test]
async fn a_drain_yields_to_a_gateway_that_lives() {
    let (broker, upstream) = (Broker::start().await, upstream().await);
    let gateway = Gateway::start(&broker, &upstream).await;
    let options =
        Options::default().set("BROKER_URL", &broker.url()).set("UPSTREAM_URL", &upstream.url());
    let mut drain = options.drain("3s").await;
    assert_eq!(drain.ended().await.code(), Some(1));
    drain.logs("stop it first").await;
    gateway.ready().await;
    each_arrives_once(&broker, &upstream, 0).await;
    assert!(!gateway.log().contains("lost the session"), "{}", gateway.log());
}

/// The other one comes back when the subscriptions are ended already: they are put back.
#[tokio::test]
async fn a_drain_that_has_begun_puts_the_subscriptions_back() {
    let (broker, upstream) = (FakeBroker::start().await, upstream().await);
    let options = Options::default()
        .set("BROKER_URL", &broker.url())
        .set("BROKER_RECONNECT_MAX", "100ms")
        .set("UPSTREAM_URL", &upstream.url());
    let mut drain = options.drain("10s").await;
    let mut link = broker.accept().await;
    link.connack(true, Props::default()).await;
    let mut filters = 0;
    while filters < 12 {
        let Packet::Unsubscribe { packet_id, filters: some } = link.next("UNSUBSCRIBE").await
        else {
            panic!()
        };
        filters += some.len();
        link.send(&Packet::UnsubAck { packet_id, reasons: vec![0; some.len()] }).await;
    }
    link.send_raw(b"\xe0\x01\x8e").await;
    link.cut();
    let mut link = broker.accept().await;
    assert!(!link.clean_start && link.props.session_expiry != Some(0), "the session is kept");
    link.connack(true, Props::default()).await;
    assert_eq!(link.subscribed().await.len(), 12);
    link.goodbye().await;
    assert_eq!(drain.ended().await.code(), Some(1));
    drain.logs("SessionTakenOver").await;
}

#[tokio::test]
async fn a_drain_without_a_session_says_so_and_one_without_a_broker_ends_in_time() {
    let (broker, upstream) = (Broker::start().await, upstream().await);
    let options =
        Options::default().set("BROKER_URL", &broker.url()).set("UPSTREAM_URL", &upstream.url());
    let mut drain = options.drain("10s").await;
    assert_eq!(drain.ended().await.code(), Some(0));
    drain.logs("there was no session").await;
    assert_eq!(drain.log().matches("no such subscription").count(), 0);

    let (_socket, nobody) = crate::harness::nobody();
    let options = Options::default().set("BROKER_URL", &format!("mqtt://{nobody}"));
    let mut drain = options.command(&["drain", "--timeout", "500ms"]).await;
    assert_eq!(drain.ended().await.code(), Some(1));
    drain.logs("not drained in time").await;
}
