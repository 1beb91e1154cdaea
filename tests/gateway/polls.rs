//! Fetches that no message sets off: what is news is published, in an outage one call is held and none queued, and a
//! stop waits for none.

use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{
    harness::{Broker, Device, Gateway, Options, eventually},
    scripted_api::{Reply, ScriptedApi, Seen},
};

/// A table that asks for the rooms of a building; each has a topic of its own.
const CONFIG: &str = r#"
[upstream]
url = "http://hub"

[[route]]
name = "up"
on   = "up/{device_id}"
call = "POST /up/{device_id}"

[[fetch]]
name           = "rooms"
call           = "GET /rooms"
every          = "20ms"
payload        = ".[]"
push           = "rooms/{floor}/{room}/state"
response_topic = "rooms/{floor}/{room}/answer"
values         = { floor = ".floor", room = ".name" }
on_change      = ".state"
retain         = true
"#;

/// Somebody listens before the gateway asks for the first time.
async fn stage(api: &ScriptedApi) -> (Broker, Gateway, Device) {
    let broker = Broker::start().await;
    let listener = broker.listener("listener", "rooms/#").await;
    let gateway = start(&broker, &api.url()).await;
    (broker, gateway, listener)
}

async fn start(broker: &Broker, url: &str) -> Gateway {
    let options = Options::default().config(CONFIG).set("UPSTREAM_URL", url);
    let options = options.set("BROKER_URL", &broker.url()).set("UPSTREAM_BREAKER_PROBE", "50ms");
    let gateway = options.spawn().await;
    gateway.ready().await;
    gateway
}

fn is_poll(seen: &Seen) -> bool {
    seen.path == "/rooms"
}

fn room(floor: impl Into<Value>, name: &str, state: u32, seen: u32) -> Value {
    json!({"floor": floor.into(), "name": name, "state": state, "seen": seen})
}

fn rooms(rooms: &[Value]) -> Reply {
    Reply::status(200).body(json!(rooms).to_string())
}

/// Waits until it has asked so many times more.
async fn asks(api: &ScriptedApi, times: usize) {
    api.comes("a poll", api.count(is_poll) + times, is_poll).await;
}

#[tokio::test]
async fn what_has_changed_is_published_on_the_topic_that_it_names() {
    let first = [room(1, "north a", 1, 1), room(2, "b", 1, 1)];
    let answer = rooms(&first);
    let api = ScriptedApi::start(move |_| answer.clone()).await;
    let (broker, gateway, mut listener) = stage(&api).await;
    for (expected, topic) in first.iter().zip(["rooms/1/north a", "rooms/2/b"]) {
        let push = listener.next().await;
        assert_eq!((push.topic, push.retain), (format!("{topic}/state"), false));
        assert_eq!(push.props.response_topic, Some(format!("{topic}/answer")));
        assert_eq!(serde_json::from_slice::<Value>(&push.payload).unwrap(), *expected);
    }
    // Another one has changed than the state of one room, and a room that is gone is news when it comes back.
    let next = [room(1, "north a", 1, 2), room(2, "b", 2, 2)];
    for (answer, news) in
        [(&first[..], &[][..]), (&next, &next[1..]), (&next[..1], &[]), (&next, &next[1..])]
    {
        let answer = rooms(answer);
        api.now(move |_| answer.clone());
        for expected in news {
            assert_eq!(listener.next().await.json(), *expected);
        }
        asks(&api, 3).await;
        listener.silent().await;
    }
    let requests = api.seen();
    let polls = requests.iter().filter(|seen| is_poll(seen));
    assert!(polls.into_iter().all(|seen| seen.method == "GET" && seen.body.is_empty()));
    let mut late = broker.listener("late", "rooms/2/b/state").await;
    let kept = late.next().await;
    assert_eq!((kept.retain, kept.json()), (true, next[1].clone()));
    assert!(gateway.metric("mqtt_rest_gateway_fetches_total", &["rooms", "repeated"]).await > 3);
}

#[tokio::test]
async fn a_value_that_is_no_level_is_not_published_and_the_others_are() {
    let bad = [room(1, "a/b", 1, 1), room(Value::Null, "b", 1, 1), room("#", "c", 1, 1)];
    let answer = rooms(&[&bad[..], &[room(3, "good", 1, 1)]].concat());
    let api = ScriptedApi::start(move |_| answer.clone()).await;
    let (_broker, gateway, mut listener) = stage(&api).await;
    assert_eq!(listener.next().await.topic, "rooms/3/good/state");
    listener.silent().await;
    gateway.metric_reaches("mqtt_rest_gateway_fetches_total", &["rooms", "failed"], 3).await;
    gateway.logs("the value of `floor` is no level of a topic").await;
}

#[tokio::test]
async fn a_table_that_only_polls_needs_no_row() {
    let answer = rooms(&[room(1, "a", 1, 1)]);
    let api = ScriptedApi::start(move |_| answer.clone()).await;
    let broker = Broker::start().await;
    let mut listener = broker.listener("listener", "rooms/#").await;
    let (before, rest) = CONFIG.split_once("[[route]]").unwrap();
    let table = format!("{before}[[fetch]]{}", rest.split_once("[[fetch]]").unwrap().1);
    let options = || {
        let options = Options::default().config(&table).set("UPSTREAM_URL", &api.url());
        options.set("BROKER_URL", &broker.url())
    };
    let mut gateway = options().spawn().await;
    gateway.ready().await;
    assert_eq!(listener.next().await.topic, "rooms/1/a/state");
    assert_eq!(gateway.stop().await.code(), Some(0));
    let mut drain = options().drain("200ms").await;
    assert_eq!(drain.ended().await.code(), Some(0));
}

#[tokio::test]
async fn one_call_is_under_way_and_an_outage_queues_none() {
    let (tell, told) = watch::channel(None);
    let api = ScriptedApi::start(move |_| Reply::Later(told.clone())).await;
    let (_broker, gateway, mut listener) = stage(&api).await;
    api.comes("a poll", 1, is_poll).await;
    // For many periods.
    listener.silent().await;
    assert_eq!(api.count(is_poll), 1);
    // An outage that answers: it is tried again and again, nothing is given up, and nothing fails.
    api.now(|_| Reply::status(503));
    tell.send(Some("[]".to_owned())).unwrap();
    asks(&api, 3).await;
    eventually("the outage is seen", || async {
        (gateway.metric("mqtt_rest_gateway_upstream_up", &[]).await == 0).then_some(())
    })
    .await;
    assert_eq!(gateway.metric("mqtt_rest_gateway_fetches_total", &["rooms", "failed"]).await, 0);
    let answer = rooms(&[room(1, "a", 1, 1)]);
    api.now(move |_| answer.clone());
    assert_eq!(listener.next().await.topic, "rooms/1/a/state");
    listener.silent().await;
}

#[tokio::test]
async fn a_stop_waits_for_no_poll_and_a_drain_makes_none() {
    let api = ScriptedApi::start(|_| Reply::Hang).await;
    let (broker, mut gateway, _listener) = stage(&api).await;
    api.comes("a poll", 1, is_poll).await;
    assert_eq!(gateway.stop().await.code(), Some(0));
    assert_eq!(api.count(is_poll), 1);
    // Nor does one that asks for nothing any more.
    let options = Options::default().config(CONFIG).set("UPSTREAM_URL", &api.url());
    let mut drain = options.set("BROKER_URL", &broker.url()).drain("200ms").await;
    assert_eq!(drain.ended().await.code(), Some(0));
    assert_eq!(api.count(is_poll), 1);
}
