//! What must hold for any input: patterns, templates, the configuration, who speaks, JSON.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{collections::BTreeMap, time::SystemTime};

use bytes::Bytes;
use mqtt_rest_gateway::{
    Identity, Refusal,
    config::{Config, SHIPPED},
    filter, json,
    message::{Message, Properties},
    template::Template,
    topic::Pattern,
    topic::sender::Sender,
};
use proptest::{
    collection::{btree_map, vec},
    prelude::*,
    sample::{Index, select},
    test_runner::Config as Cases,
};
use serde_json::Value;
use url::Url;

fn cases(cases: u32) -> Cases {
    Cases { cases, failure_persistence: None, ..Cases::default() }
}

/// Text that is likely to mean something to somebody.
fn hostile() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        8 => select(vec![
            "..", ".", "/", "\\", "%", "2e", "%2e", "%2F", "?", "#", "@", ":", ";", "=", "&", " ",
            "+", "$", "{", "}", "{id}", "\t", "\n", "\r", "\0", "\u{7f}", "\u{85}", "\u{2028}",
            "ü", "💡", "a", "d1", "//", "http://evil", "\"", "'", "<", "|", "^", "~", "*", "[",
        ]).prop_map(str::to_owned),
        1 => any::<String>(),
        1 => any::<char>().prop_map(String::from),
    ];
    vec(piece, 0..5).prop_map(|pieces| pieces.concat())
}

/// A level of a topic.
fn level() -> impl Strategy<Value = String> {
    hostile().prop_map(|text| text.replace('/', ""))
}

/// Levels of a pattern from a small set, so that two patterns often meet: `None` is a capture.
fn levels() -> impl Strategy<Value = Vec<Option<&'static str>>> {
    vec(proptest::option::weighted(0.6, select(vec!["a", "b", "", "é"])), 1..5)
}

fn pattern(levels: &[Option<&str>]) -> Option<Pattern> {
    let text = levels.iter().enumerate().map(|(index, level)| match level {
        Some(text) => (*text).to_owned(),
        None => format!("{{n{index}}}"),
    });
    Pattern::parse(&text.collect::<Vec<_>>().join("/")).ok()
}

proptest! {
    #![proptest_config(cases(512))]

    #[test]
    fn a_topic_made_from_a_pattern_gives_its_levels_back(
        levels in levels(),
        fill in vec(level(), 5),
        other in vec(select(vec!["a", "b", "", "x"]), 1..6),
    ) {
        // One empty level is an empty text, which is no pattern.
        let Some(pattern) = pattern(&levels) else {
            prop_assert!(levels == [Some("")]);
            return Ok(());
        };
        let topic = |fill: &dyn Fn(usize) -> String| {
            let filled = levels.iter().enumerate();
            filled.map(|(n, l)| l.map_or_else(|| fill(n), str::to_owned)).collect::<Vec<_>>()
        };
        let topic = topic(&|index| fill[index].clone()).join("/");
        let captures = pattern.matches(&topic).unwrap();
        for (index, level) in levels.iter().enumerate() {
            let (name, expected) = (format!("n{index}"), level.is_none().then(|| &*fill[index]));
            prop_assert_eq!(captures.get(&name), expected);
            prop_assert_eq!(pattern.captures(&name), expected.is_some());
            // What belongs to the sender: whole levels up to and with its own, and what is below them.
            let own = topic.split('/').take(index + 1).collect::<Vec<_>>().join("/");
            let expected = expected.map(|_| &*own);
            let sender = Sender::Captured(name.into());
            prop_assert_eq!(sender.own(&pattern, &topic), expected);
            let (below, beside) = (format!("{own}/x"), format!("{own}x/x"));
            prop_assert_eq!(sender.below(&pattern, &topic, &below), expected.map(|_| "x"));
            prop_assert_eq!(sender.below(&pattern, &topic, &beside), None);
        }
        // A filter matches what the pattern matches.
        let matches = other.len() == levels.len()
            && levels.iter().zip(&other).all(|(level, text)| level.is_none_or(|l| l == *text));
        prop_assert_eq!(pattern.matches(&other.join("/")).is_some(), matches);
        let filter = levels.iter().map(|level| level.unwrap_or("+")).collect::<Vec<_>>().join("/");
        prop_assert_eq!(pattern.filter(), filter);
    }

    #[test]
    fn patterns_overlap_exactly_if_a_topic_matches_both(a in levels(), b in levels()) {
        let (Some(first), Some(second)) = (pattern(&a), pattern(&b)) else { return Ok(()) };
        // The one topic to try: their literals, where either has one.
        let common = a.iter().zip(&b).map(|(a, b)| a.or(*b).unwrap_or("z")).collect::<Vec<_>>();
        let common = common.join("/");
        let both = first.matches(&common).is_some() && second.matches(&common).is_some();
        prop_assert_eq!(first.overlaps(&second), both);
        prop_assert_eq!(second.overlaps(&first), both);
        prop_assert!(first.overlaps(&first));
    }

    #[test]
    fn no_text_is_too_strange_for_a_pattern(text in hostile(), topic in hostile(), name: String) {
        for text in [text.clone(), format!("{text}/{{id}}/{topic}")] {
            let Ok(pattern) = Pattern::parse(&text) else { continue };
            prop_assert_eq!(pattern.as_str(), &text);
            prop_assert!(pattern.overlaps(&pattern));
            for topic in [&topic, &text] {
                let captures = pattern.matches(topic);
                for name in [&name, "id"] {
                    let sender = Sender::Captured(name.into());
                    let own = sender.own(&pattern, topic);
                    prop_assert!(own.is_none_or(|own| topic.starts_with(own)));
                    let captured = captures.as_ref().and_then(|captures| captures.get(name));
                    prop_assert_eq!(
                        captured.is_some(),
                        captures.is_some() && pattern.captures(name)
                    );
                }
            }
        }
    }
}

/// Where a name may stand in the path of a row.
const PATHS: [&str; 6] = [
    "/v1/devices/{id}/telemetry",
    "/{id}",
    "/v1/{id}/{other}",
    "/v1/{id}.json",
    "/v1/x-{id}/",
    "/a/{other}/{id}/b/{id}",
];

proptest! {
    #![proptest_config(cases(2048))]

    #[test]
    fn a_level_is_one_segment_or_refused(
        path in select(PATHS.to_vec()),
        base in select(vec!["http://hub", "https://hub:8443/api", "http://[::1]:80/a/b"]),
        id in prop_oneof![hostile(), any::<String>(), "[.]{0,4}", "[a-z]{1020,1028}"],
        other in prop_oneof![Just("o".to_owned()), hostile()],
    ) {
        let template = Template::parse(path).unwrap();
        let value = |name: &str| if name == "id" { &*id } else { &*other };
        let bad = |level: &str| {
            level.split('/').any(|level| matches!(level, "" | "." | ".."))
                || level.len() > 1024
                || level.chars().any(char::is_control)
        };
        let refused = template.names().any(|name| bad(value(name)));
        let rendered = template.path(|name| Some(value(name)));
        prop_assert_eq!(rendered.is_err(), refused, "{:?}", rendered);
        let Ok(rendered) = rendered else { return Ok(()) };

        // As the client does it.
        let url = Url::parse(&format!("{base}{rendered}")).unwrap();
        let base = Url::parse(base).unwrap();
        prop_assert_eq!((url.host(), url.port(), url.scheme()), (base.host(), base.port(), base.scheme()));
        prop_assert_eq!((url.query(), url.fragment()), (None, None));
        prop_assert!(url.username().is_empty() && url.password().is_none());
        // Segment by segment it is the row's path with the levels in it.
        let below = base.path().trim_end_matches('/').split('/').skip(1);
        let wanted: Vec<String> = below.chain(path.split('/').skip(1)).map(|segment| {
            segment.split_inclusive('}').map(|part| match part.split_once('{') {
                Some((before, name)) => format!("{before}{}", value(name.trim_end_matches('}'))),
                None => part.to_owned(),
            }).collect()
        }).collect();
        let segments = url.path_segments().unwrap().map(|segment| {
            percent_encoding::percent_decode_str(segment).decode_utf8().unwrap().into_owned()
        });
        prop_assert_eq!(segments.collect::<Vec<_>>(), wanted);
    }

    #[test]
    fn no_text_is_too_strange_for_a_template(text in hostile(), value in hostile()) {
        if let Ok(template) = Template::parse(&text) {
            prop_assert_eq!(template.as_str(), &text);
            let topic = template.topic(|_| Some(&value)).unwrap();
            let names: Vec<_> = template.names().collect();
            let expected = names.iter().fold(text.clone(), |text, name| {
                text.replacen(&format!("{{{name}}}"), "\u{1}", 1)
            });
            prop_assert_eq!(topic, expected.replace('\u{1}', &value));
            let _any = template.path(|_| Some(&value));
            prop_assert_eq!(template.topic(|_| None).is_none(), !names.is_empty());
        }
    }
}

/// What can happen to a file in an editor.
#[derive(Debug, Clone)]
enum Edit {
    Delete(Index),
    Duplicate(Index, Index),
    Swap(Index, Index),
    Line(Index, String),
    Value(Index, String),
    Byte(Index, u8),
    Cut(Index),
}

fn edit() -> impl Strategy<Value = Edit> {
    let index = any::<Index>;
    prop_oneof![
        4 => index().prop_map(Edit::Delete),
        4 => (index(), index()).prop_map(|(a, b)| Edit::Duplicate(a, b)),
        2 => (index(), index()).prop_map(|(a, b)| Edit::Swap(a, b)),
        1 => (index(), hostile()).prop_map(|(at, text)| Edit::Line(at, text)),
        6 => (index(), written()).prop_map(|(at, text)| Edit::Value(at, text)),
        3 => (index(), any::<u8>()).prop_map(|(at, byte)| Edit::Byte(at, byte)),
        1 => index().prop_map(Edit::Cut),
    ]
}

/// A value as it may stand in an environment, nearly right more often than not.
fn value() -> impl Strategy<Value = String> {
    let unit = select(vec![
        "", "ns", "ms", "s", "m", "h", "d", "y", "KiB", "MiB", "GB", "B", "/s", "/m", "/h", " s",
        "s 1m", "%", "e9",
    ]);
    let word = select(vec![
        "",
        "forever",
        "text",
        "json",
        "info",
        "debug,x=trace",
        "127.0.0.1:0",
        "[::1]:1",
        "mqtt://h",
        "ws://h:1/p",
        "http://h/p/",
        "https://[::1]",
        "mailto:x",
        "http://",
        "{device_id}",
        "v1/{x}/y",
        "a/{route}",
        "device_id",
        "always",
        "POST /x/{device_id}",
        "GET",
        ".a | .b",
        "(",
        "[",
        "1..2",
        "NaN",
        "inf",
        "=",
        "x=[y]=info",
    ]);
    prop_oneof![
        4 => ("-?[0-9]{1,21}([.][0-9]{1,3})?", unit).prop_map(|(number, unit)| number + unit),
        4 => word.prop_map(str::to_owned),
        1 => hostile(),
    ]
}

/// A value as it may stand in the file.
fn written() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => value().prop_map(|value| format!("{value:?}")),
        1 => value(),
        1 => select(vec![
            "[]", "{}", "[[]]", "[1, \"a\"]", "{ fetch = \"config\" }", "[{ fetch = 1, x = 2 }]",
            "1979-05-27", "true", "0x1F", "-1", "1e400", "nan", "'''", "\"\\ud800\"",
        ]).prop_map(str::to_owned),
    ]
}

fn apply(edit: &Edit, text: &str) -> String {
    let mut lines: Vec<String> = text.split_inclusive('\n').map(str::to_owned).collect();
    if lines.is_empty() {
        return String::new();
    }
    let at = |index: &Index| index.index(lines.len());
    match edit {
        Edit::Delete(index) => drop(lines.remove(at(index))),
        Edit::Duplicate(from, to) => lines.insert(at(to), lines[at(from)].clone()),
        Edit::Swap(a, b) => {
            let (a, b) = (at(a), at(b));
            lines.swap(a, b);
        }
        Edit::Line(index, line) => lines.insert(at(index), format!("{line}\n")),
        Edit::Value(index, value) => {
            let keys: Vec<_> = (0..lines.len()).filter(|n| lines[*n].contains(" = ")).collect();
            if !keys.is_empty() {
                let line = &mut lines[*index.get(&keys)];
                *line = format!("{}= {value}\n", line.split('=').next().unwrap());
            }
        }
        Edit::Byte(index, byte) => {
            let mut bytes = text.as_bytes().to_vec();
            bytes[index.index(text.len())] = *byte;
            return String::from_utf8_lossy(&bytes).into_owned();
        }
        Edit::Cut(index) => lines.truncate(at(index)),
    }
    lines.concat()
}

/// Every scalar of the file, as its variable is named.
fn variables() -> Vec<String> {
    let mut section = String::new();
    let mut names = vec!["GATEWAY_".to_owned(), "GATEWAY_NO_SUCH".to_owned()];
    for line in SHIPPED.lines().take_while(|line| !line.starts_with("[[")) {
        if let Some(name) = line.strip_prefix('[') {
            section = name.split(']').next().unwrap().replace('.', "_").to_uppercase();
        } else if let Some((key, _)) = line.split_once(" = ") {
            names.push(format!("GATEWAY_{section}_{}", key.trim().to_uppercase()));
        }
    }
    assert!(names.len() > 25);
    names
}

fn env() -> impl Strategy<Value = BTreeMap<String, String>> {
    btree_map(select(variables()), value(), 0..4)
}

/// Either it can be used or it says why not, and where.
fn check(text: &str, env: &BTreeMap<String, String>) -> Result<(), TestCaseError> {
    if let Err(mistakes) = Config::parse(text, env) {
        prop_assert!(!mistakes.is_empty());
        let lines = text.matches('\n').count() + 1;
        for mistake in &mistakes {
            prop_assert!(mistake.line.is_none_or(|line| (1..=lines).contains(&line)), "{mistake}");
            prop_assert!(!mistake.place.is_empty() && !mistake.text.is_empty());
        }
        prop_assert!(mistakes.is_sorted_by_key(|mistake| mistake.line));
    }
    Ok(())
}

/// A table without filters: they take most of the time, and few edits meet them.
fn plain() -> String {
    let settings = SHIPPED.split("# ---- The table").next().unwrap();
    format!(
        "{settings}
[[route]]
name = \"a\"
on   = \"a/{{device_id}}\"
call = \"POST /a/{{device_id}}\"
then = [\"f\", {{ fetch = \"f\" }}]

[[route]]
name        = \"b\"
on          = \"b/{{device_id}}/{{x}}\"
call        = \"GET /b/{{device_id}}?x={{x}}\"
credentials = \"remembered\"
retry       = \"never\"
reply       = \"b/{{device_id}}\"

[[fetch]]
name            = \"f\"
call            = \"GET /f/{{device_id}}\"
push            = \"f/{{device_id}}\"
response_topic  = \"r/{{device_id}}\"
empty_on        = [404]
redeliver_after = \"5m\"
"
    )
}

proptest! {
    #![proptest_config(cases(768))]

    #[test]
    fn an_edited_file_is_used_or_its_mistakes_are_named(
        edits in vec(edit(), 0..6),
        env in env(),
    ) {
        let text = edits.iter().fold(plain(), |text, edit| apply(edit, &text));
        check(&text, &env)?;
    }

    #[test]
    fn no_text_is_too_strange_for_a_configuration(text in hostile(), value in written(), env in env()) {
        check(&text, &env)?;
        check(&format!("[upstream]\nurl = {value}\n{text}"), &env)?;
    }
}

proptest! {
    #![proptest_config(cases(128))]

    #[test]
    fn a_value_of_a_wrong_kind_is_a_mistake_at_its_line(
        index: Index,
        value in select(vec!["[]", "[1]", "{}", "{ x = 1 }", "1979-05-27"]),
    ) {
        let text = plain();
        let lines: Vec<&str> = text.lines().collect();
        let settings = lines.iter().enumerate().take_while(|(_, line)| !line.starts_with("[["));
        // Those that take an array or a table may take an empty one.
        let is_scalar = |line: &str| line.contains(" = ") && !line.contains(['[', '{']);
        let keys: Vec<_> = settings.filter(|(_, line)| is_scalar(line)).collect();
        let (at, line) = index.get(&keys);
        let line = format!("{}= {value}", line.split('=').next().unwrap());
        let mut lines = lines.clone();
        lines[*at] = &line;
        let mistakes = Config::parse(&lines.join("\n"), &BTreeMap::new()).unwrap_err();
        prop_assert!(mistakes.iter().any(|m| m.line == Some(at + 1)), "{line}: {mistakes:?}");
    }
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn the_shipped_file_edited_is_used_or_its_mistakes_are_named(
        edits in vec(edit(), 1..6),
        env in env(),
    ) {
        let text = edits.iter().fold(SHIPPED.to_owned(), |text, edit| apply(edit, &text));
        check(&text, &env)?;
    }
}

proptest! {
    #![proptest_config(cases(1024))]

    #[test]
    fn a_key_is_taken_only_from_whom_the_topic_names(
        device in prop_oneof![Just("d1".to_owned()), level()],
        user in vec((
            select(vec!["device_id", "access_key", "Device_id", "x"]),
            prop_oneof![3 => Just("d1".to_owned()), 2 => "[!-~]{1,8}", 2 => hostile()],
        ), 0..5),
        echo: bool,
    ) {
        let mut user: Vec<_> = user.into_iter().map(|(n, v)| (n.to_owned(), v)).collect();
        if echo {
            user.push(("device_id".to_owned(), device.clone()));
        }
        let captures = Pattern::parse("t/{device_id}").unwrap().matches(&format!("t/{device}"));
        let message = Message {
            topic: format!("t/{device}"),
            payload: Bytes::new(),
            properties: Properties { user: user.iter().map(|(n, v)| (n, v)).collect(), ..Properties::default() },
            received_at: SystemTime::now(),
            trace: None,
            arrived: tokio::time::Instant::now(),
        };
        let identity = Identity {
            capture: "device_id".into(),
            id_property: "device_id".into(),
            key_property: "access_key".into(),
        };
        let all = |name: &str| user.iter().filter(|(n, _)| n == name).map(|(_, v)| v.clone()).collect::<Vec<_>>();
        let (ids, keys) = (all("device_id"), all("access_key"));
        let found = identity.authenticate(&message, &Sender::Captured("device_id".into()), &captures.unwrap());
        let usable = |key: &str| !key.is_empty() && key.bytes().all(|b| b.is_ascii_graphic());
        match (&*ids, &*keys) {
            ([], []) => prop_assert_eq!(found, Ok(None)),
            ([id], [key]) if *id == device && usable(key) => {
                let found = found.unwrap().unwrap();
                prop_assert_eq!(found.expose(), key);
            }
            ([_, _, ..], _) | (_, [_, _, ..]) => {
                prop_assert!(matches!(found, Err(Refusal::Identity(_))));
            }
            ([id], _) if *id != device => prop_assert!(matches!(found, Err(Refusal::Identity(_)))),
            _ => prop_assert!(matches!(found, Err(Refusal::NoCredentials(_)))),
        }
    }
}

/// A JSON value, of all kinds.
fn value_of_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        hostile().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec((hostile(), inner), 0..4)
                .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

/// JSON, nearly JSON, and anything.
fn maybe_json() -> impl Strategy<Value = Vec<u8>> {
    let pieces = vec(
        select(vec![
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "\"",
            "\"a\"",
            "1",
            "-",
            "0",
            "01",
            ".5",
            "1e5",
            "1e999",
            "-0",
            "true",
            "nul",
            "null",
            "\\u",
            "\"\\ud800\"",
            "\"\\udc00\\ud800\"",
            "\"\\n\"",
            " ",
            "\n",
            "\t",
            "\u{feff}",
            "NaN",
            "Infinity",
            "//",
            "#",
            "'",
            "18446744073709551616",
            "123456789012345678901234567890",
            "{\"a\":1,\"a\":2}",
            "b\"x\"",
            "nan",
            "+1",
            "1.",
        ]),
        0..8,
    );
    let edited =
        (value_of_json(), vec((any::<Index>(), any::<u8>()), 0..3)).prop_map(|(value, edits)| {
            let mut text = value.to_string().into_bytes();
            for (index, byte) in edits {
                let at = index.index(text.len());
                text[at] = byte;
            }
            text
        });
    prop_oneof![
        4 => edited,
        4 => pieces.prop_map(|pieces| pieces.concat().into_bytes()),
        1 => vec(any::<u8>(), 0..40),
    ]
}

/// Equal but for numbers that only differ in how they are held.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        (a, b) => a == b,
    }
}

proptest! {
    #![proptest_config(cases(2048))]

    #[test]
    fn json_is_what_others_take_for_json(text in maybe_json()) {
        let value = serde_json::from_slice::<Value>(&text);
        // What a number or an escape stands for, and whether one can hold it, is not ours to judge.
        let unheld = |error: &serde_json::Error| {
            ["number out of range", "surrogate", "hex escape"].iter().any(|word| error.to_string().contains(word))
        };
        match &value {
            Ok(_) => prop_assert!(json::check(&text).is_ok()),
            Err(error) => prop_assert!(json::check(&text).is_err() || unheld(error), "{}", error),
        }
        let parsed = filter::parse(&text);
        prop_assert!(parsed.is_ok() || value.is_err(), "{:?}", parsed);
        prop_assert!(parsed.is_err() || json::check(&text).is_ok(), "{:?}", parsed);
        if let (Ok(value), Ok(parsed)) = (value, parsed) {
            // What a filter hands on is JSON again, and the same.
            let again = filter::to_json(&parsed, usize::MAX).unwrap();
            let again: Value = serde_json::from_slice(&again).map_err(|error| {
                TestCaseError::fail(format!("{error}: {}", String::from_utf8_lossy(&again)))
            })?;
            prop_assert!(same(&again, &value), "{value} became {again}");
        }
    }
}
