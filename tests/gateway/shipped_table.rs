//! Walks the shipped table: every row publishes once, makes exactly its call and answers where it
//! says. The expectations stand here in words of the API page, not derived from the table.

use serde_json::{Value, json};

use crate::harness::{Broker, Gateway, Upstream, run};

/// What a row must do.
struct Row {
    name: &'static str,
    below: &'static str,
    payload: Value,
    call: Option<(&'static str, &'static str)>,
    body: Option<Value>,
    answer: Value,
    /// Where the answer goes when no Response Topic is named.
    reply: Option<&'static str>,
}

#[expect(clippy::too_many_lines, reason = "one entry for each row of the table")]
fn rows() -> Vec<Row> {
    let telemetry = json!({"status": "online", "telemetries": {"fan_speed": 100.1, "usbc": true}});
    let config = json!({"version": 3, "last_updated": "2021-08-04T07:45:44.122Z", "mode": "a"});
    let settings = json!({"property": "incidents.suspend_creation", "value": true});
    let license = json!({"id": "l1", "state": "inuse"});
    let row = |name, below, payload: &Value, call, body: Option<Value>, reply| Row {
        name,
        below,
        payload: payload.clone(),
        call,
        body,
        answer: json!({"answer_of": name}),
        reply,
    };
    let none = Value::Null;
    let same = |value: &Value| Some(value.clone());
    vec![
        row(
            "telemetry",
            "telemetry",
            &telemetry,
            Some(("POST", "/telemetry")),
            same(&telemetry),
            None,
        ),
        row(
            "update_config",
            "config/update",
            &config,
            Some(("POST", "/config")),
            same(&config),
            None,
        ),
        row(
            "update_command",
            "commands/update",
            &json!({"id": "c1", "status": "error", "message": "no"}),
            Some(("POST", "/command")),
            Some(json!({"id": "c1", "status": "failed", "message": "no"})),
            None,
        ),
        row(
            "update_license",
            "license/update",
            &license,
            Some(("POST", "/licenses")),
            same(&license),
            None,
        ),
        row(
            "update_device",
            "update",
            &json!({"firmware_version": "1.0.1", "name": "n", "firmwareVersion": {"x": 1}}),
            Some(("PUT", "")),
            Some(json!({"firmware_version": "1.0.1", "name": "n"})),
            None,
        ),
        row(
            "set_cloud_settings",
            "cloud_settings/update",
            &settings,
            Some(("PUT", "/cloud_settings")),
            same(&settings),
            None,
        ),
        row("snapshot", "get", &none, None, None, None),
        row("get_config", "config", &none, Some(("GET", "/config")), None, Some("config/update")),
        row(
            "get_command",
            "commands",
            &none,
            Some(("GET", "/command")),
            None,
            Some("commands/update"),
        ),
        row(
            "get_license",
            "license",
            &none,
            Some(("GET", "/license")),
            None,
            Some("license/update"),
        ),
        row(
            "get_space_info",
            "space_info",
            &none,
            Some(("GET", "/space")),
            None,
            Some("space_info"),
        ),
        row("get_firmware", "firmware", &none, None, None, Some("firmware")),
    ]
}

#[tokio::test]
async fn every_row_of_the_shipped_table_is_expected_here() {
    let (code, table, _) = run(&["routes", "--json"], "").await;
    assert_eq!(code, 0);
    let table: Value = serde_json::from_str(&table).unwrap();
    let shipped: Vec<_> =
        table["routes"].as_array().unwrap().iter().map(|r| r["name"].clone()).collect();
    let expected: Vec<_> = rows().iter().map(|row| Value::from(row.name)).collect();
    assert_eq!(shipped, expected);
    assert_eq!(shipped.len(), 12);
}

#[tokio::test]
async fn every_row_makes_exactly_its_call_and_answers_where_it_says() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    for row in rows() {
        if let Some((verb, path)) = row.call {
            upstream.answers(verb, &format!("/v1/devices/d1{path}"), 200, row.answer.clone()).await;
        }
    }
    let gateway = Gateway::start(&broker, &upstream).await;
    let mut device = broker.device("d1").await;
    for row in rows().into_iter().filter(|row| row.call.is_some()) {
        let before = upstream.requests().await.len();
        // Once with a Response Topic: the answer comes there, as the API gave it.
        let answer = device.ask(row.below, row.payload.clone()).await;
        assert_eq!(answer.user("status"), "200", "{}", row.name);
        assert_eq!(answer.user("route"), row.name);
        assert_eq!(answer.user("via"), "mqtt-rest-gateway");
        assert_eq!(answer.json(), row.answer, "{}", row.name);
        assert_eq!(answer.props.content_type.as_deref(), Some("application/json"));

        let requests = upstream.requests().await;
        let (verb, path) = row.call.unwrap();
        assert_eq!(requests[before].method.as_str(), verb, "{}", row.name);
        assert_eq!(requests[before].url.path(), format!("/v1/devices/d1{path}"), "{}", row.name);
        assert_eq!(requests[before].headers["authorization"], "key-of-d1", "{}", row.name);
        match &row.body {
            None => assert!(requests[before].body.is_empty(), "{}", row.name),
            Some(body) => {
                assert_eq!(requests[before].body_json::<Value>().unwrap(), *body, "{}", row.name);
                assert_eq!(requests[before].headers["content-type"], "application/json");
            }
        }
        // What follows are fetches; the row itself calls once.
        let own = requests[before..]
            .iter()
            .filter(|request| request.method.as_str() == verb)
            .filter(|request| request.url.path() == format!("/v1/devices/d1{path}"));
        let fetched = usize::from(matches!(row.name, "get_license"));
        assert!((1..=1 + fetched).contains(&own.count()), "{} calls once", row.name);

        // And once without: the answer comes on the row's reply topic, or nowhere.
        device.send(row.below, row.payload.clone()).await;
        if let Some(reply) = row.reply {
            let topic = device.topic(reply);
            assert_eq!(device.on(&topic).await.json(), row.answer, "{}", row.name);
        }
        gateway
            .metric_reaches(
                "mqtt_rest_gateway_messages_settled_total",
                &[&format!("route=\"{}\"", row.name)],
                2,
            )
            .await;
    }
    let dead = gateway.metric("mqtt_rest_gateway_messages_settled_total", &[]).await;
    let delivered =
        gateway.metric("mqtt_rest_gateway_messages_settled_total", &["delivered"]).await;
    assert_eq!(
        (dead, delivered),
        (20, 20),
        "ten rows call, each was used twice, all were delivered"
    );
}

#[tokio::test]
async fn an_update_of_nothing_that_can_be_updated_is_told_and_costs_no_turn() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    upstream.answers("PUT", "/v1/devices/d1", 200, json!({"id": "d1"})).await;
    let _gateway = Gateway::start(&broker, &upstream).await;
    let mut device = broker.device("d1").await;
    for _ in 0..6 {
        for nothing in [json!({}), json!({"firmwareVersion": {"major": 1}, "serial": "A17"})] {
            let answer = device.ask("update", nothing).await;
            assert_eq!(answer.user("status"), "400");
            let error = answer.json();
            assert_eq!(error["code"], "bad_payload");
            let text = error["error"].as_str().unwrap();
            assert!(text.contains("nothing of it can be updated"), "{text}");
        }
    }
    assert_eq!(upstream.calls().await, Vec::<String>::new());
    // All ten of the hour are left, also for what sets a field to nothing.
    for name in (0..9).map(Value::from).chain([Value::Null]) {
        let answer = device.ask("update", json!({"name": name, "serial": "A17"})).await;
        assert_eq!(answer.user("status"), "200", "{name}");
    }
    assert_eq!(device.ask("update", json!({"name": "x"})).await.user("status"), "429");
    let bodies = upstream.requests().await;
    let bodies: Vec<Value> = bodies.iter().map(|request| request.body_json().unwrap()).collect();
    assert_eq!((bodies.len(), &bodies[9]), (10, &json!({"name": null})));
}
