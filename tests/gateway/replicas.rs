//! Several gateways on one broker: a group that shares, one that leaves, one each for a part of the topics.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use crate::{
    harness::{Broker, Gateway, Options, Upstream, eventually, while_it_moves},
    link::Link,
    load::{Api, Seed, Sending, between},
    rig::{LOAD, Rig, WINDOW},
};

#[tokio::test]
async fn replicas_of_a_group_share_the_messages_and_know_their_own() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let options = |id: &str| {
        Options::default().set("BROKER_SHARE_GROUP", "gateways").set("BROKER_CLIENT_ID", id)
    };
    let first = options("g1").start(&broker, &upstream).await;
    let second = options("g2").start(&broker, &upstream).await;
    upstream.answers("GET", "/v1/devices/d1/config", 200, json!({"version": 1})).await;
    let mut device = broker.device("d1").await;
    for _ in 0..20 {
        // Its reply goes to a topic that a row listens on, and No Local cannot be had.
        device.send("config", json!(null)).await;
        assert_eq!(device.next().await.topic, "v1/device/d1/config/update");
    }
    while_it_moves("every reply came back and was known", || async {
        let loops = async |gateway: &Gateway| {
            gateway.metric("mqtt_rest_gateway_messages_settled_total", &["loop"]).await
        };
        match loops(&first).await + loops(&second).await {
            20 => Ok(()),
            known => Err(known),
        }
    })
    .await;
    assert_eq!(upstream.count("GET /v1/devices/d1/config").await, 20);
    for gateway in [&first, &second] {
        assert!(
            gateway.metric("mqtt_rest_gateway_messages_settled_total", &["delivered"]).await > 0
        );
    }
}

/// The replica with this number.
async fn replica(rig: Rig, number: usize) -> (Rig, Gateway) {
    let mut rig =
        rig.set("BROKER_SHARE_GROUP", "gateways").set("BROKER_CLIENT_ID", &format!("g{number}"));
    let gateway = rig.gateway().await;
    gateway.ready().await;
    (rig, gateway)
}

async fn replicas(count: usize) -> (Rig, Vec<Gateway>) {
    let (mut rig, mut gateways) = (Rig::new().await, Vec::new());
    for number in 0..count {
        let gateway;
        (rig, gateway) = replica(rig, number).await;
        gateways.push(gateway);
    }
    (rig, gateways)
}

/// Everything that was sent is at the API.
async fn everything_arrives(rig: &Rig, sending: &mut Sending) {
    sending.sent().await;
    let sent = usize::try_from(sending.count()).unwrap();
    while_it_moves("everything has arrived", || async {
        let arrived = rig.api.distinct();
        if arrived == sent { Ok(()) } else { Err(arrived) }
    })
    .await;
}

/// The README says so. A broker with which this fails could be promised more.
#[tokio::test]
async fn replicas_that_share_lose_nothing_but_the_order() {
    let seed = Seed::new().await;
    let (rig, _gateways) = replicas(3).await;
    let mut sending = LOAD.start(rig.broker.port, &mut seed.rng());
    everything_arrives(&rig, &mut sending).await;
    let account = sending.account(&rig.api);
    eprintln!("{account:?}");
    assert!(account.lost.is_empty() && account.twice.is_empty() && account.again == 0);
    assert!(!account.disordered.is_empty());
}

#[tokio::test]
async fn a_replica_that_is_killed_and_comes_back_loses_nothing() {
    let seed = Seed::new().await;
    let mut rng = seed.rng();
    for count in [2, 3] {
        let (mut rig, mut gateways) = replicas(count).await;
        let mut sending = LOAD.start(rig.broker.port, &mut rng);
        for _ in 0..3 {
            sleep(between(&mut rng, 50, 500)).await;
            let number = rng.usize(..count);
            gateways[number].kill().await;
            sleep(between(&mut rng, 0, 500)).await;
            (rig, gateways[number]) = replica(rig, number).await;
        }
        everything_arrives(&rig, &mut sending).await;
        let account = sending.account(&rig.api);
        eprintln!("{count} replicas: {account:?}");
        assert!(account.lost.is_empty() && account.twice.is_empty(), "{account:?}");
        assert!(account.again <= 3 * 2 * WINDOW, "{account:?}");
    }
}

#[tokio::test]
async fn a_replica_that_leaves_for_good_is_drained() {
    let seed = Seed::new().await;
    let mut rng = seed.rng();
    let (mut rig, mut gateways) = replicas(3).await;
    let mut sending = LOAD.start(rig.broker.port, &mut rng);
    sleep(between(&mut rng, 100, 500)).await;
    gateways[2].kill().await;
    // The broker goes on giving it its share, and keeps it for it.
    sleep(between(&mut rng, 100, 500)).await;
    let mut drain = rig.draining("1s").await;
    assert_eq!(drain.ended().await.code(), Some(0));
    everything_arrives(&rig, &mut sending).await;
    let account = sending.account(&rig.api);
    assert!(account.lost.is_empty() && account.twice.is_empty(), "{account:?}");
    drain.logs("session_present=true").await;
    let (_rig, again) = replica(rig, 2).await;
    again.logs("session_present=false").await;
}

#[tokio::test]
async fn a_gateway_that_is_drained_leaves_nothing_behind() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    upstream.answers("POST", "/v1/devices/d1/telemetry", 200, json!({})).await;
    let mut gateway = Gateway::start(&broker, &upstream).await;
    gateway.stop().await;
    let mut device = broker.device("d1").await;
    for n in 0..50 {
        device.send("telemetry", json!({"n": n})).await;
    }
    let options = Options::default().set("BROKER_URL", &broker.url());
    let mut drain = options.set("UPSTREAM_URL", &upstream.url()).drain("1s").await;
    eventually("it says that it drains", || async {
        let (status, reason) = drain.get("/readyz").await;
        (status == 503 && reason.contains("draining")).then_some(())
    })
    .await;
    // No message is accepted that comes after the drain began.
    device.send("telemetry", json!({"n": 50})).await;
    assert_eq!(drain.ended().await.code(), Some(0));
    let requests = upstream.requests().await;
    let numbers = requests.iter().map(|r| r.body_json::<Value>().unwrap()["n"].as_u64().unwrap());
    assert_eq!(numbers.collect::<Vec<_>>(), (0..50).collect::<Vec<_>>());
    let next = Gateway::start(&broker, &upstream).await;
    next.logs("session_present=false").await;
}

/// What is too much at once comes on another connection, and the way there is longer than the quiet that
/// would be the end.
#[tokio::test]
async fn a_drain_takes_a_backlog_in_parts() {
    const TABLE: &str = "[upstream]\nurl = \"http://hub\"\n[[route]]\nname = \"telemetry\"\n\
                         on = \"v1/device/{device_id}/telemetry\"\n\
                         call = \"POST /v1/devices/{device_id}/telemetry\"\n";
    let (broker, api) = (Broker::start().await, Api::start().await);
    let to_broker = Link::to(broker.port).await;
    let options = || {
        Options::default()
            .config(TABLE)
            .set("BROKER_URL", &to_broker.url("mqtt"))
            .set("BROKER_MAX_PENDING_BYTES", "20KiB")
            .set("UPSTREAM_URL", &format!("http://127.0.0.1:{}/1", api.port))
    };
    let mut gateway = options().spawn().await;
    gateway.ready().await;
    gateway.stop().await;
    let mut device = broker.device("d1").await;
    for n in 0..40 {
        device.send("telemetry", json!({"n": n, "filler": "x".repeat(1000)})).await;
    }
    to_broker.delay(Duration::from_millis(300));
    let mut drain = options().set("BROKER_MAX_PENDING", "40").drain("1s").await;
    assert_eq!(drain.ended().await.code(), Some(0));
    assert_eq!(api.distinct(), 40);
    drain.logs("more than its Receive Maximum").await;
}

#[tokio::test]
async fn a_drain_waits_for_the_upstream_and_can_be_told_to_stop() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    upstream.answers("POST", "/v1/devices/d1/telemetry", 503, json!({})).await;
    let mut gateway = Gateway::start(&broker, &upstream).await;
    gateway.stop().await;
    let mut device = broker.device("d1").await;
    device.send("telemetry", json!({"n": 0})).await;
    let options =
        Options::default().set("BROKER_URL", &broker.url()).set("SHUTDOWN_GRACE", "200ms");
    let options = options.set("UPSTREAM_URL", &upstream.url());
    let mut drain = options.clone().drain("100ms").await;
    upstream.arrived("POST /v1/devices/d1/telemetry", 3).await;
    assert_eq!(drain.stop().await.code(), Some(1));
    upstream.answers("POST", "/v1/devices/d1/telemetry", 200, json!({})).await;
    let mut drain = options.drain("1s").await;
    assert_eq!(drain.ended().await.code(), Some(0));
    drain.logs("session_present=true").await;
}

/// Where topics have a level above the device, each replica takes some values of it, and every promise
/// holds: one gateway has all of a device.
#[tokio::test]
async fn replicas_for_parts_of_the_topics_keep_the_order() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let options = |site: &str| {
        let table = format!(
            "[upstream]\nurl = \"http://hub\"\n[[route]]\nname = \"reading\"\n\
             on = \"plant/{site}/{{device_id}}/reading\"\ncall = \"POST /{site}/{{device_id}}\"\n"
        );
        Options::default().config(&table).set("BROKER_CLIENT_ID", &format!("gateway-{site}"))
    };
    for site in ["north", "south"] {
        upstream.answers("POST", &format!("/{site}/d1"), 200, json!({})).await;
    }
    let mut north = options("north").start(&broker, &upstream).await;
    let _south = options("south").start(&broker, &upstream).await;
    let mut device = broker.device("d1").await;
    for n in 0..60 {
        for site in ["north", "south"] {
            let mut message = device.message("reading", json!({"n": n}).to_string());
            message.topic = format!("plant/{site}/d1/reading");
            device.publish(message).await;
        }
        match n {
            20 => north.kill().await,
            40 => north = options("north").start(&broker, &upstream).await,
            _ => {}
        }
    }
    for site in ["north", "south"] {
        let mut numbers = while_it_moves("all of a site arrive", || async {
            let requests = upstream.requests().await;
            let own = requests.iter().filter(|request| request.url.path() == format!("/{site}/d1"));
            let numbers: Vec<_> =
                own.map(|r| r.body_json::<Value>().unwrap()["n"].as_u64().unwrap()).collect();
            if numbers.contains(&59) { Ok(numbers) } else { Err(numbers.len()) }
        })
        .await;
        // What was in flight at the kill came twice, in order.
        assert!(numbers.windows(2).all(|pair| pair[0] < pair[1] || pair[1] <= 20), "{numbers:?}");
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers, (0..60).collect::<Vec<_>>(), "{site}");
    }
}
