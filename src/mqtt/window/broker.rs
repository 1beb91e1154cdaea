//! Models of brokers, as they are: each does one thing that others do not.

use std::{collections::VecDeque, ops::Range};

use proptest::{prelude::*, sample::Index};

use super::PacketId;

/// What a broker is like.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    habit: Habit,
    /// It takes the lowest free packet identifier. Else it counts in a circle, and dies when it comes
    /// round to one that is in flight.
    lowest_free: bool,
    /// The messages of a sender are equal.
    pub(super) equal: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Habit {
    /// As the standard has it.
    None,
    /// What is in flight it sends again on the same connection: EMQX before 5.8.
    Impatient,
    /// It ignores a PUBACK that is not the next one: EMQX with durable sessions.
    Strict,
    /// It exceeds the Receive Maximum while PUBACKs come in order, and sends a new message before its
    /// queue once a PUBACK came from further behind: Mosquitto 2.0.11.
    Overruns,
    /// What it sends again has no DUP.
    Forgetful,
}

pub(super) fn kind() -> impl Strategy<Value = Kind> {
    let plain = (any::<bool>(), any::<bool>()).prop_map(|(lowest_free, equal)| Kind {
        habit: Habit::None,
        lowest_free,
        // Where an identifier is used again at once, equal messages cannot be told apart.
        equal: equal && !lowest_free,
    });
    let other = |habit| Kind { habit, lowest_free: false, equal: false };
    prop_oneof![
        3 => plain,
        1 => any::<bool>().prop_map(move |equal| Kind { equal, ..other(Habit::Strict) }),
        1 => Just(other(Habit::Impatient)),
        2 => Just(other(Habit::Overruns)),
        1 => Just(other(Habit::Forgetful)),
    ]
}

impl Kind {
    /// How many packet identifiers it has: few, so that they are used again soon. Where it sends more than
    /// the Receive Maximum, or the same again, so many that none comes round. Where messages are equal, some more: an
    /// equal message is taken for the first one when its identifier comes round while nothing without DUP has come, and of
    /// 65,535 that takes many cuts in a row, each of which loses all that was on its way.
    pub(super) fn identifiers(self, receive_maximum: u16) -> PacketId {
        match self.habit {
            Habit::Overruns | Habit::Impatient => 1000,
            _ if self.equal => 8 * receive_maximum + 1,
            _ => 2 * receive_maximum + 1,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) number: u64,
    pub(super) sender: u8,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Down {
    Publish { packet_id: PacketId, dup: bool, message: Message },
    PingResp,
}

#[derive(Debug)]
struct InFlight {
    packet_id: PacketId,
    message: Message,
    /// It has read a PUBACK for it, and ignored it.
    read: bool,
}

pub(super) struct Broker {
    pub(super) kind: Kind,
    receive_maximum: usize,
    pub(super) identifiers: PacketId,
    /// How many more it would send: its own count, which can be wrong.
    quota: usize,
    last_id: PacketId,
    pub(super) messages: u64,
    /// With a packet identifier where it was in flight before a restart.
    queue: VecDeque<(Option<PacketId>, Message)>,
    in_flight: VecDeque<InFlight>,
    pub(super) down: VecDeque<Down>,
    /// PUBACKs; `None` is a PINGREQ.
    pub(super) up: VecDeque<Option<PacketId>>,
}

impl Broker {
    pub(super) fn new(kind: Kind, receive_maximum: u16) -> Self {
        Self {
            kind,
            receive_maximum: receive_maximum.into(),
            identifiers: kind.identifiers(receive_maximum),
            quota: receive_maximum.into(),
            last_id: 0,
            messages: 0,
            queue: VecDeque::new(),
            in_flight: VecDeque::new(),
            down: VecDeque::new(),
            up: VecDeque::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.in_flight.is_empty()
    }

    /// Whether it has read, and ignored, a PUBACK for this message.
    pub(super) fn has_read(&self, number: u64) -> bool {
        self.in_flight.iter().any(|sent| sent.message.number == number && sent.read)
    }

    /// Whether it may have more in flight than the Receive Maximum.
    pub(super) fn overruns(&self) -> bool {
        self.kind.habit == Habit::Overruns
    }

    pub(super) fn publish(
        &mut self,
        sender: u8,
        qos_0: bool,
        connected: bool,
    ) -> Result<(), TestCaseError> {
        let message = Message { number: self.messages, sender };
        self.messages += 1;
        if !qos_0 {
            if self.kind.habit == Habit::Overruns && connected && self.quota > 0 {
                return self.deliver((None, message));
            }
            self.queue.push_back((None, message));
        } else if connected {
            self.down.push_back(Down::Publish { packet_id: 0, dup: false, message });
        }
        Ok(())
    }

    /// Sends what it may.
    pub(super) fn send(&mut self, connected: bool) -> Result<(), TestCaseError> {
        while connected
            && self.kind.habit != Habit::Overruns
            && self.in_flight.len() < self.receive_maximum
            && let Some(message) = self.queue.pop_front()
        {
            self.deliver(message)?;
        }
        Ok(())
    }

    fn deliver(
        &mut self,
        (again, message): (Option<PacketId>, Message),
    ) -> Result<(), TestCaseError> {
        self.quota = self.quota.saturating_sub(1);
        let packet_id = again.unwrap_or_else(|| self.next_id());
        let taken = self.in_flight.iter().find(|sent| sent.packet_id == packet_id);
        prop_assert!(taken.is_none(), "packet identifier {packet_id} has come round to {taken:?}");
        self.in_flight.push_back(InFlight { packet_id, message, read: false });
        self.down.push_back(Down::Publish { packet_id, dup: again.is_some(), message });
        Ok(())
    }

    fn next_id(&mut self) -> PacketId {
        let all: Range<PacketId> = 1..self.identifiers + 1;
        self.last_id = if self.kind.lowest_free {
            let free = |id: &PacketId| self.in_flight.iter().all(|sent| sent.packet_id != *id);
            all.clone().find(free).unwrap()
        } else if self.last_id + 1 < all.end {
            self.last_id + 1
        } else {
            all.start
        };
        self.last_id
    }

    pub(super) fn send_again(&mut self, connected: bool, index: Index) {
        if connected && self.kind.habit == Habit::Impatient && !self.in_flight.is_empty() {
            let InFlight { packet_id, message, .. } =
                self.in_flight[index.index(self.in_flight.len())];
            self.down.push_back(Down::Publish { packet_id, dup: true, message });
        }
    }

    pub(super) fn read(&mut self, most: usize) -> Result<(), TestCaseError> {
        for _ in 0..most.min(self.up.len()) {
            match self.up.pop_front().flatten() {
                Some(packet_id) => self.acknowledged(packet_id)?,
                None => self.down.push_back(Down::PingResp),
            }
        }
        Ok(())
    }

    fn acknowledged(&mut self, packet_id: PacketId) -> Result<(), TestCaseError> {
        let index = self.in_flight.iter().position(|sent| sent.packet_id == packet_id);
        let Some(index) = index else {
            let impatient = self.kind.habit == Habit::Impatient;
            prop_assert!(impatient, "the broker waits for no PUBACK {packet_id}");
            return Ok(());
        };
        if self.kind.habit == Habit::Strict && index > 0 {
            self.in_flight[index].read = true;
            return Ok(());
        }
        self.in_flight.remove(index);
        if self.kind.habit == Habit::Overruns {
            self.quota += 1;
            for _ in index..self.receive_maximum {
                if let Some(message) = self.queue.pop_front() {
                    self.deliver(message)?;
                }
            }
        }
        Ok(())
    }

    /// The connection is gone, and what was on its way.
    pub(super) fn cut(&mut self) {
        self.up.clear();
        self.down.clear();
    }

    /// It is stopped and started again. Of what is in flight no more than the Receive Maximum stays so; the
    /// rest waits first in the queue.
    pub(super) fn restart(&mut self) {
        if self.kind.habit == Habit::Overruns {
            let most = self.receive_maximum.min(self.in_flight.len());
            for sent in self.in_flight.drain(most..).rev() {
                self.queue.push_front((Some(sent.packet_id), sent.message));
            }
        }
    }

    pub(super) fn connect(&mut self, kept: bool) -> Result<(), TestCaseError> {
        if !kept {
            self.queue.clear();
            self.in_flight.clear();
            // On a new session an equal message is another one.
            self.messages = 0;
            self.last_id = 0;
        }
        let dup = self.kind.habit != Habit::Forgetful;
        let again = |sent: &InFlight| Down::Publish {
            packet_id: sent.packet_id,
            dup,
            message: sent.message,
        };
        self.down = self.in_flight.iter().map(again).collect();
        self.quota = self.receive_maximum.saturating_sub(self.in_flight.len());
        while self.quota > 0
            && let Some(message) = self.queue.pop_front()
        {
            self.deliver(message)?;
        }
        Ok(())
    }
}
