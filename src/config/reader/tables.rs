//! Tables in tables: sections, rows, and those that are written on a line.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::Section;

impl<'a> Section<'a> {
    /// A table below this one; an empty one if it is not there.
    pub(crate) fn section(&self, key: &'static str) -> Self {
        let path = self.below(key);
        let (span, table) = match self.take(key) {
            Some(value) => {
                let span = value.span();
                match value.into_inner() {
                    DeValue::Table(table) => (span, Some(table)),
                    other => {
                        let text = format!("expected a table, found {}", other.type_str());
                        self.reader.mistake(Some(span.clone()), &path, text);
                        (span, None)
                    }
                }
            }
            None => (self.span.clone(), None),
        };
        let defaults =
            self.defaults.and_then(|table| table.get(key)).and_then(|v| v.get_ref().as_table());
        Self { defaults, ..Self::new(self.reader, path, None, span, table) }
    }

    /// The rows of `[[key]]`, each named for mistakes by its `name`.
    pub(crate) fn rows(&self, key: &'static str) -> Vec<Self> {
        let Some(value) = self.take(key) else { return Vec::new() };
        let span = value.span();
        let DeValue::Array(rows) = value.into_inner() else {
            self.reader.mistake(Some(span), key, format!("write rows as [[{key}]]"));
            return Vec::new();
        };
        let rows = rows.into_iter().filter_map(|row| {
            let span = row.span();
            let DeValue::Table(table) = row.into_inner() else {
                self.reader.mistake(Some(span), key, format!("write rows as [[{key}]]"));
                return None;
            };
            let name = table.get("name").and_then(|name| name.get_ref().as_str()).unwrap_or("?");
            let row = format!("{key} `{name}`");
            Some(Self::new(self.reader, key.to_owned(), Some(row), span, Some(table)))
        });
        rows.collect()
    }

    /// An inline table of this row, if it is there.
    pub(crate) fn inline_at(&self, key: &'static str) -> Option<Self> {
        let value = self.take(key)?;
        let span = value.span();
        match value.into_inner() {
            DeValue::Table(table) => Some(self.inline(key, span, table)),
            other => {
                let text = format!("expected a table, found {}", other.type_str());
                self.reader.mistake(Some(span), &self.place(key), text);
                None
            }
        }
    }

    /// An inline table under this key, or in an array there, as a section of this row.
    pub(crate) fn inline(&self, key: &str, span: Range<usize>, table: DeTable<'a>) -> Self {
        Self::new(self.reader, self.below(key), self.row.clone(), span, Some(table))
    }

    /// The path of what stands under a key.
    pub(super) fn below(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}
