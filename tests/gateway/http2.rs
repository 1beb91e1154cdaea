//! HTTP/2 to the API: where both speak it, many requests share a connection, and nothing else changes.

use std::{collections::BTreeSet, future::ready, sync::Arc};

use http::Version;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::{net::TcpListener, sync::Barrier};

use crate::{
    certificates::{Answer, Certificates, Https, Seen, serve},
    harness::{Broker, Options, telemetry},
};

const DELIVERED: &str = "mqtt_rest_gateway_messages_settled_total";
const BOTH: [&str; 2] = ["h2", "http/1.1"];

fn options(broker: &Broker, https: &Https, certificates: &Certificates) -> Options {
    Options::default()
        .set("BROKER_URL", &broker.url())
        .set("UPSTREAM_URL", &https.url("localhost"))
        .set("UPSTREAM_CA_FILE", &certificates.path("ca.pem"))
}

#[tokio::test]
async fn the_version_is_the_one_that_both_speak_or_that_is_set() {
    let certificates = Certificates::new();
    let broker = Broker::start().await;
    let mut device = broker.device("d1").await;
    let (one, two) = (Version::HTTP_11, Version::HTTP_2);
    for (server, set, expected) in [
        (&BOTH[..], "auto", two),
        (&BOTH[1..], "auto", one),
        (&[], "auto", one),
        (&BOTH[..], "1.1", one),
        (&BOTH[..], "2", two),
    ] {
        let answer = |_: &str, _| ready(Answer::Ok);
        let https = Https::speaking(server, &certificates, "127.0.0.1", false, answer).await;
        let options = options(&broker, &https, &certificates);
        let mut gateway = options.set("UPSTREAM_HTTP_VERSION", set).spawn().await;
        gateway.ready().await;
        for _ in 0..3 {
            assert_eq!(device.ask("telemetry", json!({})).await.json(), json!("ok"));
        }
        let path = "/v1/devices/d1/telemetry".to_owned();
        assert_eq!(https.seen(), vec![(1, expected, path); 3], "{server:?} {set}");
        gateway.stop().await;
    }
}

#[tokio::test]
async fn without_tls_it_is_spoken_where_it_is_set() {
    let broker = Broker::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let seen = Seen::default();
    let noted = seen.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = |_: &str, _| ready(Answer::Ok);
            tokio::spawn(serve(TokioIo::new(stream), true, 1, noted.clone(), answer));
        }
    });
    let gateway = Options::default()
        .set("BROKER_URL", &broker.url())
        .set("UPSTREAM_URL", &url)
        .set("UPSTREAM_HTTP_VERSION", "2")
        .spawn()
        .await;
    gateway.ready().await;
    let mut device = broker.device("d1").await;
    assert_eq!(device.ask("telemetry", json!({})).await.json(), json!("ok"));
    assert_eq!(seen.lock().unwrap()[0].1, Version::HTTP_2);
}

/// None waits behind others for a place on a connection: the server answers none before it has all.
#[tokio::test]
async fn as_many_requests_are_under_way_as_may_be_on_few_connections() {
    const DEVICES: usize = 250;
    let certificates = Certificates::new();
    let broker = Broker::configured("max_inflight_messages 0").await;
    let all = Arc::new(Barrier::new(DEVICES));
    let answer = move |_: &str, _| {
        let all = all.clone();
        async move {
            all.wait().await;
            Answer::Ok
        }
    };
    let https = Https::speaking(&BOTH, &certificates, "127.0.0.1", false, answer).await;
    // However slow the machine is.
    let options = options(&broker, &https, &certificates).set("UPSTREAM_ATTEMPT_TIMEOUT", "5m");
    let gateway = options.set("UPSTREAM_DEADLINE", "5m").spawn().await;
    gateway.ready().await;
    let mut device = broker.observer("nothing").await;
    for n in 0..DEVICES {
        device.publish(telemetry(0, &format!("d{n}"), "{}")).await;
    }
    gateway.metric_is(DELIVERED, &["delivered"], DEVICES as u64).await;
    let seen = https.seen();
    assert_eq!(seen.len(), DEVICES, "one attempt each");
    assert!(seen.iter().all(|(_, version, _)| *version == Version::HTTP_2));
    // Those that begin before the first connection is made, and knows what is spoken, may have made some in vain.
    let connections: BTreeSet<_> = seen.iter().map(|(on, ..)| on).collect();
    assert_eq!(connections.len(), 3, "{connections:?}");
}

#[tokio::test]
async fn a_second_attempt_goes_on_a_connection_of_its_own() {
    let certificates = Certificates::new();
    let broker = Broker::start().await;
    let answer = |_: &str, times| ready(if times == 2 { Answer::Busy } else { Answer::Ok });
    let https = Https::speaking(&BOTH, &certificates, "127.0.0.1", false, answer).await;
    let gateway = options(&broker, &https, &certificates).spawn().await;
    gateway.ready().await;
    let mut device = broker.device("d1").await;
    for _ in 0..3 {
        assert_eq!(device.ask("telemetry", json!({})).await.json(), json!("ok"));
    }
    let connections: Vec<_> = https.seen().into_iter().map(|(connection, ..)| connection).collect();
    assert_eq!(connections, [1, 1, 2, 1]);
}

/// A server that closes its connections in order (GOAWAY), and one that refuses streams, handle no request twice and lose none.
#[tokio::test]
async fn what_the_server_has_not_handled_is_sent_again_and_nothing_else() {
    const MESSAGES: usize = 60;
    let certificates = Certificates::new();
    let broker = Broker::configured("max_inflight_messages 0").await;
    let answer = |path: &str, times| {
        let n: usize =
            path.split('/').nth(3).and_then(|d| d.trim_start_matches('d').parse().ok()).unwrap();
        let answer = match n % 3 {
            0 => Answer::Last,
            1 if times == 1 => Answer::Refuse,
            _ => Answer::Ok,
        };
        ready(answer)
    };
    let https = Https::speaking(&BOTH, &certificates, "127.0.0.1", false, answer).await;
    let gateway = options(&broker, &https, &certificates).spawn().await;
    gateway.ready().await;
    let mut device = broker.observer("nothing").await;
    for n in 0..MESSAGES {
        device.publish(telemetry(0, &format!("d{n}"), "{}")).await;
    }
    gateway.metric_is(DELIVERED, &["delivered"], MESSAGES as u64).await;
    let seen = https.seen();
    for n in 0..MESSAGES {
        let path = format!("/v1/devices/d{n}/telemetry");
        let times = seen.iter().filter(|(_, _, seen)| *seen == path).count();
        assert_eq!(times, if n % 3 == 1 { 2 } else { 1 }, "{path}");
    }
    // And those that were on their way when a connection was closed in order.
    let turned_away = gateway.metric("mqtt_rest_gateway_attempts_total", &[r#""unhandled""#]).await;
    assert!(turned_away >= MESSAGES as u64 / 3, "{turned_away}");
}
