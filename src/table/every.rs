//! Fetches that no message sets off: how often one runs, what of its answer is news, and where each push goes. Pure.

use std::time::Duration;

use bytes::Bytes;

use crate::filter::{self, Context, Filter, FilterError, MAX_OUTPUT_BYTES, Val};

/// Longest level that a value becomes, in bytes.
const MAX_LEVEL_BYTES: usize = 1024;

/// How a fetch runs by itself.
#[derive(Debug)]
pub struct Every {
    /// How long after the end of one run the next begins.
    pub period: Duration,
    /// Over each push: it is published if the value differs from that of the last one of the same item. Nothing is
    /// published for no value or null.
    pub on_change: Option<Filter>,
    /// Over each push: the levels that the names in its topics stand for.
    pub values: Vec<(Box<str>, Filter)>,
}

/// Why a push is not published.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unpublishable {
    /// It is not what `values` and `on_change` take.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// A value would be more than one level, or none.
    #[error(
        "the value of `{0}` is no level of a topic: not empty, at most {MAX_LEVEL_BYTES} bytes, without `/`, `+`, \
         `#` and control characters"
    )]
    Level(Box<str>),
    /// The levels make no topic.
    #[error("no topic to publish on")]
    Topic,
}

/// The levels that the names in a push's topics stand for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Levels<'e>(Vec<(&'e str, String)>);

impl Levels<'_> {
    /// The level of this name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| *n == name).map(|(_, level)| level.as_str())
    }
}

impl Every {
    /// Whether a push is looked into at all.
    pub fn reads_pushes(&self) -> bool {
        self.on_change.is_some() || !self.values.is_empty()
    }

    /// The levels that a push names. They come from the API and are checked: a text with a `/` in it could reach the topics
    /// of another device.
    ///
    /// # Errors
    /// [`Unpublishable`] when a filter fails, or puts out what is no level.
    pub fn levels(&self, push: &Val) -> Result<Levels<'_>, Unpublishable> {
        let levels = self.values.iter().map(|(name, filter)| {
            let outputs = filter.run(push.clone(), &Context::default())?;
            let level = outputs.first().and_then(level);
            let level = level.ok_or_else(|| Unpublishable::Level(name.clone()))?;
            Ok((&**name, level))
        });
        levels.collect::<Result<_, _>>().map(Levels)
    }

    /// What is compared with the last push of the same item; `None` if the push is none that is published.
    ///
    /// # Errors
    /// [`FilterError`] when the filter fails.
    pub fn compared(on_change: &Filter, push: &Val) -> Result<Option<Bytes>, FilterError> {
        let outputs = on_change.run(push.clone(), &Context::default())?;
        let value = outputs.first().filter(|value| !matches!(value, Val::Null));
        value.map(|value| filter::to_json(value, MAX_OUTPUT_BYTES)).transpose()
    }
}

/// A value as a level of a topic.
fn level(value: &Val) -> Option<String> {
    let text = match value {
        Val::TStr(_) | Val::Num(_) => filter::to_bytes(value, MAX_LEVEL_BYTES).ok()?,
        _ => return None,
    };
    let text = String::from_utf8(text.into()).ok()?;
    let is_part = |c: char| !matches!(c, '/' | '+' | '#') && !c.is_control();
    (!text.is_empty() && text.chars().all(is_part)).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn levels(filter: &str, push: &str) -> Result<String, Unpublishable> {
        let values = vec![("site".into(), Filter::compile(filter).unwrap())];
        let every = Every { period: Duration::ZERO, on_change: None, values };
        let push = filter::parse(push.as_bytes()).unwrap();
        every.levels(&push).map(|levels| levels.get("site").unwrap().to_owned())
    }

    #[test]
    fn a_value_is_exactly_one_level() {
        assert_eq!(levels(".a", r#"{"a":"north 1"}"#).as_deref(), Ok("north 1"));
        assert_eq!(levels(".a", r#"{"a":12}"#).as_deref(), Ok("12"));
        for (filter, push) in [
            (".a", r#"{"a":"x/y"}"#),
            (".a", r#"{"a":"+"}"#),
            (".a", r##"{"a":"#"}"##),
            (".a", r#"{"a":""}"#),
            (".a", r#"{"a":"x\u0000"}"#),
            (".a", r#"{"a":null}"#),
            (".a", r#"{"a":true}"#),
            (".a", r#"{"a":["x"]}"#),
            (".a * 2000", r#"{"a":"x"}"#),
            ("empty", "{}"),
        ] {
            assert_eq!(levels(filter, push), Err(Unpublishable::Level("site".into())), "{push}");
        }
        assert!(matches!(levels(".a.b", r#"{"a":1}"#), Err(Unpublishable::Filter(_))));
    }

    #[test]
    fn what_is_compared_is_a_value_or_nothing() {
        let compared = |filter: &str| {
            let push = filter::parse(br#"{"a":{"b": 1.50},"n":null}"#).unwrap();
            Every::compared(&Filter::compile(filter).unwrap(), &push).unwrap()
        };
        assert_eq!(compared(".a").as_deref(), Some(&br#"{"b":1.50}"#[..]));
        assert_eq!((compared(".n"), compared("empty")), (None, None));
    }
}
