//! Kept dead letters are sent through again, and none is lost on the way.

use std::{fs, path::Path};

use serde_json::json;

use crate::harness::{Broker, Gateway, Upstream, program};

async fn replay(broker: &Broker, arguments: &[&str]) -> (i32, String) {
    let mut command = program();
    command.args(["replay", "--quiet", "1s"]).args(arguments);
    let output = command.env("GATEWAY_BROKER_URL", broker.url()).output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    eprintln!("{text}{}", String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap(), text)
}

fn count(text: &str, word: &str) -> usize {
    text.lines().filter(|line| line.starts_with(word)).count()
}

/// Letters of three messages of d1 and one of d2, kept since the first replay.
async fn letters(broker: &Broker, upstream: &Upstream) -> Gateway {
    let gateway = Gateway::start(broker, upstream).await;
    let (code, text) = replay(broker, &[]).await;
    assert!(code == 0 && text.contains("from now on the broker keeps dead letters"), "{text}");
    for id in ["d1", "d2"] {
        let path = format!("/v1/devices/{id}/telemetry");
        upstream.answers("POST", &path, 422, json!({"error": "too hot"})).await;
    }
    let (mut d1, mut d2) = (broker.device("d1").await, broker.device("d2").await);
    for n in 0..3 {
        let mut message = d1.message("telemetry", json!({"n": n}).to_string());
        message.props.user.push(("topic".into(), "forged".into()));
        d1.publish(message).await;
    }
    d2.send("telemetry", json!({"n": 9})).await;
    gateway.metric_is("mqtt_rest_gateway_dead_letters_total", &[r#"kept="yes""#], 4).await;
    gateway
}

fn keys(dir: &Path, lines: &str) -> String {
    let file = dir.join("keys");
    fs::write(&file, lines).unwrap();
    file.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn what_was_refused_is_delivered_when_the_api_is_well() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let gateway = letters(&broker, &upstream).await;
    let dir = tempfile::tempdir().unwrap();
    let some = keys(dir.path(), "d1,key-of-d1\n");
    upstream.answers("POST", "/v1/devices/d1/telemetry", 200, json!({})).await;

    let (code, text) = replay(&broker, &["--dry-run", "--keys", &some]).await;
    assert!(code == 0 && text.contains("0 delivered, 0 dropped, 4 kept"), "{text}");
    let before = upstream.requests().await.len();

    let (code, text) = replay(&broker, &["--keys", &some]).await;
    assert_eq!((code, count(&text, "delivered"), count(&text, "kept")), (1, 3, 1), "{text}");
    assert!(text.contains("letters hold no keys"), "{text}");
    let requests = upstream.requests().await;
    let sent: Vec<_> = requests.iter().skip(before).collect();
    let bodies: Vec<_> = sent.iter().map(|r| String::from_utf8_lossy(&r.body)).collect();
    assert_eq!(bodies, [r#"{"n":0}"#, r#"{"n":1}"#, r#"{"n":2}"#], "in order, each once");
    assert!(sent.iter().all(|r| r.headers["authorization"] == "key-of-d1"));

    // Refused again: it stays, and is not there twice for the letter that this made.
    let all = keys(dir.path(), "d1,key-of-d1\nd2,key-of-d2\n");
    for _ in 0..2 {
        let (code, text) = replay(&broker, &["--keys", &all]).await;
        assert_eq!((code, count(&text, "refused"), text.lines().count()), (1, 1, 2), "{text}");
        assert!(text.contains("422") && text.contains("too hot"), "{text}");
    }
    upstream.answers("POST", "/v1/devices/d2/telemetry", 200, json!({})).await;
    let (code, text) = replay(&broker, &["--keys", &all]).await;
    assert!(code == 0 && text.contains("1 delivered, 0 dropped, 0 kept"), "{text}");
    let (code, text) = replay(&broker, &["--keys", &all]).await;
    assert!(code == 0 && text.contains("0 delivered, 0 dropped, 0 kept"), "{text}");
    assert!(!gateway.log().contains("key-of-"));
}

#[tokio::test]
async fn without_a_gateway_nothing_is_lost() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let mut gateway = letters(&broker, &upstream).await;
    gateway.stop().await;
    let (code, text) = replay(&broker, &[]).await;
    assert_eq!((code, count(&text, "kept")), (1, 4), "{text}");

    let (code, _) = replay(&broker, &["--client-id", "mqtt-rest-gateway"]).await;
    assert_eq!(code, 1, "the gateway's session is not for this");
    let _gateway = Gateway::start(&broker, &upstream).await;
    let dir = tempfile::tempdir().unwrap();
    let all = keys(dir.path(), "d1,key-of-d1\nd2,key-of-d2\n");
    let (code, text) = replay(&broker, &["--drop-refused", "--keys", &all]).await;
    assert!(code == 0 && text.contains("0 delivered, 4 dropped, 0 kept"), "{text}");
}
