//! The acknowledgement window: which messages are held, and in which order their PUBACKs may go out.
//!
//! PUBACKs leave in the order in which the messages came [MQTT-4.6.0-2], on the connection that
//! brought them. When a settled message has waited for `hold` because of others, the senders that it
//! waits for are *late*: what they have sent, and send until one of their messages is settled within
//! `hold` again, holds back nobody.
//!
//! Two things stop a PUBACK that would go out of order. The broker counts packet identifiers in a
//! circle: none may come round while its message is held. And not more than Receive Maximum messages
//! may be passed by: where a broker sends more than that, as Mosquitto 2.0.11 does, a PUBACK further
//! behind makes it send new messages before those that it has queued.
//!
//! Pure: no clock, no socket. Packet identifiers belong to a connection, tickets to this process, so
//! a message that comes again finds the ticket under which it is already being handled and is not
//! handled twice.

mod carried;
mod clock;
mod habit;
mod release;
mod slots;

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    num::NonZeroUsize,
    sync::Arc,
    time::Duration,
};

use lru::LruCache;
use tokio::time::Instant;

use self::{
    carried::{Came, Carried, Known, Stage},
    clock::Clock,
    habit::Habit,
    slots::{Slot, Slots},
};

/// Names one message for as long as this process holds it.
pub type Ticket = u64;

/// Packet identifier [MQTT-2.2.1-3]; 0 stands for a `QoS` 0 message, which has none.
pub type PacketId = u16;

/// How many late senders are remembered.
const LATE_SENDERS: NonZeroUsize = NonZeroUsize::new(10_000).expect("it is not zero");

/// What to do with a PUBLISH.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// It is new: handle it under this ticket.
    New(Ticket),
    /// It has come again: it is still being handled, or already acknowledged on this connection.
    Held,
    /// It has come again and is already settled: only the acknowledgement is missing.
    Settled(Ticket),
}

/// A message as it came, without what only handling needs.
#[derive(Debug, Clone)]
pub struct Arrived {
    /// 0 at `QoS` 0.
    pub packet_id: PacketId,
    /// The broker says that it may have sent it before [MQTT-3.3.1-1].
    pub dup: bool,
    /// Tells messages with the same packet identifier apart.
    pub fingerprint: u64,
    /// Who sent it: late messages are late for their sender only.
    pub sender: Arc<str>,
}

/// The window.
#[derive(Debug)]
pub struct Window {
    /// `None` keeps the order at any price.
    hold: Option<Duration>,
    receive_maximum: usize,
    /// How many packet identifiers there are.
    identifiers: u64,
    next_ticket: Ticket,
    /// How many identifiers the broker has used.
    age: u64,
    /// What came on this connection.
    slots: Slots,
    /// The number of the first slot that holds back those behind it. All before it are acknowledged or
    /// passed by.
    held_from: u64,
    /// Not acknowledged, and passed by: late, or stopped.
    passed: BTreeSet<u64>,
    /// Of these, those that are settled.
    stopped: BTreeSet<u64>,
    /// How many are not acknowledged.
    unacknowledged: usize,
    /// The broker has sent more than the Receive Maximum allows.
    overrun: bool,
    by_ticket: HashMap<Ticket, u64>,
    by_id: HashMap<PacketId, u64>,
    /// `QoS` 0, not settled.
    at_most_once: HashSet<Ticket>,
    clock: Clock,
    late: LruCache<Arc<str>, ()>,
    carried: Carried,
    habit: Habit,
    /// PUBACKs that may go out, in this order.
    due: VecDeque<PacketId>,
}

impl Window {
    /// A window that lets a message hold back later PUBACKs for `hold`, of a client that has told the
    /// broker this Receive Maximum.
    pub fn new(hold: Option<Duration>, receive_maximum: u16) -> Self {
        Self {
            hold,
            receive_maximum: receive_maximum.into(),
            identifiers: PacketId::MAX.into(),
            next_ticket: 0,
            age: 0,
            slots: Slots::default(),
            held_from: 0,
            passed: BTreeSet::new(),
            stopped: BTreeSet::new(),
            unacknowledged: 0,
            overrun: false,
            by_ticket: HashMap::new(),
            by_id: HashMap::new(),
            at_most_once: HashSet::new(),
            clock: Clock::default(),
            late: LruCache::new(LATE_SENDERS),
            carried: Carried::default(),
            habit: Habit::default(),
            due: VecDeque::new(),
        }
    }

    /// Messages that came on this connection and are not acknowledged yet.
    pub fn pending(&self) -> usize {
        self.unacknowledged + self.at_most_once.len()
    }

    /// The broker has answered a ping: what was acknowledged before the ping before, it has read. It
    /// may use those packet identifiers for other messages, even for equal ones.
    pub fn ping_answered(&mut self) {
        self.carried.ping_answered();
        self.habit.ping_answered();
        self.learn();
    }

    /// A PUBLISH came.
    pub fn arrive(&mut self, arrived: Arrived, now: Instant) -> Arrival {
        let Arrived { packet_id, dup, fingerprint, sender } = arrived;
        self.habit.moved(now);
        if packet_id == 0 {
            // It has no PUBACK: it cannot hold one back.
            let ticket = self.ticket();
            self.at_most_once.insert(ticket);
            return Arrival::New(ticket);
        }
        let after = self.by_id.get(&packet_id).copied();
        let is_it = |slot: &Slot| dup && slot.known.fingerprint == fingerprint;
        if after.and_then(|number| self.slots.get(number)).is_some_and(is_it) {
            return Arrival::Held;
        }
        let known = match self.carried.arrived(packet_id, dup, fingerprint) {
            Came::Acknowledged => {
                self.due.push_back(packet_id);
                return Arrival::Held;
            }
            Came::New => None,
            Came::Again(known) => Some(known),
        };
        let arrival = match known {
            None => Arrival::New(self.ticket()),
            Some(Known { stage: Stage::Held, .. }) => Arrival::Held,
            Some(Known { ticket, .. }) => Arrival::Settled(ticket),
        };
        if known.is_some_and(|known| known.stage == Stage::Read) && self.habit.not_heeded() {
            tracing::warn!(
                "the broker ignores PUBACKs that come out of order; it gets them in order from now on, \
                 as with ack_hold = \"forever\""
            );
            self.keep_order();
        }
        let known = known.unwrap_or(Known {
            ticket: self.next_ticket.saturating_sub(1),
            fingerprint,
            stage: Stage::Held,
            age: self.age,
        });
        // What comes again counts as the oldest of it: in which order it comes is the broker's choice.
        let age = self.carried.age().map_or(known.age, |oldest| oldest.min(known.age));
        self.age += u64::from(matches!(arrival, Arrival::New(_)));
        self.push(Slot {
            packet_id,
            known: Known { stage: Stage::Held, age, ..known },
            late: self.hold().is_some_and(|hold| hold.is_zero() || self.late.contains(&sender)),
            sender,
            at: now,
            after,
        });
        self.learn();
        arrival
    }

    /// The message's outcome is on its way to the broker: its PUBACK may follow.
    pub fn settle(&mut self, ticket: Ticket, now: Instant) {
        self.habit.moved(now);
        if self.at_most_once.remove(&ticket) {
            return;
        }
        let Some(number) = self.by_ticket.remove(&ticket) else {
            // Unless it came on a session that the broker has forgotten: then nobody waits for it.
            return self.carried.settle(ticket);
        };
        let hold = self.hold();
        self.clock.settled();
        let held_from = self.held_from;
        let Some(slot) = self.slots.get_mut(number) else { return };
        slot.known.stage = Stage::Settled;
        let quick = slot.late && hold.is_some_and(|hold| now - slot.at <= hold);
        let sender = quick.then(|| slot.sender.clone());
        slot.late = false;
        if let Some(sender) = sender {
            self.late.pop(&sender);
        }
        if number < held_from {
            self.acknowledge_or_stop(number);
        } else {
            self.passed.remove(&number);
            if number > held_from {
                self.clock.wait(number, now);
            }
        }
        self.release();
    }

    /// When time matters next, if it does.
    pub fn next_timeout(&self) -> Option<Instant> {
        let late = self.hold().and_then(|hold| self.clock.next_look(hold));
        let quiet = self.habit.next_look(self.carried.is_read()).filter(|_| self.is_idle());
        late.into_iter().chain(quiet).min()
    }

    /// Time has passed: whoever has held back others for too long becomes late.
    pub fn pass(&mut self, now: Instant) {
        if self.is_idle() {
            self.habit.look(now, self.carried.is_read());
        }
        let Some(hold) = self.hold() else { return };
        let Some(waits) = self.clock.front() else { return };
        let stands_still = !self.clock.has_moved() && self.others_are_held(waits);
        self.clock.look(now, stands_still, self.unacknowledged);
        while let Some(number) = self.clock.expired(hold) {
            for sender in self.holding_back(number) {
                self.late.put(sender, ());
            }
            for number in self.held_from..self.slots.numbers().end {
                let Some(slot) = self.slots.get_mut(number) else { break };
                if slot.holds_back() && self.late.contains(&slot.sender) {
                    slot.late = true;
                    self.passed.insert(number);
                }
            }
            self.release();
        }
    }

    /// A ping is wanted, to learn what the broker has read. Said once.
    pub fn wants_ping(&mut self) -> bool {
        self.habit.wants_ping()
    }

    /// The broker may have ignored PUBACKs, which shows on another connection: leave this one well and
    /// connect again.
    pub fn must_reconnect(&self) -> bool {
        self.habit.is_leaving()
    }

    /// Nothing more will be settled on this connection: what is settled need not wait for what is
    /// not. The PUBACKs that go out are still in order, and nothing new follows them.
    pub fn close(&mut self) {
        self.clock.clear();
        for number in self.slots.numbers() {
            let settled = self.slots.get(number).is_some_and(|slot| slot.is(Stage::Settled));
            if settled && self.cannot_come_round(number) {
                self.acknowledge(number);
            }
        }
    }

    /// The next PUBACK that may go out; it must.
    pub fn next_due(&mut self) -> Option<PacketId> {
        self.due.pop_front()
    }

    /// The connection is gone, and with it every packet identifier. What is being handled goes on
    /// being handled. `skipped` are packet identifiers under which new messages came that were not
    /// taken: what was acknowledged under them before cannot come again.
    pub fn disconnected(&mut self, skipped: &HashSet<PacketId>) {
        let unread = self.unread();
        let slots = self.slots.take().into_iter();
        let held = slots.filter(|slot| !slot.is(Stage::Acknowledged));
        let held = held.map(|slot| (slot.packet_id, slot.known));
        self.carried.disconnected(unread, !self.habit.is_leaving(), held, skipped);
        self.habit.disconnected();
        self.due.clear();
        self.clock.clear();
        self.passed.clear();
        self.stopped.clear();
        self.by_ticket.clear();
        self.by_id.clear();
        self.at_most_once.clear();
        (self.held_from, self.unacknowledged) = (0, 0);
    }

    /// A connection stands. When the broker has lost the session, nothing comes again
    /// [MQTT-3.2.2-3].
    pub fn connected(&mut self, session_present: bool) {
        self.carried.connected(session_present);
        self.habit.connected(session_present);
    }

    fn hold(&self) -> Option<Duration> {
        self.hold.filter(|_| !self.habit.is_strict())
    }

    fn ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        self.next_ticket - 1
    }

    fn push(&mut self, slot: Slot) {
        let (ticket, packet_id, late) = (slot.known.ticket, slot.packet_id, slot.late);
        let number = self.slots.push(slot);
        self.by_ticket.insert(ticket, number);
        self.by_id.insert(packet_id, number);
        if late {
            self.passed.insert(number);
        }
        self.unacknowledged += 1;
        self.overrun |= self.unacknowledged > self.receive_maximum;
        self.release();
        self.habit.come(self.slots.numbers().end, self.receive_maximum);
    }

    /// Nothing is left to be settled but what is late, and nobody waits.
    fn is_idle(&self) -> bool {
        self.held_from == self.slots.numbers().end && self.stopped.is_empty()
    }

    /// The senders for whom this message waits.
    fn holding_back(&self, number: u64) -> HashSet<Arc<str>> {
        let before = self.slots.range(self.held_from..number);
        before.filter(|slot| slot.holds_back()).map(|slot| slot.sender.clone()).collect()
    }

    /// Whether others than those for whom this message waits could be settled.
    fn others_are_held(&self, number: u64) -> bool {
        let waits_for = self.holding_back(number);
        let mut behind = self.slots.range(number..self.slots.numbers().end);
        behind.any(|slot| slot.holds_back() && !waits_for.contains(&slot.sender))
    }

    /// How many PUBACKs the broker may not have read, at most: it may send again what it has in flight.
    /// If that is more than the Receive Maximum nobody knows, but no identifier must come round.
    fn unread(&self) -> usize {
        if self.overrun {
            usize::try_from(self.identifiers / 2).unwrap_or(usize::MAX)
        } else {
            self.receive_maximum - self.unacknowledged
        }
    }

    /// How many PUBACKs are remembered. Of a broker that may heed some of them only, twice as many can
    /// be in flight yet.
    fn remembered(&self) -> usize {
        let most = self.receive_maximum.max(self.unread());
        if self.habit.is_doubtful() { 2 * most } else { most }
    }

    /// Something has come that shows what the broker has read or heeded.
    fn learn(&mut self) {
        if !self.carried.is_repeating() {
            self.habit.repeated();
        }
        if !self.habit.is_doubtful() {
            self.carried.forget_read();
        }
    }
}

#[cfg(test)]
mod broker;

#[cfg(test)]
mod properties;

#[cfg(test)]
mod tests;
