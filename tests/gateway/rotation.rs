//! Certificates and passwords that change while the gateway runs: each is used for the next connection, nothing is lost,
//! and nothing is restarted.

use std::fs;

use serde_json::json;

use crate::{
    certificates::{Certificates, Https},
    harness::{Broker, Gateway, Options, Upstream, eventually, free_port},
};

const DELIVERED: &str = "mqtt_rest_gateway_messages_settled_total";

/// A gateway at this broker with a client id of its own, and with a certificate if there are some.
async fn gateway(
    url: &str,
    id: &str,
    certificates: Option<&Certificates>,
    upstream: &Upstream,
) -> Gateway {
    let mut options = Options::default()
        .set("BROKER_URL", url)
        .set("BROKER_CLIENT_ID", id)
        .set("UPSTREAM_URL", &upstream.url());
    if let Some(certificates) = certificates {
        options = options
            .set("BROKER_CA_FILE", &certificates.path("ca.pem"))
            .set("BROKER_CERT_FILE", &certificates.path("client.pem"))
            .set("BROKER_KEY_FILE", &certificates.path("client.key"));
    }
    let gateway = options.spawn().await;
    gateway.ready().await;
    gateway
}

/// It has connected so often, and the broker has kept its session.
async fn has_connected(gateway: &Gateway, times: u64) {
    gateway.metric_reaches("mqtt_rest_gateway_broker_connects_total", &[], times).await;
    gateway.ready().await;
    gateway.metric_is("mqtt_rest_gateway_broker_connects_total", &[], times).await;
    gateway.metric_is("mqtt_rest_gateway_broker_sessions_lost_total", &[], 0).await;
}

/// It looks at its files now.
async fn looks(gateway: &Gateway) {
    let times = || gateway.log().matches("SIGHUP: looked at").count();
    let before = times();
    gateway.signal("HUP");
    eventually("a look", || async { (times() > before).then_some(()) }).await;
}

#[tokio::test]
async fn new_certificates_are_used_on_every_way_to_the_broker() {
    let certificates = Certificates::new();
    let ports = [(); 5].map(|()| free_port());
    let asks = "require_certificate true";
    let web = "require_certificate true\nprotocol websockets";
    let listeners = [
        certificates.listener("127.0.0.1", ports[0], asks),
        certificates.listener("::1", ports[1], asks),
        certificates.listener("127.0.0.1", ports[2], web),
        certificates.listener("::1", ports[3], web),
        format!("listener {} ::1\nprotocol websockets", ports[4]),
    ];
    let mut broker = Broker::configured(&listeners.join("\n")).await;
    let upstream = Upstream::start().await;
    upstream.answers("POST", "/v1/devices/d1/telemetry", 200, json!({})).await;
    let urls = [
        format!("mqtts://localhost:{}", ports[0]),
        format!("mqtts://[::1]:{}", ports[1]),
        format!("wss://localhost:{}/mqtt", ports[2]),
        format!("wss://[::1]:{}/mqtt", ports[3]),
        format!("ws://[::1]:{}/mqtt", ports[4]),
    ];
    let mut gateways = Vec::new();
    for (n, url) in urls.iter().enumerate() {
        let certificates = (!url.starts_with("ws:")).then_some(&certificates);
        gateways.push(gateway(url, &format!("gateway-{n}"), certificates, &upstream).await);
    }
    broker.device("d1").await.send("telemetry", json!({})).await;
    for gateway in &gateways {
        gateway.metric_is(DELIVERED, &["delivered"], 1).await;
    }
    // A living connection is left alone, whatever changes.
    certificates.renew();
    for gateway in &gateways {
        looks(gateway).await;
    }
    broker.device("d1").await.send("telemetry", json!({})).await;
    for gateway in &gateways {
        gateway.metric_is(DELIVERED, &["delivered"], 2).await;
        has_connected(gateway, 1).await;
    }
    broker.stop().await;
    // Once more, so that only a look at the new connection can have found it.
    certificates.renew();
    broker.start_again().await;
    for gateway in &gateways {
        has_connected(gateway, 2).await;
    }
    broker.device("d1").await.send("telemetry", json!({})).await;
    for gateway in &gateways {
        gateway.metric_is(DELIVERED, &["delivered"], 3).await;
    }
}

#[tokio::test]
async fn half_of_a_new_pair_is_not_taken() {
    let certificates = Certificates::new();
    let port = free_port();
    let listener = certificates.listener("127.0.0.1", port, "require_certificate true");
    let mut broker = Broker::configured(&listener).await;
    let upstream = Upstream::start().await;
    let url = format!("mqtts://127.0.0.1:{port}");
    let gateway = gateway(&url, "gateway", Some(&certificates), &upstream).await;
    let (certificate, key) = certificates.sign("client", |_| ());
    certificates.change(&[("client.pem".to_owned(), certificate)]);
    gateway.signal("HUP");
    gateway.logs("certificate files cannot be used; those read before stay").await;
    gateway.logs("this key does not belong to the certificate").await;
    broker.stop().await;
    broker.start_again().await;
    has_connected(&gateway, 2).await;
    assert!(!gateway.log().contains("read again"), "{}", gateway.log());
    certificates.change(&[("client.key".to_owned(), key)]);
    broker.stop().await;
    broker.start_again().await;
    has_connected(&gateway, 3).await;
    gateway.logs("read again, since they have changed").await;
}

#[tokio::test]
async fn a_new_password_is_shown_at_the_next_connection() {
    let dir = tempfile::tempdir().unwrap();
    let (passwords, password) = (dir.path().join("passwords"), dir.path().join("password"));
    let set = |text: &str| {
        let mut command = std::process::Command::new("mosquitto_passwd");
        let command = command.args(["-c", "-b"]).arg(&passwords).args(["gateway", text]);
        assert!(command.status().unwrap().success());
        fs::write(&password, format!("{text}\n")).unwrap();
    };
    set("first");
    let lines = format!("per_listener_settings false\npassword_file {}", passwords.display());
    let mut broker = Broker::configured(&lines).await;
    let gateway = Options::default()
        .set("BROKER_URL", &broker.url())
        .set("BROKER_USERNAME", "gateway")
        .set("BROKER_PASSWORD_FILE", password.to_str().unwrap())
        .spawn()
        .await;
    gateway.ready().await;
    broker.stop().await;
    set("s3cond");
    broker.start_again().await;
    has_connected(&gateway, 2).await;
    // What is being written is no password.
    fs::write(&password, "").unwrap();
    broker.stop().await;
    broker.start_again().await;
    has_connected(&gateway, 3).await;
    gateway.logs("password_file cannot be used; the password read before stays").await;
    let log = gateway.log();
    assert!(!log.contains("s3cond") && !log.contains("NotAuthorized"), "{log}");
}

#[tokio::test]
async fn the_upstream_is_spoken_to_with_new_certificates_at_once() {
    let certificates = Certificates::new();
    let broker = Broker::start().await;
    for (address, host) in [("127.0.0.1", "localhost"), ("::1", "[::1]")] {
        let https = Https::start(&certificates, address, true).await;
        let gateway = Options::default()
            .set("BROKER_URL", &broker.url())
            .set("UPSTREAM_URL", &https.url(host))
            .set("UPSTREAM_CA_FILE", &certificates.path("ca.pem"))
            .set("UPSTREAM_CERT_FILE", &certificates.path("client.pem"))
            .set("UPSTREAM_KEY_FILE", &certificates.path("client.key"))
            .spawn()
            .await;
        gateway.ready().await;
        let mut device = broker.device("d1").await;
        assert_eq!(device.ask("telemetry", json!({})).await.json(), json!("ok"));
        for _ in 0..2 {
            certificates.renew();
            https.renew(&certificates);
            looks(&gateway).await;
            assert_eq!(device.ask("telemetry", json!({})).await.json(), json!("ok"));
        }
        // Not one attempt went on with what was read before.
        gateway.metric_is("mqtt_rest_gateway_attempts_total", &["unreachable"], 0).await;
        gateway.metric_is("mqtt_rest_gateway_attempts_total", &["200"], 3).await;
        // A broken file changes nothing.
        certificates.change(&[("ca.pem".to_owned(), "half".to_owned())]);
        gateway.signal("HUP");
        gateway.logs("no certificate in this file").await;
        assert_eq!(device.ask("telemetry", json!({})).await.json(), json!("ok"));
        certificates.renew();
    }
}

#[tokio::test]
async fn a_certificate_that_ends_soon_is_told() {
    let certificates = Certificates::new();
    let soon = rcgen::date_time_ymd(2026, 1, 1);
    let (certificate, key) = certificates.sign("client", |params| params.not_after = soon);
    certificates.change(&[("client.pem".to_owned(), certificate), ("client.key".to_owned(), key)]);
    let gateway = Options::default()
        .set("BROKER_URL", "mqtts://127.0.0.1:1")
        .set("BROKER_CA_FILE", &certificates.path("ca.pem"))
        .set("BROKER_CERT_FILE", &certificates.path("client.pem"))
        .set("BROKER_KEY_FILE", &certificates.path("client.key"))
        .spawn()
        .await;
    gateway.logs("[broker] cert_file: this certificate has ended, at 2026-01-01T00:00:00Z").await;
}
