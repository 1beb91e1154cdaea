//! Values that a payload gives for a path or a header: each a text that can be exactly one segment, or the message is
//! refused. No topic is made of them, so that a payload speaks for nobody but its sender.

use super::{body::Opened, refusal::Refusal};
use crate::{
    filter::{Filter, Val},
    template::{self, BadSegment},
};

/// The values of one message, by name.
#[derive(Debug, Default)]
pub(super) struct Values<'r>(Vec<(&'r str, String)>);

impl<'r> Values<'r> {
    /// What these filters make of a payload.
    ///
    /// # Errors
    /// [`Refusal::BadPayload`] where one fails, [`Refusal::BadSegment`] where it makes no segment.
    pub(super) fn of(filters: &'r [(Box<str>, Filter)], opened: &Opened) -> Result<Self, Refusal> {
        let values = filters.iter().map(|(name, filter)| {
            let outputs = opened.run(filter).map_err(|error| {
                Refusal::BadPayload(format!("the value `{name}` cannot be made: {error}"))
            })?;
            Ok((&**name, segment(name, &outputs)?))
        });
        values.collect::<Result<_, Refusal>>().map(Self)
    }

    /// The value of this name.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }
}

/// The one output as a text.
fn segment(name: &str, outputs: &[Val]) -> Result<String, BadSegment> {
    let text = match outputs {
        [Val::TStr(text)] => String::from_utf8_lossy(text).into_owned(),
        [value @ (Val::Num(_) | Val::Bool(_))] => value.to_string(),
        _ => return Err(BadSegment::NoText(name.into())),
    };
    template::check_segment(name, &text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::Context;

    #[test]
    fn a_value_is_one_segment_or_none() {
        let made = |filter: &str| {
            let filter = Filter::compile(filter).unwrap();
            let text = segment("v", &filter.run(Val::Null, &Context::default()).unwrap());
            text.map_err(|error| format!("{error:?}").split('(').next().unwrap().to_owned())
        };
        for (filter, text) in [
            ("\"pump 7/x\"", "pump 7/x"),
            ("17", "17"),
            ("1.50", "1.50"),
            ("true", "true"),
            ("\"...\"", "..."),
        ] {
            assert_eq!(made(filter), Ok(text.to_owned()));
        }
        for (filter, why) in [
            ("null", "NoText"),
            ("{}", "NoText"),
            ("[1]", "NoText"),
            ("empty", "NoText"),
            ("1, 2", "NoText"),
            ("\"\"", "Dots"),
            ("\".\"", "Dots"),
            ("\"..\"", "Dots"),
            ("\"a\\nb\"", "Control"),
            ("\"x\" * 1025", "TooLong"),
        ] {
            assert_eq!(made(filter), Err(why.to_owned()), "{filter}");
        }
    }
}
