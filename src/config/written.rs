//! Writes values as TOML.

use std::fmt::Write;

use toml::de::{DeTable, DeValue};

/// A value, on one line unless it is a text of several.
pub(super) fn value(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => self::text(text),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(items) => {
            let items: Vec<_> = items.iter().map(|item| self::value(item.get_ref())).collect();
            format!("[{}]", items.join(", "))
        }
        DeValue::Table(table) => inline(table),
    }
}

fn inline(table: &DeTable<'_>) -> String {
    let members = table.iter().map(|(name, value)| {
        let name = name.get_ref();
        let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
        let is_bare = !name.is_empty() && name.bytes().all(is_bare);
        let name = if is_bare { name.to_string() } else { text(name) };
        format!("{name} = {}", self::value(value.get_ref()))
    });
    let members: Vec<_> = members.collect();
    if members.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", members.join(", ")) }
}

/// As it is, in single quotes, where that can be; else escaped.
fn text(text: &str) -> String {
    let is_plain = |letter: char| !letter.is_control() || letter == '\n' || letter == '\t';
    let quote = if text.contains('\n') || text.contains('\'') { "'''" } else { "'" };
    let is_literal = text.chars().all(is_plain) && !text.contains("'''") && !text.ends_with('\'');
    if !text.contains(['"', '\\']) && text.chars().all(|letter| !letter.is_control()) {
        format!("\"{text}\"")
    } else if is_literal {
        // A first newline would be dropped.
        let first = if text.starts_with('\n') { "\n" } else { "" };
        format!("{quote}{first}{text}{quote}")
    } else {
        let mut written = String::from("\"");
        for letter in text.chars() {
            match letter {
                '"' => written.push_str("\\\""),
                '\\' => written.push_str("\\\\"),
                letter if letter.is_control() => {
                    // Writing into a string cannot fail.
                    let _ = write!(written, "\\u{:04X}", u32::from(letter));
                }
                letter => written.push(letter),
            }
        }
        written.push('"');
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_as_the_same() {
        for text in [
            "",
            "a",
            "a b",
            "say \"so\"",
            "C:\\x",
            "it's",
            "a\n'b'\n",
            "\n\nx",
            "'''\"",
            "\u{7}\r\"",
            "ends'\"",
        ] {
            let value = DeValue::String(text.into());
            let written = format!("x = {}", self::value(&value));
            let table = DeTable::parse(&written).unwrap_or_else(|e| panic!("{written}: {e}"));
            assert_eq!(
                table.get_ref().get("x").unwrap().get_ref().as_str(),
                Some(text),
                "{written}"
            );
        }
        let text = "x = [1, 2.5, true, {}, { a = \"b\", \"c d\" = 'e\"' }]";
        let table = DeTable::parse(text).unwrap();
        let written = value(table.get_ref().get("x").unwrap().get_ref());
        assert_eq!(format!("x = {written}"), text);
    }
}
