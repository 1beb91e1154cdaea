//! The fast API: a process of its own that answers every request at once, or after a delay, and keeps
//! the times of arrival. HTTP/1.1 by hand, so that it costs as little as it can: it shares
//! the machine with what is measured, which is why it is not the one of the tests.
//!
//! The body of a message has its time of sending, `"t":` and nanoseconds since 1970.

use std::{
    io,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use bytes::{Buf, BytesMut};
use serde_json::{Map, Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

/// What the API of the shipped table answers to telemetry, by which nothing has changed.
const NO_NEWS: &str = r#"{"success":true,"config_version":null,"command":false,"new_licenses":false,"space_data_version":0,"latest_fw_version":null,"latest_fw_file_id":null,"info_version":1}"#;

#[derive(Default)]
struct Tally {
    /// Nanoseconds since 1970.
    first: u64,
    last: u64,
    requests: u64,
    /// From sending to arrival, in nanoseconds, of each message.
    latencies: Vec<u64>,
}

/// Serves until killed; the port stands on standard output.
pub async fn serve(delay: Duration, serial: bool) -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?.port());
    let tally = Arc::<Mutex<Tally>>::default();
    // One request at a time, or all at once.
    let work = Work { delay, turns: Arc::new(Semaphore::new(if serial { 1 } else { 100_000 })) };
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (tally, work) = (tally.clone(), work.clone());
        tokio::spawn(async move {
            // A client that goes away is no concern of ours.
            let _ = connection(stream, &tally, &work).await;
        });
    }
}

/// What a request costs the API.
#[derive(Clone)]
struct Work {
    delay: Duration,
    turns: Arc<Semaphore>,
}

async fn connection(mut stream: TcpStream, tally: &Mutex<Tally>, work: &Work) -> io::Result<()> {
    let mut buffer = BytesMut::with_capacity(16 * 1024);
    loop {
        let Some((head, length)) = head(&buffer) else {
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
            continue;
        };
        while buffer.len() < head + length {
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        }
        let now = nanoseconds();
        let path = path(&buffer[..head]);
        let body = &buffer[head..head + length];
        let (answer, counts) = match path {
            b"/reset" => {
                *tally.lock().expect("nobody panics with it") = Tally::default();
                ("{}".to_owned(), false)
            }
            b"/stats" => (stats(&mut tally.lock().expect("nobody panics with it")), false),
            b"/v1/devices/telemetries" => (batch(body, now, tally), true),
            _ => {
                if let Some(sent) = sent(body) {
                    count(&mut tally.lock().expect("nobody panics with it"), now, &[sent]);
                }
                (NO_NEWS.to_owned(), true)
            }
        };
        buffer.advance(head + length);
        if counts && !work.delay.is_zero() {
            let _turn = work.turns.acquire().await;
            tokio::time::sleep(work.delay).await;
        }
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{answer}",
            answer.len()
        );
        stream.write_all(answer.as_bytes()).await?;
    }
}

/// Where the head ends and how long the body is; `None` while the head is not complete.
fn head(buffer: &[u8]) -> Option<(usize, usize)> {
    let end = buffer.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let mut lines = buffer[..end].split(|byte| *byte == b'\n');
    let length = lines.find_map(|line| {
        let (name, value) = line.split_at_checked(15)?;
        name.eq_ignore_ascii_case(b"content-length:").then(|| std::str::from_utf8(value).ok())?
    });
    Some((end, length.and_then(|text| text.trim().parse().ok()).unwrap_or(0)))
}

fn path(head: &[u8]) -> &[u8] {
    head.split(|byte| *byte == b' ').nth(1).unwrap_or_default()
}

fn sent(body: &[u8]) -> Option<u64> {
    let at = body.windows(4).position(|window| window == b"\"t\":")? + 4;
    let digits = body[at..].iter().take_while(|byte| byte.is_ascii_digit());
    Some(digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

fn count(tally: &mut Tally, now: u64, sent: &[u64]) {
    if tally.requests == 0 {
        tally.first = now;
    }
    tally.last = now;
    tally.requests += 1;
    tally.latencies.extend(sent.iter().map(|sent| now.saturating_sub(*sent)));
}

/// A call for many devices: each gets its own answer.
fn batch(body: &[u8], now: u64, tally: &Mutex<Tally>) -> String {
    let entries: Map<String, Value> = serde_json::from_slice(body).unwrap_or_default();
    let sent: Vec<u64> = entries.values().filter_map(|entry| entry["t"].as_u64()).collect();
    count(&mut tally.lock().expect("nobody panics with it"), now, &sent);
    let mut answer = String::from("{");
    for device in entries.keys() {
        if answer.len() > 1 {
            answer.push(',');
        }
        answer.push_str(&Value::from(device.as_str()).to_string());
        answer.push(':');
        answer.push_str(NO_NEWS);
    }
    answer + "}"
}

/// What has come since the last reset, as JSON.
fn stats(tally: &mut Tally) -> String {
    let mut sorted = tally.latencies.clone();
    sorted.sort_unstable();
    let at = |part: f64| {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
        let index = (sorted.len() as f64 * part) as usize;
        sorted.get(index.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
    };
    json!({
        "messages": sorted.len(), "requests": tally.requests,
        "first": tally.first, "last": tally.last,
        "p50": at(0.5), "p99": at(0.99), "p999": at(0.999),
    })
    .to_string()
}

/// Since 1970.
pub fn nanoseconds() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}
