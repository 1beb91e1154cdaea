//! Reads configuration values one by one: from the environment, else from the text, else from the shipped
//! text, which is where every default stands. Keeps every mistake with its place instead of stopping at the first.

mod tables;
mod variables;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::LazyLock,
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    SHIPPED,
    mistake::{Mistake, PREFIX},
    names::{is_service_link, nearest_key},
    scalar::{Scalar, text},
};

/// Names that begin like ours and are read elsewhere.
pub(super) const OTHER_NAMES: [&str; 1] = ["GATEWAY_CONFIG"];

/// The place of mistakes in the syntax.
const NOT_TOML: &str = "TOML";

/// The shipped text, which has the defaults.
pub(super) static DEFAULTS: LazyLock<DeTable<'static>> = LazyLock::new(|| {
    DeTable::parse(SHIPPED).expect("the shipped text is TOML: a test reads it").into_inner()
});

/// The sources of values, and what was wrong with them.
pub(crate) struct Reader<'a> {
    text: &'a str,
    env: &'a BTreeMap<String, String>,
    reads_secrets: bool,
    mistakes: RefCell<Vec<Mistake>>,
    env_names: RefCell<BTreeSet<String>>,
    /// Every key that was asked for, by its path, whichever row or section it was of.
    #[cfg(test)]
    pub(crate) asked: std::rc::Rc<RefCell<BTreeSet<String>>>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(text: &'a str, env: &'a BTreeMap<String, String>) -> Self {
        Self {
            text,
            env,
            reads_secrets: true,
            mistakes: RefCell::default(),
            env_names: RefCell::default(),
            #[cfg(test)]
            asked: std::rc::Rc::default(),
        }
    }

    /// Reads neither secrets nor certificates.
    pub(crate) fn without_secrets(self) -> Self {
        Self { reads_secrets: false, ..self }
    }

    /// The whole document.
    pub(crate) fn root(&'a self) -> Section<'a> {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        for error in errors {
            let line = error.span().map(|span| self.line(&span));
            let text = error.message().to_owned();
            self.mistakes.borrow_mut().push(Mistake { line, place: NOT_TOML.to_owned(), text });
        }
        let span = table.span();
        let defaults = Some(&*DEFAULTS);
        Section {
            defaults,
            ..Section::new(self, String::new(), None, span, Some(table.into_inner()))
        }
    }

    pub(crate) fn mistake(&self, span: Option<Range<usize>>, place: &str, text: impl Into<String>) {
        let line = span.map(|span| self.line(&span));
        let mistake = Mistake { line, place: place.to_owned(), text: text.into() };
        self.mistakes.borrow_mut().push(mistake);
    }

    /// Names that nothing asked for and that Kubernetes sets for a Service called `gateway` or
    /// `gateway-...`, in every pod that does not refuse them.
    pub(crate) fn service_links(&self) -> Vec<String> {
        let known = self.env_names.borrow();
        let links = self.env.iter().filter(|(name, value)| {
            name.starts_with(PREFIX) && !known.contains(*name) && is_service_link(name, value)
        });
        links.map(|(name, _)| name.clone()).collect()
    }

    /// Names in the environment that nothing asked for, then all mistakes in the order of lines.
    pub(crate) fn finish(self) -> Vec<Mistake> {
        let known = self.env_names.borrow();
        for (name, value) in self.env.iter().filter(|(name, _)| name.starts_with(PREFIX)) {
            let read_elsewhere = OTHER_NAMES.contains(&name.as_str());
            if !known.contains(name) && !read_elsewhere && !is_service_link(name, value) {
                let text = nearest_key(known.iter().map(String::as_str), name);
                self.mistake(None, name, format!("unknown variable{text}"));
            }
        }
        drop(known);
        let mut mistakes = self.mistakes.into_inner();
        // What is read from a text that is not TOML is a guess, and so are its mistakes.
        if mistakes.iter().any(|mistake| mistake.place == NOT_TOML) {
            mistakes.retain(|mistake| mistake.place == NOT_TOML);
        }
        mistakes.sort_by_key(|mistake| mistake.line);
        mistakes
    }

    fn line(&self, span: &Range<usize>) -> usize {
        self.text.bytes().take(span.start).filter(|b| *b == b'\n').count() + 1
    }
}

/// One table of the document.
pub(crate) struct Section<'a> {
    reader: &'a Reader<'a>,
    /// `upstream.retry`, `route.batch`; empty at the root.
    path: String,
    /// A row's name in mistakes; rows are not overridden by the environment.
    row: Option<String>,
    span: Range<usize>,
    table: RefCell<Option<DeTable<'a>>>,
    /// The same table of the shipped text; rows have none.
    defaults: Option<&'static DeTable<'static>>,
    /// Every key that was asked for, and where it stands if it does.
    known: RefCell<BTreeMap<&'static str, Option<Range<usize>>>>,
}

impl<'a> Section<'a> {
    fn new(
        reader: &'a Reader<'a>,
        path: String,
        row: Option<String>,
        span: Range<usize>,
        table: Option<DeTable<'a>>,
    ) -> Self {
        let (table, known) = (RefCell::new(table), RefCell::default());
        Self { reader, path, row, span, table, defaults: None, known }
    }

    /// Whether secrets and certificates are read.
    pub(crate) fn reads_secrets(&self) -> bool {
        self.reader.reads_secrets
    }

    /// The line that it begins in, from 1.
    pub(crate) fn line(&self) -> usize {
        self.reader.line(&self.span)
    }

    /// A scalar as it was written: in the environment, else in the text.
    pub(crate) fn written(&self, key: &'static str) -> Option<Scalar<'a>> {
        let value = self.take(key);
        if self.row.is_none() {
            let name = self.variable(key);
            self.reader.env_names.borrow_mut().insert(name.clone());
            if let Some(text) = self.reader.env.get(&name) {
                return Some(Scalar { text: text.into(), span: None, place: name });
            }
        }
        self.scalar(key, value?)
    }

    /// What stands under a key as a scalar, if it is one.
    pub(crate) fn scalar(&self, key: &str, value: Spanned<DeValue<'a>>) -> Option<Scalar<'a>> {
        let (span, place) = (value.span(), self.place(key));
        match text(value.into_inner()) {
            Ok(text) => Some(Scalar { text, span: Some(span), place }),
            Err(kind) => {
                let text = format!("expected a text or number, found {kind}");
                self.reader.mistake(Some(span), &place, text);
                None
            }
        }
    }

    /// A scalar of the shipped text.
    pub(crate) fn shipped(&self, key: &str) -> Option<Scalar<'a>> {
        let text = text(self.defaults?.get(key)?.get_ref().clone()).ok()?;
        Some(Scalar { text, span: None, place: self.place(key) })
    }

    /// A parsed scalar without a default in the shipped text, or with the default of being empty; `None` if it is
    /// not there, empty, or wrong, which is noted.
    pub(crate) fn parsed<T>(
        &self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let scalar = self.written(key).or_else(|| self.shipped(key))?;
        if scalar.text.is_empty() { None } else { self.parse(scalar, parse) }
    }

    /// A parsed scalar that must be written; `missing` says why.
    pub(crate) fn required<T>(
        &self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
        missing: &str,
    ) -> Option<T> {
        let scalar = self.written(key);
        if scalar.is_none() {
            self.mistake(None, key, missing);
        }
        self.parse(scalar?, parse)
    }

    /// A parsed scalar without a default; `None` if it is not there or wrong, which is noted. Empty is a value.
    pub(crate) fn optional<T>(
        &self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        self.written(key).and_then(|scalar| self.parse(scalar, parse))
    }

    /// Parses a scalar; `None` if it is wrong, which is noted.
    pub(crate) fn parse<T>(
        &self,
        scalar: Scalar<'_>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        parse(&scalar.text).map_err(|text| self.mistake_in(scalar, text)).ok()
    }

    /// A parsed scalar that has its default in the shipped text.
    ///
    /// # Panics
    /// If the shipped text has no such key, or a wrong value, which a test rules out.
    pub(crate) fn value<T>(
        &self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> T {
        // What is wrong is noted, and the rest is checked as if the default stood there.
        self.optional(key, &parse).unwrap_or_else(|| self.default(key, parse))
    }

    /// A parsed scalar that must be written: what the shipped text has is an example. `missing` says why.
    ///
    /// # Panics
    /// As [`Section::value`].
    pub(crate) fn required_value<T>(
        &self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
        missing: &str,
    ) -> T {
        self.required(key, &parse, missing).unwrap_or_else(|| self.default(key, parse))
    }

    fn default<T>(&self, key: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> T {
        let parsed = self.shipped(key).and_then(|scalar| parse(&scalar.text).ok());
        parsed.expect("the shipped text has this key, with a valid value: a test reads all of it")
    }

    /// An array of anything.
    pub(crate) fn array(&self, key: &'static str) -> Vec<Spanned<DeValue<'a>>> {
        let Some(value) = self.take(key) else { return Vec::new() };
        let span = value.span();
        match value.into_inner() {
            DeValue::Array(values) => values.into_iter().collect(),
            other => {
                let text = format!("expected an array, found {}", other.type_str());
                self.reader.mistake(Some(span), &self.place(key), text);
                Vec::new()
            }
        }
    }

    /// Notes a mistake at a key of this section, or at the section itself if it has no such key.
    pub(crate) fn mistake(&self, span: Option<Range<usize>>, key: &str, text: impl Into<String>) {
        let span = span.or_else(|| self.known.borrow().get(key).cloned().flatten());
        let span = span.unwrap_or_else(|| self.span.clone());
        self.reader.mistake(Some(span), &self.place(key), text);
    }

    /// Notes a mistake in a scalar.
    pub(crate) fn mistake_in(&self, scalar: Scalar<'_>, text: String) {
        self.reader.mistake(scalar.span, &scalar.place, text);
    }

    /// Whether a mistake was noted at this key, wherever its value came from.
    pub(super) fn has_mistake(&self, key: &str) -> bool {
        let places = [self.place(key), self.variable(key)];
        self.reader.mistakes.borrow().iter().any(|mistake| places.contains(&mistake.place))
    }

    /// The variable of the environment that overrides a key of this section.
    fn variable(&self, key: &str) -> String {
        let path =
            if self.path.is_empty() { key.to_owned() } else { format!("{}_{key}", self.path) };
        format!("{PREFIX}{}", path.replace('.', "_").to_uppercase())
    }

    /// The name of the row, or the path of the section.
    pub(crate) fn place(&self, key: &str) -> String {
        match &self.row {
            Some(row) => format!("{row}: {key}"),
            None if self.path.is_empty() => key.to_owned(),
            None => format!("[{}] {key}", self.path),
        }
    }

    /// Every key of a table whose keys are names of the operator's own choice.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (String, Spanned<DeValue<'a>>)> {
        let entries = self.table.borrow_mut().take().into_iter().flatten();
        entries.map(|(key, value)| (key.get_ref().to_string(), value))
    }

    /// Whether something stands under a key that nothing has asked for yet.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.borrow().as_ref().is_some_and(|table| table.contains_key(key))
    }

    /// What stands under a key, whatever it is.
    pub(crate) fn take(&self, key: &'static str) -> Option<Spanned<DeValue<'a>>> {
        #[cfg(test)]
        self.reader.asked.borrow_mut().insert(self.below(key));
        let value = self.table.borrow_mut().as_mut().and_then(|table| table.remove(key));
        self.known.borrow_mut().insert(key, value.as_ref().map(Spanned::span));
        value
    }

    /// Notes every key that nothing asked for.
    pub(crate) fn finish(self) {
        let known = self.known.borrow();
        for (key, _) in self.table.borrow_mut().take().into_iter().flatten() {
            let text = nearest_key(known.keys().copied(), key.get_ref());
            self.reader.mistake(
                Some(key.span()),
                &self.place(key.get_ref()),
                format!("unknown key{text}"),
            );
        }
    }
}
