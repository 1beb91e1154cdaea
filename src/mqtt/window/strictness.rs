//! Whether the broker insists on PUBACKs in order.
//!
//! Most brokers do not. EMQX with durable sessions ignores a PUBACK out of order, and the session then
//! stands still for ever. So when nothing moves any more after such a PUBACK, the gateway reconnects once:
//! if the broker sends a message again whose PUBACK it had read, it insists on the order, and gets it from
//! then on. If it sends nothing again, the question is settled for this session.

use std::time::Duration;

use tokio::time::Instant;

/// How long nothing must move before the broker is suspected.
pub(super) const QUIET: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Order {
    #[default]
    Unknown,
    Any,
    Strict,
}

#[derive(Debug, Default)]
pub(super) struct Strictness {
    order: Order,
    /// How many messages had come on this connection at its first PUBACK out of order.
    since: Option<u64>,
    /// When a message last arrived or was settled.
    moved: Option<Instant>,
    /// A ping is wanted, whose answer proves what the broker has read; `true` once it is being sent.
    ping: Option<bool>,
    leaving: bool,
    /// This connection was made to find out.
    asking: bool,
}

impl Strictness {
    /// Whether the broker gets its PUBACKs in order, whatever `ack_hold` says.
    pub(super) fn is_strict(&self) -> bool {
        self.order == Order::Strict
    }

    /// Whether the broker may have ignored a PUBACK of this connection that it has read.
    pub(super) fn is_doubtful(&self) -> bool {
        self.since.is_some() && self.order != Order::Any
    }

    /// A message arrived or was settled.
    pub(super) fn moved(&mut self, now: Instant) {
        (self.moved, self.ping) = (Some(now), None);
    }

    /// A PUBACK is due out of order, when `come` messages have arrived on this connection.
    pub(super) fn out_of_order(&mut self, come: u64) {
        self.since.get_or_insert(come);
    }

    /// `come` messages have arrived on this connection. If that is more than the Receive Maximum since the
    /// first PUBACK out of order, the broker has heeded it.
    pub(super) fn come(&mut self, come: u64, receive_maximum: usize) {
        let past = |since| come - since > receive_maximum as u64;
        if self.order == Order::Unknown && self.since.is_some_and(past) {
            self.order = Order::Any;
        }
    }

    /// When [`Strictness::look`] has something to do, while only overdue messages are unsettled. `read`: the
    /// broker has read every PUBACK.
    pub(super) fn next_look(&self, read: bool) -> Option<Instant> {
        let open = self.is_doubtful() && !self.leaving && (read || self.ping.is_none());
        self.moved.filter(|_| open).map(|moved| moved + QUIET)
    }

    /// Only overdue messages are unsettled: asks for a ping, or for the new connection that tells.
    pub(super) fn look(&mut self, now: Instant, read: bool) {
        if self.next_look(read).is_some_and(|at| at <= now) {
            if read {
                self.leaving = true;
            } else {
                self.ping = Some(false);
            }
        }
    }

    /// Whether a ping is to be sent; `true` once for each.
    pub(super) fn wants_ping(&mut self) -> bool {
        self.ping.as_mut().is_some_and(|taken| !std::mem::replace(taken, true))
    }

    /// A ping was answered.
    pub(super) fn ping_answered(&mut self) {
        self.ping = None;
    }

    /// Whether the gateway must reconnect to find out.
    pub(super) fn is_leaving(&self) -> bool {
        self.leaving
    }

    /// The connection is gone.
    pub(super) fn disconnected(&mut self) {
        (self.since, self.moved, self.ping) = (None, None, None);
        self.asking = std::mem::take(&mut self.leaving);
    }

    /// The broker has accepted a connection. A new session may be on another broker.
    pub(super) fn connected(&mut self, session_present: bool) {
        if !session_present {
            *self = Self::default();
        }
    }

    /// A message came again whose PUBACK the broker had read. `true` if that was not known yet.
    pub(super) fn not_heeded(&mut self) -> bool {
        let news = self.order != Order::Strict;
        self.order = Order::Strict;
        news
    }

    /// Redelivery is complete.
    pub(super) fn repeated(&mut self) {
        if std::mem::take(&mut self.asking) && self.order == Order::Unknown {
            self.order = Order::Any;
        }
    }
}
