//! Publications on their way to the broker, kept until the broker has acknowledged them.
//!
//! Nothing is left for the client library to send again: after a reconnect everything that has no
//! PUBACK goes out anew from here, in order, never more at once than the broker's Receive Maximum
//! [MQTT-3.3.4-9]. A settlement stands in the same queue, so that a message's PUBACK cannot overtake
//! its reply.

use std::collections::VecDeque;

use super::window::{PacketId, Ticket};
use crate::message::Publication;

/// How many entries may wait before the connection stops taking more.
const MAX_WAITING: usize = 1024;
/// How many bytes of payload may wait before it does.
const MAX_WAITING_BYTES: usize = 32 * 1024 * 1024;

/// What waits.
pub(super) enum Entry {
    /// To be published.
    Publish(Publication),
    /// Everything published before this belongs to the ticket's outcome or earlier ones.
    Settled(Ticket),
}

struct InFlight {
    /// Consecutive over all publications of a connection.
    number: u64,
    /// Known when the client library has put it on the wire.
    packet_id: Option<PacketId>,
    publication: Publication,
}

/// The outbox.
pub(super) struct Outbox {
    waiting: VecDeque<Entry>,
    waiting_bytes: usize,
    in_flight: VecDeque<InFlight>,
    next_number: u64,
    /// How many publications the broker and the client library take at once.
    limit: u64,
}

impl Outbox {
    pub(super) fn new() -> Self {
        Self {
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            in_flight: VecDeque::new(),
            next_number: 0,
            limit: 1,
        }
    }

    /// Whether more may be put in.
    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() < MAX_WAITING && self.waiting_bytes < MAX_WAITING_BYTES
    }

    /// Whether nothing waits for the broker.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.in_flight.is_empty()
    }

    pub(super) fn push(&mut self, entry: Entry) {
        if let Entry::Publish(publication) = &entry {
            self.waiting_bytes += publication.payload.len();
        }
        self.waiting.push_back(entry);
    }

    /// The next entry, unless it is a publication and no more may be in flight.
    ///
    /// The limit is a distance, not a count: the client library hands out packet identifiers in a
    /// circle, and one that is still in flight when the circle comes round stops it for good.
    pub(super) fn next(&mut self) -> Option<Entry> {
        if let Entry::Publish(_) = self.waiting.front()?
            && self
                .in_flight
                .front()
                .is_some_and(|oldest| self.next_number - oldest.number >= self.limit)
        {
            return None;
        }
        let entry = self.waiting.pop_front()?;
        if let Entry::Publish(publication) = &entry {
            self.waiting_bytes -= publication.payload.len();
        }
        Some(entry)
    }

    /// The publication could not be handed over yet.
    pub(super) fn put_back(&mut self, publication: Publication) {
        self.waiting_bytes += publication.payload.len();
        self.waiting.push_front(Entry::Publish(publication));
    }

    /// The client library has taken it.
    pub(super) fn submitted(&mut self, publication: Publication) {
        let number = self.next_number;
        self.next_number += 1;
        self.in_flight.push_back(InFlight { number, packet_id: None, publication });
    }

    /// The client library has put the oldest publication without one under this identifier.
    pub(super) fn sent(&mut self, packet_id: PacketId) {
        if let Some(first) = self.in_flight.iter_mut().find(|p| p.packet_id.is_none()) {
            first.packet_id = Some(packet_id);
        }
    }

    /// The broker has acknowledged it, for good or bad.
    pub(super) fn acknowledged(&mut self, packet_id: PacketId) -> Option<Publication> {
        let index = self.in_flight.iter().position(|p| p.packet_id == Some(packet_id))?;
        self.in_flight.remove(index).map(|p| p.publication)
    }

    /// The connection is gone: everything in flight goes out again first.
    pub(super) fn disconnected(&mut self) {
        while let Some(last) = self.in_flight.pop_back() {
            self.put_back(last.publication);
        }
    }

    /// A connection stands, on which the broker takes `receive_maximum` publications at once.
    pub(super) fn connected(&mut self, receive_maximum: u16) {
        // One less than the broker takes: the client library stops sending altogether,
        // acknowledgements included, when it is at the limit.
        self.limit = u64::from(receive_maximum.saturating_sub(1).max(1));
    }
}

#[cfg(test)]
mod properties;

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::message::{Properties, Purpose};

    fn publication(name: &str) -> Publication {
        Publication {
            purpose: Purpose::default(),
            topic: name.to_owned(),
            payload: Bytes::from("x"),
            properties: Properties::default(),
        }
    }

    fn submit(outbox: &mut Outbox, packet_id: PacketId) -> Option<String> {
        match outbox.next()? {
            Entry::Publish(publication) => {
                let topic = publication.topic.clone();
                outbox.submitted(publication);
                outbox.sent(packet_id);
                Some(topic)
            }
            Entry::Settled(ticket) => Some(format!("settled {ticket}")),
        }
    }

    #[test]
    fn never_more_in_flight_than_the_broker_takes() {
        let mut outbox = Outbox::new();
        outbox.connected(4);
        for n in 0..6 {
            outbox.push(Entry::Publish(publication(&n.to_string())));
        }
        for id in 1..=3 {
            assert!(submit(&mut outbox, id).is_some());
        }
        assert_eq!(submit(&mut outbox, 4), None);
        assert_eq!(outbox.acknowledged(2).unwrap().topic, "1");
        assert_eq!(submit(&mut outbox, 4), None, "the circle would come round to the first");
        outbox.acknowledged(1);
        assert_eq!(submit(&mut outbox, 1).unwrap(), "3");
        assert!(outbox.acknowledged(77).is_none());
    }

    #[test]
    fn what_has_no_puback_goes_out_again_in_order() {
        let mut outbox = Outbox::new();
        outbox.connected(10);
        for n in 0..3 {
            outbox.push(Entry::Publish(publication(&n.to_string())));
        }
        outbox.push(Entry::Settled(7));
        submit(&mut outbox, 1);
        submit(&mut outbox, 2);
        outbox.acknowledged(1);
        outbox.disconnected();
        outbox.connected(10);
        let order: Vec<_> = (1..).map_while(|id| submit(&mut outbox, id)).collect();
        assert_eq!(order, ["1", "2", "settled 7"]);
        assert!(!outbox.is_empty());
    }

    #[test]
    fn room_is_bounded() {
        let mut outbox = Outbox::new();
        while outbox.has_room() {
            outbox.push(Entry::Settled(0));
        }
        assert_eq!(outbox.waiting.len(), MAX_WAITING);
    }
}
