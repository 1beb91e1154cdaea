//! The messages of a connection, numbered in order of arrival.

use std::{collections::VecDeque, ops::Range, sync::Arc};

use tokio::time::Instant;

use super::{
    PacketId,
    redelivery::{Known, Stage},
};
use crate::{topic::PatternIndex, traces::Span};

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) packet_id: PacketId,
    pub(super) known: Known,
    pub(super) sender: Arc<str>,
    pub(super) subscription: Option<PatternIndex>,
    /// When it came.
    pub(super) at: Instant,
    /// It does not hold back later PUBACKs.
    pub(super) overdue: bool,
    /// The number of an earlier, unacknowledged message with the same packet identifier: a fault of the
    /// broker.
    pub(super) after: Option<u64>,
    /// The span of the message, where traces are on.
    pub(super) trace: Option<Span>,
}

impl Slot {
    pub(super) fn is(&self, stage: Stage) -> bool {
        self.known.stage == stage
    }

    /// Whether it holds back the PUBACKs of later messages.
    pub(super) fn holds_back(&self) -> bool {
        self.is(Stage::InProgress) && !self.overdue
    }
}

/// From the first that is not acknowledged to the last that came.
#[derive(Debug, Default)]
pub(super) struct Slots {
    slots: VecDeque<Slot>,
    first: u64,
}

impl Slots {
    /// The numbers of all slots; the end is how many messages have arrived on the connection.
    pub(super) fn numbers(&self) -> Range<u64> {
        self.first..self.first + self.slots.len() as u64
    }

    fn index(&self, number: u64) -> Option<usize> {
        usize::try_from(number.checked_sub(self.first)?).ok()
    }

    pub(super) fn get(&self, number: u64) -> Option<&Slot> {
        self.slots.get(self.index(number)?)
    }

    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut Slot> {
        let index = self.index(number)?;
        self.slots.get_mut(index)
    }

    /// Adds a slot and returns its number.
    pub(super) fn push(&mut self, slot: Slot) -> u64 {
        self.slots.push_back(slot);
        self.numbers().end - 1
    }

    /// Drops acknowledged slots from the front.
    pub(super) fn trim(&mut self) {
        while self.slots.pop_front_if(|slot| slot.is(Stage::Acknowledged)).is_some() {
            self.first += 1;
        }
    }

    /// The slots with these numbers.
    pub(super) fn range(&self, numbers: Range<u64>) -> impl Iterator<Item = &Slot> {
        numbers.filter_map(|number| self.get(number))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Slot> {
        self.slots.iter_mut()
    }

    /// Takes all slots; numbering starts anew.
    pub(super) fn take(&mut self) -> VecDeque<Slot> {
        self.first = 0;
        std::mem::take(&mut self.slots)
    }
}
