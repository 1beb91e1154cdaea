//! Reads files of cases: key by key, so that all mistakes are reported at once, each with its line.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use bytes::Bytes;
use http::{HeaderName, StatusCode};
use toml::{Spanned, de::DeValue};

use super::{Answer, Case, CasesError, Exchanged, Fails, Input, Published, Step, content::Content};
use crate::{
    config::{
        Mistake, Mistakes,
        reader::{Reader, Section},
        values::{duration, one_of, truth},
    },
    message::Properties,
};

/// What time it is at the beginning of a case that does not say.
const BEGINNING: &str = "2026-01-01T00:00:00Z";

/// The keys of a message.
const OF_MESSAGES: [&str; 8] = [
    "topic",
    "payload",
    "payload_file",
    "properties",
    "response_topic",
    "content_type",
    "correlation",
    "expiry",
];

/// A file of cases.
#[derive(Debug)]
pub(crate) struct CaseFile {
    /// The table that they are for, if the file says so.
    pub(crate) table: Option<PathBuf>,
    /// The cases.
    pub(crate) cases: Vec<Case>,
}

/// Reads a file.
///
/// # Errors
/// [`CasesError`], with every mistake in it.
pub(crate) fn read(file: &Path) -> Result<CaseFile, CasesError> {
    let text = fs::read_to_string(file)
        .map_err(|error| CasesError::Unreadable { file: file.to_owned(), error })?;
    let folder = file.parent().unwrap_or(Path::new(""));
    let source = file.display().to_string();
    parse(&text, folder).map_err(|mistakes| CasesError::Mistakes(Mistakes { source, mistakes }))
}

/// `folder` is where names of files are looked up.
fn parse(text: &str, folder: &Path) -> Result<CaseFile, Vec<Mistake>> {
    let env = BTreeMap::new();
    read_all(Reader::new(text, &env), folder)
}

fn read_all(reader: Reader<'_>, folder: &Path) -> Result<CaseFile, Vec<Mistake>> {
    let root = reader.root();
    let table = root.optional("table", |file| Ok(folder.join(file)));
    let properties = texts(&root, "properties");
    let rows = root.rows("case");
    if rows.is_empty() {
        reader.mistake(None, "case", "there is no [[case]]; nothing would be tested");
    }
    let cases = rows.into_iter().filter_map(|row| case(row, properties.as_ref(), folder)).collect();
    root.finish();
    let mistakes = reader.finish();
    if mistakes.is_empty() { Ok(CaseFile { table, cases }) } else { Err(mistakes) }
}

/// `properties` are those of every message that has none of its own.
fn case(row: Section<'_>, properties: Option<&Pairs>, folder: &Path) -> Option<Case> {
    let line = row.line();
    let name = row.required("name", |text| Ok(text.to_owned()), "missing: what the case shows");
    let at = row.optional("at", time).or_else(|| time(BEGINNING).ok());
    let sections = list(&row, "next", |section| section).unwrap_or_default();
    let user = properties.cloned().unwrap_or_default();
    let mut before = Sent { user, ..Sent::default() };
    let mut steps = Vec::new();
    for section in std::iter::once(row).chain(sections) {
        let step = step(section, &mut before, folder);
        steps.push(step);
    }
    Some(Case { name: name?, line, at: at?, steps })
}

type Pairs = Vec<(String, String)>;

/// A message as the device sends it. What the next one leaves out is as in the one before.
#[derive(Debug, Clone, Default)]
struct Sent {
    topic: String,
    payload: Bytes,
    user: Pairs,
    response_topic: Option<String>,
    correlation: Option<Bytes>,
    content_type: Option<String>,
}

fn step(section: Section<'_>, sent: &mut Sent, folder: &Path) -> Step {
    let input = match section.optional("fetch", text) {
        Some(fetch) => {
            for key in OF_MESSAGES {
                if let Some(value) = section.take(key) {
                    let text = "no message comes where a fetch runs by itself; take it out";
                    section.mistake(Some(value.span()), key, text);
                }
            }
            Input::Fetch(fetch)
        }
        None => message(&section, sent, folder),
    };
    let published = |section| published(section, folder);
    let step = Step {
        line: section.line(),
        after: section.optional("after", duration).unwrap_or_default(),
        input,
        calls: list(&section, "calls", |section| exchanged(section, folder)),
        pushes: list(&section, "pushes", published),
        reply: one(&section, "reply", published),
        dead_letter: one(&section, "dead_letter", published),
        outcome: section.optional("outcome", text),
    };
    section.finish();
    step
}

fn message(section: &Section<'_>, sent: &mut Sent, folder: &Path) -> Input {
    let keep = |kept: &mut Option<_>, key| *kept = section.optional(key, text).or(kept.take());
    if let Some(topic) = section.optional("topic", text) {
        sent.topic = topic;
    }
    if sent.topic.is_empty() {
        let text = "missing: the topic of the message that comes in, or `fetch`, the name of a fetch that \
                    runs by itself";
        section.mistake(None, "topic", text);
    }
    if let Some(payload) = content(section, "payload", "payload_file", folder) {
        sent.payload = payload.bytes();
    }
    if let Some(user) = texts(section, "properties") {
        sent.user = user;
    }
    keep(&mut sent.response_topic, "response_topic");
    keep(&mut sent.content_type, "content_type");
    let correlation = section.optional("correlation", text).map(Bytes::from);
    sent.correlation = correlation.or(sent.correlation.take());
    let Sent { topic, payload, user, response_topic, correlation, content_type } = sent.clone();
    let properties = Properties {
        user: user.into_iter().collect(),
        response_topic,
        correlation_data: correlation,
        content_type,
        expiry: section.optional("expiry", duration),
    };
    Input::Message { topic, payload, properties }
}

/// A call that must be made, and what is answered.
fn exchanged(section: Section<'_>, folder: &Path) -> Exchanged {
    let call = section.optional("call", call);
    let headers = headers_of(&section, "headers");
    let body = content(&section, "body", "body_file", folder);
    let status = section.optional("status", status);
    let answer = content(&section, "answer", "answer_file", folder);
    let answer_headers = headers_of(&section, "answer_headers");
    let fails = section.optional("fails", |text| one_of(text, &Fails::WORDS));
    if fails.is_some() && (status.is_some() || answer.is_some()) {
        let text = "an API that fails does not answer; take `fails` out, or `status` and `answer`";
        section.mistake(None, "fails", text);
    }
    section.finish();
    let answer = fails.map_or_else(
        || Answer::Answers {
            status: status.unwrap_or(StatusCode::OK),
            headers: answer_headers,
            body: answer.unwrap_or_else(Content::untold),
        },
        Answer::Fails,
    );
    Exchanged { call, headers, body, answer }
}

fn published(section: Section<'_>, folder: &Path) -> Published {
    let mut properties = texts(&section, "properties").unwrap_or_default();
    let status = section.optional("status", status);
    properties.extend(status.map(|status| ("status".to_owned(), status.as_str().to_owned())));
    let published = Published {
        topic: section.optional("topic", text),
        payload: content(&section, "payload", "payload_file", folder),
        correlation: section.optional("correlation", text),
        response_topic: section.optional("response_topic", text),
        content_type: section.optional("content_type", text),
        retain: section.optional("retain", truth),
        properties,
    };
    section.finish();
    published
}

/// A publication; `false`: there must be none.
fn one<'a>(
    section: &Section<'a>,
    key: &'static str,
    read: impl Fn(Section<'a>) -> Published,
) -> Option<Vec<Published>> {
    let value = section.take(key)?;
    let span = value.span();
    match value.into_inner() {
        DeValue::Boolean(false) => Some(Vec::new()),
        DeValue::Table(table) => Some(vec![read(section.inline(key, span, table))]),
        _ => {
            let text =
                format!("write `{key} = false` for none, or {{ topic = \"..\", payload = .. }}");
            section.mistake(Some(span), key, text);
            None
        }
    }
}

/// A list of tables, each read by this, if it is there.
fn list<'a, T>(
    section: &Section<'a>,
    key: &'static str,
    read: impl Fn(Section<'a>) -> T,
) -> Option<Vec<T>> {
    let value = section.take(key)?;
    let (span, wrong) = (value.span(), "write a list of tables: [{ .. }, { .. }]");
    let DeValue::Array(items) = value.into_inner() else {
        section.mistake(Some(span), key, wrong);
        return None;
    };
    let items = items.into_iter().filter_map(|item: Spanned<DeValue<'a>>| {
        let span = item.span();
        let DeValue::Table(table) = item.into_inner() else {
            section.mistake(Some(span), key, wrong);
            return None;
        };
        Some(read(section.inline(key, span, table)))
    });
    Some(items.collect())
}

/// What stands under a key as a payload or a body, or in the file that another key names, if either is there.
fn content(
    section: &Section<'_>,
    key: &'static str,
    file_key: &'static str,
    folder: &Path,
) -> Option<Content> {
    let written = section.take(key).and_then(|value| {
        let span = value.span();
        Content::of(value.into_inner()).map_err(|text| section.mistake(Some(span), key, text)).ok()
    });
    let file = section.optional(file_key, |name| {
        let file = folder.join(name);
        let bytes = fs::read(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        Ok(Content::Bytes(bytes.into()))
    });
    if written.is_some() && file.is_some() {
        let text = format!("`{key}` and `{file_key}` exclude each other; take one out");
        section.mistake(None, file_key, text);
    }
    written.or(file)
}

/// A table of names and texts, if it is there.
fn texts(section: &Section<'_>, key: &'static str) -> Option<Pairs> {
    let table = section.inline_at(key)?;
    let entries: Vec<_> = table.entries().collect();
    let texts = entries.into_iter().filter_map(|(name, value)| {
        let text = table.scalar(&name, value)?.text.into_owned();
        Some((name, text))
    });
    Some(texts.collect())
}

fn headers_of(section: &Section<'_>, key: &'static str) -> Vec<(HeaderName, String)> {
    let pairs = texts(section, key).unwrap_or_default().into_iter();
    let headers = pairs.filter_map(|(name, value)| {
        let parsed = name.parse().ok();
        if parsed.is_none() {
            section.mistake(None, key, format!("`{name}` is no name of a header"));
        }
        Some((parsed?, value))
    });
    headers.collect()
}

#[expect(clippy::unnecessary_wraps, reason = "the form that the reader asks for")]
fn text(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

fn call(text: &str) -> Result<String, String> {
    let is_call = text.split_once(' ').is_some_and(|(method, path)| {
        let is_method = !method.is_empty() && method.bytes().all(|byte| byte.is_ascii_uppercase());
        is_method && (path.starts_with('/') || path.starts_with("http"))
    });
    if is_call {
        Ok(text.to_owned())
    } else {
        Err(format!("`{text}` is no call; write `POST /path`, as it is sent"))
    }
}

fn status(text: &str) -> Result<StatusCode, String> {
    text.parse().map_err(|_| format!("`{text}` is no HTTP status; write 200"))
}

fn time(text: &str) -> Result<SystemTime, String> {
    humantime::parse_rfc3339_weak(text)
        .map_err(|_| format!("`{text}` is no time; write `{BEGINNING}`"))
}

/// The keys that are asked for where this is read, by their paths.
#[cfg(test)]
pub(super) fn asked(text: &str) -> std::collections::BTreeSet<String> {
    let env = BTreeMap::new();
    let reader = Reader::new(text, &env);
    let asked = reader.asked.clone();
    assert!(read_all(reader, Path::new("")).is_ok(), "{text}");
    asked.take()
}

#[cfg(test)]
pub(super) mod tests;
