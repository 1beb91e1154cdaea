//! The documentation says what the program does: tables in the README against the table in force.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{collections::BTreeMap, fs, path::Path};

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
