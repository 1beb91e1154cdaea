//! Reads `[secrets]`: `name` is a value, `name_file` a file; in the environment `GATEWAY_SECRETS_NAME` and
//! `GATEWAY_SECRETS_NAME_FILE`.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    path::Path,
    sync::Arc,
};

use super::{files::shown, names::nearest, reader::Section, scalar::Scalar};
use crate::{
    secrets::{self, Secret, SecretError, Source},
    template::{KEY, Template},
    topic,
};

/// What a key of a secret ends in that names a file.
const FILE: &str = "_file";

/// The secrets that templates can name.
pub(super) struct Secrets<'a> {
    section: Section<'a>,
    named: BTreeMap<Arc<str>, Named>,
}

struct Named {
    span: Option<Range<usize>>,
    place: String,
    /// `None` if it is wrong, which is noted.
    source: Option<Source>,
    is_used: Cell<bool>,
}

impl<'a> Secrets<'a> {
    pub(super) fn read(root: &Section<'a>) -> Self {
        let section = root.section("secrets");
        let variables: Vec<_> = section.variables();
        let by_environment: BTreeSet<String> =
            variables.iter().map(|(key, _)| name(key).to_owned()).collect();
        let entries: Vec<_> = section.entries().collect();
        let written = entries.into_iter().filter_map(|(key, value)| {
            let is_replaced = by_environment.contains(name(&key));
            Some((section.scalar(&key, value).filter(|_| !is_replaced)?, key))
        });
        let written = written.map(|(scalar, key)| (key, scalar));
        let mut named = BTreeMap::<Arc<str>, Named>::new();
        for (key, scalar) in written.chain(variables) {
            let (span, place) = (scalar.span.clone(), scalar.place.clone());
            let name = name(&key);
            let other = named.get_mut(name);
            let source = if other.is_some() {
                Err(format!("`{name}` and `{name}{FILE}` exclude each other; take one out"))
            } else {
                let reads = section.reads_secrets();
                legal(name).and_then(|()| source(&key, &scalar.text, reads))
            };
            let source = source.map_err(|text| section.mistake_in(scalar, text)).ok();
            if other.is_none() {
                named.insert(name.into(), Named { span, place, source, is_used: Cell::new(false) });
            }
        }
        Self { section, named }
    }

    /// What is wrong with the secrets that a template names; the others are used.
    pub(super) fn unknown(&self, template: &Template) -> Option<String> {
        let unknown = template.secrets().filter(|name| ***name != *KEY).find(|name| {
            let named = self.named.get(*name);
            named.inspect(|named| named.is_used.set(true)).is_none()
        })?;
        let hint = nearest(self.named.keys().map(|name| &**name), unknown);
        let write = if hint.is_empty() {
            format!("; write `{unknown}{FILE} = \"...\"` into [secrets]")
        } else {
            hint
        };
        Some(format!("unknown secret `{unknown}`{write}"))
    }

    /// Notes every secret that nothing names; the others, as they are used.
    pub(super) fn finish(self) -> secrets::Secrets {
        // Where secrets are not read, the environment may be that of another table.
        let is_of_this = |named: &Named| named.span.is_some() || self.section.reads_secrets();
        let is_idle =
            |named: &&Named| named.source.is_some() && !named.is_used.get() && is_of_this(named);
        for Named { span, place, .. } in self.named.values().filter(is_idle) {
            let scalar = Scalar { text: "".into(), span: span.clone(), place: place.clone() };
            let text = "unused: nothing names this secret; take it out";
            self.section.mistake_in(scalar, text.to_owned());
        }
        let named = self.named.into_iter();
        secrets::Secrets::new(named.filter_map(|(n, named)| Some((n, named.source?))).collect())
    }
}

/// The name of a secret under whose key something stands.
fn name(key: &str) -> &str {
    key.strip_suffix(FILE).unwrap_or(key)
}

fn legal(name: &str) -> Result<(), String> {
    if name == KEY {
        return Err(format!("`{{${KEY}}}` is the key of the device; write another name"));
    }
    if topic::is_name(name) && !name.contains(char::is_uppercase) {
        return Ok(());
    }
    Err(format!("invalid name of a secret `{name}`; use small letters, digits and `_`"))
}

/// Its value is not echoed, nor what stands in the place of a file and may be it. Where secrets are not read it shows that it
/// is one.
fn source(key: &str, text: &str, reads: bool) -> Result<Source, String> {
    if !reads {
        return Ok(Source::Value(Secret::new(format!("<{}>", name(key)))));
    }
    let Some(name) = key.strip_suffix(FILE) else {
        return Source::value(text).map_err(|error| error.to_string());
    };
    let file = shown(text);
    Source::file(Path::new(text)).map_err(|error| match error {
        SecretError::Unreadable(error) => {
            format!("{file}: {error}; write a file's name here, the value itself goes to `{name}`")
        }
        SecretError::Empty | SecretError::Unusable => format!("{file}: {error}"),
    })
}
