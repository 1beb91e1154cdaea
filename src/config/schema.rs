//! The JSON Schema of a configuration, for editors: `schema.json` says what there is, the shipped file what it means and
//! which value it has where nothing is written. Tests hold it against what the reader asks for, and against every file of
//! the repository.

use serde_json::{Value, json};
use toml::de::DeValue;

use super::{SHIPPED, reader::DEFAULTS};

const KEYS: &str = include_str!("schema.json");
/// What begins after the settings in the shipped file.
const TABLE: &str = "# ---- The table";

/// The schema, as JSON.
///
/// # Panics
/// If the compiled-in texts are no JSON and no TOML: a test reads both.
pub fn schema() -> String {
    let mut schema: Value = serde_json::from_str(KEYS).expect("it is JSON: a test reads it");
    for Described { section, key, comment } in described(SHIPPED) {
        let path = section.split('.').chain(key).flat_map(|name| ["properties", name]);
        let pointer: String = path.flat_map(|name| ["/", name]).collect();
        // A comment may be of a word that is no key, or of a name of the operator's own.
        let Some(Value::Object(property)) = schema.pointer_mut(&pointer) else { continue };
        property.entry("description").or_insert_with(|| json!(comment));
        // Where the shipped value is an example there is no default.
        let default = key.filter(|_| !property.contains_key("examples"));
        if let Some(default) = default.and_then(|key| shipped(section, key)) {
            property.insert("default".to_owned(), default);
        }
    }
    format!("{schema:#}")
}

/// What the shipped file says of a section or key.
struct Described<'t> {
    section: &'t str,
    key: Option<&'t str>,
    comment: &'t str,
}

/// The comments at the ends of lines, also of keys that are commented out themselves; no comment is "".
fn described(text: &str) -> Vec<Described<'_>> {
    let mut section = "";
    let settings = text.lines().take_while(|line| !line.starts_with(TABLE));
    let described = settings.filter_map(|line| {
        let line = line.strip_prefix("# ").unwrap_or(line);
        let (code, comment) = line.split_once("  # ").unwrap_or((line, ""));
        if let Some(name) = code.trim().strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
            section = name;
            return Some(Described { section, key: None, comment });
        }
        let key = code.split('=').next().unwrap_or_default().trim();
        let is_key = !key.is_empty() && !key.contains(|c: char| !c.is_alphanumeric() && c != '_');
        is_key.then_some(Described { section, key: Some(key), comment })
    });
    described.filter(|described| !described.section.is_empty()).collect()
}

/// The default of a key.
fn shipped(section: &str, key: &str) -> Option<Value> {
    let mut table = &*DEFAULTS;
    for name in section.split('.') {
        table = table.get(name)?.get_ref().as_table()?;
    }
    match table.get(key)?.get_ref() {
        DeValue::String(text) => Some(json!(text)),
        DeValue::Integer(number) => number.to_string().parse().ok().map(Value::Number),
        _ => None,
    }
}

#[cfg(test)]
pub(super) mod tests;
