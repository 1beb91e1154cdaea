//! A bare HTTP client that posts the same bodies: what HTTP alone costs.

use crate::{api::nanoseconds, devices::payload};

/// POSTs under way at once.
const CALLS: u64 = 64;

/// Posts `messages` messages of `devices` devices, then waits to be measured and killed.
pub async fn run(api: u16, messages: u64, devices: u64) -> Result<(), String> {
    let http = reqwest::Client::new();
    let mut calls = tokio::task::JoinSet::new();
    for lane in 0..CALLS {
        let http = http.clone();
        calls.spawn(async move {
            for n in (lane..messages).step_by(usize::try_from(CALLS).unwrap_or(1)) {
                let url = format!("http://127.0.0.1:{api}/v1/devices/d{}/telemetry", n % devices);
                let request = http
                    .post(url)
                    .header("authorization", "key")
                    .header("content-type", "application/json")
                    .body(payload(n, nanoseconds()));
                let response = request.send().await.map_err(|error| error.to_string())?;
                response.bytes().await.map_err(|error| error.to_string())?;
            }
            Ok::<_, String>(())
        });
    }
    calls.join_all().await.into_iter().collect::<Result<(), _>>()?;
    std::future::pending().await
}
