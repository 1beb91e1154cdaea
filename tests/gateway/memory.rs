//! README's formula for memory against one mix of everything that takes some, at the defaults.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mqtt_rest_gateway::config::{Config, SHIPPED};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{Instant, sleep},
};

use crate::{
    harness::{Broker, Device, Options, while_it_moves},
    link::Link,
    scripted_api::{Reply, ScriptedApi},
    wire::Publish,
};

const DEVICES: u64 = 1500;
const MIB: u64 = 1024 * 1024;
/// Answers of the API and large payloads: a little below the limit of 1 MiB.
const LARGE: usize = 1_000_000;
/// Payloads and answers that filters read: a little below the limit of 256 KiB.
const FILTERED: usize = 260_000;
/// How long nothing moves before memory counts as filled.
const STILL: Duration = Duration::from_secs(1);

/// 1,500 devices speak at once, to an API that answers nobody until the window is full and then everybody with
/// 1 MB, and by a broker that reads nothing until everything is held that can be held.
#[tokio::test]
async fn the_formula_holds_for_a_mix_of_everything_at_the_defaults() {
    // As many as the gateway takes: with Mosquitto's own window of 20 it would hold next to nothing.
    let broker = Broker::configured("max_queued_messages 0\nmax_inflight_messages 2048").await;
    let link = Link::to(broker.port).await;
    let api = Api::start().await;
    let options = Options::default()
        .set("BROKER_URL", &link.url("mqtt"))
        .set("UPSTREAM_URL", &format!("http://127.0.0.1:{}", api.port));
    let gateway = options.spawn().await;
    gateway.ready().await;
    let idle = gateway.peak_memory();

    let mut device = broker.device("any").await;
    for number in 0..DEVICES {
        let message = message(&device, number);
        device.publish(message).await;
    }
    let received = async || gateway.metric("mqtt_rest_gateway_messages_received_total", &[]).await;
    stands_still(received).await;
    let full = gateway.peak_memory();
    assert!(full > idle + 64 * MIB, "{full}: the window is not full");
    link.stall();
    api.answering.send_replace(true);
    let answered = async || api.answered.load(Ordering::Relaxed);
    stands_still(answered).await;
    let waiting = gateway.peak_memory();
    link.resume();
    while_it_moves("everything is settled", || async {
        let settled = gateway.metric("mqtt_rest_gateway_messages_settled_total", &[]).await;
        eprintln!(
            "AT {settled} {} {:?}",
            gateway.peak_memory() / MIB,
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap()
        );
        if settled >= DEVICES { Ok(()) } else { Err(settled) }
    })
    .await;

    let peak = gateway.peak_memory();
    let all = [idle, full, waiting, peak].map(|bytes| bytes / MIB);
    let (formula, limit) = (formula(), shipped_limit());
    assert!(formula < limit, "{formula} MiB, and the shipped limit is {limit} MiB");
    assert!(peak < formula * MIB, "{all:?} MiB, and the formula says {formula} MiB");
}

/// Large answers that lead to calls with large answers, with room for one: who waits for room holds none.
#[tokio::test]
async fn an_answer_does_not_wait_for_the_room_that_another_takes() {
    let broker = Broker::start().await;
    let api = ScriptedApi::start(|seen| {
        let text = |length: usize| format!("\"x\":\"{}\"", "x".repeat(length));
        match (&*seen.method, seen.path.rsplit('/').next().unwrap()) {
            ("POST", _) => {
                Reply::status(200).body(format!("{{\"config_version\":1,{}}}", text(200_000)))
            }
            // A refusal that is kept while the next one is fetched.
            (_, "space") => Reply::status(404).body(format!("{{{}}}", text(900_000))),
            _ => Reply::status(200).body(format!("{{{}}}", text(900_000))),
        }
    })
    .await;
    let options = Options::default()
        .set("BROKER_URL", &broker.url())
        .set("UPSTREAM_URL", &api.url())
        .set("UPSTREAM_MAX_HELD_RESPONSE_BYTES", "1MiB")
        .set("UPSTREAM_MAX_FILTER_BYTES", "1MiB");
    let gateway = options.spawn().await;
    gateway.ready().await;
    let mut device = broker.device("any").await;
    for number in 0..8 {
        let id = format!("d{number}");
        for below in ["telemetry", "get"] {
            let mut message = device.message(below, "{}");
            message.topic = format!("v1/device/{id}/{below}");
            message.props.user[0].1.clone_from(&id);
            device.publish(message).await;
        }
    }
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["delivered"], 16).await;
    gateway.metric_is("mqtt_rest_gateway_fetches_total", &["config\"", "pushed"], 8).await;
    gateway.metric_is("mqtt_rest_gateway_fetches_total", &["config_if_set", "pushed"], 8).await;
}

/// Waits until a number has not changed for [`STILL`].
async fn stands_still(number: impl AsyncFn() -> u64) {
    let (mut last, mut since) = (number().await, Instant::now());
    while since.elapsed() < STILL {
        sleep(STILL / 20).await;
        let now = number().await;
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
}

/// What README says for the defaults, in MiB, which must be what its formula makes of them.
fn formula() -> u64 {
    let config = Config::parse(SHIPPED, &BTreeMap::new()).unwrap();
    let mib = |bytes: usize| bytes as u64 / MIB;
    let window = mib(config.broker.max_pending_bytes);
    let answers = mib(config.upstream.max_held_response_bytes);
    let ahead = config.upstream.max_in_flight as u64 * 85 / 100;
    let sum = 20 + window + 32 + answers + ahead + 40;
    let readme = include_str!("../../README.md");
    let (_, after) = readme.split_once("**Memory.**").unwrap();
    let (_, after) = after.split_once("some ").unwrap();
    let said: u64 = after.split(' ').next().unwrap().parse().unwrap();
    assert!(said.abs_diff(sum) <= 5, "README says {said} MiB, its formula makes {sum}");
    said
}

/// The memory limit of the shipped Kubernetes file, in MiB.
fn shipped_limit() -> u64 {
    let file = include_str!("../../deploy/kubernetes.yaml");
    let (_, after) = file.split_once("limits:").unwrap();
    let (_, after) = after.split_once("memory: ").unwrap();
    after.split_once("Mi").unwrap().0.parse().unwrap()
}

/// What the device of this number sends.
fn message(device: &Device, number: u64) -> Publish {
    let text = |length: usize| format!("{{\"x\":\"{}\"}}", "x".repeat(length));
    // As many values as fit: parsed, each byte is some 35.
    let values = || format!("{{\"status\":\"done\",\"x\":[{}{{}}]}}", "{},".repeat(FILTERED / 3));
    let (below, payload) = match number % 40 {
        // Small ones, whose answers are large.
        0..14 => ("config", "{}".to_owned()),
        14..22 => ("telemetry", "{\"n\":1}".to_owned()),
        22..26 => ("get", String::new()),
        // Large ones, some too large.
        26 => ("config/update", text(LARGE)),
        27 if number % 240 < 40 => ("config/update", text(LARGE + LARGE / 5)),
        27 | 28 => ("config/update", "{}".to_owned()),
        // Costly for filters, or too large for them.
        29..31 => ("commands/update", values()),
        31 => ("commands/update", text(FILTERED + FILTERED / 10)),
        // With properties: many, large ones, none.
        32..36 => ("cloud_settings/update", "{}".to_owned()),
        // Poison.
        36 => ("telemetry", "not JSON ".repeat(FILTERED / 9)),
        37 => ("telemetry", "[".repeat(FILTERED)),
        38 => ("space_info", "x".repeat(FILTERED)),
        _ => ("telemetry", "\u{0}".to_owned()),
    };
    let mut message = device.message(below, payload);
    let id = format!("d{number}");
    message.topic = format!("v1/device/{id}/{below}");
    message.props.user[0].1.clone_from(&id);
    message.props.response_topic = Some(format!("v1/device/{id}/answers"));
    match number % 40 {
        32 => message.props.user.extend((0..5000).map(|n| (format!("n{n}"), "v".to_owned()))),
        33 => message.props.user.extend((0..250).map(|n| (format!("n{n}"), "v".repeat(1000)))),
        34 => message.props.user.clear(),
        35 => message.props.response_topic = Some(format!("v1/device/{id}/{}", "a/".repeat(200))),
        _ => {}
    }
    message
}

/// The API: holds every answer until it is told to answer.
struct Api {
    port: u16,
    answering: watch::Sender<bool>,
    answered: Arc<AtomicU64>,
}

impl Api {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (answering, answered) = (watch::Sender::new(false), Arc::<AtomicU64>::default());
        let (gate, count) = (answering.subscribe(), answered.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, gate.clone(), count.clone()));
            }
        });
        Self { port, answering, answered }
    }
}

/// One connection, until the client closes it.
async fn serve(
    stream: TcpStream,
    mut answering: watch::Receiver<bool>,
    answered: Arc<AtomicU64>,
) -> io::Result<()> {
    let mut stream = BufStream::new(stream);
    loop {
        let (mut head, mut line, mut length) = (String::new(), String::new(), 0);
        while stream.read_line(&mut line).await? > 2 {
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.trim().parse().unwrap();
            }
            head.push_str(&std::mem::take(&mut line));
        }
        if head.is_empty() {
            return Ok(());
        }
        let mut body = stream.take(length);
        tokio::io::copy(&mut body, &mut tokio::io::sink()).await?;
        stream = body.into_inner();
        let _ = answering.wait_for(|answering| *answering).await;
        answered.fetch_add(1, Ordering::Relaxed);
        let mut words = head.split(' ');
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        stream.write_all(&answer(method, path)).await?;
        stream.flush().await?;
    }
}

/// Head and body of the answer to a request.
fn answer(method: &str, path: &str) -> Vec<u8> {
    let number = path.split('/').nth(3).and_then(|id| id.strip_prefix('d')?.parse().ok());
    let number: u64 = number.unwrap_or(0);
    let small = path.ends_with("/space") || number % 40 >= 22 || number % 2 == 1;
    let body = if method == "POST" && path.ends_with("/telemetry") {
        // Several things to fetch, in as many values as a filter reads.
        let values = "{},".repeat(FILTERED / 3);
        format!(
            "{{\"config_version\":{number},\"command\":true,\"new_licenses\":true,\
             \"space_data_version\":1,\"x\":[{values}{{}}]}}"
        )
    } else if small && number % 7 != 3 {
        "{}".to_owned()
    } else {
        format!("{{\"id\":\"{number}\",\"x\":\"{}\"}}", "x".repeat(LARGE))
    };
    let status = if number % 7 == 3 { "422 Refused" } else { "200 OK" };
    let head = format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\n");
    // Some tell their length, some do not.
    if number.is_multiple_of(3) {
        format!("{head}transfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len())
    } else {
        format!("{head}content-length: {}\r\n\r\n{body}", body.len())
    }
    .into_bytes()
}
