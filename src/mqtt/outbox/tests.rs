//! The outbox, case by case.

use bytes::Bytes;

use super::*;
use crate::{
    message::{Properties, Purpose},
    user_properties::UserProperties,
};

fn publication(name: &str) -> Publication {
    Publication {
        purpose: Purpose::default(),
        topic: name.to_owned(),
        payload: Bytes::from("x"),
        retain: false,
        properties: Properties::default(),
    }
}

/// An outbox with so many publications, named by number.
fn outbox(count: u32, receive_maximum: u16) -> Outbox {
    let mut outbox = Outbox::new();
    outbox.connected(receive_maximum);
    for n in 0..count {
        outbox.push(Entry::Publish(Box::new(publication(&n.to_string()))));
    }
    outbox
}

fn submit(outbox: &mut Outbox) -> Option<(PacketId, String)> {
    match outbox.next(Instant::now())? {
        Next::Publish(packet_id, publication) => Some((packet_id, publication.topic.clone())),
        Next::Settled(ticket) => Some((0, format!("settled {ticket}"))),
    }
}

fn all(outbox: &mut Outbox) -> Vec<String> {
    std::iter::from_fn(|| submit(outbox)).map(|(_, topic)| topic).collect()
}

#[test]
fn never_more_in_flight_than_the_broker_takes() {
    let mut outbox = outbox(6, 4);
    let sent: Vec<_> = std::iter::from_fn(|| submit(&mut outbox)).collect();
    assert_eq!(sent.len(), 4);
    assert_eq!(outbox.take(sent[1].0).unwrap().topic, "1");
    assert_eq!(submit(&mut outbox).unwrap().1, "4");
    assert!(submit(&mut outbox).is_none());
    assert!(outbox.take(77).is_none());
}

#[test]
fn identifiers_pass_over_those_in_flight() {
    let mut outbox = outbox(1, 4);
    let (held, _) = submit(&mut outbox).unwrap();
    for _ in 0..u32::from(LAST_PACKET_ID) + 10 {
        outbox.push(Entry::Publish(Box::new(publication("n"))));
        let (packet_id, _) = submit(&mut outbox).unwrap();
        assert!(packet_id != held && (1..=LAST_PACKET_ID).contains(&packet_id));
        outbox.take(packet_id).unwrap();
    }
}

#[test]
fn what_has_no_puback_goes_out_again_in_order() {
    let mut outbox = outbox(3, 10);
    outbox.push(Entry::Settled(7));
    let (first, _) = submit(&mut outbox).unwrap();
    submit(&mut outbox);
    outbox.take(first);
    assert!(outbox.disconnected(true, Instant::now()).is_none());
    outbox.connected(10);
    assert_eq!(all(&mut outbox), ["1", "2", "settled 7"]);
    assert!(!outbox.is_empty());
}

#[test]
fn room_is_bounded_in_entries_and_in_bytes_in_flight_or_not() {
    let mut outbox = Outbox::new();
    while outbox.has_room() {
        outbox.push(Entry::Settled(0));
    }
    assert_eq!(outbox.waiting.len(), MAX_WAITING);
    let mut outbox = Outbox::new();
    outbox.connected(10);
    let (name, value) = ("n".repeat(60_000), "v".repeat(60_000));
    let user: UserProperties = [(&name, &value); 5].into_iter().collect();
    let mut ids = Vec::new();
    while outbox.has_room() {
        let properties = Properties { user: user.clone(), ..Properties::default() };
        outbox.push(Entry::Publish(Box::new(Publication { properties, ..publication("a") })));
        ids.extend(submit(&mut outbox).map(|(packet_id, _)| packet_id));
    }
    assert!((50..60).contains(&(outbox.waiting.len() + ids.len())));
    for packet_id in ids {
        outbox.take(packet_id).unwrap();
    }
    assert!(outbox.has_room());
}

/// The connection ends; whatever was acknowledged before is.
fn ends(outbox: &mut Outbox) -> Option<String> {
    let poison = outbox.disconnected(true, Instant::now());
    outbox.connected(10);
    poison.map(|publication| publication.topic)
}

#[test]
fn poison_is_found_and_dropped_and_the_rest_goes_on() {
    let mut outbox = outbox(3, 10);
    outbox.push(Entry::Settled(7));
    // A broker that closes at "1" and whose last PUBACKs are lost.
    for _ in 0..DEATHS {
        assert_eq!(
            all(&mut outbox),
            ["0", "1", "2", "settled 7"][..if outbox.suspect.is_none() { 4 } else { 3 }]
        );
        assert_eq!(ends(&mut outbox), None);
        assert!(outbox.is_suspicious());
    }
    let (zero, topic) = submit(&mut outbox).unwrap();
    assert_eq!(topic, "0");
    assert!(submit(&mut outbox).is_none(), "it goes alone");
    outbox.take(zero);
    assert_eq!(all(&mut outbox), ["1"]);
    assert_eq!(ends(&mut outbox).unwrap(), "1");
    assert_eq!(all(&mut outbox), ["2"]);
}

#[test]
fn a_connection_that_ends_for_another_reason_makes_nothing_poison() {
    let mut outbox = outbox(3, 10);
    let now = Instant::now();
    for _ in 0..10 {
        all(&mut outbox);
        assert!(outbox.disconnected(false, now).is_none());
        all(&mut outbox);
        assert!(outbox.disconnected(true, now + SOON * 2).is_none(), "long after it was sent");
    }
    // Nor where each connection gets something through.
    let mut outbox = self::outbox(20, 10);
    while let Some((packet_id, _)) = submit(&mut outbox) {
        all(&mut outbox);
        outbox.take(packet_id);
        assert_eq!(ends(&mut outbox), None);
    }
}
