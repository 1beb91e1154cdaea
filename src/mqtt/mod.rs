//! The broker, as events and commands: deliveries come out, publications and settlements go in.
//! Knows nothing of HTTP. All use of `rumqttc` is in here: its encoding of packets.

mod check;
mod connection;
mod cursor;
mod ending;
mod identifier;
pub(crate) mod in_process;
mod intake;
mod legal;
mod limits;
mod link;
mod one_off;
mod outbox;
mod packet;
mod publish_result;
mod reader;
mod reason;
mod session;
mod socket;
mod subscriber;
mod traffic;
pub mod window;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::mpsc;

use self::window::Ticket;
pub(crate) use self::{
    check::{DEVICE, Report, Trial, check_broker},
    connection::{Connection, ConnectionSetupError},
    ending::CONNECTION_FAILURES,
    one_off::{OneOffError, end_session},
};
use crate::{
    message::{Message, Publication, Purpose},
    secrets::{Secret, password::Password},
    tls,
    topic::{Captures, PatternIndex, patterns::Patterns},
    traces::Span,
};

/// How many commands may wait for the connection task; a sender of more waits.
const COMMANDS: usize = 256;

/// What the configuration says about the broker.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where it listens.
    pub address: Address,
    /// Client Identifier: the session belongs to it.
    pub client_id: Arc<str>,
    /// Group of a shared subscription; replicas of a group share the messages.
    pub share_group: Option<Box<str>>,
    /// Groups that this client identifier has been a member of: their subscriptions are ended.
    pub former_share_groups: Vec<Box<str>>,
    /// The longest wait before another attempt to reach the broker.
    pub reconnect_max: Duration,
    /// How long the broker keeps the session while we are away [MQTT 5.0, 3.1.2.11.2].
    pub session_expiry: Duration,
    /// Keep Alive [MQTT 5.0, 3.1.2.10].
    pub keep_alive: Duration,
    /// Receive Maximum: messages taken and not yet acknowledged [MQTT 5.0, 3.1.2.11.3].
    pub max_pending: u16,
    /// Messages taken and not yet settled, in bytes: our own bound, for brokers that overrun the
    /// Receive Maximum.
    pub max_pending_bytes: usize,
    /// Largest packet the broker may send, in bytes [MQTT 5.0, 3.1.2.11.4].
    pub max_packet: u32,
    /// Whether anything is published that the broker is to retain.
    pub retains: bool,
    /// Longest payload of a reply or a push, in bytes.
    pub longest_payload: usize,
    /// `ack_hold`: how long an unsettled message may hold back the PUBACKs of later ones; `None` is for
    /// ever.
    pub ack_hold: Option<Duration>,
    /// User Name.
    pub username: Option<String>,
    /// Password.
    pub password: Option<Password>,
    /// Certificates.
    pub tls: tls::Settings,
}

/// A broker's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// How to speak to it.
    pub transport: Transport,
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// The whole URL, for web sockets; its query may hold a token.
    pub url: Secret,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.transport {
            Transport::Mqtt => "mqtt",
            Transport::Mqtts => "mqtts",
            Transport::Ws => "ws",
            Transport::Wss => "wss",
        };
        write!(f, "{scheme}://{}:{}", self.host, self.port)
    }
}

/// What MQTT is carried by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Mqtt,
    /// TLS.
    Mqtts,
    /// Web socket.
    Ws,
    /// Web socket over TLS.
    Wss,
}

/// The state of the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Not connected, and why.
    Down(String),
    /// Connected; the broker has not confirmed the subscriptions yet.
    Connected,
    /// Connected and subscribed.
    Subscribed,
    /// Connected, and every subscription is ended: what still arrives was queued before.
    Draining,
    /// Connected to drain, and the broker has no session of this client identifier.
    NoSession,
    /// Connected; the broker refused these filters.
    Refused(Vec<String>),
    /// Ended on purpose.
    Ended,
}

/// How the connection task ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It was told to finish, and everything is written.
    Finished,
    /// It was told to finish and could not reach the broker any more, for this reason: messages that
    /// are not acknowledged are delivered again to the next gateway.
    BrokerGone(String),
    /// It was draining the session, and another client uses it; how that showed.
    SessionInUse(String),
}

/// What to subscribe to, and how to tell which subscription a message came for.
#[derive(Debug, Clone)]
pub struct Subscriptions {
    /// The patterns of all rows.
    pub patterns: Arc<Patterns>,
    /// Their labels in the metrics, and at the end that of a message that no row takes.
    pub names: Vec<Arc<str>>,
    /// What is done with them.
    pub mode: Mode,
}

/// What a connection does with its subscriptions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Subscribes, at every connection.
    Serve,
    /// Unsubscribes: the broker still delivers what it has queued, and queues nothing more.
    Drain,
}

/// A message and the duty to settle it.
#[must_use = "a delivery that is not settled is never acknowledged"]
pub(crate) struct Delivery {
    /// The message.
    pub message: Message,
    /// Which subscription it came for; none if an earlier table left one in the session.
    pub subscription: Option<PatternIndex>,
    /// What its topic captured.
    pub captures: Captures,
    /// Who sent it: the device, or the whole topic where there is none.
    pub sender: Arc<str>,
    /// Settles it.
    pub receipt: Receipt,
}

/// The right to settle one message, once.
pub(crate) struct Receipt {
    ticket: Ticket,
    commands: mpsc::Sender<Command>,
    held_bytes: HeldBytes,
}

/// Counts the bytes of one message against `max_pending_bytes` until it is dropped.
struct HeldBytes {
    bytes: usize,
    total: Arc<AtomicUsize>,
}

impl HeldBytes {
    fn new(bytes: usize, total: &Arc<AtomicUsize>) -> Self {
        total.fetch_add(bytes, Ordering::Relaxed);
        Self { bytes, total: total.clone() }
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Receipt {
    /// Lets the message be acknowledged, after everything published before this. When the
    /// connection task is gone nothing can be acknowledged and the broker keeps the message.
    pub(crate) async fn settle(self) {
        let command = Command::Settle(self.ticket);
        self.send(command).await;
    }

    /// The same for a message whose last copy is a dead letter: it is acknowledged when the broker has
    /// acknowledged the letter, or is known never to take it.
    pub(crate) async fn settle_by(self, mut letter: Publication) {
        if let Purpose::DeadLetter(letter) = &mut letter.purpose {
            letter.original = Some(self.ticket);
        }
        self.send(Command::Publish(Box::new(letter))).await;
    }

    /// Hands over the span of the message: it ends with the PUBACK.
    pub(crate) async fn trace(&self, span: Span) {
        let _ = self.commands.send(Command::Trace(self.ticket, span)).await;
    }

    async fn send(self, command: Command) {
        let Self { commands, held_bytes, .. } = self;
        // First, so that the connection sees the room when it hears the command.
        drop(held_bytes);
        let _ = commands.send(command).await;
    }
}

/// Publishes through the connection task. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Publisher {
    commands: mpsc::Sender<Command>,
}

impl Publisher {
    /// Hands a publication over; it reaches the broker in the order of these calls. Waits while the
    /// broker takes nothing.
    pub(crate) async fn publish(&self, publication: Publication) {
        let _ = self.commands.send(Command::Publish(Box::new(publication))).await;
    }

    /// Ends the connection and its task once everything published is acknowledged by the broker and
    /// everything settled is acknowledged to it.
    pub(crate) async fn finish(&self) {
        let _ = self.commands.send(Command::Finish).await;
    }

    /// Ends them as soon as everything published and settled is written, without waiting for the
    /// broker's PUBACKs. Settled messages are acknowledged even behind unsettled ones.
    pub(crate) async fn close(&self) {
        let _ = self.commands.send(Command::Close).await;
    }
}

/// What the connection task is asked to do.
enum Command {
    /// In a box, since most commands are settlements, and a channel has room for the largest.
    Publish(Box<Publication>),
    Settle(Ticket),
    /// The span of this message, which ends when the message is acknowledged.
    Trace(Ticket, Span),
    Finish,
    Close,
}
