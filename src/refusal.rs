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
    /// The table of refusals: the word for programs and the HTTP-like status.
    fn row(&self) -> (&'static str, u16) {
        match self {
            Self::NoRoute => ("no_route", 404),
            Self::NoCredentials(_) => ("no_credentials", 401),
            Self::Identity(_) => ("identity", 403),
            Self::ResponseTopic(_) => ("response_topic", 403),
            Self::BadPayload(_) => ("bad_payload", 400),
            Self::BadSegment(_) => ("bad_segment", 400),
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
}
