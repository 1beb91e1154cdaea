//! Delivery: acknowledged after the outcome, in order per device, devices side by side, again after
//! transient failures, not twice after a reconnect.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tokio::time::Instant;
use wiremock::ResponseTemplate;

use crate::{
    fixture::path,
    harness::{Broker, Gateway, Options, Upstream, while_it_moves},
    load::Api,
};

fn ok() -> ResponseTemplate {
    ResponseTemplate::new(200).set_body_json(json!({}))
}

/// The `n` of every telemetry that arrived for a device, in order of arrival.
async fn numbers(upstream: &Upstream, device: &str) -> Vec<u64> {
    let requests = upstream.requests().await;
    let own = requests.iter().filter(|request| request.url.path() == path(device));
    own.map(|request| request.body_json::<Value>().unwrap()["n"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn killed_before_the_outcome_the_message_comes_again() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    upstream.responds("POST", &path("d1"), ok().set_delay(Duration::from_mins(1))).await;
    let mut gateway = Gateway::start(&broker, &upstream).await;
    let mut device = broker.device("d1").await;
    device.send("telemetry", json!({"n": 1})).await;
    device.send("telemetry", json!({"n": 2})).await;
    upstream.arrived("POST /v1/devices/d1/telemetry", 1).await;
    gateway.kill().await;
    upstream.responds("POST", &path("d1"), ok()).await;
    let mut gateway = Gateway::start(&broker, &upstream).await;
    gateway.metric_reaches("mqtt_rest_gateway_messages_settled_total", &["delivered"], 2).await;
    assert_eq!(numbers(&upstream, "d1").await, [1, 1, 2]);
    // Acknowledged now: a third gateway gets nothing.
    gateway.stop().await;
    let third = Gateway::start(&broker, &upstream).await;
    device.send("telemetry", json!({"n": 3})).await;
    third.metric_reaches("mqtt_rest_gateway_messages_settled_total", &["delivered"], 1).await;
    assert_eq!(numbers(&upstream, "d1").await, [1, 1, 2, 3]);
}

#[tokio::test]
async fn order_is_kept_per_device_and_devices_run_side_by_side() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    upstream.responds("POST", &path("slow"), ok().set_delay(Duration::from_millis(300))).await;
    for quick in 0..5 {
        upstream.responds("POST", &path(&format!("q{quick}")), ok()).await;
    }
    // Transient failures in between must not let a later message overtake.
    upstream.responds_times("POST", &path("q0"), 3, ResponseTemplate::new(503)).await;
    let gateway = Gateway::start(&broker, &upstream).await;
    let mut slow = broker.device("slow").await;
    for n in 0..4 {
        slow.send("telemetry", json!({"n": n})).await;
    }
    let mut devices = Vec::new();
    for quick in 0..5 {
        devices.push(broker.device(&format!("q{quick}")).await);
    }
    for n in 0..40 {
        for device in &mut devices {
            device.send("telemetry", json!({"n": n})).await;
        }
    }
    gateway.metric_reaches("mqtt_rest_gateway_messages_settled_total", &["delivered"], 204).await;
    assert_eq!(numbers(&upstream, "slow").await, [0, 1, 2, 3]);
    let expected: Vec<u64> = (0..40).collect();
    for quick in 1..5 {
        assert_eq!(numbers(&upstream, &format!("q{quick}")).await, expected);
    }
    let mut retried = numbers(&upstream, "q0").await;
    assert_eq!(retried.len(), 43);
    retried.dedup();
    assert_eq!(retried, expected, "the one that failed was repeated before the next");
}

#[tokio::test]
async fn a_hanging_device_stalls_nobody_on_a_window_of_twenty() {
    let hold = Duration::from_secs(2);
    // mosquitto's default window; a larger Receive Maximum of the client would widen it.
    let (broker, api) = (Broker::start().await, Api::start().await);
    let gateway = Options::default()
        .set("BROKER_URL", &broker.url())
        .set("UPSTREAM_URL", &format!("http://127.0.0.1:{}/1", api.port))
        .set("UPSTREAM_ATTEMPT_TIMEOUT", "1h")
        .set("UPSTREAM_DEADLINE", "1h")
        .set("BROKER_ACK_HOLD", "2s")
        .set("BROKER_MAX_PENDING", "20")
        .spawn()
        .await;
    gateway.ready().await;
    // The API never answers the one.
    let (mut hung, mut well) = (broker.device("poison-hang").await, broker.device("well").await);
    for round in 0..5 {
        // Again and again one more, in front of the others.
        hung.send("telemetry", json!({"n": round})).await;
        for n in 0..20 {
            well.send("telemetry", json!({"n": round * 20 + n})).await;
        }
        let delivered = (round + 1) * 20;
        gateway
            .metric_reaches("mqtt_rest_gateway_messages_settled_total", &["delivered"], delivered)
            .await;
    }
    // Five times the window, past a device that holds a quarter of it and hangs all the while. It has
    // held back the others once: when the first window was full.
    let arrivals = api.arrivals();
    assert_eq!(
        arrivals.iter().map(|arrival| arrival.n).collect::<Vec<_>>(),
        (0..100).collect::<Vec<_>>()
    );
    let gaps = arrivals.windows(2).map(|pair| pair[1].at - pair[0].at);
    let waits: Vec<_> = gaps.filter(|gap| *gap >= hold * 3 / 4).collect();
    // Without its memory the window would have waited in each of the five rounds; the machine may be slow once.
    assert!((1..=2).contains(&waits.len()), "waited {waits:?}");
    assert_eq!(gateway.metric("mqtt_rest_gateway_messages_pending", &[]).await, 5);
}

#[tokio::test]
async fn retry_after_holds_back_that_device_alone() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    upstream.responds("POST", &path("d1"), ok()).await;
    upstream.responds("POST", &path("d2"), ok()).await;
    let busy = ResponseTemplate::new(429).insert_header("retry-after", "1");
    upstream.responds_times("POST", &path("d1"), 1, busy).await;
    let gateway = Gateway::start(&broker, &upstream).await;
    let (mut d1, mut d2) = (broker.device("d1").await, broker.device("d2").await);
    let began = Instant::now();
    d1.send("telemetry", json!({"n": 0})).await;
    upstream.arrived("POST /v1/devices/d1/telemetry", 1).await;
    d2.ask("telemetry", json!({"n": 0})).await;
    assert_eq!(upstream.count("POST /v1/devices/d1/telemetry").await, 1, "d2 did not wait for d1");
    gateway.metric_reaches("mqtt_rest_gateway_messages_settled_total", &["delivered"], 2).await;
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert_eq!(upstream.count("POST /v1/devices/d1/telemetry").await, 2);
    assert_eq!(gateway.metric("mqtt_rest_gateway_attempts_total", &["status=\"429\""]).await, 1);

    // As a date, which counts whole seconds.
    let date = humantime::format_rfc3339_seconds(SystemTime::now() + Duration::from_secs(3));
    let date = httpdate::fmt_http_date(humantime::parse_rfc3339(&date.to_string()).unwrap());
    let busy = ResponseTemplate::new(503).insert_header("retry-after", date.as_str());
    upstream.responds_times("POST", &path("d1"), 1, busy).await;
    d1.ask("telemetry", json!({"n": 1})).await;
    assert!(httpdate::parse_http_date(&date).unwrap() <= SystemTime::now());
}

#[tokio::test]
async fn a_broker_that_restarts_costs_no_second_post_and_no_reply() {
    let (mut broker, upstream) = (Broker::start().await, Upstream::start().await);
    upstream.responds("POST", &path("d1"), ok().set_delay(Duration::from_secs(2))).await;
    let mut gateway = Gateway::start(&broker, &upstream).await;
    let mut device = broker.device("d1").await;
    let mut message = device.message("telemetry", r#"{"n":1}"#);
    message.props.response_topic = Some(device.topic("answers"));
    device.publish(message).await;
    upstream.arrived("POST /v1/devices/d1/telemetry", 1).await;
    broker.stop().await;
    broker.start_again().await;
    let mut device = broker.device("d1").await;
    gateway.ready().await;
    assert_eq!(device.next().await.user("status"), "200");
    gateway.metric_reaches("mqtt_rest_gateway_redelivered_total", &[], 1).await;
    assert_eq!(numbers(&upstream, "d1").await, [1]);
    // And it is acknowledged on the new connection.
    assert_eq!(gateway.stop().await.code(), Some(0));
    upstream.responds("POST", &path("d1"), ok()).await;
    let gateway = Gateway::start(&broker, &upstream).await;
    device.send("telemetry", json!({"n": 2})).await;
    gateway.metric_reaches("mqtt_rest_gateway_messages_settled_total", &["delivered"], 1).await;
    assert_eq!(numbers(&upstream, "d1").await, [1, 2]);
}

#[tokio::test]
async fn what_expires_while_it_is_held_is_not_sent() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    upstream.responds("POST", &path("d1"), ok().set_delay(Duration::from_secs(2))).await;
    let _gateway = Gateway::start(&broker, &upstream).await;
    let mut device = broker.device("d1").await;
    let mut dead = broker.observer("mqtt-rest-gateway/dead-letter/#").await;
    device.send("telemetry", json!({"n": 1})).await;
    let mut message = device.message("telemetry", r#"{"n":2}"#);
    message.props.expiry = Some(1);
    device.publish(message).await;
    let letter = dead.next().await;
    assert_eq!((letter.user("reason"), letter.json()), ("expired", json!({"n": 2})));
    assert_eq!(numbers(&upstream, "d1").await, [1]);
}

#[tokio::test]
async fn a_device_over_its_rate_is_told_when_to_come_back() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    for device in ["d1", "d2"] {
        upstream.responds("POST", &path(device), ok()).await;
    }
    let options = Options::default().set("UPSTREAM_RATE_PER_DEVICE", "2/h");
    let gateway = options.start(&broker, &upstream).await;
    let (mut d1, mut d2) = (broker.device("d1").await, broker.device("d2").await);
    let mut statuses = Vec::new();
    for n in 0..3 {
        statuses.push(d1.ask("telemetry", json!({"n": n})).await.user("status").to_owned());
    }
    assert_eq!(statuses, ["200", "200", "429"]);
    assert_eq!(d2.ask("telemetry", json!({"n": 0})).await.user("status"), "200");
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["throttled"], 1).await;
}

#[tokio::test]
async fn a_row_with_a_rate_of_its_own_keeps_it_per_device() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    upstream.responds("PUT", "/v1/devices/d1", ok()).await;
    upstream.responds("POST", &path("d1"), ok()).await;
    let _gateway = Gateway::start(&broker, &upstream).await;
    let mut device = broker.device("d1").await;
    for _ in 0..10 {
        assert_eq!(device.ask("update", json!({"name": "n"})).await.user("status"), "200");
    }
    let refused = device.ask("update", json!({"name": "n"})).await;
    assert_eq!(
        (refused.user("status"), refused.json()["code"].as_str()),
        ("429", Some("throttled"))
    );
    assert!(refused.json()["error"].as_str().unwrap().contains(" s"), "it says when to come back");
    assert_eq!(device.ask("telemetry", json!({"n": 0})).await.user("status"), "200");
    assert_eq!(upstream.count("PUT /v1/devices/d1").await, 10);
}

#[tokio::test]
async fn received_is_settled_plus_pending_at_any_moment() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    upstream.responds("POST", &path("d1"), ok().set_delay(Duration::from_millis(5))).await;
    let gateway = Gateway::start(&broker, &upstream).await;
    let mut device = broker.device("d1").await;
    let watch = async {
        while_it_moves("all settled", || async {
            let (_, text) = gateway.get("/metrics").await;
            let sum = |name: &str| -> u64 {
                let lines = text.lines().filter(|line| line.starts_with(name));
                lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
            };
            let (received, settled) = (
                sum("mqtt_rest_gateway_messages_received_total"),
                sum("mqtt_rest_gateway_messages_settled_total"),
            );
            assert_eq!(received, settled + sum("mqtt_rest_gateway_messages_pending "), "{text}");
            if settled == 200 { Ok(()) } else { Err(settled) }
        })
        .await;
    };
    let send = async {
        for n in 0..200 {
            device.send("telemetry", json!({"n": n})).await;
        }
    };
    tokio::join!(watch, send);
}

#[tokio::test]
async fn a_backlog_larger_than_may_be_held_is_taken_in_parts_and_in_order() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    upstream.responds("POST", &path("d1"), ok()).await;
    upstream.responds("POST", &path("hung"), ok().set_delay(Duration::from_mins(1))).await;
    let mut first = Gateway::start(&broker, &upstream).await;
    first.stop().await;
    // One that hangs all the while holds up nobody.
    broker.device("hung").await.send("telemetry", json!({"n": 0})).await;
    let mut device = broker.device("d1").await;
    for n in 0..60 {
        device.send("telemetry", json!({"n": n, "filler": "x".repeat(1000)})).await;
    }
    let options = Options::default()
        .set("BROKER_MAX_PENDING_BYTES", "10KiB")
        .set("BROKER_MAX_PENDING", "61")
        .set("BROKER_ACK_HOLD", "50ms");
    let gateway = options.start(&broker, &upstream).await;
    gateway.metric_reaches("mqtt_rest_gateway_messages_settled_total", &["delivered"], 60).await;
    let expected: Vec<u64> = (0..60).collect();
    assert_eq!(numbers(&upstream, "d1").await, expected);
    assert_eq!(numbers(&upstream, "hung").await, [0]);
    assert!(gateway.metric("mqtt_rest_gateway_overruns_total", &[]).await > 0);
}

/// mosquitto 2.0.11 sends a backlog far beyond the Receive Maximum as long as PUBACKs come in order.
#[tokio::test]
async fn memory_does_not_grow_with_the_backlog() {
    let (small, large) = (peak_of_a_backlog(4000).await, peak_of_a_backlog(20_000).await);
    assert!(large < small * 5 / 4, "{} and {} KiB", small >> 10, large >> 10);
}

/// The peak memory of a gateway that finds `count` messages of 1 KiB and may hold 2 MiB.
async fn peak_of_a_backlog(count: u64) -> u64 {
    let broker = Broker::configured("max_queued_messages 0").await;
    let api = Api::start().await;
    // Slower than the broker.
    api.delay(Duration::from_millis(200));
    let upstream = format!("http://127.0.0.1:{}/1", api.port);
    let options =
        || Options::default().set("BROKER_URL", &broker.url()).set("UPSTREAM_URL", &upstream);
    let mut first = options().spawn().await;
    first.ready().await;
    first.stop().await;
    let mut device = broker.device("d1").await;
    for n in 0..count {
        let mut message =
            device.message("telemetry", format!("{{\"n\":{n},\"x\":\"{}\"}}", "x".repeat(1000)));
        // Many devices: what is bounded is the sum.
        let id = format!("d{}", n % 500);
        message.topic = format!("v1/device/{id}/telemetry");
        message.props.user[0].1 = id;
        device.publish(message).await;
    }
    let gateway = options().set("BROKER_MAX_PENDING_BYTES", "2MiB").spawn().await;
    gateway.metric_reaches("mqtt_rest_gateway_messages_settled_total", &["delivered"], count).await;
    // None of them twice: it leaves only when the broker has read every acknowledgement.
    gateway.metric_is("mqtt_rest_gateway_messages_received_total", &[], count).await;
    assert!(gateway.metric("mqtt_rest_gateway_overruns_total", &[]).await > 0);
    gateway.peak_memory()
}

#[tokio::test]
async fn a_message_of_qos_0_is_handled_like_any_other() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    upstream.responds("POST", &path("d1"), ok()).await;
    let _gateway = Gateway::start(&broker, &upstream).await;
    let mut device = broker.device("d1").await;
    let mut message = device.message("telemetry", r#"{"n":1}"#);
    message.qos = 0;
    message.props.response_topic = Some(device.topic("answers"));
    device.publish(message).await;
    assert_eq!(device.next().await.user("status"), "200");
    assert_eq!(numbers(&upstream, "d1").await, [1]);
}

#[tokio::test]
async fn a_message_by_a_subscription_of_an_earlier_table_is_a_dead_letter() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let mut earlier = Gateway::start(&broker, &upstream).await;
    earlier.stop().await;
    let table = "[upstream]\nurl = \"http://hub\"\n[[route]]\nname = \"other\"\n\
                 on = \"v2/{device_id}\"\ncall = \"POST /{device_id}\"\n";
    let gateway = Options::default().config(table).start(&broker, &upstream).await;
    let mut dead = broker.observer("mqtt-rest-gateway/dead-letter/#").await;
    let mut device = broker.device("d1").await;
    device.send("telemetry", json!({"n": 1})).await;
    let letter = dead.next().await;
    assert_eq!(letter.topic, "mqtt-rest-gateway/dead-letter/none");
    assert_eq!((letter.user("reason"), letter.user("status")), ("no_route", "404"));
    gateway.metric_reaches("mqtt_rest_gateway_messages_settled_total", &["no_route"], 1).await;
}
