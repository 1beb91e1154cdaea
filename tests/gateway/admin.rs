//! The admin endpoint and the command line, from outside.

use crate::harness::{Broker, Gateway, Options, Upstream, eventually, nobody, program, run};

#[tokio::test]
async fn readiness_says_why_not() {
    let upstream = Upstream::start().await;
    let (_socket, nobody) = nobody();
    let options = Options::default().set("UPSTREAM_URL", &upstream.url());
    let gateway = options.set("BROKER_URL", &format!("mqtt://{nobody}")).spawn().await;
    let (status, reason) = eventually("a reason", || async {
        let (status, reason) = gateway.get("/readyz").await;
        reason.contains("refused").then_some((status, reason))
    })
    .await;
    assert_eq!(status, 503);
    assert!(reason.starts_with("broker: not connected:"), "{reason}");
    assert_eq!(gateway.get("/livez").await.0, 200);
    assert_eq!(gateway.get("/nothing").await.0, 404);
}

#[tokio::test]
async fn readiness_follows_the_broker() {
    let (mut broker, upstream) = (Broker::start().await, Upstream::start().await);
    let gateway = Gateway::start(&broker, &upstream).await;
    broker.stop().await;
    eventually("not ready", || async { (gateway.get("/readyz").await.0 == 503).then_some(()) })
        .await;
    broker.start_again().await;
    gateway.ready().await;
    assert!(gateway.metric("mqtt_rest_gateway_broker_connects_total", &[]).await >= 2);
}

#[tokio::test]
async fn check_connect_reports_what_it_found() {
    let (broker, upstream) =
        (Broker::configured("max_inflight_messages 20").await, Upstream::start().await);
    let mut command = program();
    command.args(["check", "--connect"]);
    command.env("GATEWAY_BROKER_URL", broker.url()).env("GATEWAY_UPSTREAM_URL", upstream.url());
    let output = command.output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    for line in ["12 routes", "takes at once        20", "shared subscriptions yes", "answers 404"]
    {
        assert!(text.contains(line), "{line} is not in {text}");
    }

    let mut command = program();
    command.args(["check", "--connect"]);
    let (_socket, nobody) = nobody();
    command.env("GATEWAY_BROKER_URL", format!("mqtt://{nobody}"));
    command.env("GATEWAY_UPSTREAM_URL", format!("http://{nobody}"));
    let output = command.output().await.unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("broker: ") && text.contains("upstream: "), "{text}");
}

#[tokio::test]
async fn explain_prints_the_request_or_the_refusal() {
    let credentials = ["--property", "device_id=d1", "--property", "access_key=k"];
    let explain = async |topic: &'static str, more: &[&'static str], payload: &'static str| {
        let arguments = [&["explain", topic, "--payload", "-"], more].concat();
        let (code, out, error) = run(&arguments, payload).await;
        let expected = if out.contains("refused  ") { 3 } else { 0 };
        assert_eq!((code, error.as_str()), (expected, ""), "{out}");
        out
    };
    let out =
        explain("v1/device/d1/commands/update", &credentials, r#"{"id":1,"status":"error"}"#).await;
    for line in [
        "request  POST https://hub.example.com/v1/devices/d1/command",
        "authorization: <redacted",
        r#"body     {"id":1,"status":"failed"}"#,
        "-> v1/device/d1/commands",
    ] {
        assert!(out.contains(line), "{line} is not in {out}");
    }
    for (topic, more, payload, expected) in [
        ("v1/device/d2/telemetry", &credentials[..], "{}", "refused  403 identity"),
        ("v1/device/d1/telemetry", &[], "{}", "refused  401 no_credentials"),
        ("v1/device/d1/telemetry", &credentials, "{", "refused  400 bad_payload"),
        ("v1/device/d1/nothing", &credentials, "{}", "refused  404 no_route"),
        ("v1/device/d1/config", &[], "", "ignored  it carries no credentials"),
    ] {
        let out = explain(topic, more, payload).await;
        assert!(out.contains(expected), "{topic}: {expected} is not in {out}");
    }
}

#[tokio::test]
async fn routes_prints_the_table() {
    let (code, out, _) = run(&["routes"], "").await;
    assert_eq!(code, 0);
    assert!(out.contains("POST /v1/devices/{device_id}/telemetry"), "{out}");
    let (code, out, _) = run(&["--version"], "").await;
    assert_eq!(code, 0);
    assert!(out.starts_with("mqtt-rest-gateway 0.1.0 (commit "), "{out}");
}

#[tokio::test]
async fn explain_does_nothing_to_a_terminal() {
    let topic = "v1/device/d\u{1b}[31m\nrequest  FORGED\u{9b}/telemetry";
    let payload = "{\"a\":\"\u{9b}2J\u{202e}\"}";
    let property = |name: &str, value: &str| format!("{name}={value}");
    let id = property("device_id", "d1");
    for (topic, response) in [(topic, "v1/device/d1/a"), ("v1/device/d1/telemetry", topic)] {
        let arguments = ["explain", topic, "--payload", "-", "--response-topic", response];
        let more = ["--property", id.as_str(), "--property", "access_key=k"];
        let (code, out, _) = run(&[&arguments[..], &more].concat(), payload).await;
        assert_eq!(code, 3, "refused: {out}");
        let bad = out.chars().find(|c| *c != '\n' && (c.is_control() || *c == '\u{202e}'));
        assert!(bad.is_none() && !out.contains("\nrequest  FORGED"), "{bad:?} in {out}");
    }
}

#[tokio::test]
async fn a_token_in_the_table_is_not_shown() {
    let table = "[[route]]\nname = \"t\"\non = \"a/{device_id}\"\n\
                 call = \"POST /x?unit=c&api_key=s3cret&d={device_id}\"\n\
                 batch = { call = \"POST /all?token=s3cret\", key = \"k\" }\n";
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let text = format!("[upstream]\nurl = \"http://x\"\n[replies]\nerrors = \"\"\n{table}");
    let gateway = Options::default().config(&text).start(&broker, &upstream).await;
    let (_, routes) = gateway.get("/routes").await;
    assert!(
        routes.contains("api_key=<hidden>&d={device_id}") && routes.contains("unit=c"),
        "{routes}"
    );
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    std::fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    for command in [
        &["routes"][..],
        &[
            "explain",
            "a/d1",
            "--payload",
            "-",
            "--property",
            "device_id=d1",
            "--property",
            "access_key=k",
        ],
    ] {
        let (code, out, error) = run(&[&["--config", file], command].concat(), "{}").await;
        assert!(code == 0 && out.contains("<hidden>") && !out.contains("s3cret"), "{out}{error}");
    }
    assert!(!routes.contains("s3cret") && !gateway.log().contains("s3cret"));
}
