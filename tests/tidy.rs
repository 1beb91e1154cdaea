//! The house rules that a compiler does not check: who may import whom, how long a file may be,
//! that every file says what it is for.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Longest file, tests included, in lines; one that wants to be longer has two jobs.
const MAX_LINES: usize = 400;

/// Borders. A file whose path begins so must not import these.
const FORBIDDEN: [(&str, &[&str]); 6] = [
    // MQTT knows no HTTP and no table, HTTP no MQTT.
    (
        "mqtt/",
        &[
            "upstream", "call", "route", "table", "fetch", "outcome", "exchange", "push", "config",
            "filter",
        ],
    ),
    (
        "upstream/",
        &[
            "mqtt", "message", "route", "table", "fetch", "outcome", "exchange", "push", "config",
            "filter",
        ],
    ),
    // Pure parts know neither.
    ("route.rs", &["mqtt", "upstream", "config", "exchange", "push", "devices"]),
    ("table.rs", &["mqtt", "upstream", "config", "exchange", "push", "devices"]),
    ("fetch.rs", &["mqtt", "upstream", "config", "exchange", "push", "devices"]),
    ("outcome.rs", &["mqtt", "upstream", "config", "exchange", "push", "devices"]),
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
            !text.contains("reqwest::") || name.starts_with("upstream/"),
            "{name} uses reqwest"
        );
        assert!(
            !text.contains("governor::") || name == "upstream/throttle.rs",
            "{name} uses governor"
        );
    }
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
            let test = folder == "tests" || name.ends_with("properties.rs");
            let limit = if test { 1000 } else { MAX_LINES };
            assert!(lines <= limit, "{folder}/{name} has {lines} lines");
        }
    }
}

#[test]
fn nothing_of_the_api_is_in_the_code() {
    for (name, text) in sources("src") {
        let code = text.split("#[cfg(test)]").next().unwrap();
        // Comments may give examples; strings and names may not know the API.
        let code: String =
            code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        for word in ["telemetry\"", "/v1/devices", "license", "firmware", "space_info", "xyte"] {
            assert!(!code.to_lowercase().contains(word), "{name} knows `{word}`");
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
    let map = &files.iter().find(|(page, _)| page == "docs/ARCHITECTURE.md").unwrap().1;
    let parts = ["exchange.rs", "lanes.rs", "table.rs", "outcome.rs", "push.rs"];
    for file in parts.iter().chain(&["mqtt/window.rs", "mqtt/outbox.rs"]) {
        assert!(map.contains(file), "{file} is not on the map");
    }
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
