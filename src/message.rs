//! What crosses the MQTT side: messages that came in and publications that go out.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use tokio::time::Instant;

use crate::{traces::Span, user_properties::UserProperties};

/// The user property that marks everything a gateway publishes; its value is the client identifier.
/// A message that carries it and no credentials is not taken as a request, so that topics cannot loop.
pub const VIA: &str = "via";

/// The MQTT v5 properties of a PUBLISH that mean something to the gateway [MQTT 5.0, 3.3.2.3].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Properties {
    /// User properties.
    pub user: UserProperties,
    /// Response Topic [MQTT 5.0, 3.3.2.3.5].
    pub response_topic: Option<String>,
    /// Correlation Data, opaque bytes [MQTT 5.0, 3.3.2.3.6].
    pub correlation_data: Option<Bytes>,
    /// Content Type [MQTT 5.0, 3.3.2.3.9].
    pub content_type: Option<String>,
    /// Message Expiry Interval, what is left of it when the message came [MQTT 5.0, 3.3.2.3.3].
    pub expiry: Option<Duration>,
}

/// A message from a device.
#[derive(Clone)]
pub struct Message {
    /// Topic Name.
    pub topic: String,
    /// Application Message, as it came.
    pub payload: Bytes,
    /// Its properties.
    pub properties: Properties,
    /// Wall clock at arrival, for people.
    pub received_at: SystemTime,
    /// Monotonic clock at arrival, for deadlines.
    pub arrived: Instant,
    /// Its span, where traces are on.
    pub trace: Option<Span>,
}

impl Message {
    /// One that has just come.
    pub(crate) fn new(
        topic: String,
        payload: Bytes,
        properties: Properties,
        arrived: Instant,
    ) -> Self {
        let received_at = SystemTime::now();
        Self { topic, payload, properties, received_at, arrived, trace: None }
    }

    /// The values of all user properties of this name.
    pub fn user_property<'m>(&'m self, name: &str) -> impl Iterator<Item = &'m str> {
        self.properties.user.get(name)
    }

    /// The moment after which the message must not be sent any more.
    pub fn expires(&self) -> Option<Instant> {
        self.properties.expiry.map(|left| self.arrived + left)
    }
}

/// Something the gateway publishes: a reply, a push or a dead letter. Always at `QoS` 1.
#[derive(Clone)]
pub struct Publication {
    /// What it is for.
    pub purpose: Purpose,
    /// Topic Name.
    pub topic: String,
    /// Application Message.
    pub payload: Bytes,
    /// The broker keeps it for whoever subscribes later [MQTT 5.0, 3.3.1.3].
    pub retain: bool,
    /// Its properties.
    pub properties: Properties,
}

impl Publication {
    /// The ticket of the message that is settled when the broker has taken this, or never will.
    pub fn settles(&self) -> Option<u64> {
        let Purpose::DeadLetter(letter) = &self.purpose else { return None };
        letter.original
    }

    /// The same with a span of its own below that of the message, which whoever receives it can go on from.
    pub(crate) fn traced(mut self, trace: Option<&Span>) -> Self {
        if let Some(trace) = trace {
            let what = match self.purpose {
                Purpose::Reply => "reply",
                Purpose::Push => "push",
                Purpose::DeadLetter(_) => "dead letter",
            };
            let span = trace.publication(what, &self.topic, self.payload.len());
            span.put_properties(&mut self.properties.user);
        }
        self
    }

    /// The same in short, for a broker that takes no packet as large: of a dead letter what it says is
    /// worth more than nothing. Every other publication is whole or not at all.
    pub fn shorter(&self) -> Option<Self> {
        let left_out =
            format!("left out: {} bytes are more than the broker takes", self.payload.len());
        let is_letter = matches!(self.purpose, Purpose::DeadLetter(_));
        (is_letter && !self.payload.is_empty()).then(|| {
            let first = [("payload", &*left_out)].into_iter();
            let user = first.chain(self.properties.user.iter()).collect();
            let properties = Properties { user, ..self.properties.clone() };
            Self { payload: Bytes::new(), properties, ..self.clone() }
        })
    }
}

/// What a publication is for. It decides what is done when the broker refuses it or no client is subscribed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Purpose {
    /// The answer to a message. A device that is not subscribed to it does not want it.
    #[default]
    Reply,
    /// News for a device.
    Push,
    /// The last copy of a message that could not be delivered.
    DeadLetter(Box<DeadLetter>),
}

/// Whose message a dead letter was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The row, or `none`.
    pub route: Arc<str>,
    /// Why it could not be delivered, in one word.
    pub reason: &'static str,
    /// The ticket of that message, once its receipt is spent on the letter.
    pub original: Option<u64>,
}
