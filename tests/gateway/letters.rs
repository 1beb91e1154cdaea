//! A message that ends as a dead letter is acknowledged when the broker has the letter: until then the
//! original is the only copy that anybody has promised to keep.

use serde_json::json;

use crate::{
    fake_broker::{FakeBroker, Link},
    fixture::{REFUSED, SETTLED, again, gateway, path, question, telemetry},
    harness::{Gateway, Options, QUIET, Upstream},
    wire::{Packet, Props, Publish},
};

const LETTERS: &str = "mqtt-rest-gateway/dead-letter/telemetry";

/// Who asks for no reply gets none.
fn options() -> Options {
    Options::default().set("REPLIES_ERRORS", "")
}

/// An API that refuses what `d1` sends, a broker, and a gateway that is subscribed.
async fn stage() -> (Upstream, FakeBroker, Gateway, Link) {
    let upstream = Upstream::start().await;
    upstream.answers("POST", &path("d1"), 422, json!({})).await;
    upstream.answers("POST", &path("d2"), 200, json!({})).await;
    let broker = FakeBroker::start().await;
    let gateway = gateway(&broker, &upstream.url(), options()).await;
    let link = broker.serve(false, Props::default()).await;
    (upstream, broker, gateway, link)
}

/// The letter must come next; it is not acknowledged.
async fn letter(link: &mut Link) -> Publish {
    let letter = link.expect_publish().await;
    assert_eq!((letter.topic.as_str(), letter.user("reason")), (LETTERS, "rejected"));
    letter
}

#[tokio::test]
async fn the_original_is_acknowledged_after_its_letter() {
    let (_upstream, _broker, _gateway, mut link) = stage().await;
    // Its reply waits for nothing, nor does another device.
    link.deliver(&question(1, "d1")).await;
    let reply = link.expect_publish().await;
    assert_eq!(reply.user("status"), "422");
    let letter = letter(&mut link).await;
    link.deliver(&telemetry(2, "d2")).await;
    assert_eq!(link.expect_puback().await, 2, "past the one that waits, after ack_hold");
    link.puback(reply.packet_id).await;
    link.expect_nothing(QUIET).await;
    link.puback(letter.packet_id).await;
    assert_eq!(link.expect_puback().await, 1);
}

#[tokio::test]
async fn killed_before_the_letter_is_taken_the_original_comes_again() {
    let (upstream, broker, mut first, mut link) = stage().await;
    link.deliver(&telemetry(1, "d1")).await;
    letter(&mut link).await;
    link.expect_nothing(QUIET).await;
    first.kill().await;
    // So the broker still has it, and a gateway that comes later makes another letter of it.
    let _second = gateway(&broker, &upstream.url(), options()).await;
    let mut link = broker.serve(true, Props::default()).await;
    link.deliver(&again(&telemetry(1, "d1"))).await;
    let letter = letter(&mut link).await;
    link.puback(letter.packet_id).await;
    assert_eq!(link.expect_puback().await, 1);
}

/// Over a connection that ends the letter goes out again, the message is not posted again, and the PUBACK
/// waits as before.
#[tokio::test]
async fn a_letter_on_its_way_when_the_connection_ends_settles_its_message_later() {
    let (upstream, broker, gateway, mut link) = stage().await;
    link.deliver(&telemetry(1, "d1")).await;
    letter(&mut link).await;
    link.cut();
    let mut link = broker.serve(true, Props::default()).await;
    link.deliver(&again(&telemetry(1, "d1"))).await;
    let letter = letter(&mut link).await;
    link.expect_nothing(QUIET).await;
    link.puback(letter.packet_id).await;
    assert_eq!(link.expect_puback().await, 1);
    assert_eq!(upstream.count(&format!("POST {}", path("d1"))).await, 1);
    gateway.metric_is(SETTLED, &["rejected"], 1).await;
}

/// A letter that no broker will ever have must not keep its message for ever: refused, too large, at `QoS` 0.
#[tokio::test]
async fn a_letter_that_is_never_taken_settles_its_message_as_well() {
    let (_upstream, broker, gateway, mut link) = stage().await;
    link.deliver(&telemetry(1, "d1")).await;
    let refused = letter(&mut link).await;
    link.send(&Packet::PubAck { packet_id: refused.packet_id, reason: 0x87 }).await;
    assert_eq!(link.expect_puback().await, 1);
    link.cut();
    let tiny = Props { maximum_packet_size: Some(100), ..Props::default() };
    let mut link = broker.serve(true, tiny).await;
    link.deliver(&telemetry(2, "d1")).await;
    assert_eq!(link.expect_puback().await, 2);
    link.cut();
    let at_most_once = Props { maximum_qos: Some(0), ..Props::default() };
    let mut link = broker.serve(true, at_most_once).await;
    link.deliver(&telemetry(3, "d1")).await;
    letter(&mut link).await;
    assert_eq!(link.expect_puback().await, 3);
    gateway.metric_is("mqtt_rest_gateway_dead_letters_total", &["refused"], 1).await;
}

/// The broker ends every connection over it, so it is dropped; the original is not sent again for ever.
#[tokio::test]
async fn a_letter_that_ends_every_connection_settles_its_message() {
    let (upstream, broker, gateway, mut link) = stage().await;
    link.deliver(&telemetry(1, "d1")).await;
    // Three in a row, and once more to see that it is this publication.
    for _ in 0..4 {
        letter(&mut link).await;
        link.cut();
        link = broker.serve(true, Props::default()).await;
        link.deliver(&again(&telemetry(1, "d1"))).await;
    }
    assert_eq!(link.expect_puback().await, 1);
    link.deliver(&telemetry(2, "d2")).await;
    assert_eq!(link.expect_puback().await, 2);
    assert_eq!(upstream.count(&format!("POST {}", path("d1"))).await, 1);
    gateway.metric_is(REFUSED, &["poison"], 1).await;
    gateway.metric_is("mqtt_rest_gateway_dead_letters_total", &["dropped"], 1).await;
}

/// No broker would take it on its topic, which the device has chosen a part of; or it has no topic, since none
/// of the rows matches. Either is counted.
#[tokio::test]
async fn a_letter_without_a_legal_topic_settles_its_message() {
    let (upstream, broker) = (Upstream::start().await, FakeBroker::start().await);
    let options = options().set("DEAD_LETTER_TOPIC", "letters/{device_id}");
    let gateway = gateway(&broker, &upstream.url(), options).await;
    let mut link = broker.serve(false, Props::default()).await;
    link.deliver(&telemetry(1, "d\u{7f}1")).await;
    assert_eq!(link.expect_puback().await, 1);
    gateway.metric_is(REFUSED, &["illegal"], 1).await;
    gateway.metric_is("mqtt_rest_gateway_dead_letters_total", &["dropped"], 1).await;
    link.deliver(&Publish { topic: "elsewhere".to_owned(), ..telemetry(2, "d1") }).await;
    assert_eq!(link.unsubscribed().await.len(), 5, "every filter that may have brought it");
    assert_eq!(link.expect_puback().await, 2);
    gateway.metric_is("mqtt_rest_gateway_dead_letters_total", &["no_route", "dropped"], 1).await;
}

/// A stop waits for the letter's PUBACK before it says good-bye.
#[tokio::test]
async fn a_stop_waits_for_the_letter() {
    let (_upstream, _broker, mut gateway, mut link) = stage().await;
    link.deliver(&telemetry(1, "d1")).await;
    let letter = letter(&mut link).await;
    gateway.signal("TERM");
    link.expect_nothing(QUIET).await;
    link.puback(letter.packet_id).await;
    assert_eq!(link.expect_puback().await, 1);
    link.goodbye().await;
    assert!(gateway.ended().await.success());
}
