//! What is told about cases that were played, as test runners do.

use std::fmt::Write;

use serde_json::json;

use super::{Played, PlayedFile, compare::Difference};

/// So many differences of a case are shown: what comes after is often the same mistake again.
const SHOWN: usize = 20;
/// So many lines of its log.
const LINES: usize = 50;

/// For people.
pub(super) fn text(files: &[PlayedFile]) -> String {
    let mut text = String::new();
    // Writing into a string cannot fail, here and below.
    for played in files {
        let file = played.file.display();
        let _ = writeln!(text, "{file}");
        for case in &played.cases {
            let _ = if case.differences.is_empty() {
                writeln!(text, "  ok    {}", case.name)
            } else {
                writeln!(text, "  FAIL  {}  ({file}:{})", case.name, case.line)
            };
            differences(&mut text, case);
        }
        if !played.untried.is_empty() {
            let _ = writeln!(text, "  rows without a case: {}", played.untried.join(", "));
        }
    }
    let (count, failed) = counts(files);
    let cases = if count == 1 { "case" } else { "cases" };
    let _ = writeln!(text, "{count} {cases}, {failed} failed");
    text
}

fn differences(text: &mut String, case: &Played) {
    for Difference { line, part, expected, found } in case.differences.iter().take(SHOWN) {
        let value = |value: &Option<String>| match value {
            Some(value) => format!(" {value}"),
            None => " (nothing)".to_owned(),
        };
        let _ = writeln!(text, "        line {line}: {part}");
        let _ = writeln!(text, "          -{}", value(expected));
        let _ = writeln!(text, "          +{}", value(found));
    }
    more(text, case.differences.len(), SHOWN, "differences");
    for line in case.log.lines().take(LINES) {
        let _ = writeln!(text, "        log: {}", line.trim());
    }
    more(text, case.log.lines().count(), LINES, "lines of the log");
}

/// Says how many are not shown.
fn more(text: &mut String, count: usize, shown: usize, what: &str) {
    if count > shown {
        let _ = writeln!(text, "        and {} more {what}", count - shown);
    }
}

/// For programs.
pub(super) fn json(files: &[PlayedFile]) -> String {
    let (count, failed) = counts(files);
    let files = files.iter().map(|played| {
        let cases = played.cases.iter().map(|case| {
            let differences = case.differences.iter().map(|difference| {
                let Difference { line, part, expected, found } = difference;
                json!({ "line": line, "part": part, "expected": expected, "found": found })
            });
            json!({
                "name": case.name,
                "line": case.line,
                "ok": case.differences.is_empty(),
                "differences": differences.collect::<Vec<_>>(),
                "log": case.log.lines().collect::<Vec<_>>(),
            })
        });
        json!({
            "file": played.file.display().to_string(),
            "cases": cases.collect::<Vec<_>>(),
            "rows_without_a_case": played.untried,
        })
    });
    json!({ "case_files": files.collect::<Vec<_>>(), "cases": count, "failed": failed }).to_string()
}

fn counts(files: &[PlayedFile]) -> (usize, usize) {
    let count = files.iter().map(|file| file.cases.len()).sum();
    (count, files.iter().map(PlayedFile::failed).sum())
}
