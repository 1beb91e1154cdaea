//! The admin endpoint under attack, and descriptors: what knocks at the one door may not close another.

use std::net::SocketAddr;

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::harness::{Broker, Gateway, Options, PATIENCE, Upstream};

/// A connection to the admin endpoint, and what it has said so far.
async fn knock(gateway: &Gateway, words: &[u8]) -> TcpStream {
    let address: SocketAddr = gateway.admin().parse().unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The other side may have hung up already.
    let _ = stream.write_all(words).await;
    stream
}

/// Waits until the gateway hangs up.
async fn hung_up(mut stream: TcpStream) {
    let mut rest = Vec::new();
    // A reset is as good as an end.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("it hangs up");
}

#[tokio::test]
async fn two_thousand_idle_connections_cost_no_message() {
    // This process holds the other ends.
    let own = rlimit::increase_nofile_limit(8192).unwrap();
    let idle = usize::try_from(own / 2).unwrap().min(2000);
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    upstream.answers("POST", "/v1/devices/d1/telemetry", 200, json!({})).await;
    let gateway = Options::default().descriptors(1024).start(&broker, &upstream).await;
    let mut open = Vec::new();
    for n in 0..idle {
        let words: &[u8] = if n % 2 == 0 { b"" } else { b"GET /livez HTTP/1.1\r\nx: " };
        open.push(knock(&gateway, words).await);
    }
    let mut device = broker.device("d1").await;
    for _ in 0..20 {
        device.ask("telemetry", json!({})).await;
    }
    assert_eq!(gateway.get("/livez").await.0, 200);
    assert_eq!(gateway.metric("mqtt_rest_gateway_upstream_outages_total", &[]).await, 0);
    assert!(gateway.open_files() < 200, "{}", gateway.open_files());
}

#[tokio::test]
async fn unfinished_and_oversized_request_heads_are_closed() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let gateway = Gateway::start(&broker, &upstream).await;
    let before = gateway.peak_memory();
    let head = [b"GET /livez HTTP/1.1\r\nx: ".to_vec(), vec![b'x'; 400 * 1024]].concat();
    for _ in 0..100 {
        hung_up(knock(&gateway, &head).await).await;
    }
    let grown = gateway.peak_memory().saturating_sub(before);
    assert!(grown < 8 * 1024 * 1024, "{grown} bytes");
    hung_up(knock(&gateway, b"GET /livez HTTP/1.1\r\n").await).await;
    hung_up(knock(&gateway, b"").await).await;
}

#[tokio::test]
async fn pipelined_scrapes_do_not_take_the_thread() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let gateway = Gateway::start(&broker, &upstream).await;
    let scrapes = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n".repeat(1000);
    let mut stream = knock(&gateway, &scrapes).await;
    let mut answers = String::new();
    let _ = timeout(PATIENCE, stream.read_to_string(&mut answers)).await.expect("it hangs up");
    assert!(answers.matches("# EOF").count() <= 1, "one answer for a connection");
}

#[tokio::test]
async fn the_admin_endpoint_listens_on_ipv6_too_and_its_front_page_lists_the_paths() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let options = Options::default().set("ADMIN_LISTEN", "[::]:0");
    let gateway = options.start(&broker, &upstream).await;
    let (status, page) = gateway.get("/").await;
    assert_eq!((status, page.as_str()), (200, "/livez\n/readyz\n/metrics\n/routes\n/events\n"));
    let mut stream = knock(&gateway, b"POST /livez HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
}

#[tokio::test]
async fn the_limit_of_open_files_is_raised_and_a_low_one_is_logged() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let gateway = Options::default().soft_descriptors(256).start(&broker, &upstream).await;
    assert!(gateway.descriptors() > 256, "{}", gateway.descriptors());
    assert!(!gateway.log().contains("file descriptors"), "{}", gateway.log());

    let options = Options::default().descriptors(300).set("UPSTREAM_MAX_IN_FLIGHT", "400");
    let gateway = options.set("BROKER_CLIENT_ID", "other").start(&broker, &upstream).await;
    gateway.logs("400 exchanges at once need").await;
}
