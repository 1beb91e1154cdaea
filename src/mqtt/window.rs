//! The acknowledgement window: the messages that are not acknowledged yet, and the order of their PUBACKs.
//!
//! PUBACKs are sent in the order in which the messages arrived [MQTT-4.6.0-2], on the connection that
//! brought them. When a settled message has waited `ack_hold` for earlier ones, the senders of those are
//! *overdue*: the window does not wait for their messages, until one of them is settled within `ack_hold` again.
//!
//! A PUBACK out of order is withheld in two cases. The broker counts packet identifiers in a circle: they
//! must not come round to one whose message is not acknowledged. And a PUBACK must not overtake as many
//! messages as the Receive Maximum: a broker that sends more than that, as Mosquitto 2.0.11 does, would
//! then send new messages before those that it has queued.
//!
//! Pure: no clock, no socket. Packet identifiers belong to a connection, tickets to this process: a
//! message that the broker sends again finds the ticket under which it is already being handled, and is
//! not handled twice.

mod clock;
mod overdue;
mod reach;
mod redelivery;
mod release;
mod slots;
mod strictness;

use std::{
    collections::{BTreeSet, VecDeque},
    num::NonZeroUsize,
    sync::Arc,
    time::Duration,
};

use foldhash::{HashMap, HashMapExt, HashSet, HashSetExt};
use lru::LruCache;
use tokio::time::Instant;

use self::{
    clock::Clock,
    reach::Reach,
    redelivery::{Known, Recognised, Redelivery, Stage},
    slots::{Slot, Slots},
    strictness::Strictness,
};
use crate::{topic::PatternIndex, traces::Span};

/// Names one message for as long as this process handles it.
pub type Ticket = u64;

/// Packet identifier [MQTT-2.2.1-3]; 0 stands for a `QoS` 0 message, which has none.
pub type PacketId = u16;

/// How many overdue senders are remembered.
const OVERDUE_SENDERS: NonZeroUsize = NonZeroUsize::new(10_000).expect("it is not zero");

/// What an arriving PUBLISH is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// It is new: handle it under this ticket.
    New(Ticket),
    /// It came again and is still being handled, or is already acknowledged on this connection: do
    /// nothing.
    InProgress,
    /// It came again and is already settled: only its PUBACK is missing.
    Settled(Ticket),
}

/// What the window needs to know of an arriving message.
#[derive(Debug, Clone)]
pub struct Arrived {
    /// 0 at `QoS` 0.
    pub packet_id: PacketId,
    /// The broker says that it may have sent it before [MQTT-3.3.1-1].
    pub dup: bool,
    /// Tells messages with the same packet identifier apart.
    pub fingerprint: u64,
    /// Who sent it.
    pub sender: Arc<str>,
    /// Which subscription it came for.
    pub subscription: Option<PatternIndex>,
}

/// A PUBACK that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// Which PUBLISH it answers.
    pub packet_id: PacketId,
    /// When that came, and for which subscription; none if it was acknowledged on this connection before.
    pub came: Option<(Instant, Option<PatternIndex>)>,
}

/// The window.
#[derive(Debug)]
pub struct Window {
    /// `ack_hold`; `None` is for ever.
    hold: Option<Duration>,
    receive_maximum: usize,
    /// How many packet identifiers there are.
    identifiers: u64,
    next_ticket: Ticket,
    /// How many packet identifiers the broker has used in this session.
    age: u64,
    /// The messages of this connection.
    slots: Slots,
    /// The number of the first message that holds back later PUBACKs. All before it are acknowledged or
    /// overtaken.
    held_from: u64,
    /// Not acknowledged, and overtaken by later PUBACKs: overdue, or withheld.
    overtaken: BTreeSet<u64>,
    /// Those of them that are settled.
    withheld: BTreeSet<u64>,
    /// How far PUBACKs may go.
    reach: Reach,
    /// How many are not acknowledged.
    unacknowledged: usize,
    /// The broker has exceeded the Receive Maximum.
    overrun: bool,
    by_ticket: HashMap<Ticket, u64>,
    by_id: HashMap<PacketId, u64>,
    /// `QoS` 0, not settled.
    at_most_once: HashSet<Ticket>,
    clock: Clock,
    overdue: LruCache<Arc<str>, ()>,
    redelivery: Redelivery,
    strictness: Strictness,
    /// PUBACKs that are due, in this order.
    due: VecDeque<Due>,
}

impl Window {
    /// A window with this `ack_hold`, of a client that has told the broker this Receive Maximum.
    pub fn new(hold: Option<Duration>, receive_maximum: u16) -> Self {
        Self {
            hold,
            receive_maximum: receive_maximum.into(),
            identifiers: PacketId::MAX.into(),
            next_ticket: 0,
            age: 0,
            slots: Slots::default(),
            held_from: 0,
            overtaken: BTreeSet::new(),
            withheld: BTreeSet::new(),
            reach: Reach::new(receive_maximum.into()),
            unacknowledged: 0,
            overrun: false,
            by_ticket: HashMap::new(),
            by_id: HashMap::new(),
            at_most_once: HashSet::new(),
            clock: Clock::default(),
            overdue: LruCache::sparse(OVERDUE_SENDERS),
            redelivery: Redelivery::default(),
            strictness: Strictness::default(),
            due: VecDeque::new(),
        }
    }

    /// How many messages of this connection are not acknowledged yet.
    pub fn pending(&self) -> usize {
        self.unacknowledged + self.at_most_once.len()
    }

    /// The broker has answered a ping: it has read every PUBACK that was sent before the previous one, and
    /// may use those packet identifiers for other messages, even for equal ones.
    pub fn ping_answered(&mut self) {
        self.redelivery.ping_answered();
        // With a full window the broker may still have some to send again: Mosquitto 2.0.11, when it is started
        // again, puts what exceeds the Receive Maximum back into its queue.
        if self.unacknowledged + self.redelivery.unread() < self.receive_maximum {
            self.redelivery.repeated();
        }
        self.strictness.ping_answered();
        self.learn();
    }

    /// A PUBLISH arrived.
    pub fn arrive(&mut self, arrived: Arrived, now: Instant) -> Arrival {
        let Arrived { packet_id, dup, fingerprint, sender, subscription } = arrived;
        self.strictness.moved(now);
        if packet_id == 0 {
            // It has no PUBACK: it cannot hold one back.
            let ticket = self.ticket();
            self.at_most_once.insert(ticket);
            return Arrival::New(ticket);
        }
        let after = self.by_id.get(&packet_id).copied();
        let is_it = |slot: &Slot| dup && slot.known.fingerprint == fingerprint;
        if after.and_then(|number| self.slots.get(number)).is_some_and(is_it) {
            return Arrival::InProgress;
        }
        let known = match self.redelivery.arrived(packet_id, dup, fingerprint) {
            Recognised::Acknowledged => {
                self.due.push_back(Due { packet_id, came: None });
                return Arrival::InProgress;
            }
            Recognised::New => None,
            Recognised::Again(known) => Some(known),
        };
        let arrival = match known {
            None => Arrival::New(self.ticket()),
            Some(Known { stage: Stage::InProgress, .. }) => Arrival::InProgress,
            Some(Known { ticket, .. }) => Arrival::Settled(ticket),
        };
        if known.is_some_and(|known| known.stage == Stage::Read) && self.strictness.not_heeded() {
            tracing::warn!(
                "the broker ignores PUBACKs that come out of order; it gets them in order from now on, \
                 as with ack_hold = \"forever\""
            );
            self.keep_order();
        }
        let known = known.unwrap_or(Known {
            ticket: self.next_ticket.saturating_sub(1),
            fingerprint,
            stage: Stage::InProgress,
            age: self.age,
        });
        // What comes again counts as old as the oldest of it: its order is the broker's choice.
        let age = self.redelivery.age().map_or(known.age, |oldest| oldest.min(known.age));
        self.age += u64::from(matches!(arrival, Arrival::New(_)));
        self.push(Slot {
            packet_id,
            known: Known { stage: Stage::InProgress, age, ..known },
            overdue: self
                .hold()
                .is_some_and(|hold| hold.is_zero() || self.overdue.contains(&sender)),
            sender,
            subscription,
            at: now,
            after,
            trace: None,
        });
        self.learn();
        arrival
    }

    /// The message is settled: its PUBACK may follow.
    pub fn settle(&mut self, ticket: Ticket, now: Instant) {
        self.strictness.moved(now);
        if self.at_most_once.remove(&ticket) {
            return;
        }
        let Some(number) = self.by_ticket.remove(&ticket) else {
            // It arrived on an earlier connection.
            return self.redelivery.settle(ticket);
        };
        let hold = self.hold();
        self.clock.settled();
        let held_from = self.held_from;
        let Some(slot) = self.slots.get_mut(number) else { return };
        slot.known.stage = Stage::Settled;
        let quick = slot.overdue && hold.is_some_and(|hold| now - slot.at <= hold);
        let sender = quick.then(|| slot.sender.clone());
        slot.overdue = false;
        if let Some(sender) = sender {
            self.overdue.pop(&sender);
        }
        if number < held_from {
            self.acknowledge_or_withhold(number);
        } else {
            self.overtaken.remove(&number);
            if number > held_from {
                self.clock.wait(number, now);
            }
        }
        self.release();
    }

    /// Keeps the span of a message until its PUBACK is due, or the connection that brought it is gone.
    pub(crate) fn trace(&mut self, ticket: Ticket, span: Span) {
        let number = self.by_ticket.get(&ticket);
        if let Some(slot) = number.and_then(|number| self.slots.get_mut(*number)) {
            slot.trace = Some(span);
        }
    }

    /// Whether a ping is wanted, to learn what the broker has read; `true` once for each.
    pub fn wants_ping(&mut self) -> bool {
        self.strictness.wants_ping()
    }

    /// Whether the broker may have ignored PUBACKs, which only a new connection shows: this one is to be
    /// ended by a DISCONNECT.
    pub fn must_reconnect(&self) -> bool {
        self.strictness.is_leaving()
    }

    /// Nothing more will be settled on this connection, so settled messages stop waiting for unsettled
    /// ones. Their PUBACKs are still in order. What must be withheld stays so: the broker goes on with new
    /// messages until it reads the DISCONNECT.
    pub fn close(&mut self) {
        self.clock.clear();
        for number in self.slots.numbers() {
            let settled = self.slots.get(number).is_some_and(|slot| slot.is(Stage::Settled));
            if settled && self.may_be_acknowledged(number) {
                self.acknowledge(number);
            }
        }
    }

    /// Takes the next PUBACK that is due; the caller must send it.
    pub fn next_due(&mut self) -> Option<Due> {
        self.due.pop_front()
    }

    /// The connection is gone, and with it every packet identifier. What is being handled goes on being
    /// handled. Under the packet identifiers `skipped` new messages arrived that were not accepted: what was
    /// acknowledged under them before cannot come again.
    pub fn disconnected(&mut self, skipped: &HashSet<PacketId>) {
        let unread = self.unread();
        let slots = self.slots.take().into_iter();
        let held = slots.filter(|slot| !slot.is(Stage::Acknowledged));
        let held = held.map(|slot| (slot.packet_id, slot.known));
        self.redelivery.disconnected(unread, !self.strictness.is_leaving(), held, skipped);
        self.strictness.disconnected();
        self.due.clear();
        self.clock.clear();
        self.overtaken.clear();
        self.withheld.clear();
        self.reach.disconnected();
        self.by_ticket.clear();
        self.by_id.clear();
        self.at_most_once.clear();
        (self.held_from, self.unacknowledged) = (0, 0);
    }

    /// The broker has accepted a connection. Without the session nothing comes again [MQTT-3.2.2-3].
    pub fn connected(&mut self, session_present: bool) {
        self.redelivery.connected(session_present);
        self.strictness.connected(session_present);
    }

    fn hold(&self) -> Option<Duration> {
        self.hold.filter(|_| !self.strictness.is_strict())
    }

    fn ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        self.next_ticket - 1
    }

    fn push(&mut self, slot: Slot) {
        let (ticket, packet_id, overdue) = (slot.known.ticket, slot.packet_id, slot.overdue);
        let number = self.slots.push(slot);
        self.by_ticket.insert(ticket, number);
        self.by_id.insert(packet_id, number);
        if overdue {
            self.overtaken.insert(number);
        }
        self.unacknowledged += 1;
        self.overrun |= self.unacknowledged > self.receive_maximum;
        self.reach.extend(&self.slots);
        self.release();
        self.strictness.come(self.slots.numbers().end, self.receive_maximum);
    }

    /// Whether only overdue messages are unsettled, and no PUBACK is withheld.
    fn is_idle(&self) -> bool {
        self.held_from == self.slots.numbers().end && self.withheld.is_empty()
    }

    /// How many PUBACKs the broker may not have read, at most: as many as it may have in flight. How many
    /// those are where it exceeds the Receive Maximum cannot be known; half of the packet identifiers is
    /// what cannot be confused.
    fn unread(&self) -> usize {
        if self.overrun {
            usize::try_from(self.identifiers / 2).unwrap_or(usize::MAX)
        } else {
            self.receive_maximum - self.unacknowledged
        }
    }

    /// How many PUBACKs are remembered. A broker that may ignore some of them can have twice as many in
    /// flight.
    fn remembered(&self) -> usize {
        let most = self.receive_maximum.max(self.unread());
        if self.strictness.is_doubtful() { 2 * most } else { most }
    }

    /// Something arrived that shows what the broker has read or ignored.
    fn learn(&mut self) {
        if !self.redelivery.is_repeating() {
            self.strictness.repeated();
        }
        if !self.strictness.is_doubtful() {
            self.redelivery.forget_read();
        }
    }
}

#[cfg(test)]
mod broker;

#[cfg(test)]
mod properties;

#[cfg(test)]
mod tests;
