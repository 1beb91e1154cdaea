//! What the gateway shows the API of its own: secrets from files, in paths and headers, that change while it runs.

use std::{fs, os::unix::fs::symlink, path::Path, time::Duration};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::sleep;
use wiremock::{Request, matchers};

use crate::harness::{Broker, Device, Gateway, Options, Upstream, eventually};

/// A folder of secrets as Kubernetes mounts one: `token` is a link into what another link points to.
struct Mount {
    dir: TempDir,
    versions: u32,
}

impl Mount {
    fn new(token: &str) -> Self {
        let mut mount = Self { dir: tempfile::tempdir().unwrap(), versions: 0 };
        mount.swap(token);
        symlink("data/token", mount.file()).unwrap();
        mount
    }

    fn file(&self) -> std::path::PathBuf {
        self.dir.path().join("token")
    }

    /// Another folder takes the place of the one before.
    fn swap(&mut self, token: &str) {
        self.versions += 1;
        let version = format!("version-{}", self.versions);
        let at = |name: &str| self.dir.path().join(name);
        fs::create_dir(at(&version)).unwrap();
        fs::write(at(&version).join("token"), format!("{token}\n")).unwrap();
        symlink(&version, at("new")).unwrap();
        fs::rename(at("new"), at("data")).unwrap();
    }
}

/// A table with these lines in `[upstream]`, and these rows.
fn table(file: &Path, upstream: &str, rows: &str) -> String {
    format!(
        "[secrets]\ntoken_file = {:?}\n[upstream]\nurl = \"http://hub\"\n{upstream}\n{rows}",
        file.display().to_string()
    )
}

const ROWS: &str = r#"
[[route]]
name    = "up"
on      = "v1/device/{device_id}/up"
call    = "POST /bot{$token}/{device_id}?t={$token}"
headers = { X-Source = "gw {device_id}", X-Key = "{$key}" }
then    = ["news"]
[[route]]
name = "own"
on   = "v1/device/{device_id}/own"
call = "GET /{$key}/own"
[[fetch]]
name    = "news"
call    = "GET /news"
push    = "v1/device/{device_id}/news"
headers = { Accept = "" , X-Key = "Key {$key}" }
"#;

async fn start(broker: &Broker, upstream: &Upstream, config: &str) -> Gateway {
    upstream.responds_to(matchers::any(), 200, json!({})).await;
    Options::default().config(config).start(broker, upstream).await
}

/// Sends until the API has seen what this looks for.
async fn sends_until(
    device: &mut Device,
    upstream: &Upstream,
    what: &str,
    seen: impl Fn(&Request) -> bool,
) {
    let device = tokio::sync::Mutex::new(device);
    eventually(what, || async {
        device.lock().await.send("up", json!({})).await;
        upstream.requests().await.last().is_some_and(&seen).then_some(())
    })
    .await;
}

fn header<'r>(request: &'r Request, name: &str) -> &'r str {
    request.headers.get(name).map_or("", |value| value.to_str().unwrap())
}

#[tokio::test]
async fn secrets_go_into_paths_and_headers_and_change_with_their_file() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let mut mount = Mount::new("one:1");
    let headers = r#"headers = { X-Token = "Token {$token}", Accept = "text/csv" }"#;
    let gateway = start(&broker, &upstream, &table(&mount.file(), headers, ROWS)).await;
    let mut device = broker.device("d1").await;
    device.send("up", json!({})).await;
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["delivered"], 1).await;
    let requests = upstream.requests().await;
    let [up, news] = requests.as_slice() else { panic!("{requests:?}") };
    assert_eq!((up.url.path(), up.url.query()), ("/botone%3A1/d1", Some("t=one%3A1")));
    for (name, value) in [
        ("x-token", "Token one:1"),
        ("accept", "text/csv"),
        ("x-source", "gw d1"),
        ("x-key", "key-of-d1"),
        ("authorization", ""),
    ] {
        assert_eq!(header(up, name), value, "{name}");
    }
    assert_eq!((header(news, "accept"), header(news, "x-source")), ("*/*", ""));
    assert_eq!((header(news, "x-token"), header(news, "x-key")), ("Token one:1", "Key key-of-d1"));

    device.send("own", json!({})).await;
    upstream.arrived("GET /key-of-d1/own", 1).await;

    mount.swap("two:2");
    sends_until(&mut device, &upstream, "the new token", |request| {
        header(request, "x-token") == "Token two:2"
    })
    .await;
    // Who takes the file away breaks nothing, and hears of it.
    fs::remove_file(mount.file()).unwrap();
    let mut sent = 0;
    while gateway.metric("mqtt_rest_gateway_secret_errors_total", &["secret=\"token\""]).await == 0
    {
        device.send("up", json!({})).await;
        sent += 1;
        assert!(sent < 3000, "it is looked at every five seconds");
        sleep(Duration::from_millis(10)).await;
    }
    gateway.logs("its file cannot be used; the value read before stays").await;
    device.send("up", json!({})).await;
    gateway.settles().await;
    let requests = upstream.requests().await;
    assert_eq!(header(requests.last().unwrap(), "x-token"), "Token two:2");
}

#[tokio::test]
async fn what_cannot_stand_in_a_header_refuses_the_message() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let mount = Mount::new("one");
    let gateway = start(&broker, &upstream, &table(&mount.file(), "", ROWS)).await;
    let mut device = broker.device("d\u{fc}").await;
    let mut message = device.message("up", "{}");
    message.props.user[1].1 = "k".to_owned();
    device.publish(message).await;
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["bad_header"], 1).await;
    // As a segment of its own a key may be anything but dots.
    let mut message = device.message("own", "{}");
    message.props.user[1].1 = "..".to_owned();
    device.publish(message).await;
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["bad_segment"], 1).await;
    assert_eq!(upstream.requests().await.len(), 0);
}

/// A row for devices without keys, and the token that goes along.
const KEYLESS: &str = r#"
[[route]]
name        = "up"
on          = "v1/device/{device_id}/up"
call        = "POST /{device_id}/up"
credentials = "none"
retry       = "never"
headers     = { X-Token = "Token {$token}" }
"#;

/// A gateway with a deadline that passes many times over, for an API that takes the token `one`.
async fn keyless(mount: &Mount) -> (Broker, Upstream, Gateway) {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    upstream.responds_to(matchers::any(), 401, json!({"error": "token"})).await;
    takes(&upstream, "one").await;
    let gateway = Options::default()
        .config(&table(&mount.file(), "", KEYLESS))
        .set("UPSTREAM_DEADLINE", "300ms")
        .set("UPSTREAM_ATTEMPT_TIMEOUT", "200ms")
        .set("UPSTREAM_BREAKER_PROBE", "50ms")
        .set("UPSTREAM_BREAKER_PROBE_MAX", "100ms")
        .start(&broker, &upstream)
        .await;
    (broker, upstream, gateway)
}

/// This token is in order, others are as they were.
async fn takes(upstream: &Upstream, token: &str) {
    let right = matchers::header("x-token", format!("Token {token}").as_str());
    upstream.responds_to(right, 200, json!({})).await;
}

#[tokio::test]
async fn a_token_that_was_replaced_costs_one_more_attempt() {
    let mut mount = Mount::new("one");
    let (broker, upstream, gateway) = keyless(&mount).await;
    let mut device = broker.device("d1").await;
    device.send("up", json!({})).await;
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["delivered"], 1).await;
    mount.swap("two");
    upstream.responds_to(matchers::any(), 401, json!({})).await;
    takes(&upstream, "two").await;
    device.send("up", json!({})).await;
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["delivered"], 2).await;
    gateway.metric_is("mqtt_rest_gateway_attempts_total", &["status=\"401\""], 1).await;
    gateway.metric_is("mqtt_rest_gateway_upstream_outages_total", &[], 0).await;
}

#[tokio::test]
async fn credentials_that_are_refused_hold_everything_until_they_are_replaced() {
    let mut mount = Mount::new("one");
    let (broker, upstream, gateway) = keyless(&mount).await;
    let mut dead = broker.observer("mqtt-rest-gateway/dead-letter/#").await;
    upstream.responds_to(matchers::any(), 401, json!({})).await;
    let mut d1 = broker.device("d1").await;
    d1.send("up", json!({"n": 0})).await;
    // One device alone is enough to see it, whatever the probe is answered.
    eventually("it is down", || async {
        let (status, reasons) = gateway.get("/readyz").await;
        let told = reasons.contains("the upstream refuses our credentials: it answers 401");
        (status == 503 && told).then_some(())
    })
    .await;
    let mut d2 = broker.device("d2").await;
    for n in 1..4 {
        d1.send("up", json!({"n": n})).await;
        d2.send("up", json!({"n": n})).await;
    }
    // Longer than the deadline.
    sleep(Duration::from_millis(700)).await;
    dead.silent().await;
    gateway.metric_is("mqtt_rest_gateway_messages_pending", &[], 7).await;
    gateway.metric_is("mqtt_rest_gateway_upstream_up", &[], 0).await;

    mount.swap("two");
    takes(&upstream, "two").await;
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["delivered"], 7).await;
    gateway.ready().await;
    dead.silent().await;
    let requests = upstream.requests().await;
    let taken = requests.iter().filter(|request| header(request, "x-token") == "Token two");
    for (device, expected) in [("d1", &[0, 1, 2, 3][..]), ("d2", &[1, 2, 3])] {
        let own = taken.clone().filter(|request| request.url.path() == format!("/{device}/up"));
        let numbers: Vec<_> = own.map(|r| r.body_json::<Value>().unwrap()["n"].as_u64()).collect();
        assert_eq!(numbers, expected.iter().map(|n| Some(*n)).collect::<Vec<_>>(), "{device}");
    }
}
