//! Ways to the broker and to the API: TLS, mutual TLS, web sockets, passwords, a proxy.

use std::{
    fs,
    sync::{Arc, Mutex},
};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
};

use crate::certificates::{Certificates, Https};
use crate::harness::{Broker, Gateway, Options, Upstream, eventually, free_port};

/// A message crosses and is answered.
async fn crosses(broker: &Broker, upstream: &Upstream, gateway: &Gateway) {
    gateway.ready().await;
    upstream.answers("POST", "/v1/devices/d1/telemetry", 200, json!({"ok": true})).await;
    let mut device = broker.device("d1").await;
    assert_eq!(device.ask("telemetry", json!({})).await.json(), json!({"ok": true}));
}

#[tokio::test]
async fn mutual_tls_and_web_sockets_lead_to_the_broker() {
    let certificates = Certificates::new();
    let (tls, tls_6, ws, wss) = (free_port(), free_port(), free_port(), free_port());
    let broker = Broker::configured(&format!(
        "{}\n{}\nlistener {ws} 127.0.0.1\nprotocol websockets\n{}",
        certificates.listener("127.0.0.1", tls, "require_certificate true"),
        certificates.listener("::1", tls_6, "require_certificate true"),
        certificates.listener("127.0.0.1", wss, "protocol websockets"),
    ))
    .await;
    let upstream = Upstream::start().await;
    let urls = [
        format!("mqtts://127.0.0.1:{tls}"),
        format!("mqtts://localhost:{tls}"),
        format!("mqtts://[::1]:{tls_6}"),
        format!("ws://127.0.0.1:{ws}/mqtt"),
        format!("wss://localhost:{wss}/mqtt"),
    ];
    for url in urls {
        let mut options =
            Options::default().set("BROKER_URL", &url).set("UPSTREAM_URL", &upstream.url());
        // Certificates without encryption are a mistake.
        if !url.starts_with("ws:") {
            options = options
                .set("BROKER_CA_FILE", &certificates.path("ca.pem"))
                .set("BROKER_CERT_FILE", &certificates.path("client.pem"))
                .set("BROKER_KEY_FILE", &certificates.path("client.key"));
        }
        let mut gateway = options.spawn().await;
        crosses(&broker, &upstream, &gateway).await;
        assert_eq!(gateway.stop().await.code(), Some(0), "{url}");
    }
}

#[tokio::test]
async fn a_broker_that_cannot_be_trusted_is_not_spoken_to() {
    let certificates = Certificates::new();
    let port = free_port();
    let _broker = Broker::configured(&certificates.listener("127.0.0.1", port, "")).await;
    let other = Certificates::new();
    let gateway = Options::default()
        .set("BROKER_URL", &format!("mqtts://127.0.0.1:{port}"))
        .set("BROKER_CA_FILE", &other.path("ca.pem"))
        .spawn()
        .await;
    eventually("the reason", || async {
        let (status, reason) = gateway.get("/readyz").await;
        (status == 503 && reason.contains("certificate") && reason.contains("ca_file"))
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_password_is_taken_or_its_refusal_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("passwords");
    // A hash that `mosquitto_passwd -b FILE gateway right` wrote.
    let status = std::process::Command::new("mosquitto_passwd")
        .args(["-c", "-b", file.to_str().unwrap(), "gateway", "right"])
        .status()
        .unwrap();
    assert!(status.success());
    let lines = format!("per_listener_settings false\npassword_file {}", file.display());
    let broker = Broker::configured(&lines).await;
    let options = |password: &str| {
        Options::default()
            .set("BROKER_URL", &broker.url())
            .set("BROKER_USERNAME", "gateway")
            .set("BROKER_PASSWORD", password)
    };
    let gateway = options("right").spawn().await;
    gateway.ready().await;
    let gateway = options("wrong").spawn().await;
    eventually("the reason", || async {
        gateway
            .get("/readyz")
            .await
            .1
            .contains("check client id, user name and password")
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_upstream_is_trusted_by_its_certificate() {
    let certificates = Certificates::new();
    let broker = Broker::start().await;
    let url = Https::start(&certificates, "127.0.0.1", false).await.url("localhost");
    let options = || Options::default().set("BROKER_URL", &broker.url()).set("UPSTREAM_URL", &url);
    let mut device = broker.device("d1").await;
    let mut gateway = options().set("UPSTREAM_CA_FILE", &certificates.path("ca.pem")).spawn().await;
    gateway.ready().await;
    let answer = device.ask("telemetry", json!({})).await;
    assert_eq!((answer.user("status"), answer.json()), ("200", json!("ok")));
    gateway.stop().await;
    let other = Certificates::new();
    let gateway = options().set("UPSTREAM_CA_FILE", &other.path("ca.pem")).spawn().await;
    gateway.ready().await;
    device.send("telemetry", json!({})).await;
    eventually("the reason", || async {
        let reason = gateway.get("/readyz").await.1;
        (reason.contains("upstream: down") && reason.contains("set `[upstream] ca_file`"))
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_proxy_is_used_when_it_is_named() {
    let (broker, proxy) = (Broker::start().await, Upstream::start().await);
    let gateway = Options::default()
        .set("BROKER_URL", &broker.url())
        .set("UPSTREAM_URL", "http://api.invalid")
        .set("UPSTREAM_PROXY", &proxy.url())
        .spawn()
        .await;
    crosses(&broker, &proxy, &gateway).await;
    assert_eq!(proxy.requests().await[0].headers["host"], "api.invalid");
}

/// A proxy for this user that opens tunnels, and the first lines of what it was asked.
async fn tunnels() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let noted = asked.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap();
            let line = head.lines().next().unwrap().to_owned();
            let to = line.split(' ').nth(1).unwrap().to_owned();
            noted.lock().unwrap().push(line);
            // `user:secret`.
            if !head.to_lowercase().contains("proxy-authorization: basic dxnlcjpzzwnyzxq=") {
                let _ = stream.write_all(b"HTTP/1.1 407 Who?\r\n\r\n").await;
                continue;
            }
            let mut server = TcpStream::connect(to).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").await.unwrap();
            tokio::spawn(async move { copy_bidirectional(&mut stream, &mut server).await });
        }
    });
    (address.to_string(), asked)
}

#[tokio::test]
async fn a_proxy_opens_a_tunnel_to_an_encrypted_upstream() {
    let certificates = Certificates::new();
    let (broker, (proxy, asked)) = (Broker::start().await, tunnels().await);
    let url = Https::start(&certificates, "127.0.0.1", false).await.url("localhost");
    let options = |user: &str| {
        Options::default()
            .set("BROKER_URL", &broker.url())
            .set("UPSTREAM_URL", &url)
            .set("UPSTREAM_CA_FILE", &certificates.path("ca.pem"))
            .set("UPSTREAM_PROXY", &format!("http://{user}@{proxy}"))
    };
    let mut device = broker.device("d1").await;
    let mut gateway = options("user:secret").spawn().await;
    gateway.ready().await;
    assert_eq!(device.ask("telemetry", json!({})).await.json(), json!("ok"));
    gateway.stop().await;
    let to = url.trim_start_matches("https://");
    assert_eq!(*asked.lock().unwrap(), [format!("CONNECT {to} HTTP/1.1")]);
    let gateway = options("user:wrong").spawn().await;
    gateway.ready().await;
    device.send("telemetry", json!({})).await;
    gateway.logs(&format!("proxy http://{proxy}/: ")).await;
    gateway.logs("is `[upstream] proxy` right?").await;
    assert!(!gateway.log().contains("wrong"), "{}", gateway.log());
}

#[tokio::test]
async fn two_gateways_with_one_client_id_are_told_and_do_not_fight() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let first = Gateway::start(&broker, &upstream).await;
    let options = Options::default().set("BROKER_URL", &broker.url());
    let second = options.set("UPSTREAM_URL", &upstream.url()).spawn().await;
    eventually("one of them asks", || async {
        let question = "is another client connected with the same client id?";
        (first.log().contains(question) || second.log().contains(question)).then_some(())
    })
    .await;
    // Each throws the other out, and each waits longer every time. Mosquitto 2.0.22 and 2.1.2 say so the first time.
    let mut connects = 0;
    for gateway in [&first, &second] {
        connects += gateway.metric("mqtt_rest_gateway_broker_connects_total", &[]).await;
    }
    assert!((2..30).contains(&connects), "{connects} connections");
}

#[tokio::test]
async fn a_publication_that_the_access_list_denies_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("acl");
    fs::write(&file, "topic read v1/device/#\ntopic write v1/device/+/telemetry\n").unwrap();
    let broker = Broker::configured(&format!("acl_file {}", file.display())).await;
    let upstream = Upstream::start().await;
    upstream.answers("POST", "/v1/devices/d1/telemetry", 200, json!({})).await;
    let gateway = Gateway::start(&broker, &upstream).await;
    let mut device = broker.device("d1").await;
    let mut message = device.message("telemetry", "{}");
    message.props.response_topic = Some(device.topic("answers"));
    device.publish(message).await;
    gateway.metric_reaches("mqtt_rest_gateway_publishes_refused_total", &["refused"], 1).await;
    gateway.logs("NotAuthorized").await;
    // The message itself is done: a publication that the broker refuses is not sent again.
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["delivered"], 1).await;
}

/// An address may be dead: whoever waits for a connection that does not come up waits for another one as well.
#[tokio::test]
async fn a_connection_that_does_not_come_up_keeps_no_other_from_being_opened() {
    let certificates = Certificates::new();
    let https = Https::start(&certificates, "127.0.0.1", false).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let port = https.port;
    let opened = Arc::<Mutex<usize>>::default();
    let counted = opened.clone();
    tokio::spawn(async move {
        let mut silent = Vec::new();
        while let Ok((mut client, _)) = listener.accept().await {
            *counted.lock().unwrap() += 1;
            // The first one is never shaken hands with.
            if silent.is_empty() {
                silent.push(client);
                continue;
            }
            tokio::spawn(async move {
                let mut server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                let _ = copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    let broker = Broker::start().await;
    let options = Options::default()
        .set("BROKER_URL", &broker.url())
        .set("UPSTREAM_URL", &url)
        .set("UPSTREAM_CA_FILE", &certificates.path("ca.pem"));
    // The attempt itself is not what ends the wait.
    let options = options.set("UPSTREAM_ATTEMPT_TIMEOUT", "5m").set("UPSTREAM_DEADLINE", "5m");
    let gateway = options.spawn().await;
    gateway.ready().await;
    let mut device = broker.device("d1").await;
    assert_eq!(device.ask("telemetry", json!({})).await.json(), json!("ok"));
    assert_eq!(*opened.lock().unwrap(), 2);
    let attempts = gateway.metric("mqtt_rest_gateway_attempts_total", &[]).await;
    assert_eq!(attempts, 1, "on the second connection, and in one attempt");
}
