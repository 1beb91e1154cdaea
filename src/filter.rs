//! jq filters from the table, compiled at start-up by `jaq`.
//!
//! Filters belong to the operator, their input to strangers: every filter ends, what it can put out is
//! bounded, `halt` is an error instead of the end of the process, and the environment cannot be read.

use std::fmt;

use bytes::Bytes;
use jaq_core::{
    Ctx, Vars,
    data::JustLut,
    load::{
        self, Arena, File, Loader,
        lex::{Lexer, StrPart, Tok, Token},
    },
    native::{self, Fun},
};
pub use jaq_json::Val;

/// Most values that one run of a filter may put out.
const MAX_OUTPUTS: usize = 1000;
/// Longest error text that is passed on; it may quote the input.
const MAX_ERROR_BYTES: usize = 200;
/// What every filter can read besides its input.
const VARIABLES: [&str; 2] = ["$memory", "$payload"];
/// Functions of the library that are not there, or not as they are.
const REPLACED: [&str; 2] = ["env", "fromjson"];
/// What can run for ever, or nearly. Nothing can stop a filter that runs, and it has a thread to itself.
const LOOPS: [&str; 7] = ["def", "repeat", "recurse", "while", "until", "range", "combinations"];

/// The values of a filter's variables.
#[derive(Debug, Clone, Default)]
pub struct Context {
    /// `$memory`: what was remembered of the device, or null.
    pub memory: Val,
    /// `$payload`: the message's payload if it is JSON, or null.
    pub payload: Val,
}

/// A compiled jq filter.
pub struct Filter {
    text: Box<str>,
    /// Whether it mentions `$payload`, which is parsed only for those that do.
    reads_payload: bool,
    /// Whether it mentions the time.
    reads_clock: bool,
    program: jaq_core::Filter<JustLut<Val>>,
}

/// A filter that failed on its input.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FilterError(String);

impl Filter {
    /// Compiles a filter.
    ///
    /// # Errors
    /// What jq does not understand, or what could run for ever, on one line.
    pub fn compile(text: &str) -> Result<Self, String> {
        // What is no token at all is said by the loader.
        let tokens = Lexer::new(text).lex().unwrap_or_default();
        if let Some(word) = find_loop(&tokens, false) {
            return Err(format!(
                "`{word}` could run for ever, and a message with it; a filter has no loops but `.[]`, `..`, \
                 `reduce` and `foreach`"
            ));
        }
        let defs = jaq_core::defs().chain(jaq_std::defs()).chain(jaq_json::defs());
        let funs = jaq_core::funs().chain(jaq_std::funs()).chain(jaq_json::funs());
        let arena = Arena::default();
        let modules =
            Loader::new(defs).load(&arena, File { code: text, path: () }).map_err(|errors| {
                describe(text, errors.into_iter().map(|(_, error)| load_error(error)))
            })?;
        let program = jaq_core::Compiler::default()
            .with_funs(funs.filter(|(name, ..)| !REPLACED.contains(name)).chain([fromjson()]))
            .with_global_vars(VARIABLES)
            .compile(modules)
            .map_err(|errors| {
                let undefined = errors.into_iter().flat_map(|(_, errors)| errors);
                describe(
                    text,
                    undefined.map(|(name, what)| format!("undefined {} `{name}`", what.as_str())),
                )
            })?;
        Ok(Self {
            text: text.into(),
            reads_payload: text.contains("$payload"),
            reads_clock: text.contains("now"),
            program,
        })
    }

    /// Runs the filter; all its outputs in order.
    ///
    /// # Errors
    /// [`FilterError`] when the filter fails, halts or puts out more than a thousand values.
    pub fn run(&self, input: Val, context: &Context) -> Result<Vec<Val>, FilterError> {
        let variables = Vars::new([context.memory.clone(), context.payload.clone()]);
        let context = Ctx::<JustLut<Val>>::new(&self.program.lut, variables);
        let mut outputs = Vec::new();
        for output in self.program.id.run((context, input)) {
            if outputs.len() == MAX_OUTPUTS {
                return Err(FilterError(format!("more than {MAX_OUTPUTS} outputs")));
            }
            outputs.push(output.map_err(|exception| match exception.get_err() {
                Ok(error) => FilterError(shorten(error.to_string())),
                Err(_) => FilterError("the filter halted".to_owned()),
            })?);
        }
        Ok(outputs)
    }

    /// Whether the filter's outputs can differ with the same input and the same memory.
    pub fn is_changeable(&self) -> bool {
        self.reads_payload || self.reads_clock
    }

    /// The filter as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the filter mentions `$payload`. The hot path spares parsing the payload otherwise.
    pub fn reads_payload(&self) -> bool {
        self.reads_payload
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
/// When the text is not JSON or nested too deeply.
pub fn parse(text: &[u8]) -> Result<Val, FilterError> {
    crate::json::check(text).map_err(|error| FilterError(error.to_string()))?;
    jaq_json::read::parse_single(text).map_err(|error| FilterError(error.to_string()))
}

/// The bytes that carry a value on the wire when it is one word: a string's own bytes, anything
/// else as JSON.
pub fn to_bytes(value: &Val) -> Bytes {
    match value {
        Val::TStr(text) | Val::BStr(text) => (**text).clone(),
        other => to_json(other),
    }
}

/// The value as JSON text.
pub fn to_json(value: &Val) -> Bytes {
    value.to_string().into()
}

/// jq's truth: everything but `false` and `null`.
pub fn is_true(value: &Val) -> bool {
    !matches!(value, Val::Null | Val::Bool(false))
}

/// jq's `fromjson`, which `tonumber` and `toboolean` use: the library's own follows any depth, until the
/// stack ends and the process with it.
fn fromjson() -> Fun<JustLut<Val>> {
    native::run(("fromjson", native::v(0), |cv| {
        let parsed = match &cv.1 {
            Val::TStr(text) | Val::BStr(text) => parse(text),
            _ => Err(FilterError("only a text can be JSON".to_owned())),
        };
        native::bome(parsed.map_err(|error| jaq_core::Error::str(shorten(error.0))))
    }))
}

/// A word that starts a loop; not the name of a field, which follows a `.`, stands before a `:`, or in an
/// object by itself.
fn find_loop<'t>(tokens: &[Token<&'t str>], in_object: bool) -> Option<&'t str> {
    tokens.iter().enumerate().find_map(|(index, Token(text, kind))| match kind {
        Tok::Word if LOOPS.contains(text) => {
            let before = index.checked_sub(1).and_then(|index| tokens.get(index));
            let after = tokens.get(index + 1);
            let alone = before.is_none_or(|token| token.0 == ",")
                && after.is_none_or(|token| matches!(token.0, "," | "}"));
            let is_field = before.is_some_and(|token| token.0 == ".")
                || after.is_some_and(|token| token.0 == ":")
                || in_object && alone;
            (!is_field).then_some(*text)
        }
        Tok::Block(tokens) => find_loop(tokens, text.starts_with('{')),
        Tok::Str(parts) => parts.iter().find_map(|part| match part {
            StrPart::Term(token) => find_loop(std::slice::from_ref(token), false),
            StrPart::Str(_) | StrPart::Char(_) => None,
        }),
        _ => None,
    })
}

fn shorten(mut text: String) -> String {
    if text.len() > MAX_ERROR_BYTES {
        let cut = text.floor_char_boundary(MAX_ERROR_BYTES);
        text.truncate(cut);
        text.push('…');
    }
    text
}

fn describe(text: &str, errors: impl Iterator<Item = String>) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    format!("`{}` is not jq: {}", shorten(line), errors.collect::<Vec<_>>().join("; "))
}

fn load_error(error: load::Error<&str>) -> String {
    let sentence = |what: &str, found: &str| match found.trim() {
        "" => format!("expected {what} at the end"),
        found => format!("expected {what} at `{found}`"),
    };
    let sentences: Vec<String> = match error {
        load::Error::Io(errors) => {
            errors.into_iter().map(|(name, e)| format!("{name}: {e}")).collect()
        }
        load::Error::Lex(errors) => {
            errors.into_iter().map(|(expected, at)| sentence(expected.as_str(), at)).collect()
        }
        load::Error::Parse(errors) => {
            errors.into_iter().map(|(expected, at)| sentence(expected.as_str(), at)).collect()
        }
    };
    sentences.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(filter: &str, input: &str) -> Result<Vec<String>, FilterError> {
        let memory = parse(br#"{"version":"1.0"}"#).unwrap();
        let context = Context { memory, payload: Val::Null };
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
        assert!(Filter::compile("$x").unwrap_err().contains("undefined variable `$x`"));
    }

    #[test]
    fn words_go_out_as_their_own_bytes() {
        assert_eq!(to_bytes(&parse(b"\"c-1\"").unwrap()), "c-1");
        assert_eq!(to_bytes(&parse(b"50").unwrap()), "50");
        assert_eq!(to_json(&parse(b"{\"a\": [1.0, \"x\"]}").unwrap()), "{\"a\":[1.0,\"x\"]}");
    }
}
