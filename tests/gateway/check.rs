//! `check --connect`: what it says is what the gateway will meet.

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    fake_broker::{FakeBroker, Link},
    harness::{Broker, Options, Upstream, program},
    wire::{Packet, Props},
};

const LETTERS: &str = "mqtt-rest-gateway/dead-letter/#";

/// What may be done by users who are called like this.
const ACL: &str = "
pattern readwrite v1/device/%u/#
user good
topic readwrite v1/device/+/#
topic write mqtt-rest-gateway/dead-letter/#
user nosub
topic write v1/device/+/#
topic write mqtt-rest-gateway/dead-letter/#
user nopub
topic read v1/device/+/#
user noletters
topic readwrite v1/device/+/#
user onerow
topic read v1/device/+/telemetry
topic write v1/device/+/#
topic write mqtt-rest-gateway/dead-letter/#
user dead-letters
topic read mqtt-rest-gateway/dead-letter/#
";

async fn broker() -> (TempDir, Broker) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("acl");
    fs::write(&file, ACL).unwrap();
    let broker = Broker::configured(&format!("acl_file {}", file.display())).await;
    (dir, broker)
}

/// The exit code of `check --connect` for this user, what it prints, and what it complains of.
async fn check(broker: &str, user: &str, upstream: &str) -> (i32, String, String) {
    let mut check = program();
    check.args(["check", "--connect"]).env("GATEWAY_BROKER_URL", broker);
    check.env("GATEWAY_BROKER_USERNAME", user).env("GATEWAY_UPSTREAM_URL", upstream);
    let output = check.output().await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[tokio::test]
async fn a_gateway_that_may_do_all_passes_and_one_that_runs_is_not_disturbed() {
    let (_dir, broker) = broker().await;
    let upstream = Upstream::start().await;
    upstream.answers("POST", "/v1/devices/d1/telemetry", 200, json!({})).await;
    let gateway = Options::default().set("BROKER_USERNAME", "good").start(&broker, &upstream).await;
    let (code, out, _) = check(&broker.url(), "good", &upstream.url()).await;
    for line in [
        "accepts us, as `mqtt-rest-gateway-check`",
        "subscriptions        12 accepted",
        "reading              12 of 12 filters brought a message",
        "writing              9 of 9 topics of a device",
        "dead letters         taken, and nobody is subscribed",
        "warning: nobody is subscribed to dead letters",
        "answers 404 Not Found",
    ] {
        assert!(out.contains(line), "{line:?} is missing: {out}");
    }
    assert_eq!(code, 0, "{out}");
    let mut reader = broker.login("reader", "dead-letters", LETTERS).await;
    let (code, out, _) = check(&broker.url(), "good", &upstream.url()).await;
    assert!(code == 0 && !out.contains("nobody is subscribed to"), "{out}");
    assert_eq!(reader.next().await.user("via"), "mqtt-rest-gateway-check");
    // What the gateway was given it knew for another gateway's; its own messages came and went.
    let mut device = broker.login("d1", "d1", "v1/device/d1/#").await;
    device.ask("telemetry", json!({})).await;
    gateway.settles().await;
    gateway.metric_is("mqtt_rest_gateway_broker_connects_total", &[], 1).await;
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["delivered"], 1).await;
    let settled = gateway.metric("mqtt_rest_gateway_messages_settled_total", &[]).await;
    let loops = gateway.metric("mqtt_rest_gateway_messages_settled_total", &["loop"]).await;
    assert_eq!(settled, loops + 1);
    assert_eq!(upstream.requests().await.iter().filter(|r| r.url.path() != "/").count(), 1);
}

#[tokio::test]
async fn what_the_access_list_denies_is_told_and_fails() {
    let (_dir, broker) = broker().await;
    let upstream = Upstream::start().await.url();
    let check = async |user| check(&broker.url(), user, &upstream).await;
    // Mosquitto grants the subscriptions all the same.
    let (code, out, error) = check("nosub").await;
    assert!(out.contains("12 accepted") && out.contains("0 of 12 filters"), "{out}");
    assert!(error.contains("did not come back") && error.contains("allow reading"), "{error}");
    assert_eq!(code, 1);
    let (code, out, error) = check("onerow").await;
    assert!(out.contains("1 of 12 filters brought a message"), "{out}");
    assert!(!error.contains("/telemetry") && error.contains("/update"), "{error}");
    assert_eq!(code, 1);
    let (code, out, error) = check("nopub").await;
    assert!(out.contains("writing              0 of 9"), "{out}");
    assert!(out.contains("not proven, since we may not write there"), "{out}");
    assert!(error.contains("errors (NotAuthorized)"), "{error}");
    assert!(error.contains("dead letters are refused, and would be lost"), "{error}");
    assert_eq!(code, 1);
    let (code, _, error) = check("noletters").await;
    assert!(error.contains("dead letters are refused") && !error.contains("replies"), "{error}");
    assert_eq!(code, 1);
}

/// The exit code of a `check` with `--json`, and what it prints; it complains nowhere else.
async fn found(arguments: &[&str], env: &[(&str, &str)]) -> (i32, Value) {
    let mut check = program();
    check.args(arguments).arg("--json").envs(env.iter().copied());
    let output = check.output().await.unwrap();
    assert!(output.stderr.is_empty(), "{output:?}");
    (output.status.code().unwrap(), serde_json::from_slice(&output.stdout).unwrap())
}

#[tokio::test]
async fn what_is_found_is_one_object_for_programs() {
    let (_dir, broker) = broker().await;
    let upstream = Upstream::start().await;
    let (broker, api) = (broker.url(), upstream.url());
    let env = |user| {
        let broker = [("GATEWAY_BROKER_URL", &*broker), ("GATEWAY_BROKER_USERNAME", user)];
        [broker[0], broker[1], ("GATEWAY_UPSTREAM_URL", &*api)]
    };
    let (code, found_good) = found(&["check", "--connect"], &env("good")).await;
    assert_eq!(
        (code, &found_good["valid"], &found_good["problems"]),
        (0, &json!(true), &json!([]))
    );
    assert_eq!((&found_good["routes"], &found_good["fetches"]), (&json!(12), &json!(9)));
    assert_eq!(found_good["broker"]["subscriptions"], json!(["12 accepted"]));
    assert_eq!(found_good["upstream"], json!(format!("{api}/ answers 404 Not Found")));
    assert!(found_good["warnings"].to_string().contains("nobody is subscribed to dead letters"));
    let (code, denied) = found(&["check", "--connect"], &env("nosub")).await;
    assert_eq!((code, &denied["valid"]), (1, &json!(true)));
    assert!(denied["problems"][0].as_str().unwrap().contains("allow reading"), "{denied}");
    // Without --connect nobody is asked; what is wrong has its place.
    let (code, offline) = found(&["check"], &env("nosub")).await;
    assert_eq!((code, &offline["broker"], &offline["upstream"]), (0, &Value::Null, &Value::Null));
    let (code, wrong) = found(&["check"], &[("GATEWAY_LOG_LEVEL", "verbose")]).await;
    assert_eq!((code, &wrong["valid"]), (78, &json!(false)));
    assert_eq!(wrong["mistakes"][0]["place"], "GATEWAY_LOG_LEVEL");
    let (code, wrong) = found(&["check", "--config", "no/such.toml"], &[]).await;
    assert_eq!((code, &wrong["mistakes"][0]["place"]), (78, &json!("no/such.toml")));
}

#[tokio::test]
async fn the_token_endpoint_is_asked() {
    let (dir, broker) = broker().await;
    let upstream = Upstream::start().await;
    let endpoint = format!("{}/oauth/token", upstream.url());
    let config = format!(
        "[upstream]\nurl = \"{}\"\n[upstream.auth.oauth2]\ntoken_url = \"{endpoint}\"\nclient_id = \"g\"\n\
         client_secret = \"{{$s}}\"\n[secrets]\ns = \"open-sesame\"\n[[route]]\nname = \"up\"\n\
         on = \"v1/device/{{device_id}}/up\"\ncall = \"POST /up\"\ncredentials = \"none\"\n\
         [device]\ncapture = \"device_id\"\n",
        upstream.url()
    );
    let file = dir.path().join("gateway.toml");
    fs::write(&file, config).unwrap();
    let broker = broker.url();
    let check = async || {
        let mut check = program();
        check.args(["check", "--connect"]).arg("--config").arg(&file);
        check.env("GATEWAY_BROKER_URL", &broker).env("GATEWAY_BROKER_USERNAME", "good");
        let output = check.output().await.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    };
    let grant = json!({"access_token": "t", "token_type": "bearer"});
    upstream.answers("POST", "/oauth/token", 200, grant).await;
    let (code, out, error) = check().await;
    assert_eq!(code, 0, "{out}{error}");
    assert!(out.contains(&format!("token endpoint: {endpoint} gives a token")), "{out}");
    upstream.answers("POST", "/oauth/token", 401, json!({"error": "invalid_client"})).await;
    let (code, _, error) = check().await;
    let why = "it answers 401 Unauthorized, invalid_client; see [upstream.auth.oauth2]";
    assert!(code == 1 && error.contains(&endpoint) && error.contains(why), "{error}");
    assert!(!error.contains("open-sesame"));
}

#[tokio::test]
async fn an_api_that_is_down_fails_and_is_named() {
    let (_dir, broker) = broker().await;
    let upstream = Upstream::start().await;
    upstream.answers("GET", "/", 503, json!({})).await;
    let (code, _, error) = check(&broker.url(), "good", &upstream.url()).await;
    assert!(error.contains(&format!("{}/ answers 503", upstream.url())), "{error}");
    assert_eq!(code, 1);
}

/// Acknowledges and answers whatever comes, until the client leaves.
pub async fn obliges(link: &mut Link) {
    while let Some(packet) = link.packet().await {
        match packet {
            Packet::Publish(publish) => link.puback(publish.packet_id).await,
            Packet::Disconnect { .. } => return,
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_broker_that_knows_one_client_id_only_is_checked_under_it() {
    let broker = FakeBroker::start().await;
    let (url, upstream) = (broker.url(), Upstream::start().await.url());
    let ((code, out, error), ()) = tokio::join!(check(&url, "good", &upstream), async {
        let mut link = broker.accept().await;
        assert_eq!(link.client_id, "mqtt-rest-gateway-check");
        let props = Props::default();
        link.send(&Packet::ConnAck { session_present: false, reason: 0x85, props }).await;
        let mut link = broker.accept().await;
        assert_eq!(link.client_id, "mqtt-rest-gateway");
        // As EMQX comes: an answer of 1 MiB does not fit, with what stands around it.
        let small = Some(1 << 20);
        let short =
            Props { session_expiry: Some(5), maximum_packet_size: small, ..Props::default() };
        link.connack(true, short).await;
        // There is a session: nothing is subscribed to, and it is not ended.
        obliges(&mut link).await;
    });
    assert_eq!(code, 0, "{out}{error}");
    assert!(out.contains("accepts us, as `mqtt-rest-gateway`\n"), "{out}");
    assert!(out.contains("not tried: there is a session"), "{out}");
    assert!(
        out.contains("warning: the broker keeps the session for 5s only, not for 7days"),
        "{out}"
    );
    assert!(out.contains("warning: the broker takes no packet above 1048576 bytes"), "{out}");
}
