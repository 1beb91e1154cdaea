//! Decides which senders are overdue: those that have held back the PUBACKs of settled messages for
//! `ack_hold`.

use std::sync::Arc;

use foldhash::HashSet;
use tokio::time::Instant;

use super::Window;

impl Window {
    /// When [`Window::advance`] has something to do.
    pub fn next_timeout(&self) -> Option<Instant> {
        let overdue = self.hold().and_then(|hold| self.clock.next_look(hold));
        let quiet = self.strictness.next_look(self.redelivery.is_read()).filter(|_| self.is_idle());
        overdue.into_iter().chain(quiet).min()
    }

    /// Makes those senders overdue that have held back settled messages for `ack_hold`.
    pub fn advance(&mut self, now: Instant) {
        if self.is_idle() {
            self.strictness.look(now, self.redelivery.is_read());
        }
        let Some(hold) = self.hold() else { return };
        let Some(waits) = self.clock.front() else { return };
        let stands_still = !self.clock.has_moved() && self.others_are_held(waits);
        self.clock.look(now, stands_still, self.unacknowledged);
        while let Some(number) = self.clock.expired(hold) {
            for sender in self.holding_back(number) {
                self.overdue.put(sender, ());
            }
            for number in self.held_from..self.slots.numbers().end {
                let Some(slot) = self.slots.get_mut(number) else { break };
                if slot.holds_back() && self.overdue.contains(&slot.sender) {
                    slot.overdue = true;
                    self.overtaken.insert(number);
                }
            }
            self.release();
        }
    }

    /// The senders of the messages that this one waits for.
    fn holding_back(&self, number: u64) -> HashSet<Arc<str>> {
        let before = self.slots.range(self.held_from..number);
        before.filter(|slot| slot.holds_back()).map(|slot| slot.sender.clone()).collect()
    }

    /// Whether messages of other senders than those could be settled.
    fn others_are_held(&self, number: u64) -> bool {
        let waits_for = self.holding_back(number);
        let mut behind = self.slots.range(number..self.slots.numbers().end);
        behind.any(|slot| slot.holds_back() && !waits_for.contains(&slot.sender))
    }
}
