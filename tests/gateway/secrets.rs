//! A recognisable key goes along every path there is, and so do secrets of the gateway's own; nowhere but in the
//! request may they come out.

use std::time::Duration;

use serde_json::json;
use wiremock::{Request, ResponseTemplate};

use crate::{
    batch::shipped_with_batch,
    harness::{Broker, Device, Gateway, Options, Upstream, run},
};

const KEY: &str = "RECOGNISABLE-c0ffee-KEY";
const PASSWORD: &str = "RECOGNISABLE-c0ffee-PASSWORD";
const IN_HEADER: &str = "RECOGNISABLE-c0ffee-HEADER";
const IN_PATH: &str = "RECOGNISABLE-c0ffee-PATH";
const IN_QUERY: &str = "RECOGNISABLE-c0ffee-QUERY";
const SECRETS: [&str; 5] = [KEY, PASSWORD, IN_HEADER, IN_PATH, IN_QUERY];

/// The shipped table with batches, and with secrets in a path, a query and a header of every call.
fn config() -> String {
    let rows = [
        ("\"PUT /v1/devices/{device_id}/cloud_settings\"", "\"PUT /{$path}/{device_id}/{$key}\""),
        (
            "\"GET /v1/devices/{device_id}/space\"",
            "\"GET /v1/devices/{device_id}/space?sig={$query}\"",
        ),
    ];
    let mut config = shipped_with_batch();
    for (shipped, with_secret) in rows {
        assert!(config.contains(shipped), "{shipped}");
        config = config.replace(shipped, with_secret);
    }
    let url = "[upstream]\n";
    assert!(config.contains(url));
    config.replace(url, &format!("{url}headers = {{ X-Gateway = \"Token {{$header}}\" }}\n"))
}

#[tokio::test]
async fn no_path_prints_a_key() {
    let passwords = tempfile::tempdir().unwrap();
    let file = passwords.path().join("password");
    std::fs::write(&file, format!("{PASSWORD}\n")).unwrap();
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let secret = passwords.path().join("secret");
    std::fs::write(&secret, format!("{IN_PATH}\n")).unwrap();
    let gateway = Options::default()
        // Keys travel in bodies as well.
        .config(&config())
        .set("SECRETS_HEADER", IN_HEADER)
        .set("SECRETS_PATH_FILE", secret.to_str().unwrap())
        .set("SECRETS_QUERY", IN_QUERY)
        .set("LOG_LEVEL", "trace")
        .set("BROKER_USERNAME", "gateway")
        .set("BROKER_PASSWORD_FILE", file.to_str().unwrap())
        .set("UPSTREAM_DEADLINE", "100ms")
        .set("UPSTREAM_ATTEMPT_TIMEOUT", "80ms")
        // Its messages fail one after the other: nothing is waited for in between.
        .set("UPSTREAM_RETRY_MAX", "20ms")
        .set("UPSTREAM_BREAKER_PROBE", "10ms")
        .set("UPSTREAM_BREAKER_PROBE_MAX", "20ms")
        .start(&broker, &upstream)
        .await;
    let mut device = broker.device("d1").await;
    let mut everything = broker.observer("#").await;
    let sent =
        every_answer(&gateway, &upstream, &mut device).await + every_refusal(&mut device).await;
    gateway.metric_reaches("mqtt_rest_gateway_messages_settled_total", &[], sent).await;
    let requests = upstream.requests().await;
    let with_key = |key: &str| {
        requests.iter().any(|r| r.headers.get("authorization").is_some_and(|v| v == key))
    };
    let in_body = requests.iter().any(|r| String::from_utf8_lossy(&r.body).contains(KEY));
    assert!(with_key(KEY) && in_body, "it was used, in both places");
    for secret in [IN_PATH, IN_QUERY, KEY] {
        assert!(requests.iter().any(|r| r.url.as_str().contains(secret)), "{secret} was used");
    }
    let token = format!("Token {IN_HEADER}");
    let with_token = |r: &&Request| r.headers.get("x-gateway").is_some_and(|v| *v == token);
    assert_eq!(
        requests.iter().filter(with_token).count(),
        requests.iter().filter(|r| r.url.path() != "/").count(),
        "every call has it, the probe has not"
    );

    let mut places = commands(&gateway).await;
    for path in ["/livez", "/readyz", "/metrics", "/routes", "/nothing"] {
        places.push((path.to_owned(), gateway.get(path).await.1));
    }
    let letters = letters(&gateway).await;
    assert!(letters > 20, "{letters}");
    places.extend(publications(&mut everything, letters).await);
    let log = gateway.log();
    assert!(log.contains("TRACE") && log.contains("DEBUG"), "the log is at its fullest");
    places.push(("the log".into(), log));
    for (place, text) in places {
        for secret in SECRETS {
            if let Some((before, _)) = text.split_once(secret) {
                let line = before.lines().next_back().unwrap_or_default();
                panic!("{place} shows {secret} behind: {line}");
            }
        }
    }
}

/// What people are shown, which is what `/events` says.
async fn top(gateway: &Gateway) -> String {
    let url = format!("http://{}", gateway.admin());
    let (code, shown, error) = run(&["top", "--once", "--url", &url], "").await;
    assert_eq!(code, 0, "{error}");
    shown
}

/// Every row, with a payload that is JSON and one that is not, against every kind of answer. How many
/// messages that were.
async fn every_answer(gateway: &Gateway, upstream: &Upstream, device: &mut Device) -> u64 {
    let flags = json!({
        "config_version": 1, "command": true, "new_licenses": true, "space_data_version": 1,
        "latest_fw_version": "2", "latest_fw_file_id": "f",
    });
    let answers = [
        ResponseTemplate::new(200).set_body_json(flags),
        ResponseTemplate::new(401).set_body_json(json!({"error": "Not authorized"})),
        ResponseTemplate::new(404).set_body_string("<html>"),
        ResponseTemplate::new(500),
        ResponseTemplate::new(302).insert_header("location", "http://127.0.0.1:1/"),
        ResponseTemplate::new(200).set_delay(Duration::from_mins(1)),
    ];
    let calls = [
        ("POST", "/telemetry"),
        ("POST", "/config"),
        ("POST", "/command"),
        ("POST", "/licenses"),
        ("PUT", ""),
        ("PUT", "/cloud_settings"),
        ("GET", "/config"),
        ("GET", "/command"),
        ("GET", "/license"),
        ("GET", "/licenses"),
        ("GET", "/space"),
        ("GET", "/files"),
        ("GET", ""),
    ];
    let rows = [
        "telemetry",
        "config/update",
        "commands/update",
        "license/update",
        "update",
        "cloud_settings/update",
        "get",
        "config",
        "commands",
        "license",
        "space_info",
        "firmware",
    ];
    let mut sent = 0;
    for answer in answers {
        for (verb, below) in calls {
            upstream.responds(verb, &format!("/v1/devices/d1{below}"), answer.clone()).await;
        }
        for below in rows {
            for payload in ["{\"status\":\"done\",\"id\":\"1\"}", "not JSON"] {
                let mut message = device.message(below, payload);
                message.props.user[1].1 = KEY.into();
                message.props.user.push(("note".into(), "kept".into()));
                device.publish(message).await;
                sent += 1;
            }
        }
        // Else the next answer would be everybody's.
        gateway.metric_reaches("mqtt_rest_gateway_messages_settled_total", &[], sent).await;
    }
    sent
}

/// The key twice, for another device, with letters that no header takes, alone.
async fn every_refusal(device: &mut Device) -> u64 {
    let odd = format!("{KEY} \u{e9}");
    let refusals = [
        vec![("device_id", "d1"), ("access_key", KEY), ("access_key", KEY)],
        vec![("device_id", "d2"), ("access_key", KEY)],
        vec![("device_id", "d1"), ("access_key", &odd)],
        vec![("access_key", KEY)],
    ];
    let mut sent = 0;
    for user in refusals {
        let mut message = device.message("telemetry", "{}");
        message.props.user = user.into_iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
        device.publish(message).await;
        sent += 1;
    }
    sent
}

/// What the command line prints of a message with the key, and of a configuration with secrets, right or wrong.
async fn commands(gateway: &Gateway) -> Vec<(String, String)> {
    let property = format!("access_key={KEY}");
    let mut places = vec![("top".to_owned(), top(gateway).await)];
    for topic in
        ["v1/device/d1/update", "v1/device/d1/telemetry", "v1/device/../telemetry", "other"]
    {
        let credentials = ["--property", "device_id=d1", "--property", &property];
        let arguments = [&["explain", topic, "--payload", "-"], &credentials[..]].concat();
        let (_, out, error) = run(&arguments, "{}").await;
        places.push((format!("explain {topic}"), out + &error));
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    let values = format!(
        "[secrets]\nheader = \"{IN_HEADER}\"\npath = \"{IN_PATH}\"\nquery = \"{IN_QUERY}\"\nidle = \"{KEY}\"\n"
    );
    for (with_mistake, values) in [(false, values.replace("idle", "#")), (true, values)] {
        std::fs::write(&file, config().replacen("\n[secrets]", &format!("\n{values}"), 1)).unwrap();
        let topic = ["v1/device/d1/cloud_settings/update", "--payload", "-"];
        let credentials = ["--property", "device_id=d1", "--property", &property];
        let explain = [&["explain"][..], &topic, &credentials].concat();
        for command in [
            &["check"][..],
            &["routes"],
            &["routes", "--json"],
            &["config", "--effective"],
            &explain,
        ] {
            let arguments = [&["--config", file.to_str().unwrap()], command].concat();
            let (code, out, error) = run(&arguments, "{}").await;
            assert_eq!(code, if with_mistake { 78 } else { 0 }, "{command:?}: {error}");
            places.push((format!("{command:?}"), out + &error));
        }
    }
    places
}

/// Replies, pushes and dead letters, until that many dead letters have come. The device's own messages
/// carry the key, of course.
async fn publications(everything: &mut Device, letters: u64) -> Vec<(String, String)> {
    let (mut places, mut left) = (Vec::new(), letters);
    while left > 0 {
        let heard = everything.next().await;
        if heard.user("via").is_empty() {
            continue;
        }
        left -= u64::from(heard.topic.contains("dead-letter"));
        let text = format!("{heard:?} {}", String::from_utf8_lossy(&heard.payload));
        places.push((heard.topic, text));
    }
    places
}

/// How many dead letters there must be: everything that is neither delivered nor ignored.
async fn letters(gateway: &Gateway) -> u64 {
    let settled = |outcome: &'static str| async move {
        gateway
            .metric(
                "mqtt_rest_gateway_messages_settled_total",
                &[&format!("outcome=\"{outcome}\"")],
            )
            .await
    };
    let all = gateway.metric("mqtt_rest_gateway_messages_settled_total", &[]).await;
    all - settled("delivered").await - settled("unknown").await - settled("not_a_request").await
}

#[tokio::test]
async fn configuration_mistakes_do_not_show_the_password() {
    let config = format!(
        "[broker]\npassword = \"{PASSWORD}\"\npasword = \"{PASSWORD}\"\nurl = \"mqtt://u:{PASSWORD}@h\"\n"
    );
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    std::fs::write(&file, config).unwrap();
    let (code, out, error) = run(&["--config", file.to_str().unwrap(), "check"], "").await;
    assert_eq!(code, 78);
    assert!(error.contains("do you mean `password`"), "{error}");
    assert!(!format!("{out}{error}").contains(PASSWORD), "{error}");
}

#[tokio::test]
async fn no_path_prints_what_authorizes_the_gateway() {
    const TOKEN: &str = "RECOGNISABLE-c0ffee-TOKEN";
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let row = "[[route]]\nname = \"up\"\non = \"v1/device/{device_id}/up\"\ncall = \"POST /up\"\n\
               credentials = \"none\"\nsign = { secret = \"{$sign}\", over = \"{body}\", header = \"X-S\", \
               value = \"{hex}\" }\n";
    let oauth2 = |within: &str| {
        format!(
            "[upstream.auth.oauth2]\ntoken_url = \"{}/token\"\nclient_id = \"gateway\"\n\
             client_secret = \"{{$own}}\"\nsecret_in = \"{within}\"\n{row}",
            upstream.url()
        )
    };
    let basic = format!("[upstream.auth]\nbasic = \"gateway:{{$own}}\"\n{row}");
    // `gateway:` and the secret begin so in base64.
    let shown = ["RECOGNISABLE", "Z2F0ZXdheTpSRUNPR05JU0FCTE"];
    let grant = json!({"access_token": TOKEN, "expires_in": 3600});
    for config in [oauth2("body"), oauth2("header"), basic] {
        upstream.answers("POST", "/token", 200, grant.clone()).await;
        upstream.answers("POST", "/up", 200, json!({})).await;
        let gateway = Options::default()
            .config(&config)
            .set("LOG_LEVEL", "trace")
            .set("SECRETS_OWN", IN_HEADER)
            .set("SECRETS_SIGN", IN_PATH)
            .start(&broker, &upstream)
            .await;
        let mut device = broker.device("d1").await;
        device.send("up", json!({})).await;
        gateway.metric_reaches("mqtt_rest_gateway_messages_settled_total", &["delivered"], 1).await;
        let denied = json!({"error": IN_HEADER, "error_description": IN_HEADER});
        upstream.answers("POST", "/token", 400, denied).await;
        upstream.answers("POST", "/up", 401, json!({})).await;
        device.send("up", json!({})).await;
        gateway.metric_reaches("mqtt_rest_gateway_upstream_outages_total", &[], 1).await;
        let mut texts = vec![gateway.log()];
        for path in ["/readyz", "/metrics", "/routes"] {
            texts.push(gateway.get(path).await.1);
        }
        texts.push(top(&gateway).await);
        assert!(texts.concat().contains("no token") || texts.concat().contains("our credentials"));
        for text in texts {
            for secret in shown {
                let before = text.split_once(secret).map(|(before, _)| before);
                let line = before.map(|before| before.lines().next_back().unwrap_or_default());
                assert_eq!(line, None, "{secret} is shown");
            }
        }
        // What is held goes to the next one.
        upstream.answers("POST", "/token", 200, grant.clone()).await;
        upstream.answers("POST", "/up", 200, json!({})).await;
        gateway.settles().await;
    }
    let seen = upstream.requests().await;
    let authorized = |r: &Request| {
        r.headers.get("authorization").is_some_and(|v| *v == format!("Bearer {TOKEN}"))
    };
    assert!(seen.iter().any(authorized) && seen.iter().any(|r| r.headers.contains_key("x-s")));
}
