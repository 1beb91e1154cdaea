//! The acknowledgement window: which messages are held, and in which order their PUBACKs may go out.
//!
//! PUBACKs leave in the order in which the messages came [MQTT-4.6.0-2], on the connection that
//! brought them. When a settled message has waited for `hold` because of others, those that it waits
//! for are *late*: they and everything else of their senders stop holding back anybody and are
//! acknowledged whenever they are done. Where nobody waits, nobody is late: after an outage, in which
//! nothing is settled, the order still holds.
//!
//! Pure: no clock, no socket. Packet identifiers belong to a connection, tickets to this process, so
//! a message that comes again after a reconnect finds the ticket under which it is already being
//! handled and is not handled twice.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

/// Names one message for as long as this process holds it.
pub type Ticket = u64;

/// Packet identifier [MQTT-2.2.1-3]; 0 stands for a `QoS` 0 message, which has none.
pub type PacketId = u16;

/// What to do with a PUBLISH.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// It is new: handle it under this ticket.
    New(Ticket),
    /// It has come again and is still being handled.
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

#[derive(Debug)]
struct Slot {
    /// Consecutive in order of arrival.
    number: u64,
    ticket: Ticket,
    packet_id: PacketId,
    fingerprint: u64,
    sender: Arc<str>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Holds back everything behind it.
    Held,
    /// Waits for those before it.
    Settled,
    /// Late: out of the order, its record is in `late`.
    Late,
}

#[derive(Debug)]
struct Late {
    packet_id: PacketId,
    fingerprint: u64,
    sender: Arc<str>,
}

/// A message of the connection before, which the broker may send again.
#[derive(Debug, Clone, Copy)]
struct Carried {
    ticket: Ticket,
    fingerprint: u64,
    settled: bool,
}

/// So many acknowledgements a broken connection can have swallowed: one for each packet identifier.
const MAX_ACKED: usize = PacketId::MAX as usize;

/// The window.
#[derive(Debug)]
pub struct Window {
    /// `None` keeps the order at any price.
    hold: Option<Duration>,
    next_ticket: Ticket,
    /// In order of arrival on this connection.
    slots: VecDeque<Slot>,
    next_number: u64,
    /// Settled and held back: since when, and by number; in order of settlement. Some may have gone.
    waiting: VecDeque<(Instant, u64)>,
    late: HashMap<Ticket, Late>,
    /// How many late messages each sender has; while it has any, its new ones are late as well.
    late_senders: HashMap<Arc<str>, usize>,
    /// Acknowledged on this connection; the broker may not have read it yet.
    acked: VecDeque<(PacketId, Carried)>,
    /// How many of them were there when the last ping was answered.
    acked_before_ping: usize,
    /// What came on the connection before, by packet identifier.
    carried: HashMap<PacketId, Carried>,
    /// PUBACKs that may go out, in this order.
    due: VecDeque<PacketId>,
}

impl Window {
    /// A window that lets a message hold back later PUBACKs for `hold`.
    pub fn new(hold: Option<Duration>) -> Self {
        Self {
            hold,
            next_ticket: 0,
            slots: VecDeque::new(),
            next_number: 0,
            waiting: VecDeque::new(),
            late: HashMap::new(),
            late_senders: HashMap::new(),
            acked: VecDeque::new(),
            acked_before_ping: 0,
            carried: HashMap::new(),
            due: VecDeque::new(),
        }
    }

    /// Messages that came on this connection and are not acknowledged yet.
    pub fn pending(&self) -> usize {
        self.late.len() + self.slots.iter().filter(|slot| slot.state != State::Late).count()
    }

    /// The broker has answered a ping: what was acknowledged before the ping before, it has read. It
    /// may use those packet identifiers for other messages, even for equal ones.
    pub fn ping_answered(&mut self) {
        self.acked.drain(..self.acked_before_ping);
        self.acked_before_ping = self.acked.len();
    }

    /// A PUBLISH came.
    pub fn arrive(&mut self, arrived: Arrived) -> Arrival {
        let known = self.carried.remove(&arrived.packet_id).filter(|carried| {
            arrived.packet_id != 0 && arrived.dup && carried.fingerprint == arrived.fingerprint
        });
        let ticket = known.map_or(self.next_ticket, |carried| carried.ticket);
        let Arrived { packet_id, fingerprint, sender, .. } = arrived;
        // A QoS 0 message has no PUBACK: it cannot hold one back.
        let late = packet_id == 0
            || self.hold.is_some_and(|hold| hold.is_zero())
            || self.late_senders.contains_key(&sender);
        if late {
            self.make_late(ticket, Late { packet_id, fingerprint, sender });
        } else {
            let (number, state) = (self.next_number, State::Held);
            self.next_number += 1;
            self.slots.push_back(Slot { number, ticket, packet_id, fingerprint, sender, state });
        }
        match known {
            None => {
                self.next_ticket += 1;
                Arrival::New(ticket)
            }
            Some(Carried { settled: false, .. }) => Arrival::Held,
            Some(Carried { settled: true, .. }) => Arrival::Settled(ticket),
        }
    }

    /// The message's outcome is on its way to the broker: its PUBACK may follow.
    pub fn settle(&mut self, ticket: Ticket, now: Instant) {
        if let Some(late) = self.late.remove(&ticket) {
            if late.packet_id != 0 {
                self.leave_late(&late.sender);
            }
            self.acknowledge(ticket, late.packet_id, late.fingerprint);
        } else if let Some(slot) = self.slots.iter_mut().find(|slot| slot.ticket == ticket) {
            slot.state = State::Settled;
            self.waiting.push_back((now, slot.number));
            self.release();
        } else if let Some(carried) = self.carried.values_mut().find(|c| c.ticket == ticket) {
            carried.settled = true;
        }
        // Else it came on a session that the broker has forgotten: nobody waits for it.
    }

    /// When the next message becomes late, if any can.
    pub fn next_late(&self) -> Option<Instant> {
        Some(self.waiting.front()?.0 + self.hold?)
    }

    /// Time has passed: whoever has held back others for too long becomes late.
    pub fn pass(&mut self, now: Instant) {
        while let Some((since, number)) = self.waiting.front().copied()
            && self.hold.is_some_and(|hold| since + hold <= now)
        {
            let before = self.slots.iter().take_while(|slot| slot.number < number);
            let held = before.filter(|slot| slot.state == State::Held);
            let senders: HashSet<Arc<str>> = held.map(|slot| slot.sender.clone()).collect();
            for index in 0..self.slots.len() {
                let slot = &mut self.slots[index];
                if slot.state == State::Held && senders.contains(&slot.sender) {
                    slot.state = State::Late;
                    let Slot { ticket, packet_id, fingerprint, .. } = *slot;
                    let sender = slot.sender.clone();
                    self.make_late(ticket, Late { packet_id, fingerprint, sender });
                }
            }
            self.release();
        }
    }

    /// Nothing more will be settled on this connection: what is settled need not wait for what is
    /// not. The PUBACKs that go out are still in order.
    pub fn close(&mut self) {
        self.waiting.clear();
        for slot in std::mem::take(&mut self.slots) {
            match slot.state {
                State::Settled => self.acknowledge(slot.ticket, slot.packet_id, slot.fingerprint),
                State::Held => self.slots.push_back(slot),
                State::Late => {}
            }
        }
    }

    /// The next PUBACK that may go out; it must.
    pub fn next_due(&mut self) -> Option<PacketId> {
        self.due.pop_front()
    }

    /// The PUBACK could not be handed over yet.
    pub fn put_back(&mut self, packet_id: PacketId) {
        self.due.push_front(packet_id);
    }

    /// The connection is gone, and with it every packet identifier. What is being handled goes on
    /// being handled. `skipped` are packet identifiers under which new messages came that were not
    /// taken: what was acknowledged under them before cannot come again.
    pub fn disconnected(&mut self, skipped: &HashSet<PacketId>) {
        self.due.clear();
        self.waiting.clear();
        self.late_senders.clear();
        self.acked_before_ping = 0;
        for (packet_id, carried) in self.acked.drain(..) {
            self.carried.insert(packet_id, carried);
        }
        self.carried.retain(|packet_id, _| !skipped.contains(packet_id));
        for (ticket, late) in self.late.drain() {
            let carried = Carried { ticket, fingerprint: late.fingerprint, settled: false };
            self.carried.insert(late.packet_id, carried);
        }
        for slot in self.slots.drain(..).filter(|slot| slot.state != State::Late) {
            let settled = slot.state == State::Settled;
            let carried = Carried { ticket: slot.ticket, fingerprint: slot.fingerprint, settled };
            self.carried.insert(slot.packet_id, carried);
        }
        self.carried.remove(&0);
    }

    /// A connection stands. When the broker has lost the session, nothing comes again
    /// [MQTT-3.2.2-3].
    pub fn connected(&mut self, session_present: bool) {
        if !session_present {
            self.carried.clear();
        }
    }

    /// Everything at the front that is settled is acknowledged; what is late is passed over.
    fn release(&mut self) {
        while let Some(slot) = self.slots.pop_front_if(|slot| slot.state != State::Held) {
            if slot.state == State::Settled {
                self.acknowledge(slot.ticket, slot.packet_id, slot.fingerprint);
            }
        }
        // Numbers are consecutive, so whatever is below the first slot's has gone.
        let first = self.slots.front().map_or(self.next_number, |slot| slot.number);
        while self.waiting.pop_front_if(|(_, number)| *number < first).is_some() {}
    }

    fn acknowledge(&mut self, ticket: Ticket, packet_id: PacketId, fingerprint: u64) {
        if packet_id == 0 {
            return;
        }
        if self.acked.len() == MAX_ACKED {
            self.acked.pop_front();
            self.acked_before_ping = self.acked_before_ping.saturating_sub(1);
        }
        self.acked.push_back((packet_id, Carried { ticket, fingerprint, settled: true }));
        self.due.push_back(packet_id);
    }

    fn make_late(&mut self, ticket: Ticket, late: Late) {
        if late.packet_id != 0 {
            *self.late_senders.entry(late.sender.clone()).or_default() += 1;
        }
        self.late.insert(ticket, late);
    }

    fn leave_late(&mut self, sender: &Arc<str>) {
        if let Some(count) = self.late_senders.get_mut(sender) {
            *count -= 1;
            if *count == 0 {
                self.late_senders.remove(sender);
            }
        }
    }
}

#[cfg(test)]
mod properties;

#[cfg(test)]
mod tests;
