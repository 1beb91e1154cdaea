//! The acknowledgement window against brokers that are not Mosquitto, byte by byte.

use std::time::Duration;

use serde_json::json;
use wiremock::ResponseTemplate;

use crate::{
    fake_broker::{FakeBroker, Link},
    fixture::{self, SETTLED, gateway, path, quick},
    harness::{self, Gateway, Options, QUIET, Upstream},
    wire::{Packet, Props, Publish},
};

/// The same from each device, whatever its packet identifier.
fn telemetry(packet_id: u16, device: &str) -> Publish {
    harness::telemetry(packet_id, device, "{}")
}

fn again(packet_id: u16, device: &str) -> Publish {
    fixture::again(&telemetry(packet_id, device))
}

async fn posts(upstream: &Upstream, device: &str) -> usize {
    upstream.count(&format!("POST {}", path(device))).await
}

/// A gateway, and devices of which the first is slow with one call.
async fn slow(broker: &FakeBroker, options: Options) -> (Upstream, Gateway) {
    let upstream = quick(&["d1", "d2", "d3"]).await;
    let answer = ResponseTemplate::new(200).set_body_json(json!({}));
    let slow = answer.set_delay(Duration::from_secs(2));
    upstream.responds_times("POST", &path("d1"), 1, slow).await;
    let gateway = gateway(broker, &upstream.url(), options).await;
    (upstream, gateway)
}

async fn handled(link: &mut Link, packet_id: u16) {
    link.deliver(&telemetry(packet_id, "d2")).await;
    assert_eq!(link.expect_puback().await, packet_id);
}

#[tokio::test]
async fn an_equal_message_under_an_identifier_that_came_round_is_another_message() {
    let broker = FakeBroker::start().await;
    let (upstream, _gateway) =
        slow(&broker, Options::default().set("BROKER_MAX_PENDING", "2")).await;
    let mut link = broker.serve(false, Props::default()).await;
    for packet_id in 1..=4 {
        handled(&mut link, packet_id).await;
    }
    // Identifier 1 has come round, in a message that was lost on its way.
    link.cut();
    let mut link = broker.serve(true, Props::default()).await;
    link.deliver(&again(1, "d2")).await;
    assert_eq!(link.expect_puback().await, 1);
    assert_eq!(posts(&upstream, "d2").await, 5);
    // The PUBACK of the last may have been lost with the connection.
    link.deliver(&again(4, "d2")).await;
    assert_eq!(link.expect_puback().await, 4);
    assert_eq!(posts(&upstream, "d2").await, 5);
}

/// EMQX before 5.8 does so, against [MQTT-4.4.0-1].
#[tokio::test]
async fn a_message_that_is_sent_again_on_the_same_connection_is_posted_once() {
    let broker = FakeBroker::start().await;
    let (upstream, gateway) = slow(&broker, Options::default()).await;
    let mut link = broker.serve(false, Props::default()).await;
    link.deliver(&telemetry(1, "d1")).await;
    upstream.arrived(&format!("POST {}", path("d1")), 1).await;
    for _ in 0..3 {
        link.deliver(&again(1, "d1")).await;
    }
    assert_eq!(link.expect_puback().await, 1);
    gateway.metric_is("mqtt_rest_gateway_redelivered_total", &[], 3).await;
    // It has not read the PUBACK yet.
    link.deliver(&again(1, "d1")).await;
    assert_eq!(link.expect_puback().await, 1);
    assert_eq!(posts(&upstream, "d1").await, 1);
    // Without DUP it is an equal one, under an identifier that is free again.
    link.deliver(&telemetry(1, "d1")).await;
    assert_eq!(link.expect_puback().await, 1);
    assert_eq!(posts(&upstream, "d1").await, 2);
    gateway.metric_is(SETTLED, &[], 2).await;
}

/// What comes again without DUP before its PUBACK can be no other message.
#[tokio::test]
async fn a_broker_that_forgets_dup_costs_no_second_post() {
    let broker = FakeBroker::start().await;
    let (upstream, gateway) = slow(&broker, Options::default()).await;
    let mut link = broker.serve(false, Props::default()).await;
    link.deliver(&telemetry(1, "d1")).await;
    upstream.arrived(&format!("POST {}", path("d1")), 1).await;
    link.cut();
    let mut link = broker.serve(true, Props::default()).await;
    link.deliver(&telemetry(1, "d1")).await;
    assert_eq!(link.expect_puback().await, 1);
    gateway.metric_is(SETTLED, &[], 1).await;
    assert_eq!(posts(&upstream, "d1").await, 1);
}

/// EMQX with durable sessions does so, and then sends nothing any more.
#[tokio::test]
async fn a_broker_that_ignores_pubacks_out_of_order_does_not_stand_still() {
    let broker = FakeBroker::start().await;
    let options = Options::default().set("BROKER_MAX_PENDING", "3").set("BROKER_ACK_HOLD", "50ms");
    let (upstream, gateway) = slow(&broker, options).await;
    let mut link = broker.serve(false, Props::default()).await;
    link.deliver(&telemetry(1, "d1")).await;
    upstream.arrived(&format!("POST {}", path("d1")), 1).await;
    link.deliver(&telemetry(2, "d2")).await;
    assert_eq!(link.expect_puback().await, 2);
    link.deliver(&telemetry(3, "d3")).await;
    assert_eq!(link.expect_puback().await, 3);
    assert_eq!(link.expect_puback().await, 1);
    // It ignores all but the last: two of its three places stay occupied for ever.
    link.goodbye().await;
    let mut link = broker.serve(true, Props::default()).await;
    for (packet_id, device) in [(2, "d2"), (3, "d3")] {
        link.deliver(&again(packet_id, device)).await;
        assert_eq!(link.expect_puback().await, packet_id);
    }
    assert_eq!((posts(&upstream, "d2").await, posts(&upstream, "d3").await), (1, 1));
    gateway.logs("ignores PUBACKs that come out of order").await;
    // From now on it gets them in order.
    let hung = ResponseTemplate::new(200).set_body_json(json!({}));
    let hung = hung.set_delay(Duration::from_secs(1));
    upstream.responds_times("POST", &path("d1"), 1, hung).await;
    link.deliver(&telemetry(4, "d1")).await;
    link.deliver(&telemetry(5, "d2")).await;
    assert_eq!((link.expect_puback().await, link.expect_puback().await), (4, 5));
}

/// A broker that accepts PUBACKs out of order is put to the test once.
#[tokio::test]
async fn a_broker_that_takes_pubacks_in_any_order_is_asked_once() {
    let broker = FakeBroker::start().await;
    let options = Options::default().set("BROKER_ACK_HOLD", "50ms");
    let (upstream, gateway) = slow(&broker, options).await;
    let mut link = broker.serve(false, Props::default()).await;
    for round in 0..2 {
        let (first, second) = (2 * round + 1, 2 * round + 2);
        link.deliver(&telemetry(first, "d1")).await;
        upstream.arrived(&format!("POST {}", path("d1")), usize::from(round) + 1).await;
        link.deliver(&telemetry(second, "d2")).await;
        assert_eq!(link.expect_puback().await, second);
        assert_eq!(link.expect_puback().await, first);
        if round == 0 {
            link.goodbye().await;
            link = broker.serve(true, Props::default()).await;
            // Something new: it has nothing to send again.
            link.deliver(&telemetry(9, "d3")).await;
            assert_eq!(link.expect_puback().await, 9);
            let slow = ResponseTemplate::new(200).set_body_json(json!({}));
            let slow = slow.set_delay(Duration::from_secs(1));
            upstream.responds_times("POST", &path("d1"), 1, slow).await;
        }
    }
    // Longer than it took to ask.
    link.expect_nothing(Duration::from_secs(6)).await;
    gateway.metric_is("mqtt_rest_gateway_broker_connects_total", &[], 2).await;
}

/// No identifier may come round to a message that is held: 65,535 others, and it would.
#[tokio::test]
async fn no_identifier_comes_round_while_its_message_is_held() {
    const PENDING: u16 = 100;
    let broker = FakeBroker::start().await;
    let upstream = quick(&["d2"]).await;
    let hung = ResponseTemplate::new(200).set_delay(Duration::from_hours(1));
    upstream.responds("POST", &path("d1"), hung).await;
    let options = Options::default()
        .set("UPSTREAM_ATTEMPT_TIMEOUT", "1h")
        .set("UPSTREAM_DEADLINE", "1h")
        .set("BROKER_MAX_PENDING", &PENDING.to_string())
        .set("BROKER_ACK_HOLD", "0s");
    let gateway = gateway(&broker, &upstream.url(), options).await;
    let mut link = broker.serve(false, Props::default()).await;
    link.deliver(&telemetry(1, "d1")).await;
    // Without credentials on this topic it is no request: settled at once, without a call.
    let ignored = |packet_id| Publish {
        topic: "v1/device/d2/config".to_owned(),
        payload: Vec::new(),
        qos: 1,
        packet_id,
        ..Publish::default()
    };
    let (mut sent, mut open) = (1_u32, 1_u32);
    loop {
        while open < u32::from(PENDING) && sent < u32::from(u16::MAX) {
            sent += 1;
            open += 1;
            link.deliver(&ignored(u16::try_from(sent).unwrap())).await;
        }
        let Some(packet) = link.next_within(QUIET).await else { break };
        assert!(matches!(packet, Packet::PubAck { packet_id, .. } if packet_id != 1));
        open -= 1;
    }
    // All are settled and the window is full: the broker cannot use another identifier.
    gateway.metric_reaches(SETTLED, &[], u64::from(sent) - 1).await;
    assert_eq!((sent, open), (u32::from(u16::MAX), u32::from(PENDING)));
}
