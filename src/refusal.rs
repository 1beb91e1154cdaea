//! Why a message never left the gateway.

use crate::template::BadSegment;

/// Why a message never left the gateway.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No row listens on this topic; the session still has a subscription of an earlier table.
    #[error("no route listens on this topic")]
    NoRoute,
    /// The message names nobody, or its key cannot be used.
    #[error("{0}")]
    NoCredentials(String),
    /// The message speaks for another device than its topic.
    #[error("{0}")]
    Identity(String),
    /// The answer would go where this device may not speak.
    #[error("the Response Topic must be a plain topic below `{0}`")]
    ResponseTopic(String),
    /// The payload is not what the row takes.
    #[error("{0}")]
    BadPayload(String),
    /// A captured level cannot stand in a path.
    #[error(transparent)]
    BadSegment(#[from] BadSegment),
    /// The device holds more than its share of what may be pending, and does not get on.
    #[error(
        "{held} messages of this device are waiting already, and others need the room; send again later"
    )]
    Crowded {
        /// How many.
        held: usize,
    },
    /// The payload is larger than `max_request_bytes`.
    #[error("the payload has {size} bytes; at most {max} are taken")]
    TooLarge {
        /// Its size.
        size: usize,
        /// The limit.
        max: usize,
    },
}

impl Refusal {
    /// The HTTP-like status of the error reply.
    pub fn status(&self) -> u16 {
        match self {
            Self::NoRoute => 404,
            Self::NoCredentials(_) => 401,
            Self::Identity(_) | Self::ResponseTopic(_) => 403,
            Self::BadPayload(_) | Self::BadSegment(_) => 400,
            Self::TooLarge { .. } => 413,
            Self::Crowded { .. } => 429,
        }
    }

    /// The word for programs, in error replies, dead letters and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoRoute => "no_route",
            Self::NoCredentials(_) => "no_credentials",
            Self::Identity(_) => "identity",
            Self::ResponseTopic(_) => "response_topic",
            Self::BadPayload(_) => "bad_payload",
            Self::BadSegment(_) => "bad_segment",
            Self::TooLarge { .. } => "too_large",
            Self::Crowded { .. } => "throttled",
        }
    }
}
