//! Checks whether a text is JSON, without building a tree of it.

use serde::de::IgnoredAny;

/// How many levels deep JSON may be nested.
pub const MAX_DEPTH: usize = 127;
/// How many digits a number may have that a filter reads. The time for arithmetic grows with them.
const MAX_DIGITS: usize = 400;

/// Why a text is not accepted as JSON: what is wrong and where, but never the text itself, which may hold keys.
#[derive(Debug, thiserror::Error)]
pub enum NotJson {
    /// It begins with U+FEFF, which JSON must not [RFC 8259, 8.1].
    #[error("it begins with a byte order mark")]
    Mark,
    /// It is not UTF-8 [RFC 8259, 8.1].
    #[error("it is not UTF-8 behind byte {0}")]
    NotUtf8(usize),
    /// It breaks the grammar.
    #[error("{0}")]
    Grammar(serde_json::Error),
    /// It is JSON, but nested too deeply.
    #[error("it is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// It is JSON, but has a number with more digits than filters accept.
    #[error("it has a number of more than {MAX_DIGITS} digits, which filters do not accept")]
    LongNumber,
}

/// Checks that `text` follows the grammar of JSON and is nested no deeper than [`MAX_DEPTH`]. Only the grammar counts:
/// `1e400` is JSON, although no receiver may be able to represent it.
///
/// # Errors
/// [`NotJson`], but never for a long number.
pub fn check(text: &[u8]) -> Result<(), NotJson> {
    grammar(text)?;
    // Nearly every text is too short to be nested too deeply, or has too few brackets, and they are quickly counted.
    let brackets = || text.iter().filter(|byte| matches!(byte, b'[' | b'{')).count();
    let may_be = text.len() > 2 * MAX_DEPTH && brackets() > MAX_DEPTH;
    if may_be && Shape::of(text).depth > MAX_DEPTH {
        return Err(NotJson::TooDeep);
    }
    Ok(())
}

/// As [`check`], for a text that a filter is going to read.
///
/// # Errors
/// [`NotJson`].
pub fn check_for_filter(text: &[u8]) -> Result<(), NotJson> {
    check(text)?;
    if text.len() > MAX_DIGITS && Shape::of(text).digits > MAX_DIGITS {
        return Err(NotJson::LongNumber);
    }
    Ok(())
}

fn grammar(text: &[u8]) -> Result<(), NotJson> {
    let text = std::str::from_utf8(text).map_err(|error| NotJson::NotUtf8(error.valid_up_to()))?;
    if text.starts_with('\u{feff}') {
        return Err(NotJson::Mark);
    }
    // `IgnoredAny` is parsed without recursion, so that no depth can overflow the stack.
    serde_json::from_str::<IgnoredAny>(text).map(|_| ()).map_err(NotJson::Grammar)
}

/// What is measured of a text that is JSON.
#[derive(Default)]
struct Shape {
    /// Deepest nesting.
    depth: usize,
    /// Most digits in a row, outside of strings.
    digits: usize,
}

impl Shape {
    fn of(text: &[u8]) -> Self {
        let mut shape = Self::default();
        let (mut depth, mut digits, mut in_string, mut escaped) = (0_usize, 0, false, false);
        for byte in text {
            if in_string {
                in_string = escaped || *byte != b'"';
                escaped = !escaped && *byte == b'\\';
                continue;
            }
            match byte {
                b'"' => in_string = true,
                b'[' | b'{' => depth += 1,
                b']' | b'}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            digits = if byte.is_ascii_digit() { digits + 1 } else { 0 };
            shape = Self { depth: shape.depth.max(depth), digits: shape.digits.max(digits) };
        }
        shape
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_told_from_everything_else() {
        for good in [
            "{}",
            " [1, 2.5e3, \"a\\n\", null, true] ",
            "\"x\"",
            "1",
            "{\"a\":{\"b\":[]}}",
            "1e400",
            "-0.0",
            "\"\\ud83d\"",
            "\"\\\\\"",
        ] {
            assert!(check(good.as_bytes()).is_ok(), "{good}");
        }
        for bad in [
            "",
            "{",
            "{a:1}",
            "[1,]",
            "1 2",
            "nul",
            "\"\u{1}\"",
            "NaN",
            "-Infinity",
            "[NaN]",
            "01",
            "+1",
            "'a'",
            "{\"a\":1,}",
            "b\"x\"",
            "{1:2}",
            "\"\\x00\"",
            "\"\\u12\"",
            "1.",
            "# x\n1",
            "{}\0",
        ] {
            assert!(check(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(check(b"\"\xff\"").unwrap_err().to_string().contains("UTF-8"));
        assert!(
            check("\u{feff}{}".as_bytes()).unwrap_err().to_string().contains("byte order mark")
        );
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
        assert!(check(nested(MAX_DEPTH).as_bytes()).is_ok());
        assert!(matches!(check(nested(MAX_DEPTH + 1).as_bytes()), Err(NotJson::TooDeep)));
        assert!(check(nested(1_000_000).as_bytes()).is_err());
        let flat = format!("[\"{}\",\"\\\"{}\"]", "[".repeat(1000), "{".repeat(1000));
        assert!(check(flat.as_bytes()).is_ok(), "brackets in strings are no nesting");
    }

    #[test]
    fn numbers_for_filters_are_bounded() {
        let long = "9".repeat(MAX_DIGITS + 1);
        assert!(check(long.as_bytes()).is_ok());
        assert!(matches!(check_for_filter(long.as_bytes()), Err(NotJson::LongNumber)));
        assert!(
            check_for_filter(format!("[\"{long}\", 1e{}]", "9".repeat(300)).as_bytes()).is_ok()
        );
    }
}
