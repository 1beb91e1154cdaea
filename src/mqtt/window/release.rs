//! Which PUBACKs may go out: in order, past what is late, and not too far past it.

use super::{Window, carried::Stage};

impl Window {
    /// Everything up to the first that holds back others is acknowledged if it is settled; what is late
    /// is passed by.
    pub(super) fn release(&mut self) {
        while let Some(slot) = self.slots.get(self.held_from)
            && !slot.holds_back()
        {
            let (number, settled) = (self.held_from, slot.is(Stage::Settled));
            if settled && !self.stopped.contains(&number) {
                self.acknowledge_or_stop(number);
            }
            self.held_from += 1;
        }
        self.clock.released(self.held_from);
        for number in self.stopped.clone() {
            if self.may_be_acknowledged(number) {
                self.acknowledge(number);
            }
        }
        self.slots.trim();
    }

    pub(super) fn acknowledge_or_stop(&mut self, number: u64) {
        if self.may_be_acknowledged(number) {
            self.acknowledge(number);
        } else {
            self.passed.insert(number);
            self.stopped.insert(number);
        }
    }

    /// The first that is not acknowledged.
    pub(super) fn oldest(&self) -> u64 {
        self.passed.first().map_or(self.held_from, |passed| self.held_from.min(*passed))
    }

    pub(super) fn may_be_acknowledged(&self, number: u64) -> bool {
        self.cannot_come_round(number) && self.passes_by(number) < self.receive_maximum
    }

    /// Whether no packet identifier can come round while its message is held, if this one is
    /// acknowledged.
    pub(super) fn cannot_come_round(&self, number: u64) -> bool {
        let oldest = self.oldest();
        let (Some(slot), Some(first)) = (self.slots.get(number), self.slots.get(oldest)) else {
            return true;
        };
        let open = |after| self.slots.get(after).is_some_and(|s| !s.is(Stage::Acknowledged));
        if slot.after.is_some_and(open) {
            return false;
        }
        // So many may still come, once this PUBACK is read, before the broker must wait for another.
        let come = self.receive_maximum.saturating_sub(self.unacknowledged) as u64;
        let round = self.age - first.known.age + come.min(self.identifiers / 2);
        number == oldest || round < self.identifiers
    }

    /// How many messages that are not acknowledged came before this one, if they are too many.
    fn passes_by(&self, number: u64) -> usize {
        if self.unacknowledged <= self.receive_maximum {
            return 0;
        }
        let behind = self.slots.range(self.held_from..number);
        let open = behind.filter(|slot| !slot.late && !slot.is(Stage::Acknowledged));
        self.passed.range(..number).count() + open.count()
    }

    pub(super) fn acknowledge(&mut self, number: u64) {
        if number != self.oldest() {
            self.habit.out_of_order(self.slots.numbers().end);
        }
        self.passed.remove(&number);
        self.stopped.remove(&number);
        let most = self.remembered();
        let Some(slot) = self.slots.get_mut(number) else { return };
        slot.known.stage = Stage::Acknowledged;
        let (packet_id, known) = (slot.packet_id, slot.known);
        if self.by_id.get(&packet_id) == Some(&number) {
            self.by_id.remove(&packet_id);
        }
        self.unacknowledged -= 1;
        self.carried.acknowledged(packet_id, known, most);
        self.due.push_back(packet_id);
    }

    /// Nobody is late any more.
    pub(super) fn keep_order(&mut self) {
        self.late.clear();
        self.passed.clear();
        self.stopped.clear();
        self.held_from = self.slots.numbers().start;
        for slot in self.slots.iter_mut() {
            slot.late = false;
        }
        self.release();
    }
}
