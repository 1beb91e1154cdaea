//! What is in force, as a file: the operator's own, the environment and the defaults in one, each value with where it
//! comes from. No secret is in it; where none is left out it can be read again.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    path::Path,
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    Config, ConfigError, Mistakes,
    mistake::PREFIX,
    reader::{DEFAULTS, OTHER_NAMES},
    text,
    written::value,
};
use crate::{secrets::sounds_secret, table::describe};

/// Tables that are the file's own: no default stands behind them.
const OWN_TABLES: [&str; 3] = ["filters", "fetch", "route"];
/// The source of a value that neither the file nor the environment sets.
const DEFAULT: &str = "default";
/// What stands in place of a secret.
const HIDDEN: &str = "<hidden>";

/// Where values come from.
struct Sources<'a> {
    /// The operator's file, if there is one.
    source: Option<String>,
    text: &'a str,
    file: DeTable<'a>,
    env: &'a BTreeMap<String, String>,
    /// Keys whose default does not fit the table.
    unfit: Vec<&'static str>,
    /// Variables that belong to a section above, by name.
    taken: BTreeSet<String>,
    out: String,
}

/// The configuration in force, as TOML.
///
/// # Errors
/// [`ConfigError`] with every mistake there is.
pub fn effective(
    file: Option<&Path>,
    env: &BTreeMap<String, String>,
) -> Result<String, ConfigError> {
    let config = Config::load_without_secrets(file, env)?;
    let (source, text) = text(file)?;
    let none = |_| ConfigError::Mistakes(Mistakes { source: source.clone(), mistakes: Vec::new() });
    let own_file = file.map(|file| file.display().to_string());
    let file = DeTable::parse(&text).map_err(none)?.into_inner();
    let links: BTreeSet<&String> = config.service_links.iter().collect();
    let own = |name: &&String| name.starts_with(PREFIX) && !OTHER_NAMES.contains(&name.as_str());
    let env: BTreeMap<String, String> = env
        .iter()
        .filter(|(name, _)| own(name) && !links.contains(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let mut sources = Sources {
        source: own_file,
        text: &text,
        file,
        env: &env,
        unfit: config.unfit_defaults,
        taken: BTreeSet::new(),
        out: String::new(),
    };
    let file = sources.file.clone();
    sources.sections("", &file, &DEFAULTS);
    for kind in OWN_TABLES {
        sources.own_table(kind, &file);
    }
    Ok(sources.out)
}

impl Sources<'_> {
    /// All sections below this path, the inner ones first to know whose a variable is.
    fn sections(&mut self, path: &str, file: &DeTable<'_>, defaults: &DeTable<'_>) {
        let is_own = |name: &str| path.is_empty() && OWN_TABLES.contains(&name);
        let names = in_order(defaults).chain(in_order(file));
        let names = names.filter(|(_, value)| value.get_ref().as_table().is_some());
        let mut seen = BTreeSet::new();
        for (name, _) in names {
            let name = name.get_ref().as_ref();
            if is_own(name) || !seen.insert(name.to_owned()) {
                continue;
            }
            let below = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
            let (own, shipped) = (table_at(file, name), table_at(defaults, name));
            let before = std::mem::take(&mut self.out);
            self.sections(&below, &own, &shipped);
            let inner = std::mem::replace(&mut self.out, before);
            self.section(&below, &own, &shipped);
            self.out.push_str(&inner);
        }
    }

    /// The values of one section.
    fn section(&mut self, path: &str, file: &DeTable<'_>, defaults: &DeTable<'_>) {
        let prefix = format!("{PREFIX}{}_", path.replace('.', "_").to_uppercase());
        let scalars = |table: &DeTable<'_>| {
            let scalars = in_order(table).filter(|(_, value)| value.get_ref().as_table().is_none());
            scalars.map(|(key, _)| key.get_ref().to_string()).collect::<Vec<_>>()
        };
        let variables = self.env.keys().filter(|name| !self.taken.contains(*name));
        let variables =
            variables.filter_map(|name| Some(name.strip_prefix(&prefix)?.to_lowercase()));
        let mut keys = scalars(defaults);
        let more = scalars(file).into_iter().chain(variables.collect::<Vec<_>>());
        for key in more.collect::<Vec<_>>() {
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        if keys.is_empty() {
            return;
        }
        let _ = writeln!(self.out, "[{path}]");
        for key in keys {
            let variable = format!("{prefix}{}", key.to_uppercase());
            let set = self.env.get(&variable).cloned();
            self.taken.insert(variable.clone());
            let written = file.get(key.as_str());
            let (value, origin) = match (set, written) {
                (Some(text), _) => (value(&DeValue::String(text.into())), variable),
                (None, Some(written)) => {
                    let line = self.text.get(..written.span().start).map_or(0, newlines) + 1;
                    let origin = match &self.source {
                        Some(source) => format!("{source}, line {line}"),
                        None => DEFAULT.to_owned(),
                    };
                    (value(written.get_ref()), origin)
                }
                (None, None) if self.unfit.contains(&&*format!("[{path}] {key}")) => {
                    ("\"\"".to_owned(), "the default does not fit the table".to_owned())
                }
                (None, None) => {
                    let value = defaults.get(key.as_str()).map(|v| value(v.get_ref()));
                    (value.unwrap_or_default(), DEFAULT.to_owned())
                }
            };
            if is_secret(path, &key, &value) {
                let _ = writeln!(self.out, "# {key} = {HIDDEN}  # {origin}");
            } else {
                let _ = writeln!(self.out, "{key} = {value}  # {origin}");
            }
        }
        self.out.push('\n');
    }

    /// A table that is the file's own: `[filters]`, or the rows of a kind.
    fn own_table(&mut self, kind: &str, file: &DeTable<'_>) {
        let Some(table) = file.get(kind) else { return };
        let tables: Vec<&DeTable<'_>> = match table.get_ref() {
            DeValue::Table(table) => vec![table],
            DeValue::Array(rows) => {
                rows.iter().filter_map(|row| row.get_ref().as_table()).collect()
            }
            _ => return,
        };
        let is_rows = table.get_ref().as_array().is_some();
        for table in tables {
            let head = if is_rows { format!("[[{kind}]]") } else { format!("[{kind}]") };
            let _ = writeln!(self.out, "{head}");
            for (key, written) in in_order(table) {
                let key = key.get_ref();
                let value = match written.get_ref() {
                    // A token may stand in its query.
                    DeValue::String(call) if key == "call" => {
                        value(&DeValue::String(describe::shown(call).into()))
                    }
                    DeValue::Table(headers) if key == "headers" => {
                        value(&DeValue::Table(without_plain_secrets(headers)))
                    }
                    other => value(other),
                };
                let _ = writeln!(self.out, "{key} = {value}");
            }
            self.out.push('\n');
        }
    }
}

/// Headers, without the values of those that should not stand there in plain sight.
fn without_plain_secrets<'d>(headers: &DeTable<'d>) -> DeTable<'d> {
    let mut headers = headers.clone();
    for (name, value) in &mut headers {
        if sounds_secret(name.get_ref())
            && let DeValue::String(text) = value.get_mut()
            && !text.is_empty()
            && !text.contains('{')
        {
            *text = HIDDEN.into();
        }
    }
    headers
}

/// The entries of a table as they were written.
fn in_order<'t, 'd>(
    table: &'t DeTable<'d>,
) -> impl Iterator<Item = (&'t Spanned<Cow<'d, str>>, &'t Spanned<DeValue<'d>>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries.into_iter()
}

/// The table under this name; an empty one if there is none.
fn table_at<'t>(table: &DeTable<'t>, name: &str) -> DeTable<'t> {
    let below = table.get(name).and_then(|value| value.get_ref().as_table());
    below.cloned().unwrap_or_default()
}

fn newlines(text: &str) -> usize {
    text.bytes().filter(|byte| *byte == b'\n').count()
}

/// Whether a value is a secret, or may have one in it. The name of a file that has one is none.
fn is_secret(path: &str, key: &str, value: &str) -> bool {
    // Settings about keys and tokens: names of headers and files, templates, URLs of endpoints.
    let is_about =
        ["key_header", "key_prefix", "key_property"].contains(&key) || key.ends_with("_file");
    let sounds = !is_about && !value.contains("{$") && sounds_secret(key);
    let is_url = value.contains("://") && (value.contains('@') || value.contains('?'));
    path == "secrets" && !is_about || sounds && !key.ends_with("_url") || is_url
}
