//! Why the gateway refuses a message: it makes no call for it.

use crate::{
    call::Unfit,
    template::{BadHeader, BadSegment},
};

/// Why the gateway refuses a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No row listens on this topic; the session still has a subscription of an earlier table.
    #[error("no route listens on this topic")]
    NoRoute,
    /// The message has no credentials, or its key cannot be used.
    #[error("{0}")]
    NoCredentials(String),
    /// The message speaks for another device than its topic.
    #[error("{0}")]
    Identity(String),
    /// The Response Topic is outside the device's own topics.
    #[error("{0}")]
    ResponseTopic(String),
    /// The payload is not JSON, or the row's filter fails on it.
    #[error("{0}")]
    BadPayload(String),
    /// A captured level cannot stand in a path.
    #[error(transparent)]
    BadSegment(#[from] BadSegment),
    /// Something cannot stand in a header.
    #[error(transparent)]
    BadHeader(#[from] BadHeader),
    /// The window is nearly full, this device holds more than its share of it, and its messages make no progress.
    #[error(
        "{held} messages of this device are waiting already, and others need the room; send again later"
    )]
    Crowded {
        /// How many of its messages are pending.
        held: usize,
    },
    /// The payload is larger than may be sent, or read by a filter.
    #[error("the payload has {size} bytes; at most {max} are taken")]
    TooLarge {
        /// Bytes of the payload.
        size: usize,
        /// `max_request_bytes` or `max_filter_bytes`.
        max: usize,
    },
}

impl From<Unfit> for Refusal {
    fn from(unfit: Unfit) -> Self {
        match unfit {
            Unfit::Segment(why) => Self::BadSegment(why),
            Unfit::Header(why) => Self::BadHeader(why),
        }
    }
}

impl Refusal {
    /// Every word that [`Refusal::code`] has, but that of a failure that has the same.
    pub const CODES: [&'static str; 8] = [
        "no_route",
        "no_credentials",
        "identity",
        "response_topic",
        "bad_payload",
        "bad_segment",
        "bad_header",
        "too_large",
    ];

    /// The table of refusals: the word for programs and the HTTP-like status.
    fn row(&self) -> (&'static str, u16) {
        match self {
            Self::NoRoute => ("no_route", 404),
            Self::NoCredentials(_) => ("no_credentials", 401),
            Self::Identity(_) => ("identity", 403),
            Self::ResponseTopic(_) => ("response_topic", 403),
            Self::BadPayload(_) => ("bad_payload", 400),
            Self::BadSegment(_) => ("bad_segment", 400),
            Self::BadHeader(_) => ("bad_header", 400),
            Self::TooLarge { .. } => ("too_large", 413),
            Self::Crowded { .. } => ("throttled", 429),
        }
    }

    /// The word for programs: `code` of an error reply, `reason` of a dead letter, `outcome` in metrics.
    pub fn code(&self) -> &'static str {
        self.row().0
    }

    /// The HTTP-like status of the error reply.
    pub fn status(&self) -> u16 {
        self.row().1
    }

    /// What the operator can do about it, in a sentence.
    #[rustfmt::skip]
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::NoRoute => "Write a row for this topic, or have the device use another one. The subscription, of an earlier table, is ended.",
            Self::NoCredentials(_) => "Have the device say who it is and show its key in every message, or see credentials of the row.",
            Self::Identity(_) => "Have the device say the same id in topic and properties; if it means another one, find out why.",
            Self::ResponseTopic(_) => "Have the device ask for its answer below its own topics.",
            Self::BadPayload(_) => "Correct what the device sends, or the row: mqtt-rest-gateway explain shows what it makes of a payload.",
            Self::BadSegment(_) => "Correct the level of the topic, or the value of the payload, that goes into the path.",
            Self::BadHeader(_) => "Correct the level of the topic, or the value of the payload, that goes into the header.",
            Self::Crowded { .. } => "See why the messages of this device do not get through, or let it send less.",
            Self::TooLarge { .. } => "Have the device send less at once, or raise [upstream] max_request_bytes; max_filter_bytes where a filter reads it.",
        }
    }
}
