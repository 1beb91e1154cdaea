//! The command `test`, as it is used: the compiled program plays cases and says what differs when one is wrong. The cases
//! of the shipped table and of the examples are played in `config.rs`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{fs, process::Command};

use serde_json::{Value, json};

/// Runs the program: exit code, standard output, standard error.
fn run(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_mqtt-rest-gateway"))
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// Plays this text as a file of cases beside this table.
fn play(table: &str, cases: &str, arguments: &[&str]) -> (i32, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cases.toml");
    fs::write(folder.path().join("table.toml"), table).unwrap();
    fs::write(&file, format!("table = \"table.toml\"\n{cases}")).unwrap();
    run(&[&["test", file.to_str().unwrap()], arguments].concat())
}

const TABLE: &str = r#"
[upstream]
url       = "https://api.invalid/base/"
ca_file   = "/nowhere/ca.pem"
cert_file = "/nowhere/cert.pem"
key_file  = "/nowhere/key.pem"
[broker]
password_file = "/nowhere/password"
[device]
capture = "id"
[replies]
errors = "d/{id}/errors"
[[route]]
name     = "up"
on       = "d/{id}/up"
call     = "POST /{id}"
body     = "{v: .v, at: (now | floor)}"
remember = "{mode: .mode}"
then     = [{ fetch = "news", on_change = ".news" }]
[[route]]
name  = "ask"
on    = "d/{id}/ask"
call  = "GET /{id}?x={id}"
reply = "d/{id}/answer"
[[fetch]]
name = "news"
call = "GET /{id}/news"
push = "d/{id}/news"
"#;

/// A case of this table that is right.
const CASE: &str = r#"
properties = { device_id = "a b", access_key = "k" }
[[case]]
name    = "right"
at      = "2026-11-25T12:00:00Z"
topic   = "d/a b/up"
payload = { v = 1 }
calls   = [
  { call = "POST /a%20b", headers = { Authorization = "k", X-None = "" }, body = { v = 1, at = 1795608000 }, answer = { news = 1 } },
  { call = "GET /a%20b/news", answer = '"hot"', answer_headers = { Content-Type = "application/x" } },
]
pushes  = [{ topic = "d/a b/news", payload = '"hot"', content_type = "application/x", properties = { via = "mqtt-rest-gateway" } }]
reply   = false
dead_letter = false
outcome = "delivered"
[[case.next]]
after = "90s"
calls = [{ body = { v = 1, at = 1795608090 }, answer = { news = 1 } }]
pushes = []
"#;

#[test]
fn a_case_needs_neither_network_nor_secrets_nor_time() {
    let (code, out, error) = play(TABLE, CASE, &[]);
    assert_eq!((code, error.as_str()), (0, ""), "{out}");
    let lines: Vec<_> = out.lines().skip(1).collect();
    assert_eq!(lines, ["  ok    right", "  rows without a case: ask", "1 case, 0 failed"]);
}

/// The differences that are found when this stands in the case in place of that.
fn differs(from: &str, to: &str) -> String {
    assert!(CASE.contains(from), "{from}");
    let (code, out, _) = play(TABLE, &CASE.replacen(from, to, 1), &["--json"]);
    assert_eq!(code, 1, "{to}: {out}");
    let found: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&found["cases"], &found["failed"]), (&json!(1), &json!(1)));
    let differences = found["case_files"][0]["cases"][0]["differences"].as_array().unwrap();
    let lines = differences.iter().map(|difference| {
        let text = |key: &str| difference[key].as_str().unwrap_or("none").to_owned();
        format!("{}: {} is {}", text("part"), text("expected"), text("found"))
    });
    lines.collect::<Vec<_>>().join("; ")
}

#[test]
fn whatever_differs_is_found_and_named() {
    for (from, to, differences) in [
        ("POST /a%20b", "PUT /a%20b", "call 1: PUT /a%20b is POST /a%20b"),
        ("POST /a%20b", "POST https://x/a", "call 1: POST https://x/a is POST /a%20b"),
        ("\"k\", X-None = \"\"", "\"l\"", "call 1: header authorization: l is k"),
        ("X-None = \"\"", "Host = \"\"", "call 1: header host: none is api.invalid"),
        (
            "body = { v = 1,",
            "body = { v = 2, w = [],",
            "call 1: body .v: 2 is 1; call 1: body .w: [] is none",
        ),
        ("GET /a%20b/news", "GET /x", "call 2: GET /x is GET /a%20b/news"),
        ("  { call = \"GET", "  {}, { call = \"GET", "call 3: GET /a%20b/news is none"),
        ("payload = '\"hot\"'", "payload = 1", "push 1: payload: 1 is \"hot\""),
        ("\"d/a b/news\"", "\"d/x\"", "push 1: topic: d/x is d/a b/news"),
        ("via = \"mqtt-", "via = \"mqtt-x\", y = \"mqtt-", "push 1: property y"),
        ("payload = '\"hot\"'", "retain = true", "push 1: retain: true is false"),
        ("reply   = false", "reply = {}", "reply: a publication is none"),
        ("dead_letter = false", "dead_letter = { topic = \"x\" }", "dead_letter: x is none"),
        ("\"delivered\"", "\"rejected\"", "outcome: rejected is delivered"),
        ("pushes = []", "pushes = [{ topic = \"x\" }]", "push 1: x is none"),
        (
            "calls = [{ body = {",
            "calls = [{ fails = \"unreachable\" }]\n[[case.next]]\ncalls = [{ body = {",
            "outcome: an end",
        ),
        (
            "topic   = \"d/a b/up\"",
            "topic = \"d/a/b/up\"",
            "topic: a row that listens on `d/a/b/up` is none",
        ),
    ] {
        let found = differs(from, to);
        assert!(found.contains(differences), "{to}:\n{differences}\n{found}");
    }
}

#[test]
fn failures_of_the_api_end_as_they_do_in_the_gateway() {
    let case = |calls: &str, ends: &str| {
        let case = format!(
            "properties = {{ device_id = \"d\", access_key = \"k\" }}\n[[case]]\nname = \"x\"\n\
             topic = \"d/d/ask\"\ncalls = [{calls}]\n{ends}\n"
        );
        let (code, out, error) = play(TABLE, &case, &[]);
        assert_eq!(code, 0, "{calls}: {out}{error}");
    };
    let held = "outcome = \"held\"\nreply = false\ndead_letter = false";
    case("{ fails = \"unreachable\" }", held);
    let late = "outcome = \"deadline\"\nreply = { topic = \"d/d/answer\", status = 504 }";
    for failing in [
        "{ fails = \"hangs\" }",
        "{ status = 503 }",
        "{ status = 429, answer_headers = { Retry-After = \"7\" } }",
    ] {
        case(failing, late);
    }
    case("{ fails = \"broken\" }", "outcome = \"broken\"\nreply = { status = 502 }");
    let answered = "{ fails = \"broken\" }, { fails = \"hangs\" }, { fails = \"unreachable\" }, { call = \"GET /d?x=d\" }";
    case(answered, "outcome = \"delivered\"\nreply = { payload = {} }");
    case(
        "{ status = 409, answer = 'no' }",
        "outcome = \"rejected\"\nreply = { status = 409, payload = 'no' }",
    );
}

#[test]
fn what_cannot_be_played_is_told_before_anything_is() {
    let (code, out, error) = play("[[route]]\n", "[[case]]\nname = \"x\"\ntpoic = \"y\"\n", &[]);
    assert_eq!((code, out.as_str()), (78, ""));
    assert!(
        error.contains("cases.toml: line 4: case `x`: tpoic: unknown key; do you mean `topic`?"),
        "{error}"
    );
    let (code, _, error) = play("[[route]]\n", "[[case]]\nname = \"x\"\ntopic = \"y\"\n", &[]);
    assert!(
        code == 78 && error.contains("table.toml: line 1: route `?`: name: missing"),
        "{error}"
    );
    let (code, _, error) = run(&["test", "nowhere.toml"]);
    assert!(code == 78 && error.starts_with("nowhere.toml: No such file"), "{error}");
    assert_eq!(run(&["test"]).0, 2, "at least one file");
}

#[test]
fn explain_ends_with_3_where_the_message_would_be_refused_and_reads_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("table.toml");
    fs::write(&file, TABLE).unwrap();
    let explain = |more: &[&str]| {
        run(&[&["--config", file.to_str().unwrap(), "explain", "d/a/ask"], more].concat())
    };
    let (code, out, error) = explain(&[]);
    assert_eq!((code, error.as_str()), (3, ""), "{out}");
    assert!(out.contains("refused  401 no_credentials"), "{out}");
    let (code, out, _) = explain(&["--property", "device_id=a", "--property", "access_key=k"]);
    assert!(code == 0 && out.contains("request  GET https://api.invalid/base/a?x=a"), "{out}");
}

#[test]
fn a_key_that_only_a_running_gateway_knows_is_shown_by_its_name() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/config");
    let (table, payload) = (format!("{folder}/valid/listed.toml"), format!("{folder}/keys.json"));
    let (code, out, error) = run(&["--config", &table, "explain", "up/d1", "--payload", &payload]);
    assert_eq!(code, 0, "{out}{error}");
    assert!(out.contains("request  POST http://hub/api/up/<key>\n"), "{out}");
}
