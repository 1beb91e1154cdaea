//! A stand-in for the REST API: answers over HTTP on loopback and reports every exchange.
//!
//! What it answers is in `hub`; here is only HTTP, and the check of the key. It is not the one of the tests: it has a
//! state and a story, and the demonstration builds without anything that only tests need.

use std::{
    error::Error,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri, header},
    response::IntoResponse,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::mpsc::Sender, task::JoinHandle};

use crate::{
    hub::Hub,
    story::{Event, Exchange},
};

/// A REST API that accepts connections.
pub(crate) struct Api {
    address: SocketAddr,
    task: JoinHandle<std::io::Result<()>>,
}

struct Shared {
    hub: Mutex<Hub>,
    events: Sender<Event>,
}

impl Api {
    /// Starts on any free port.
    pub(crate) async fn start(events: Sender<Event>) -> Result<Self, Box<dyn Error>> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { hub: Mutex::new(Hub::new()), events });
        let app = Router::new().fallback(answer).with_state(shared);
        let task = tokio::spawn(async move { axum::serve(listener, app).await });
        Ok(Self { address, task })
    }

    /// Its base URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Stops it. To be called when nobody asks any more: it does not wait.
    pub(crate) fn stop(self) {
        self.task.abort();
    }
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> impl IntoResponse {
    let (device, operation) = split(uri.path());
    // The key stands in the header alone, without a scheme word.
    let key = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let (status, value) = {
        // A panic elsewhere cannot leave the hub half-changed in a way that matters here.
        let mut hub = shared.hub.lock().unwrap_or_else(PoisonError::into_inner);
        match hub.device(device, key) {
            None => (401, json!({ "error": "Not authorized" })),
            Some(device) => match parse(&body) {
                Some(body) => device.answer(method.as_str(), operation, &body),
                None => (400, json!({ "error": "Invalid JSON" })),
            },
        }
    };
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let answer = value.to_string();
    let exchange = Exchange {
        device: device.to_owned(),
        method: method.to_string(),
        path: uri.path().to_owned(),
        body: String::from_utf8_lossy(&body).into_owned(),
        status: status.as_u16(),
        answer: answer.clone(),
    };
    // Before the answer goes out, so that what it brings about is seen later. Nobody listens any
    // more while everything stops.
    let _ = shared.events.send(Event::Exchange(exchange)).await;
    (status, [(header::CONTENT_TYPE, "application/json")], answer)
}

/// A request without a body is as good as one with `null`.
fn parse(body: &[u8]) -> Option<Value> {
    if body.is_empty() { Some(Value::Null) } else { serde_json::from_slice(body).ok() }
}

/// `/v1/devices/{device}{operation}`. A path of another form names no device, and gets 401.
fn split(path: &str) -> (&str, &str) {
    let rest = path.strip_prefix("/v1/devices/").unwrap_or_default();
    rest.split_at(rest.find('/').unwrap_or(rest.len()))
}
