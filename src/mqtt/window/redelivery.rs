//! Redelivery: recognises a message that the broker sends again, by packet identifier and content.
//!
//! On the same connection that can be any message acknowledged on it whose PUBACK the broker may not have
//! read; on the next one also those that were not acknowledged. The broker reads PUBACKs in order. So when
//! it sends a message it has read all but the last Receive Maximum of them; and when it uses a packet
//! identifier anew, it has read the PUBACK that freed it and all before. A message whose PUBACK it has read
//! it cannot send again: an equal one under that identifier is another message.

use std::collections::VecDeque;

use foldhash::{HashMap, HashSet};

use super::{PacketId, Ticket};

/// How far the handling of a message has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// It is being handled.
    InProgress,
    /// It is settled, its PUBACK is not due yet.
    Settled,
    /// Its PUBACK was due; the broker may not have read it.
    Acknowledged,
    /// The broker has read its PUBACK. If it sends the message again nevertheless, it ignored it.
    Read,
}

/// What is known of a message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known {
    pub(super) ticket: Ticket,
    pub(super) fingerprint: u64,
    pub(super) stage: Stage,
    /// How many packet identifiers the broker had used when it used this one.
    pub(super) age: u64,
}

/// What an arriving message is.
#[derive(Debug)]
pub(super) enum Recognised {
    New,
    /// It was acknowledged on this connection; the broker has not read that PUBACK yet, or ignored it.
    Acknowledged,
    /// It arrived on the previous connection.
    Again(Known),
}

#[derive(Debug, Default)]
pub(super) struct Redelivery {
    /// Acknowledged on this connection, oldest first.
    acknowledged: VecDeque<(PacketId, Known)>,
    /// The serial number of the first of them.
    first: u64,
    /// Below this serial number the broker has read them all.
    read: u64,
    /// The next serial number when the last ping was answered.
    before_ping: u64,
    /// The latest serial number of a packet identifier.
    serials: HashMap<PacketId, u64>,
    /// What arrived on the previous connection.
    before: HashMap<PacketId, Known>,
    /// The broker may still be sending messages of the previous connection again.
    repeating: bool,
    /// The lowest age of those.
    age: Option<u64>,
}

impl Redelivery {
    /// The next serial number.
    fn next(&self) -> u64 {
        self.first + self.acknowledged.len() as u64
    }

    /// Tells whether an arriving message is new.
    pub(super) fn arrived(
        &mut self,
        packet_id: PacketId,
        dup: bool,
        fingerprint: u64,
    ) -> Recognised {
        if let Some((serial, known)) = self.find(packet_id) {
            if dup && known.fingerprint == fingerprint {
                return Recognised::Acknowledged;
            }
            self.read = self.read.max(serial + 1);
            return Recognised::New;
        }
        let Some(known) = self.before.remove(&packet_id) else {
            if !dup {
                // Redelivery comes first [MQTT-4.4.0-1]: what has not come by now will not come.
                self.repeated();
            }
            return Recognised::New;
        };
        // A packet identifier is not free before its PUBACK: without one it is the same message, whatever
        // DUP says.
        let sure = dup || matches!(known.stage, Stage::InProgress | Stage::Settled);
        if sure && known.fingerprint == fingerprint {
            Recognised::Again(known)
        } else {
            Recognised::New
        }
    }

    /// What was acknowledged last under this packet identifier, and its serial number.
    fn find(&self, packet_id: PacketId) -> Option<(u64, Known)> {
        let serial = *self.serials.get(&packet_id)?;
        let index = usize::try_from(serial.checked_sub(self.first)?).ok()?;
        Some((serial, self.acknowledged.get(index)?.1))
    }

    /// A PUBACK is due. At most `most` are remembered.
    pub(super) fn acknowledged(&mut self, packet_id: PacketId, known: Known, most: usize) {
        self.serials.insert(packet_id, self.next());
        self.acknowledged.push_back((packet_id, known));
        while self.acknowledged.len() > most {
            self.forget_first();
        }
    }

    /// Forgets the PUBACKs that the broker has read.
    pub(super) fn forget_read(&mut self) {
        while self.first < self.read && !self.acknowledged.is_empty() {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        if let Some((packet_id, _)) = self.acknowledged.pop_front() {
            if self.serials.get(&packet_id) == Some(&self.first) {
                self.serials.remove(&packet_id);
            }
            self.first += 1;
        }
    }

    /// The broker has answered a ping: it has read every PUBACK that was due before the previous answer.
    pub(super) fn ping_answered(&mut self) {
        self.read = self.read.max(self.before_ping);
        self.before_ping = self.next();
    }

    /// How many PUBACKs of this connection the broker may not have read.
    pub(super) fn unread(&self) -> usize {
        usize::try_from(self.next() - self.read).unwrap_or(usize::MAX)
    }

    /// Whether the broker has read every PUBACK.
    pub(super) fn is_read(&self) -> bool {
        self.unread() == 0
    }

    /// A message of the previous connection is settled.
    pub(super) fn settle(&mut self, ticket: Ticket) {
        if self.repeating {
            if let Some(known) = self.before.values_mut().find(|known| known.ticket == ticket) {
                known.stage = Stage::Settled;
            }
        } else {
            self.before.retain(|_, known| known.ticket != ticket);
        }
    }

    /// Redelivery is complete: what has not come again the broker does not have any more.
    pub(super) fn repeated(&mut self) {
        if self.repeating {
            (self.repeating, self.age) = (false, None);
            self.before.retain(|_, known| known.stage == Stage::InProgress);
        }
    }

    /// Whether the broker may still be sending messages of the previous connection again.
    pub(super) fn is_repeating(&self) -> bool {
        self.repeating
    }

    /// The lowest age of the messages that may come again.
    pub(super) fn age(&self) -> Option<u64> {
        self.age
    }

    /// The connection is gone. The broker may not have read the last `unread` PUBACKs. `heeded` is false if
    /// the next connection is to show whether it heeds those that it has read. Under the packet identifiers
    /// `skipped` new messages arrived that were not accepted.
    pub(super) fn disconnected(
        &mut self,
        unread: usize,
        heeded: bool,
        held: impl Iterator<Item = (PacketId, Known)>,
        skipped: &HashSet<PacketId>,
    ) {
        self.read = self.read.max(self.next().saturating_sub(unread as u64));
        let read = usize::try_from(self.read.saturating_sub(self.first)).unwrap_or(usize::MAX);
        for (index, (packet_id, known)) in self.acknowledged.drain(..).enumerate() {
            let stage = if index < read { Stage::Read } else { Stage::Acknowledged };
            if stage == Stage::Read && heeded {
                // Or an earlier message under the same packet identifier would be taken for it.
                self.before.remove(&packet_id);
            } else {
                self.before.insert(packet_id, Known { stage, ..known });
            }
        }
        self.before.retain(|packet_id, _| !skipped.contains(packet_id));
        self.before.extend(held);
        self.serials.clear();
        (self.first, self.read, self.before_ping) = (0, 0, 0);
        self.repeating = true;
        self.age = self.before.values().map(|known| known.age).min();
    }

    /// The broker has accepted a connection.
    pub(super) fn connected(&mut self, session_present: bool) {
        if !session_present {
            self.before.clear();
            self.age = None;
        }
    }

    #[cfg(test)]
    pub(super) fn sizes(&self) -> (usize, usize, usize) {
        (self.acknowledged.len(), self.serials.len(), self.before.len())
    }
}
