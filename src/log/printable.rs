//! Makes text from devices safe to print. Characters that end a line, move the cursor of a terminal or change the
//! reading direction are written as escapes.

use std::fmt::{self, Debug, Write};

/// Whether a terminal only shows the character and does nothing else with it.
pub(crate) fn is_printable(letter: char) -> bool {
    !letter.is_control()
        // Zero-width and direction marks, line and paragraph separators.
        && !matches!(letter, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// The text on one line.
pub(crate) fn line(text: &str) -> String {
    let mut printed = String::with_capacity(text.len());
    // Writing into a string cannot fail, here and below.
    let _ = Escaping(&mut printed).write_str(text);
    printed
}

/// The text on one line of at most `bytes` bytes; an ellipsis is added where it was cut.
pub(crate) fn short_line(text: &str, bytes: usize) -> String {
    let whole = text.len() <= bytes;
    let mut printed = line(text.get(..text.floor_char_boundary(bytes)).unwrap_or_default());
    if !whole || printed.len() > bytes {
        printed.truncate(printed.floor_char_boundary(bytes));
        printed.push('…');
    }
    printed
}

/// The text with the lines that it has.
pub(crate) fn lines(text: &str) -> String {
    text.split('\n').map(line).collect::<Vec<_>>().join("\n")
}

/// Writes the `Debug` form of a value on one line. `Debug` of a string escapes control characters by itself, that of
/// `format_args!` does not.
pub(crate) fn write_debug(to: &mut dyn Write, value: &dyn Debug) -> fmt::Result {
    write!(Escaping(to), "{value:?}")
}

struct Escaping<W>(W);

impl<W: Write> Write for Escaping<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for letter in text.chars() {
            if is_printable(letter) {
                self.0.write_char(letter)?;
            } else {
                write!(self.0, "{}", letter.escape_default())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_text_acts_on_a_terminal() {
        let text = "a\u{1b}[31m\r\nb\u{9b}2J \u{202e}c\u{2028}\u{7f}ü✓";
        assert_eq!(line(text), "a\\u{1b}[31m\\r\\nb\\u{9b}2J \\u{202e}c\\u{2028}\\u{7f}ü✓");
        assert_eq!(lines("a\nb\u{1b}"), "a\nb\\u{1b}");
        assert!(line(text).chars().all(is_printable));
    }

    #[test]
    fn a_short_line_is_cut_between_letters() {
        assert_eq!(short_line("ääää", 5), "ää…");
        assert_eq!(short_line("ääää", 8), "ääää");
        assert_eq!(short_line("\0\0\0\0", 4), "\\u{0…");
    }
}
