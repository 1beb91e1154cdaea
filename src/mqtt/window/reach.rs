//! How far PUBACKs may go: up to the first message that would overtake as many unacknowledged ones as the
//! Receive Maximum.
//!
//! The place only moves forward, past each message once: a settlement costs the same however many messages
//! are in the window.

use super::{redelivery::Stage, slots::Slots};

#[derive(Debug)]
pub(super) struct Reach {
    receive_maximum: usize,
    /// The number of the first message out of reach, or the one after the last.
    end: u64,
    /// How many messages before it are not acknowledged.
    unacknowledged: usize,
}

impl Reach {
    pub(super) fn new(receive_maximum: usize) -> Self {
        Self { receive_maximum, end: 0, unacknowledged: 0 }
    }

    /// Whether a PUBACK of this message would overtake fewer messages than the Receive Maximum.
    pub(super) fn contains(&self, number: u64) -> bool {
        number < self.end
    }

    /// A message was acknowledged.
    pub(super) fn acknowledged(&mut self, number: u64, slots: &Slots) {
        if self.contains(number) {
            self.unacknowledged -= 1;
        }
        self.extend(slots);
    }

    /// A message came, or one was acknowledged.
    pub(super) fn extend(&mut self, slots: &Slots) {
        while self.unacknowledged < self.receive_maximum && self.end < slots.numbers().end {
            let slot = slots.get(self.end);
            let open = slot.is_some_and(|slot| !slot.is(Stage::Acknowledged));
            self.unacknowledged += usize::from(open);
            self.end += 1;
        }
    }

    /// The connection is gone, and all its messages.
    pub(super) fn disconnected(&mut self) {
        (self.end, self.unacknowledged) = (0, 0);
    }
}
