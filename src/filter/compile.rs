//! From the text of a filter to what runs; or what is wrong with it, on one line.

use std::collections::BTreeSet;

use jaq_core::{
    compile::Undefined,
    data::JustLut,
    load::{
        self, Arena, File, Loader,
        lex::{Lexer, StrPart, Tok, Token},
    },
};

use super::{VARIABLES, natives, shorten, value::Value};

/// Longest filter, in bytes.
const MAX_TEXT: usize = 64 * 1024;
/// Most tokens of a filter: compiling and running it recurse as deep as it has tokens, and the stack is finite.
const MAX_TOKENS: usize = 1000;
/// Deepest brackets in a filter.
const MAX_BRACKETS: usize = 64;
/// Words of jq that loop without a bound. Fuel would end them, with an error on every message: better a mistake at
/// the start.
const LOOPS: [&str; 7] = ["def", "repeat", "recurse", "while", "until", "range", "combinations"];

pub(super) type Program = jaq_core::Filter<JustLut<Value>>;

/// Compiles a filter.
///
/// # Errors
/// What jq does not understand, or what could run for ever.
pub(super) fn compile(text: &str) -> Result<Program, String> {
    if text.len() > MAX_TEXT {
        return Err(format!("a filter of {} bytes; at most {MAX_TEXT} are allowed", text.len()));
    }
    if brackets(text) > MAX_BRACKETS {
        return Err(format!(
            "the brackets of a filter are nested deeper than {MAX_BRACKETS} levels"
        ));
    }
    // The loader below reports what is not even a token.
    let tokens = Lexer::new(text).lex().unwrap_or_default();
    if count(&tokens) > MAX_TOKENS {
        return Err(format!(
            "a filter of more than {MAX_TOKENS} tokens (names, numbers, operators)"
        ));
    }
    if let Some(word) = find_loop(&tokens, false) {
        return Err(format!(
            "`{word}` could run for ever, and a message with it; a filter has no loops but `.[]`, `..`, \
             `reduce` and `foreach`"
        ));
    }
    link(text)
}

/// Compiles the filter with what it calls of the library, and no more: a table has many filters, and each program owns
/// all that it was compiled with. What is called shows in what is undefined without it.
fn link(text: &str) -> Result<Program, String> {
    let library: Vec<_> = natives::definitions().collect();
    let mut called = BTreeSet::new();
    loop {
        let arena = Arena::default();
        let definitions = library.iter().filter(|definition| called.contains(definition.name));
        let modules =
            Loader::new(definitions.cloned()).load(&arena, File { code: text, path: () }).map_err(
                |errors| describe(text, errors.into_iter().map(|(_, error)| load_error(error))),
            )?;
        let functions = natives::functions().filter(|(name, ..)| called.contains(name));
        let compiler = jaq_core::Compiler::default().with_funs(functions);
        let undefined = match compiler.with_global_vars(VARIABLES).compile(modules) {
            Ok(program) => return Ok(program),
            Err(errors) => errors.into_iter().flat_map(|(_, errors)| errors),
        };
        let undefined: Vec<_> = undefined.collect();
        let known = called.len();
        let names = library.iter().map(|definition| definition.name);
        let names = names.chain(natives::functions::<JustLut<Value>>().map(|(name, ..)| name));
        called.extend(names.filter(|name| undefined.iter().any(|(missing, _)| missing == name)));
        if called.len() == known {
            return Err(describe(text, undefined.into_iter().map(undefined_name)));
        }
    }
}

fn undefined_name((name, what): (&str, Undefined)) -> String {
    let known = if name.starts_with('$') {
        format!("; there are {}", VARIABLES.join(", "))
    } else {
        String::new()
    };
    format!("undefined {} `{name}`{known}", what.as_str())
}

fn count(tokens: &[Token<&str>]) -> usize {
    let inside = |Token(_, kind): &Token<&str>| match kind {
        Tok::Block(tokens) => count(tokens),
        Tok::Str(parts) => parts
            .iter()
            .map(|part| match part {
                StrPart::Term(token) => count(std::slice::from_ref(token)),
                StrPart::Str(_) | StrPart::Char(_) => 0,
            })
            .sum(),
        _ => 0,
    };
    tokens.iter().map(|token| 1 + inside(token)).sum()
}

/// How deep brackets are nested; those in strings and comments count, which no real filter notices.
fn brackets(text: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = depth.max(deepest);
    }
    deepest
}

/// A word that starts a loop. The same word as the name of a field is allowed: `.range`, `{range: 1}`, `{range}`.
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

fn describe(text: &str, errors: impl Iterator<Item = String>) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    format!("invalid jq `{}`: {}", shorten(line), errors.collect::<Vec<_>>().join("; "))
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

    #[test]
    fn all_of_the_library_can_be_called() {
        let definitions =
            natives::definitions().map(|definition| (definition.name, definition.args.len()));
        let functions = natives::functions::<JustLut<Value>>();
        let functions = functions.map(|(name, arguments, _)| (name, arguments.len()));
        let names: Vec<_> =
            definitions.chain(functions).filter(|(name, _)| !LOOPS.contains(name)).collect();
        assert!(names.len() > 200, "{}", names.len());
        for (name, arguments) in names {
            let arguments = vec!["."; arguments].join("; ");
            let call =
                if arguments.is_empty() { name.to_owned() } else { format!("{name}({arguments})") };
            assert_eq!(link(&call).err(), None, "{call}");
        }
    }
}
