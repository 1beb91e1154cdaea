//! Messages that can never be delivered, whatever is tried: each ends as a dead letter, once, and its
//! device goes on.

use serde_json::json;
use wiremock::ResponseTemplate;

use crate::harness::{Broker, Options, Upstream};

/// `"ab" * 9223372036854775807` is more than can be; the filter library by itself panics over it, and the process
/// ends over smaller numbers, over the spaces in 100 kB and over levels that become objects.
const CONFIG: &str = r#"
[upstream]
url = "http://hub"
deadline = "300ms"
attempt_timeout = "200ms"

[[route]]
name  = "body"
on    = "v1/device/{device_id}/body"
call  = "POST /{device_id}/body"
body  = "if .fail then error(\"no\") else {text: (.text * .times)} end"
reply = "v1/device/{device_id}/answers"

[[route]]
name  = "words"
on    = "v1/device/{device_id}/words"
call  = "POST /{device_id}/body"
body  = "{name: (.name | gsub(\" \"; \"_\"))}"
reply = "v1/device/{device_id}/answers"

[[route]]
name  = "levels"
on    = "v1/device/{device_id}/levels"
call  = "POST /{device_id}/body"
body  = "reduce (.path / \"/\" | .[]) as $key (.value; {($key): .})"
reply = "v1/device/{device_id}/answers"

[[route]]
name  = "pairs"
on    = "v1/device/{device_id}/pairs"
call  = "POST /{device_id}/body"
body  = "[.a[] as $a | .b[] | select(.id == $a.id)]"
reply = "v1/device/{device_id}/answers"

[[route]]
name     = "news"
on       = "v1/device/{device_id}/news"
call     = "POST /{device_id}/news"
remember = "if .fail then error(\"no\") else {text: (.text * .times)} end"
then     = [{ fetch = "settings", when = ".stale" }]

[[fetch]]
name    = "settings"
call    = "GET /{device_id}/settings"
push    = "v1/device/{device_id}/settings"
payload = ".text * .times"
"#;

fn too_much() -> serde_json::Value {
    json!({"text": "ab", "times": i64::MAX})
}

#[tokio::test]
async fn a_filter_that_fails_or_costs_too_much_makes_a_dead_letter_and_the_next_message_passes() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    upstream.answers("POST", "/d1/body", 200, json!({"ok": true})).await;
    let mut gateway = Options::default().config(CONFIG).start(&broker, &upstream).await;
    let mut dead = broker.observer("mqtt-rest-gateway/dead-letter/#").await;
    let mut device = broker.device("d1").await;
    let good = json!({"text": "a", "times": 2});
    let objects: Vec<_> = (0..10_000).map(|id| json!({"id": id})).collect();
    let rows = [
        ("body", too_much()),
        ("body", json!({"fail": true})),
        ("body", json!({"text": "ab", "times": 3_000_000_000_u64})),
        ("body", json!({"text": "ab", "times": 600_000})),
        ("words", json!({"name": "a b ".repeat(25_000)})),
        ("levels", json!({"path": "a/".repeat(20_000), "value": 1})),
        ("levels", json!({"path": "a/".repeat(200), "value": 1})),
        ("pairs", json!({"a": objects, "b": objects})),
    ];
    let refused = rows.len() as u64;
    for (topic, payload) in rows {
        device.send(topic, payload.clone()).await;
        device.send("body", good.clone()).await;
        let answer = device.next().await;
        let code = answer.json()["code"].clone();
        assert_eq!((answer.user("status"), code), ("400", json!("bad_payload")));
        let letter = dead.next().await;
        assert_eq!((letter.user("reason"), letter.json()), ("bad_payload", payload));
        assert_eq!(device.next().await.user("status"), "200");
    }
    // What always fails upstream ends after its deadline.
    upstream.responds("POST", "/d1/body", ResponseTemplate::new(500)).await;
    device.send("body", good.clone()).await;
    assert_eq!(device.next().await.json()["code"], "deadline");
    assert_eq!(dead.next().await.user("reason"), "deadline");
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["bad_payload"], refused).await;

    // All of it is acknowledged: nothing comes back, not even to another gateway.
    assert_eq!(gateway.stop().await.code(), Some(0));
    let gateway = Options::default().config(CONFIG).start(&broker, &upstream).await;
    upstream.answers("POST", "/d1/body", 200, json!({})).await;
    device.send("body", good).await;
    assert_eq!(device.next().await.user("status"), "200");
    gateway.metric_is("mqtt_rest_gateway_messages_received_total", &[], 1).await;
    dead.silent().await;
}

#[tokio::test]
async fn an_answer_that_crashes_a_filter_costs_no_more_than_its_push() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let gateway = Options::default().config(CONFIG).start(&broker, &upstream).await;
    let mut dead = broker.observer("mqtt-rest-gateway/dead-letter/#").await;
    let mut device = broker.device("d1").await;
    upstream.answers("GET", "/d1/settings", 200, too_much()).await;
    // What costs too much fails as what fails by itself.
    let bad = [too_much(), json!({"fail": true}), json!({"text": "a", "times": 1, "stale": true})];
    for answer in bad {
        upstream.answers("POST", "/d1/news", 200, answer).await;
        assert_eq!(device.ask("news", json!({})).await.user("status"), "200");
    }
    upstream.answers("GET", "/d1/settings", 200, json!({"text": "ok", "times": 2})).await;
    assert_eq!(device.ask("news", json!({})).await.user("status"), "200");
    assert_eq!(device.next().await.json(), json!("okok"), "the next push comes");
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["delivered"], 4).await;
    gateway.metric_is("mqtt_rest_gateway_filter_errors_total", &[], 2).await;
    dead.silent().await;
}
