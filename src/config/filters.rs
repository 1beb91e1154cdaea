//! Reads the jq of rows: a text, or `{ filter = "name" }` for one of `[filters]`.

use std::{cell::Cell, ops::Range};

use toml::{Spanned, de::DeValue};

use super::{names::nearest, reader::Section, values::label};
use crate::{filter::Filter, topic};

/// The filters that rows can name.
pub(super) struct Filters<'a> {
    section: Section<'a>,
    named: Vec<Named>,
}

struct Named {
    name: String,
    span: Range<usize>,
    /// `None` if it does not compile, which is noted once, where it stands.
    filter: Option<Filter>,
    is_used: Cell<bool>,
}

impl<'a> Filters<'a> {
    pub(super) fn read(root: &Section<'a>) -> Self {
        let section = root.section("filters");
        let mut named = Vec::new();
        for (name, value) in section.entries() {
            let span = value.span();
            let note = |text| section.mistake(Some(span.clone()), &name, text);
            if let Err(text) = label(&name) {
                note(text);
            }
            let filter = match value.get_ref() {
                DeValue::String(text) => Filter::compile(text).map_err(note).ok(),
                other => {
                    note(format!("expected a jq text, found {}", other.type_str()));
                    None
                }
            };
            named.push(Named { name, span, filter, is_used: Cell::new(false) });
        }
        Self { section, named }
    }

    /// The filter under this key of a row; `None` if there is none, or it is wrong, which is noted.
    pub(super) fn get(&self, row: &Section<'a>, key: &'static str) -> Option<Filter> {
        self.filter(row, key, row.take(key)?)
    }

    /// The filters of a table of names under this key, in order of their names. What is wrong is noted.
    pub(super) fn named(&self, row: &Section<'a>, key: &'static str) -> Vec<(Box<str>, Filter)> {
        let Some(table) = row.inline_at(key) else { return Vec::new() };
        let entries: Vec<_> = table.entries().collect();
        let named = entries.into_iter().filter_map(|(name, value)| {
            if !topic::is_name(&name) {
                let text = format!("invalid name `{name}`; use letters, digits and `_`");
                row.mistake(Some(value.span()), key, text);
            }
            let filter = self.filter(&table, &name, value)?;
            Some((name.into(), filter))
        });
        named.collect()
    }

    fn filter(&self, row: &Section<'a>, key: &str, value: Spanned<DeValue<'a>>) -> Option<Filter> {
        let span = value.span();
        let table = match value.into_inner() {
            DeValue::Table(table) => table,
            other => {
                let scalar = row.scalar(key, Spanned::new(span, other))?;
                return if scalar.text.is_empty() {
                    None
                } else {
                    row.parse(scalar, Filter::compile)
                };
            }
        };
        let entry = row.inline(key, span.clone(), table);
        let missing = "missing: the name of one of [filters]";
        let name = entry.required("filter", |text| Ok(text.to_owned()), missing);
        entry.finish();
        let name = name?;
        let Some(named) = self.named.iter().find(|named| named.name == name) else {
            let hint = nearest(self.named.iter().map(|named| &*named.name), &name);
            row.mistake(Some(span), key, format!("unknown filter `{name}`{hint}"));
            return None;
        };
        named.is_used.set(true);
        named.filter.clone()
    }

    /// Notes every filter that no row names.
    pub(super) fn finish(self) {
        for named in self.named.iter().filter(|named| !named.is_used.get()) {
            let text = "unused: no row names this filter; take it out";
            self.section.mistake(Some(named.span.clone()), &named.name, text);
        }
    }
}
