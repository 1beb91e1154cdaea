//! Publications on their way to the broker, kept until the broker has acknowledged them.
//!
//! After a reconnect everything that has no PUBACK goes out anew from here, in order, never more at once
//! than the broker's Receive Maximum [MQTT-3.3.4-9]. A settlement stands in the same queue, so that a
//! message's PUBACK cannot overtake its reply.
//!
//! A publication over which the broker ends the connection would be first on every connection, for ever:
//! it is *poison*. When the same one has been the first in flight at [`DEATHS`] ends in a row, what was in
//! flight goes out one at a time, and the one that is alone when the connection ends again is dropped.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use super::window::{PacketId, Ticket};
use crate::message::Publication;

/// How many entries may wait before the connection stops taking more.
const MAX_WAITING: usize = 1024;
/// How many bytes of publications may be held, in flight or waiting, before it does.
const MAX_BYTES: usize = 32 * 1024 * 1024;
/// What a publication takes beside its text, and each of its user properties, about, in bytes.
const OVERHEAD: usize = 128;
/// Publications in flight at most, whatever the broker would take.
const MAX_IN_FLIGHT: u16 = 100;
/// Packet identifiers of publications go up to here; those above are for subscriptions.
pub(super) const LAST_PACKET_ID: PacketId = 60_000;
/// A publication is suspected when it was the first in flight at this many ends of a connection in a row.
const DEATHS: u32 = 3;
/// A connection that ends later than this after a publication was sent ended for another reason.
const SOON: Duration = Duration::from_secs(10);

/// What is put into the outbox.
pub(super) enum Entry {
    /// To be published.
    Publish(Box<Publication>),
    /// Everything published before this belongs to the ticket's outcome or earlier ones.
    Settled(Ticket),
}

/// What comes out of the outbox.
pub(super) enum Next<'a> {
    /// To be sent under this packet identifier; it is in flight from now on.
    Publish(PacketId, &'a Publication),
    /// As in [`Entry::Settled`].
    Settled(Ticket),
}

struct InFlight {
    packet_id: PacketId,
    sent: Instant,
    waiting: Waiting,
}

struct Waiting {
    /// Its number among all publications of this process.
    number: u64,
    publication: Box<Publication>,
}

enum Slot {
    Publish(Waiting),
    Settled(Ticket),
}

/// The outbox.
pub(super) struct Outbox {
    waiting: VecDeque<Slot>,
    in_flight: VecDeque<InFlight>,
    /// Of all publications, in flight and waiting.
    bytes: usize,
    next_number: u64,
    last_packet_id: PacketId,
    /// How many publications the broker takes at once.
    limit: usize,
    /// Which publication was first in flight at the last ends in a row, and how many those were.
    suspect: Option<(u64, u32)>,
    /// How many of the next publications are sent one at a time.
    alone: usize,
}

impl Outbox {
    pub(super) fn new() -> Self {
        Self {
            waiting: VecDeque::new(),
            in_flight: VecDeque::new(),
            bytes: 0,
            next_number: 0,
            last_packet_id: 0,
            limit: 1,
            suspect: None,
            alone: 0,
        }
    }

    /// Whether more may be pushed.
    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() < MAX_WAITING && self.bytes < MAX_BYTES
    }

    /// Whether nothing is waiting or in flight.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.in_flight.is_empty()
    }

    /// Whether everything has been sent.
    pub(super) fn is_sent(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether a publication is suspected to be poison: the next connection will tell.
    pub(super) fn is_suspicious(&self) -> bool {
        self.suspect.is_some()
    }

    pub(super) fn push(&mut self, entry: Entry) {
        let slot = match entry {
            Entry::Settled(ticket) => Slot::Settled(ticket),
            Entry::Publish(publication) => self.slot(publication),
        };
        self.waiting.push_back(slot);
    }

    /// Puts a publication before everything that waits, in place of one that was taken.
    pub(super) fn push_first(&mut self, publication: Box<Publication>) {
        let slot = self.slot(publication);
        self.waiting.push_front(slot);
    }

    fn slot(&mut self, publication: Box<Publication>) -> Slot {
        let number = self.next_number;
        self.next_number += 1;
        self.bytes += weight(&publication);
        Slot::Publish(Waiting { number, publication })
    }

    /// The next entry, unless it is a publication and no more may be in flight.
    pub(super) fn next(&mut self, now: Instant) -> Option<Next<'_>> {
        let limit = if self.alone > 0 { 1 } else { self.limit };
        if matches!(self.waiting.front()?, Slot::Publish(_)) && self.in_flight.len() >= limit {
            return None;
        }
        match self.waiting.pop_front()? {
            Slot::Settled(ticket) => Some(Next::Settled(ticket)),
            Slot::Publish(waiting) => {
                let packet_id = self.free_packet_id();
                self.in_flight.push_back(InFlight { packet_id, sent: now, waiting });
                let publication = &self.in_flight.back()?.waiting.publication;
                Some(Next::Publish(packet_id, publication))
            }
        }
    }

    /// The next one that is not in flight, counted in a circle.
    fn free_packet_id(&mut self) -> PacketId {
        loop {
            self.last_packet_id = self.last_packet_id % LAST_PACKET_ID + 1;
            if self.in_flight.iter().all(|p| p.packet_id != self.last_packet_id) {
                return self.last_packet_id;
            }
        }
    }

    /// Takes a publication out of flight: the broker has acknowledged or refused it, or it was not sent
    /// after all.
    pub(super) fn take(&mut self, packet_id: PacketId) -> Option<Box<Publication>> {
        let index = self.in_flight.iter().position(|p| p.packet_id == packet_id)?;
        let taken = self.in_flight.remove(index)?;
        if self.suspect.is_some_and(|(number, _)| number == taken.waiting.number) {
            self.suspect = None;
        }
        self.alone = self.alone.saturating_sub(1);
        self.bytes -= weight(&taken.waiting.publication);
        Some(taken.waiting.publication)
    }

    /// The connection is gone: everything in flight goes out again first. If the broker may have ended
    /// it over what it was sent, a publication can turn out to be poison: it is returned, and gone.
    pub(super) fn disconnected(
        &mut self,
        maybe_a_publication: bool,
        now: Instant,
    ) -> Option<Box<Publication>> {
        let poison = maybe_a_publication && self.is_poison(now);
        let poison = poison.then(|| self.in_flight.front().map(|p| p.packet_id)).flatten();
        let poison = poison.and_then(|packet_id| self.take(packet_id));
        while let Some(last) = self.in_flight.pop_back() {
            self.waiting.push_front(Slot::Publish(last.waiting));
        }
        poison
    }

    /// Whether the first in flight has been alone when the connection ended.
    fn is_poison(&mut self, now: Instant) -> bool {
        let first = self.in_flight.front().filter(|p| now - p.sent < SOON);
        let Some(first) = first.map(|p| p.waiting.number) else {
            self.suspect = None;
            return false;
        };
        if self.alone > 0 {
            return true;
        }
        let deaths =
            self.suspect.map_or(1, |(number, deaths)| if number == first { deaths + 1 } else { 1 });
        self.suspect = Some((first, deaths));
        if deaths >= DEATHS {
            self.alone = self.in_flight.len();
        }
        false
    }

    /// A connection stands, on which the broker takes `receive_maximum` publications at once.
    pub(super) fn connected(&mut self, receive_maximum: u16) {
        self.limit = receive_maximum.clamp(1, MAX_IN_FLIGHT).into();
    }
}

/// What a publication takes in memory, about, in bytes.
fn weight(publication: &Publication) -> usize {
    let Publication { topic, payload, properties, .. } = publication;
    let user = properties.user.iter().map(|(name, value)| name.len() + value.len() + OVERHEAD);
    let strings = [&properties.response_topic, &properties.content_type];
    let strings = strings.into_iter().flatten().map(String::len);
    let correlation = properties.correlation_data.as_ref().map_or(0, bytes::Bytes::len);
    OVERHEAD + topic.len() + payload.len() + correlation + user.chain(strings).sum::<usize>()
}

#[cfg(test)]
mod properties;

#[cfg(test)]
mod tests;
