//! What batches are made of and what comes of their answers.

use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::{
    call::{Endpoint, Join, Method, headers::Headers},
    template::Template,
    upstream::fixtures,
};

fn form() -> BatchForm {
    let path = Template::parse("/all").unwrap();
    BatchForm::Entries(Entries {
        endpoint: Endpoint { method: Method::POST, path, headers: Headers::default(), sign: None },
        key: "token".into(),
        error: "error".into(),
    })
}

fn waiting(device: &str, body: &str) -> Waiting {
    let key = Secret::new(format!("key \"of\" {device}"));
    let call = Call {
        path: "/one".into(),
        body: Some(Bytes::copy_from_slice(body.as_bytes())),
        authorization: Authorization::SpeakersKey(key),
        ..fixtures::call("r", device)
    };
    Waiting { call: Attempt::first(call), result: oneshot::channel().0 }
}

#[test]
fn bodies_become_entries_with_their_keys() {
    let calls = [
        waiting("a", " {\"x\": 1, \"token\": \"stolen\"}\n"),
        waiting("b", "{ }"),
        waiting("\"c", "{}"),
    ];
    let whole = whole(&calls, &form(), 1000).unwrap();
    assert_eq!((whole.path.as_str(), &whole.authorization), ("/all", &Authorization::None));
    let body: Value = serde_json::from_slice(whole.body.as_ref().unwrap()).unwrap();
    let expected = json!({
        "a": {"x": 1, "token": "key \"of\" a"},
        "b": {"token": "key \"of\" b"},
        "\"c": {"token": "key \"of\" \"c"},
    });
    assert_eq!(body, expected);
}

#[test]
fn an_answer_is_taken_apart_and_only_successes_count() {
    let answer = |status: u16, body: &'static str| Answer {
        status: StatusCode::from_u16(status).unwrap(),
        content_type: Some("application/json".into()),
        body: body.into(),
        retry_after: None,
        attempts: 1,
    };
    let text = r#"{"a": {"flag":  true}, "b": {"error": "no"}, "c": 5, "d": {"x": {"error": 1}, "error": null}}"#;
    for (status, expected) in [(201, Some(201)), (422, Some(200)), (500, None), (401, None)] {
        let whole = answer(status, text);
        let form = form();
        let mut answers = Answers::of(Some(&whole), &[], &form);
        let a = answers.take("a");
        assert_eq!(a.as_ref().map(|answer| answer.status.as_u16()), expected);
        assert!(a.is_none_or(|answer| &*answer.body == br#"{"flag":  true}"#));
        assert!(answers.take("b").is_none() && answers.take("c").is_none());
        assert_eq!(answers.take("d").is_some(), expected.is_some());
        assert!(answers.take("e").is_none());
    }
    assert!(Answers::new(&answer(200, "<html>")).entries.is_empty());
    let busy = answer(429, "later");
    let form = form();
    let taken = Answers::of(Some(&busy), &[], &form).take("e").unwrap();
    assert_eq!((taken.status, &*taken.body), (busy.status, &b"later"[..]));
}

/// Joins lines, and does not join what says so.
fn lines() -> Arc<Batch> {
    let join = |bodies: Vec<Bytes>, _| {
        let alone = bodies.iter().any(|body| **body == *b"alone");
        if alone { Err("no".to_owned()) } else { Ok(bodies.join(&b'\n').into()) }
    };
    let form = BatchForm::Joined(Join { reads: false, join: Box::new(join) });
    Arc::new(Batch { max: 3, linger: Duration::from_millis(10), form })
}

/// Makes calls of these devices at once; the bodies that went out, and with which status each device ends. What has
/// `bad` in it is refused.
async fn joined(devices: &[(&'static str, Authorization)]) -> (Vec<String>, Vec<u16>) {
    let sent = Arc::<Mutex<Vec<String>>>::default();
    let log = sent.clone();
    let api = tower::service_fn(move |call: Attempt| {
        let body = String::from_utf8(call.body.as_ref().unwrap().to_vec()).unwrap();
        let status = if body.contains("bad") { 400 } else { 204 };
        log.lock().unwrap().push(body);
        async move { Ok(fixtures::answer(status)) }
    });
    let limits = BatchLimits { in_flight: 3, bytes: 100, filter_bytes: 100 };
    let (batches, batch) = (Batches::new(api, limits, Arc::default()), lines());
    let calls = devices.iter().map(|(body, authorization)| {
        let call = Call {
            body: Some(Bytes::from_static(body.as_bytes())),
            authorization: authorization.clone(),
            batch: Some(batch.clone()),
            ..fixtures::call("r", body)
        };
        batches.clone().oneshot(Attempt::first(call))
    });
    let results = futures_util::future::join_all(calls).await;
    let statuses = results.into_iter().map(|answer| answer.unwrap().status.as_u16()).collect();
    let sent = sent.lock().unwrap().clone();
    (sent, statuses)
}

#[tokio::test(start_paused = true)]
async fn bodies_are_joined_and_go_singly_where_they_cannot_be_or_are_refused() {
    let joined = async |bodies: &[&'static str]| {
        joined(&bodies.iter().map(|body| (*body, Authorization::None)).collect::<Vec<_>>()).await
    };
    let sent = |bodies: &[&str]| bodies.iter().map(|body| (*body).to_owned()).collect::<Vec<_>>();
    assert_eq!(joined(&["a"]).await, (sent(&["a"]), vec![204]));
    assert_eq!(joined(&["bad"]).await, (sent(&["bad"]), vec![400]), "once, since it was alone");
    assert_eq!(joined(&["a", "b"]).await, (sent(&["a\nb"]), vec![204, 204]));
    let four = joined(&["a", "b", "c", "d"]).await;
    assert_eq!(four, (sent(&["a\nb\nc", "d"]), vec![204; 4]));
    let bad = joined(&["a", "bad", "c"]).await;
    assert_eq!(bad, (sent(&["a\nbad\nc", "a", "bad", "c"]), vec![204, 400, 204]));
    let alone = joined(&["a", "alone"]).await;
    assert_eq!(alone, (sent(&["a", "alone"]), vec![204, 204]));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_carries_a_devices_key_is_not_joined() {
    let key = || Authorization::SpeakersKey(Secret::new("k"));
    let (sent, _) = joined(&[("a", key()), ("b", key())]).await;
    assert_eq!(sent, ["a", "b"]);
}
