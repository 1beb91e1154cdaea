//! The house rules that a compiler does not check: who may import whom, how long a file may be,
//! that every file says what it is for.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use mqtt_rest_gateway::config::SHIPPED;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// Longest file, tests included, in lines; one that wants to be longer has two jobs.
const MAX_LINES: usize = 400;

/// Borders. A file whose path begins so must not import these.
const FORBIDDEN: [(&str, &[&str]); 9] = [
    // MQTT knows no HTTP and no table, HTTP no MQTT and no table.
    ("mqtt/", &["upstream", "call", "failure", "table", "exchange", "config", "filter"]),
    ("upstream/", &["mqtt", "message", "table", "exchange", "config", "filter"]),
    // Pure: no client, no socket, nothing that is counted.
    ("table/", &["mqtt", "upstream", "exchange", "config", "metrics", "tls", "gateway"]),
    ("filter/", &["mqtt", "upstream", "call", "table", "exchange", "config", "metrics", "message"]),
    ("template.rs", &["mqtt", "upstream", "call", "table", "exchange", "config", "filter"]),
    ("topic/", &["mqtt", "upstream", "call", "table", "exchange", "config", "filter"]),
    // A message and its settings, not where they come from.
    ("exchange/", &["config", "gateway", "admin", "cli", "replay"]),
    ("config/", &["gateway", "admin", "cli", "replay"]),
    // What is traced is told in plain words.
    ("traces/", &["mqtt", "upstream", "call", "message", "table", "exchange", "config", "filter"]),
];

fn sources(folder: &str) -> Vec<File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let (mut folders, mut files) = (vec![root.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(&root).unwrap().display().to_string();
                files.push((name, fs::read_to_string(path).unwrap()));
            }
        }
    }
    assert!(!files.is_empty(), "{folder} has files");
    files.sort();
    files
}

/// What a file imports of its own crate, outside its tests: `use crate::a::..` and
/// `use crate::{a::.., b::{..}}`.
fn imports(text: &str) -> Vec<String> {
    let code = text.split("#[cfg(test)]").next().unwrap();
    let mut modules = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = code.split_at(at + "crate::".len()).1;
        let word = |text: &str| -> String {
            text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
        };
        let Some(list) = rest.strip_prefix('{') else {
            modules.push(word(rest));
            continue;
        };
        let (mut depth, mut start) = (0, 0);
        for (index, letter) in list.char_indices() {
            match letter {
                '{' => depth += 1,
                '}' if depth > 0 => depth -= 1,
                ',' | '}' if depth == 0 => {
                    modules.push(word(list.get(start..index).unwrap()));
                    start = index + 1;
                    if letter == '}' {
                        break;
                    }
                }
                _ => {}
            }
        }
    }
    modules.retain(|module| !module.is_empty());
    modules
}

#[test]
fn imports_are_read_as_they_are_written() {
    let text = "use crate::a::B;\nuse crate::{\n    c::{D, e::F},\n    g,\n    h::I,\n};\nfn f() { crate::j::k() }";
    assert_eq!(imports(text), ["a", "c", "g", "h", "j"]);
}

#[test]
fn borders_are_kept() {
    for (name, text) in sources("src") {
        for (prefix, forbidden) in FORBIDDEN {
            if name.starts_with(prefix) {
                for module in imports(&text) {
                    assert!(!forbidden.contains(&module.as_str()), "{name} imports {module}");
                }
            }
        }
    }
}

#[test]
fn the_libraries_stay_behind_their_doors() {
    for (name, text) in sources("src") {
        assert!(!text.contains("rumqttc::") || name.starts_with("mqtt/"), "{name} uses rumqttc");
        assert!(
            !text.contains("hyper_util::client") || name.starts_with("upstream/"),
            "{name} uses the HTTP client"
        );
        let traces = text.contains("opentelemetry") && !name.starts_with("traces/");
        assert!(!traces, "{name} uses OpenTelemetry");
        assert!(
            !text.contains("governor::") || name == "upstream/throttle.rs",
            "{name} uses governor"
        );
    }
}

/// What decides does so without a socket, a clock and anything to wait for: it is told packets and the time.
#[test]
fn what_decides_neither_waits_nor_reads_a_clock() {
    let pure = ["mqtt/session", "mqtt/window", "mqtt/outbox", "mqtt/reader", "upstream/breaker"];
    let mut found = BTreeSet::new();
    for (name, text) in sources("src") {
        let part = pure.iter().find(|part| name.starts_with(*part));
        let is_test = ["tests.rs", "properties", "simulation"].iter().any(|t| name.contains(t));
        let Some(part) = part.filter(|_| !is_test) else { continue };
        found.insert(part);
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        for word in [".await", "async fn", "Instant::now", "tokio::net", "tokio::spawn", "sleep("] {
            assert!(!code.contains(word), "{name} has `{word}`");
        }
    }
    assert_eq!(found.len(), pure.len(), "only {found:?} are there");
}

/// Else a change of the gateway would build the harness again, and a test could see more than an operator.
#[test]
fn the_testkit_knows_the_gateway_as_a_program_only() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("testkit/Cargo.toml");
    assert!(!fs::read_to_string(manifest).unwrap().contains("mqtt-rest-gateway"));
}

#[test]
fn arrows_make_no_circle() {
    let mut arrows: BTreeMap<String, Vec<String>> = BTreeMap::new();
    // What tests begin with may come from anywhere.
    for (name, text) in
        sources("src").into_iter().filter(|(name, _)| !name.ends_with("fixtures.rs"))
    {
        let module = name.split(['/', '.']).next().unwrap().to_owned();
        let own = module.clone();
        arrows.entry(module).or_default().extend(imports(&text).into_iter().filter(|m| *m != own));
    }
    // Whoever imports nothing that is left can go; if nobody can, there is a circle.
    while !arrows.is_empty() {
        let leaf =
            arrows.iter().find(|(_, targets)| targets.iter().all(|t| !arrows.contains_key(t)));
        let leaf = leaf.map(|(module, _)| module.clone());
        let leaf = leaf.unwrap_or_else(|| panic!("a circle among {arrows:#?}"));
        arrows.remove(&leaf);
    }
}

#[test]
fn every_file_says_what_it_is_for_and_stays_short() {
    for folder in ["src", "tests", "testkit/src", "quickstart/src", "bench/src", "examples"] {
        for (name, text) in sources(folder) {
            assert!(text.starts_with("//! "), "{folder}/{name} opens with //!");
            let lines = text.lines().count();
            let limit = if folder == "tests" { 1000 } else { MAX_LINES };
            assert!(lines <= limit, "{folder}/{name} has {lines} lines");
        }
    }
}

/// What the shipped table alone may know: names of its rows, levels of its topics and paths, the devices'
/// properties. Words that are keys of the configuration too, such as `device`, belong to the program.
fn words_of_the_api() -> BTreeSet<String> {
    fn table<'a, 'b>(value: &'a Spanned<DeValue<'b>>) -> Option<&'a DeTable<'b>> {
        value.get_ref().as_table()
    }
    fn text<'a>(table: &'a DeTable<'_>, key: &str) -> &'a str {
        table.get(key).and_then(|value| value.get_ref().as_str()).unwrap_or_default()
    }
    let shipped = DeTable::parse(SHIPPED).unwrap();
    let (mut words, mut keys) = (BTreeSet::from(["xyte".to_owned()]), BTreeSet::new());
    for (section, value) in shipped.get_ref() {
        keys.insert(section.get_ref().to_string());
        for row in value.get_ref().as_array().into_iter().flatten().filter_map(table) {
            for key in ["name", "on", "call", "reply", "push", "response_topic"] {
                words.extend(text(row, key).split(['/', ' ']).map(str::to_owned));
            }
        }
        if let Some(settings) = table(value) {
            keys.extend(settings.keys().map(|key| key.get_ref().to_string()));
            for below in settings.values().filter_map(table) {
                keys.extend(below.keys().map(|key| key.get_ref().to_string()));
            }
            for key in ["capture", "id_property", "key_property"] {
                words.insert(text(settings, key).to_owned());
            }
        }
    }
    let methods = ["GET", "POST", "PUT", "PATCH", "DELETE"];
    words.retain(|word| {
        !word.is_empty()
            && !word.starts_with('{')
            && !methods.contains(&word.as_str())
            && !keys.contains(word)
    });
    words
}

/// The texts in a file's code, without comments and tests.
fn literals(text: &str) -> Vec<String> {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let code: String = lines.collect::<Vec<_>>().join("\n").replace("\\\"", "'");
    code.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Whether a text knows a word: it is it, or has it as a level of a topic or path, or it is a name of several
/// words that stands anywhere in the text.
fn knows(literal: &str, word: &str) -> bool {
    let level = |c: Option<char>| c.is_none_or(|c| c == '/' || c == '`' || c.is_whitespace());
    let name = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric() && c != '_');
    literal.match_indices(word).any(|(at, _)| {
        let (before, after) = (literal.get(..at).unwrap(), literal.get(at + word.len()..).unwrap());
        let ends = [before.chars().last(), after.chars().next()];
        let in_topic = ends.contains(&Some('/')) && ends.into_iter().all(level);
        literal == word || in_topic || word.contains('_') && ends.into_iter().all(name)
    })
}

/// Where a text may know a word of the API, and why.
const KNOWN: [(&str, &str); 2] = [
    // An example, in a message that says what to write.
    ("topic/mod.rs", "device_id"),
    // The path of OTLP.
    ("traces/export.rs", "v1"),
];

#[test]
fn nothing_of_the_api_is_in_the_code() {
    let words = words_of_the_api();
    for word in ["telemetry", "space_info", "licenses", "commands", "access_key", "v1"] {
        assert!(words.contains(word), "{word} is not found in the table");
    }
    for (name, text) in sources("src") {
        if name.ends_with("tests.rs") || name.contains("properties") {
            continue;
        }
        for literal in literals(&text) {
            for word in &words {
                let excused = KNOWN.contains(&(name.as_str(), word));
                assert!(!knows(&literal, word) || excused, "{name} knows `{word}`: {literal:?}");
            }
        }
        // Those are no words of any program, as names neither.
        let code = text.split("#[cfg(test)]").next().unwrap();
        let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
        let code = lines.collect::<String>().to_lowercase();
        for word in words.iter().filter(|w| !["access_key", "device_id"].contains(&w.as_str())) {
            let special =
                word.contains('_') || ["license", "firmware", "xyte"].contains(&word.as_str());
            assert!(!special || !code.contains(word.as_str()), "{name} knows `{word}`");
        }
    }
}

/// A path in the repository, and what stands there.
type File = (String, String);

/// Every text file of the repository.
fn repository() -> Vec<File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut folders, mut files) = (vec![root.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().display().to_string();
            if path.is_dir() {
                // What is built, and what git keeps.
                if name != "target" && name != ".git" {
                    folders.push(path);
                }
            } else if let Ok(text) = fs::read_to_string(&path) {
                files.push((name, text));
            }
        }
    }
    files
}

fn is_page((name, _): &File) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == "md")
}

/// Words in backticks, outside of blocks of code.
fn code_words(page: &str) -> Vec<String> {
    let prose: String = page.split("```").step_by(2).collect();
    let words = prose.split('`').skip(1).step_by(2);
    words.filter(|word| !word.contains(char::is_whitespace)).map(str::to_owned).collect()
}

/// Whether these tests are there: `module::test`, `module::some_tests_*`, `module::*`, `module`.
fn is_test(name: &str, files: &[File]) -> bool {
    let module = |parts: &[&str]| {
        let path = parts.join("/");
        let ends = [format!("/{path}.rs"), format!("/{path}/mod.rs")];
        let file = files.iter().find(|(name, _)| ends.iter().any(|end| name.ends_with(end)));
        file.map(|(_, text)| text.as_str())
    };
    let parts: Vec<&str> = name.split("::").collect();
    let (last, path) = parts.split_last().unwrap();
    if module(&parts).is_some() {
        return true;
    }
    // Unit tests stand in a file of their own or in that of what they test.
    let text = module(path).or_else(|| module(path.strip_suffix(&["tests"])?));
    match (text, last.strip_suffix('*')) {
        (None, _) => false,
        (Some(text), Some(prefix)) => text.contains(&format!("fn {prefix}")),
        (Some(text), None) => ["fn", "mod"].iter().any(|kind| {
            text.contains(&format!("{kind} {last}(")) || text.contains(&format!("{kind} {last} {{"))
        }),
    }
}

#[test]
fn every_file_and_test_that_a_page_names_exists() {
    let files = repository();
    let (mut paths, mut tests) = (0, 0);
    for (page, text) in files.iter().filter(|file| is_page(file)) {
        for word in code_words(text) {
            let is_path = [".rs", ".toml", ".md", ".yml"].iter().any(|end| word.ends_with(end));
            if is_path && !word.contains(['*', '{', '<']) {
                let there = |(name, _): &File| *name == word || name.ends_with(&format!("/{word}"));
                assert!(files.iter().any(there), "{page} names {word}, which is not there");
                paths += 1;
            } else if word.contains("::") && word.starts_with(char::is_lowercase) {
                assert!(is_test(&word, &files), "{page} names {word}, which is not there");
                tests += 1;
            }
        }
    }
    assert!(paths > 50 && tests > 30, "{paths} files and {tests} tests are named");
}

/// The map of the code names every file and folder of the first level, and those alone are there.
#[test]
fn the_map_is_the_tree() {
    let page = fs::read_to_string("docs/ARCHITECTURE.md").unwrap();
    let map = page.split("## The map\n").nth(1).unwrap().split("\n#").next().unwrap();
    let lines = map.lines().filter_map(|line| line.strip_prefix("| `")?.split("` | ").next());
    let places: BTreeSet<String> =
        lines.flat_map(|line| line.split("`, `")).map(str::to_owned).collect();
    let tree: BTreeSet<String> = sources("src")
        .into_iter()
        .filter(|(name, _)| !name.ends_with("tests.rs"))
        .map(|(name, _)| {
            name.split_once('/').map_or(name.clone(), |(folder, _)| format!("{folder}/"))
        })
        .collect();
    assert_eq!(places, tree, "the page, and what is in src");
}

#[test]
fn every_link_of_a_page_leads_somewhere() {
    let files = repository();
    let mut count = 0;
    for (page, text) in files.iter().filter(|file| is_page(file)) {
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("http") {
                continue;
            }
            let (path, heading) = link.split_once('#').unwrap_or((link, ""));
            let here = Path::new(env!("CARGO_MANIFEST_DIR")).join(page);
            let there = if path.is_empty() { here } else { here.parent().unwrap().join(path) };
            assert!(there.exists(), "{page} links to {link}");
            let slug = |line: &str| -> String {
                let title = line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
                title.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect()
            };
            if !heading.is_empty() {
                let target = fs::read_to_string(&there).unwrap();
                let mut headings = target.lines().filter(|line| line.starts_with('#')).map(slug);
                assert!(headings.any(|title| title == heading), "{page} links to {link}");
            }
            count += 1;
        }
    }
    assert!(count > 10, "{count} links");
}
