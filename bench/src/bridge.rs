//! The least possible bridge, the yardstick: a message in, one POST in a task of its own, acknowledged as
//! it is done. No order, no retry, no checks, no reconnect; a failed POST ends it. Or in batches: what has come
//! meanwhile, of different devices, in one POST; what its answer says of each is not read.

use std::{collections::HashMap, fmt::Write, sync::Arc, time::Duration};

use rumqttc::v5::{
    AsyncClient, Event, Incoming, MqttOptions,
    mqttbytes::{QoS, v5::Publish},
};
use tokio::sync::{
    Semaphore,
    mpsc::{Receiver, channel},
};

/// POSTs under way at once.
const CALLS: usize = 64;
/// The same, of batches.
const BATCHES: usize = 4;
/// Most messages in a batch.
const MOST: usize = 100;

/// Bridges until killed.
pub async fn run(broker: u16, api: u16, batch: bool) -> Result<(), String> {
    let mut options = MqttOptions::new("bridge", "127.0.0.1", broker);
    options
        .set_clean_start(false)
        .set_session_expiry_interval(Some(3600))
        .set_keep_alive(Duration::from_secs(30))
        .set_receive_maximum(Some(512))
        .set_manual_acks(true);
    let (client, mut event_loop) = AsyncClient::new(options, 1024);
    let http = reqwest::Client::builder()
        .pool_max_idle_per_host(CALLS)
        .build()
        .map_err(|error| error.to_string())?;
    let calls = Arc::new(Semaphore::new(CALLS));
    let base = format!("http://127.0.0.1:{api}/v1/devices");
    // More than the Receive Maximum.
    let (waiting, to_send) = channel(1024);
    tokio::spawn(batches(to_send, http.clone(), format!("{base}/telemetries"), client.clone()));
    loop {
        match event_loop.poll().await.map_err(|error| error.to_string())? {
            Event::Incoming(Incoming::ConnAck(_)) => {
                let subscribed = client.try_subscribe("v1/device/+/telemetry", QoS::AtLeastOnce);
                subscribed.map_err(|error| error.to_string())?;
            }
            Event::Incoming(Incoming::Publish(publish)) if batch => {
                waiting.send(publish).await.map_err(|error| error.to_string())?;
            }
            Event::Incoming(Incoming::Publish(publish)) => {
                let (client, http, calls) = (client.clone(), http.clone(), calls.clone());
                let url = format!("{base}/{}/telemetry", device(&publish));
                tokio::spawn(async move {
                    let permit = calls.acquire_owned().await;
                    forward(&http, &url, publish, &client).await;
                    drop(permit);
                });
            }
            _ => {}
        }
    }
}

fn device(publish: &Publish) -> &str {
    let topic = std::str::from_utf8(&publish.topic).unwrap_or_default();
    topic.split('/').nth(2).unwrap_or_default()
}

fn key(publish: &Publish) -> &str {
    let user = publish.properties.as_ref().map(|p| &*p.user_properties).unwrap_or_default();
    user.iter().find(|(name, _)| name == "access_key").map_or("", |(_, key)| key)
}

async fn forward(http: &reqwest::Client, url: &str, publish: Publish, client: &AsyncClient) {
    let request = http
        .post(url)
        .header("authorization", key(&publish))
        .header("content-type", "application/json")
        .body(publish.payload.clone());
    let Ok(response) = request.send().await else { std::process::abort() };
    if response.bytes().await.is_err() || client.ack(&publish).await.is_err() {
        std::process::abort();
    }
}

/// Sends what waits, one batch after the other, a few at once.
async fn batches(
    mut to_send: Receiver<Publish>,
    http: reqwest::Client,
    url: String,
    client: AsyncClient,
) {
    let calls = Arc::new(Semaphore::new(BATCHES));
    let mut next = None;
    while let Ok(permit) = calls.clone().acquire_owned().await {
        let mut batch = HashMap::with_capacity(MOST);
        // The second message of a device begins the next batch: an entry is one message.
        let Some(first) = (if next.is_some() { next.take() } else { to_send.recv().await }) else {
            return;
        };
        batch.insert(device(&first).to_owned(), first);
        while batch.len() < MOST
            && let Ok(publish) = to_send.try_recv()
        {
            if batch.contains_key(device(&publish)) {
                next = Some(publish);
                break;
            }
            batch.insert(device(&publish).to_owned(), publish);
        }
        let (http, url, client) = (http.clone(), url.clone(), client.clone());
        tokio::spawn(async move {
            send(&http, &url, &batch, &client).await;
            drop(permit);
        });
    }
}

async fn send(
    http: &reqwest::Client,
    url: &str,
    batch: &HashMap<String, Publish>,
    client: &AsyncClient,
) {
    let mut body = String::with_capacity(batch.len() * 256);
    for (device, publish) in batch {
        let payload = std::str::from_utf8(&publish.payload).unwrap_or_default().trim_end();
        let members = payload.strip_suffix('}').unwrap_or_default();
        let before = if body.is_empty() { '{' } else { ',' };
        // Writing text into memory cannot fail.
        let _ = write!(body, r#"{before}"{device}":{members},"access_token":"{}"}}"#, key(publish));
    }
    body.push('}');
    let request = http.post(url).header("content-type", "application/json").body(body);
    let Ok(response) = request.send().await else { std::process::abort() };
    if response.bytes().await.is_err() {
        std::process::abort();
    }
    for publish in batch.values() {
        if client.ack(publish).await.is_err() {
            std::process::abort();
        }
    }
}
