//! Reads configuration values one by one, from the text or from the environment, and keeps every
//! mistake with its place instead of stopping at the first.

use std::{
    borrow::Cow,
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::Range,
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// What a variable of the environment begins with to be ours.
pub(super) const PREFIX: &str = "GATEWAY_";
/// Names that begin like ours and are read elsewhere.
const OTHER_NAMES: [&str; 1] = ["GATEWAY_CONFIG"];

/// The place of mistakes in the syntax.
const NOT_TOML: &str = "TOML";

/// One mistake in the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Line in the file, from 1; none if it came from the environment.
    pub line: Option<usize>,
    /// The row or key.
    pub place: String,
    /// What is wrong and what to write instead.
    pub text: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}: {}", self.place, self.text),
            None => write!(f, "{}: {}", self.place, self.text),
        }
    }
}

/// The sources of values, and what was wrong with them.
pub(super) struct Reader<'a> {
    text: &'a str,
    env: &'a BTreeMap<String, String>,
    mistakes: RefCell<Vec<Mistake>>,
    env_names: RefCell<BTreeSet<String>>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(text: &'a str, env: &'a BTreeMap<String, String>) -> Self {
        Self { text, env, mistakes: RefCell::default(), env_names: RefCell::default() }
    }

    /// The whole document.
    pub(super) fn root(&'a self) -> Section<'a> {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        for error in errors {
            let line = error.span().map(|span| self.line(&span));
            let text = error.message().to_owned();
            self.mistakes.borrow_mut().push(Mistake { line, place: NOT_TOML.to_owned(), text });
        }
        let span = table.span();
        Section::new(self, String::new(), None, span, Some(table.into_inner()))
    }

    pub(super) fn mistake(&self, span: Option<Range<usize>>, place: &str, text: impl Into<String>) {
        let line = span.map(|span| self.line(&span));
        let mistake = Mistake { line, place: place.to_owned(), text: text.into() };
        self.mistakes.borrow_mut().push(mistake);
    }

    /// Names that nothing asked for and that Kubernetes sets for a Service called `gateway` or
    /// `gateway-...`, in every pod that does not refuse them.
    pub(super) fn service_links(&self) -> Vec<String> {
        let known = self.env_names.borrow();
        let links = self.env.iter().filter(|(name, value)| {
            name.starts_with(PREFIX) && !known.contains(*name) && is_service_link(name, value)
        });
        links.map(|(name, _)| name.clone()).collect()
    }

    /// Names in the environment that nothing asked for, then all mistakes in the order of lines.
    pub(super) fn finish(self) -> Vec<Mistake> {
        let known = self.env_names.borrow();
        for (name, value) in self.env.iter().filter(|(name, _)| name.starts_with(PREFIX)) {
            let read_elsewhere = OTHER_NAMES.contains(&name.as_str());
            if !known.contains(name) && !read_elsewhere && !is_service_link(name, value) {
                let text = unknown(known.iter().map(String::as_str), name);
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
pub(super) struct Section<'a> {
    reader: &'a Reader<'a>,
    /// `upstream.retry`; empty at the root.
    path: String,
    /// A row's name in mistakes; rows are not overridden by the environment.
    row: Option<String>,
    span: Range<usize>,
    table: RefCell<Option<DeTable<'a>>>,
    /// Every key that was asked for, and where it stands if it does.
    known: RefCell<BTreeMap<&'static str, Option<Range<usize>>>>,
}

/// A scalar, wherever it came from.
pub(super) struct Scalar<'a> {
    pub(super) text: Cow<'a, str>,
    pub(super) span: Option<Range<usize>>,
    pub(super) place: String,
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
        Self { reader, path, row, span, table, known }
    }

    /// A table below this one; an empty one if it is not there.
    pub(super) fn section(&self, key: &'static str) -> Self {
        let path =
            if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) };
        let (span, table) = match self.take(key) {
            Some(value) => {
                let span = value.span();
                match value.into_inner() {
                    DeValue::Table(table) => (span, Some(table)),
                    other => {
                        let text = format!("a table is wanted here, not {}", other.type_str());
                        self.reader.mistake(Some(span.clone()), &path, text);
                        (span, None)
                    }
                }
            }
            None => (self.span.clone(), None),
        };
        Self::new(self.reader, path, None, span, table)
    }

    /// The rows of `[[key]]`, each named for mistakes by its `name`.
    pub(super) fn rows(&self, key: &'static str) -> Vec<Self> {
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
            Some(Self::new(self.reader, String::new(), Some(row), span, Some(table)))
        });
        rows.collect()
    }

    /// A scalar: from the environment if it is set there, else from the text.
    pub(super) fn scalar(&self, key: &'static str) -> Option<Scalar<'a>> {
        let value = self.take(key);
        if self.row.is_none() {
            let path =
                if self.path.is_empty() { key.to_owned() } else { format!("{}_{key}", self.path) };
            let name = format!("{PREFIX}{}", path.replace('.', "_").to_uppercase());
            self.reader.env_names.borrow_mut().insert(name.clone());
            if let Some(text) = self.reader.env.get(&name) {
                return Some(Scalar { text: text.into(), span: None, place: name });
            }
        }
        let value = value?;
        let (span, place) = (value.span(), self.place(key));
        let text = match value.into_inner() {
            DeValue::String(text) => text,
            DeValue::Integer(number) => number.to_string().into(),
            DeValue::Float(number) => number.to_string().into(),
            DeValue::Boolean(value) => value.to_string().into(),
            other => {
                let text = format!("a text or number is wanted here, not {}", other.type_str());
                self.reader.mistake(Some(span), &place, text);
                return None;
            }
        };
        Some(Scalar { text, span: Some(span), place })
    }

    /// A parsed scalar; `None` if it is not there, empty, or wrong, which is noted.
    pub(super) fn parsed<T>(
        &self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let scalar = self.scalar(key).filter(|scalar| !scalar.text.is_empty())?;
        match parse(&scalar.text) {
            Ok(value) => Some(value),
            Err(text) => {
                self.reader.mistake(scalar.span, &scalar.place, text);
                None
            }
        }
    }

    /// A parsed scalar that must be there; `missing` says why.
    pub(super) fn required<T>(
        &self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
        missing: &str,
    ) -> Option<T> {
        let Some(scalar) = self.scalar(key) else {
            self.mistake(None, key, missing);
            return None;
        };
        parse(&scalar.text)
            .map_err(|text| self.reader.mistake(scalar.span, &scalar.place, text))
            .ok()
    }

    /// A parsed scalar with a default, which is written like a value.
    ///
    /// # Panics
    /// If the default itself is wrong, which a test rules out.
    pub(super) fn or<T>(
        &self,
        key: &'static str,
        default: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> T {
        let fallback = || parse(default).expect("defaults are valid: a test reads them all");
        match self.scalar(key) {
            None => fallback(),
            Some(scalar) => parse(&scalar.text).unwrap_or_else(|text| {
                self.reader.mistake(scalar.span, &scalar.place, text);
                fallback()
            }),
        }
    }

    /// An array of anything.
    pub(super) fn array(&self, key: &'static str) -> Vec<Spanned<DeValue<'a>>> {
        let Some(value) = self.take(key) else { return Vec::new() };
        let span = value.span();
        match value.into_inner() {
            DeValue::Array(values) => values.into_iter().collect(),
            other => {
                let text = format!("an array is wanted here, not {}", other.type_str());
                self.reader.mistake(Some(span), &self.place(key), text);
                Vec::new()
            }
        }
    }

    /// An inline table of this row, if it is there.
    pub(super) fn inline_at(&self, key: &'static str) -> Option<Self> {
        let value = self.take(key)?;
        let span = value.span();
        match value.into_inner() {
            DeValue::Table(table) => Some(self.inline(span, table)),
            other => {
                let text = format!("a table is wanted here, not {}", other.type_str());
                self.reader.mistake(Some(span), &self.place(key), text);
                None
            }
        }
    }

    /// An inline table in an array, as a section of this row.
    pub(super) fn inline(&self, span: Range<usize>, table: DeTable<'a>) -> Self {
        Self::new(self.reader, String::new(), self.row.clone(), span, Some(table))
    }

    /// Notes a mistake at a key of this section, or at the section itself if it has no such key.
    pub(super) fn mistake(&self, span: Option<Range<usize>>, key: &str, text: impl Into<String>) {
        let span = span.or_else(|| self.known.borrow().get(key).cloned().flatten());
        let span = span.unwrap_or_else(|| self.span.clone());
        self.reader.mistake(Some(span), &self.place(key), text);
    }

    /// Notes a mistake at a place of its own.
    pub(super) fn mistake_at(&self, span: Option<Range<usize>>, place: &str, text: String) {
        self.reader.mistake(span, place, text);
    }

    /// Where the section stands.
    pub(super) fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// The name of the row, or the path of the section.
    pub(super) fn place(&self, key: &str) -> String {
        match &self.row {
            Some(row) => format!("{row}: {key}"),
            None if self.path.is_empty() => key.to_owned(),
            None => format!("[{}] {key}", self.path),
        }
    }

    fn take(&self, key: &'static str) -> Option<Spanned<DeValue<'a>>> {
        let value = self.table.borrow_mut().as_mut().and_then(|table| table.remove(key));
        self.known.borrow_mut().insert(key, value.as_ref().map(Spanned::span));
        value
    }

    /// Notes every key that nothing asked for.
    pub(super) fn finish(self) {
        let known = self.known.borrow();
        for (key, _) in self.table.borrow_mut().take().into_iter().flatten() {
            let text = unknown(known.keys().copied(), key.get_ref());
            self.reader.mistake(
                Some(key.span()),
                &self.place(key.get_ref()),
                format!("unknown key{text}"),
            );
        }
    }
}

/// `X_SERVICE_HOST`, `X_SERVICE_PORT[_NAME]`, `X_PORT=tcp://...`, `X_PORT_80_TCP[_ADDR|_PORT|_PROTO]`.
fn is_service_link(name: &str, value: &str) -> bool {
    let is_address = ["tcp://", "udp://", "sctp://"].iter().any(|s| value.starts_with(s));
    let port_of = |rest: &str| {
        let (number, rest) = rest.split_once('_').unwrap_or((rest, ""));
        let protocol = rest.split('_').next().unwrap_or_default();
        number.parse::<u16>().is_ok() && ["TCP", "UDP", "SCTP"].contains(&protocol)
    };
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || name.ends_with("_PORT") && is_address
        || name.split("_PORT_").skip(1).any(port_of)
}

/// The nearest known name, as the end of a sentence.
pub(super) fn unknown<'k>(known: impl Iterator<Item = &'k str>, name: &str) -> String {
    let nearest = known
        .map(|known| (strsim::normalized_damerau_levenshtein(known, name), known))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((likeness, known)) if likeness > 0.4 => format!("; do you mean `{known}`?"),
        _ => String::new(),
    }
}
