//! Fixtures of configurations: every valid one passes, every invalid one reports exactly the
//! mistakes that its comment lines `#!` expect, all at once.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{collections::BTreeMap, fs, path::PathBuf, process::Command};

use mqtt_rest_gateway::config::{Config, SHIPPED, effective};
use toml::de::{DeTable, DeValue};

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
    assert!(fixtures.len() > 2, "{}", fixtures.len());
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

/// An answer from which nothing follows is recognised without running a filter, if no filter that decides what follows
/// reads anything but the answer and the memory.
#[test]
fn what_follows_telemetry_is_decided_by_its_answer_and_memory_alone() {
    let config = Config::parse(SHIPPED, &env([])).unwrap();
    let telemetry = config.table.routes.iter().find(|route| &*route.name == "telemetry").unwrap();
    let deciding: Vec<_> = telemetry.deciding().collect();
    assert_eq!(deciding.len(), 1 + telemetry.then.len(), "`remember`, and a condition each");
    for filter in deciding {
        assert!(!filter.is_changeable(), "{filter:?}");
    }
}

/// Every key outside the table, with its value, by path.
fn settings(text: &str) -> BTreeMap<String, String> {
    fn walk(path: &str, table: &DeTable<'_>, found: &mut BTreeMap<String, String>) {
        for (key, value) in table.iter().filter(|(key, _)| key.get_ref() != "filters") {
            let path = format!("{path}{}", key.get_ref());
            match value.get_ref() {
                DeValue::Table(table) => walk(&format!("{path}."), table, found),
                DeValue::Array(_) => {}
                DeValue::String(text) => assert!(found.insert(path, text.to_string()).is_none()),
                DeValue::Integer(n) => assert!(found.insert(path, n.to_string()).is_none()),
                other => panic!("{path} is {}", other.type_str()),
            }
        }
    }
    let mut found = BTreeMap::new();
    walk("", DeTable::parse(text).unwrap().get_ref(), &mut found);
    found
}

#[test]
fn the_fixture_of_everything_has_every_key_and_none_at_its_default() {
    let (_, text) = fixtures("valid").into_iter().find(|(n, _)| n == "everything.toml").unwrap();
    let (shipped, everything) = (settings(SHIPPED), settings(&text));
    assert!(shipped.len() > 30, "{shipped:?}");
    for (key, default) in &shipped {
        let value = everything.get(key).unwrap_or_else(|| panic!("everything.toml has no {key}"));
        assert_ne!(value, default, "{key} is at its default");
    }
}

#[test]
fn a_default_that_does_not_fit_the_table_is_off_and_a_warning_says_so() {
    let table = "[upstream]\nurl = \"https://hub\"\n[device]\ncapture = \"sensor\"\n[[route]]\n\
                 name = \"r\"\non = \"plant/{sensor}/r\"\ncall = \"POST /r\"\n";
    let about = |text: &str, env: &BTreeMap<String, String>| {
        let config = Config::parse(text, env).unwrap();
        let told =
            config.warnings().into_iter().filter(|w| w.starts_with("[replies] errors: not set"));
        (config.exchange.errors.map(|topic| topic.as_str().to_owned()), told.count())
    };
    assert_eq!(about(table, &env([])), (None, 1));
    let letters = Config::parse(table, &env([])).unwrap().exchange.dead_letter.unwrap();
    assert!(letters.as_str().ends_with("/{route}"), "a default that fits stands: {letters:?}");
    assert_eq!(about(&format!("[replies]\nerrors = \"\"\n{table}"), &env([])), (None, 0));
    let topic = "plant/{sensor}/errors";
    let set = env([("GATEWAY_REPLIES_ERRORS", topic)]);
    assert_eq!(about(table, &set), (Some(topic.to_owned()), 0));
    let (shipped, told) = about(SHIPPED, &env([]));
    assert!(shipped.is_some() && told == 0);
    // What is written and does not fit is a mistake.
    let wrong = env([("GATEWAY_REPLIES_ERRORS", "plant/{site}/errors")]);
    let expected = "GATEWAY_REPLIES_ERRORS: `{site}` is not captured by route `r`";
    assert_eq!(mistakes(table, &wrong), [expected]);
}

#[test]
fn a_named_filter_is_the_filter_it_names() {
    let config = Config::parse(SHIPPED, &env([])).unwrap();
    let payload = |name: &str| {
        let fetch = config.table.fetches.iter().find(|fetch| *fetch.name == *name).unwrap();
        fetch.payload.as_ref().unwrap().as_str()
    };
    assert!(payload("license").contains("del(.action)"));
    assert_eq!(payload("license"), payload("licenses"));
    assert_eq!(SHIPPED.matches("del(.action)").count(), 1);
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
        assert!(found.len() == 1 && found[0].starts_with(&key), "{key}: {found:?}");
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
    assert_eq!(config.broker.password.as_ref().unwrap().now().expose(), "s3cret");
    assert!(!format!("{config:?}").contains("s3cret"));
    let url = [("GATEWAY_BROKER_URL", "wss://b.example.com/mqtt?token=s3cret")];
    let config = Config::parse(SHIPPED, &env(url)).unwrap();
    assert_eq!(config.broker.address.to_string(), "wss://b.example.com:443");
    assert!(!format!("{config:?}").contains("s3cret"));
    let both = env([("GATEWAY_BROKER_PASSWORD_FILE", file), ("GATEWAY_BROKER_PASSWORD", "s3cret")]);
    let found = mistakes(SHIPPED, &both);
    assert!(found.len() == 1 && found[0].contains("exclude each other"), "{found:?}");
}

#[test]
fn what_kubernetes_sets_for_a_service_of_our_name_is_no_mistake() {
    let links = env([
        ("GATEWAY_PORT", "tcp://10.0.0.7:80"),
        ("GATEWAY_SERVICE_HOST", "10.0.0.7"),
        ("GATEWAY_SERVICE_PORT", "80"),
        ("GATEWAY_SERVICE_PORT_HTTP", "80"),
        ("GATEWAY_PORT_80_TCP", "tcp://10.0.0.7:80"),
        ("GATEWAY_PORT_80_TCP_PROTO", "tcp"),
        ("GATEWAY_PORT_80_TCP_ADDR", "10.0.0.7"),
        ("GATEWAY_BROKER_PORT", "tcp://10.0.0.8:1883"),
        ("GATEWAY_BROKER_PORT_1883_TCP_PORT", "1883"),
    ]);
    let config = Config::parse(SHIPPED, &links).unwrap();
    assert_eq!(config.service_links.len(), links.len());
    assert!(config.warnings().iter().any(|w| w.contains("enableServiceLinks")));
    for (name, value) in
        [("GATEWAY_BROKER_PORT", "1883"), ("GATEWAY_PORT", "80"), ("GATEWAY_PORT_X_TCP", "tcp")]
    {
        assert_eq!(mistakes(SHIPPED, &env([(name, value)])).len(), 1, "{name}");
    }
}

#[test]
fn what_travels_in_clear_text_is_said_and_what_stays_here_is_not() {
    let about = |key: &str, value: &str| {
        let config = Config::parse(SHIPPED, &env([(key, value)])).unwrap();
        let warnings = config.warnings().into_iter().filter(|w| w.contains("clear text"));
        warnings.count()
    };
    for (url, said) in [
        ("mqtt://127.0.0.1", 0),
        ("mqtt://localhost:1883", 0),
        ("ws://[::1]/mqtt", 0),
        ("mqtts://broker.plant", 0),
        ("mqtt://broker.plant", 1),
        ("ws://10.0.0.1/mqtt", 1),
    ] {
        assert_eq!(about("GATEWAY_BROKER_URL", url), said, "{url}");
    }
    assert_eq!(about("GATEWAY_UPSTREAM_URL", "http://127.0.0.1:8080"), 0);
    assert_eq!(about("GATEWAY_UPSTREAM_URL", "http://api.plant"), 1);
    let shipped = Config::parse(SHIPPED, &env([])).unwrap();
    assert!(shipped.warnings().iter().any(|w| w.contains("placeholder")), "the url has to be set");
}

#[test]
fn a_wrong_certificate_file_is_named_under_its_own_key() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let file = dir.path().join(name);
        fs::write(&file, text).unwrap();
        file.to_str().unwrap().to_owned()
    };
    let made = || rcgen::generate_simple_self_signed(["gateway".to_owned()]).unwrap();
    let (own, other) = (made(), made());
    let certificate = write("cert", &own.cert.pem());
    let key = write("key", &own.signing_key.serialize_pem());
    let foreign = write("foreign", &other.signing_key.serialize_pem());
    let sealed =
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let (sealed, empty) = (write("sealed", sealed), write("empty", ""));
    let check = |url: &str, pairs: &[(&str, &str)]| {
        let mut all = env([("GATEWAY_BROKER_URL", url)]);
        all.extend(pairs.iter().map(|(k, v)| (format!("GATEWAY_BROKER_{k}"), (*v).to_owned())));
        mistakes(SHIPPED, &all).join("\n")
    };
    let (tls, cert) = ("mqtts://b", ("CERT_FILE", certificate.as_str()));
    assert_eq!(check(tls, &[cert, ("KEY_FILE", &key)]), "");
    for (url, pairs, expected) in [
        (
            tls,
            vec![cert, ("KEY_FILE", &*foreign)],
            "[broker] key_file: this key does not belong to",
        ),
        (tls, vec![cert, ("KEY_FILE", &*sealed)], "the key is encrypted"),
        (tls, vec![cert, ("KEY_FILE", &*certificate)], "no private key in this file"),
        (tls, vec![("CERT_FILE", &*foreign), ("KEY_FILE", &*key)], "[broker] cert_file: "),
        (tls, vec![("CA_FILE", &*empty)], "[broker] ca_file: "),
        (
            "mqtt://b",
            vec![("CA_FILE", &*certificate)],
            "[broker] ca_file: the connection is not encr",
        ),
        (
            "mqtt://b",
            vec![cert, ("KEY_FILE", &*key)],
            "[broker] cert_file: the connection is not encr",
        ),
        // Whether a wrong URL would have been encrypted is not known.
        ("mqtss://b", vec![("CA_FILE", &*certificate)], "BROKER_URL: unknown scheme `mqtss`"),
        (tls, vec![("PASSWORD_FILE", &*empty)], "is empty"),
    ] {
        let found = check(url, &pairs);
        assert!(found.contains(expected) && found.lines().count() == 1, "{expected}: {found}");
    }
}

#[test]
fn a_secret_in_the_place_of_its_file_is_not_echoed() {
    for secret in ["s3cret", "/s3cret/s3cret", "pa/s3cret"] {
        let found = mistakes(SHIPPED, &env([("GATEWAY_BROKER_PASSWORD_FILE", secret)])).join("\n");
        assert!(found.contains("No such file") && !found.contains("s3cret"), "{found}");
    }
}

#[test]
fn rows_that_trust_topics_are_named_where_the_broker_takes_anybody() {
    let warned = |text: &str, variables: &[(&str, &str)]| {
        let variables =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let config = Config::parse(text, &variables.collect()).unwrap();
        config.warnings().into_iter().find(|warning| warning.contains("remembered key"))
    };
    let warning = warned(SHIPPED, &[]).unwrap();
    assert!(warning.contains("update_license, update_device"), "{warning}");
    assert_eq!(warned(SHIPPED, &[("GATEWAY_BROKER_USERNAME", "gateway")]), None);
    let text = SHIPPED.replace("\"remembered\"", "\"message\"");
    assert_eq!(warned(&text, &[]), None);
}

#[test]
fn rows_that_do_nothing_are_named_unless_they_lie_inside_another() {
    let text = "[upstream]\nurl = \"http://localhost\"\n[device]\ncredentials = \"none\"\n\
                [[route]]\nname = \"all\"\non = \"z/{device_id...}\"\ncall = \"PUT /{device_id}\"\n\
                [[route]]\nname = \"bridge\"\non = \"z/bridge/{rest...}\"\n\
                [[route]]\nname = \"idle\"\non = \"y/{device_id}\"\n";
    let warnings = Config::parse(text, &env([])).unwrap().warnings();
    let idle: Vec<_> = warnings.iter().filter(|w| w.contains("does nothing")).collect();
    assert!(idle.len() == 1 && idle[0].starts_with("route `idle`: "), "{warnings:?}");
    let trusting = warnings.iter().find(|w| w.contains("take whoever writes")).unwrap();
    assert!(trusting.contains("] username: all take"), "{trusting}");
}

#[test]
fn rows_that_ask_for_nothing_are_named_where_the_broker_takes_anybody() {
    let row = |name: &str, more: &str| {
        let call = "call = \"PUT /{device_id}\"";
        format!("[[route]]\nname = \"{name}\"\non = \"{name}/{{device_id}}\"\n{call}\n{more}\n")
    };
    let head = "[upstream]\nurl = \"http://localhost\"\n[device]\ncredentials = \"none\"\n";
    let own = row("b", "credentials = \"message\"");
    let text = [head, &row("a", ""), &own, &row("c", "")].concat();
    let warned = |variables| {
        let config = Config::parse(&text, &variables).unwrap();
        config.warnings().into_iter().find(|warning| warning.contains("\"none\""))
    };
    let warning = warned(env([])).unwrap();
    assert!(warning.contains("a, c take whoever"), "rows that say nothing: {warning}");
    assert_eq!(warned(env([("GATEWAY_BROKER_USERNAME", "gateway")])), None);
}

/// What the compiled program says about a file of cases, if every case ends as it says.
fn play(cases: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mqtt-rest-gateway"));
    command.args(["test", cases]).current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let (out, error) = (text(output.stdout), text(output.stderr));
    assert!(output.status.success(), "{out}{error}");
    out
}

#[test]
fn the_shipped_table_does_what_its_cases_say_and_every_row_has_one() {
    let out = play("config.test.toml");
    assert!(!out.contains("rows without a case"), "{out}");
    assert!(out.ends_with(" cases, 0 failed\n"), "{out}");
}

/// What is in force with this file and these variables, as a file.
fn in_force(text: &str, env: &BTreeMap<String, String>) -> String {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("own.toml");
    fs::write(&file, text).unwrap();
    effective(Some(&file), env).unwrap().replace(&file.display().to_string(), "own.toml")
}

#[test]
fn what_is_in_force_can_be_read_again_and_is_the_same() {
    let mut texts = fixtures("valid");
    texts.push(("config.toml".to_owned(), SHIPPED.to_owned()));
    let set = env([
        ("GATEWAY_UPSTREAM_RATE_TOTAL", "7/s"),
        ("GATEWAY_BROKER_USERNAME", "us'er\"\\"),
        ("GATEWAY_PORT", "tcp://10.0.0.7:80"),
    ]);
    for (name, text) in &texts {
        // Nothing else is missing.
        let mut written = in_force(text, &set);
        for secret in ["password", "tenant", "token", "word"] {
            let hidden = format!("# {secret} = <hidden>");
            written = written.replace(&hidden, &format!("{secret} = 'x'"));
        }
        let read = |text: &str, env: &BTreeMap<String, String>| {
            let config = Config::parse(text, env).map_err(|mistakes| {
                let mistakes: Vec<_> = mistakes.iter().map(ToString::to_string).collect();
                format!("{name}:\n{}\n{text}", mistakes.join("\n"))
            });
            let config = Config { service_links: Vec::new(), ..config.unwrap() };
            format!("{:?}", Config { unfit_defaults: Vec::new(), ..config })
        };
        assert_eq!(read(&written, &env([])), read(text, &set), "{name}:\n{written}");
    }
}

#[test]
fn what_is_in_force_says_where_it_comes_from_and_no_secret() {
    let text = r#"
[upstream]
url   = "https://hub"
proxy = "http://u:s3cret@p"
[broker]
password = "s3cret"
username = "me"
[device]
capture = "id"
[[route]]
name = "r"
on   = "{id}/r"
call = "POST /r?token=s3cret"
headers = { X-Token = "s3cret", X-Own = "{$own}" }
[secrets]
own = "s3cret"
"#;
    let url = "wss://broker/mqtt?token=s3cret";
    let set = env([("GATEWAY_BROKER_URL", url), ("GATEWAY_UPSTREAM_RETRY_MAX", "9s")]);
    let written = in_force(text, &set);
    for line in [
        "# url = <hidden>  # GATEWAY_BROKER_URL",
        "username = \"me\"  # own.toml, line 7",
        "# password = <hidden>  # own.toml, line 6",
        "max = \"9s\"  # GATEWAY_UPSTREAM_RETRY_MAX",
        "initial = \"200ms\"  # default",
        "errors = \"\"  # the default does not fit the table",
        "key_property = \"access_key\"  # default",
        "call = \"POST /r?token=<hidden>\"",
        "# own = <hidden>  # own.toml, line 16",
        "headers = { X-Own = \"{$own}\", X-Token = \"<hidden>\" }",
    ] {
        assert!(written.lines().any(|found| found == line), "{line}:\n{written}");
    }
    assert!(!written.contains("s3cret"), "{written}");
}

/// The tables of a folder, by name.
fn tables(folder: &str) -> Vec<(String, String)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(folder);
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let tables = files.filter_map(|file| {
        let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
        let is_table = file.extension().is_some_and(|end| end == "toml") && !name.contains(".test");
        is_table.then(|| (name, fs::read_to_string(&file).unwrap()))
    });
    tables.collect()
}

/// The table is valid, with secrets from elsewhere, and does what its cases say.
fn is_valid_and_plays(folder: &str, name: &str, text: &str) {
    let parsed = DeTable::parse(text).unwrap();
    let secrets = parsed.get_ref().get("secrets").and_then(|value| value.get_ref().as_table());
    let names = secrets.into_iter().flatten().map(|(key, _)| {
        let name = key.get_ref().trim_end_matches("_file").to_uppercase();
        (format!("GATEWAY_SECRETS_{name}"), "s3cret".to_owned())
    });
    let mut env: BTreeMap<_, _> = names.collect();
    let keys = tempfile::NamedTempFile::new().unwrap();
    fs::write(keys.path(), "{\"d1\": \"s3cret\"}").unwrap();
    if text.contains("\nkeys_file ") {
        env.insert("GATEWAY_DEVICE_KEYS_FILE".into(), keys.path().display().to_string());
    }
    assert_eq!(mistakes(text, &env), Vec::<String>::new(), "{name}");
    let out = play(&format!("{folder}/{name}.test.toml"));
    assert!(!out.contains("rows without a case"), "{name}: {out}");
}

#[test]
fn every_example_is_valid_and_does_what_its_cases_say() {
    let tables = tables("examples");
    assert!(tables.len() > 8, "{} examples", tables.len());
    for (name, text) in tables {
        // Each is tried as its first lines say.
        for command in ["check", "test"] {
            let said = text.lines().take_while(|line| line.starts_with('#'));
            let file = if command == "test" { format!("{name}.test") } else { name.clone() };
            let call = format!("examples/{file}.toml");
            let mut said = said.filter(|line| line.contains("mqtt-rest-gateway"));
            assert!(said.any(|line| line.contains(command) && line.contains(&call)), "{name}");
        }
        is_valid_and_plays("examples", &name, &text);
    }
}

/// What people bridge MQTT to REST for: each is a table, and says so in its first line.
#[test]
fn every_situation_is_a_table_that_does_what_its_cases_say() {
    let tables = tables("tests/situations");
    assert!(tables.len() > 30, "{} situations", tables.len());
    for (name, text) in tables {
        assert!(text.starts_with("# "), "{name}");
        is_valid_and_plays("tests/situations", &name, &text);
    }
}

/// A row that names these secrets.
fn naming(secrets: &str) -> String {
    format!(
        "[upstream]\nurl = \"http://hub\"\nheaders = {{ X-A = \"{secrets}\" }}\n[[route]]\nname = \"r\"\n\
         on = \"{{device_id}}\"\ncall = \"POST /r\"\n"
    )
}

#[test]
fn secrets_come_from_the_environment_and_it_goes_before_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    fs::write(&file, "from-file\n").unwrap();
    let file = file.to_str().unwrap();
    let text = format!("[secrets]\ntoken = \"t3xt\"\n{}", naming("{$token}{$other_1}"));
    let both = env([("GATEWAY_SECRETS_TOKEN_FILE", file), ("GATEWAY_SECRETS_OTHER_1", "s3cret")]);
    let config = Config::parse(&text, &both).unwrap();
    let shown = format!("{config:?}");
    assert!(!["t3xt", "s3cret", "from-file"].iter().any(|v| shown.contains(v)), "{shown}");
    for (variables, expected) in [
        (vec![], "route `r`: headers: "),
        (vec![("TOKEN", "x"), ("TOKEN_FILE", file), ("OTHER_1", "x")], "exclude each other"),
        (vec![("OTHER_1", "x"), ("TOKEN", "")], "GATEWAY_SECRETS_TOKEN: it is empty"),
        (vec![("OTHER_1", "x"), ("THIRD", "x")], "GATEWAY_SECRETS_THIRD: unused"),
        (vec![("OTHER_1_FILE", "/n0ne/s3cret")], "GATEWAY_SECRETS_OTHER_1_FILE: this file: No"),
    ] {
        let variables = variables
            .into_iter()
            .map(|(name, value)| (format!("GATEWAY_SECRETS_{name}"), value.to_owned()));
        let found = mistakes(&text, &variables.collect()).join("\n");
        let unknown = expected.starts_with("route");
        assert_eq!(found.contains("[upstream] headers: `X-A`: unknown secret `other_1`"), unknown);
        assert!(unknown || found.contains(expected), "{expected}: {found}");
        assert!(found.lines().count() == 1 && !found.contains("s3cret"), "{found}");
    }
    // As Kubernetes sets them for a Service called `gateway-secrets`.
    let link = env([("GATEWAY_SECRETS_SERVICE_HOST", "10.0.0.7")]);
    assert_eq!(mistakes(&naming("x"), &link), Vec::<String>::new());
}

#[test]
fn a_secret_in_plain_sight_is_said() {
    let warned = |headers: &str| {
        let text = naming("x").replace("X-A = \"x\"", headers);
        let config = Config::parse(&text, &env([("GATEWAY_SECRETS_T", "t")])).unwrap();
        config.warnings().iter().filter(|warning| warning.contains("for everybody to read")).count()
    };
    assert_eq!(warned("X-Token = \"s3cret\", X-A = \"{$t}\""), 1);
    assert_eq!(warned("X-Token = \"Token {$t}\", X-Version = \"2\""), 0);
}

#[test]
fn a_client_secret_in_clear_text_is_said() {
    let warned = |url: &str| {
        let auth = format!(
            "[upstream.auth.oauth2]\ntoken_url = \"{url}\"\nclient_id = \"c\"\nclient_secret = \"{{$t}}\"\n\
             [device]\nkey_header = \"X-Key\"\n[[route]]"
        );
        let text = naming("x").replacen("[[route]]", &auth, 1);
        let config = Config::parse(&text, &env([("GATEWAY_SECRETS_T", "t")])).unwrap();
        config.warnings().iter().filter(|w| w.contains("the client's secret travels")).count()
    };
    assert_eq!(warned("http://idp/token"), 1);
    assert_eq!((warned("https://idp/token"), warned("http://127.0.0.1/token")), (0, 0));
}

#[test]
fn what_authorizes_the_gateway_is_explained_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("own.toml");
    let explain = |auth: &str| {
        let text = format!(
            "[secrets]\ns = \"s3cret\"\n[upstream]\nurl = \"http://hub\"\n[upstream.auth]\n{auth}\n[[route]]\n\
             name = \"r\"\non = \"{{device_id}}\"\ncall = \"GET /\"\ncredentials = \"none\"\n\
             sign = {{ secret = \"{{$s}}\", over = \"{{body}}\", header = \"X-S\", value = \"v1={{hex}}\" }}\n"
        );
        fs::write(&file, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_mqtt-rest-gateway"));
        let output = command.arg("--config").arg(&file).args(["explain", "d1"]).output().unwrap();
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    };
    let oauth2 =
        "oauth2 = { token_url = \"http://idp/t\", client_id = \"c\", client_secret = \"{$s}\" }";
    for (auth, shown) in [
        ("basic = \"me:{$s}\"", "authorization: Basic me:<s>"),
        (oauth2, "authorization: Bearer <a token of http://idp/t>"),
    ] {
        let text = explain(auth);
        for line in [shown, "x-s: v1={hex} with <s>"] {
            assert!(text.lines().any(|l| l.trim() == line), "{line}: {text}");
        }
        assert!(!text.contains("s3cret"), "{text}");
    }
}
