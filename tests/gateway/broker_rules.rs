//! Rules of brokers, and messages that break them: no message, answer or configuration keeps the gateway
//! off the air, and what a broker cannot do is logged.

use std::time::Duration;

use serde_json::json;
use wiremock::ResponseTemplate;

use crate::{
    fake_broker::{FakeBroker, Link},
    fixture::{CONNECTS, REFUSED, SETTLED, gateway, path, question, quick, telemetry},
    harness::{Broker, Gateway, Options, QUIET, Upstream, eventually, program},
    wire::{Packet, Props, Publish},
};

/// The PUBACK of this message; what is published meanwhile is acknowledged.
async fn settled(link: &mut Link, packet_id: u16) {
    loop {
        match link.next("PUBACK").await {
            Packet::PubAck { packet_id: id, .. } => return assert_eq!(id, packet_id),
            Packet::Publish(publish) => link.puback(publish.packet_id).await,
            other => panic!("{other:?}"),
        }
    }
}

/// A PUBLISH whose properties are these bytes.
fn raw(packet_id: u16, topic: &[u8], properties: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut body = u16::try_from(topic.len()).unwrap().to_be_bytes().to_vec();
    body.extend(topic);
    body.extend(packet_id.to_be_bytes());
    body.push(u8::try_from(properties.len()).unwrap());
    body.extend(properties);
    body.extend(payload);
    let mut packet = vec![0x32, u8::try_from(body.len()).expect("a short packet")];
    packet.extend(body);
    packet
}

#[tokio::test]
async fn no_malformed_message_ends_the_connection_or_stays_unacknowledged() {
    let (broker, upstream) = (FakeBroker::start().await, quick(&["d1"]).await);
    let gateway = gateway(&broker, &upstream.url(), Options::default()).await;
    let mut link = broker.serve(false, Props::default()).await;
    let topic = b"v1/device/d1/telemetry";
    let messages: [(&[u8], &[u8]); 8] = [
        // User properties, Content Type, Response Topic that are not UTF-8.
        (topic, b"\x26\x00\x01a\x00\x02\xffx"),
        (topic, b"\x26\x00\x01\xfe\x00\x01x\x03\x00\x01\xff\x08\x00\x01\xff"),
        // A topic that is not UTF-8; a topic alias instead of one; an alias beside one.
        (b"v1/device/\xff/telemetry", b""),
        (b"", b"\x23\x00\x05"),
        (topic, b"\x23\x00\x05"),
        // An unknown property; one that is cut off; a string longer than all properties.
        (topic, b"\x7e\x01"),
        (topic, b"\x02\x00"),
        (topic, b"\x26\x00\x01a\xff\xffb"),
    ];
    for (packet_id, (topic, properties)) in (1..).zip(messages) {
        link.send_raw(&raw(packet_id, topic, properties, b"{}")).await;
        settled(&mut link, packet_id).await;
    }
    // Several subscription identifiers, before and behind other properties.
    let credentials = b"\x0b\x01\x0b\xff\x7f\x26\x00\x09device_id\x00\x02d1\x0b\x80\x80\x01\
                        \x26\x00\x0aaccess_key\x00\x02k1";
    link.send_raw(&raw(20, topic, credentials, b"{\"whole\":1}")).await;
    settled(&mut link, 20).await;
    let requests = upstream.requests().await;
    assert_eq!(requests.len(), 1, "only the last one had credentials");
    assert_eq!(requests[0].body, b"{\"whole\":1}");
    link.deliver(&telemetry(21, "d1")).await;
    settled(&mut link, 21).await;
    gateway.metric_is(SETTLED, &[], 10).await;
    assert_eq!(gateway.metric("mqtt_rest_gateway_messages_received_total", &[]).await, 10);
    gateway.metric_is(CONNECTS, &[], 1).await;
}

#[tokio::test]
async fn a_message_above_max_packet_is_passed_over_and_acknowledged() {
    let (broker, upstream) = (FakeBroker::start().await, quick(&["d1"]).await);
    let options = Options::default().set("BROKER_MAX_PACKET", "1MiB");
    let gateway = gateway(&broker, &upstream.url(), options).await;
    let mut link = broker.serve(false, Props::default()).await;
    link.deliver(&Publish { payload: vec![b'x'; 3 << 20], ..telemetry(1, "d1") }).await;
    settled(&mut link, 1).await;
    link.deliver(&telemetry(2, "d1")).await;
    settled(&mut link, 2).await;
    gateway.metric_is(SETTLED, &["no_route"], 1).await;
    gateway.logs("larger than max_packet").await;
}

/// A message that comes at `QoS` 2, by a subscription that somebody else has made.
#[tokio::test]
async fn a_message_at_qos_2_goes_through_its_handshake() {
    let (broker, upstream) = (FakeBroker::start().await, quick(&["d1"]).await);
    let _gateway = gateway(&broker, &upstream.url(), Options::default()).await;
    let mut link = broker.serve(false, Props::default()).await;
    link.deliver(&Publish { qos: 2, ..telemetry(9, "d1") }).await;
    link.expect_raw(&[0x50, 2, 0, 9]).await;
    link.send_raw(&[0x62, 2, 0, 9]).await;
    link.expect_raw(&[0x70, 2, 0, 9]).await;
    link.deliver(&telemetry(9, "d1")).await;
    settled(&mut link, 9).await;
}

/// A broker that ends the connection at every publication on this topic, and acknowledges the others.
async fn hates(
    link: &mut Link,
    topic: &str,
    answers: &mut Vec<String>,
    acknowledged: &mut Vec<u16>,
) {
    while let Some(packet) = link.packet().await {
        match packet {
            Packet::Publish(publish) if publish.topic == topic => return,
            Packet::Publish(publish) => {
                link.puback(publish.packet_id).await;
                answers.push(publish.topic);
            }
            Packet::PubAck { packet_id, .. } => acknowledged.push(packet_id),
            other => panic!("{other:?}"),
        }
        if acknowledged.len() == 3 {
            return;
        }
    }
}

#[tokio::test]
async fn a_publication_that_ends_every_connection_is_found_and_dropped() {
    let upstream = quick(&["d1", "d2", "d3"]).await;
    // The message comes again to the next process, and is found out again. That one has a listener of its own: the first one
    // may have come back to its before it was killed.
    for _ in 0..2 {
        let broker = FakeBroker::start().await;
        let mut gateway = gateway(&broker, &upstream.url(), Options::default()).await;
        let (mut answers, mut acknowledged, mut connections) = (Vec::new(), Vec::new(), 0);
        while acknowledged.len() < 3 {
            let mut link = broker.serve(connections > 0, Props::default()).await;
            for (id, device) in [(1, "d1"), (2, "d2"), (3, "d3")] {
                if !acknowledged.contains(&id) {
                    let dup = connections > 0;
                    link.deliver(&Publish { dup, ..question(id, device) }).await;
                }
            }
            hates(&mut link, "v1/device/d2/answers", &mut answers, &mut acknowledged).await;
            connections += 1;
            assert!(connections <= 8, "it goes on for ever; {acknowledged:?}");
        }
        for device in ["d1", "d3"] {
            assert!(answers.contains(&format!("v1/device/{device}/answers")), "{answers:?}");
        }
        gateway.metric_is(REFUSED, &["poison"], 1).await;
        gateway.logs("over this publication, again and again").await;
        assert!(!gateway.log().contains("client id?"), "the reason is known to be another");
        gateway.kill().await;
    }
}

/// Mosquitto announces no `message_size_limit`, and answers what is larger with a reason that does not
/// belong into a PUBACK.
#[tokio::test]
async fn an_answer_above_an_unannounced_size_limit_stops_nobody() {
    let broker = Broker::configured("message_size_limit 20000").await;
    let upstream = quick(&["d1"]).await;
    let large = ResponseTemplate::new(200).set_body_bytes(vec![b'1'; 30_000]);
    upstream.responds("POST", &path("d2"), large).await;
    let gateway = Gateway::start(&broker, &upstream).await;
    let (mut d1, mut d2) = (broker.device("d1").await, broker.device("d2").await);
    let mut message = d2.message("telemetry", "{}");
    message.props.response_topic = Some(d2.topic("answers"));
    d2.publish(message).await;
    gateway.metric_reaches(REFUSED, &[], 1).await;
    d1.ask("telemetry", json!({})).await;
    // Nor does it come back.
    gateway.metric_is("mqtt_rest_gateway_messages_pending", &[], 0).await;
    gateway.metric_is(REFUSED, &[], 1).await;
}

#[tokio::test]
async fn strings_that_no_broker_takes_are_cut_or_left_out_before_they_are_sent() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let answer = ResponseTemplate::new(200)
        .set_body_raw("{}", &format!("application/json; x={}", "y".repeat(70_000)));
    upstream.responds("POST", &path("d1"), answer).await;
    let gateway = Gateway::start(&broker, &upstream).await;
    let mut device = broker.device("d1").await;
    let reply = device.ask("telemetry", json!({})).await;
    assert_eq!(reply.user("status"), "200");
    // A topic that grows beyond what fits when it is escaped, in the dead letter.
    let mut reader = broker.observer("mqtt-rest-gateway/dead-letter/#").await;
    let mut message = device.message("telemetry", "{}");
    message.topic = format!("v1/device/{}/telemetry", "\"".repeat(40_000));
    device.publish(message).await;
    assert!(!reader.next().await.user("reason").is_empty());
    // And a Response Topic of very many levels.
    let mut message = device.message("telemetry", "{}");
    message.props.response_topic = Some(device.topic(&format!("{}a", "a/".repeat(180))));
    device.publish(message).await;
    device.ask("telemetry", json!({})).await;
    gateway.metric_is(CONNECTS, &[], 1).await;
}

#[tokio::test]
async fn what_the_broker_limits_is_logged_at_the_first_connection() {
    let (broker, upstream) = (FakeBroker::start().await, quick(&["d1"]).await);
    let gateway = gateway(&broker, &upstream.url(), Options::default()).await;
    let less = Props {
        session_expiry: Some(5),
        maximum_qos: Some(0),
        maximum_packet_size: Some(5_000),
        ..Props::default()
    };
    let mut link = broker.accept().await;
    link.connack(false, less).await;
    link.subscribed_with(|_, _| vec![0]).await;
    for line in [
        "keeps the session for 5s only, not for 7days",
        "only QoS 0",
        "no packet above 5000 bytes",
        "delivers these messages at QoS 0 only",
        "no session of this client id",
    ] {
        gateway.logs(line).await;
    }
    // No publication above the Maximum QoS [MQTT-3.2.2-11], and no PUBACK is waited for.
    for id in 1..5 {
        link.deliver(&question(id, "d1")).await;
        let reply = link.expect_publish().await;
        assert_eq!((reply.qos, reply.packet_id), (0, 0));
        assert_eq!(link.expect_puback().await, id);
    }
}

#[tokio::test]
async fn a_session_that_is_lost_is_counted() {
    let (broker, upstream) = (FakeBroker::start().await, quick(&[]).await);
    let gateway = gateway(&broker, &upstream.url(), Options::default()).await;
    broker.serve(false, Props::default()).await.cut();
    let _link = broker.serve(false, Props::default()).await;
    gateway.metric_reaches("mqtt_rest_gateway_broker_sessions_lost_total", &[], 1).await;
    gateway.logs("the broker has lost the session").await;
}

#[tokio::test]
async fn a_password_is_sent_without_a_user_name_too_and_read_again_at_each_connection() {
    let (broker, upstream) = (FakeBroker::start().await, quick(&[]).await);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "first\n").unwrap();
    let options = Options::default().set("BROKER_PASSWORD_FILE", file.to_str().unwrap());
    let _gateway = gateway(&broker, &upstream.url(), options).await;
    for token in ["first", "second"] {
        let mut link = broker.accept().await;
        assert_eq!(link.login, (None, Some(token.as_bytes().to_vec())));
        std::fs::write(&file, "second\n").unwrap();
        link.connack(false, Props::default()).await;
        link.subscribed().await;
        link.cut();
    }
}

/// What `check --connect` ends with and prints.
async fn check(broker: &str, upstream: &Upstream) -> (i32, String, String) {
    let output = program()
        .args(["check", "--connect"])
        .env("GATEWAY_BROKER_URL", broker)
        .env("GATEWAY_UPSTREAM_URL", upstream.url())
        .output()
        .await
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[tokio::test]
async fn check_connect_reports_what_the_broker_refuses_and_limits() {
    let dir = tempfile::tempdir().unwrap();
    let acl = dir.path().join("acl");
    std::fs::write(&acl, "topic readwrite #\n").unwrap();
    let broker = Broker::configured(&format!("acl_file {}", acl.display())).await;
    let upstream = Upstream::start().await;
    let (code, out, _) = check(&broker.url(), &upstream).await;
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("12 accepted") && out.contains("below max_pending = 2048"), "{out}");

    let broker = FakeBroker::start().await;
    let url = broker.url();
    let (result, ()) = tokio::join!(check(&url, &upstream), async {
        let mut link = broker.accept().await;
        let short = Props { session_expiry: Some(5), ..Props::default() };
        link.connack(false, short).await;
        link.goodbye().await;
        let mut link = broker.accept().await;
        link.connack(false, Props::default()).await;
        link.subscribed_with(|_, _| vec![0x87]).await;
        crate::check::obliges(&mut link).await;
    });
    assert_eq!(result.0, 1);
    assert!(result.2.contains("v1/device/+/telemetry (NotAuthorized)"), "{result:?}");
}

#[tokio::test]
async fn the_end_of_an_established_connection_hints_at_no_wrong_protocol() {
    let (broker, upstream) = (FakeBroker::start().await, quick(&[]).await);
    let gateway = gateway(&broker, &upstream.url(), Options::default()).await;
    broker.serve(false, Props::default()).await.cut();
    gateway.logs("closed the connection without a reason").await;
    let _link = broker.serve(true, Props::default()).await;
    tokio::time::sleep(QUIET).await;
    assert!(!gateway.log().contains("MQTT 5?") && !gateway.log().contains("client id?"));
}

/// Messages at `QoS` 0 are dropped where they are too many, and neither stop the others nor are they
/// counted as what the broker refused.
#[tokio::test]
async fn qos_0_above_the_bound_is_dropped_and_logged() {
    let (broker, upstream) = (FakeBroker::start().await, Upstream::start().await);
    let slow = ResponseTemplate::new(200).set_body_string("{}").set_delay(Duration::from_secs(1));
    upstream.responds("POST", &path("d1"), slow).await;
    upstream.answers("POST", &path("d2"), 200, json!({})).await;
    let options = Options::default().set("BROKER_MAX_PENDING", "3");
    let gateway = gateway(&broker, &upstream.url(), options).await;
    let mut link = broker.serve(false, Props::default()).await;
    for _ in 0..30 {
        link.deliver(&Publish { qos: 0, packet_id: 0, ..telemetry(0, "d1") }).await;
    }
    link.deliver(&telemetry(1, "d2")).await;
    settled(&mut link, 1).await;
    gateway.metric_is("mqtt_rest_gateway_qos0_dropped_total", &[], 27).await;
    gateway.metric_is(REFUSED, &[], 0).await;
    gateway.logs("messages at QoS 0 come faster").await;
    eventually("the others are handled", || async {
        (upstream.count(&format!("POST {}", path("d1"))).await == 3).then_some(())
    })
    .await;
}

#[tokio::test]
async fn subscriptions_that_are_refused_are_named() {
    let (broker, upstream) = (FakeBroker::start().await, quick(&[]).await);
    let gateway = gateway(&broker, &upstream.url(), Options::default()).await;
    let mut link = broker.accept().await;
    link.connack(false, Props::default()).await;
    link.subscribed_with(|filter, _| match filter {
        "v1/device/+/get" => vec![0x87],
        "v1/device/+/update" => vec![],
        _ => vec![1],
    })
    .await;
    eventually("it is not ready", || async {
        let (status, reason) = gateway.get("/readyz").await;
        let named = reason.contains("v1/device/+/get (NotAuthorized)")
            && reason.contains("v1/device/+/update (no answer)");
        (status == 503 && named && reason.matches("v1/device").count() == 2).then_some(())
    })
    .await;
    gateway.logs("the broker refused subscriptions").await;
}

/// Subscription Identifiers are a help, no need: without them every filter is ended that may have brought a
/// message on a topic without a row.
#[tokio::test]
async fn a_broker_without_subscription_identifiers_is_subscribed_to_without() {
    let (broker, upstream) = (FakeBroker::start().await, quick(&["d1"]).await);
    let gateway = gateway(&broker, &upstream.url(), Options::default()).await;
    let mut link = broker.accept().await;
    link.connack(false, Props::default()).await;
    link.subscribed_with(|_, _| vec![0xA1]).await;
    assert_eq!(link.subscribed().await.len(), 12);
    gateway.ready().await;
    let gone = Publish { topic: "v1/device/d1/gone".into(), ..telemetry(1, "d1") };
    link.deliver(&gone).await;
    let mut ended = Vec::new();
    // Each of four levels as it is or `+`, or `#` behind the first of them.
    while ended.len() < 16 + 31 {
        ended.extend(link.unsubscribed().await);
    }
    for filter in ["v1/device/+/gone", "v1/device/+/#"] {
        assert!(ended.iter().any(|ended| ended == filter), "{filter}: {ended:?}");
    }
    gateway.logs("ended a subscription of an earlier configuration").await;
}

/// A broker that reads and says nothing any more, not even to a ping.
#[tokio::test]
async fn a_broker_that_answers_no_ping_is_left() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("mqtt://{}", listener.local_addr().unwrap());
    let options = Options::default().set("BROKER_URL", &url).set("BROKER_KEEP_ALIVE", "5s");
    let gateway = options.spawn().await;
    let mut streams = Vec::new();
    for _ in 0..2 {
        let (stream, _) = listener.accept().await.unwrap();
        let mut wire = crate::wire::Wire::new(stream);
        wire.receive().await.unwrap();
        let connack =
            Packet::ConnAck { session_present: false, reason: 0, props: Props::default() };
        wire.send(&connack).await.unwrap();
        streams.push(wire);
    }
    gateway.logs("the broker did not answer in time").await;
}

/// Mosquitto 2.0.11 answers PUBACK Not authorized and closes the connection.
#[tokio::test]
async fn a_puback_that_refuses_counts_although_the_connection_then_ends() {
    let dir = tempfile::tempdir().unwrap();
    let acl = dir.path().join("acl");
    std::fs::write(&acl, "topic readwrite v1/#\n").unwrap();
    let broker = Broker::configured(&format!("acl_file {}", acl.display())).await;
    let upstream = quick(&["d1"]).await;
    upstream.answers("POST", &path("d2"), 422, json!({})).await;
    let gateway = Gateway::start(&broker, &upstream).await;
    let (mut d1, mut d2) = (broker.device("d1").await, broker.device("d2").await);
    for n in 0..5 {
        d2.send("telemetry", json!({ "n": n })).await;
        d1.ask("telemetry", json!({})).await;
    }
    gateway.metric_is(REFUSED, &[r#"reason="refused""#], 5).await;
    assert!(gateway.metric(CONNECTS, &[]).await <= 6);
    assert_eq!(upstream.count(&format!("POST {}", path("d2"))).await, 5);
}

/// Five bytes of an empty user property are many more in memory.
#[tokio::test]
async fn user_properties_by_the_hundred_thousand_take_no_memory() {
    let (broker, upstream) = (Broker::start().await, quick(&["d1"]).await);
    let gateway = Gateway::start(&broker, &upstream).await;
    let mut device = broker.device("d1").await;
    device.ask("telemetry", json!({})).await;
    let before = gateway.peak_memory();
    for _ in 0..20 {
        let mut message = device.message("telemetry", "{}");
        message.props.user.extend(vec![(String::new(), String::new()); 400_000]);
        device.publish(message).await;
    }
    device.ask("telemetry", json!({})).await;
    gateway.metric_is(SETTLED, &["no_route"], 20).await;
    let grown = gateway.peak_memory() - before;
    assert!(grown < 40 << 20, "{grown} bytes");
}
