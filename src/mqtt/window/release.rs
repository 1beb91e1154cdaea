//! Decides which PUBACKs are due: in order of arrival, past overdue messages, and not too far past them.

use super::{Due, Window, redelivery::Stage};

impl Window {
    /// Acknowledges settled messages up to the first one that holds back others; overdue ones are
    /// overtaken.
    pub(super) fn release(&mut self) {
        while let Some(slot) = self.slots.get(self.held_from)
            && !slot.holds_back()
        {
            let (number, settled) = (self.held_from, slot.is(Stage::Settled));
            if settled && !self.withheld.contains(&number) {
                self.acknowledge_or_withhold(number);
            }
            self.held_from += 1;
        }
        self.clock.released(self.held_from);
        let mut next = 0;
        while let Some(number) = self.withheld.range(next..).next().copied()
            && self.reach.contains(number)
        {
            if self.cannot_come_round(number) {
                self.acknowledge(number);
            }
            next = number + 1;
        }
        self.slots.trim();
    }

    pub(super) fn acknowledge_or_withhold(&mut self, number: u64) {
        if self.may_be_acknowledged(number) {
            self.acknowledge(number);
        } else {
            self.overtaken.insert(number);
            self.withheld.insert(number);
        }
    }

    /// The number of the first message that is not acknowledged.
    pub(super) fn oldest(&self) -> u64 {
        self.overtaken.first().map_or(self.held_from, |passed| self.held_from.min(*passed))
    }

    pub(super) fn may_be_acknowledged(&self, number: u64) -> bool {
        self.cannot_come_round(number) && self.reach.contains(number)
    }

    /// Whether this message can be acknowledged without the broker's packet identifiers coming round to one
    /// whose message is not acknowledged yet.
    pub(super) fn cannot_come_round(&self, number: u64) -> bool {
        let oldest = self.oldest();
        let (Some(slot), Some(first)) = (self.slots.get(number), self.slots.get(oldest)) else {
            return true;
        };
        let open = |after| self.slots.get(after).is_some_and(|s| !s.is(Stage::Acknowledged));
        if slot.after.is_some_and(open) {
            return false;
        }
        // How many more messages the broker can send, once it has read this PUBACK, before it needs another.
        let come = self.receive_maximum.saturating_sub(self.unacknowledged) as u64;
        let round = self.age - first.known.age + come.min(self.identifiers / 2);
        number == oldest || round < self.identifiers
    }

    pub(super) fn acknowledge(&mut self, number: u64) {
        if number != self.oldest() {
            self.strictness.out_of_order(self.slots.numbers().end);
        }
        self.overtaken.remove(&number);
        self.withheld.remove(&number);
        let most = self.remembered();
        let Some(slot) = self.slots.get_mut(number) else { return };
        slot.known.stage = Stage::Acknowledged;
        slot.trace = None;
        let (packet_id, known) = (slot.packet_id, slot.known);
        let came = Some((slot.at, slot.subscription));
        if self.by_id.get(&packet_id) == Some(&number) {
            self.by_id.remove(&packet_id);
        }
        self.unacknowledged -= 1;
        self.reach.acknowledged(number, &self.slots);
        self.redelivery.acknowledged(packet_id, known, most);
        self.due.push_back(Due { packet_id, came });
    }

    /// From now on PUBACKs are sent in order of arrival only: no sender is overdue any more.
    pub(super) fn keep_order(&mut self) {
        self.overdue.clear();
        self.overtaken.clear();
        self.withheld.clear();
        self.held_from = self.slots.numbers().start;
        for slot in self.slots.iter_mut() {
            slot.overdue = false;
        }
        self.release();
    }
}
