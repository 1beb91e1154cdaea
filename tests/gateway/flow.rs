//! The flow: what has changed by an answer is fetched and pushed, once; queues drain by themselves;
//! a snapshot pushes everything in order.

use serde_json::{Value, json};
use wiremock::ResponseTemplate;

use crate::harness::{Broker, Device, Gateway, Options, Upstream, eventually};

const DEVICE: &str = "/v1/devices/d1";

async fn stage() -> (Broker, Upstream, Gateway, Device) {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let gateway = Gateway::start(&broker, &upstream).await;
    let device = broker.device("d1").await;
    (broker, upstream, gateway, device)
}

/// Answers telemetry with these flags from now on.
async fn flags(upstream: &Upstream, news: Value) {
    let mut flags = json!({
        "success": true, "command": false, "new_licenses": false, "config_version": null,
        "space_data_version": 0, "latest_fw_version": null, "latest_fw_file_id": null,
    });
    flags.as_object_mut().unwrap().extend(news.as_object().unwrap().clone());
    upstream.answers("POST", &format!("{DEVICE}/telemetry"), 201, flags).await;
}

async fn serves(upstream: &Upstream, below: &str, body: Value) {
    upstream.answers("GET", &format!("{DEVICE}/{below}"), 200, body).await;
}

/// Sends telemetry and waits until it is settled, follow-ups included.
async fn telemetry(device: &mut Device, gateway: &Gateway) {
    let labels = ["route=\"telemetry\""];
    let before = gateway.metric("mqtt_rest_gateway_messages_settled_total", &labels).await;
    device.send("telemetry", json!({"status": "online", "telemetries": {}})).await;
    gateway.metric_reaches("mqtt_rest_gateway_messages_settled_total", &labels, before + 1).await;
}

#[tokio::test]
async fn a_new_config_is_pushed_once_for_each_version() {
    let (_broker, upstream, gateway, mut device) = stage().await;
    let config = json!({"version": 7, "last_updated": "2021-08-04T07:45:44.122Z", "mode": 1.50});
    serves(&upstream, "config", config.clone()).await;
    flags(&upstream, json!({"config_version": 7})).await;
    telemetry(&mut device, &gateway).await;
    let push = device.next().await;
    assert_eq!(push.topic, "v1/device/d1/config");
    assert_eq!(push.json(), config);
    assert_eq!(push.props.response_topic.as_deref(), Some("v1/device/d1/config/update"));
    assert_eq!(push.user("via"), "mqtt-rest-gateway");
    telemetry(&mut device, &gateway).await;
    device.silent().await;
    flags(&upstream, json!({"config_version": 8})).await;
    telemetry(&mut device, &gateway).await;
    assert_eq!(device.next().await.topic, "v1/device/d1/config");
    assert_eq!(upstream.count("GET /v1/devices/d1/config").await, 2);
}

#[tokio::test]
async fn an_earlier_version_is_pushed_again() {
    let (_broker, upstream, gateway, mut device) = stage().await;
    serves(&upstream, "config", json!({"version": 1})).await;
    // The same answer twice pushes nothing; an earlier one pushes again when another came in between.
    for (version, news) in [(7, true), (7, false), (8, true), (7, true), (7, false), (7, false)] {
        flags(&upstream, json!({"config_version": version})).await;
        telemetry(&mut device, &gateway).await;
        if news {
            assert_eq!(device.next().await.topic, "v1/device/d1/config");
        }
        device.silent().await;
    }
}

#[tokio::test]
async fn entries_for_one_fetch_are_told_apart_and_its_filters_see_the_payload() {
    const CONFIG: &str = r#"
[upstream]
url = "http://hub"

[[route]]
name = "state"
on   = "v1/device/{device_id}/state"
call = "POST /{device_id}/state"
then = [{ fetch = "again", on_change = ".a" }, { fetch = "again", on_change = ".b" }]

[[fetch]]
name    = "again"
push    = "v1/device/{device_id}/again"
payload = "[.a, .b, $payload.n]"
"#;
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let gateway = Options::default().config(CONFIG).start(&broker, &upstream).await;
    let mut device = broker.device("d1").await;
    for (n, a, b, pushes) in [(0, 1, 2, 2), (1, 2, 2, 1), (2, 2, 1, 1), (3, 2, 1, 0)] {
        upstream.answers("POST", "/d1/state", 200, json!({"a": a, "b": b})).await;
        device.send("state", json!({"n": n})).await;
        for _ in 0..pushes {
            assert_eq!(device.next().await.json(), json!([a, b, n]));
        }
        gateway.metric_reaches("mqtt_rest_gateway_messages_settled_total", &[], n + 1).await;
        device.silent().await;
    }
}

#[tokio::test]
async fn where_no_config_is_set_none_is_pushed() {
    let (_broker, upstream, gateway, mut device) = stage().await;
    flags(&upstream, json!({"config_version": 0})).await;
    telemetry(&mut device, &gateway).await;
    assert_eq!(upstream.count("GET /v1/devices/d1/config").await, 0);
    // The three forms of nothing that a snapshot can meet.
    let dated = json!({"version": 0, "last_updated": "2023-03-02T16:47:41.960Z"});
    let scoped = json!({"name": "n", "version": 0, "last_updated": null, "config": {}});
    for (count, nothing) in [(1, json!({})), (2, dated), (3, scoped)] {
        serves(&upstream, "config", nothing.clone()).await;
        assert_eq!(device.ask("get", Value::Null).await.user("status"), "204");
        gateway
            .metric_is("mqtt_rest_gateway_fetches_total", &["config_if_set", "empty"], count)
            .await;
        // A device that asks is answered, with what there is.
        assert_eq!(device.ask("config", Value::Null).await.json(), nothing);
    }
    device.silent().await;
    let config = json!({"name": "n", "version": 1, "last_updated": null, "config": {}});
    serves(&upstream, "config", config.clone()).await;
    flags(&upstream, json!({"config_version": 1})).await;
    telemetry(&mut device, &gateway).await;
    device.send("get", Value::Null).await;
    for _ in 0..2 {
        let push = device.next().await;
        assert_eq!((push.topic.as_str(), push.json()), ("v1/device/d1/config", config.clone()));
    }
}

#[tokio::test]
async fn a_config_that_the_device_itself_has_set_is_not_pushed() {
    let (_broker, upstream, gateway, mut device) = stage().await;
    serves(&upstream, "config", json!({"version": 8})).await;
    let set = json!({"success": true, "version": 7});
    upstream.answers("POST", &format!("{DEVICE}/config"), 200, set).await;
    device.ask("config/update", json!({"version": 6, "mode": 2})).await;
    flags(&upstream, json!({"config_version": 7})).await;
    telemetry(&mut device, &gateway).await;
    device.silent().await;
    flags(&upstream, json!({"config_version": 8})).await;
    telemetry(&mut device, &gateway).await;
    assert_eq!(device.next().await.json(), json!({"version": 8}));
}

#[tokio::test]
async fn a_fetch_that_failed_is_made_again_with_the_next_answer() {
    let (_broker, upstream, gateway, mut device) = stage().await;
    flags(&upstream, json!({"config_version": 7})).await;
    upstream.answers("GET", &format!("{DEVICE}/config"), 403, json!({"error": "not now"})).await;
    telemetry(&mut device, &gateway).await;
    gateway.metric_reaches("mqtt_rest_gateway_fetches_total", &["config", "failed"], 1).await;
    device.silent().await;
    serves(&upstream, "config", json!({"version": 7})).await;
    telemetry(&mut device, &gateway).await;
    assert_eq!(device.next().await.json(), json!({"version": 7}));
}

#[tokio::test]
async fn commands_are_pushed_once_and_the_queue_drains_by_itself() {
    let (_broker, upstream, gateway, mut device) = stage().await;
    flags(&upstream, json!({"command": true})).await;
    upstream.answers("POST", &format!("{DEVICE}/command"), 200, json!({"success": true})).await;
    let command =
        |id: Value| json!({"id": id, "status": "pending", "name": "reboot", "parameters": {}});
    serves(&upstream, "command", command(json!("c1"))).await;
    telemetry(&mut device, &gateway).await;
    let push = device.next().await;
    assert_eq!(push.topic, "v1/device/d1/commands");
    assert_eq!(push.json(), command(json!("c1")));
    assert_eq!(push.props.response_topic.as_deref(), Some("v1/device/d1/commands/update"));
    assert_eq!(push.props.correlation.as_deref(), Some(&b"c1"[..]));

    // The flag stays up while the device works: the same command is not pushed again.
    telemetry(&mut device, &gateway).await;
    device.send("commands/update", json!({"id": "c1", "status": "in_progress"})).await;
    telemetry(&mut device, &gateway).await;
    device.silent().await;

    // A final status brings the next one at once, until there is none.
    serves(&upstream, "command", command(json!(50))).await;
    device.send("commands/update", json!({"id": "c1", "status": "done"})).await;
    let push = device.next().await;
    assert_eq!(push.json()["id"], 50);
    assert_eq!(push.props.correlation.as_deref(), Some(&b"50"[..]));
    serves(&upstream, "command", json!({})).await;
    device.send("commands/update", json!({"id": 50, "status": "failed"})).await;
    gateway.metric_reaches("mqtt_rest_gateway_fetches_total", &["command", "empty"], 1).await;
    device.silent().await;
    let bodies: Vec<Value> = upstream
        .requests()
        .await
        .iter()
        .filter(|r| r.method.as_str() == "POST" && r.url.path().ends_with("/command"))
        .map(|r| r.body_json::<Value>().unwrap()["status"].clone())
        .collect();
    assert_eq!(bodies, ["in_progress", "done", "failed"]);
}

#[tokio::test]
async fn an_item_the_device_has_answered_may_come_again() {
    let (_broker, upstream, _gateway, mut device) = stage().await;
    flags(&upstream, json!({"command": true})).await;
    upstream.answers("POST", &format!("{DEVICE}/command"), 200, json!({"success": true})).await;
    serves(&upstream, "command", json!({"id": "c1", "status": "pending"})).await;
    device.send("telemetry", json!({"status": "online"})).await;
    assert_eq!(device.next().await.json()["id"], "c1");
    device.send("commands/update", json!({"id": "c1", "status": "failed"})).await;
    assert_eq!(device.next().await.json()["id"], "c1", "queued anew by the operator");
}

#[tokio::test]
async fn licenses_come_one_after_another_in_the_form_of_the_page() {
    let (_broker, upstream, _gateway, mut device) = stage().await;
    flags(&upstream, json!({"new_licenses": true})).await;
    upstream.answers("POST", &format!("{DEVICE}/licenses"), 200, json!({"id": "l1"})).await;
    let first = json!({"id": "l1", "data": "d", "signature": "s", "action": "add"});
    serves(&upstream, "license", first).await;
    device.send("telemetry", json!({"status": "online"})).await;
    let push = device.next().await;
    assert_eq!(push.topic, "v1/device/d1/license");
    assert_eq!(push.props.response_topic.as_deref(), Some("v1/device/d1/license/update"));
    let expected = json!({"id": "l1", "data": "d", "signature": "s", "add": true, "update": false, "remove": false});
    assert_eq!(push.json(), expected);
    serves(&upstream, "license", json!({"id": "l2", "remove": true})).await;
    // The page shows this one without credentials: the key last accepted is used.
    let mut update = device.message("license/update", r#"{"id":"l1","state":"inuse"}"#);
    update.props.user.clear();
    device.publish(update).await;
    let push = device.next().await;
    assert_eq!(push.json(), json!({"id": "l2", "add": false, "update": false, "remove": true}));
    serves(&upstream, "license", json!({})).await;
    device.send("license/update", json!({"id": "l2", "state": "removed"})).await;
    upstream.arrived("GET /v1/devices/d1/license", 3).await;
    device.silent().await;
}

#[tokio::test]
async fn space_and_firmware_are_pushed_when_they_change() {
    let (_broker, upstream, gateway, mut device) = stage().await;
    serves(&upstream, "space", json!({"name": "room"})).await;
    upstream.answers("PUT", DEVICE, 200, json!({"id": "d1"})).await;
    upstream.answers("GET", DEVICE, 200, json!({"firmware_version": "1.0.7"})).await;
    flags(&upstream, json!({"space_data_version": 0})).await;
    telemetry(&mut device, &gateway).await;
    device.silent().await;
    let firmware = json!({"latest_fw_version": "1.0.8", "latest_fw_file_id": "f1"});
    let mut news = firmware.clone();
    news["space_data_version"] = 4.into();
    flags(&upstream, news.clone()).await;
    telemetry(&mut device, &gateway).await;
    let (space, push) = (device.next().await, device.next().await);
    assert_eq!(
        (space.topic.as_str(), space.json()),
        ("v1/device/d1/space_info", json!({"name": "room"}))
    );
    assert_eq!((push.topic.as_str(), push.json()), ("v1/device/d1/firmware", firmware.clone()));
    telemetry(&mut device, &gateway).await;
    device.silent().await;

    // Asked for, it is answered from what is known, with the request's Correlation Data.
    let answer = device.ask("firmware", Value::Null).await;
    assert_eq!((answer.user("status"), answer.json()), ("200", firmware));

    // A device that says it runs the latest version is not told about it.
    device.send("update", json!({"firmware_version": "1.0.9"})).await;
    upstream.arrived("PUT /v1/devices/d1", 1).await;
    news["latest_fw_version"] = "1.0.9".into();
    flags(&upstream, news).await;
    telemetry(&mut device, &gateway).await;
    device.silent().await;
    assert_eq!(upstream.count("GET /v1/devices/d1").await, 1, "asked once, told afterwards");
}

#[tokio::test]
async fn a_device_that_is_up_to_date_is_not_told_so_after_a_restart_of_the_gateway() {
    let (broker, upstream, mut gateway, mut device) = stage().await;
    flags(&upstream, json!({"latest_fw_version": "1.0.8", "latest_fw_file_id": "f1"})).await;
    upstream.answers("GET", DEVICE, 200, json!({"firmware_version": "1.0.8"})).await;
    for restart in 1..=2 {
        for _ in 0..2 {
            telemetry(&mut device, &gateway).await;
        }
        device.silent().await;
        assert_eq!(upstream.count("GET /v1/devices/d1").await, restart, "once for each gateway");
        gateway.stop().await;
        gateway = Gateway::start(&broker, &upstream).await;
    }
    // Where the question is not answered nothing is said, and it is asked again.
    upstream.answers("GET", DEVICE, 403, json!({"error": "not now"})).await;
    telemetry(&mut device, &gateway).await;
    gateway.metric_is("mqtt_rest_gateway_fetches_total", &["own_firmware", "failed"], 1).await;
    device.silent().await;
    // An answer that does not say it is an answer: then it has no version that is the latest.
    upstream.answers("GET", DEVICE, 200, json!({"id": "d1"})).await;
    for _ in 0..2 {
        telemetry(&mut device, &gateway).await;
    }
    assert_eq!(device.next().await.json()["latest_fw_version"], "1.0.8");
    device.silent().await;
    assert_eq!(upstream.count("GET /v1/devices/d1").await, 4);
    // Told to it already when the device says what it has.
    upstream.answers("PUT", DEVICE, 200, json!({"id": "d1"})).await;
    device.ask("update", json!({"firmware_version": "1.0.7"})).await;
    telemetry(&mut device, &gateway).await;
    device.silent().await;
}

#[tokio::test]
async fn a_snapshot_after_a_restart_of_the_gateway_has_the_firmware() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    // It knows none of these devices.
    let gateway = Gateway::start(&broker, &upstream).await;
    let file = |kind: &str, version: Value| {
        let id = format!("file of {}", version.as_str().unwrap_or("none"));
        json!({"id": id, "file_type": kind, "version": version, "name": "x"})
    };
    let versions = |versions: &[&str]| -> Value {
        versions.iter().map(|version| file("firmware", json!(version))).collect()
    };
    let cases = [
        (json!([]), None),
        (json!([file("manual", json!("7.0.0")), file("firmware", Value::Null)]), None),
        // It has this one.
        (versions(&["1.8.10", "1.9.0", "1.9.0-rc.1"]), None),
        (versions(&["1.10.0", "1.9.9", "1.2.11"]), Some("1.10.0")),
        (versions(&["2.0.0-rc.2", "2.0.0-rc.10", "2.0.0-3"]), Some("2.0.0-rc.10")),
        (versions(&["2.0.0-rc.2", "2.0.0+b5", "1.99.0"]), Some("2.0.0+b5")),
    ];
    for (number, (files, latest)) in cases.into_iter().enumerate() {
        let mut device = broker.device(&format!("d{number}")).await;
        let about = format!("/v1/devices/d{number}");
        upstream.answers("GET", &about, 200, json!({"firmware_version": "1.9.0"})).await;
        upstream.answers("GET", &format!("{about}/files"), 200, files).await;
        assert_eq!(device.ask("get", Value::Null).await.user("status"), "204");
        let Some(latest) = latest else {
            gateway.settles().await;
            device.silent().await;
            continue;
        };
        let file = format!("file of {latest}");
        let told = json!({"latest_fw_version": latest, "latest_fw_file_id": file});
        let push = device.on(&device.topic("firmware")).await;
        assert_eq!(push.json(), told);
        // Once for each gateway: now it is known, and answered from memory.
        assert_eq!(device.ask("firmware", Value::Null).await.json(), told);
        device.send("get", Value::Null).await;
        assert_eq!(device.on(&device.topic("firmware")).await.json(), told);
        assert_eq!(upstream.count(&format!("GET {about}/files")).await, 1);
    }
}

#[tokio::test]
async fn a_snapshot_pushes_everything_in_order_and_survives_failing_parts() {
    let (_broker, upstream, gateway, mut device) = stage().await;
    let firmware = json!({"latest_fw_version": "2.0", "latest_fw_file_id": "f2"});
    flags(&upstream, firmware.clone()).await;
    upstream.answers("GET", DEVICE, 200, json!({"firmware_version": "1.0"})).await;
    telemetry(&mut device, &gateway).await;
    assert_eq!(device.next().await.topic, "v1/device/d1/firmware");
    serves(&upstream, "space", json!({"name": "room"})).await;
    serves(&upstream, "config", json!({"version": 1})).await;
    serves(&upstream, "command", json!({"id": "c1"})).await;
    serves(&upstream, "licenses", json!([{"id": "l1", "add": true}, {"id": "l2", "update": true}]))
        .await;
    for _ in 0..2 {
        // Asked for twice, pushed twice: a device that has restarted knows nothing.
        device.send("get", Value::Null).await;
        let mut topics = Vec::new();
        for _ in 0..6 {
            topics.push(device.next().await.topic);
        }
        let below = ["space_info", "config", "commands", "license", "license", "firmware"];
        assert_eq!(topics, below.map(|below| format!("v1/device/d1/{below}")));
    }

    // Nothing there, refused, broken: the rest is pushed all the same.
    upstream
        .answers("GET", &format!("{DEVICE}/space"), 422, json!({"error": "Device not in space"}))
        .await;
    upstream.responds("GET", &format!("{DEVICE}/config"), ResponseTemplate::new(404)).await;
    let html = ResponseTemplate::new(200).set_body_string("<html>");
    upstream.responds("GET", &format!("{DEVICE}/command"), html).await;
    serves(&upstream, "licenses", json!([])).await;
    device.send("get", Value::Null).await;
    assert_eq!(device.next().await.topic, "v1/device/d1/firmware");
    device.silent().await;
    assert_eq!(
        gateway.metric("mqtt_rest_gateway_fetches_total", &["space_info", "empty"]).await,
        1
    );
    assert_eq!(
        gateway.metric("mqtt_rest_gateway_fetches_total", &["config_if_set", "failed"]).await,
        1
    );
    assert_eq!(gateway.metric("mqtt_rest_gateway_fetches_total", &["command", "failed"]).await, 1);
}

#[tokio::test]
async fn what_the_gateway_pushes_is_not_a_request() {
    let (_broker, upstream, gateway, mut device) = stage().await;
    serves(&upstream, "config", json!({"version": 1})).await;
    // Another gateway's push, and a device's own message without credentials.
    let mut push = device.message("config", "{}");
    push.props.user = vec![("via".into(), "another".into())];
    device.publish(push).await;
    let mut echo = device.message("config", "{}");
    echo.props.user.clear();
    device.publish(echo).await;
    eventually("both ignored", || async {
        let loops = gateway.metric("mqtt_rest_gateway_messages_settled_total", &["loop"]).await;
        let others =
            gateway.metric("mqtt_rest_gateway_messages_settled_total", &["not_a_request"]).await;
        (loops == 1 && others == 1).then_some(())
    })
    .await;
    assert_eq!(upstream.calls().await, Vec::<String>::new());
}
