//! The least possible bridge, the yardstick: a message in, one POST in a task of its own, acknowledged as
//! it is done. No order, no retry, no checks, no reconnect; a failed POST ends it.

use std::{sync::Arc, time::Duration};

use rumqttc::v5::{
    AsyncClient, Event, Incoming, MqttOptions,
    mqttbytes::{QoS, v5::Publish},
};
use tokio::sync::Semaphore;

/// POSTs under way at once.
const CALLS: usize = 64;

/// Bridges until killed.
pub async fn run(broker: u16, api: u16) -> Result<(), String> {
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
    loop {
        match event_loop.poll().await.map_err(|error| error.to_string())? {
            Event::Incoming(Incoming::ConnAck(_)) => {
                let subscribed = client.try_subscribe("v1/device/+/telemetry", QoS::AtLeastOnce);
                subscribed.map_err(|error| error.to_string())?;
            }
            Event::Incoming(Incoming::Publish(publish)) => {
                let (client, http, calls) = (client.clone(), http.clone(), calls.clone());
                let topic = String::from_utf8_lossy(&publish.topic).into_owned();
                let device = topic.split('/').nth(2).unwrap_or_default();
                let url = format!("{base}/{device}/telemetry");
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

async fn forward(http: &reqwest::Client, url: &str, publish: Publish, client: &AsyncClient) {
    let user = publish.properties.as_ref().map(|p| &*p.user_properties).unwrap_or_default();
    let key = user.iter().find(|(name, _)| name == "access_key").map_or("", |(_, key)| key);
    let request = http
        .post(url)
        .header("authorization", key)
        .header("content-type", "application/json")
        .body(publish.payload.clone());
    let Ok(response) = request.send().await else { std::process::abort() };
    if response.bytes().await.is_err() || client.ack(&publish).await.is_err() {
        std::process::abort();
    }
}
