//! The documentation says what the program does: tables in the README against the table in force, and blocks of
//! TOML against `check`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use mqtt_rest_gateway::config::{Config, SHIPPED};

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
