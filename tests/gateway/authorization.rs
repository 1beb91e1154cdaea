//! What the gateway shows the API beyond a header with a secret: a user and its password, a token, a signature.

use std::time::Duration;

use ring::hmac;
use serde_json::{Value, json};
use tokio::time::sleep;
use wiremock::{Request, ResponseTemplate, matchers};

use crate::harness::{Broker, Device, Gateway, Options, Upstream, eventually};

const ROW: &str = r#"
[[route]]
name        = "up"
on          = "v1/device/{device_id}/up"
call        = "POST /{device_id}/up"
credentials = "none"
"#;

/// A gateway with these lines in its configuration, whose deadline passes many times over.
async fn start(broker: &Broker, upstream: &Upstream, config: &str) -> Gateway {
    Options::default()
        .config(config)
        .set("SECRETS_S", "s3cr:et")
        .set("UPSTREAM_DEADLINE", "300ms")
        .set("UPSTREAM_ATTEMPT_TIMEOUT", "200ms")
        .set("UPSTREAM_BREAKER_PROBE", "50ms")
        .set("UPSTREAM_BREAKER_PROBE_MAX", "100ms")
        .start(broker, upstream)
        .await
}

fn header<'r>(request: &'r Request, name: &str) -> &'r str {
    request.headers.get(name).map_or("", |value| value.to_str().unwrap())
}

#[tokio::test]
async fn a_user_and_its_password_go_along() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    upstream.responds_to(matchers::any(), 200, json!({})).await;
    let config = format!("[upstream.auth]\nbasic = \"gateway:{{$s}}\"\n{ROW}");
    let gateway = start(&broker, &upstream, &config).await;
    broker.device("d1").await.send("up", json!({})).await;
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["delivered"], 1).await;
    let request = &upstream.requests().await[0];
    // `gateway:s3cr:et`
    assert_eq!(header(request, "authorization"), "Basic Z2F0ZXdheTpzM2NyOmV0");
}

/// What the API says of what it was shown goes on without it: a token, and the one before, as well as a user with a password.
#[tokio::test]
async fn what_is_shown_is_not_passed_on_when_the_api_says_it_again() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let oauth2 = format!(
        "[upstream.auth.oauth2]\ntoken_url = \"{}/oauth/token\"\nclient_id = \"gateway\"\nclient_secret = \"{{$s}}\"\n",
        upstream.url()
    );
    let mut letters = broker.observer("mqtt-rest-gateway/dead-letter/#").await;
    for (auth, shown) in [
        (oauth2.as_str(), "RECOGNISABLE-token"),
        ("[upstream.auth]\nbasic = \"gateway:{$s}\"\n", "Z2F0ZXdheTpzM2NyOmV0"),
    ] {
        grants(&upstream, "RECOGNISABLE-token", 3600).await;
        let echo = json!({ "no": format!("what is {shown}?") });
        upstream.answers("POST", "/d1/up", 422, echo).await;
        let gateway = start(&broker, &upstream, &format!("{auth}{ROW}")).await;
        broker.device("d1").await.send("up", json!({})).await;
        let words = r#"{"no":"what is <redacted>?"}"#;
        assert_eq!(letters.next().await.user("answer"), words);
        gateway.logs("not delivered").await;
        assert!(!gateway.log().contains(shown), "{}", gateway.log());
    }
}

/// A token endpoint beside the API, a gateway that asks it, and a device.
struct Stage {
    broker: Broker,
    upstream: Upstream,
    gateway: Gateway,
}

const TOKEN: &str = "POST /oauth/token";

impl Stage {
    async fn new() -> Self {
        let (broker, upstream) = (Broker::start().await, Upstream::start().await);
        grants(&upstream, "t1", 3600).await;
        takes(&upstream, "t1").await;
        let config = format!(
            "[upstream.auth.oauth2]\ntoken_url = \"{}/oauth/token\"\nclient_id = \"gateway\"\n\
             client_secret = \"{{$s}}\"\nscope = \"a b\"\nparams = {{ audience = \"api\" }}\n{ROW}",
            upstream.url()
        );
        let gateway = start(&broker, &upstream, &config).await;
        Self { broker, upstream, gateway }
    }

    async fn device(&self, id: &str) -> Device {
        self.broker.device(id).await
    }

    async fn delivered(&self, count: u64) {
        self.gateway
            .metric_is("mqtt_rest_gateway_messages_settled_total", &["delivered"], count)
            .await;
    }

    /// So many attempts were refused, so many tokens asked for, and nothing was held.
    async fn was(&self, refused: u64, asked: usize) {
        self.gateway
            .metric_is("mqtt_rest_gateway_attempts_total", &["status=\"401\""], refused)
            .await;
        assert_eq!(self.upstream.count(TOKEN).await, asked);
        self.gateway.metric_is("mqtt_rest_gateway_upstream_outages_total", &[], 0).await;
    }
}

/// The endpoint gives this token from now on.
async fn grants(upstream: &Upstream, token: &str, life: u64) {
    let grant = json!({"access_token": token, "token_type": "bearer", "expires_in": life});
    upstream.answers("POST", "/oauth/token", 200, grant).await;
}

/// The API takes this token from now on and no other.
async fn takes(upstream: &Upstream, token: &str) {
    upstream.responds_to(matchers::path_regex("/up$"), 401, json!({})).await;
    let right = matchers::header("authorization", format!("Bearer {token}").as_str());
    upstream.responds_to(right, 200, json!({})).await;
}

#[tokio::test]
async fn one_token_serves_all_and_another_takes_its_place_when_it_ends_or_is_refused() {
    let stage = Stage::new().await;
    let Stage { upstream, .. } = &stage;
    let (mut d1, mut d2) = (stage.device("d1").await, stage.device("d2").await);
    for _ in 0..3 {
        d1.send("up", json!({})).await;
        d2.send("up", json!({})).await;
    }
    stage.delivered(6).await;
    stage.was(0, 1).await;
    let requests = upstream.requests().await;
    let asked = requests.iter().find(|request| request.url.path() == "/oauth/token").unwrap();
    assert_eq!(
        String::from_utf8_lossy(&asked.body),
        "grant_type=client_credentials&client_id=gateway&client_secret=s3cr%3Aet&scope=a+b&audience=api"
    );
    assert_eq!(header(asked, "content-type"), "application/x-www-form-urlencoded");
    assert_eq!(header(asked, "authorization"), "");

    // The token is taken back: one attempt is refused, and nobody notices. The next one lives for a second.
    grants(upstream, "t2", 1).await;
    takes(upstream, "t2").await;
    d1.send("up", json!({})).await;
    stage.delivered(7).await;
    stage.was(1, 2).await;

    // It ends: another one is had before it is refused.
    grants(upstream, "t3", 3600).await;
    let right = matchers::header("authorization", "Bearer t3");
    upstream.responds_to(right, 200, json!({})).await;
    let device = tokio::sync::Mutex::new(d1);
    eventually("the third token", || async {
        device.lock().await.send("up", json!({})).await;
        let requests = upstream.requests().await;
        requests.iter().any(|r| header(r, "authorization") == "Bearer t3").then_some(())
    })
    .await;
    stage.gateway.settles().await;
    stage.was(1, 3).await;
}

#[tokio::test]
async fn a_token_endpoint_that_gives_none_is_an_outage_that_names_it() {
    let stage = Stage::new().await;
    let Stage { upstream, gateway, broker } = &stage;
    let mut dead = broker.observer("mqtt-rest-gateway/dead-letter/#").await;
    let denied = json!({"error": "invalid_client"});
    upstream.answers("POST", "/oauth/token", 401, denied).await;
    let (mut d1, mut d2) = (stage.device("d1").await, stage.device("d2").await);
    for n in 0..3 {
        d1.send("up", json!({"n": n})).await;
        d2.send("up", json!({"n": n})).await;
    }
    eventually("it is down", || async {
        let (status, reasons) = gateway.get("/readyz").await;
        let why = "the token endpoint gives no token: it answers 401 Unauthorized, invalid_client";
        (status == 503 && reasons.contains(why)).then_some(())
    })
    .await;
    // Longer than the deadline.
    sleep(Duration::from_millis(700)).await;
    dead.silent().await;
    gateway.metric_is("mqtt_rest_gateway_messages_pending", &[], 6).await;
    upstream.responds("POST", "/oauth/token", ResponseTemplate::new(503)).await;
    eventually("another reason", || async {
        gateway.get("/readyz").await.1.contains("no token: it answers 503").then_some(())
    })
    .await;
    assert!(!upstream.calls().await.iter().any(|call| call.ends_with("/up")));

    grants(upstream, "t1", 3600).await;
    stage.delivered(6).await;
    gateway.ready().await;
    dead.silent().await;
    for device in ["d1", "d2"] {
        let requests = upstream.requests().await;
        let own = requests.iter().filter(|r| r.url.path() == format!("/{device}/up"));
        let numbers: Vec<_> = own.map(|r| r.body_json::<Value>().unwrap()["n"].as_u64()).collect();
        assert_eq!(numbers, [Some(0), Some(1), Some(2)], "{device}");
    }
}

const SIGN: &str = r#"
sign = { secret = "{$s}", over = "{timestamp}.{method} {path}.{body}", header = "X-Signature", value = "sha256={hex}", timestamp = "X-Time" }
"#;

fn is_signed(request: &Request) {
    let (time, path) = (header(request, "x-time"), request.url.path());
    assert!(time.parse::<u64>().unwrap() > 1_700_000_000, "{time}");
    let signed = [format!("{time}.POST {path}.").as_bytes(), &request.body].concat();
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, b"s3cr:et"), &signed);
    let hex = tag.as_ref().iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
    assert_eq!(header(request, "x-signature"), format!("sha256={hex}"));
}

#[tokio::test]
async fn a_signature_is_over_what_is_sent() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    upstream.responds_to(matchers::any(), 200, json!({})).await;
    let gateway = start(&broker, &upstream, &format!("{ROW}{SIGN}")).await;
    broker.device("d1").await.send("up", json!({"a": [1, "\u{fc}"]})).await;
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["delivered"], 1).await;
    is_signed(&upstream.requests().await[0]);
}

#[tokio::test]
async fn a_signature_of_joined_calls_is_over_the_whole() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    upstream.responds_to(matchers::any(), 200, json!({})).await;
    let row = ROW.replace("POST /{device_id}/up", "POST /all");
    // It travels when it is full, in however long.
    let batch = "batch = { max = 2, linger = \"10m\", join = \".\" }";
    let gateway = Options::default()
        .config(&format!("{row}{batch}{SIGN}"))
        .set("SECRETS_S", "s3cr:et")
        .set("UPSTREAM_DEADLINE", "1h")
        .start(&broker, &upstream)
        .await;
    for device in ["d1", "d2"] {
        broker.device(device).await.send("up", json!({ "of": device })).await;
    }
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["delivered"], 2).await;
    let requests = upstream.requests().await;
    let [request] = &requests[..] else { panic!("{requests:?}") };
    assert_eq!(request.body_json::<Value>().unwrap(), json!([{"of": "d1"}, {"of": "d2"}]));
    is_signed(request);
}
