//! What outlives a connection: messages held, publications on their way. Turns packets into
//! deliveries and commands into packets, and alone decides what goes on the wire.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use rumqttc::{
    Outgoing,
    v5::{
        AsyncClient, Event, Incoming,
        mqttbytes::{
            QoS,
            v5::{ConnAck, PubAckReason, Publish},
        },
    },
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::{
    Command, Delivery, Held, Receipt, Settings, Status, Subscriptions, fate,
    options::MAX_IN_FLIGHT,
    outbox::{Entry, Outbox},
    packet,
    subscriber::Subscriber,
    window::{Arrival, Arrived, PacketId, Window},
};
use crate::{
    fingerprint::fingerprint,
    message::{Message, Publication},
    metrics::Metrics,
    topic::Captures,
};

/// Requests that wait inside the client library; more wait here.
pub(super) const REQUESTS: usize = 64;
/// What the library's size of a packet can leave out, in bytes.
const SIZE_MARGIN: usize = 8;
/// What a message that is held takes beside its packet, about, in bytes: its properties, its places in
/// window and lane.
const OVERHEAD: usize = 1024;

/// The MQTT session as this process sees it.
pub(super) struct Session {
    settings: Settings,
    subscriber: Subscriber,
    commands: mpsc::WeakSender<Command>,
    metrics: Arc<Metrics>,
    window: Window,
    outbox: Outbox,
    /// The connection's client, once there is a connection.
    client: Option<AsyncClient>,
    /// Since when the connection stands; only then may anything go out.
    connected_at: Option<Instant>,
    /// This process has had a session, so the next connection should find it.
    expected: bool,
    /// Largest packet the broker takes, in bytes.
    max_packet: usize,
    /// See [`super::Connection::receive_window`].
    receive_window: Arc<AtomicUsize>,
    /// Bytes of messages that are held, wherever they are.
    held: Arc<AtomicUsize>,
    taking: Taking,
    /// The size of the first message that was too much.
    refused: usize,
    /// Packet identifiers of new messages that were not taken.
    skipped: HashSet<PacketId>,
    /// Told to finish what is to be said.
    finishing: bool,
}

/// Whether messages are taken on this connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Taking {
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

impl Session {
    pub(super) fn new(
        settings: Settings,
        subscriptions: Subscriptions,
        commands: mpsc::WeakSender<Command>,
        metrics: Arc<Metrics>,
        status: watch::Sender<Status>,
    ) -> Self {
        Self {
            window: Window::new(settings.ack_hold),
            receive_window: Arc::new(AtomicUsize::new(settings.max_pending.into())),
            outbox: Outbox::new(),
            subscriber: Subscriber::new(subscriptions, settings.share_group.clone(), status),
            settings,
            commands,
            metrics,
            client: None,
            connected_at: None,
            expected: false,
            refused: 0,
            skipped: HashSet::new(),
            max_packet: usize::MAX,
            held: Arc::default(),
            taking: Taking::Yes,
            finishing: false,
        }
    }

    pub(super) fn receive_window(&self) -> Arc<AtomicUsize> {
        self.receive_window.clone()
    }

    /// A connection is being made with this client.
    pub(super) fn connecting(&mut self, client: AsyncClient) {
        self.client = Some(client);
    }

    /// The connection is gone; how long it lasted, if there was one.
    pub(super) fn disconnected(&mut self) -> Option<Duration> {
        self.client = None;
        self.taking = Taking::Yes;
        self.window.disconnected(&std::mem::take(&mut self.skipped));
        self.outbox.disconnected();
        self.connected_at.take().map(|since| since.elapsed())
    }

    /// Whether more commands may be given.
    pub(super) fn has_room(&self) -> bool {
        self.outbox.has_room()
    }

    /// Told to finish with nothing left to say: a connection would serve nothing.
    pub(super) fn is_finished(&self) -> bool {
        self.finishing && self.outbox.is_empty()
    }

    /// More came than may be held, and of what was taken enough is through to take more: not all of it,
    /// lest one message that hangs stop everybody.
    fn is_overrun(&self) -> bool {
        let (held, most) = (self.held.load(Ordering::Relaxed), self.settings.max_pending_bytes);
        // Also the message that was too much must fit, or it would be all over again.
        let room = held == 0 || held <= most / 2 && held + self.refused <= most;
        self.taking == Taking::Overrun && room && self.outbox.is_empty()
    }

    /// When the next message becomes late.
    pub(super) fn next_late(&self) -> Option<Instant> {
        self.window.next_late()
    }

    /// Time has passed.
    pub(super) fn pass(&mut self, now: Instant) {
        self.window.pass(now);
    }

    pub(super) fn command(&mut self, command: Command) {
        match command {
            Command::Publish(publication) => self.outbox.push(Entry::Publish(publication)),
            Command::Settle(ticket) => self.outbox.push(Entry::Settled(ticket)),
            Command::Finish => self.finishing = true,
        }
    }

    pub(super) fn event(&mut self, event: Event, now: Instant, deliver: &mut impl FnMut(Delivery)) {
        match event {
            Event::Incoming(Incoming::ConnAck(connack)) => self.connected(&connack, now),
            Event::Incoming(Incoming::Publish(publish)) if self.taking == Taking::Yes => {
                self.arrived(publish, now, deliver);
            }
            Event::Incoming(Incoming::Publish(publish)) => self.skip(&publish),
            Event::Incoming(Incoming::PubAck(puback)) => {
                self.acknowledged(puback.pkid, puback.reason);
            }
            Event::Incoming(Incoming::PingResp(_)) => self.window.ping_answered(),
            Event::Incoming(Incoming::SubAck(suback)) => self.subscriber.subscribed(&suback),
            Event::Incoming(Incoming::UnsubAck(unsuback)) => {
                if let Some(client) = &self.client {
                    self.subscriber.unsubscribed(&unsuback, client);
                }
            }
            Event::Outgoing(Outgoing::Publish(packet_id)) => self.outbox.sent(packet_id),
            _ => {}
        }
    }

    fn connected(&mut self, connack: &ConnAck, now: Instant) {
        let Some(client) = &self.client else { return };
        self.connected_at = Some(now);
        self.metrics.connected();
        let properties = connack.properties.as_ref();
        let receive_maximum = properties.and_then(|p| p.receive_max).unwrap_or(u16::MAX);
        self.receive_window
            .store(self.settings.max_pending.min(receive_maximum).into(), Ordering::Relaxed);
        self.max_packet =
            properties.and_then(|p| p.max_packet_size).map_or(usize::MAX, |max| max as usize);
        if self.expected && !connack.session_present {
            tracing::error!(
                "the broker has lost the session, and with it every message it held for it; give the \
                 broker persistence and a session_expiry longer than any interruption"
            );
        }
        self.expected = true;
        self.window.connected(connack.session_present);
        self.outbox.connected(receive_maximum.min(MAX_IN_FLIGHT));
        tracing::info!(
            broker = %self.settings.address,
            client_id = &*self.settings.client_id,
            session_present = connack.session_present,
            receive_maximum,
            "connected to the broker"
        );
        self.subscriber.connected(client);
    }

    /// A message that is not taken: it comes again on the next connection.
    fn skip(&mut self, publish: &Publish) {
        if !publish.dup && publish.qos != QoS::AtMostOnce {
            self.skipped.insert(publish.pkid);
        }
    }

    fn arrived(&mut self, publish: Publish, now: Instant, deliver: &mut impl FnMut(Delivery)) {
        // Without senders nobody is left to deliver to.
        let Some(commands) = self.commands.upgrade() else { return };
        let held_before = self.held.load(Ordering::Relaxed);
        let bytes = publish.size() + OVERHEAD;
        let held = Held::new(bytes, &self.held);
        // One message is always taken, however large: it would come again for ever.
        if held_before > 0 && held_before + bytes > self.settings.max_pending_bytes {
            tracing::warn!(
                max_pending_bytes = self.settings.max_pending_bytes,
                "the broker sends more than its Receive Maximum allows; taking no more until what is \
                 held is through"
            );
            self.metrics.overrun();
            self.taking = Taking::Overrun;
            self.refused = bytes;
            self.skip(&publish);
            self.subscriber.overrun();
            return;
        }
        let Publish { dup, qos, pkid, .. } = publish;
        let message = packet::message(publish, now);
        let Message { topic, payload, properties, .. } = &message;
        let (subscription, captures) = match self.subscriber.subscriptions().find(topic) {
            Some((index, captures)) => (Some(index), captures),
            None => (None, Captures::default()),
        };
        let sender: Arc<str> =
            captures.get(&self.subscriber.subscriptions().sender).unwrap_or(topic).into();
        let arrived = Arrived {
            packet_id: if qos == QoS::AtMostOnce { 0 } else { pkid },
            dup,
            fingerprint: fingerprint((topic, payload, &properties.correlation_data)),
            sender: sender.clone(),
        };
        if arrived.packet_id == 0 && self.window.pending() >= usize::from(self.settings.max_pending)
        {
            // QoS 0 knows no Receive Maximum; at most once includes not at all.
            self.metrics.publish_refused("qos_0_overflow");
            return;
        }
        let ticket = match self.window.arrive(arrived) {
            Arrival::New(ticket) => ticket,
            Arrival::Held => return self.metrics.redelivered(),
            Arrival::Settled(ticket) => {
                self.metrics.redelivered();
                return self.outbox.push(Entry::Settled(ticket));
            }
        };
        deliver(Delivery {
            message,
            subscription,
            captures,
            sender,
            receipt: Receipt { ticket, commands, held },
        });
    }

    fn acknowledged(&mut self, packet_id: PacketId, reason: PubAckReason) {
        if let Some(publication) = self.outbox.acknowledged(packet_id) {
            fate::acknowledged(&publication, reason, &self.metrics);
        }
    }

    /// Hands over as much as the client library takes now: acknowledgements that are due, then the
    /// outbox, whose settlements make more acknowledgements due. What is left over goes when the
    /// library has made room, which is an event.
    pub(super) fn pump(&mut self) {
        // Nothing goes out after a DISCONNECT [MQTT-3.14.4-1].
        let open = self.connected_at.is_some() && self.taking != Taking::Leaving;
        let Some(client) = self.client.clone().filter(|_| open) else { return };
        if self.taking != Taking::Closing {
            let through = self.pump_acknowledgements(&client) && self.pump_outbox(&client);
            if !through || !self.is_overrun() && !self.is_finished() {
                return;
            }
            self.window.close();
            self.taking = Taking::Closing;
        }
        // If there is no room for the DISCONNECT, it goes with the next event.
        if self.pump_acknowledgements(&client) && client.try_disconnect().is_ok() {
            self.taking = Taking::Leaving;
        }
    }

    /// `false` if the client library is full, here and below.
    fn pump_acknowledgements(&mut self, client: &AsyncClient) -> bool {
        while let Some(packet_id) = self.window.next_due() {
            let ack = Publish { qos: QoS::AtLeastOnce, pkid: packet_id, ..Publish::default() };
            if client.try_ack(&ack).is_err() {
                self.window.put_back(packet_id);
                return false;
            }
        }
        true
    }

    fn pump_outbox(&mut self, client: &AsyncClient) -> bool {
        while let Some(entry) = self.outbox.next() {
            let taken = match entry {
                Entry::Publish(publication) => self.submit(client, publication),
                Entry::Settled(ticket) => {
                    self.window.settle(ticket, Instant::now());
                    self.pump_acknowledgements(client)
                }
            };
            if !taken {
                return false;
            }
        }
        true
    }

    fn submit(&mut self, client: &AsyncClient, publication: Publication) -> bool {
        let Publication { topic, payload, .. } = &publication;
        let properties = packet::properties(&publication);
        let qos = QoS::AtLeastOnce;
        let packet = Publish::new(topic, qos, payload.clone(), Some(properties.clone()));
        if packet.size() + SIZE_MARGIN > self.max_packet {
            // The library would lose the connection over it, and do so for ever.
            let Some(shorter) = publication.shorter() else {
                fate::too_large(&publication, &self.metrics);
                return true;
            };
            return self.submit(client, shorter);
        }
        let (topic, payload) = (topic.clone(), payload.clone());
        let taken = client.try_publish_with_properties(topic, qos, false, payload, properties);
        if taken.is_ok() {
            self.outbox.submitted(publication);
        } else {
            self.outbox.put_back(publication);
        }
        taken.is_ok()
    }
}
