//! Decides whether a message is accepted: those that are not settled yet are bounded in bytes
//! (`max_pending_bytes`) and, at `QoS` 0, in number.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use foldhash::{HashSet, HashSetExt};

use super::{HeldBytes, Settings, reader::Publish, window::PacketId};
use crate::metrics::Metrics;

/// About what an unsettled message takes beside its packet, in bytes: its entries in window and lane.
const OVERHEAD: usize = 1024;
/// What each of its user properties takes beside its text, at most.
const PROPERTY_OVERHEAD: usize = 100;

/// Whether messages are accepted on this connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Messages are accepted.
    Accepting,
    /// The broker has sent more than `max_pending_bytes`. No further message is accepted, since a later
    /// one could overtake an earlier one of its device that was not.
    Overrun,
    /// Nothing more is settled on this connection: due PUBACKs are written, then a DISCONNECT.
    Closing,
    /// The DISCONNECT is written.
    Leaving,
}

/// The bytes of unsettled messages, and the messages that were not accepted.
pub(super) struct Intake {
    max_bytes: usize,
    max_pending: usize,
    /// Bytes of all unsettled messages, wherever they are.
    held_bytes: Arc<AtomicUsize>,
    pub(super) state: State,
    /// The size of the first message that exceeded the bound, in bytes.
    refused_bytes: usize,
    /// Packet identifiers of new messages that were not accepted.
    skipped: HashSet<PacketId>,
}

impl Intake {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            max_bytes: settings.max_pending_bytes,
            max_pending: settings.max_pending.into(),
            held_bytes: Arc::default(),
            state: State::Accepting,
            refused_bytes: 0,
            skipped: HashSet::new(),
        }
    }

    /// Accepts the message if the bounds allow it, and counts its bytes until the result is dropped.
    pub(super) fn take(
        &mut self,
        publish: &Publish,
        pending: impl FnOnce() -> usize,
        metrics: &Metrics,
    ) -> Option<HeldBytes> {
        if self.state != State::Accepting {
            self.skip(publish);
            return None;
        }
        let before = self.held_bytes.load(Ordering::Relaxed);
        let bytes = publish.size + OVERHEAD + publish.properties.user.len() * PROPERTY_OVERHEAD;
        // One message is always accepted, however large: the broker would send it again for ever.
        let over = before > 0 && before + bytes > self.max_bytes;
        // The Receive Maximum does not count messages at QoS 0, and these may be lost: at most once.
        if publish.qos == 0 && (over || pending() >= self.max_pending) {
            tracing::warn!(
                "messages at QoS 0 come faster than they can be handled; they are dropped, since such a message \
                 has no acknowledgement to hold back"
            );
            metrics.qos_0_dropped();
            return None;
        }
        if over {
            tracing::warn!(
                max_pending_bytes = self.max_bytes,
                "the broker sends more than its Receive Maximum allows; no more messages are accepted \
                 until half of those that are pending are settled"
            );
            metrics.overrun();
            self.state = State::Overrun;
            self.refused_bytes = bytes;
            self.skip(publish);
            return None;
        }
        Some(HeldBytes::new(bytes, &self.held_bytes))
    }

    /// The broker sends a message that was not accepted again on the next connection.
    fn skip(&mut self, publish: &Publish) {
        if !publish.dup && publish.qos > 0 {
            self.skipped.insert(publish.packet_id);
        }
    }

    /// After an overrun: whether half of the bytes are settled, so that a new connection is worth it. Not
    /// all of them, or one message that hangs would stop everybody.
    pub(super) fn has_room_again(&self) -> bool {
        let held = self.held_bytes.load(Ordering::Relaxed);
        // The message that exceeded the bound must fit as well, or it would exceed it again.
        let fits = held + self.refused_bytes <= self.max_bytes;
        let room = held == 0 || held <= self.max_bytes / 2 && fits;
        self.state == State::Overrun && room
    }

    /// The connection is gone. Returns the packet identifiers of what was not accepted on it.
    pub(super) fn disconnected(&mut self) -> HashSet<PacketId> {
        self.state = State::Accepting;
        std::mem::take(&mut self.skipped)
    }
}
