//! What comes of a fetch: what it did, or why it did nothing.

use crate::{
    call::{Answer, Unfit},
    failure::{Failure, Unanswered},
    filter::FilterError,
};

/// Why a fetch pushed nothing although there should have been something.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// Its call had no answer that counts.
    #[error("{0}")]
    Failed(Failure),
    /// It was refused.
    #[error("the upstream answered {}", .0.status)]
    Answered(Answer),
    /// What was to be pushed cannot be.
    #[error(transparent)]
    Unusable(#[from] Unusable),
}

/// Why nothing can be fetched or pushed, whatever the upstream answers.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    /// The topic of the push is none that may be published on.
    #[error("no topic to push on")]
    Topic,
    /// The path or a header of the call.
    #[error(transparent)]
    Call(#[from] Unfit),
    /// The answer is not what the fetch's filters take, or is no JSON.
    #[error(transparent)]
    Answer(#[from] FilterError),
}

/// What came of a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fetched {
    /// Something was pushed.
    Pushed,
    /// Everything there is was pushed less than `redeliver_after` ago.
    Repeated,
    /// There is nothing to push.
    Empty,
}

impl Fetched {
    /// The label in metrics.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Pushed => "pushed",
            Self::Repeated => "repeated",
            Self::Empty => "empty",
        }
    }
}

/// Why a fetch has no result.
pub(super) enum Unfetched {
    /// The gateway stops while its call is held.
    Stopping,
    /// Something went wrong.
    Trouble(Trouble),
}

impl From<Unanswered> for Unfetched {
    fn from(unanswered: Unanswered) -> Self {
        match unanswered {
            Unanswered::Stopping => Self::Stopping,
            Unanswered::Failed(failure) => Self::Trouble(Trouble::Failed(failure)),
        }
    }
}

impl<E: Into<Unusable>> From<E> for Unfetched {
    fn from(error: E) -> Self {
        Self::Trouble(Trouble::Unusable(error.into()))
    }
}
