//! A fleet in which some fail: nobody else waits for them, what fails alone ends, nothing is given up for an outage,
//! and no device keeps the others out.

use std::time::Duration;

use serde_json::json;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    fixture::SETTLED,
    harness::{Broker, Device, Gateway, Options, while_it_moves},
    scripted_api::{Reply, ScriptedApi, Seen},
};

/// Deadlines so short that they pass many times over in each of these tests.
fn options(broker: &Broker, api: &ScriptedApi) -> Options {
    Options::default()
        .set("BROKER_URL", &broker.url())
        .set("UPSTREAM_URL", &api.url())
        .set("UPSTREAM_DEADLINE", "1s")
        .set("UPSTREAM_ATTEMPT_TIMEOUT", "500ms")
        .set("UPSTREAM_RETRY_MAX", "300ms")
        .set("UPSTREAM_BREAKER_PROBE", "50ms")
        .set("UPSTREAM_BREAKER_PROBE_MAX", "300ms")
}

async fn start(broker: &Broker, api: &ScriptedApi) -> Gateway {
    let gateway = options(broker, api).spawn().await;
    gateway.ready().await;
    gateway
}

async fn devices(broker: &Broker, ids: &[&str]) -> Vec<Device> {
    let mut devices = Vec::new();
    for id in ids {
        devices.push(broker.device(id).await);
    }
    devices
}

fn is_bad(seen: &Seen) -> bool {
    seen.device().starts_with("bad")
}

/// Three at the same moment, before anybody else has spoken: with 500, with 429, without an answer.
#[tokio::test]
async fn devices_that_fail_stop_nobody_else_and_end_by_their_deadline() {
    for fault in [
        Reply::status(500),
        Reply::status(429).with("retry-after", "1"),
        Reply::status(503),
        Reply::Hang,
        Reply::Close,
    ] {
        let broker = Broker::start().await;
        let script = fault.clone();
        let api =
            ScriptedApi::start(
                move |seen| {
                    if is_bad(seen) { script.clone() } else { Reply::status(200) }
                },
            )
            .await;
        let gateway = options(&broker, &api).set("UPSTREAM_DEADLINE", "3s").spawn().await;
        gateway.ready().await;
        let mut dead = broker.observer("mqtt-rest-gateway/dead-letter/#").await;
        let mut bad = devices(&broker, &["bad1", "bad2", "bad3", "bad4"]).await;
        for device in &mut bad {
            device.send("telemetry", json!({"n": 0})).await;
        }
        api.comes("a bad call", 4, is_bad).await;
        // Each of these is served although nothing but failures has been seen, and while they go on.
        let mut good = broker.device("good").await;
        let mut longest = Duration::ZERO;
        let served = async {
            for n in 0.. {
                let asked = Instant::now();
                let answer = good.ask("telemetry", json!({"n": n})).await;
                assert_eq!(answer.user("status"), "200", "{fault:?}");
                longest = longest.max(asked.elapsed());
                sleep(Duration::from_millis(50)).await;
            }
        };
        let ended = async {
            for _ in 0..4 {
                let letter = dead.next().await;
                assert_ne!(letter.user("reason"), "rejected", "{fault:?}");
            }
        };
        tokio::select! {
            () = served => {}
            () = ended => {}
        }
        // Whoever waits for those that fail waits for their deadline.
        assert!(longest < Duration::from_secs(2), "{fault:?}: one waited {longest:?}");
        let (status, reasons) = gateway.get("/readyz").await;
        assert_eq!(status, 200, "{fault:?}: {reasons}");
    }
}

/// The API is well for everybody but one device when an outage ends, whose call happens to try first.
#[tokio::test]
async fn an_outage_ends_for_everybody_whoever_tried_first() {
    let broker = Broker::start().await;
    let api = ScriptedApi::start(|_| Reply::status(503)).await;
    let gateway = start(&broker, &api).await;
    let mut dead = broker.observer("mqtt-rest-gateway/dead-letter/#").await;
    let ids = ["bad1", "d1", "bad2", "d2", "d3", "bad3", "d4", "d5"];
    for device in &mut devices(&broker, &ids).await {
        device.send("telemetry", json!({"n": 0})).await;
    }
    api.comes("a first call", 8, |seen| !seen.is_probe()).await;
    while_it_moves("an outage is said", || async {
        let (status, reasons) = gateway.get("/readyz").await;
        if status == 503 && reasons.contains("upstream: down") { Ok(()) } else { Err(reasons) }
    })
    .await;
    // Several deadlines.
    sleep(Duration::from_secs(3)).await;
    dead.silent().await;
    api.now(|seen| if is_bad(seen) { Reply::status(500) } else { Reply::status(200) });
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["delivered"], 5).await;
    // And with others served, the bad ones end.
    let mut good = broker.device("d1").await;
    let served = async {
        loop {
            good.ask("telemetry", json!({"n": 1})).await;
        }
    };
    let ended = async {
        for _ in 0..3 {
            assert_eq!(dead.next().await.user("reason"), "deadline");
        }
    };
    tokio::select! {
        () = served => {}
        () = ended => {}
    }
}

/// One endpoint is down for everybody, whatever else answers: its messages are held, the other rows go on.
#[tokio::test]
async fn a_row_that_fails_for_everybody_is_held_and_the_others_go_on() {
    let broker = Broker::start().await;
    let down = |seen: &Seen| seen.method == "POST" && seen.path.ends_with("/telemetry");
    let api =
        ScriptedApi::start(move |seen| Reply::status(if down(seen) { 500 } else { 200 })).await;
    let gateway = start(&broker, &api).await;
    let mut dead = broker.observer("mqtt-rest-gateway/dead-letter/#").await;
    let ids = ["d1", "d2", "d3", "d4"];
    for device in &mut devices(&broker, &ids).await {
        device.send("telemetry", json!({"n": 0})).await;
    }
    let mut other = broker.device("other").await;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(4) {
        assert_eq!(other.ask("config/update", json!({"version": 1})).await.user("status"), "200");
    }
    dead.silent().await;
    let (status, reasons) = gateway.get("/readyz").await;
    assert!(status == 503 && reasons.contains("row `telemetry`"), "{reasons}");
    api.now(|_| Reply::status(200));
    gateway
        .metric_is(
            "mqtt_rest_gateway_messages_settled_total",
            &["route=\"telemetry\"", "delivered"],
            4,
        )
        .await;
    dead.silent().await;
    gateway.ready().await;
}

/// Whoever looks at the log at night finds the beginning and the end of it, for each row.
#[tokio::test]
async fn the_log_has_the_beginning_and_the_end_of_an_outage_of_several_rows() {
    let broker = Broker::start().await;
    let api = ScriptedApi::start(|_| Reply::status(503)).await;
    let gateway = start(&broker, &api).await;
    let rows = [("telemetry", "telemetry"), ("update_config", "config/update")];
    for (_, topic) in rows {
        for n in 0..4 {
            broker.device(&format!("{n}-of-{}", topic.len())).await.send(topic, json!({})).await;
        }
    }
    for (row, _) in rows {
        gateway.logs(&format!("calls are tried again row={row}")).await;
    }
    api.now(|_| Reply::status(200));
    for (row, _) in rows {
        gateway.logs(&format!("the upstream is back row={row}")).await;
    }
}

/// One device: an outage gives nothing up, and a message that alone fails ends.
#[tokio::test]
async fn a_fleet_of_one_loses_nothing_in_an_outage() {
    let broker = Broker::start().await;
    let api = ScriptedApi::start(|_| Reply::status(503)).await;
    let gateway = start(&broker, &api).await;
    let mut dead = broker.observer("mqtt-rest-gateway/dead-letter/#").await;
    let mut device = broker.device("d1").await;
    for n in 0..5 {
        device.send("telemetry", json!({"n": n, "bad": n == 2})).await;
    }
    api.comes("an attempt", 5, |seen| !seen.is_probe()).await;
    sleep(Duration::from_secs(3)).await;
    dead.silent().await;
    api.now(|seen| Reply::status(if seen.body.contains("\"bad\":true") { 500 } else { 200 }));
    let letter = dead.next().await;
    assert_eq!((letter.user("reason"), &letter.json()["n"]), ("deadline", &json!(2)));
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["delivered"], 4).await;
}

#[tokio::test]
async fn a_retry_after_of_nothing_or_in_the_past_is_no_hot_loop() {
    for header in ["0", "Wed, 21 Oct 2015 07:28:00 GMT", "-5", "soon"] {
        let broker = Broker::start().await;
        let api = ScriptedApi::start(move |seen| {
            if is_bad(seen) {
                Reply::status(429).with("retry-after", header)
            } else {
                Reply::status(200)
            }
        })
        .await;
        let gateway = start(&broker, &api).await;
        let mut dead = broker.observer("mqtt-rest-gateway/dead-letter/#").await;
        broker.device("bad").await.send("telemetry", json!({})).await;
        assert_eq!(dead.next().await.user("reason"), "deadline");
        // The back-off begins at 20 ms and ends at 300.
        let attempts = api.count(is_bad);
        assert!(attempts < 60, "{header}: {attempts} attempts");
        drop(gateway);
    }
}

/// Longer than the deadline: a reason to wait, for this message and this device's next one.
#[tokio::test]
async fn a_retry_after_beyond_the_deadline_holds_the_device_and_gives_nothing_up() {
    let broker = Broker::start().await;
    let api = ScriptedApi::start(|seen| {
        if seen.device() == "busy" {
            Reply::status(429).with("retry-after", "3")
        } else {
            Reply::status(200)
        }
    })
    .await;
    let gateway = start(&broker, &api).await;
    let mut dead = broker.observer("mqtt-rest-gateway/dead-letter/#").await;
    let (mut busy, mut other) = (broker.device("busy").await, broker.device("other").await);
    for n in 0..3 {
        busy.send("telemetry", json!({"n": n})).await;
    }
    api.comes("the busy one", 1, |seen| seen.device() == "busy").await;
    let told = Instant::now();
    api.now(|_| Reply::status(200));
    while told.elapsed() < Duration::from_millis(2800) {
        assert_eq!(other.ask("telemetry", json!({})).await.user("status"), "200");
        assert_eq!(api.count(|seen| seen.device() == "busy"), 1, "not before the time is over");
    }
    api.comes("the busy one", 4, |seen| seen.device() == "busy").await;
    dead.silent().await;
    drop(gateway);
}

/// The API's word can be longer than anything waits: then the message ends, and the next one is not even tried.
#[tokio::test]
async fn a_retry_after_of_an_hour_ends_the_message_and_refuses_the_next_ones() {
    let broker = Broker::start().await;
    let api = ScriptedApi::start(|seen| {
        if seen.device() == "busy" {
            Reply::status(429).with("retry-after", "3600")
        } else {
            Reply::status(200)
        }
    })
    .await;
    let _gateway = start(&broker, &api).await;
    let (mut busy, mut other) = (broker.device("busy").await, broker.device("other").await);
    let served = async {
        loop {
            other.ask("telemetry", json!({})).await;
        }
    };
    let asked = async {
        for n in 0..3 {
            let answer = busy.ask("telemetry", json!({"n": n})).await;
            assert_eq!(
                (answer.user("status"), &answer.json()["code"]),
                ("429", &json!("throttled"))
            );
            assert!(
                answer.json()["error"].as_str().unwrap().contains(" s"),
                "it says for how long"
            );
        }
    };
    tokio::select! {
        () = served => {}
        () = asked => {}
    }
    assert_eq!(api.count(|seen| seen.device() == "busy"), 1);
}

/// The limit for all only delays: what waits for it is not given up.
#[tokio::test]
async fn the_rate_limit_of_all_devices_gives_no_message_up() {
    let broker = Broker::start().await;
    let api = ScriptedApi::start(|_| Reply::status(200)).await;
    let gateway = options(&broker, &api).set("UPSTREAM_RATE_TOTAL", "10/s").spawn().await;
    gateway.ready().await;
    let mut dead = broker.observer("mqtt-rest-gateway/dead-letter/#").await;
    let mut device = broker.device("d").await;
    for n in 0..50 {
        let id = format!("d{n}");
        let mut message = device.message("telemetry", "{}");
        message.topic = format!("v1/device/{id}/telemetry");
        message.props.user[0].1 = id;
        device.publish(message).await;
    }
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["delivered"], 50).await;
    dead.silent().await;
}

/// A name that moves, an old server that still answers 503 on connections that are kept: a repetition goes where the
/// name points to now.
#[tokio::test]
async fn repetitions_go_on_a_new_connection() {
    let broker = Broker::start().await;
    // What is behind the address is another server after the first connections.
    let api = ScriptedApi::start(|_| Reply::status(200)).await;
    let gateway = start(&broker, &api).await;
    let mut device = broker.device("d1").await;
    assert_eq!(device.ask("telemetry", json!({})).await.user("status"), "200");
    let old = api.seen().iter().map(|seen| seen.connection).max().unwrap();
    api.now(move |seen| Reply::status(if seen.connection <= old { 503 } else { 200 }));
    assert_eq!(device.ask("telemetry", json!({})).await.user("status"), "200");
    drop(gateway);
}

/// Servers that close connections that were idle for a moment: a row that may not be repeated loses nothing.
#[tokio::test]
async fn connections_that_the_server_closes_cost_no_row_its_message() {
    let shipped = include_str!("../../config.toml");
    for retry in ["never", "idempotent", "always"] {
        let broker = Broker::start().await;
        // Every second request on a connection meets its end.
        let api = ScriptedApi::start(
            |seen| {
                if seen.nth == 0 { Reply::status(200) } else { Reply::Close }
            },
        )
        .await;
        let name = "name     = \"telemetry\"\n";
        let table = shipped.replace(name, &format!("{name}retry = \"{retry}\"\n"));
        assert_ne!(table, shipped);
        let gateway = options(&broker, &api).config(&table).spawn().await;
        gateway.ready().await;
        let mut device = broker.device("d1").await;
        for n in 0..10 {
            let answer = device.ask("telemetry", json!({"n": n})).await;
            assert_eq!(answer.user("status"), "200", "{retry} {n}");
        }
    }
}

/// This machine has no descriptor left: that is no outage of the API, and nothing is given up for it.
#[tokio::test]
async fn a_machine_without_descriptors_is_no_outage_of_the_api() {
    let broker = Broker::start().await;
    let api = ScriptedApi::start(|_| Reply::status(200).after(Duration::from_millis(50))).await;
    let gateway = options(&broker, &api).descriptors(32).spawn().await;
    gateway.ready().await;
    let mut dead = broker.observer("mqtt-rest-gateway/dead-letter/#").await;
    let mut device = broker.device("d").await;
    for n in 0..300 {
        let id = format!("d{}", n % 100);
        let mut message = device.message("telemetry", "{}");
        message.topic = format!("v1/device/{id}/telemetry");
        message.props.user[0].1 = id;
        device.publish(message).await;
    }
    gateway.metric_reaches("mqtt_rest_gateway_messages_settled_total", &["delivered"], 300).await;
    dead.silent().await;
    assert_eq!(gateway.metric("mqtt_rest_gateway_upstream_outages_total", &[]).await, 0);
}

/// A device that hangs with many messages on a small window: the others are served all the same.
#[tokio::test]
async fn one_device_does_not_keep_the_others_out_of_the_window() {
    let broker = Broker::start().await;
    let api =
        ScriptedApi::start(|seen| if is_bad(seen) { Reply::Hang } else { Reply::status(200) })
            .await;
    let gateway = options(&broker, &api)
        .set("BROKER_MAX_PENDING", "20")
        .set("BROKER_ACK_HOLD", "200ms")
        .spawn()
        .await;
    gateway.ready().await;
    let (mut bad, mut good) = (broker.device("bad").await, broker.device("good").await);
    let mut errors = broker.observer("v1/device/bad/errors").await;
    for n in 0..60 {
        bad.send("telemetry", json!({"n": n})).await;
    }
    let mut waited = Vec::new();
    for n in 0..20 {
        let asked = Instant::now();
        assert_eq!(good.ask("telemetry", json!({"n": n})).await.user("status"), "200");
        waited.push(asked.elapsed());
    }
    // It takes some attempts and half a deadline to see who it is; who waits for all of them waits for ever.
    let late = waited.iter().filter(|waited| **waited > Duration::from_secs(3)).count();
    assert!(late <= 2, "{waited:?}");
    // What was refused was refused with a reason.
    let refused = errors.next().await;
    assert!(["throttled", "deadline"].contains(&refused.json()["code"].as_str().unwrap()));
    let held = gateway.metric("mqtt_rest_gateway_messages_pending_of_one_device", &[]).await;
    assert!(held <= 20, "{held}");
}

/// Two thirds of the window hang, each with a device of its own, until everybody else is through.
#[tokio::test]
async fn forty_devices_that_hang_delay_no_message_of_the_others() {
    const WINDOW: u64 = 60;
    const HANGING: u64 = 40;
    const WELL: u64 = 8;
    /// Twenty times what the window has left for them.
    const MESSAGES: u64 = 50;
    let broker = Broker::start().await;
    let (let_go, held) = watch::channel(None);
    let api = ScriptedApi::start(move |seen| {
        if is_bad(seen) { Reply::Later(held.clone()) } else { Reply::status(200) }
    })
    .await;
    let gateway = options(&broker, &api)
        .set("BROKER_MAX_PENDING", &WINDOW.to_string())
        .set("UPSTREAM_ATTEMPT_TIMEOUT", "1h")
        .set("UPSTREAM_DEADLINE", "1h")
        .spawn()
        .await;
    gateway.ready().await;
    let mut dead = broker.observer("mqtt-rest-gateway/dead-letter/#").await;
    let pending = async || gateway.metric("mqtt_rest_gateway_messages_pending", &[]).await;
    let mut well = JoinSet::new();
    for device in 0..WELL {
        let mut device = broker.device(&format!("well{device}")).await;
        well.spawn(async move {
            // The next one goes when this one is through.
            for n in 0..MESSAGES {
                let answer = device.ask("telemetry", json!({ "n": n })).await;
                assert_eq!(answer.user("status"), "200");
            }
        });
    }
    // One after the other they come between the messages of the others.
    let hanging = async {
        for device in 0..HANGING {
            let id = format!("bad{device}");
            broker.device(&id).await.send("telemetry", json!({})).await;
            api.comes("a call that hangs", usize::try_from(device).unwrap() + 1, is_bad).await;
        }
    };
    let watching = async {
        loop {
            let held = pending().await;
            assert!(held <= HANGING + WELL, "{held} messages are held");
            sleep(Duration::from_millis(20)).await;
        }
    };
    let all = async { tokio::join!(well.join_all(), hanging) };
    tokio::select! {
        _ = all => {}
        () = watching => {}
    }
    gateway.metric_is(SETTLED, &["delivered"], WELL * MESSAGES).await;
    // Nobody has let them go: they are where they were, and nobody holds more than the one.
    assert_eq!(pending().await, HANGING);
    assert_eq!(gateway.metric("mqtt_rest_gateway_messages_pending_of_one_device", &[]).await, 1);
    let (status, reasons) = gateway.get("/readyz").await;
    assert_eq!(status, 200, "{reasons}");
    let_go.send(Some("{}".to_owned())).unwrap();
    gateway.settles().await;
    let all = WELL * MESSAGES + HANGING;
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["delivered"], all).await;
    assert_eq!(api.count(|seen| !seen.is_probe()), usize::try_from(all).unwrap());
    dead.silent().await;
}

/// gzip and deflate are decoded although the request did not ask for them; an unknown coding is no answer.
#[tokio::test]
async fn content_codings_are_decoded_or_refused() {
    // {"version":7} by gzip.
    let gzip = [
        0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 2, 0xff, 0xab, 0x56, 0x2a, 0x4b, 0x2d, 0x2a, 0xce, 0xcc,
        0xcf, 0x53, 0xb2, 0x32, 0xaf, 0x05, 0, 0xb5, 0x3d, 0x6a, 0x27, 13, 0, 0, 0,
    ];
    let broker = Broker::start().await;
    let api = ScriptedApi::start(move |seen| match seen.device() {
        "zipped" => Reply::status(200).with("content-encoding", "gzip").body(gzip),
        "lies" => Reply::status(200).with("content-encoding", "gzip").body("{\"version\":7}"),
        "odd" => Reply::status(200).with("content-encoding", "snappy").body("????"),
        _ => Reply::status(200),
    })
    .await;
    let _gateway = start(&broker, &api).await;
    let asks = async |id: &str| {
        let answer = broker.device(id).await.ask("config", json!({})).await;
        (answer.user("status").to_owned(), String::from_utf8_lossy(&answer.payload).into_owned())
    };
    let (status, body) = asks("zipped").await;
    assert_eq!((status.as_str(), body.as_str()), ("200", "{\"version\":7}"));
    for id in ["odd", "lies"] {
        let (status, body) = asks(id).await;
        assert_eq!(status, "502", "{id}: {body}");
        assert_eq!(
            api.count(|seen| seen.device() == id),
            1,
            "{id}: it was served, and not asked again"
        );
    }
}

/// Large answers to many devices at once: what is held of them is bounded.
#[tokio::test]
async fn answers_that_are_held_are_bounded_in_bytes() {
    let broker = Broker::start().await;
    let large = format!("{{\"x\":\"{}\"}}", "x".repeat(900_000));
    let api = ScriptedApi::start(move |_| Reply::status(200).body(large.clone())).await;
    let gateway = options(&broker, &api)
        .set("UPSTREAM_MAX_HELD_RESPONSE_BYTES", "4MiB")
        .set("UPSTREAM_ATTEMPT_TIMEOUT", "10s")
        .set("UPSTREAM_DEADLINE", "30s")
        .spawn()
        .await;
    gateway.ready().await;
    let before = gateway.peak_memory();
    let mut device = broker.device("d").await;
    for n in 0..150 {
        let id = format!("d{n}");
        let mut message = device.message("config/update", "{}");
        message.topic = format!("v1/device/{id}/config/update");
        message.props.user[0].1 = id.clone();
        message.props.response_topic = Some(format!("v1/device/{id}/answers"));
        device.publish(message).await;
    }
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["delivered"], 150).await;
    let grown = (gateway.peak_memory() - before) >> 20;
    // The budget, and what the client library reads ahead on each of 150 connections: up to 0.4 MiB. All of the
    // answers are 135 MiB, which came to this twice over.
    assert!(grown < 110, "{grown} MiB");
}
