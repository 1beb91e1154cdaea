//! The MQTT session: outlives connections, turns packets into deliveries and commands into packets, and
//! alone decides what is sent.
//!
//! Pure: no socket, no clock, no `await`. Packets go in by [`Session::handle`], commands by
//! [`Session::command`], time by [`Session::advance`]; what is to be sent comes out of
//! [`Session::transmit`], and [`Session::next_timeout`] says when time matters.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::{
    Command, Delivery, Receipt, Settings, Status, Subscriptions,
    ending::Ending,
    intake::{Intake, State},
    legal::legal,
    limits,
    link::Link,
    one_off::expiry,
    outbox::{Entry, Next, Outbox},
    packet, publish_result,
    reader::{ConnAck, Incoming, Publish},
    subscriber::Subscriber,
    window::{Arrival, Arrived, Window},
};
use crate::{
    fingerprint::fingerprint,
    message::{Message, Publication},
    metrics::{Acknowledgements, Metrics},
    secrets::Secret,
    topic::Pattern,
};

/// How many bytes are encoded ahead of the socket; the rest stays in the outbox, which is bounded.
const WRITTEN_AHEAD: usize = 64 * 1024;

/// The MQTT session as this process sees it.
pub(super) struct Session {
    settings: Settings,
    subscriber: Subscriber,
    commands: mpsc::WeakSender<Command>,
    metrics: Arc<Metrics>,
    acknowledgements: Acknowledgements,
    window: Window,
    outbox: Outbox,
    intake: Intake,
    /// The connection, once the broker has accepted it.
    link: Option<Link>,
    /// This process has been connected before, so the broker should still have the session.
    connected_before: bool,
    /// See [`super::Connection::receive_window`].
    receive_window: Arc<AtomicUsize>,
    /// [`Command::Finish`] came.
    finishing: bool,
    /// [`Command::Close`] came: the PUBACKs of publications are not waited for any more.
    closing: bool,
}

impl Session {
    pub(super) fn new(
        settings: Settings,
        subscriptions: Subscriptions,
        commands: mpsc::WeakSender<Command>,
        metrics: Arc<Metrics>,
        status: watch::Sender<Status>,
    ) -> Self {
        Self {
            window: Window::new(settings.ack_hold, settings.max_pending),
            outbox: Outbox::new(),
            acknowledgements: metrics.acknowledgements(&subscriptions.names),
            intake: Intake::new(&settings),
            subscriber: Subscriber::new(subscriptions, &settings, status),
            receive_window: Arc::new(AtomicUsize::new(settings.max_pending.into())),
            settings,
            commands,
            metrics,
            link: None,
            connected_before: false,
            finishing: false,
            closing: false,
        }
    }

    pub(super) fn receive_window(&self) -> Arc<AtomicUsize> {
        self.receive_window.clone()
    }

    /// Writes the CONNECT of a new connection.
    pub(super) fn connecting(&self, password: Option<&Secret>, out: &mut BytesMut) {
        let start = packet::Start { clean: false, expiry: expiry(&self.settings) };
        packet::connect(&self.settings, start, password, out);
    }

    /// The connection is gone. Returns how long it lasted, if the broker had accepted it.
    pub(super) fn disconnected(
        &mut self,
        ending: Option<&Ending>,
        now: Instant,
    ) -> Option<Duration> {
        self.window.disconnected(&self.intake.disconnected());
        let maybe_a_publication = ending.is_some_and(Ending::may_be_a_publication);
        if let Some(poison) = self.outbox.disconnected(maybe_a_publication, now) {
            self.ended(&poison, publish_result::poison);
        }
        self.link.take().map(|link| link.lasted(now))
    }

    /// Whether the outbox has room for more commands.
    pub(super) fn has_room(&self) -> bool {
        self.outbox.has_room()
    }

    /// Whether the task has been told to end and nothing is left to send.
    pub(super) fn is_finished(&self) -> bool {
        self.finishing && self.outbox.is_empty() || self.closing && self.outbox.is_sent()
    }

    /// Whether the task has been told to end, whatever is left to send.
    pub(super) fn is_finishing(&self) -> bool {
        self.finishing || self.closing
    }

    /// The patterns whose subscriptions a drain has ended, or begun to end.
    pub(super) fn ended_subscriptions(&self) -> &[Pattern] {
        self.subscriber.ended()
    }

    /// Whether DISCONNECT is written: the broker closes the connection once it has read everything.
    pub(super) fn is_leaving(&self) -> bool {
        self.intake.state == State::Leaving
    }

    /// Whether a publication is suspected to be poison: the next connection tells, so it is made soon.
    pub(super) fn is_suspicious(&self) -> bool {
        self.outbox.is_suspicious()
    }

    /// Whether the broker has accepted the connection.
    pub(super) fn is_connected(&self) -> bool {
        self.link.is_some()
    }

    /// Keep Alive in force: the broker's Server Keep Alive, or our own where it says 0 or nothing.
    pub(super) fn keep_alive(&self) -> Duration {
        self.link.as_ref().map_or(self.settings.keep_alive, Link::keep_alive)
    }

    /// When [`Session::advance`] has something to do.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        let link = self.link.as_ref()?;
        let others = [self.window.next_timeout(), self.subscriber.next_timeout()];
        others.into_iter().flatten().chain([link.next_ping()]).min()
    }

    /// Does what is due at `now`: pings, overdue senders, the start of a drain.
    pub(super) fn advance(&mut self, now: Instant) {
        self.window.advance(now);
        let Some(link) = &mut self.link else { return };
        link.advance(now);
        if self.window.wants_ping() {
            link.ping(now);
        }
        self.subscriber.advance(now);
    }

    pub(super) fn command(&mut self, command: Command) {
        match command {
            Command::Publish(publication) => match legal(publication) {
                Ok(publication) => self.outbox.push(Entry::Publish(publication)),
                Err(publication) => self.ended(&publication, publish_result::illegal),
            },
            Command::Settle(ticket) => self.outbox.push(Entry::Settled(ticket)),
            Command::Trace(ticket, span) => self.window.trace(ticket, span),
            Command::Finish => self.finishing = true,
            Command::Close => self.closing = true,
        }
    }

    /// Handles a packet of the broker.
    ///
    /// # Errors
    /// When the broker has ended the connection by it.
    pub(super) fn handle(
        &mut self,
        packet: Incoming,
        now: Instant,
        deliver: &mut impl FnMut(Delivery),
    ) -> Result<(), Ending> {
        match packet {
            Incoming::Disconnect { reason, text } => return Err(Ending::disconnect(reason, &text)),
            Incoming::ConnAck(connack) if self.link.is_none() => self.connected(connack, now)?,
            // Before CONNACK nothing else may come [MQTT-3.2.0-1].
            _ if self.link.is_none() => {}
            Incoming::Publish(publish) => self.arrived(publish, now, deliver),
            Incoming::PubAck { packet_id, reason } => {
                if let Some(publication) = self.outbox.take(packet_id) {
                    self.ended(&publication, |it, metrics| {
                        publish_result::acknowledged(it, reason, metrics);
                    });
                }
            }
            Incoming::PubRel { packet_id } => {
                self.link.iter_mut().for_each(|link| link.released(packet_id));
            }
            Incoming::PingResp => self.window.ping_answered(),
            Incoming::SubAck { packet_id, reasons } => {
                self.subscriber.subscribed(packet_id, &reasons);
            }
            Incoming::UnsubAck { packet_id, reasons } => {
                self.subscriber.unsubscribed(packet_id, &reasons);
            }
            Incoming::ConnAck(_) | Incoming::Other(_) => {}
        }
        Ok(())
    }

    /// What became of a publication is known; if it is a dead letter, its message is settled.
    fn ended(&mut self, publication: &Publication, tell: impl FnOnce(&Publication, &Metrics)) {
        tell(publication, &self.metrics);
        if let Some(ticket) = publication.settles() {
            self.outbox.push(Entry::Settled(ticket));
        }
    }

    fn connected(&mut self, connack: ConnAck, now: Instant) -> Result<(), Ending> {
        let ConnAck { old, session_present, reason, text, limits } = connack;
        if old {
            return Err(Ending::old_protocol());
        }
        if reason != 0 {
            return Err(Ending::refused(reason, &text));
        }
        self.metrics.connected();
        let receive_maximum = limits.receive_maximum;
        let window = self.settings.max_pending.min(receive_maximum);
        self.receive_window.store(window.into(), Ordering::Relaxed);
        tracing::info!(
            broker = %self.settings.address,
            client_id = &*self.settings.client_id,
            session_present,
            receive_maximum,
            "connected to the broker"
        );
        for warning in limits::warnings(&self.settings, &limits) {
            tracing::warn!("{warning}");
        }
        if !session_present {
            self.no_session();
        }
        self.connected_before = true;
        self.window.connected(session_present);
        self.outbox.connected(receive_maximum);
        self.subscriber.connected(session_present, limits.subscription_identifiers, now);
        self.link = Some(Link::new(limits, self.settings.keep_alive, now));
        Ok(())
    }

    /// The broker has no session of this client identifier.
    fn no_session(&self) {
        if self.connected_before {
            tracing::error!(
                "the broker has lost the session, and with it every message it held for it; give the \
                 broker persistence and a session_expiry longer than any interruption"
            );
            self.metrics.session_lost();
        } else {
            tracing::warn!(
                client_id = &*self.settings.client_id,
                "the broker has no session of this client id: a first start, or what waited in it is \
                 lost"
            );
        }
    }

    fn arrived(&mut self, publish: Publish, now: Instant, deliver: &mut impl FnMut(Delivery)) {
        // Without a sender the exchange is gone, and nothing could settle the message.
        let Some(commands) = self.commands.upgrade() else { return };
        let state = self.intake.state;
        // 1. The message is accepted, gets its ticket, and goes to its lane.
        let pending = || self.window.pending();
        let Some(held_bytes) = self.intake.take(&publish, pending, &self.metrics) else {
            if self.intake.state != state {
                self.subscriber.overrun();
            }
            return;
        };
        let Publish { dup, qos, packet_id, topic, payload, properties, subscription_ids, .. } =
            publish;
        let patterns = self.subscriber.subscriptions().patterns.clone();
        let found = patterns.find(&topic).filter(|_| publish.fault.is_none());
        if let Some(fault) = publish.fault {
            tracing::warn!(topic, "a message cannot be taken: {fault}");
        } else {
            let is_stray = found.is_none() && !patterns.brings_beside(&topic);
            self.subscriber.arrived(&topic, &subscription_ids, is_stray);
        }
        let (subscription, captures) = found.unzip();
        let captures = captures.unwrap_or_default();
        let sender = subscription.and_then(|row| patterns.sender(row, &captures));
        let sender: Arc<str> = sender.unwrap_or_else(|| topic.as_str().into());
        let arrived = Arrived {
            packet_id,
            dup,
            fingerprint: fingerprint((&topic, &payload, &properties.correlation_data)),
            sender: sender.clone(),
            subscription,
        };
        if qos == 2 {
            self.link.iter_mut().for_each(|link| link.came_at_qos_2(packet_id));
        }
        let ticket = match self.window.arrive(arrived, now) {
            Arrival::New(ticket) => ticket,
            Arrival::InProgress => return self.metrics.redelivered(),
            Arrival::Settled(ticket) => {
                self.metrics.redelivered();
                return self.outbox.push(Entry::Settled(ticket));
            }
        };
        deliver(Delivery {
            message: Message::new(topic, payload, properties, now),
            subscription,
            captures,
            sender,
            receipt: Receipt { ticket, commands, held_bytes },
        });
    }

    /// Writes what may be sent now: acknowledgements that are due, then the outbox, whose settlements
    /// make more acknowledgements due; at the end of the connection a DISCONNECT, after which nothing is
    /// sent [MQTT-3.14.4-1].
    pub(super) fn transmit(&mut self, out: &mut BytesMut, now: Instant) {
        if self.link.is_none() || self.is_leaving() {
            return;
        }
        self.subscriber.transmit(out);
        self.transmit_acknowledgements(out, now);
        if self.intake.state != State::Closing {
            let through = self.transmit_outbox(out, now);
            let again = self.intake.has_room_again() || self.window.must_reconnect();
            let leave = again && self.outbox.is_empty() || self.is_finished();
            if !through || !leave {
                return;
            }
            self.window.close();
            self.intake.state = State::Closing;
            self.transmit_acknowledgements(out, now);
        }
        packet::disconnect(false, out);
        self.intake.state = State::Leaving;
    }

    fn transmit_acknowledgements(&mut self, out: &mut BytesMut, now: Instant) {
        let Some(link) = &mut self.link else { return };
        link.acknowledge(&mut self.window, &self.acknowledgements, out, now);
    }

    /// `false` if more is waiting than may be encoded ahead.
    fn transmit_outbox(&mut self, out: &mut BytesMut, now: Instant) -> bool {
        let Some(link) = &self.link else { return true };
        let at_most_once = link.is_at_most_once();
        let limits = link.publish_limits();
        while out.len() < WRITTEN_AHEAD {
            match self.outbox.next(now) {
                None => return true,
                // 9. Everything published before is on this connection: the PUBACK may follow.
                Some(Next::Settled(ticket)) => {
                    self.window.settle(ticket, now);
                    self.transmit_acknowledgements(out, now);
                }
                Some(Next::Publish(packet_id, publication)) => {
                    let wire_id = if at_most_once { 0 } else { packet_id };
                    let fits = packet::publish(publication, wire_id, limits, out);
                    if fits && !at_most_once {
                        continue;
                    }
                    let Some(publication) = self.outbox.take(packet_id) else { continue };
                    match publication.shorter() {
                        _ if fits => self.ended(&publication, |_, _| {}),
                        Some(shorter) => self.outbox.push_first(Box::new(shorter)),
                        None => self.ended(&publication, publish_result::too_large),
                    }
                }
            }
        }
        false
    }
}

#[cfg(test)]
mod tests;
