//! What belongs to one connection, from the broker's CONNACK on: its limits, pings, and what is to be
//! acknowledged otherwise than by a PUBACK.

use std::{collections::HashSet, time::Duration};

use bytes::BytesMut;
use tokio::time::Instant;

use super::{
    packet::{self, PublishLimits},
    reader::Limits,
    window::{Due, PacketId, Window},
};
use crate::metrics::Acknowledgements;

/// A connection that the broker has accepted.
pub(super) struct Link {
    since: Instant,
    limits: Limits,
    keep_alive: Duration,
    /// When the next ping is due. On a busy connection as well: the answer proves what the broker has
    /// read.
    ping_at: Instant,
    ping: bool,
    /// Messages that came at `QoS` 2, although the subscription asks for `QoS` 1: they get a PUBREC instead of a PUBACK.
    qos_2: HashSet<PacketId>,
    /// Those that the broker has released: a PUBCOMP is due.
    released: Vec<PacketId>,
}

impl Link {
    pub(super) fn new(limits: Limits, keep_alive: Duration, now: Instant) -> Self {
        // 0 turns pings off; we want to know that the broker lives, and what it has read.
        let told = limits.server_keep_alive.filter(|seconds| *seconds > 0);
        let keep_alive = told.map_or(keep_alive, |seconds| Duration::from_secs(seconds.into()));
        Self {
            since: now,
            limits,
            keep_alive,
            ping_at: now + keep_alive,
            ping: false,
            qos_2: HashSet::new(),
            released: Vec::new(),
        }
    }

    pub(super) fn lasted(&self, now: Instant) -> Duration {
        now - self.since
    }

    pub(super) fn keep_alive(&self) -> Duration {
        self.keep_alive
    }

    pub(super) fn next_ping(&self) -> Instant {
        self.ping_at
    }

    /// Time has passed.
    pub(super) fn advance(&mut self, now: Instant) {
        if self.ping_at <= now {
            self.ping(now);
        }
    }

    /// A ping is due now.
    pub(super) fn ping(&mut self, now: Instant) {
        self.ping_at = now + self.keep_alive;
        self.ping = true;
    }

    /// Whether the broker takes no publication above `QoS` 0 [MQTT-3.2.2-11].
    pub(super) fn is_at_most_once(&self) -> bool {
        self.limits.maximum_qos == 0
    }

    /// What the broker takes of publications.
    pub(super) fn publish_limits(&self) -> PublishLimits {
        let max_packet = self.limits.maximum_packet_size.map_or(usize::MAX, |most| most as usize);
        PublishLimits { max_packet, retain: self.limits.retain }
    }

    pub(super) fn came_at_qos_2(&mut self, packet_id: PacketId) {
        self.qos_2.insert(packet_id);
    }

    /// PUBREL came.
    pub(super) fn released(&mut self, packet_id: PacketId) {
        self.released.push(packet_id);
    }

    /// Writes what is due: a ping, acknowledgements.
    pub(super) fn acknowledge(
        &mut self,
        window: &mut Window,
        counted: &Acknowledgements,
        out: &mut BytesMut,
        now: Instant,
    ) {
        if std::mem::take(&mut self.ping) {
            packet::ping(out);
        }
        for packet_id in self.released.drain(..) {
            packet::pubcomp(packet_id, out);
        }
        while let Some(Due { packet_id, came }) = window.next_due() {
            if let Some((at, subscription)) = came {
                counted.written(subscription, now - at);
            }
            if self.qos_2.remove(&packet_id) {
                packet::pubrec(packet_id, out);
            } else {
                packet::puback(packet_id, out);
            }
        }
    }
}
