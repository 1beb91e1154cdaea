//! Topics of other shapes: names of many levels, rows inside rows, senders that no single level names. All of it with
//! devices that speak MQTT 3.1.1, but where a test is about properties.

use serde_json::{Value, json};

use crate::harness::{Broker, Gateway, Options, QUIET, Upstream, program, run};

/// Lamps whose names have slashes, of the kind that a bridge publishes beside its own state; a camera with one topic
/// for everything; phones that two levels name.
const HOUSE: &str = r#"
[upstream]
url = "http://hub"

[device]
capture     = "device"
credentials = "none"

[[route]]
name = "bridge"
on   = "zigbee2mqtt/bridge/{device...}"

[[route]]
name     = "lamp"
on       = "zigbee2mqtt/{device...}"
call     = "PUT /lamps/{device}"
remember = "{n: (($memory.n // 0) + 1)}"
then     = [{ fetch = "count", when = ".count" }]

[[route]]
name = "group"
on   = "zigbee2mqtt/groups/{device...}"
call = "PUT /groups/{device}"

[[route]]
name   = "event"
on     = "frigate/events"
device = "frigate"
call   = "POST /events"

[[route]]
name     = "location"
on       = "owntracks/{user}/{phone}"
device   = "{user}/{phone}"
call     = "POST /users/{user}/phones/{phone}"
remember = "{n: (($memory.n // 0) + 1)}"
then     = [{ fetch = "friends", when = ".count" }]

[[fetch]]
name    = "count"
push    = "told/{device}"
payload = "$memory.n"

[[fetch]]
name    = "friends"
push    = "owntracks/{user}/{phone}/cmd"
payload = "$memory.n"
"#;

async fn upstream() -> Upstream {
    let upstream = Upstream::start().await;
    for lamp in ["kitchen%2Ffloor_light", "hall"] {
        upstream.answers("PUT", &format!("/lamps/{lamp}"), 200, json!({"count": true})).await;
    }
    upstream.answers("PUT", "/groups/all%2Flamps", 200, json!({})).await;
    upstream.answers("POST", "/events", 200, json!({})).await;
    upstream
}

async fn stage() -> (Broker, Upstream, Gateway) {
    let (broker, upstream) = (Broker::start().await, upstream().await);
    let gateway = Options::default().config(HOUSE).start(&broker, &upstream).await;
    (broker, upstream, gateway)
}

/// Nothing more comes than these calls.
async fn only(upstream: &Upstream, calls: &[&str]) {
    for call in calls {
        upstream.arrived(call, calls.iter().filter(|other| *other == call).count()).await;
    }
    tokio::time::sleep(QUIET).await;
    let (mut expected, mut came) = (calls.to_vec(), upstream.calls().await);
    expected.sort_unstable();
    came.sort_unstable();
    assert_eq!(came, expected);
}

#[tokio::test]
async fn a_name_of_many_levels_is_one_segment_and_an_inner_row_takes_what_is_its_own() {
    for group in ["", "house"] {
        let (broker, upstream) = (Broker::start().await, upstream().await);
        let options = Options::default().config(HOUSE).set("BROKER_SHARE_GROUP", group);
        let gateway = options.start(&broker, &upstream).await;
        // One filter for three rows.
        gateway.logs("subscribed filters=3").await;
        let mut bridge = broker.plain_device("bridge", "told/#").await;
        for topic in ["zigbee2mqtt/bridge/state", "zigbee2mqtt", "zigbee2mqtt/bridge/a/b"] {
            bridge.publish(topic, "not even JSON").await;
        }
        gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["not_a_request"], 3).await;
        bridge.publish("zigbee2mqtt/kitchen/floor_light", r#"{"state":"ON"}"#).await;
        assert_eq!(bridge.on("told/kitchen/floor_light").await.text(), "1");
        bridge.publish("zigbee2mqtt/groups/all/lamps", "{}").await;
        bridge.publish("zigbee2mqtt/hall", "{}").await;
        assert_eq!(bridge.on("told/hall").await.text(), "1");
        bridge.publish("zigbee2mqtt/hall", "{}").await;
        assert_eq!(bridge.on("told/hall").await.text(), "2");
        let (lamp, hall) = ("PUT /lamps/kitchen%2Ffloor_light", "PUT /lamps/hall");
        only(&upstream, &[lamp, hall, hall, "PUT /groups/all%2Flamps"]).await;
        assert!(!gateway.log().contains("looking for the subscription"), "{}", gateway.log());
        assert_eq!(gateway.metric("mqtt_rest_gateway_dead_letters_total", &[]).await, 0);
    }
}

#[tokio::test]
async fn no_name_of_many_levels_can_choose_another_path() {
    let (broker, upstream, gateway) = stage().await;
    let mut bridge = broker.plain_device("bridge", "none").await;
    let names = ["a/../hall", "../hall", "..", "a//b", "hall/", "./hall"];
    for name in names {
        bridge.publish(&format!("zigbee2mqtt/{name}"), "{}").await;
    }
    let count = names.len().try_into().unwrap();
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["bad_segment"], count).await;
    bridge.publish("zigbee2mqtt/hall", "{}").await;
    only(&upstream, &["PUT /lamps/hall"]).await;
}

#[tokio::test]
async fn a_response_topic_is_no_other_devices_topic() {
    let (broker, upstream, gateway) = stage().await;
    upstream.answers("POST", "/users/alice/phones/pixel", 200, json!({"ok": true})).await;
    let mut device = broker.listener("modern", "#").await;
    let mut ask = async |topic: &str, response_topic: &str| {
        let mut message = device.message("", "{}");
        message.topic = topic.to_owned();
        message.props.user.clear();
        message.props.response_topic = Some(response_topic.to_owned());
        device.publish(message).await;
    };
    let refused = [
        // Below a name of many levels there are names of many levels.
        ("zigbee2mqtt/hall", "zigbee2mqtt/hall/lamp"),
        ("zigbee2mqtt/hall", "zigbee2mqtt/bridge/state"),
        ("frigate/events", "frigate/events/answers"),
        ("frigate/events", "frigate/answers"),
        ("owntracks/alice/pixel", "owntracks/alice/other"),
        ("owntracks/alice/pixel", "owntracks/alice"),
    ];
    for (topic, response_topic) in refused {
        ask(topic, response_topic).await;
    }
    let count = refused.len().try_into().unwrap();
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["response_topic"], count).await;
    ask("owntracks/alice/pixel", "owntracks/alice/pixel/answers").await;
    assert_eq!(device.on("owntracks/alice/pixel/answers").await.json(), json!({"ok": true}));
    only(&upstream, &["POST /users/alice/phones/pixel"]).await;
}

#[tokio::test]
async fn two_levels_name_a_phone_and_a_constant_a_camera() {
    let (broker, upstream, gateway) = stage().await;
    for user in ["alice", "bob"] {
        let path = format!("/users/{user}/phones/pixel");
        upstream.answers("POST", &path, 200, json!({"count": true})).await;
    }
    let mut phones = broker.plain_device("phones", "owntracks/+/+/cmd").await;
    for (user, count) in [("alice", "1"), ("alice", "2"), ("bob", "1")] {
        phones.publish(&format!("owntracks/{user}/pixel"), "{}").await;
        assert_eq!(phones.on(&format!("owntracks/{user}/pixel/cmd")).await.text(), count);
    }
    // In order: they are one sender's.
    for n in 0..20 {
        phones.publish("frigate/events", json!({ "n": n }).to_string()).await;
    }
    upstream.arrived("POST /events", 20).await;
    let requests = upstream.requests().await;
    let events = requests.iter().filter(|request| request.url.path() == "/events");
    let numbers = events.map(|event| event.body_json::<Value>().unwrap()["n"].as_i64().unwrap());
    assert_eq!(numbers.collect::<Vec<_>>(), (0..20).collect::<Vec<_>>());
    // Who says another name than the topic is not believed.
    let mut device = broker.listener("modern", "none").await;
    for (topic, id) in [
        ("owntracks/alice/pixel", "alice/pixel"),
        ("owntracks/alice/pixel", "pixel"),
        ("frigate/events", "frigate"),
        ("frigate/events", "events"),
    ] {
        let mut message = device.message("", "{}");
        message.topic = topic.to_owned();
        message.props.user = vec![("device_id".to_owned(), id.to_owned())];
        device.publish(message).await;
    }
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["identity"], 2).await;
    upstream.arrived("POST /events", 21).await;
}

/// A table whose rows lie otherwise than those of the table before: nothing comes twice, in either direction.
#[tokio::test]
async fn what_an_earlier_table_subscribed_to_inside_or_outside_is_ended() {
    let inner = HOUSE.split("[[route]]").next().unwrap().to_owned()
        + "[[route]]\nname = \"group\"\non = \"zigbee2mqtt/groups/{device...}\"\ncall = \"PUT /groups/{device}\"\n";
    for group in ["", "house"] {
        let (broker, upstream) = (Broker::start().await, upstream().await);
        let options =
            |table: &str| Options::default().config(table).set("BROKER_SHARE_GROUP", group);
        let mut gateway = options(&inner).start(&broker, &upstream).await;
        gateway.stop().await;
        let mut gateway = options(HOUSE).start(&broker, &upstream).await;
        gateway.logs("ended a subscription of an earlier configuration").await;
        let mut bridge = broker.plain_device("bridge", "none").await;
        bridge.publish("zigbee2mqtt/groups/all/lamps", "{}").await;
        only(&upstream, &["PUT /groups/all%2Flamps"]).await;
        gateway.stop().await;
        // The outer filter is found by the first message that no row takes.
        let gateway = options(&inner).start(&broker, &upstream).await;
        bridge.publish("zigbee2mqtt/kitchen/lamp", "{}").await;
        gateway.logs("zigbee2mqtt/#").await;
        bridge.publish("zigbee2mqtt/groups/all/lamps", "{}").await;
        only(&upstream, &["PUT /groups/all%2Flamps", "PUT /groups/all%2Flamps"]).await;
    }
}

#[tokio::test]
async fn letters_of_devices_without_keys_are_sent_again_without_keys() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let gateway = Options::default().config(HOUSE).start(&broker, &upstream).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("house.toml");
    std::fs::write(&file, HOUSE).unwrap();
    let replay = async || {
        let mut command = program();
        command.args(["--config", file.to_str().unwrap(), "replay", "--quiet", "1s"]);
        let output = command.env("GATEWAY_BROKER_URL", broker.url()).output().await.unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        eprintln!("{text}{}", String::from_utf8_lossy(&output.stderr));
        (output.status.code().unwrap(), text)
    };
    assert_eq!(replay().await.0, 0);
    let calls = ["PUT /lamps/kitchen%2Flamp", "POST /events", "POST /users/alice/phones/pixel"];
    for call in calls {
        let (method, path) = call.split_once(' ').unwrap();
        upstream.answers(method, path, 422, json!({})).await;
    }
    let mut device = broker.plain_device("device", "none").await;
    for topic in ["zigbee2mqtt/kitchen/lamp", "frigate/events", "owntracks/alice/pixel"] {
        device.publish(topic, "{}").await;
    }
    gateway.metric_is("mqtt_rest_gateway_dead_letters_total", &[r#"kept="yes""#], 3).await;
    for call in calls {
        let (method, path) = call.split_once(' ').unwrap();
        upstream.answers(method, path, 200, json!({})).await;
    }
    let (code, text) = replay().await;
    assert!(code == 0 && text.contains("3 delivered, 0 dropped, 0 kept"), "{text}");
    for call in calls {
        assert_eq!(upstream.count(call).await, 2, "{call}");
    }
}

#[tokio::test]
async fn a_drain_ends_the_outer_subscription() {
    let (broker, upstream, mut gateway) = stage().await;
    gateway.stop().await;
    let mut bridge = broker.plain_device("bridge", "none").await;
    for topic in ["zigbee2mqtt/hall", "zigbee2mqtt/groups/all/lamps", "frigate/events"] {
        bridge.publish(topic, "{}").await;
    }
    let options = Options::default().config(HOUSE).set("BROKER_URL", &broker.url());
    let mut drain = options.set("UPSTREAM_URL", &upstream.url()).drain("1s").await;
    assert_eq!(drain.ended().await.code(), Some(0));
    only(&upstream, &["PUT /lamps/hall", "PUT /groups/all%2Flamps", "POST /events"]).await;
    assert!(!drain.log().contains("no such subscription"), "{}", drain.log());
}

#[tokio::test]
async fn the_row_that_wins_is_shown() {
    let broker = Broker::start().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("house.toml");
    std::fs::write(
        &file,
        HOUSE.replace("[device]", &format!("[broker]\nurl = \"{}\"\n[device]", broker.url())),
    )
    .unwrap();
    let file = file.to_str().unwrap();
    let explain = async |topic: &str| {
        run(&["--config", file, "explain", topic, "--payload", "-"], "{}").await.1
    };
    let lamp = explain("zigbee2mqtt/kitchen/lamp").await;
    assert!(
        lamp.starts_with("route    lamp\nrequest  PUT http://hub/lamps/kitchen%2Flamp\n"),
        "{lamp}"
    );
    let group = explain("zigbee2mqtt/groups/a").await;
    assert!(group.starts_with("route    group, which lies inside lamp\n"), "{group}");
    for topic in ["zigbee2mqtt/bridge/state", "zigbee2mqtt"] {
        let nothing = explain(topic).await;
        assert!(nothing.contains("ignored  no row does anything with it"), "{nothing}");
    }
    let (_, routes, _) = run(&["--config", file, "routes"], "").await;
    assert!(routes.contains("zigbee2mqtt/groups/{device...} (inside lamp)"), "{routes}");
    let (_, routes, _) = run(&["--config", file, "routes", "--json"], "").await;
    assert!(routes.contains(r#""device":"{user}/{phone}""#), "{routes}");
    let (code, out, _) = run(&["--config", file, "check", "--connect"], "").await;
    assert!(!out.contains("does nothing"), "the bridge's row lies inside another: {out}");
    assert!(code == 1 && out.contains("subscriptions        3 accepted"), "{out}");
}
