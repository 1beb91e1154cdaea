//! Whether the broker heeds PUBACKs that come out of order.
//!
//! Most do. EMQX with durable sessions forgets them, and the session then stands still for good. So
//! when nothing moves any more after such a PUBACK, the gateway connects again once: what comes again
//! although the broker had read its PUBACK shows a broker that wants order, and it gets it. If nothing
//! comes again, it is never asked again in this session.

use std::time::Duration;

use tokio::time::Instant;

/// How long nothing may move before a broker is suspected.
pub(super) const QUIET: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Order {
    #[default]
    Unknown,
    Any,
    Strict,
}

#[derive(Debug, Default)]
pub(super) struct Habit {
    order: Order,
    /// How many messages had come on this connection at its first PUBACK out of order.
    since: Option<u64>,
    /// When something last moved.
    moved: Option<Instant>,
    /// Wanted: a ping, whose answer proves what the broker has read; and then, whether it was taken.
    ping: Option<bool>,
    leaving: bool,
    /// This connection was made to find out.
    asking: bool,
}

impl Habit {
    /// It gets its PUBACKs in order, at any price.
    pub(super) fn is_strict(&self) -> bool {
        self.order == Order::Strict
    }

    /// Whether it may not have heeded a PUBACK of this connection that it has read.
    pub(super) fn is_doubtful(&self) -> bool {
        self.since.is_some() && self.order != Order::Any
    }

    /// Something came or was settled.
    pub(super) fn moved(&mut self, now: Instant) {
        (self.moved, self.ping) = (Some(now), None);
    }

    /// A PUBACK goes out of order, when so many messages have come on this connection.
    pub(super) fn out_of_order(&mut self, come: u64) {
        self.since.get_or_insert(come);
    }

    /// So many messages have come on this connection: more than a Receive Maximum past the first
    /// PUBACK that it might not have heeded.
    pub(super) fn come(&mut self, come: u64, receive_maximum: usize) {
        let past = |since| come - since > receive_maximum as u64;
        if self.order == Order::Unknown && self.since.is_some_and(past) {
            self.order = Order::Any;
        }
    }

    /// When to look, if nothing is left to be settled but what is late.
    pub(super) fn next_look(&self, read: bool) -> Option<Instant> {
        let open = self.is_doubtful() && !self.leaving && (read || self.ping.is_none());
        self.moved.filter(|_| open).map(|moved| moved + QUIET)
    }

    /// Nothing is left to be settled but what is late; the broker has read every PUBACK, or not.
    pub(super) fn look(&mut self, now: Instant, read: bool) {
        if self.next_look(read).is_some_and(|at| at <= now) {
            if read {
                self.leaving = true;
            } else {
                self.ping = Some(false);
            }
        }
    }

    /// Whether a ping is to be sent, said once.
    pub(super) fn wants_ping(&mut self) -> bool {
        self.ping.as_mut().is_some_and(|taken| !std::mem::replace(taken, true))
    }

    /// A ping was answered.
    pub(super) fn ping_answered(&mut self) {
        self.ping = None;
    }

    /// To find out, leave and connect again.
    pub(super) fn is_leaving(&self) -> bool {
        self.leaving
    }

    /// The connection is gone.
    pub(super) fn disconnected(&mut self) {
        (self.since, self.moved, self.ping) = (None, None, None);
        self.asking = std::mem::take(&mut self.leaving);
    }

    /// A connection stands. Another session may be another broker.
    pub(super) fn connected(&mut self, session_present: bool) {
        if !session_present {
            *self = Self::default();
        }
    }

    /// What it had read the PUBACK of has come again. Whether that is news.
    pub(super) fn not_heeded(&mut self) -> bool {
        let news = self.order != Order::Strict;
        self.order = Order::Strict;
        news
    }

    /// It has sent again what it has.
    pub(super) fn repeated(&mut self) {
        if std::mem::take(&mut self.asking) && self.order == Order::Unknown {
            self.order = Order::Any;
        }
    }
}
