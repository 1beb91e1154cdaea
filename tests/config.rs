//! Fixtures of configurations: every valid one passes, every invalid one reports exactly the
//! mistakes that its comment lines `#!` expect, all at once.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{collections::BTreeMap, fs, path::PathBuf};

use mqtt_rest_gateway::config::{Config, SHIPPED};

fn fixtures(kind: &str) -> Vec<(String, String)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/config").join(kind);
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut fixtures: Vec<_> = files
        .filter(|file| file.extension().is_some_and(|extension| extension == "toml"))
        .map(|file| {
            (file.file_name().unwrap().display().to_string(), fs::read_to_string(file).unwrap())
        })
        .collect();
    fixtures.sort();
    fixtures
}

fn mistakes(text: &str, env: &BTreeMap<String, String>) -> Vec<String> {
    match Config::parse(text, env) {
        Ok(_) => Vec::new(),
        Err(mistakes) => mistakes.iter().map(ToString::to_string).collect(),
    }
}

fn env<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[test]
fn valid_configurations_pass() {
    let fixtures = fixtures("valid");
    assert_eq!(fixtures.len(), 2);
    for (name, text) in fixtures {
        assert_eq!(mistakes(&text, &env([])), Vec::<String>::new(), "{name}");
    }
    assert_eq!(mistakes(SHIPPED, &env([])), Vec::<String>::new());
}

#[test]
fn invalid_configurations_report_exactly_their_mistakes() {
    let fixtures = fixtures("invalid");
    assert!(fixtures.len() > 5, "{}", fixtures.len());
    for (name, text) in fixtures {
        let expected: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix("#! ")).collect();
        assert!(!expected.is_empty(), "{name} expects something");
        let mut found = mistakes(&text, &env([]));
        for expected in &expected {
            let at = found.iter().position(|mistake| mistake.contains(expected));
            let at =
                at.unwrap_or_else(|| panic!("{name}: no `{expected}` in\n{}", found.join("\n")));
            found.remove(at);
        }
        assert!(found.is_empty(), "{name}: not expected:\n{}", found.join("\n"));
    }
}

#[test]
fn the_shipped_file_shows_the_defaults() {
    // A file without a key behaves like the shipped one: comments and code cannot drift apart.
    let at = SHIPPED.find("# ---- The table").unwrap();
    let (keys, table) = SHIPPED.split_at(at);
    let bare = format!("[upstream]\nurl = \"https://hub.example.com\"\n{table}");
    let shipped = format!("{:?}", Config::parse(SHIPPED, &env([])).unwrap());
    assert_eq!(format!("{:?}", Config::parse(&bare, &env([])).unwrap()), shipped);
    assert!(keys.lines().filter(|line| line.contains(" = ")).count() > 25);
}

#[test]
fn every_scalar_can_be_set_by_the_environment() {
    let mut keys = Vec::new();
    let mut section = String::new();
    for line in SHIPPED.lines().take_while(|line| !line.starts_with("# ---- The table")) {
        if let Some(name) = line.strip_prefix('[') {
            section = name.split(']').next().unwrap().replace('.', "_").to_uppercase();
        } else if let Some((key, _)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
            keys.push(format!("GATEWAY_{section}_{}", key.trim().to_uppercase()));
        }
    }
    assert!(keys.len() > 25, "{keys:?}");
    for key in keys {
        // A list is a legal value of no key, and the mistake names the variable that holds it.
        let found = mistakes(SHIPPED, &env([(key.as_str(), "[\u{1}=,")]));
        let free_text = ["CLIENT_ID", "PROPERTY", "KEY_PREFIX", "SHARE_GROUP", "ERRORS", "_TOPIC"];
        if free_text.iter().any(|free| key.contains(free)) {
            assert!(found.is_empty(), "{key} is known: {found:?}");
        } else {
            assert!(found.len() == 1 && found[0].starts_with(&key), "{key}: {found:?}");
        }
    }
    let config = Config::parse(SHIPPED, &env([("GATEWAY_BROKER_CLIENT_ID", "other")])).unwrap();
    assert_eq!(&*config.broker.client_id, "other");
}

#[test]
fn unknown_variables_are_mistakes() {
    let found = mistakes(
        SHIPPED,
        &env([("GATEWAY_BROKER_ULR", "x"), ("GATEWAY_CONFIG", "x"), ("HOME", "x")]),
    );
    assert_eq!(found, ["GATEWAY_BROKER_ULR: unknown variable; do you mean `GATEWAY_BROKER_URL`?"]);
}

#[test]
fn secrets_come_from_files_and_are_not_shown() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    fs::write(&file, "s3cret\n").unwrap();
    let file = file.to_str().unwrap();
    let config = Config::parse(SHIPPED, &env([("GATEWAY_BROKER_PASSWORD_FILE", file)])).unwrap();
    assert_eq!(config.broker.password.as_ref().unwrap().expose(), "s3cret");
    assert!(!format!("{config:?}").contains("s3cret"));
    let url = [("GATEWAY_BROKER_URL", "wss://b.example.com/mqtt?token=s3cret")];
    let config = Config::parse(SHIPPED, &env(url)).unwrap();
    assert_eq!(config.broker.address.to_string(), "wss://b.example.com:443");
    assert!(!format!("{config:?}").contains("s3cret"));
    let both = env([("GATEWAY_BROKER_PASSWORD_FILE", file), ("GATEWAY_BROKER_PASSWORD", "s3cret")]);
    let found = mistakes(SHIPPED, &both);
    assert!(found.len() == 1 && found[0].contains("exclude each other"), "{found:?}");
}
