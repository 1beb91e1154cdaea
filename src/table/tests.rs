//! Who may speak, what is taken, and which calls come of it.

use super::*;
use crate::fixtures;

const TABLE: &str = r#"
[upstream]
url = "http://hub"
[device]
capture = "id"
[[route]]
name = "own"
on   = "d/{id}/own"
call = "POST /{id}"
[[route]]
name        = "shared"
on          = "d/{id}/shared"
call        = "GET /{id}"
credentials = "message_or_ignore"
[[route]]
name        = "trusting"
on          = "d/{id}/trusting"
call        = "PUT /{id}"
credentials = "remembered"
[[route]]
name        = "keyless"
on          = "d/{id}/keyless"
call        = "POST /{id}"
credentials = "none"
"#;

/// What becomes of a message with these user properties on `d/d1/{row}`: whose key, or why not.
fn take(row: &str, user: &[(&str, &str)], reply: Option<&str>) -> Result<Secret, NotTaken> {
    take_any(row, user, reply).map(|key| key.unwrap())
}

fn take_any(
    row: &str,
    user: &[(&str, &str)],
    reply: Option<&str>,
) -> Result<Option<Secret>, NotTaken> {
    let config = fixtures::config(TABLE);
    let mut message = fixtures::message(&format!("d/d1/{row}"), user, b"");
    message.properties.response_topic = reply.map(str::to_owned);
    let (subscription, captures) = config.table.patterns.find(&message.topic).unzip();
    let (captures, device) = (captures.unwrap_or_default(), "d1".into());
    let incoming = config.table.incoming(&message, subscription, &captures, &device);
    let taken = config.table.take(&incoming, || Some(Secret::new("known")))?;
    assert_eq!(taken.speaker.device, device);
    assert_eq!(taken.authorization.speakers_key(), taken.speaker.key.as_ref());
    assert_eq!(incoming.response_topic(), reply);
    Ok(taken.speaker.key)
}

const ID: (&str, &str) = ("device_id", "d1");
const KEY: (&str, &str) = ("access_key", "k");
const MARK: (&str, &str) = ("via", "mqtt-rest-gateway");

#[test]
fn each_row_takes_the_key_it_says() {
    let key = |text: &str| Ok(Secret::new(text));
    for row in ["own", "shared", "trusting"] {
        assert_eq!(take(row, &[ID, KEY], None), key("k"), "{row}");
        let half = take(row, &[ID], None);
        assert!(matches!(half, Err(NotTaken::Refused(Refusal::NoCredentials(_)))), "{row}");
        let other = take(row, &[("device_id", "d2"), KEY], None);
        assert!(matches!(other, Err(NotTaken::Refused(Refusal::Identity(_)))), "{row}");
    }
    assert!(matches!(take("own", &[], None), Err(NotTaken::Refused(Refusal::NoCredentials(_)))));
    assert_eq!(take("shared", &[], None), Err(NotTaken::Ignored(Ignored::NotARequest)));
    assert_eq!(take("trusting", &[], None), key("known"));
    assert_eq!(take("other", &[ID, KEY], None), Err(Refusal::NoRoute.into()));
}

#[test]
fn a_row_that_asks_for_nothing_believes_the_topic_and_no_more() {
    let two = [KEY, ("access_key", "two words")];
    for user in [&[][..], &[ID], &[KEY], &[ID, KEY], &two] {
        assert_eq!(take_any("keyless", user, Some("d/d1/x")), Ok(None), "{user:?}");
    }
    for user in [&[("device_id", "d2")][..], &[ID, ID], &[("device_id", ""), KEY]] {
        let refused = take_any("keyless", user, None);
        let Err(NotTaken::Refused(Refusal::Identity(_))) = refused else {
            panic!("{user:?}: {refused:?}");
        };
    }
    for user in [&[MARK][..], &[MARK, ID, KEY]] {
        let looped = Err(NotTaken::Ignored(Ignored::Loop));
        assert_eq!(take_any("keyless", user, None), looped, "{user:?}");
    }
    let elsewhere = take_any("keyless", &[], Some("d/d2/x"));
    assert!(matches!(elsewhere, Err(NotTaken::Refused(Refusal::ResponseTopic(_)))));
}

#[test]
fn a_key_is_told_what_it_may_be() {
    for key in ["two words", "", "\u{e9}", "a\nb"] {
        let Err(NotTaken::Refused(refusal)) = take("own", &[ID, ("access_key", key)], None) else {
            panic!("{key:?} is taken");
        };
        assert!(refusal.to_string().contains("none of them a space"), "{refusal}");
    }
}

#[test]
fn what_a_gateway_says_is_no_request_and_what_a_device_echoes_is() {
    for row in ["own", "shared", "trusting", "other"] {
        for user in [&[MARK][..], &[MARK, ID], &[MARK, KEY], &[MARK, ("device_id", "d2"), KEY]] {
            let looped = Err(NotTaken::Ignored(Ignored::Loop));
            assert_eq!(take(row, user, None), looped, "{row} {user:?}");
        }
    }
    for row in ["own", "shared", "trusting"] {
        assert_eq!(take(row, &[MARK, ID, KEY], None), Ok(Secret::new("k")), "{row}");
    }
}

#[test]
fn who_may_not_have_an_answer_where_it_wants_is_told_where_it_may() {
    let refusal = |on: &str, device: &str, topic: &str, wanted: &str| {
        let text = format!(
            "[upstream]\nurl = \"http://hub\"\n[device]\ncredentials = \"none\"\n[[route]]\nname = \"r\"\n\
             on = \"{on}\"\n{device}\ncall = \"POST /x\""
        );
        let config = fixtures::config(&text);
        let mut message = fixtures::message(topic, &[], b"");
        message.properties.response_topic = Some(wanted.to_owned());
        let (row, captures) = config.table.patterns.find(topic).unwrap();
        let device = config.table.patterns.sender(row, &captures).unwrap();
        let incoming = config.table.incoming(&message, Some(row), &captures, &device);
        incoming.response_topic.map(|topic| topic.map(str::to_owned)).map_err(|why| why.to_string())
    };
    let told = |refused: Result<_, String>| refused.unwrap_err();
    assert!(told(refusal("up/{device_id}", "", "up/d1", "up/d2/x")).ends_with("below `up/d1/`"));
    assert_eq!(refusal("up/{device_id}", "", "up/d1", "up/d1/x"), Ok(Some("up/d1/x".to_owned())));
    let nowhere = "belongs to its sender alone";
    let constant = refusal("events", "device = \"camera\"", "events", "events/x");
    assert!(told(constant).ends_with(nowhere));
    assert!(told(refusal("z/{device_id...}", "", "z/a/b", "z/a/b/x")).ends_with(nowhere));
    // What only `replay` hears.
    let replays = "mqtt-rest-gateway/replay";
    assert_eq!(refusal("z/{device_id...}", "", "z/a", replays), Ok(Some(replays.to_owned())));
}

#[test]
fn an_answer_goes_below_the_devices_own_topics() {
    let reply = |topic: &str| take("own", &[ID, KEY], Some(topic)).is_ok();
    assert!(reply("d/d1/x") && reply(&format!("d/d1{}", "/a".repeat(16))));
    for topic in ["d/d1", "d/d1/", "d/d10/x", "d/d2/x", "x", "d/d1/+", "d/d1/a\u{7}"] {
        assert!(!reply(topic), "{topic}");
    }
    assert!(!reply(&format!("d/d1{}", "/a".repeat(17))));
    assert!(!reply(&format!("d/d1/{}", "a".repeat(513))));
}

const ROWS: &str = r#"
[upstream]
url = "http://hub"
max_request_bytes = 40
[[route]]
name  = "t"
on    = "d/{device_id}/{kind}/up"
call  = "PUT /d/{device_id}/{kind}?x=1"
body  = "{v: .a, m: $memory.m}"
batch = { call = "POST /all", key = "k" }
"#;

/// The call that a message with this payload becomes.
fn call(kind: &str, payload: &str) -> Result<Call, Refusal> {
    let config = fixtures::config(ROWS);
    let topic = format!("d/d 1/{kind}/up");
    let user = [("device_id", "d 1"), KEY];
    let message = fixtures::message(&topic, &user, payload.as_bytes());
    let (subscription, captures) = config.table.patterns.find(&topic).unzip();
    let (captures, device) = (captures.unwrap(), "d 1".into());
    let incoming = config.table.incoming(&message, subscription, &captures, &device);
    let taken = config.table.take(&incoming, || None).unwrap();
    let endpoint = taken.route.call.as_ref().unwrap();
    let (deadline, expires) = (Duration::from_secs(7), message.expires());
    let lifetime = Lifetime { deadline, expires, since: Some(Duration::from_secs(3)) };
    let memory = || crate::filter::parse(b"{\"m\":1}").unwrap();
    taken.call(endpoint, memory, &config.exchange.max_bytes, lifetime)
}

#[test]
fn a_message_becomes_a_call_that_is_complete() {
    let call = call("x", "{\"a\":2}").unwrap();
    assert_eq!((&*call.name, &*call.device, call.method.as_str()), ("t", "d 1", "PUT"));
    assert_eq!(call.path.as_str(), "/d/d%201/x?x=1");
    assert_eq!(call.body.as_deref(), Some(&b"{\"v\":2,\"m\":1}"[..]));
    assert_eq!(call.authorization, Authorization::SpeakersKey(Secret::new("k")));
    assert_eq!((call.deadline.as_secs(), call.since.unwrap().as_secs()), (7, 3));
    assert!(call.batch.is_some() && call.expires.is_none());
}

#[test]
fn a_message_that_makes_no_call_is_refused() {
    assert!(matches!(call("..", "{}"), Err(Refusal::BadSegment(_))));
    assert!(matches!(call("x", "{"), Err(Refusal::BadPayload(_))));
    let large = format!("{{\"a\":\"{}\"}}", "x".repeat(40));
    assert_eq!(call("x", &large).err(), Some(Refusal::TooLarge { size: 48, max: 40 }));
}
