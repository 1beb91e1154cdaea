//! The order of each device on the reference broker, through everything at once, with every setting that
//! matters at its default.
//!
//! `ACK_HOLDS=0s,100ms,2s` measures these values of `ack_hold` side by side instead, and asserts less.

use std::{collections::BTreeSet, env, time::Duration};

use fastrand::Rng;
use tokio::{task::JoinSet, time::sleep};

use crate::{
    harness::{Broker, Options, eventually, telemetry, while_it_moves},
    load::{Account, Load, Seed, between},
    rig::Rig,
    scripted_api::{Reply, ScriptedApi},
    wire::{Packet, Wire},
};

/// 300 messages a second.
const LOAD: Load = Load { devices: 30, messages: 150, pause: Duration::from_millis(200) };

#[tokio::test]
async fn the_order_of_each_device_holds_through_kills_an_outage_and_a_restart_of_the_broker() {
    let seed = Seed::new().await;
    let measured = env::var("ACK_HOLDS").ok();
    let Some(holds) = measured else {
        // A small window is soon exceeded by Mosquitto 2.0.11, which then lets messages overtake.
        for window in ["512", "20"] {
            everything(None, window, seed.rng()).await.nothing_lost_and_all_in_order();
        }
        return;
    };
    let mut runs = JoinSet::new();
    for hold in holds.split(',').map(str::to_owned) {
        let mut rng = seed.rng();
        rng = rng.fork();
        runs.spawn(async move { (everything(Some(&hold), "512", rng).await, hold) });
    }
    for (Account { sent, lost, disordered, again, twice, .. }, hold) in runs.join_all().await {
        let (lost, disordered, twice) = (lost.len(), disordered.len(), twice.len());
        eprintln!(
            "ack_hold {hold:>8}: {sent} sent, {lost} lost, {disordered} out of order, {again} again from \
             the next gateway, {twice} twice from the same"
        );
        assert_eq!(lost, 0);
    }
}

/// Eight kills, 4 s of 503 for everybody, a restart of the broker.
async fn everything(ack_hold: Option<&str>, window: &str, mut rng: Rng) -> Account {
    // What the rig has made shorter is as it ships.
    let mut rig = Rig::new()
        .await
        .set("BROKER_MAX_PENDING", window)
        .set("UPSTREAM_BREAKER_PROBE", "1s")
        .set("UPSTREAM_BREAKER_PROBE_MAX", "30s")
        .set("UPSTREAM_RETRY_INITIAL", "200ms");
    if let Some(hold) = ack_hold {
        rig = rig.set("BROKER_ACK_HOLD", hold);
    }
    let mut gateway = rig.gateway().await;
    gateway.ready().await;
    let sending = LOAD.start(rig.broker.port, &mut rng);
    for kill in 0..8 {
        match kill {
            2 => rig.api.answers(503),
            4 => rig.api.answers(200),
            6 => {
                rig.broker.stop().await;
                sleep(between(&mut rng, 0, 300)).await;
                rig.broker.start_again().await;
            }
            _ => {}
        }
        // Two kills of the outage, 4 s.
        let range = if (2..4).contains(&kill) { 2000..=2000 } else { 200..=1500 };
        sleep(between(&mut rng, *range.start(), *range.end())).await;
        gateway.kill().await;
        gateway = rig.gateway().await;
    }
    rig.ends(gateway, sending).await
}

/// Mosquitto 2.0.11 has more in flight than the Receive Maximum, so messages can be settled far behind others that
/// hang. Acknowledged at the end, they would let it send a message that comes in that moment before those that it has
/// queued.
#[tokio::test]
async fn what_comes_while_the_gateway_leaves_overtakes_nothing() {
    const QUEUED: u64 = 1000;
    let broker = Broker::configured("max_queued_messages 0").await;
    let api = ScriptedApi::start(|seen| {
        if seen.device().starts_with(['h', 'z']) { Reply::Hang } else { Reply::status(200) }
    })
    .await;
    let options =
        Options::default().set("BROKER_URL", &broker.url()).set("UPSTREAM_URL", &api.url());
    let options = options.set("BROKER_MAX_PENDING", "8").set("SHUTDOWN_GRACE", "300ms");
    // It has a session.
    let mut gateway = options.clone().spawn().await;
    gateway.ready().await;
    gateway.stop().await;
    let mut wire = Wire::connect(broker.port, &Packet::connect("devices")).await.unwrap();
    // Those of q go at once, and with each the broker exceeds the Receive Maximum further.
    for n in 0..8 {
        publish(&mut wire, "q", n).await;
    }
    for n in 0..10 {
        publish(&mut wire, &format!("h{}", n / 2), n).await;
    }
    for n in 0..50 {
        publish(&mut wire, &format!("r{n}"), n).await;
    }
    for n in 0..QUEUED {
        publish(&mut wire, "z", n).await;
    }
    let mut gateway = options.clone().spawn().await;
    eventually("the window is full, or exceeded", || async {
        let exceeded = api.count(|seen| seen.device().starts_with('r')) == 50;
        // A broker that keeps to it stops at the eighth that hangs.
        let came = gateway.metric("mqtt_rest_gateway_messages_received_total", &[]).await;
        let pending = gateway.metric("mqtt_rest_gateway_messages_pending", &[]).await;
        (exceeded || (came, pending) == (16, 8)).then_some(())
    })
    .await;
    let publishing = tokio::spawn(async move {
        for n in QUEUED..100 * QUEUED {
            publish(&mut wire, "z", n).await;
        }
    });
    gateway.stop().await;
    publishing.abort();
    let hung = api.count(|_| true);
    api.now(|_| Reply::status(200));
    let _gateway = options.spawn().await;
    let numbers = || -> Vec<u64> {
        let of_z = api.seen().into_iter().skip(hung).filter(|seen| seen.device() == "z");
        of_z.map(|seen| seen.body.parse().unwrap()).collect()
    };
    while_it_moves("what was queued", || {
        let came: BTreeSet<_> = numbers().into_iter().filter(|n| *n < QUEUED).collect();
        async move { if came.len() as u64 == QUEUED { Ok(()) } else { Err(came.len()) } }
    })
    .await;
    let overtaken: Vec<_> =
        numbers().windows(2).filter(|w| w[0] > w[1]).map(<[_]>::to_vec).collect();
    assert!(overtaken.is_empty(), "{overtaken:?}");
}

/// A message of a device, until the broker has it.
async fn publish(wire: &mut Wire, device: &str, n: u64) {
    wire.send(&Packet::Publish(telemetry(1, device, n.to_string()))).await.unwrap();
    wire.receive().await.unwrap();
}
