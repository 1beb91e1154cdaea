//! The documentation says what the program does: tables in the README against the table in force, and blocks of
//! TOML against `check`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use clap::CommandFactory;
use mqtt_rest_gateway::{
    cli::Cli,
    config::{Config, SHIPPED},
};

fn text(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
}

#[test]
fn the_readme_shows_every_row_of_the_shipped_table() {
    let readme = text("README.md");
    let config = Config::parse(SHIPPED, &BTreeMap::new()).unwrap();
    assert_eq!(config.table.routes.len(), 12);
    for route in &config.table.routes {
        let topic = route.on.as_str().strip_prefix("v1/device/{device_id}/").unwrap();
        let call = route.call.as_ref().map_or(String::new(), |call| {
            let path = call.path.as_str().strip_prefix("/v1/devices/{device_id}").unwrap();
            format!("`{} {path}`", call.method)
        });
        let row = format!("| `{}` | `{topic}` | {call}", route.name);
        assert!(readme.contains(&row), "the README has no row `{row}`");
    }
}

#[test]
fn the_readme_shows_every_code_of_a_failure() {
    let readme = text("README.md");
    let sources =
        text("src/exchange/outcome.rs") + &text("src/table/refusal.rs") + &text("src/failure.rs");
    // Arms of their tables: `=> ("word", 404)` and `=> row("word", ..)`.
    let words = sources.lines().filter_map(|line| {
        let arm = line.split_once("=> ")?.1;
        let row = arm.strip_prefix("row").unwrap_or(arm).strip_prefix("(\"")?;
        Some(row.split_once('"')?.0)
    });
    let mut count = 0;
    // Those have no error reply, or no reply at all.
    for word in words
        .filter(|w| !["delivered", "rejected", "loop", "not_a_request", "no_route"].contains(w))
    {
        assert!(readme.contains(&format!("`{word}`")), "the README does not explain `{word}`");
        count += 1;
    }
    assert!(count > 10, "{count} words found");
}

#[test]
fn the_readme_shows_every_command_and_exit_code() {
    let readme = text("README.md");
    for command in Cli::command().get_subcommands() {
        let name = command.get_name();
        let named = [format!("`mqtt-rest-gateway {name}"), format!("`mqtt-rest-gateway [{name}]")];
        assert!(named.iter().any(|row| readme.contains(row)), "the README has no row `{name}`");
    }
    let (_, codes) = readme.split_once("\nExit codes: ").unwrap();
    let (codes, _) = codes.split_once(". ").unwrap();
    let help = Cli::command().get_after_long_help().unwrap().to_string();
    let (help, _) = help.split_once("\n\n").unwrap();
    let known = help.lines().skip(1).map(|line| line.split_whitespace().next().unwrap());
    for code in known {
        let said = codes.split([',', ' ']).any(|word| word == code);
        assert!(said, "the README has no exit code {code}: {codes}");
    }
}

/// The blocks of TOML of a page, each with its first line, from 1.
fn toml_blocks(page: &str) -> Vec<(usize, String)> {
    let (mut blocks, mut open) = (Vec::new(), None);
    for (index, line) in page.lines().enumerate() {
        match &mut open {
            None if line.trim() == "```toml" => open = Some((index + 2, String::new())),
            Some(_) if line.trim() == "```" => blocks.extend(open.take()),
            Some((_, block)) => block.extend([line, "\n"]),
            None => {}
        }
    }
    assert!(open.is_none(), "a block of TOML does not end");
    blocks
}

/// A block without rows is settings: the shipped table stands behind it. One with rows is a table of its own. The
/// URL of the API comes from the environment if the block has none.
fn complete(block: &str) -> (String, BTreeMap<String, String>) {
    let has_rows = block.lines().any(|line| line.trim() == "[[route]]");
    let (_, table) = SHIPPED.split_once("# ---- The table").unwrap();
    let text = if has_rows { block.to_owned() } else { format!("{block}\n#{table}") };
    let url = ("GATEWAY_UPSTREAM_URL".to_owned(), "https://hub.example.com".to_owned());
    (text, if block.contains("[upstream]\nurl ") { BTreeMap::new() } else { [url].into() })
}

#[test]
fn every_block_of_toml_in_a_page_is_a_valid_configuration() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut folders, mut pages) = (vec![root.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let is_built = path.ends_with("target") || path.ends_with(".git");
            if path.is_dir() && !is_built {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    let (mut count, mut cases) = (0, 0);
    for page in &pages {
        let mut table = String::new();
        for (line, block) in toml_blocks(&fs::read_to_string(page).unwrap()) {
            let place = format!("{}, line {line}", page.strip_prefix(root).unwrap().display());
            if block.contains("[[case]]") {
                play(&place, &table, &block);
                cases += 1;
                continue;
            }
            table.clone_from(&block);
            let (text, env) = complete(&block);
            let config = Config::parse(&text, &env).map_err(|mistakes| {
                mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
            });
            let config = config.unwrap_or_else(|mistakes| panic!("{place}: {mistakes}"));
            assert_eq!(config.unfit_defaults, Vec::<&str>::new(), "{place}");
            count += 1;
        }
    }
    assert!(count >= 1 && pages.len() > 3, "{count} blocks in {} pages", pages.len());
    assert!(cases >= 1, "no block of cases is found");
}

/// Cases in a page are for the table before them, and end as they say.
fn play(place: &str, table: &str, cases: &str) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cases.toml");
    fs::write(folder.path().join("table.toml"), table).unwrap();
    fs::write(&file, format!("table = \"table.toml\"\n{cases}")).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_mqtt-rest-gateway"))
        .arg("test")
        .arg(&file)
        .output()
        .unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(output.status.success(), "{place}: {text}");
}

#[test]
fn a_wrong_block_is_found_whether_it_is_a_fragment_or_a_table() {
    let page =
        "x\n```toml\n[log]\nformat = \"xml\"\n```\n```sh\n[x]\n```\n  ```toml\n[[route]]\n  ```\n";
    let blocks = toml_blocks(page);
    let expected = [(3, "[log]\nformat = \"xml\"\n".to_owned()), (10, "[[route]]\n".to_owned())];
    assert_eq!(blocks, expected);
    let mistakes = |block: &str| {
        let (text, env) = complete(block);
        Config::parse(&text, &env).err().map_or(0, |mistakes| mistakes.len())
    };
    assert_eq!(mistakes("[log]\nformat = \"xml\"\n"), 1, "the shipped table behind it is right");
    assert_eq!(mistakes("[log]\nlevel = \"debug\"\n"), 0);
    assert_eq!(mistakes("[[route]]\n"), 2, "a name and a pattern are missing");
}

/// One event of the log: its level, its message and its fields.
type LogEvent = (String, String, Vec<String>);

/// The arguments of each call of this macro in a file, without those of its tests.
fn arguments<'t>(text: &'t str, level: &str) -> Vec<&'t str> {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let start = format!("tracing::{level}!(");
    let (mut found, mut rest) = (Vec::new(), code);
    while let Some((_, after)) = rest.split_once(&start) {
        let (mut depth, mut in_text, mut escaped) = (1, false, false);
        let end = after.char_indices().find(|(_, letter)| {
            match letter {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '"' => in_text = !in_text,
                '(' if !in_text => depth += 1,
                ')' if !in_text => depth -= 1,
                _ => {}
            }
            depth == 0
        });
        let (arguments, behind) = after.split_at(end.expect("the call ends").0);
        found.push(arguments);
        rest = behind;
    }
    found
}

/// What a call writes: its message, as it stands in the log, and the names of its fields.
fn message_and_fields(arguments: &str) -> (String, Vec<String>) {
    let texts = arguments.replace("\\\"", "\u{1}");
    let mut parts = texts.rsplitn(3, '"').skip(1);
    let message = parts.next().unwrap_or_else(|| panic!("no message: {arguments}"));
    let before = parts.next().unwrap_or_default();
    let mut lines = message.split("\\\n").map(str::trim_start);
    let message: String = lines.next().unwrap_or_default().to_owned() + &lines.collect::<String>();
    let fields = split_arguments(before).into_iter().filter(|field| !field.starts_with("target:"));
    let fields = fields.map(|field| {
        let name = field.split('=').next().unwrap().trim();
        let name = name.trim_start_matches('%').trim_matches(['(', ')']);
        name.to_owned()
    });
    (message.replace('\u{1}', "\""), fields.collect())
}

/// Arguments are separated by commas outside of brackets and texts.
fn split_arguments(text: &str) -> Vec<String> {
    let (mut parts, mut depth, mut in_text) = (vec![String::new()], 0, false);
    for letter in text.chars() {
        match letter {
            '"' => in_text = !in_text,
            '(' | '[' if !in_text => depth += 1,
            ')' | ']' if !in_text => depth -= 1,
            _ => {}
        }
        if letter == ',' && depth == 0 && !in_text {
            parts.push(String::new());
        } else {
            parts.last_mut().unwrap().push(letter);
        }
    }
    parts.iter().map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect()
}

/// The files of the program, each with its name below `src`.
fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut folders, mut files) = (vec![root.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(&root).unwrap().display().to_string();
                files.push((name, fs::read_to_string(path).unwrap()));
            }
        }
    }
    files.retain(|(name, _)| !name.ends_with("tests.rs") && !name.ends_with("fixtures.rs"));
    files
}

/// The rows of the tables of `docs/log-events.md`.
fn events_on_the_page() -> Vec<LogEvent> {
    let page = text("docs/log-events.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix('|'));
    let rows = rows.filter_map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [level @ ("INFO" | "WARN" | "ERROR"), message, fields, ..] = *cells else {
            return None;
        };
        let message = message.trim_matches('`').to_owned();
        let fields = fields.split(", ").map(|field| field.trim_matches('`'));
        let fields = fields.filter(|field| !field.is_empty()).map(str::to_owned).collect();
        Some((level.to_owned(), message, fields))
    });
    rows.collect()
}

#[test]
fn every_event_of_the_log_is_on_its_page() {
    let page = events_on_the_page();
    let mut in_code: Vec<LogEvent> = Vec::new();
    for (name, text) in sources() {
        for level in ["info", "warn", "error"] {
            for arguments in arguments(&text, level) {
                let (message, fields) = message_and_fields(arguments);
                let event = (level.to_uppercase(), message, fields);
                assert!(
                    page.contains(&event),
                    "docs/log-events.md has no row `| {} | `{}` | {} |` (of src/{name}): write what it means, and what to do",
                    event.0,
                    event.1,
                    event.2.iter().map(|field| format!("`{field}`")).collect::<Vec<_>>().join(", ")
                );
                in_code.push(event);
            }
        }
    }
    for event in &page {
        assert!(in_code.contains(event), "docs/log-events.md has {event:?}, which no code writes");
    }
    assert!(page.len() > 40, "{} events", page.len());
}

/// `?` writes a value as Rust would: a text with quotes inside of quotes, a time as `1.2s`.
#[test]
fn no_field_of_the_log_is_written_as_rust_writes_it() {
    let mut fields = 0;
    for (name, text) in sources() {
        for level in ["error", "warn", "info", "debug", "trace"] {
            for arguments in arguments(&text, level) {
                for field in split_arguments(arguments).iter().filter(|f| !f.contains('"')) {
                    let value = field.split('=').next_back().unwrap().trim();
                    assert!(
                        !value.starts_with('?'),
                        "src/{name} logs {field}: use a number, or `%`"
                    );
                    fields += 1;
                }
            }
        }
    }
    assert!(fields > 60, "{fields} fields");
}
