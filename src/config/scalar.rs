//! One value as it was written, before anybody knows what it means.

use std::{borrow::Cow, ops::Range};

use toml::de::DeValue;

/// A scalar, wherever it came from.
pub(crate) struct Scalar<'a> {
    pub(crate) text: Cow<'a, str>,
    pub(crate) span: Option<Range<usize>>,
    pub(crate) place: String,
}

/// The text that stands for a scalar; else what it is instead.
pub(super) fn text(value: DeValue<'_>) -> Result<Cow<'_, str>, &'static str> {
    Ok(match value {
        DeValue::String(text) => text,
        DeValue::Integer(number) => number.to_string().into(),
        DeValue::Float(number) => number.to_string().into(),
        DeValue::Boolean(value) => value.to_string().into(),
        other => return Err(other.type_str()),
    })
}
