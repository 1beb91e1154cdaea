//! What `/events` says, as it comes.

use std::{collections::BTreeMap, time::Duration};

use bytes::{Buf, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::Deserialize;
use tokio::{task::JoinHandle, time::timeout};
use url::Url;

use crate::admin::{self, AskError, Opened};

/// How long the gateway may be silent: an event comes every second.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest event, in bytes.
const MAX_EVENT: usize = 1024 * 1024;

/// How a gateway stands; what each field means is said in `admin/status.rs`.
#[derive(Deserialize)]
pub(super) struct Status {
    pub(super) version: String,
    pub(super) up_seconds: u64,
    pub(super) ready: bool,
    pub(super) reasons: Vec<Reason>,
    pub(super) broker: Broker,
    pub(super) upstream: Upstream,
    pub(super) pending: Pending,
    pub(super) total: Total,
    pub(super) rows: Vec<Row>,
    pub(super) failures: Vec<Failure>,
}

#[derive(Deserialize)]
pub(super) struct Reason {
    pub(super) text: String,
    pub(super) remedy: String,
}

#[derive(Deserialize)]
pub(super) struct Broker {
    pub(super) address: String,
    pub(super) connected: bool,
    pub(super) since_seconds: u64,
}

#[derive(Deserialize)]
pub(super) struct Upstream {
    pub(super) url: String,
    pub(super) outages: Vec<Down>,
}

#[derive(Deserialize)]
pub(super) struct Down {
    pub(super) row: String,
    pub(super) since_seconds: u64,
}

#[derive(Deserialize)]
pub(super) struct Pending {
    pub(super) messages: u64,
    pub(super) at_most: u64,
    pub(super) oldest_seconds: Option<f64>,
}

#[derive(Deserialize)]
pub(super) struct Total {
    pub(super) messages: u64,
    pub(super) failed: u64,
    pub(super) per_second: Option<f64>,
}

#[derive(Deserialize)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) messages: u64,
    pub(super) pending: u64,
    pub(super) failed: u64,
    pub(super) reasons: BTreeMap<String, u64>,
    pub(super) per_second: Option<f64>,
    pub(super) call_seconds: Option<f64>,
    pub(super) message_seconds: Option<f64>,
}

#[derive(Deserialize)]
pub(super) struct Failure {
    pub(super) at: String,
    pub(super) topic: String,
    pub(super) route: String,
    pub(super) reason: String,
    pub(super) status: u16,
    pub(super) trouble: String,
    pub(super) answer: Option<String>,
    pub(super) remedy: String,
}

/// An open connection to `/events`.
pub(super) struct Feed {
    body: Incoming,
    read: BytesMut,
    driver: JoinHandle<hyper::Result<()>>,
}

impl Feed {
    /// Connects to the gateway whose admin endpoint this is.
    ///
    /// # Errors
    /// A sentence that says why not.
    pub(super) async fn open(url: &Url) -> Result<Self, String> {
        let mut events = url.clone();
        events.set_path(&format!("{}/events", url.path().trim_end_matches('/')));
        let opened = timeout(PATIENCE, admin::open(&events)).await;
        let opened = opened.unwrap_or(Err(AskError::Late(PATIENCE)));
        let Opened { answer, driver } = opened.map_err(|error| format!("{url}: {error}"))?;
        if !answer.status().is_success() {
            return Err(format!(
                "{events} answers {}: it is no gateway, or an old one",
                answer.status()
            ));
        }
        Ok(Self { body: answer.into_body(), read: BytesMut::new(), driver })
    }

    /// The next event.
    ///
    /// # Errors
    /// A sentence that says why there is none.
    pub(super) async fn next(&mut self) -> Result<Status, String> {
        loop {
            let end = self.read.windows(2).position(|two| two == b"\n\n");
            if let Some(end) = end {
                let event = self.read.split_to(end);
                self.read.advance(2);
                if let Some(data) = data(&event) {
                    return serde_json::from_slice(data)
                        .map_err(|error| format!("this gateway is of another version: {error}"));
                }
                continue;
            }
            if self.read.len() > MAX_EVENT {
                return Err("what it says has no end".to_owned());
            }
            let frame = timeout(PATIENCE, self.body.frame()).await;
            let frame = frame.map_err(|_| "it says nothing any more")?;
            let frame = frame.ok_or("it has hung up")?.map_err(|error| error.to_string())?;
            self.read.extend_from_slice(&frame.into_data().unwrap_or_default());
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// What an event says: the line that begins with `data:`.
fn data(event: &[u8]) -> Option<&[u8]> {
    event.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"data: "))
}
