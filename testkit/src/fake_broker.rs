//! A broker that does exactly what a test tells it, also what no real broker does on demand.
//!
//! It takes connections one after another; the test writes down what happens on each, packet by
//! packet. Everything that is expected must come next, within [`PATIENCE`]; only pings may come in
//! between, they are answered and counted.

use std::{collections::VecDeque, io, time::Duration};

use tokio::{
    net::TcpListener,
    time::{Instant, error::Elapsed, timeout, timeout_at},
};

use crate::{
    PATIENCE,
    wire::{Packet, Props, Publish, Wire},
};

/// Topic filters of the shipped table: one for each row.
fn shipped_filters() -> usize {
    include_str!("../../config.toml").lines().filter(|line| line.starts_with("on ")).count()
}

/// The listener.
pub struct FakeBroker {
    listener: TcpListener,
}

impl FakeBroker {
    pub async fn start() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.unwrap() }
    }

    pub fn url(&self) -> String {
        format!("mqtt://{}", self.listener.local_addr().unwrap())
    }

    /// The next connection, its CONNECT read and not answered.
    pub async fn accept(&self) -> Link {
        self.accept_within(PATIENCE).await
    }

    /// The same where back-off, or a watchdog, may take longer.
    pub async fn accept_within(&self, patience: Duration) -> Link {
        let (stream, _) = timeout(patience, self.listener.accept())
            .await
            .unwrap_or_else(|_| panic!("no connection within {patience:?}"))
            .unwrap();
        let mut link = Link {
            wire: Wire::new(stream),
            client_id: String::new(),
            clean_start: false,
            keep_alive: 0,
            login: (None, None),
            props: Props::default(),
            pings: 0,
            seen: VecDeque::new(),
        };
        match link.next("CONNECT").await {
            Packet::Connect { client_id, clean_start, keep_alive, username, password, props } => {
                let login = (username, password);
                Link { client_id, clean_start, keep_alive, login, props, ..link }
            }
            other => link.fail("CONNECT", &other),
        }
    }

    /// The next connection, accepted and subscribed.
    pub async fn serve(&self, session_present: bool, props: Props) -> Link {
        let mut link = self.accept().await;
        link.connack(session_present, props).await;
        link.subscribed().await;
        link
    }
}

/// One connection, and what stood in its CONNECT.
pub struct Link {
    wire: Wire,
    pub client_id: String,
    pub clean_start: bool,
    pub keep_alive: u16,
    /// User Name and Password.
    pub login: (Option<String>, Option<Vec<u8>>),
    pub props: Props,
    /// Pings answered so far.
    pub pings: usize,
    /// The last packets, for the message of a panic.
    seen: VecDeque<String>,
}

impl Link {
    pub async fn connack(&mut self, session_present: bool, props: Props) {
        self.send(&Packet::ConnAck { session_present, reason: 0, props }).await;
    }

    /// Answers the SUBSCRIBEs to the shipped table, which must come next, with success; their filters and
    /// option bytes.
    pub async fn subscribed(&mut self) -> Vec<(String, u8)> {
        self.subscribed_with(|_, qos| vec![qos & 3]).await
    }

    /// The same with these reason codes for each filter and its option byte.
    pub async fn subscribed_with(
        &mut self,
        reasons: impl Fn(&str, u8) -> Vec<u8>,
    ) -> Vec<(String, u8)> {
        let mut all = Vec::new();
        while all.len() < shipped_filters() {
            let (packet_id, _, (filter, options)) = self.subscribe().await;
            let reasons = reasons(&filter, options);
            self.send(&Packet::SubAck { packet_id, reasons }).await;
            all.push((filter, options));
        }
        all
    }

    /// Answers this many SUBSCRIBEs, which must come next, with success; the Subscription Identifier of each
    /// filter.
    pub async fn identified(&mut self, count: usize) -> Vec<(String, u32)> {
        let mut all = Vec::new();
        for _ in 0..count {
            let (packet_id, identifier, (filter, _)) = self.subscribe().await;
            self.send(&Packet::SubAck { packet_id, reasons: vec![1] }).await;
            all.push((filter, identifier.expect("a Subscription Identifier")));
        }
        all
    }

    /// A SUBSCRIBE must come next, to one filter: each has an identifier of its own.
    async fn subscribe(&mut self) -> (u16, Option<u32>, (String, u8)) {
        match self.next("SUBSCRIBE").await {
            Packet::Subscribe { packet_id, identifier, mut filters } => {
                assert_eq!(filters.len(), 1, "{filters:?}");
                (packet_id, identifier, filters.remove(0))
            }
            other => self.fail("SUBSCRIBE", &other),
        }
    }

    /// An UNSUBSCRIBE must come next; its filters. It is answered with success.
    pub async fn unsubscribed(&mut self) -> Vec<String> {
        match self.next("UNSUBSCRIBE").await {
            Packet::Unsubscribe { packet_id, filters } => {
                let reasons = vec![0; filters.len()];
                self.send(&Packet::UnsubAck { packet_id, reasons }).await;
                filters
            }
            other => self.fail("UNSUBSCRIBE", &other),
        }
    }

    pub async fn deliver(&mut self, publish: &Publish) {
        self.send(&Packet::Publish(publish.clone())).await;
    }

    /// Acknowledges a publication of the gateway.
    pub async fn puback(&mut self, packet_id: u16) {
        self.send(&Packet::PubAck { packet_id, reason: 0 }).await;
    }

    pub async fn send(&mut self, packet: &Packet) {
        let sent = timeout(PATIENCE, self.wire.send(packet)).await;
        self.check(sent);
    }

    pub async fn send_raw(&mut self, bytes: &[u8]) {
        let sent = timeout(PATIENCE, self.wire.send_raw(bytes)).await;
        self.check(sent);
    }

    fn check(&self, sent: Result<io::Result<()>, Elapsed>) {
        if let Err(error) = sent.expect("the gateway reads") {
            panic!("cannot send, the connection is gone: {error}; before it: {:#?}", self.seen);
        }
    }

    /// The next packet that is no ping. `what` is for the message when none comes.
    pub async fn next(&mut self, what: &str) -> Packet {
        let packet = timeout(PATIENCE, self.receive()).await.unwrap_or_else(|_| {
            panic!("{what} expected, nothing within {PATIENCE:?}; before: {:#?}", self.seen)
        });
        packet.unwrap_or_else(|| {
            panic!("{what} expected, but the gateway closed; before: {:#?}", self.seen)
        })
    }

    /// The next packet that is no ping; `None` when the gateway has closed.
    pub async fn packet(&mut self) -> Option<Packet> {
        timeout(PATIENCE, self.receive()).await.expect("a packet")
    }

    /// These bytes must come next.
    pub async fn expect_raw(&mut self, bytes: &[u8]) {
        let came = timeout(PATIENCE, self.wire.receive_raw(bytes.len())).await;
        assert_eq!(came.expect("bytes").unwrap(), bytes);
    }

    /// A DISCONNECT must come next; then the broker closes.
    pub async fn goodbye(mut self) {
        match self.next("DISCONNECT").await {
            Packet::Disconnect { .. } => {}
            other => self.fail("DISCONNECT", &other),
        }
    }

    /// A PUBACK must come next; its packet identifier.
    pub async fn expect_puback(&mut self) -> u16 {
        match self.next("PUBACK").await {
            Packet::PubAck { packet_id, reason: 0 } => packet_id,
            other => self.fail("PUBACK", &other),
        }
    }

    /// A PUBLISH must come next. It is not acknowledged.
    pub async fn expect_publish(&mut self) -> Publish {
        match self.next("PUBLISH").await {
            Packet::Publish(publish) => publish,
            other => self.fail("PUBLISH", &other),
        }
    }

    /// Nothing but pings comes within `time`, and the connection stands.
    pub async fn expect_nothing(&mut self, time: Duration) {
        let until = Instant::now() + time;
        match timeout_at(until, self.receive()).await {
            Err(_) => {}
            Ok(Some(packet)) => self.fail("nothing", &packet),
            Ok(None) => panic!("nothing expected, but the gateway closed: {:#?}", self.seen),
        }
    }

    /// The next packet that is no ping, if one comes within `time`.
    pub async fn next_within(&mut self, time: Duration) -> Option<Packet> {
        timeout(time, self.receive()).await.ok().flatten()
    }

    /// Every packet, until none has come for `time`.
    pub async fn until_quiet(&mut self, time: Duration) -> Vec<Packet> {
        let mut packets = Vec::new();
        while let Ok(packet) = timeout(time, self.receive()).await {
            let Some(packet) = packet else {
                panic!("quiet expected, but the gateway closed: {:#?}", self.seen)
            };
            packets.push(packet);
        }
        packets
    }

    /// Closes the connection without a DISCONNECT.
    pub fn cut(self) {
        drop(self);
    }

    /// The next packet that is no ping; `None` when the gateway has closed. Cancel-safe but for the
    /// answer to a ping.
    async fn receive(&mut self) -> Option<Packet> {
        loop {
            let packet = match self.wire.receive().await {
                Ok(packet) => packet?,
                Err(error) => panic!("cannot read: {error}; before: {:#?}", self.seen),
            };
            if self.seen.len() == 20 {
                self.seen.pop_front();
            }
            self.seen.push_back(brief(&packet));
            if packet != Packet::PingReq {
                return Some(packet);
            }
            self.pings += 1;
            self.send(&Packet::PingResp).await;
        }
    }

    fn fail(&self, expected: &str, packet: &Packet) -> ! {
        panic!("{expected} expected, {} came; at last: {:#?}", brief(packet), self.seen)
    }
}

/// A packet in a line: payloads can be large.
fn brief(packet: &Packet) -> String {
    match packet {
        Packet::Publish(Publish { topic, payload, packet_id, props, .. }) => {
            let correlation = props.correlation.as_deref().map(String::from_utf8_lossy);
            format!(
                "PUBLISH {packet_id} on {topic}, {} bytes, correlation {correlation:?}",
                payload.len()
            )
        }
        other => format!("{other:?}"),
    }
}
