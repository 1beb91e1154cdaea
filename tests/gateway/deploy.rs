//! The shipped Mosquitto files, with nothing changed but paths and port: what works with them, and what
//! one device can do to others.

use std::{fs, process::Command};

use serde_json::json;

use crate::{
    harness::{Broker, Device, Gateway, Options, Upstream, program, telemetry},
    wire::{Packet, Props, Wire},
};

const GATEWAY: &str = "mqtt-rest-gateway";
const READER: &str = "dead-letters";

fn shipped(file: &str) -> String {
    fs::read_to_string(format!("{}/deploy/{file}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// A broker as shipped, with the gateway's user, the reader of dead letters and two devices.
async fn broker(dir: &std::path::Path) -> Broker {
    let (acl, passwords) = (dir.join("acl"), dir.join("passwords"));
    fs::write(&acl, shipped("mosquitto.acl")).unwrap();
    let users = [GATEWAY, READER, "d1", "d2"].map(|user| format!("{user}:{user}\n"));
    fs::write(&passwords, users.concat()).unwrap();
    let hashed = Command::new("mosquitto_passwd").arg("-U").arg(&passwords).status().unwrap();
    assert!(hashed.success());
    let conf = shipped("mosquitto.conf");
    // The harness has a listener and a place for sessions of its own.
    let own = ["listener", "persistence", "autosave"];
    let lines = conf.lines().filter(|line| !own.iter().any(|own| line.starts_with(own)));
    let lines = lines.collect::<Vec<_>>().join("\n");
    let lines = lines.replace("/mosquitto/config/acl", acl.to_str().unwrap());
    let lines = lines.replace("/mosquitto/config/passwords", passwords.to_str().unwrap());
    Broker::configured(&lines).await
}

async fn gateway(broker: &Broker, upstream: &Upstream) -> Gateway {
    let options = Options::default().set("BROKER_USERNAME", GATEWAY);
    options.set("BROKER_PASSWORD", GATEWAY).start(broker, upstream).await
}

async fn device(broker: &Broker, id: &str) -> Device {
    broker.login(id, id, &format!("v1/device/{id}/#")).await
}

#[tokio::test]
async fn the_access_list_lets_each_user_do_its_own_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let (broker, upstream) = (broker(dir.path()).await, Upstream::start().await);
    let gateway = gateway(&broker, &upstream).await;
    let mut d1 = device(&broker, "d1").await;
    let mut reader = broker.login(READER, READER, "mqtt-rest-gateway/dead-letter/#").await;
    let mut spy = broker.login("d2", "d2", "mqtt-rest-gateway/dead-letter/#").await;
    upstream.answers("POST", "/v1/devices/d1/telemetry", 200, json!({"fine": true})).await;
    assert_eq!(d1.ask("telemetry", json!({})).await.json(), json!({"fine": true}));
    upstream.answers("POST", "/v1/devices/d1/config", 422, json!({})).await;
    d1.send("config/update", json!({})).await;
    assert_eq!(reader.next().await.user("reason"), "rejected");
    gateway.metric_is("mqtt_rest_gateway_dead_letters_total", &[r#"kept="yes""#], 1).await;
    spy.silent().await;
}

#[tokio::test]
async fn a_device_cannot_take_the_session_of_the_gateway() {
    let dir = tempfile::tempdir().unwrap();
    let (broker, upstream) = (broker(dir.path()).await, Upstream::start().await);
    upstream.answers("POST", "/v1/devices/d1/telemetry", 200, json!({})).await;
    gateway(&broker, &upstream).await.stop().await;
    let mut d1 = device(&broker, "d1").await;
    for _ in 0..20 {
        d1.send("telemetry", json!({})).await;
    }
    // By its own password, and a client id that everybody knows.
    let _thief = broker.login(GATEWAY, "d2", "v1/device/d2/#").await;
    let _gateway = gateway(&broker, &upstream).await;
    upstream.arrived("POST /v1/devices/d1/telemetry", 20).await;
}

/// What waits for a gateway that is away waits in one queue. More large messages than fit into it must not
/// push the others out.
#[tokio::test]
async fn large_messages_of_one_device_do_not_fill_the_queue_of_all() {
    const LARGE: usize = 15 << 20;
    let dir = tempfile::tempdir().unwrap();
    let (broker, upstream) = (broker(dir.path()).await, Upstream::start().await);
    upstream.answers("POST", "/v1/devices/d2/telemetry", 200, json!({})).await;
    gateway(&broker, &upstream).await.stop().await;
    let bytes = shipped("mosquitto.conf").lines().find_map(|line| {
        line.strip_prefix("max_queued_bytes ").map(|bytes| bytes.parse::<usize>().unwrap())
    });
    for _ in 0..=bytes.unwrap() / LARGE {
        let connect = Packet::Connect {
            client_id: "d1".to_owned(),
            clean_start: true,
            keep_alive: 0,
            username: Some("d1".to_owned()),
            password: Some(b"d1".to_vec()),
            props: Props::default(),
        };
        let mut wire = Wire::connect(broker.port, &connect).await.unwrap();
        // The broker takes it, or ends the connection in the middle of it.
        let _ = wire.send(&Packet::Publish(telemetry(1, "d1", vec![b'1'; LARGE]))).await;
        while let Ok(Some(packet)) = wire.receive().await {
            if matches!(packet, Packet::PubAck { .. }) {
                break;
            }
        }
    }
    let mut d2 = device(&broker, "d2").await;
    for n in 0..100 {
        d2.send("telemetry", json!({ "n": n })).await;
    }
    let _gateway = gateway(&broker, &upstream).await;
    upstream.arrived("POST /v1/devices/d2/telemetry", 100).await;
}

#[tokio::test]
async fn a_check_does_not_cost_the_gateway_its_session() {
    let dir = tempfile::tempdir().unwrap();
    let (broker, upstream) = (broker(dir.path()).await, Upstream::start().await);
    upstream.answers("POST", "/v1/devices/d1/telemetry", 200, json!({})).await;
    gateway(&broker, &upstream).await.stop().await;
    let mut d1 = device(&broker, "d1").await;
    for _ in 0..20 {
        d1.send("telemetry", json!({})).await;
    }
    let mut check = program();
    check.args(["check", "--connect"]).env("GATEWAY_BROKER_URL", broker.url());
    check.env("GATEWAY_BROKER_USERNAME", GATEWAY).env("GATEWAY_BROKER_PASSWORD", GATEWAY);
    let output = check.env("GATEWAY_UPSTREAM_URL", upstream.url()).output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("not tried: there is a session"), "{text}");
    let _gateway = gateway(&broker, &upstream).await;
    upstream.arrived("POST /v1/devices/d1/telemetry", 20).await;
}

#[tokio::test]
async fn dead_letters_are_sent_again_by_the_user_who_keeps_them() {
    let dir = tempfile::tempdir().unwrap();
    let (broker, upstream) = (broker(dir.path()).await, Upstream::start().await);
    let _gateway = gateway(&broker, &upstream).await;
    let (password, keys) = (dir.path().join("password"), dir.path().join("keys"));
    fs::write(&password, format!("{READER}\n")).unwrap();
    fs::write(&keys, "d1,key-of-d1\n").unwrap();
    let replay = async || {
        let mut replay = program();
        replay.args(["replay", "--quiet", "1s", "--client-id", READER, "--username", READER]);
        replay.arg("--password-file").arg(&password).arg("--keys").arg(&keys);
        let output = replay.env("GATEWAY_BROKER_URL", broker.url()).output().await.unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(replay().await.0, Some(0));
    let mut d1 = device(&broker, "d1").await;
    upstream.answers("POST", "/v1/devices/d1/telemetry", 422, json!({})).await;
    d1.send("telemetry", json!({})).await;
    upstream.arrived("POST /v1/devices/d1/telemetry", 1).await;
    upstream.answers("POST", "/v1/devices/d1/telemetry", 200, json!({})).await;
    let (code, text) = replay().await;
    assert!(code == Some(0) && text.contains("1 delivered"), "{text}");
}
