//! How much is taken from the broker: messages are held until they are settled, within bounds.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{Held, Settings, reader::Publish, window::PacketId};
use crate::metrics::Metrics;

/// What a message that is held takes beside its packet, about, in bytes: its places in window and lane.
const OVERHEAD: usize = 1024;
/// What each of its user properties takes beside its text.
const PROPERTY_OVERHEAD: usize = 100;

/// Whether messages are taken on this connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Taking {
    /// They are.
    Yes,
    /// The broker has sent more than may be held: no more of them, lest a later message overtake an
    /// earlier one of its device.
    Overrun,
    /// Nothing more is settled on it: what is due goes out, then a DISCONNECT.
    Closing,
    /// The DISCONNECT is on its way.
    Leaving,
}

/// What is held, and what was not taken.
pub(super) struct Intake {
    max_bytes: usize,
    max_pending: usize,
    /// Bytes of messages that are held, wherever they are.
    held: Arc<AtomicUsize>,
    pub(super) taking: Taking,
    /// The size of the first message that was too much, in bytes.
    refused: usize,
    /// Packet identifiers of new messages that were not taken.
    skipped: HashSet<PacketId>,
}

impl Intake {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            max_bytes: settings.max_pending_bytes,
            max_pending: settings.max_pending.into(),
            held: Arc::default(),
            taking: Taking::Yes,
            refused: 0,
            skipped: HashSet::new(),
        }
    }

    /// Takes the message, if it may be taken: its share of the bytes.
    pub(super) fn take(
        &mut self,
        publish: &Publish,
        pending: impl FnOnce() -> usize,
        metrics: &Metrics,
    ) -> Option<Held> {
        if self.taking != Taking::Yes {
            self.skip(publish);
            return None;
        }
        let before = self.held.load(Ordering::Relaxed);
        let bytes = publish.size + OVERHEAD + publish.properties.user.len() * PROPERTY_OVERHEAD;
        // One message is always taken, however large: it would come again for ever.
        let over = before > 0 && before + bytes > self.max_bytes;
        // QoS 0 knows no Receive Maximum; at most once includes not at all.
        if publish.qos == 0 && (over || pending() >= self.max_pending) {
            tracing::warn!(
                "messages at QoS 0 come faster than they are handled; dropped, as nobody can be told"
            );
            metrics.qos_0_dropped();
            return None;
        }
        if over {
            tracing::warn!(
                max_pending_bytes = self.max_bytes,
                "the broker sends more than its Receive Maximum allows; taking no more until what is \
                 held is through"
            );
            metrics.overrun();
            self.taking = Taking::Overrun;
            self.refused = bytes;
            self.skip(publish);
            return None;
        }
        Some(Held::new(bytes, &self.held))
    }

    /// A message that is not taken comes again on the next connection.
    fn skip(&mut self, publish: &Publish) {
        if !publish.dup && publish.qos > 0 {
            self.skipped.insert(publish.packet_id);
        }
    }

    /// More came than may be held, and of what was taken enough is through to take more: not all of it,
    /// lest one message that hangs stop everybody.
    pub(super) fn has_room_again(&self) -> bool {
        let held = self.held.load(Ordering::Relaxed);
        // Also the message that was too much must fit, or it would be all over again.
        let room = held == 0 || held <= self.max_bytes / 2 && held + self.refused <= self.max_bytes;
        self.taking == Taking::Overrun && room
    }

    /// The connection is gone; what was not taken on it.
    pub(super) fn disconnected(&mut self) -> HashSet<PacketId> {
        self.taking = Taking::Yes;
        std::mem::take(&mut self.skipped)
    }
}
