//! A gateway between a broker and an API, with a link to either that can fail, under load.

use std::time::Duration;

use fastrand::Rng;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::{
    Broker, Gateway, Options, PATIENCE,
    link::Link,
    load::{Account, Api, Load, Sending},
};

pub const LOAD: Load = Load { devices: 20, messages: 75, pause: Duration::from_millis(80) };
/// Receive Maximum: no more than this is in flight, as far as the broker keeps to it.
pub const WINDOW: u64 = 64;

/// A broker and an API, each behind a link, and one gateway after the other between them.
pub struct Rig {
    pub broker: Broker,
    pub to_broker: Link,
    pub api: Api,
    pub to_api: Link,
    options: Options,
    incarnation: u32,
}

impl Rig {
    pub async fn new() -> Self {
        // Nothing may be dropped for want of room: what is lost shall be the gateway's fault.
        let broker = Broker::configured("max_queued_messages 0").await;
        let api = Api::start().await;
        // Slower than the devices: the window is full, more waits at the broker, and a fault finds
        // everything under way. Of different length: messages are settled out of order.
        api.delay(Duration::from_millis(100));
        let (to_broker, to_api) = (Link::to(broker.port).await, Link::to(api.port).await);
        let options = Options::default()
            .set("BROKER_MAX_PENDING", &WINDOW.to_string())
            .set("UPSTREAM_BREAKER_PROBE", "50ms")
            .set("UPSTREAM_BREAKER_PROBE_MAX", "100ms");
        Self { broker, to_broker, api, to_api, options, incarnation: 0 }
    }

    /// As [`Options::config`], for the gateways to come.
    pub fn config(mut self, text: &str) -> Self {
        self.options = self.options.config(text);
        self
    }

    /// As [`Options::set`], for the gateways to come.
    pub fn set(mut self, key: &str, value: &str) -> Self {
        self.options = self.options.set(key, value);
        self
    }

    /// The next gateway; not ready yet.
    pub async fn gateway(&mut self) -> Gateway {
        self.next().spawn().await
    }

    /// The next gateway, which only drains.
    pub async fn draining(&mut self, quiet: &str) -> Gateway {
        self.next().drain(quiet).await
    }

    fn next(&mut self) -> Options {
        self.incarnation += 1;
        let upstream = format!("{}/{}", self.to_api.url("http"), self.incarnation);
        let options = self.options.clone().set("BROKER_URL", &self.to_broker.url("mqtt"));
        options.set("UPSTREAM_URL", &upstream)
    }

    /// With the first gateway, whose session holds what comes from now on.
    pub async fn start(mut self, rng: &mut Rng) -> (Self, Gateway, Sending) {
        let gateway = self.gateway().await;
        gateway.ready().await;
        let sending = LOAD.start(self.broker.port, rng);
        (self, gateway, sending)
    }

    /// Everything is at the API and acknowledged to the broker, and the last gateway ends well.
    pub async fn ends(&mut self, mut gateway: Gateway, mut sending: Sending) -> Account {
        sending.sent().await;
        let sent = usize::try_from(sending.count()).unwrap();
        let began = Instant::now();
        while self.api.distinct() < sent {
            let arrivals = self.api.arrivals();
            let last = arrivals.last().map_or(began, |arrival| arrival.at.max(began));
            let account = || sending.account(&self.api);
            assert!(last.elapsed() < PATIENCE, "something does not come: {:?}", account());
            sleep(Duration::from_millis(10)).await;
        }
        gateway.settles().await;
        assert_eq!(gateway.stop().await.code(), Some(0));
        // Whatever the broker still had would come to the next gateway before anything new.
        let next = self.gateway().await;
        next.ready().await;
        self.broker.device("last").await.send("telemetry", json!({"n": 0})).await;
        next.metric_reaches("mqtt_rest_gateway_messages_settled_total", &["delivered"], 1).await;
        next.metric_is("mqtt_rest_gateway_messages_received_total", &[], 1).await;
        let account = sending.account(&self.api);
        eprintln!("{account:?}");
        account
    }
}
