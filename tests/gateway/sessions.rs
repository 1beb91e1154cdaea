//! Sessions that outlive their configuration or their gateway: subscriptions of an earlier table or group,
//! and a drain beside a gateway that runs.

use serde_json::{Value, json};
use wiremock::matchers::any;

use crate::{
    fake_broker::FakeBroker,
    harness::{Broker, Gateway, Options, QUIET, Upstream, eventually, telemetry, while_it_moves},
    wire::Props,
};

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

/// A table with rows that listen here, for `POST` to a path like the topic.
fn table(patterns: &[&str]) -> String {
    let rows = patterns.iter().enumerate().map(|(index, pattern)| {
        let path = pattern.replace("...", "");
        format!("[[route]]\nname = \"r{index}\"\non = \"{pattern}\"\ncall = \"POST /{path}\"\n")
    });
    let text =
        "[upstream]\nurl = \"http://hub\"\n[replies]\nerrors = \"\"\n[dead_letter]\ntopic = \"\"\n";
    format!("{text}{}", rows.collect::<String>())
}

#[tokio::test]
async fn a_row_that_is_gone_is_unsubscribed_from_when_its_first_message_comes() {
    for group in ["", "gateways"] {
        let (broker, upstream) = (Broker::start().await, Upstream::start().await);
        upstream.responds_to(any(), 200, json!({})).await;
        let options = |patterns: &[&str]| {
            Options::default().config(&table(patterns)).set("BROKER_SHARE_GROUP", group)
        };
        let (kept, old) = ("v1/device/{device_id}/telemetry", "v1/device/{device_id}/old");
        let mut gateway = options(&[kept, old]).start(&broker, &upstream).await;
        gateway.stop().await;
        let gateway = options(&[kept]).start(&broker, &upstream).await;
        let mut device = broker.device("d1").await;
        device.send("old", json!({})).await;
        gateway.logs("ended a subscription of an earlier configuration").await;
        gateway.logs("v1/device/+/old").await;
        for _ in 0..5 {
            device.send("old", json!({})).await;
        }
        device.send("telemetry", json!({ "n": 0 })).await;
        upstream.arrived("POST /v1/device/d1/telemetry", 1).await;
        gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["no_route"], 1).await;
    }
}

/// A row is changed so that its old filter, which stays in the session, overlaps the new one: the broker
/// sends a copy for each.
#[tokio::test]
async fn a_pattern_that_overlaps_its_old_one_brings_nothing_twice_after_the_first_message() {
    let changes = [
        ("sensors/{device_id}/{metric}", "sensors/{device_id}/reading"),
        ("sensors/{device_id}/reading", "sensors/{device_id}/{metric}"),
        ("{site}/{device_id}/{metric}", "sensors/{device_id}/{metric}"),
        ("sensors/{device_id}/{metric...}", "sensors/{device_id}/reading"),
    ];
    for ((before, after), group) in changes.into_iter().zip(["", "gateways", "gateways", ""]) {
        for waiting in [0, 5] {
            let (broker, upstream) = (Broker::start().await, Upstream::start().await);
            upstream.responds_to(any(), 200, json!({})).await;
            let options = |pattern: &str| {
                Options::default().config(&table(&[pattern])).set("BROKER_SHARE_GROUP", group)
            };
            let mut gateway = options(before).start(&broker, &upstream).await;
            gateway.stop().await;
            let mut device = broker.device("d1").await;
            let mut send = async |n: u64| {
                let mut message = device.message("", json!({ "n": n }).to_string());
                message.topic = "sensors/d1/reading".to_owned();
                device.publish(message).await;
            };
            // What waits came by the old subscription.
            for n in 0..waiting {
                send(n).await;
            }
            let gateway = options(after).start(&broker, &upstream).await;
            if waiting == 0 {
                send(0).await;
            }
            gateway.logs("ended a subscription of an earlier configuration").await;
            let first = waiting.max(1);
            for n in first..first + 20 {
                send(n).await;
            }
            let numbers = async || -> Vec<u64> {
                let requests = upstream.requests().await;
                let body = |request: &wiremock::Request| request.body_json::<Value>().unwrap();
                requests.iter().map(|request| body(request)["n"].as_u64().unwrap()).collect()
            };
            while_it_moves("all arrive", || async {
                let came = numbers().await;
                if came.contains(&(first + 19)) { Ok(()) } else { Err(came.len()) }
            })
            .await;
            gateway.settles().await;
            let mut came = numbers().await;
            if waiting == 0 {
                // The first copy is what shows it.
                assert_eq!(came.remove(0), 0, "{before} to {after}: {came:?}");
            }
            assert_eq!(came, (0..first + 20).collect::<Vec<_>>(), "{before} to {after}");
        }
    }
}

/// Another kind of broker sends one copy, with the identifiers of all subscriptions that it came by.
#[tokio::test]
async fn a_copy_by_an_old_and_a_new_subscription_is_one_message() {
    let (broker, upstream) = (FakeBroker::start().await, Upstream::start().await);
    upstream.responds_to(any(), 200, json!({})).await;
    let options = |pattern: &str| {
        Options::default()
            .config(&table(&[pattern]))
            .set("BROKER_URL", &broker.url())
            .set("UPSTREAM_URL", &upstream.url())
    };
    let connects = async |session_present| {
        let mut link = broker.accept().await;
        link.connack(session_present, Props::default()).await;
        let (filter, identifier) = link.identified(1).await.remove(0);
        (link, filter, identifier)
    };
    let mut gateway = options("sensors/{device_id}/{metric}").spawn().await;
    let (link, old, earlier) = connects(false).await;
    assert_eq!(old, "sensors/+/+");
    let (stopped, ()) = tokio::join!(gateway.stop(), link.goodbye());
    assert!(stopped.success());

    let gateway = options("sensors/{device_id}/reading").spawn().await;
    let (mut link, _, identifier) = connects(true).await;
    assert_ne!(identifier, earlier);
    let message = |packet_id, subscription_ids: &[u32]| {
        let mut message = telemetry(packet_id, "d1", json!({ "n": packet_id }).to_string());
        message.topic = "sensors/d1/reading".to_owned();
        message.props.subscription_ids = subscription_ids.to_vec();
        message
    };
    link.deliver(&message(1, &[earlier, identifier])).await;
    assert_eq!(link.unsubscribed().await, ["sensors/+/+"]);
    assert_eq!(link.expect_puback().await, 1);
    // What waited comes by the old one only; the next by the new one. Nothing is looked for again.
    for (packet_id, identifiers) in [(2, vec![earlier]), (3, vec![identifier]), (4, vec![])] {
        link.deliver(&message(packet_id, &identifiers)).await;
        assert_eq!(link.expect_puback().await, packet_id);
    }
    assert_eq!(upstream.requests().await.len(), 4);
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["delivered"], 4).await;
    // By a share group that nobody has told it of.
    assert!(!gateway.log().contains("former_share_group"));
    link.deliver(&message(5, &[77])).await;
    assert_eq!(link.expect_puback().await, 5);
    gateway.logs("name that group in former_share_group").await;
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
        filters += link.unsubscribed().await.len();
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
