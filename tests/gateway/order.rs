//! The order of each device on the reference broker, through everything at once, with every setting that
//! matters at its default.
//!
//! `ACK_HOLDS=0s,100ms,2s` measures these values of `ack_hold` side by side instead, and asserts less.

use std::{env, time::Duration};

use fastrand::Rng;
use tokio::{task::JoinSet, time::sleep};

use crate::{
    load::{Account, Load, Seed, between},
    rig::Rig,
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
