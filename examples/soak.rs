//! Faults at random for as long as you like: kills, stops, cuts, stalls, restarts of the broker,
//! outages of the API, devices that it serves badly; and all the while devices that it serves badly always (500, 429, no
//! answer, pages, lies), and messages that are poison to gateway or broker. Ends with a table, and with 1 if anything was
//! lost or out of order.
//!
//! ```sh
//! cargo build --release && cargo run --release --example soak -- --minutes 10 [--seed 1] [--ack-hold forever]
//! ```
//!
//! Needs mosquitto, like the tests, and the gateway that was built before.

#![expect(clippy::unwrap_used, reason = "a soak that cannot go on has failed")]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this is what it is for")]

use std::{
    collections::BTreeMap,
    io,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use clap::Parser;
use fastrand::Rng;
use testkit::{
    Gateway, credentials,
    link::Cut,
    load::{Account, Load, POISON, between},
    rig::Rig,
    wire::{Packet, Props, Publish, Wire},
};
use tokio::time::{Instant, sleep};

/// How long everything may take to arrive after the last fault.
const DRAIN: Duration = Duration::from_mins(3);

#[derive(Parser)]
struct Arguments {
    /// How long.
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    /// Repeats the choices of an earlier run; the moments are never quite the same.
    #[arg(long)]
    seed: Option<u64>,
    /// The gateway's `[broker] ack_hold`.
    #[arg(long, default_value = "100ms")]
    ack_hold: String,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Arguments { minutes, seed, ack_hold } = Arguments::parse();
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("seed {seed}");
    let mut rng = Rng::with_seed(seed);
    // Short, so that stalls outlast it now and then.
    let mut rig = Rig::new().await.set("BROKER_KEEP_ALIVE", "5s").set("BROKER_ACK_HOLD", &ack_hold);
    let mut gateway = rig.gateway().await;
    gateway.ready().await;
    let letters = Arc::<AtomicU64>::default();
    tokio::spawn(count_dead_letters(rig.broker.port, letters.clone()));
    let poisoned = Arc::<AtomicU64>::default();
    for fault in ["error", "busy", "patience", "hang", "page", "coded", "wordy"] {
        tokio::spawn(send_poison(rig.broker.port, fault, poisoned.clone()));
    }
    let load = Load { devices: 20, messages: 0, pause: Duration::from_millis(400) };
    let mut sending = load.start(rig.broker.port, &mut rng);

    let end = Instant::now() + Duration::from_secs_f64(minutes * 60.0);
    let (mut faults, mut unclean) = (BTreeMap::<&str, u32>::new(), 0);
    while Instant::now() < end {
        sleep(between(&mut rng, 100, 3000)).await;
        let name;
        (name, gateway) = fault(&mut rig, gateway, &mut rng, &mut unclean).await;
        *faults.entry(name).or_default() += 1;
    }

    sending.end().await;
    let sent = usize::try_from(sending.count()).unwrap();
    let drained = Instant::now() + DRAIN;
    while rig.api.distinct() < sent && Instant::now() < drained {
        sleep(Duration::from_millis(200)).await;
    }
    unclean += u32::from(gateway.stop().await.code() != Some(0));
    let account = sending.account(&rig.api);
    println!("faults        {faults:?}");
    println!("poison sent   {:7}", poisoned.load(Ordering::Relaxed));
    println!("unclean stops {unclean:7}\ndead letters  {:7}", letters.load(Ordering::Relaxed));
    table(&account);
    let good = account.lost.is_empty() && account.disordered.is_empty();
    if !good {
        eprintln!("{account:?}\n---- log of the last gateway\n{}", gateway.log());
    }
    ExitCode::from(u8::from(!good))
}

fn table(account: &Account) {
    let Account { sent, arrived, lost, disordered, again, twice, stall } = account;
    println!("sent          {sent:7}\narrived       {arrived:7}\nlost          {:7}", lost.len());
    println!("duplicates    {:7}", again + twice.len() as u64);
    println!("  of these from another gateway {again}, from the same {}", twice.len());
    println!("out of order  {:7}\nlongest stall {stall:7.1?}", disordered.len());
}

/// One fault and its end; its name, and the gateway that runs now.
async fn fault(
    rig: &mut Rig,
    mut gateway: Gateway,
    rng: &mut Rng,
    unclean: &mut u32,
) -> (&'static str, Gateway) {
    let while_it_lasts = between(rng, 100, 5000);
    let link = if rng.bool() { &rig.to_broker } else { &rig.to_api };
    let name = match rng.u32(0..10) {
        0 => {
            gateway.kill().await;
            gateway = rig.gateway().await;
            return ("kill", gateway);
        }
        1 => {
            *unclean += u32::from(gateway.stop().await.code() != Some(0));
            gateway = rig.gateway().await;
            return ("stop", gateway);
        }
        2 => {
            rig.broker.stop().await;
            sleep(while_it_lasts / 2).await;
            rig.broker.start_again().await;
            return ("broker restart", gateway);
        }
        3 => {
            link.cut(if rng.bool() { Cut::Reset } else { Cut::Close });
            return ("cut", gateway);
        }
        4 => {
            link.refuse();
            "refuse"
        }
        5 => {
            // Past the keep-alive now and then.
            link.stall();
            sleep(if rng.u8(0..4) == 0 { Duration::from_secs(12) } else { Duration::ZERO }).await;
            "stall"
        }
        6 => {
            link.trickle();
            "trickle"
        }
        7 => {
            link.delay(between(rng, 1, 200));
            "delay"
        }
        8 => {
            rig.api.answers(*rng.choice(&[500, 503, 429]).unwrap());
            "API outage"
        }
        _ => {
            let bad = rng.usize(1..4);
            rig.api.fails((0..bad).map(|_| format!("d{}", rng.u8(0..20))));
            "bad devices"
        }
    };
    sleep(while_it_lasts).await;
    rig.to_broker.resume();
    rig.to_api.resume();
    rig.api.answers(200);
    rig.api.fails([]);
    (name, gateway)
}

/// A device that is served badly always, through every restart of the broker. Its messages are not accounted for.
async fn send_poison(port: u16, fault: &'static str, poisoned: Arc<AtomicU64>) {
    loop {
        let _ = speak_poison(port, fault, &poisoned).await;
        sleep(Duration::from_millis(500)).await;
    }
}

async fn speak_poison(port: u16, fault: &str, poisoned: &AtomicU64) -> io::Result<()> {
    let id = format!("{POISON}{fault}");
    let mut wire = Wire::connect(port, &Packet::connect(&id)).await?;
    let deep = format!("v1/device/{id}/{}", "a/".repeat(250));
    let payloads: [Vec<u8>; 5] = [
        b"{\"n\":0}".to_vec(),
        b"no JSON \xff\x1b[31m".to_vec(),
        vec![b'['; 100_000],
        format!("[{}0]", "{},".repeat(60_000)).into_bytes(),
        Vec::new(),
    ];
    for n in 0.. {
        let mut user = credentials(&id);
        user.extend((0..fastrand::usize(..50)).map(|n| ("topic".to_owned(), n.to_string())));
        let below = *fastrand::choice(&["telemetry", "update", "commands/update", "get"]).unwrap();
        let message = Publish {
            topic: format!("v1/device/{id}/{below}"),
            payload: fastrand::choice(&payloads).unwrap().clone(),
            props: Props {
                user,
                response_topic: (n % 3 == 0).then(|| deep.clone()),
                ..Props::default()
            },
            ..Publish::default()
        };
        wire.send(&Packet::Publish(message)).await?;
        poisoned.fetch_add(1, Ordering::Relaxed);
        sleep(Duration::from_millis(fastrand::u64(..400))).await;
    }
    Ok(())
}

/// Counts what ends as a dead letter, through every restart of the broker.
async fn count_dead_letters(port: u16, letters: Arc<AtomicU64>) {
    loop {
        // The broker is away: what it holds comes when it is back.
        let _ = hear_dead_letters(port, &letters).await;
        sleep(Duration::from_millis(100)).await;
    }
}

async fn hear_dead_letters(port: u16, letters: &AtomicU64) -> io::Result<()> {
    let connect = Packet::Connect {
        client_id: "dead-letters".to_owned(),
        clean_start: false,
        keep_alive: 0,
        username: None,
        password: None,
        props: Props { session_expiry: Some(3600), ..Props::default() },
    };
    let mut wire = Wire::connect(port, &connect).await?;
    let filters = vec![("mqtt-rest-gateway/dead-letter/#".to_owned(), 1)];
    wire.send(&Packet::Subscribe { packet_id: 1, identifier: None, filters }).await?;
    while let Some(packet) = wire.receive().await? {
        if let Packet::Publish(letter) = packet {
            if !letter.user("topic").contains(POISON) {
                println!("dead letter: {} {:?}", letter.user("reason"), letter.user("topic"));
                letters.fetch_add(1, Ordering::Relaxed);
            }
            wire.send(&Packet::PubAck { packet_id: letter.packet_id, reason: 0 }).await?;
        }
    }
    Ok(())
}
