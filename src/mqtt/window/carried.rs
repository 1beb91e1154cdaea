//! What the broker may send again, by packet identifier, and how far it is known what it has read.
//!
//! On this connection: what is acknowledged. On the next one: also what was not. A broker that has
//! sent a message has read all but Receive Maximum of the PUBACKs before it, since it reads them in
//! order; and all before the one that freed a packet identifier which it uses anew. What it has read
//! it cannot send again, and an equal message under that identifier is another message.

use std::collections::{HashMap, HashSet, VecDeque};

use super::{PacketId, Ticket};

/// How far a message is through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Being handled.
    Held,
    /// Its outcome is handed over, its PUBACK is not.
    Settled,
    /// The broker may not have read its PUBACK.
    Acknowledged,
    /// The broker has read its PUBACK. If it comes again, the broker has not heeded it.
    Read,
}

/// What is known of a message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known {
    pub(super) ticket: Ticket,
    pub(super) fingerprint: u64,
    pub(super) stage: Stage,
    /// How many identifiers the broker had used when it used this one.
    pub(super) age: u64,
}

/// Which message it is that came.
#[derive(Debug)]
pub(super) enum Came {
    New,
    /// It was acknowledged on this connection, and the broker has not read that yet, or not heeded it.
    Acknowledged,
    /// It came on the connection before.
    Again(Known),
}

#[derive(Debug, Default)]
pub(super) struct Carried {
    /// Acknowledged on this connection, oldest first.
    acknowledged: VecDeque<(PacketId, Known)>,
    /// The serial number of the first of them.
    first: u64,
    /// Below this serial number the broker has read them all.
    read: u64,
    /// How many there were when the last ping was answered.
    before_ping: u64,
    /// The latest serial number of a packet identifier.
    serials: HashMap<PacketId, u64>,
    /// Of the connection before.
    before: HashMap<PacketId, Known>,
    /// The broker is sending again what it has.
    repeating: bool,
    /// The lowest age of what it may be sending again.
    age: Option<u64>,
}

impl Carried {
    /// The next serial number.
    fn next(&self) -> u64 {
        self.first + self.acknowledged.len() as u64
    }

    /// Which message it is that came.
    pub(super) fn arrived(&mut self, packet_id: PacketId, dup: bool, fingerprint: u64) -> Came {
        if let Some((serial, known)) = self.find(packet_id) {
            if dup && known.fingerprint == fingerprint {
                return Came::Acknowledged;
            }
            self.read = self.read.max(serial + 1);
            return Came::New;
        }
        let Some(known) = self.before.remove(&packet_id) else {
            if !dup {
                // It sends again first [MQTT-4.4.0-1]: what has not come by now, it does not have.
                self.repeated();
            }
            return Came::New;
        };
        // An identifier is not free before its PUBACK: without one it is the same message, whatever
        // DUP says.
        let sure = dup || matches!(known.stage, Stage::Held | Stage::Settled);
        if sure && known.fingerprint == fingerprint { Came::Again(known) } else { Came::New }
    }

    /// What was acknowledged last under this packet identifier, and its serial number.
    fn find(&self, packet_id: PacketId) -> Option<(u64, Known)> {
        let serial = *self.serials.get(&packet_id)?;
        let index = usize::try_from(serial.checked_sub(self.first)?).ok()?;
        Some((serial, self.acknowledged.get(index)?.1))
    }

    /// A PUBACK goes out. No more are remembered than `most`.
    pub(super) fn acknowledged(&mut self, packet_id: PacketId, known: Known, most: usize) {
        self.serials.insert(packet_id, self.next());
        self.acknowledged.push_back((packet_id, known));
        while self.acknowledged.len() > most {
            self.forget_first();
        }
    }

    /// Forgets what the broker has read.
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

    /// The broker has answered a ping: what was acknowledged before the ping before, it has read.
    pub(super) fn ping_answered(&mut self) {
        self.read = self.read.max(self.before_ping);
        self.before_ping = self.next();
        self.repeated();
    }

    /// Whether the broker has read every PUBACK.
    pub(super) fn is_read(&self) -> bool {
        self.read == self.next()
    }

    /// A message of the connection before is settled.
    pub(super) fn settle(&mut self, ticket: Ticket) {
        if self.repeating {
            if let Some(known) = self.before.values_mut().find(|known| known.ticket == ticket) {
                known.stage = Stage::Settled;
            }
        } else {
            self.before.retain(|_, known| known.ticket != ticket);
        }
    }

    /// The broker has sent again what it has. What has not come it does not have any more.
    fn repeated(&mut self) {
        if self.repeating {
            (self.repeating, self.age) = (false, None);
            self.before.retain(|_, known| known.stage == Stage::Held);
        }
    }

    /// Whether the broker may still be sending again what it had on the connection before.
    pub(super) fn is_repeating(&self) -> bool {
        self.repeating
    }

    /// The lowest age of what may come again.
    pub(super) fn age(&self) -> Option<u64> {
        self.age
    }

    /// The connection is gone. The broker has not read the last `unread` PUBACKs at most. `heeded` is
    /// false if it is to be found out whether it heeds what it has read. Under the identifiers
    /// `skipped` new messages came that were not taken.
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
                // Else an earlier message under the same identifier would be taken for it.
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

    /// A connection stands.
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
