//! What people are told of a message that was not delivered: short, printable, and without its key.

use super::{dead_letter, outcome::Outcome};
use crate::{
    log::printable,
    metrics::FailedMessage,
    secrets::Secrets,
    table::{Incoming, keys::Keys},
};

/// Longest topic, sentence, and words of the API, in bytes.
const MAX_TOPIC: usize = 256;
const MAX_TROUBLE: usize = 300;
const MAX_ANSWER: usize = 200;

/// The message with its outcome; `trouble` says what went wrong.
pub(super) fn message(
    outcome: &Outcome,
    incoming: &Incoming<'_>,
    trouble: &str,
    keys: &Keys<'_>,
    secrets: &Secrets,
) -> FailedMessage {
    // Cut after masking: half a key would not be found.
    let short = |text: &str, bytes| printable::short_line(&keys.mask(text), bytes);
    let answer = dead_letter::answer(outcome, keys, secrets);
    FailedMessage {
        at: incoming.message.received_at,
        topic: short(&incoming.message.topic, MAX_TOPIC),
        route: incoming.name().clone(),
        reason: outcome.code(),
        status: outcome.status(),
        attempts: outcome.attempts(),
        trouble: short(trouble, MAX_TROUBLE),
        answer: answer.map(|words| printable::short_line(&words, MAX_ANSWER)),
        remedy: outcome.remedy(),
    }
}
