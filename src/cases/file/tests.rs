//! Files of cases: what a next message takes over, and all mistakes at once.

use super::*;

fn mistakes(text: &str) -> Vec<String> {
    let mistakes = parse(text, Path::new("")).err().unwrap_or_default();
    mistakes.iter().map(ToString::to_string).collect()
}

#[test]
fn a_next_message_is_as_the_one_before_but_for_what_it_says() {
    let text = r#"
table      = "../config.toml"
properties = { id = "d1" }
[[case]]
name    = "x"
topic   = "a/d1"
payload = { a = 1 }
response_topic = "a/d1/r"
[[case.next]]
after = "5m"
[[case.next]]
payload    = "ON"
properties = {}
"#;
    let read = parse(text, Path::new("cases")).unwrap();
    assert_eq!(read.table.as_deref(), Some(Path::new("cases/../config.toml")));
    let [first, second, third] = &read.cases[0].steps[..] else { panic!("{read:?}") };
    let [(_, first_payload, _), (topic, payload, properties), (_, third_payload, third_properties)] =
        [first, second, third].map(|step| match &step.input {
            Input::Message { topic, payload, properties } => (topic, payload, properties),
            Input::Fetch(_) => panic!("{step:?}"),
        });
    assert_eq!((&**first_payload, &**payload), (&b"{\"a\":1}"[..], &b"{\"a\":1}"[..]));
    assert_eq!((topic.as_str(), second.after.as_secs()), ("a/d1", 300));
    assert_eq!(properties.response_topic.as_deref(), Some("a/d1/r"));
    assert_eq!(properties.user.iter().collect::<Vec<_>>(), [("id", "d1")]);
    assert_eq!((&**third_payload, third_properties.user.len()), (&b"ON"[..], 0));
    assert_eq!((first.line, second.line, third.line), (4, 9, 11));
}

/// A file with mistakes.
pub(in crate::cases) const MISTAKEN: &str = r#"
tabel = "x.toml"
[[case]]
name    = "x"
payload = nan
calls   = [{ call = "send it", statsu = 200 }, "POST /"]
reply   = true
[[case]]
topic   = "a"
fails   = "broken"
calls   = [{ status = 99, fails = "never", headers = { "a b" = "c" } }, { fails = "hangs", answer = 1 }]
pushes  = [{ payload_file = "/no/such/file" }]
[[case.next]]
at = "now"
after = "soon"
[[case]]
name    = "y"
fetch   = "f"
expiry  = "1s"
calls   = [{ body = 1, body_file = "/dev/null" }]
"#;

#[test]
fn all_mistakes_of_a_file_are_told_with_line_and_remedy() {
    let found = mistakes(MISTAKEN);
    for expected in [
        "line 2: tabel: unknown key; do you mean `table`?",
        "line 5: case `x`: payload: JSON has no word for this number",
        "line 6: case `x`: call: `send it` is no call; write `POST /path`",
        "line 6: case `x`: statsu: unknown key; do you mean `status`?",
        "line 6: case `x`: calls: write a list of tables",
        "line 7: case `x`: reply: write `reply = false` for none",
        "case `x`: topic: missing: the topic",
        "case `?`: name: missing: what the case shows",
        "line 10: case `?`: fails: unknown key",
        "line 11: case `?`: status: `99` is no HTTP status",
        "line 11: case `?`: fails: unknown value `never`; write one of \"unreachable\"",
        "line 11: case `?`: headers: `a b` is no name of a header",
        "line 11: case `?`: fails: an API that fails does not answer",
        "line 12: case `?`: payload_file: /no/such/file: No such file",
        "line 14: case `?`: at: unknown key",
        "line 15: case `?`: after: invalid duration `soon`",
        "line 19: case `y`: expiry: no message comes where a fetch runs by itself; take it out",
        "line 20: case `y`: body_file: `body` and `body_file` exclude each other",
    ] {
        assert!(found.iter().any(|mistake| mistake.contains(expected)), "{expected}\n{found:#?}");
    }
    assert_eq!(found.len(), 18, "{found:#?}");
    assert!(mistakes("").join("").contains("there is no [[case]]"));
}
