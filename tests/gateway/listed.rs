//! Devices that cannot show a key: a file has it, and is read again when it changes.

use std::fs;

use serde_json::json;
use tokio::sync::Mutex;

use crate::harness::{Broker, Device, Options, Upstream, eventually, run};

const CONFIG: &str = r#"
[upstream]
url = "http://hub"

[device]
keys_file = "FILE"

[[route]]
name        = "listed"
on          = "v1/device/{device_id}/listed"
call        = "POST /{device_id}/listed"
credentials = "listed"
"#;

/// Sends a message without properties, as a device does that speaks MQTT 3.1.1.
async fn says_nothing(device: &mut Device) {
    let mut message = device.message("listed", "{}");
    message.props.user.clear();
    device.publish(message).await;
}

#[tokio::test]
async fn a_key_comes_from_the_message_or_from_the_file() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keys.json");
    fs::write(&file, r#"{"d1": "listed-of-d1"}"#).unwrap();
    for device in ["d1", "d2"] {
        upstream.answers("POST", &format!("/{device}/listed"), 200, json!({})).await;
    }
    let options = Options::default().config(&CONFIG.replace("keys_file = \"FILE\"", ""));
    let options = options.set("DEVICE_KEYS_FILE", &file.display().to_string());
    let gateway = options.start(&broker, &upstream).await;
    let (mut d1, mut d2) = (broker.device("d1").await, broker.device("d2").await);
    says_nothing(&mut d1).await;
    upstream.arrived("POST /d1/listed", 1).await;
    d1.send("listed", json!({})).await;
    upstream.arrived("POST /d1/listed", 2).await;
    let keys: Vec<_> =
        upstream.requests().await.iter().map(|r| r.headers["authorization"].clone()).collect();
    assert_eq!(keys, ["listed-of-d1", "key-of-d1"]);
    // Not listed; then it is, and the next message finds it.
    says_nothing(&mut d2).await;
    let error = d2.next().await;
    assert_eq!((error.user("status"), &error.json()["code"]), ("401", &json!("no_credentials")));
    fs::write(&file, r#"{"d1": "listed-of-d1", "d2": "listed-of-d2"}"#).unwrap();
    let d2 = Mutex::new(d2);
    eventually("the file is read again", || async {
        says_nothing(&mut *d2.lock().await).await;
        (upstream.count("POST /d2/listed").await > 0).then_some(())
    })
    .await;
    let last = upstream.requests().await.pop().unwrap();
    assert_eq!(last.headers["authorization"], "listed-of-d2");
    // A file that is broken is said and changes nothing.
    fs::write(&file, "{").unwrap();
    eventually("it is said", || async {
        says_nothing(&mut *d2.lock().await).await;
        gateway.log().contains("the keys read before stay").then_some(())
    })
    .await;
    let failures = gateway.metric("mqtt_rest_gateway_secret_errors_total", &["keys_file"]).await;
    assert!(failures >= 1 && !gateway.log().contains("listed-of"), "{failures}");
}

#[tokio::test]
async fn a_file_without_keys_is_a_mistake() {
    let dir = tempfile::tempdir().unwrap();
    let (file, table) = (dir.path().join("keys.json"), dir.path().join("config.toml"));
    fs::write(&table, CONFIG.replace("FILE", &file.display().to_string())).unwrap();
    for (content, words) in [
        (None, "No such file"),
        (Some("[]"), "line 1: it is no JSON object of a text for each device"),
        (Some(r#"{"d1": "s3cret s3cret"}"#), "the key of `d1` is none"),
    ] {
        if let Some(content) = content {
            fs::write(&file, content).unwrap();
        }
        let (code, out, error) = run(&["--config", table.to_str().unwrap(), "check"], "").await;
        let said = format!("{out}{error}");
        assert_eq!(code, 78, "{said}");
        assert!(said.contains("[device] keys_file: ") && said.contains(words), "{said}");
        assert!(!said.contains("s3cret"), "{said}");
    }
}
