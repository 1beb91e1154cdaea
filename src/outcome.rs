//! How a message can end, and what the world is told about it: one reply, one dead letter at most.

use bytes::Bytes;
use serde_json::json;

use crate::{
    call::{Answer, JSON},
    failure::Failure,
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
    /// The gateway refused it.
    Refused(Refusal),
    /// The row asks for something that is not known yet.
    Unknown,
    /// Handling it hit a defect of the gateway.
    Panicked,
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
    /// The word for programs and the HTTP-like status.
    fn row(&self) -> (&'static str, u16) {
        match self {
            Self::Delivered(answer) => ("delivered", answer.status.as_u16()),
            Self::Rejected(answer) => ("rejected", answer.status.as_u16()),
            Self::Failed(failure) => (failure.kind.code(), failure.kind.status()),
            Self::Refused(refusal) => (refusal.code(), refusal.status()),
            Self::Unknown => ("unknown", 404),
            Self::Panicked => ("panicked", 500),
            Self::Ignored(Ignored::Loop) => ("loop", 204),
            Self::Ignored(Ignored::NotARequest) => ("not_a_request", 204),
        }
    }

    /// The word for programs: the `outcome` label, the `reason` of a dead letter, the `code` of an error reply.
    pub fn code(&self) -> &'static str {
        self.row().0
    }

    /// The HTTP status, or an HTTP-like one where there was no answer.
    pub fn status(&self) -> u16 {
        self.row().1
    }

    /// What went wrong, in a sentence; `None` when nothing did.
    pub fn trouble(&self) -> Option<String> {
        match self {
            Self::Delivered(_) | Self::Ignored(_) => None,
            Self::Rejected(answer) => Some(format!("the upstream answered {}", answer.status)),
            Self::Failed(failure) => Some(failure.to_string()),
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
        match self {
            Self::Delivered(_) | Self::Ignored(_) | Self::Unknown => false,
            Self::Rejected(_) | Self::Failed(_) | Self::Refused(_) | Self::Panicked => true,
        }
    }

    /// The upstream's answer, if the outcome is one.
    pub fn answer(&self) -> Option<&Answer> {
        match self {
            Self::Delivered(answer) | Self::Rejected(answer) => Some(answer),
            Self::Failed(_)
            | Self::Refused(_)
            | Self::Unknown
            | Self::Panicked
            | Self::Ignored(_) => None,
        }
    }

    /// Attempts made upstream.
    pub fn attempts(&self) -> u32 {
        match self {
            Self::Delivered(answer) | Self::Rejected(answer) => answer.attempts,
            Self::Failed(failure) => failure.attempts,
            Self::Refused(_) | Self::Unknown | Self::Panicked | Self::Ignored(_) => 0,
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
            Self::Ignored(_) => return None,
            Self::Delivered(answer) => {
                (to.reply.as_ref()?, answer.body.clone(), answer.content_type.clone())
            }
            Self::Rejected(answer) => (
                to.reply.as_ref().or(to.errors.as_ref())?,
                answer.body.clone(),
                answer.content_type.clone(),
            ),
            Self::Failed(_) | Self::Refused(_) | Self::Unknown | Self::Panicked => (
                to.reply.as_ref().or(to.errors.as_ref())?,
                self.error_body(),
                Some(JSON.to_owned()),
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
        json!({ "error": error, "code": self.code() }).to_string().into()
    }
}

fn properties<const N: usize>(pairs: [(&str, String); N]) -> Vec<(String, String)> {
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
