//! The fast API: a process of its own that answers every request at once, or after a delay, and keeps
//! the times of arrival. HTTP/1.1 by hand, so that it costs as little as it can: it shares
//! the machine with what is measured, which is why it is not the one of the tests. It is always asked what has arrived
//! over plain HTTP/1.1, on a port of its own.
//!
//! The body of a message has its time of sending, `"t":` and nanoseconds since 1970, and its number, `"n":`.

use std::{
    collections::HashMap,
    fmt::Write,
    io,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    header::{CONTENT_TYPE, HeaderValue},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json, value::RawValue};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    sync::Semaphore,
};

use crate::protocol::{Protocol, acceptor};

/// What the API of the shipped table answers to telemetry, by which nothing has changed.
const NO_NEWS: &str = r#"{"success":true,"config_version":null,"command":false,"new_licenses":false,"space_data_version":0,"latest_fw_version":null,"latest_fw_file_id":null,"info_version":1}"#;

#[derive(Clone, Default)]
struct Tally {
    /// What was sent earlier is not counted. In nanoseconds since 1970, as all here.
    since: u64,
    /// Until then every message is answered 503.
    down: u64,
    first: u64,
    last: u64,
    /// All of them, also those that were answered 503.
    requests: u64,
    /// From sending to arrival, in nanoseconds, of each message.
    latencies: Vec<u64>,
    /// The number of each message, in order of arrival.
    arrivals: Vec<u32>,
}

/// Serves until killed; the two ports stand on standard output: the one for requests, and the one that is asked what has
/// arrived. Where it speaks TLS its certificate is written to this file before.
pub async fn serve(
    delay: Duration,
    serial: bool,
    protocol: Protocol,
    certificate: &Path,
) -> io::Result<()> {
    let acceptor = acceptor(protocol, certificate)?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let asked = TcpListener::bind("127.0.0.1:0").await?;
    println!("{} {}", listener.local_addr()?.port(), asked.local_addr()?.port());
    // One request at a time, or all at once.
    let turns = Arc::new(Semaphore::new(if serial { 1 } else { 100_000 }));
    let api = Api { delay, turns, tally: Arc::default() };
    let own = api.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = asked.accept().await {
            let api = own.clone();
            tokio::spawn(async move { api.http1(stream).await });
        }
    });
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (api, acceptor) = (api.clone(), acceptor.clone());
        // A client that goes away is no concern of ours.
        tokio::spawn(async move {
            match acceptor {
                Some(acceptor) => api.connection(acceptor.accept(stream).await?, protocol).await,
                None => api.connection(stream, protocol).await,
            }
        });
    }
}

/// What has arrived, and what a request costs.
#[derive(Clone)]
struct Api {
    tally: Arc<Mutex<Tally>>,
    delay: Duration,
    turns: Arc<Semaphore>,
}

impl Api {
    async fn connection<S>(&self, stream: S, protocol: Protocol) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        if protocol.is_http2() { self.http2(stream).await } else { self.http1(stream).await }
    }

    async fn http1<S: AsyncRead + AsyncWrite + Unpin>(&self, mut stream: S) -> io::Result<()> {
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
            let body = &buffer[head..head + length];
            let answer = answer(path(&buffer[..head]), body, &self.tally);
            buffer.advance(head + length);
            self.work(&answer).await;
            let Answer { status, body, .. } = answer;
            let reason = if status == 200 { "OK" } else { "Service Unavailable" };
            let text = format!(
                "HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(text.as_bytes()).await?;
            stream.flush().await?;
        }
    }

    async fn http2<S>(&self, stream: S) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = service_fn(|request| self.clone().request(request));
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.max_concurrent_streams(100);
        builder.serve_connection(TokioIo::new(stream), service).await.map_err(io::Error::other)
    }

    async fn request(
        self,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, hyper::Error> {
        let (head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let answer = answer(head.uri.path().as_bytes(), &body, &self.tally);
        self.work(&answer).await;
        let mut response = Response::new(Full::from(answer.body));
        *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or_default();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(response)
    }

    async fn work(&self, answer: &Answer) {
        if answer.is_work && !self.delay.is_zero() {
            let _turn = self.turns.acquire().await;
            tokio::time::sleep(self.delay).await;
        }
    }
}

struct Answer {
    status: u16,
    body: String,
    /// It takes the API's time; else it is the bench that asks.
    is_work: bool,
}

fn answer(path: &[u8], body: &[u8], tally: &Mutex<Tally>) -> Answer {
    let now = nanoseconds();
    let mut tally = tally.lock().expect("nobody panics with it");
    let asked = |body: String| Answer { status: 200, body, is_work: false };
    match path {
        b"/reset" => {
            *tally = Tally { since: now, ..Tally::default() };
            asked("{}".to_owned())
        }
        b"/stats" => {
            // Sorted without the lock: other requests go on.
            let so_far = tally.clone();
            drop(tally);
            asked(stats(so_far))
        }
        b"/arrivals" => asked(json!(tally.arrivals).to_string()),
        _ if path.starts_with(b"/down/") => {
            tally.down = now + digits(&path[b"/down/".len()..]) * 1_000_000;
            asked("{}".to_owned())
        }
        _ => {
            tally.requests += 1;
            if now < tally.down {
                return Answer { status: 503, body: "{}".to_owned(), is_work: true };
            }
            let body = if path == b"/v1/devices/telemetries" {
                batch(body, now, &mut tally)
            } else {
                tally.count(now, message(body));
                NO_NEWS.to_owned()
            };
            Answer { status: 200, body, is_work: true }
        }
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

/// When a message was sent, and its number.
fn message(body: &[u8]) -> Option<(u64, u64)> {
    let number = |name: &[u8]| {
        let at = body.windows(name.len()).position(|window| window == name)? + name.len();
        Some(digits(&body[at..]))
    };
    Some((number(b"\"t\":")?, number(b"\"n\":")?))
}

fn digits(text: &[u8]) -> u64 {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0'))
}

impl Tally {
    fn count(&mut self, now: u64, message: Option<(u64, u64)>) {
        let Some((sent, n)) = message.filter(|(sent, _)| *sent >= self.since) else { return };
        if self.latencies.is_empty() {
            self.first = now;
        }
        self.last = now;
        self.latencies.push(now.saturating_sub(sent));
        self.arrivals.push(u32::try_from(n).unwrap_or(u32::MAX));
    }
}

/// A call for many devices: each gets its own answer.
fn batch(body: &[u8], now: u64, tally: &mut Tally) -> String {
    let entries: HashMap<&str, &RawValue> = serde_json::from_slice(body).unwrap_or_default();
    let mut answer = String::with_capacity(entries.len() * (NO_NEWS.len() + 64));
    for (device, entry) in &entries {
        tally.count(now, message(entry.get().as_bytes()));
        let before = if answer.is_empty() { '{' } else { ',' };
        // Writing text into memory cannot fail.
        let _ = write!(answer, "{before}{}:{NO_NEWS}", Value::from(*device));
    }
    answer + "}"
}

/// What has come since the last reset, as JSON.
fn stats(tally: Tally) -> String {
    let mut sorted = tally.latencies;
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
