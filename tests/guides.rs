//! The guides quote what the program says, and leave nothing out that it says of itself.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    path::{Path, PathBuf},
};

const TROUBLESHOOTING: &str = "docs/guides/troubleshooting.md";

fn text(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
}

/// All code of the program, with texts that go over several lines on one.
fn code() -> String {
    let (mut folders, mut code) =
        (vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")], String::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                code += &fs::read_to_string(path).unwrap();
            }
        }
    }
    let mut parts = code.split("\\\n");
    let first = parts.next().unwrap().to_owned();
    parts.fold(first, |code, part| code + part.trim_start())
}

/// The code spans in the first cells of the tables of a section.
fn quoted(page: &str, section: &str) -> Vec<String> {
    let (_, section) = page.split_once(&format!("\n## {section}\n")).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| "));
    let cells = rows.map(|row| row.split(" | ").next().unwrap());
    let spans = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    spans.map(str::to_owned).collect()
}

#[test]
fn symptoms_are_quoted_as_the_program_says_them() {
    let (page, code) = (text(TROUBLESHOOTING), code());
    for (section, least) in [("It runs and is not ready", 10), ("Lines of the log", 20)] {
        let quoted = quoted(&page, section);
        assert!(quoted.len() >= least, "{section}: {quoted:?}");
        for sentence in quoted {
            // What differs stands between the parts.
            for part in sentence.split("..").map(str::trim).filter(|part| part.len() > 2) {
                assert!(code.contains(part), "{section}: the program does not say `{part}`");
            }
        }
    }
}

#[test]
fn every_reason_for_not_being_ready_is_a_symptom() {
    let page = text(TROUBLESHOOTING);
    let health = text("src/admin/health.rs");
    let literals: Vec<&str> = health.split('"').skip(1).step_by(2).collect();
    let said = literals.iter().map(|literal| literal.split('{').next().unwrap().trim());
    // A sentence that ends is what to do about a reason.
    let is_reason =
        |said: &&str| (said.contains(' ') || *said == "stopping") && !said.ends_with('.');
    let said: Vec<_> = said.filter(is_reason).collect();
    assert!(said.len() > 8, "{said:?}");
    for reason in said {
        assert!(page.contains(reason), "{TROUBLESHOOTING} does not know `{reason}`");
    }
}

#[test]
fn every_code_of_a_failure_is_a_symptom() {
    let (page, readme) = (text(TROUBLESHOOTING), text("README.md"));
    let (_, table) = readme.split_once("| `status` | `code` | means |\n").unwrap();
    let table = table.split("\n\n").next().unwrap();
    let codes = table.lines().filter_map(|row| row.split(" | ").nth(1));
    let codes: Vec<_> = codes.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
    assert!(codes.len() > 12, "{codes:?}");
    for code in codes {
        assert!(page.contains(&format!("`{code}`")), "{TROUBLESHOOTING} does not know `{code}`");
    }
}
