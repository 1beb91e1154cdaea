//! A new API is a new `config.toml`: other topics, other verbs, another header, two captures in one
//! path, and not one word of it in the Rust code.

use serde_json::{Value, json};

use crate::harness::{Broker, Options, Upstream, run};

const CONFIG: &str = include_str!("../../examples/plant.toml");

#[tokio::test]
async fn the_example_of_another_api_can_be_checked_and_explained_as_it_says() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/plant.toml");
    let (code, out, error) = run(&["--config", file, "check"], "").await;
    assert_eq!((code, error.as_str()), (0, ""), "{out}");
    let explain = ["--config", file, "explain", "plant/north/s9/reading", "--payload", "-"];
    let properties = ["--property", "sensor-id=s9", "--property", "token=t0ken"];
    let (code, out, _) = run(&[&explain[..], &properties].concat(), r#"{"v": 21.5}"#).await;
    assert_eq!(code, 0);
    for line in [
        "PATCH https://plant.example.com/api/sites/north/sensors/s9",
        r#"{"value":21.5,"unit":"C"}"#,
    ] {
        assert!(out.contains(line), "{line} is not in {out}");
    }
}

#[tokio::test]
async fn another_api_is_another_table() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    upstream
        .answers("PATCH", "/api/sites/north%201/sensors/s%252F9", 200, json!({"stale": true}))
        .await;
    let settings = json!([{"key": 1, "rate": 5}, {"key": "b", "rate": 6}]);
    upstream.answers("GET", "/api/sites/north%201/sensors/s%252F9/settings", 200, settings).await;
    upstream.answers("DELETE", "/api/sites/north%201/sensors/s%252F9", 500, json!({})).await;
    let options = Options::default().config(CONFIG).set("BROKER_URL", &broker.url());
    let gateway = options.set("UPSTREAM_URL", &format!("{}/api/", upstream.url())).spawn().await;
    gateway.ready().await;

    let mut dead = broker.listener("dead", "lost/#").await;
    let mut sensor = broker.listener("s9", "plant/north 1/s%2F9/#").await;
    let mut message = sensor.message("x", r#"{"v": 21.50}"#);
    message.topic = "plant/north 1/s%2F9/reading".into();
    message.props.user =
        vec![("sensor-id".into(), "s%2F9".into()), ("token".into(), "t0ken".into())];
    sensor.publish(message.clone()).await;
    let (first, second) = (sensor.next().await, sensor.next().await);
    assert_eq!(first.topic, "plant/north 1/s%2F9/settings");
    assert_eq!(
        (first.json(), first.props.correlation.as_deref()),
        (json!({"key": 1, "rate": 5}), Some(&b"1"[..]))
    );
    assert_eq!(second.props.correlation.as_deref(), Some(&b"b"[..]));
    assert_eq!(second.props.response_topic.as_deref(), Some("plant/north 1/s%2F9/settings/taken"));

    let request = &upstream.requests().await[0];
    assert_eq!(request.method.as_str(), "PATCH");
    assert_eq!(request.url.path(), "/api/sites/north%201/sensors/s%252F9");
    assert_eq!(request.url.query(), Some("source=mqtt"));
    assert_eq!(request.headers["x-api-token"], "Bearer t0ken");
    assert_eq!(request.body_json::<Value>().unwrap(), json!({"value": 21.5, "unit": "C"}));

    // retry = "never": one attempt, and the API's own failure is the answer.
    message.topic = "plant/north 1/s%2F9/retire".into();
    sensor.publish(message).await;
    let reply = sensor.next().await;
    assert_eq!(
        (reply.topic.as_str(), reply.user("status")),
        ("plant/north 1/s%2F9/retired", "500")
    );
    let retires =
        upstream.requests().await.iter().filter(|r| r.method.as_str() == "DELETE").count();
    assert_eq!(retires, 1);
    let letter = dead.next().await;
    assert_eq!((letter.topic.as_str(), letter.user("token")), ("lost/north 1/retire", ""));
}
