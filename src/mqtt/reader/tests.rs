//! Packets that no broker should send, and some that one may.

use bytes::BufMut;
use proptest::{collection::vec, prelude::*};

use super::*;

fn text(out: &mut Vec<u8>, bytes: &[u8]) {
    out.put_u16(u16::try_from(bytes.len()).unwrap());
    out.extend(bytes);
}

fn framed(first: u8, body: &[u8]) -> BytesMut {
    let mut packet = BytesMut::from(&[first][..]);
    let mut length = body.len();
    loop {
        let low = u8::try_from(length & 0x7F).unwrap();
        length >>= 7;
        packet.put_u8(if length == 0 { low } else { low | 0x80 });
        if length == 0 {
            break;
        }
    }
    packet.extend_from_slice(body);
    packet
}

/// A PUBLISH at `QoS` 1 with identifier 7 and payload `{}`, its properties as given.
fn message(topic: &[u8], properties: &[u8]) -> BytesMut {
    let mut body = Vec::new();
    text(&mut body, topic);
    body.extend([0, 7, u8::try_from(properties.len()).unwrap()]);
    body.extend(properties);
    body.extend(b"{}");
    framed(0x32, &body)
}

/// The only packet in there.
fn read(mut input: BytesMut) -> Incoming {
    let mut reader = Reader::new(1 << 20);
    let packet = reader.next(&mut input).unwrap().expect("a whole packet");
    assert!(input.is_empty());
    packet
}

fn read_publish(input: BytesMut) -> Publish {
    match read(input) {
        Incoming::Publish(publish) => publish,
        other => panic!("{other:?}"),
    }
}

#[test]
fn strings_that_are_not_utf_8_are_read_all_the_same() {
    let properties = b"\x26\x00\x01a\x00\x02\xffx\x08\x00\x02r\xff\x03\x00\x01\xfe\x09\x00\x01\xff";
    let publish = read_publish(message(b"t", properties));
    assert_eq!((publish.packet_id, &*publish.payload, publish.fault), (7, &b"{}"[..], None));
    let Properties { user, response_topic, correlation_data, content_type, .. } =
        publish.properties;
    assert_eq!(user.iter().collect::<Vec<_>>(), [("a", "\u{FFFD}x")]);
    assert_eq!(response_topic.unwrap(), "r\u{FFFD}");
    assert_eq!(content_type.unwrap(), "\u{FFFD}");
    assert_eq!(&correlation_data.unwrap()[..], b"\xff");
}

#[test]
fn several_subscription_identifiers_leave_the_payload_alone() {
    let properties = b"\x0b\x01\x0b\x80\x01\x0b\xff\xff\xff\x7f\x26\x00\x01a\x00\x01b";
    let publish = read_publish(message(b"t", properties));
    assert_eq!(publish.subscription_ids, [1, 128, 268_435_455]);
    assert_eq!((&*publish.payload, publish.properties.user.len()), (&b"{}"[..], 1));
}

#[test]
fn what_cannot_be_handled_can_still_be_acknowledged() {
    let cases: [(BytesMut, &str); 6] = [
        (message(b"t\xff", b""), "UTF-8"),
        (message(b"", b"\x23\x00\x01"), "no topic"),
        // No property has this number; its length is unknown.
        (message(b"t", b"\x7f\x00\x01\x02"), "properties"),
        (message(b"t", b"\x26\x00\x01a\x00\x09b"), "properties"),
        // The properties are longer than the packet.
        (framed(0x32, b"\x00\x01t\x00\x07\x50\x26"), "properties"),
        (framed(0x32, b"\x00\x01t\x00\x07\xff\xff\xff\xff\xff"), "properties"),
    ];
    for (packet, why) in cases {
        let publish = read_publish(packet);
        assert_eq!((publish.packet_id, publish.qos), (7, 1));
        assert!(publish.fault.is_some_and(|fault| fault.contains(why)), "{publish:?}");
        assert!(publish.properties.user.is_empty());
    }
    // Nothing to acknowledge it by.
    let publish = read_publish(framed(0x32, b"\x00\x01t\x00\x00\x00"));
    assert_eq!((publish.packet_id, publish.qos, publish.fault.is_some()), (0, 0, true));
    assert!(read_publish(framed(0x36, b"\x00\x01t\x00\x07\x00")).fault.is_some());
}

#[test]
fn more_user_properties_than_are_kept_make_a_fault() {
    let mut body = Vec::new();
    text(&mut body, b"t");
    body.extend([0, 7]);
    // 5 bytes each.
    let count = 300;
    body.extend([0xDC, 0x0B]);
    body.extend([0x26, 0, 0, 0, 0].repeat(count));
    body.extend(b"{}");
    let publish = read_publish(framed(0x32, &body));
    assert!(publish.fault.is_some() && publish.properties.user.is_empty());
    assert_eq!(&*publish.payload, b"{}");
}

#[test]
fn a_message_above_the_limit_is_passed_over_and_can_be_acknowledged() {
    let mut body = Vec::new();
    text(&mut body, b"t");
    body.extend([0, 7, 0]);
    body.extend(vec![b'x'; 200_000]);
    let mut packets = framed(0x32, &body);
    packets.extend_from_slice(&message(b"next", b""));
    let mut reader = Reader::new(100_000);
    // In pieces, as it comes.
    let (mut input, mut read) = (BytesMut::new(), Vec::new());
    for piece in packets.chunks(3_000) {
        input.extend_from_slice(piece);
        while let Some(Incoming::Publish(publish)) = reader.next(&mut input).unwrap() {
            read.push((publish.topic, publish.packet_id, publish.fault.is_some()));
        }
        assert!(input.len() < MAX_HEAD + 6_000, "it is not kept");
    }
    assert_eq!(read, [("t".to_owned(), 7, true), ("next".to_owned(), 7, false)]);
}

#[test]
fn short_forms_are_understood() {
    let disconnect = |reason, text: &str| Incoming::Disconnect { reason, text: text.to_owned() };
    assert_eq!(read(framed(0xE0, b"")), disconnect(0, ""));
    assert_eq!(read(framed(0xE0, b"\x8e")), disconnect(0x8E, ""));
    assert_eq!(read(framed(0xE0, b"\x89\x07\x1f\x00\x04full")), disconnect(0x89, "full"));
    assert_eq!(read(framed(0x40, b"\x00\x07")), Incoming::PubAck { packet_id: 7, reason: 0 });
    assert_eq!(
        read(framed(0x40, b"\x00\x07\x10")),
        Incoming::PubAck { packet_id: 7, reason: 0x10 }
    );
    assert_eq!(read(framed(0x40, b"\x00")), Incoming::Other(4));
    assert_eq!(read(framed(0xD0, b"")), Incoming::PingResp);
    assert_eq!(read(framed(0xF0, b"\x18\x00")), Incoming::Other(15));
    let Incoming::ConnAck(connack) = read(framed(0x20, b"\x00\x01")) else { panic!() };
    assert!(connack.old && connack.reason == 1);
    let Incoming::ConnAck(connack) = read(framed(0x20, b"\x01\x00\x03\x21\x00\x00")) else {
        panic!()
    };
    assert!(!connack.old && connack.session_present && connack.limits.receive_maximum == 1);
}

#[test]
fn what_is_no_packet_is_given_up() {
    let mut input = BytesMut::from(&b"\x32\xff\xff\xff\xff\x01"[..]);
    assert_eq!(Reader::new(100).next(&mut input), Err(NoPackets));
}

proptest! {
    /// Whatever comes, however it is cut: the same packets, and never a panic.
    #[test]
    fn any_bytes_in_any_pieces(
        bytes in vec(any::<u8>(), 0..400),
        cuts in vec(1..50_usize, 1..20),
    ) {
        let all = |pieces: Vec<&[u8]>| {
            let (mut reader, mut input) = (Reader::new(200), BytesMut::new());
            let mut packets = Vec::new();
            for piece in pieces {
                input.extend_from_slice(piece);
                loop {
                    match reader.next(&mut input) {
                        Ok(Some(packet)) => packets.push(Ok(packet)),
                        Ok(None) => break,
                        Err(error) => {
                            packets.push(Err(error));
                            return packets;
                        }
                    }
                }
            }
            packets
        };
        let mut pieces = Vec::new();
        let mut rest = &bytes[..];
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, more) = rest.split_at((*cut).min(rest.len()));
            pieces.push(piece);
            rest = more;
        }
        prop_assert_eq!(all(pieces), all(vec![&bytes]));
    }

    /// A PUBLISH of any content under its identifier is never lost.
    #[test]
    fn any_message_keeps_its_identifier(
        topic in vec(any::<u8>(), 0..20),
        rest in vec(any::<u8>(), 0..100),
        packet_id in 1..=u16::MAX,
    ) {
        let mut body = Vec::new();
        text(&mut body, &topic);
        body.put_u16(packet_id);
        body.extend(rest);
        prop_assert_eq!(read_publish(framed(0x32, &body)).packet_id, packet_id);
    }
}
