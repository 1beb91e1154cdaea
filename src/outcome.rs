//! How a message can end, and what the world is told about it: one reply, one dead letter at most.

use bytes::Bytes;
use serde_json::json;

use crate::{
    call::{Answer, Failure, FailureKind},
    message::{Message, Properties, Publication, Purpose, VIA},
    refusal::Refusal,
    table::{Ignored, NotTaken},
};

/// The endings. Every message comes to exactly one.
#[derive(Debug)]
pub enum Outcome {
    /// The upstream accepted it (2xx), or the row needs no upstream.
    Delivered(Answer),
    /// The upstream refused it for good.
    Rejected(Answer),
    /// No answer that counts could be had.
    Failed(Failure),
    /// Its Message Expiry Interval passed while it was held [MQTT-3.3.2-6].
    Expired {
        /// Attempts made before.
        attempts: u32,
    },
    /// The gateway refused it.
    Refused(Refusal),
    /// The row asks for something that is not known yet.
    Unknown,
    /// Handling it hit a defect of the gateway.
    Panicked,
    /// The gateway stops while it is held: it is left to the broker, as if it had not come.
    Abandoned,
    /// It was not meant for the gateway.
    Ignored(Ignored),
}

/// Where the reply and the dead letter of one message go.
#[derive(Debug)]
pub struct Destinations {
    /// The message's own Response Topic if it is allowed, else the row's `reply`.
    pub reply: Option<String>,
    /// Where failures go that have no other place.
    pub errors: Option<String>,
    /// The dead-letter topic.
    pub dead_letter: Option<String>,
}

impl From<NotTaken> for Outcome {
    fn from(not_taken: NotTaken) -> Self {
        match not_taken {
            NotTaken::Ignored(why) => Self::Ignored(why),
            NotTaken::Refused(refusal) => Self::Refused(refusal),
        }
    }
}

impl Outcome {
    /// One word for it: the `outcome` label, the `reason` of a dead letter, the `code` of an error.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Delivered(_) => "delivered",
            Self::Rejected(_) => "rejected",
            Self::Failed(failure) => match failure.kind {
                FailureKind::Unreachable(_) | FailureKind::Local(_) => "unreachable",
                FailureKind::Broken(_) | FailureKind::Coding(_) => "broken",
                FailureKind::AnswerTooLarge(_) => "answer_too_large",
                FailureKind::Timeout | FailureKind::Deadline(_) => "deadline",
                FailureKind::Throttled(_) => "throttled",
                FailureKind::Expired | FailureKind::Held => "expired",
            },
            Self::Expired { .. } => "expired",
            Self::Refused(refusal) => refusal.code(),
            Self::Unknown => "unknown",
            Self::Panicked => "panicked",
            Self::Abandoned => "abandoned",
            Self::Ignored(Ignored::Loop) => "loop",
            Self::Ignored(Ignored::NotARequest) => "not_a_request",
        }
    }

    /// The HTTP or HTTP-like status.
    pub fn status(&self) -> u16 {
        match self {
            Self::Delivered(answer) | Self::Rejected(answer) => answer.status.as_u16(),
            Self::Failed(failure) => match failure.kind {
                FailureKind::Unreachable(_)
                | FailureKind::Local(_)
                | FailureKind::Coding(_)
                | FailureKind::Broken(_)
                | FailureKind::AnswerTooLarge(_) => 502,
                FailureKind::Timeout
                | FailureKind::Deadline(_)
                | FailureKind::Expired
                | FailureKind::Held => 504,
                FailureKind::Throttled(_) => 429,
            },
            Self::Expired { .. } | Self::Abandoned => 504,
            Self::Refused(refusal) => refusal.status(),
            Self::Unknown => 404,
            Self::Panicked => 500,
            Self::Ignored(_) => 204,
        }
    }

    /// What went wrong, in a sentence; `None` when nothing did.
    pub fn trouble(&self) -> Option<String> {
        match self {
            Self::Delivered(_) | Self::Ignored(_) | Self::Abandoned => None,
            Self::Rejected(answer) => Some(format!("the upstream answered {}", answer.status)),
            Self::Failed(failure) => Some(failure.to_string()),
            Self::Expired { .. } => Some("the message expired while it was held".to_owned()),
            Self::Refused(refusal) => Some(refusal.to_string()),
            Self::Unknown => {
                Some("nothing is known yet; it comes with the answers to this device".to_owned())
            }
            Self::Panicked => {
                Some("the gateway failed on this message; please report it".to_owned())
            }
        }
    }

    /// Whether the message is put aside for the operator.
    pub fn is_dead_letter(&self) -> bool {
        !matches!(self, Self::Delivered(_) | Self::Ignored(_) | Self::Unknown | Self::Abandoned)
    }

    /// What the upstream said at last, if the outcome is its word.
    pub fn answer(&self) -> Option<&Answer> {
        match self {
            Self::Delivered(answer) | Self::Rejected(answer) => Some(answer),
            _ => None,
        }
    }

    /// Attempts made upstream.
    pub fn attempts(&self) -> u32 {
        match self {
            Self::Delivered(answer) | Self::Rejected(answer) => answer.attempts,
            Self::Failed(failure) => failure.attempts,
            Self::Expired { attempts } => *attempts,
            _ => 0,
        }
    }

    /// The reply, if there is a place for it.
    pub fn reply(
        &self,
        message: &Message,
        to: &Destinations,
        route: &str,
        via: &str,
    ) -> Option<Publication> {
        let (topic, payload, content_type) = match self {
            Self::Ignored(_) | Self::Abandoned => return None,
            Self::Delivered(answer) => {
                (to.reply.as_ref()?, answer.body.clone(), answer.content_type.clone())
            }
            Self::Rejected(answer) => (
                to.reply.as_ref().or(to.errors.as_ref())?,
                answer.body.clone(),
                answer.content_type.clone(),
            ),
            _ => (
                to.reply.as_ref().or(to.errors.as_ref())?,
                self.error_body(),
                Some("application/json".to_owned()),
            ),
        };
        Some(Publication {
            purpose: Purpose::Reply,
            topic: topic.clone(),
            payload,
            properties: Properties {
                user: properties([
                    ("status", self.status().to_string()),
                    ("route", route.to_owned()),
                    (VIA, via.to_owned()),
                ]),
                correlation_data: message.properties.correlation_data.clone(),
                content_type,
                ..Properties::default()
            },
        })
    }

    fn error_body(&self) -> Bytes {
        let error = self.trouble().unwrap_or_default();
        json!({ "error": error, "code": self.word() }).to_string().into()
    }
}

fn properties<const N: usize>(pairs: [(&str, String); N]) -> Vec<(String, String)> {
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
