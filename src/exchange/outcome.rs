//! How a message can end, and what programs and people are told about it.

use crate::{
    call::{Answer, StatusCode},
    failure::{Failure, FailureKind},
    table::{Ignored, NotTaken, refusal::Refusal},
};

/// The codes of outcomes in which nothing went wrong.
pub(crate) const WELL: [&str; 4] = ["delivered", "skipped", "loop", "not_a_request"];

/// The ends of a message. Each comes to exactly one.
#[derive(Debug)]
pub(crate) enum Outcome {
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
    /// It does not pass the row's `when`.
    Skipped,
    /// It was not meant for the gateway.
    Ignored(Ignored),
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
    /// Every word that [`Outcome::code`] has; the most frequent one first.
    pub(crate) fn codes() -> Vec<&'static str> {
        let own = ["delivered", "skipped", "unknown", "loop", "not_a_request"];
        own.into_iter().chain(Self::letter_codes()).collect()
    }

    /// Those of outcomes that leave a dead letter.
    pub(crate) fn letter_codes() -> Vec<&'static str> {
        let own = ["rejected", "panicked"];
        own.into_iter().chain(Refusal::CODES).chain(FailureKind::CODES).collect()
    }

    /// What the upstream's answer makes of a message; `accepted` says that it is a success.
    pub(crate) fn of(answer: Answer, accepted: bool) -> Self {
        if accepted { Self::Delivered(answer) } else { Self::Rejected(answer) }
    }

    /// The word for programs and the HTTP-like status.
    fn row(&self) -> (&'static str, u16) {
        match self {
            Self::Delivered(answer) => ("delivered", answer.status.as_u16()),
            Self::Rejected(answer) => ("rejected", answer.status.as_u16()),
            Self::Failed(failure) => (failure.kind.code(), failure.kind.status()),
            Self::Refused(refusal) => (refusal.code(), refusal.status()),
            Self::Unknown => ("unknown", 404),
            Self::Panicked => ("panicked", 500),
            Self::Skipped => ("skipped", 204),
            Self::Ignored(Ignored::Loop) => ("loop", 204),
            Self::Ignored(Ignored::NotARequest) => ("not_a_request", 204),
        }
    }

    /// The word for programs: the `outcome` label, the `reason` of a dead letter, the `code` of an error reply.
    pub(crate) fn code(&self) -> &'static str {
        self.row().0
    }

    /// The HTTP status, or an HTTP-like one where there was no answer.
    pub(crate) fn status(&self) -> u16 {
        self.row().1
    }

    /// What went wrong, in a sentence; `None` when nothing did.
    pub(super) fn trouble(&self) -> Option<String> {
        match self {
            Self::Delivered(_) | Self::Skipped | Self::Ignored(_) => None,
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

    /// The same for the device.
    pub(super) fn told(&self) -> Option<String> {
        match self {
            Self::Failed(failure) => Some(failure.kind.told()),
            outcome => outcome.trouble(),
        }
    }

    /// What the operator can do about the trouble, in a sentence.
    pub(super) fn remedy(&self) -> &'static str {
        match self {
            Self::Delivered(_) | Self::Skipped | Self::Ignored(_) => "",
            Self::Rejected(answer) => remedy(answer.status),
            Self::Failed(failure) => failure.kind.remedy(),
            Self::Refused(refusal) => refusal.remedy(),
            Self::Unknown => "Nothing: it is known with the API's next answer to this device.",
            Self::Panicked => "A defect of the gateway: please report it with the dead letter.",
        }
    }

    /// Whether the message is put aside for the operator.
    pub(crate) fn is_dead_letter(&self) -> bool {
        match self {
            Self::Delivered(_) | Self::Skipped | Self::Ignored(_) | Self::Unknown => false,
            Self::Rejected(_) | Self::Failed(_) | Self::Refused(_) | Self::Panicked => true,
        }
    }

    /// The upstream's answer, if the outcome is one.
    pub(super) fn answer(&self) -> Option<&Answer> {
        match self {
            Self::Delivered(answer) | Self::Rejected(answer) => Some(answer),
            Self::Failed(_)
            | Self::Refused(_)
            | Self::Unknown
            | Self::Panicked
            | Self::Skipped
            | Self::Ignored(_) => None,
        }
    }

    /// Attempts made upstream.
    pub(super) fn attempts(&self) -> u32 {
        match self {
            Self::Delivered(answer) | Self::Rejected(answer) => answer.attempts,
            Self::Failed(failure) => failure.attempts,
            Self::Refused(_)
            | Self::Unknown
            | Self::Panicked
            | Self::Skipped
            | Self::Ignored(_) => 0,
        }
    }
}

/// What to do about an API that refuses with this status.
fn remedy(status: StatusCode) -> &'static str {
    match status.as_u16() {
        300..=399 => {
            "The API wants to be called elsewhere, and redirects are not followed: set [upstream] url to that."
        }
        401 | 403 => {
            "The API does not take this device's key, or not for this: see whether it is registered there."
        }
        404 | 405 | 410 => {
            "The API has nothing there: see whether the device is registered, and the row's call is right."
        }
        413 => "The API takes no message as large as this: have the device send less at once.",
        501 => "The API does not offer this call: see the row's call.",
        _ => {
            "The API does not take what the message says: compare it with what the API wants. The dead letter has it."
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{failure::FailureKind, fixtures::answer};

    #[test]
    fn every_outcome_has_its_code_its_status_and_its_end() {
        let failed = |kind, attempts| Outcome::Failed(Failure { kind, attempts });
        for (outcome, code, status, attempts, letter, trouble) in [
            (Outcome::of(answer(201), true), "delivered", 201, 1, false, false),
            (Outcome::of(answer(409), true), "delivered", 409, 1, false, false),
            (Outcome::of(answer(404), false), "rejected", 404, 1, true, true),
            (Outcome::of(answer(302), false), "rejected", 302, 1, true, true),
            (failed(FailureKind::Expired, 0), "expired", 504, 0, true, true),
            (failed(FailureKind::Broken("x".to_owned()), 3), "broken", 502, 3, true, true),
            (Outcome::Refused(Refusal::Crowded { held: 9 }), "throttled", 429, 0, true, true),
            (Outcome::Unknown, "unknown", 404, 0, false, true),
            (Outcome::Panicked, "panicked", 500, 0, true, true),
            (Outcome::Skipped, "skipped", 204, 0, false, false),
            (Outcome::Ignored(Ignored::Loop), "loop", 204, 0, false, false),
            (NotTaken::Ignored(Ignored::NotARequest).into(), "not_a_request", 204, 0, false, false),
        ] {
            assert_eq!((outcome.code(), outcome.status()), (code, status));
            assert_eq!(outcome.attempts(), attempts, "{code}");
            assert_eq!(outcome.is_dead_letter(), letter, "{code}");
            assert_eq!(outcome.trouble().is_some(), trouble, "{code}");
            assert_eq!(!outcome.remedy().is_empty(), trouble, "{code}");
            assert_eq!(!WELL.contains(&code), trouble, "{code}");
        }
    }
}
