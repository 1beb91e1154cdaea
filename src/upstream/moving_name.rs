//! The API's name moves to another address, as names of a cloud do: it is followed without a restart, with an
//! outage and without.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::{BreakerSettings, Upstream, connector::Resolver, fixtures};
use crate::{backoff::Backoff, call::Call};

const PATIENCE: Duration = Duration::from_secs(30);

/// An address of loopback.
fn loopback(last: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, last).into()
}

/// Two servers on two addresses with one port, an upstream that knows them by one name, and where that points.
struct World {
    upstream: Upstream,
    points_to: Arc<Mutex<IpAddr>>,
    /// What the first answers.
    first: Arc<Mutex<u16>>,
}

impl World {
    /// The name points to the first.
    async fn new() -> Self {
        let (first, second, port) = loop {
            let first = TcpListener::bind((loopback(1), 0)).await.unwrap();
            let port = first.local_addr().unwrap().port();
            if let Ok(second) = TcpListener::bind((loopback(2), port)).await {
                break (first, second, port);
            }
        };
        let statuses = [200, 201].map(|status| Arc::new(Mutex::new(status)));
        for (listener, status) in [first, second].into_iter().zip(&statuses) {
            tokio::spawn(accept(listener, status.clone()));
        }
        let points_to = Arc::new(Mutex::new(loopback(1)));
        let resolver = Resolver::scripted({
            let points_to = points_to.clone();
            move |name| {
                assert_eq!(name, "api.test");
                *points_to.lock().unwrap()
            }
        });
        let retry = Backoff { initial: Duration::from_millis(10), max: Duration::from_millis(50) };
        let breaker = BreakerSettings { devices: 3, probe: retry, probe_path: None };
        let url = format!("http://api.test:{port}");
        let settings = fixtures::settings(&url, retry, breaker);
        let upstream = Upstream::with(resolver, &settings, Arc::default()).unwrap();
        let [first, _] = statuses;
        Self { upstream, points_to, first }
    }

    fn moves_to(&self, last: u8) {
        *self.points_to.lock().unwrap() = loopback(last);
    }

    /// The status that a call ends with: it tells who answered.
    async fn status(&self) -> u16 {
        let call: Call = fixtures::call("row", "device");
        let answer = timeout(PATIENCE, self.upstream.call(call, None)).await;
        answer.expect("it ends").expect("an answer").status.as_u16()
    }
}

async fn accept(listener: TcpListener, status: Arc<Mutex<u16>>) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(serve(stream, status.clone()));
    }
}

/// Keeps its connections.
async fn serve(mut stream: TcpStream, status: Arc<Mutex<u16>>) -> std::io::Result<()> {
    let mut head = Vec::new();
    loop {
        head.push(stream.read_u8().await?);
        if head.ends_with(b"\r\n\r\n") {
            head.clear();
            let status = *status.lock().unwrap();
            let answer = format!("HTTP/1.1 {status} -\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await?;
        }
    }
}

#[tokio::test]
async fn a_server_that_fails_where_the_name_pointed_is_left_at_the_next_attempt() {
    let world = World::new().await;
    assert_eq!(world.status().await, 200);
    *world.first.lock().unwrap() = 503;
    world.moves_to(2);
    assert_eq!(world.status().await, 201);
}

#[tokio::test]
async fn a_name_that_moves_in_an_outage_ends_it() {
    let world = World::new().await;
    // No server listens at this address.
    world.moves_to(3);
    let moved = async {
        timeout(PATIENCE, async {
            while world.upstream.outages().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .expect("an outage");
        world.moves_to(2);
    };
    assert_eq!(tokio::join!(world.status(), moved).0, 201);
    assert!(world.upstream.outages().is_empty());
}

/// Its old server is well and its connections are busy all the time.
#[tokio::test]
async fn a_name_that_moves_is_followed_within_a_minute() {
    let world = World::new().await;
    assert_eq!(world.status().await, 200);
    world.moves_to(2);
    let mut seconds = 0;
    while world.status().await == 200 {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(1)).await;
        tokio::time::resume();
        seconds += 1;
        assert!(seconds <= 61, "it still goes to where the name pointed");
    }
    assert!(seconds > 30, "connections are kept: {seconds}");
}
