//! Which parts of a message filters read. A part that no filter reads is not made.

use std::iter::Sum;

use super::Filter;

/// What one or more filters read besides their input and `$memory`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reads {
    /// `$payload`.
    pub payload: bool,
    /// `$captures`.
    pub captures: bool,
    /// `$message`.
    pub message: bool,
}

impl Reads {
    /// What a filter of this text may read: all that it mentions.
    pub(super) fn of_text(text: &str) -> Self {
        Self {
            payload: text.contains("$payload"),
            captures: text.contains("$captures"),
            message: text.contains("$message"),
        }
    }
}

/// What all of them read together.
impl<'f> Sum<&'f Filter> for Reads {
    fn sum<I: Iterator<Item = &'f Filter>>(filters: I) -> Self {
        filters.map(Filter::reads).fold(Self::default(), |all, one| Self {
            payload: all.payload || one.payload,
            captures: all.captures || one.captures,
            message: all.message || one.message,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_filter_mentions_it_reads_and_can_differ_by() {
        let reads = |payload, captures, message| Reads { payload, captures, message };
        for (text, expected) in [
            (".a", reads(false, false, false)),
            ("$memory", reads(false, false, false)),
            ("[.[] | $payload.a]", reads(true, false, false)),
            ("\"\\($captures.site)\"", reads(false, true, false)),
            ("{$message}", reads(false, false, true)),
        ] {
            let filter = Filter::compile(text).unwrap();
            assert_eq!(filter.reads(), expected, "{text}");
            assert_eq!(filter.is_changeable(), expected != Reads::default(), "{text}");
        }
        let filters = ["$payload", "$message", "1"].map(|text| Filter::compile(text).unwrap());
        assert_eq!(filters.iter().sum::<Reads>(), reads(true, false, true));
    }
}
