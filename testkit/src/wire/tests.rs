//! Packets there and back, and what the reader does with pieces.

use std::time::Duration;

use tokio::{net::TcpListener, time::timeout};

use super::*;

/// One of each packet, with everything set that it can carry.
fn packets() -> Vec<Packet> {
    let text = |text: &str| Some(text.to_owned());
    let props = Props {
        user: vec![("a".into(), "1".into()), ("a".into(), "2".into())],
        response_topic: text("v1/r"),
        correlation: Some(vec![0, 255]),
        content_type: text("application/json"),
        payload_format: Some(1),
        expiry: Some(60),
        receive_maximum: Some(5),
        maximum_packet_size: Some(1 << 20),
        maximum_qos: Some(1),
        session_expiry: Some(3600),
        server_keep_alive: Some(0),
        shared_subscriptions: Some(0),
        topic_alias: Some(3),
        topic_alias_maximum: Some(4),
        assigned_client_id: text("id"),
        reason_string: text("why"),
        subscription_ids: vec![1, 268_435_455],
    };
    let publish = Publish {
        topic: "v1/device/d1/telemetry".into(),
        payload: vec![7; 20_000],
        qos: 1,
        dup: true,
        retain: true,
        packet_id: 65_535,
        props: props.clone(),
    };
    vec![
        Packet::Connect {
            client_id: "c".into(),
            clean_start: true,
            keep_alive: 30,
            username: text("u"),
            password: Some(b"p".to_vec()),
            props: props.clone(),
        },
        Packet::ConnAck { session_present: true, reason: 0x87, props: props.clone() },
        Packet::Publish(Publish { qos: 0, packet_id: 0, ..publish.clone() }),
        Packet::Publish(publish),
        Packet::PubAck { packet_id: 1, reason: 0 },
        Packet::PubAck { packet_id: 2, reason: 0x97 },
        Packet::Subscribe {
            packet_id: 3,
            identifier: None,
            filters: vec![("a/+".into(), 0b10_0001)],
        },
        Packet::Subscribe {
            packet_id: 4,
            identifier: Some(268_435_455),
            filters: vec![("a/#".into(), 0b10_0001)],
        },
        Packet::SubAck { packet_id: 3, reasons: vec![1, 0x87] },
        Packet::Unsubscribe { packet_id: 4, filters: vec!["a/+".into()] },
        Packet::UnsubAck { packet_id: 4, reasons: vec![0] },
        Packet::PingReq,
        Packet::PingResp,
        Packet::Disconnect { reason: 0x8E, props },
    ]
}

#[test]
fn every_packet_survives_the_wire() {
    let packets = packets();
    let mut stream: Vec<u8> = packets.iter().flat_map(Packet::encode).collect();
    for packet in packets {
        assert_eq!(Packet::decode(&mut stream).unwrap(), Some(packet));
    }
    assert!(stream.is_empty());
}

/// The bytes of the standard's own forms: a round trip alone would not see both sides wrong.
#[test]
fn bytes_are_those_of_the_standard() {
    let publish = Publish {
        topic: "a/b".into(),
        payload: b"x".to_vec(),
        qos: 1,
        packet_id: 10,
        props: Props { expiry: Some(1), ..Props::default() },
        ..Publish::default()
    };
    let bytes = b"\x32\x0e\x00\x03a/b\x00\x0a\x05\x02\x00\x00\x00\x01x";
    assert_eq!(Packet::Publish(publish).encode(), bytes);
    let short = [
        (&b"\x40\x02\x00\x07"[..], Packet::PubAck { packet_id: 7, reason: 0 }),
        (b"\x40\x04\x00\x07\x10\x00", Packet::PubAck { packet_id: 7, reason: 0x10 }),
        (b"\xe0\x00", Packet::Disconnect { reason: 0, props: Props::default() }),
        (b"\xe0\x01\x8e", Packet::Disconnect { reason: 0x8E, props: Props::default() }),
    ];
    for (bytes, packet) in short {
        assert_eq!(Packet::decode(&mut bytes.to_vec()).unwrap(), Some(packet));
    }
    for bytes in [
        &b"\x41\x02\x00\x07"[..],
        b"\x40\x01\x00",
        b"\xf0\x00",
        b"\x82\x06\x00\x01\x03\x1f\x00\x00",
    ] {
        Packet::decode(&mut bytes.to_vec()).unwrap_err();
    }
}

#[tokio::test]
async fn a_read_that_is_given_up_loses_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (mut client, mut server) = (Wire::new(client.unwrap()), Wire::new(server.unwrap().0));
    let packets = packets();
    for packet in &packets {
        let bytes = packet.encode();
        client.send_raw(&bytes[..1]).await.unwrap();
        timeout(Duration::from_millis(5), server.receive()).await.unwrap_err();
        client.send_raw(&bytes[1..]).await.unwrap();
        assert_eq!(server.receive().await.unwrap().as_ref(), Some(packet));
    }
    drop(client);
    assert_eq!(server.receive().await.unwrap(), None);
}
