//! The last messages that were not delivered, as people want to see them: few, short, and without a key.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use serde::{Serialize, Serializer};

/// How many are kept. One more replaces the oldest.
const KEPT: usize = 50;

/// A message that was not delivered, and why. What is text in it is printable, short, and has no key.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct FailedMessage {
    /// When it came.
    #[serde(serialize_with = "rfc_3339")]
    pub(crate) at: SystemTime,
    /// The topic that it came on.
    pub(crate) topic: String,
    /// Its row.
    #[serde(serialize_with = "text")]
    pub(crate) route: Arc<str>,
    /// The word for programs, as in the dead letter and the metrics.
    pub(crate) reason: &'static str,
    /// The HTTP status, or an HTTP-like one where there was no answer.
    pub(crate) status: u16,
    /// How many attempts were made.
    pub(crate) attempts: u32,
    /// What went wrong, in a sentence.
    pub(crate) trouble: String,
    /// The API's first words, if it said any.
    pub(crate) answer: Option<String>,
    /// What to do about it.
    pub(crate) remedy: &'static str,
}

fn rfc_3339<S: Serializer>(at: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_millis(*at))
}

fn text<S: Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

/// One of them, and how many there were up to it.
#[derive(Debug, Clone)]
pub(crate) struct Numbered {
    /// The first one has number 1.
    pub(crate) number: u64,
    /// The message.
    pub(crate) message: Arc<FailedMessage>,
}

/// The last [`KEPT`].
#[derive(Debug, Default)]
pub(super) struct Failures(Mutex<Ring>);

#[derive(Debug, Default)]
struct Ring {
    /// How many there were so far.
    count: u64,
    last: VecDeque<Numbered>,
}

impl Failures {
    pub(super) fn add(&self, message: FailedMessage) {
        let mut ring = self.ring();
        if ring.last.len() == KEPT {
            ring.last.pop_front();
        }
        ring.count += 1;
        let number = ring.count;
        ring.last.push_back(Numbered { number, message: Arc::new(message) });
    }

    /// Oldest first.
    pub(super) fn last(&self) -> Vec<Numbered> {
        self.ring().last.iter().cloned().collect()
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        // No code that can panic runs under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_kept_and_numbered_from_the_first() {
        let failures = Failures::default();
        assert!(failures.last().is_empty());
        let kept = u16::try_from(KEPT).unwrap();
        for status in 1..=kept + 3 {
            failures.add(FailedMessage {
                at: SystemTime::UNIX_EPOCH,
                topic: "a/b".to_owned(),
                route: "row".into(),
                reason: "rejected",
                status,
                attempts: 1,
                trouble: String::new(),
                answer: None,
                remedy: "",
            });
        }
        let last = failures.last();
        assert_eq!(last.len(), KEPT);
        let (first, last) = (&last[0], &last[KEPT - 1]);
        assert_eq!((first.number, first.message.status), (4, 4));
        assert_eq!((last.number, last.message.status), (u64::from(kept) + 3, kept + 3));
        let json = serde_json::to_value(&*first.message).unwrap();
        assert_eq!(
            (&json["route"], &json["at"]),
            (&"row".into(), &"1970-01-01T00:00:00.000Z".into())
        );
    }
}
