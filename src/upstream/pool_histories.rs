//! Histories of requests to a server that does everything a server may do to a connection: 300, or as many as `HISTORIES` says.
//! An assertion of the server's that fails leaves its connection counted as open, by which the history fails.

use std::{
    collections::HashSet,
    future::ready,
    io,
    pin::pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use fastrand::Rng;
use http::{Request, Uri};
use http_body_util::{BodyExt, Full};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    time::{sleep, timeout},
};

use super::{
    InProcess,
    connection::Payload,
    connections::{Connections, Which},
    connector::Resolver,
    fixtures,
};
use crate::{backoff::Backoff, upstream::BreakerSettings};

/// Whoever asks waits no longer.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the server has seen.
#[derive(Default)]
struct Seen {
    open: usize,
    most_open: usize,
    opened: usize,
    requests: HashSet<String>,
}

type Shared = Arc<Mutex<Seen>>;

/// One connection, until the server or the client has enough.
async fn serve(mut stream: DuplexStream, seen: Shared, mut rng: Rng) -> io::Result<()> {
    // It may close a connection that is idle, at any time, or leave that to the client.
    let longest = if rng.bool() { 8000 } else { 3_600_000 };
    loop {
        let mut head = Vec::new();
        let limit = Duration::from_millis(rng.u64(0..longest));
        while !head.ends_with(b"\r\n\r\n") {
            let read = timeout(limit, stream.read_u8());
            head.push(read.await.map_err(|_| io::ErrorKind::TimedOut)??);
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.contains("host: api.test\r\n"), "{head}");
        let path = head.split(' ').nth(1).unwrap().to_owned();
        assert!(seen.lock().unwrap().requests.insert(path.clone()), "{path} came twice");
        match rng.u8(0..20) {
            0 => return Ok(()),
            1 => sleep(10 * PATIENCE).await,
            _ => sleep(Duration::from_millis(rng.u64(0..50))).await,
        }
        let (close, body) = (rng.u8(0..10) == 0, "x".repeat(rng.usize(0..2000)));
        let word = if close { "close" } else { "keep-alive" };
        let chunked = rng.bool();
        let answer = if chunked && !body.is_empty() {
            let length = body.len();
            format!("transfer-encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n0\r\n\r\n")
        } else {
            format!("content-length: {}\r\n\r\n{body}", body.len())
        };
        let answer = format!("HTTP/1.1 200 OK\r\nconnection: {word}\r\n{answer}");
        // In two pieces, or broken off between them.
        let (first, second) = answer.as_bytes().split_at(rng.usize(0..answer.len()));
        stream.write_all(first).await?;
        if rng.u8(0..20) == 0 {
            return Ok(());
        }
        if rng.bool() {
            sleep(Duration::from_millis(1)).await;
        }
        stream.write_all(second).await?;
        if close || rng.u8(0..20) == 0 {
            return Ok(());
        }
    }
}

/// A server that refuses some connections; `refuses` in a hundred.
fn server(seen: &Shared, luck: u64, refuses: u8) -> InProcess {
    let (seen, rng) = (seen.clone(), Mutex::new(Rng::with_seed(luck)));
    InProcess::new(move |_, stream| {
        let mut rng = rng.lock().unwrap();
        if rng.u8(0..100) < refuses {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (seen, rng) = (seen.clone(), rng.fork());
        {
            let mut seen = seen.lock().unwrap();
            seen.open += 1;
            seen.opened += 1;
            seen.most_open = seen.most_open.max(seen.open);
        }
        tokio::spawn(async move {
            // How it ends is all the same.
            let _ = serve(stream, seen.clone(), rng).await;
            seen.lock().unwrap().open -= 1;
        });
        Ok(())
    })
}

fn connections(server: InProcess) -> Arc<Connections> {
    let wait = Backoff { initial: Duration::ZERO, max: Duration::ZERO };
    let breaker = BreakerSettings { devices: 1, probe: wait, probe_path: None };
    let mut settings = fixtures::settings("http://api.test", wait, breaker);
    settings.in_process = Some(server);
    Arc::new(Connections::new(&settings, Resolver::system()).unwrap())
}

/// Whether the request got its whole answer; `None` when nobody waited for it any more.
async fn ask(connections: &Connections, n: usize, patience: Duration) -> Option<bool> {
    let mut request: Request<Payload> = Request::new(Full::new(Bytes::new()));
    *request.uri_mut() = Uri::try_from(format!("http://api.test/{n}")).unwrap();
    let exchange = async {
        let response = connections.send(&mut request, Which::Kept).await.ok()?;
        response.into_body().collect().await.ok()
    };
    timeout(patience, exchange).await.ok().map(|answer| answer.is_some())
}

async fn history(number: u64) {
    let mut rng = Rng::with_seed(number);
    let seen = Shared::default();
    let refuses = [0, 0, 10, 50][rng.usize(0..4)];
    let connections = connections(server(&seen, rng.u64(..), refuses));
    let (mut asked, mut most) = (Vec::new(), 0);
    let mut n = 0;
    for _ in 0..rng.usize(1..8) {
        let burst = rng.usize(1..60);
        most = most.max(burst);
        for _ in 0..burst {
            let connections = connections.clone();
            // Some give up early: while they wait for a connection, or for the answer.
            let hurried = rng.u8(0..5) == 0;
            let patience = if hurried { Duration::from_millis(rng.u64(0..30)) } else { PATIENCE };
            asked.push(tokio::spawn(async move { ask(&connections, n, patience).await }));
            n += 1;
        }
        sleep(Duration::from_millis(rng.u64(0..6000))).await;
    }
    let mut answered = 0;
    for asked in asked {
        answered += usize::from(asked.await.unwrap() == Some(true));
    }
    assert!(refuses > 10 || n < 20 || answered > n / 4, "{answered} of {n} answered");
    // Whatever has happened, the next one gets its answer in the time that it takes.
    let mut tries = 0;
    while ask(&connections, n + tries, PATIENCE).await != Some(true) {
        tries += 1;
        assert!(tries < 60, "it answers nobody any more");
    }
    sleep(Duration::from_mins(1)).await;
    let seen = seen.lock().unwrap();
    assert_eq!(seen.open, 0, "idle connections are closed");
    assert!(seen.most_open <= 3 * most + 8, "{} open for {most} at once", seen.most_open);
}

#[test]
fn requests_are_answered_whatever_the_server_does_to_its_connections() {
    let histories = std::env::var("HISTORIES").ok().and_then(|text| text.parse().ok());
    for number in 0..histories.unwrap_or(300) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        let ran = std::panic::catch_unwind(|| runtime.block_on(history(number)));
        assert!(ran.is_ok(), "history {number}");
    }
}

/// A server that answers each request at once.
fn fast(seen: &Shared) -> InProcess {
    let seen = seen.clone();
    InProcess::new(move |_, mut stream: DuplexStream| {
        seen.lock().unwrap().opened += 1;
        tokio::spawn(async move {
            let mut head = Vec::new();
            while let Ok(byte) = stream.read_u8().await {
                head.push(byte);
                if head.ends_with(b"\r\n\r\n") {
                    head.clear();
                    let answer = b"HTTP/1.1 204 No Content\r\n\r\n";
                    if stream.write_all(answer).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(())
    })
}

#[tokio::test(start_paused = true)]
async fn a_burst_to_a_fast_server_opens_few_connections() {
    let seen = Shared::default();
    let connections = connections(fast(&seen));
    let asked: Vec<_> = (0..200)
        .map(|n| {
            let connections = connections.clone();
            tokio::spawn(async move { ask(&connections, n, PATIENCE).await })
        })
        .collect();
    for asked in asked {
        assert_eq!(asked.await.unwrap(), Some(true));
    }
    let opened = seen.lock().unwrap().opened;
    assert!(opened <= 8, "{opened} connections were opened");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_handed_to_a_request_that_is_given_up_serves_the_next_one() {
    let seen = Shared::default();
    let connections = connections(fast(&seen));
    {
        let mut given_up = pin!(ask(&connections, 0, PATIENCE));
        // It begins to wait, and does not look again.
        tokio::select! {
            biased;
            _ = &mut given_up => panic!("nothing was open"),
            () = ready(()) => {}
        }
        // The clock stands until nothing else moves: the connection has come.
        sleep(Duration::from_millis(1)).await;
        assert_eq!(seen.lock().unwrap().opened, 1);
    }
    assert_eq!(ask(&connections, 1, PATIENCE).await, Some(true));
    assert_eq!(seen.lock().unwrap().opened, 1, "it was open");
}
