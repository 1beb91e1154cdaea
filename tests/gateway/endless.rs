//! An API that never comes to an end: each attempt has one all the same, and costs nobody else anything.

use std::time::Duration;

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::sleep,
};

use crate::harness::{Broker, Options};

/// 1xx for ever to `bad`, as fast as they are read; 200 to everybody else.
async fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        let request = String::from_utf8_lossy(&buffer[..count]).into_owned();
        if !request.contains("/devices/bad/") {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await?;
            continue;
        }
        let many = "HTTP/1.1 103 Early Hints\r\nlink: </style.css>\r\n\r\n".repeat(1000);
        loop {
            stream.write_all(many.as_bytes()).await?;
            sleep(Duration::from_millis(1)).await;
        }
    }
}

#[tokio::test]
async fn answers_that_only_announce_an_answer_end_with_the_attempt() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    let broker = Broker::start().await;
    let options = Options::default()
        .set("BROKER_URL", &broker.url())
        .set("UPSTREAM_URL", &url)
        .set("UPSTREAM_DEADLINE", "2s")
        .set("UPSTREAM_ATTEMPT_TIMEOUT", "500ms");
    let gateway = options.spawn().await;
    gateway.ready().await;
    let mut dead = broker.observer("mqtt-rest-gateway/dead-letter/#").await;
    let (mut bad, mut good) = (broker.device("bad").await, broker.device("good").await);
    good.ask("telemetry", json!({})).await;
    let before = gateway.peak_memory();
    bad.send("telemetry", json!({})).await;
    let served = async {
        loop {
            assert_eq!(good.ask("telemetry", json!({})).await.user("status"), "200");
        }
    };
    tokio::select! {
        () = served => {}
        letter = dead.next() => assert_eq!(letter.user("reason"), "deadline"),
    }
    let attempts =
        gateway.metric("mqtt_rest_gateway_attempts_total", &["status=\"timeout\""]).await;
    assert!(attempts >= 2, "each attempt ends at attempt_timeout; there were {attempts}");
    let grown = (gateway.peak_memory() - before) >> 20;
    assert!(grown < 8, "{grown} MiB");
}
