//! What a payload or a body is in a case: a text stands for its own bytes, anything else for JSON.

use bytes::Bytes;
use serde_json::{Map, Number, Value};
use toml::de::DeValue;

use super::compare::same;

/// What a payload or a body must be, or is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Content {
    /// These bytes.
    Bytes(Bytes),
    /// This value, written in any way.
    Json(Value),
}

impl Content {
    /// What the API answers if the case does not say.
    pub(super) fn untold() -> Self {
        Self::Json(Value::Object(Map::new()))
    }

    /// What a case writes.
    ///
    /// # Errors
    /// A sentence when JSON has no words for it.
    pub(super) fn of(value: DeValue<'_>) -> Result<Self, String> {
        match value {
            DeValue::String(text) => Ok(Self::Bytes(text.into_owned().into())),
            other => json(other).map(Self::Json),
        }
    }

    /// As it goes over the wire.
    pub(super) fn bytes(&self) -> Bytes {
        match self {
            Self::Bytes(bytes) => bytes.clone(),
            Self::Json(value) => value.to_string().into(),
        }
    }

    /// As JSON, if it is some.
    pub(super) fn value(&self) -> Option<Value> {
        match self {
            Self::Bytes(bytes) => serde_json::from_slice(bytes).ok(),
            Self::Json(value) => Some(value.clone()),
        }
    }

    /// Whether these bytes are it: the same value where both are JSON, else the same bytes.
    pub(super) fn is(&self, bytes: &Bytes) -> bool {
        match (self.value(), serde_json::from_slice::<Value>(bytes)) {
            (Some(expected), Ok(found)) => same(&expected, &found),
            _ => self.bytes() == bytes,
        }
    }
}

fn json(value: DeValue<'_>) -> Result<Value, String> {
    Ok(match value {
        DeValue::String(text) => Value::String(text.into_owned()),
        DeValue::Integer(number) => {
            let number = number.to_string().parse::<Number>();
            Value::Number(number.map_err(|_| "this number is too large for JSON".to_owned())?)
        }
        DeValue::Float(number) => {
            let number = number.to_string().parse().ok().and_then(Number::from_f64);
            Value::Number(number.ok_or("JSON has no word for this number")?)
        }
        DeValue::Boolean(value) => Value::Bool(value),
        DeValue::Datetime(time) => Value::String(time.to_string()),
        DeValue::Array(items) => {
            let items = items.into_iter().map(|item| json(item.into_inner()));
            Value::Array(items.collect::<Result<_, _>>()?)
        }
        DeValue::Table(table) => {
            let members = table.into_iter().map(|(name, value)| {
                Ok::<_, String>((name.into_inner().into_owned(), json(value.into_inner())?))
            });
            Value::Object(members.collect::<Result<Map<_, _>, _>>()?)
        }
    })
}

#[cfg(test)]
mod tests {
    use toml::de::DeTable;

    use super::*;

    fn content(text: &str) -> Result<Content, String> {
        let text = format!("x = {text}");
        let mut table = DeTable::parse(&text).unwrap().into_inner();
        Content::of(table.remove("x").unwrap().into_inner())
    }

    #[test]
    fn a_text_is_its_own_bytes_and_anything_else_json() {
        assert_eq!(content("'ON'").unwrap().bytes(), "ON");
        assert_eq!(content(r#"'"ON"'"#).unwrap().bytes(), "\"ON\"");
        let object = content("{ a = 1, b = [2.5, true, 'x'], c = { d = 1979-05-27 } }").unwrap();
        assert_eq!(object.bytes(), r#"{"a":1,"b":[2.5,true,"x"],"c":{"d":"1979-05-27"}}"#);
        assert!(content("nan").is_err() && content("[inf]").is_err());
    }

    #[test]
    fn json_is_compared_as_a_value_and_everything_else_byte_for_byte() {
        let is = |expected: &str, found: &'static str| content(expected).unwrap().is(&found.into());
        assert!(is("{ a = 1, b = 2 }", " {\"b\": 2.0, \"a\": 1}"));
        assert!(is(r#"'{"b": null}'"#, "{\"b\":null}") && is("21.5", "21.50"));
        assert!(!is("{ a = 1 }", "{\"a\":1,\"b\":2}") && !is("{ a = 1 }", "x"));
        assert!(is("'a b'", "a b") && !is("'a b'", "a  b") && !is("''", "{}"));
    }
}
