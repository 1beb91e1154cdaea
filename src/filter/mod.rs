//! jq filters from the table, compiled at start-up by `jaq`.
//!
//! Filters belong to the operator, their input to strangers. Whatever both are, a run ends soon and with a
//! result or an error: what it may take in, cost and put out is bounded, `halt` is an error instead of the end
//! of the process, and the environment cannot be read.

mod access;
mod compile;
mod fuel;
mod math;
mod natives;
#[cfg(test)]
mod properties;
mod reads;
mod value;

use std::{
    fmt::{self, Write as _},
    sync::Arc,
};

use bytes::Bytes;
use jaq_core::{Ctx, Vars, data::JustLut};
pub use jaq_json::Val;

pub use self::reads::Reads;
use self::{
    compile::Program,
    fuel::{FUEL, metered},
    value::Value,
};
use crate::json::{self, NotJson};

/// Most values that one run of a filter may put out.
pub const MAX_OUTPUTS: usize = 1000;
/// Most bytes that the outputs of one run have together where nothing else bounds them.
pub const MAX_OUTPUT_BYTES: usize = 2 * 1024 * 1024;
/// Longest error text that is passed on; it may quote the input.
const MAX_ERROR_BYTES: usize = 200;
/// What every filter can read besides its input.
const VARIABLES: [&str; 4] = ["$memory", "$payload", "$captures", "$message"];

/// The values of a filter's variables.
#[derive(Debug, Clone, Default)]
pub struct Context {
    /// `$memory`: what was remembered of the device, or null.
    pub memory: Val,
    /// `$payload`: the message's payload as its row takes it, or null.
    pub payload: Val,
    /// `$captures`: an object of the captured levels.
    pub captures: Val,
    /// `$message`: an object of the topic and the user properties, without the key.
    pub message: Val,
}

/// A compiled jq filter. Cheap to clone.
#[derive(Clone)]
pub struct Filter {
    text: Arc<str>,
    /// What of the message it mentions.
    reads: Reads,
    /// Whether it mentions the time.
    reads_clock: bool,
    program: Arc<Program>,
}

/// A filter that failed on its input.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FilterError(pub String);

impl From<NotJson> for FilterError {
    fn from(error: NotJson) -> Self {
        Self(error.to_string())
    }
}

impl Filter {
    /// Compiles a filter.
    ///
    /// # Errors
    /// What jq does not understand, or what could run for ever, on one line.
    pub fn compile(text: &str) -> Result<Self, String> {
        Ok(Self {
            text: text.into(),
            reads: Reads::of_text(text),
            reads_clock: text.contains("now"),
            program: Arc::new(compile::compile(text)?),
        })
    }

    /// Runs the filter; all its outputs in order.
    ///
    /// # Errors
    /// [`FilterError`] when the filter fails, halts, puts out more than [`MAX_OUTPUTS`] values, or takes too
    /// many steps or too much memory.
    pub fn run(&self, input: Val, context: &Context) -> Result<Vec<Val>, FilterError> {
        self.run_on(FUEL, input, context).0
    }

    /// Runs it with this much fuel, and returns what is left.
    fn run_on(
        &self,
        fuel: u64,
        input: Val,
        context: &Context,
    ) -> (Result<Vec<Val>, FilterError>, u64) {
        let Context { memory, payload, captures, message } = context;
        let variables = [memory, payload, captures, message].map(Clone::clone);
        match metered(fuel, || self.outputs(input, variables)) {
            Ok((outputs, left)) => (outputs, left),
            Err(spent) => (Err(FilterError(spent.to_string())), 0),
        }
    }

    fn outputs(&self, input: Val, variables: [Val; 4]) -> Result<Vec<Val>, FilterError> {
        let variables = Vars::new(variables.map(Value::input));
        let context = Ctx::<JustLut<Value>>::new(&self.program.lut, variables);
        let mut outputs = Vec::new();
        for output in self.program.id.run((context, Value::input(input))) {
            if outputs.len() == MAX_OUTPUTS {
                return Err(FilterError(format!("more than {MAX_OUTPUTS} outputs")));
            }
            outputs.push(output.map(|value| value.val).map_err(|exception| {
                match exception.get_err() {
                    Ok(error) => FilterError(shorten(error.to_string())),
                    Err(_) => FilterError("the filter halted".to_owned()),
                }
            })?);
        }
        Ok(outputs)
    }

    /// Whether the filter's outputs can differ with the same input and the same memory.
    pub fn is_changeable(&self) -> bool {
        self.reads_message() || self.reads_clock
    }

    /// Whether the filter mentions anything of the message.
    pub fn reads_message(&self) -> bool {
        self.reads != Reads::default()
    }

    /// The filter as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What of the message the filter mentions. The hot path spares making the rest.
    pub fn reads(&self) -> Reads {
        self.reads
    }
}

impl Filter {
    /// Its jq text.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Filter({})", self.text)
    }
}

/// Reads one JSON value.
///
/// # Errors
/// When the text is not JSON, nested too deeply, or has a number or an escape that no filter can be given.
pub fn parse(text: &[u8]) -> Result<Val, FilterError> {
    json::check_for_filter(text)?;
    jaq_json::read::parse_single(text).map_err(|error| FilterError(error.to_string()))
}

/// The bytes that carry a value on the wire when it is one word: a string's own bytes, anything
/// else as JSON.
///
/// # Errors
/// As [`to_json`].
pub fn to_bytes(value: &Val, max: usize) -> Result<Bytes, FilterError> {
    match value {
        Val::TStr(text) if text.len() <= max => Ok((**text).clone()),
        other => to_json(other, max),
    }
}

/// The value as JSON text.
///
/// # Errors
/// When it takes more than `max` bytes, or is what JSON has no words for: `NaN`, infinity, too deep a nesting.
pub fn to_json(value: &Val, max: usize) -> Result<Bytes, FilterError> {
    let mut text = Bounded { text: String::new(), max };
    if write!(text, "{value}").is_err() {
        return Err(FilterError(format!("puts out more than {max} bytes")));
    }
    json::check(text.text.as_bytes())
        .map_err(|error| FilterError(format!("puts out what is no JSON: {error}")))?;
    Ok(text.text.into())
}

/// A text as filters have it.
pub fn text(text: &str) -> Val {
    Val::utf8_str(text.to_owned())
}

/// An object of these members; of a name that stands twice, the first.
pub fn object<'n>(members: impl Iterator<Item = (&'n str, Val)>) -> Val {
    let mut object = jaq_json::Map::default();
    for (name, value) in members {
        object.entry(text(name)).or_insert(value);
    }
    Val::obj(object)
}

/// jq's truth: everything but `false` and `null`.
pub fn is_true(value: &Val) -> bool {
    !matches!(value, Val::Null | Val::Bool(false))
}

/// A text that is not longer than it may be.
struct Bounded {
    text: String,
    max: usize,
}

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.text.len() + text.len() > self.max {
            return Err(fmt::Error);
        }
        self.text.push_str(text);
        Ok(())
    }
}

/// A text that may quote input, cut to what is passed on.
pub fn shorten(mut text: String) -> String {
    if text.len() > MAX_ERROR_BYTES {
        let cut = text.floor_char_boundary(MAX_ERROR_BYTES);
        text.truncate(cut);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(filter: &str, input: &str) -> Result<Vec<String>, FilterError> {
        let memory = parse(br#"{"version":"1.0"}"#).unwrap();
        let context = Context { memory, ..Context::default() };
        let outputs =
            Filter::compile(filter).unwrap().run(parse(input.as_bytes()).unwrap(), &context)?;
        Ok(outputs.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn filters_see_their_input_and_the_memory() {
        assert_eq!(run(".a", r#"{"a":1}"#).unwrap(), ["1"]);
        assert_eq!(run(".[] | select(. > 1)", "[1,2,3]").unwrap(), ["2", "3"]);
        assert_eq!(run("$memory.version", "null").unwrap(), ["\"1.0\""]);
        assert_eq!(run("empty", "null").unwrap(), Vec::<String>::new());
    }

    #[test]
    fn filters_cannot_hurt() {
        assert!(run(".a.b", r#"{"a":1}"#).is_err());
        assert!(run(".[]", &format!("[{}0]", "0,".repeat(1000))).unwrap_err().0.contains("1000"));
        assert!(run("halt", "null").unwrap_err().to_string().contains("halted"));
        assert!(Filter::compile("env").is_err());
        assert!(run(".a", &format!("\"{}\"", "x".repeat(1000))).unwrap_err().0.len() < 250);
    }

    #[test]
    fn every_filter_ends() {
        let endless = [
            "def f: f; f",
            "repeat(.)",
            ".a | recurse(.)",
            "[range(.n)]",
            "\"\\(until(false; .))\"",
            "{a: [while(true; .)]}",
            "combinations(9)",
        ];
        for filter in endless {
            let mistake = Filter::compile(filter).unwrap_err();
            assert!(mistake.contains("could run for ever"), "{filter}: {mistake}");
        }
        let filter = ".range, .a.repeat, {until: .range}, \"def\", {range}, {while, a}";
        let fields = run(filter, r#"{"range":1,"a":{}}"#);
        let expected = [
            "1",
            "null",
            r#"{"until":1}"#,
            "\"def\"",
            r#"{"range":1}"#,
            r#"{"while":null,"a":{}}"#,
        ];
        assert_eq!(fields.unwrap(), expected);
    }

    #[test]
    fn text_is_taken_for_json_only_if_it_is_shallow() {
        assert_eq!(run("tonumber, fromjson", "\"-1.5e3\"").unwrap(), ["-1.5e3", "-1.5e3"]);
        assert_eq!(run("fromjson.a", "\"{\\\"a\\\":[1]}\"").unwrap(), ["[1]"]);
        let deep = format!("\"{}\"", "[".repeat(1_000_000));
        for filter in ["fromjson", "tonumber", "toboolean"] {
            assert!(run(filter, &deep).unwrap_err().0.len() < 250, "{filter}");
        }
        assert!(run("fromjson", "1").is_err());
    }

    #[test]
    fn mistakes_are_named() {
        assert!(Filter::compile(".a |").unwrap_err().contains("at the end"));
        assert!(Filter::compile("nosuch(.)").unwrap_err().contains("undefined filter `nosuch`"));
        let unknown = Filter::compile("$device").unwrap_err();
        assert!(unknown.contains("undefined variable `$device`; there are $memory, $payload, "));
    }

    #[test]
    fn words_go_out_as_their_own_bytes() {
        let value = |text: &str| parse(text.as_bytes()).unwrap();
        assert_eq!(to_bytes(&value("\"c-1\""), 3).unwrap(), "c-1");
        assert!(to_bytes(&value("\"c-1\""), 2).is_err());
        assert_eq!(to_bytes(&value("50"), 10).unwrap(), "50");
        let object = to_json(&value("{\"a\": [1.0, \"x\"]}"), 100).unwrap();
        assert_eq!(object, "{\"a\":[1.0,\"x\"]}");
    }
}
