//! A device: an MQTT client that speaks raw MQTT, as verbs.

use serde_json::Value;
use tokio::{sync::mpsc, time::timeout};

use crate::{
    patience::{PATIENCE, QUIET},
    wire::{Packet, Props, Publish, Wire, WireWriter},
};

/// The user properties by which a device of the shipped table says who it is.
pub fn credentials(device: &str) -> Vec<(String, String)> {
    let (id, key) = (device.to_owned(), format!("key-of-{device}"));
    vec![("device_id".to_owned(), id), ("access_key".to_owned(), key)]
}

/// Telemetry of a device at `QoS` 1, with its credentials.
pub fn telemetry(packet_id: u16, device: &str, payload: impl Into<Vec<u8>>) -> Publish {
    Publish {
        topic: format!("v1/device/{device}/telemetry"),
        payload: payload.into(),
        qos: 1,
        packet_id,
        props: Props { user: credentials(device), ..Props::default() },
        ..Publish::default()
    }
}

/// An MQTT client that keeps what it receives and acknowledges it at once.
pub struct Device {
    pub id: String,
    writer: WireWriter,
    inbox: mpsc::Receiver<Publish>,
    replies: mpsc::Receiver<Packet>,
    next_id: u16,
    /// Read, but not what was looked for.
    aside: Vec<Publish>,
}

impl Device {
    pub(crate) async fn connect(port: u16, id: &str, filter: &str, user: Option<&str>) -> Self {
        let connect = Packet::Connect {
            // A user chooses its client id as it likes.
            client_id: user.map_or_else(|| format!("device-{id}"), |_| id.to_owned()),
            clean_start: true,
            keep_alive: 0,
            username: user.map(str::to_owned),
            password: user.map(|user| user.as_bytes().to_vec()),
            props: Props::default(),
        };
        let (mut reader, mut writer) = Wire::connect(port, &connect).await.unwrap().split();
        // QoS 1, no local: a device does not hear itself.
        let filters = vec![(filter.to_owned(), 0b101)];
        let subscribe = Packet::Subscribe { packet_id: 1, identifier: None, filters };
        writer.send(&subscribe).await.unwrap();
        let (inbox_sender, inbox) = mpsc::channel(10_000);
        let (reply_sender, replies) = mpsc::channel(10_000);
        tokio::spawn(async move {
            while let Ok(Some(packet)) = reader.receive().await {
                // A test that has ended does not care.
                let _ = match packet {
                    Packet::Publish(publish) => inbox_sender.send(publish).await.map_err(|_| ()),
                    other => reply_sender.send(other).await.map_err(|_| ()),
                };
            }
        });
        let mut device =
            Self { id: id.to_owned(), writer, inbox, replies, next_id: 1, aside: Vec::new() };
        assert!(matches!(device.reply().await, Packet::SubAck { reasons, .. } if reasons == [1]));
        device
    }

    async fn reply(&mut self) -> Packet {
        timeout(PATIENCE, self.replies.recv())
            .await
            .expect("an answer of the broker")
            .expect("open")
    }

    pub fn topic(&self, below: &str) -> String {
        format!("v1/device/{}/{below}", self.id)
    }

    /// A message of this device with its credentials, not sent yet.
    pub fn message(&self, below: &str, payload: impl Into<Vec<u8>>) -> Publish {
        Publish { topic: self.topic(below), ..telemetry(0, &self.id, payload) }
    }

    /// Publishes and waits for the broker's PUBACK.
    pub async fn publish(&mut self, mut message: Publish) {
        self.next_id = if self.next_id == u16::MAX { 1 } else { self.next_id + 1 };
        message.packet_id = if message.qos == 0 { 0 } else { self.next_id };
        let qos = message.qos;
        self.writer.send(&Packet::Publish(message)).await.unwrap();
        if qos > 0 {
            match self.reply().await {
                Packet::PubAck { packet_id, reason } => {
                    assert_eq!(packet_id, self.next_id);
                    // 16: nobody listens, which is the test's business.
                    assert!(matches!(reason, 0 | 16), "the broker refuses: {reason}");
                }
                other => panic!("no PUBACK: {other:?}"),
            }
        }
    }

    /// Sends JSON below the device's topics, with its credentials.
    pub async fn send(&mut self, below: &str, payload: Value) {
        let message = self.message(below, payload.to_string());
        self.publish(message).await;
    }

    /// The same with a Response Topic and Correlation Data; the answer.
    pub async fn ask(&mut self, below: &str, payload: Value) -> Publish {
        let mut message = self.message(below, payload.to_string());
        message.props.response_topic = Some(self.topic("answers"));
        self.next_id += 1;
        let correlation = format!("q-{}", self.next_id).into_bytes();
        message.props.correlation = Some(correlation.clone());
        self.publish(message).await;
        let topic = self.topic("answers");
        let answer = self.on(&topic).await;
        assert_eq!(answer.props.correlation, Some(correlation));
        answer
    }

    /// The next message, whatever its topic.
    pub async fn next(&mut self) -> Publish {
        if !self.aside.is_empty() {
            return self.aside.remove(0);
        }
        self.receive().await
    }

    /// The next message on this topic; others stay for later.
    pub async fn on(&mut self, topic: &str) -> Publish {
        if let Some(index) = self.aside.iter().position(|message| message.topic == topic) {
            return self.aside.remove(index);
        }
        loop {
            let message = self.receive_for(topic).await;
            if message.topic == topic {
                return message;
            }
            self.aside.push(message);
        }
    }

    async fn receive(&mut self) -> Publish {
        self.receive_for("any topic").await
    }

    async fn receive_for(&mut self, what: &str) -> Publish {
        let message = timeout(PATIENCE, self.inbox.recv())
            .await
            .unwrap_or_else(|_| panic!("{}: nothing on {what}; aside: {:?}", self.id, self.aside))
            .expect("the broker keeps the connection");
        if message.qos == 1 {
            let ack = Packet::PubAck { packet_id: message.packet_id, reason: 0 };
            self.writer.send(&ack).await.unwrap();
        }
        message
    }

    /// Nothing comes for a while.
    pub async fn silent(&mut self) {
        assert!(self.aside.is_empty(), "there is {:?}", self.aside);
        if let Ok(message) = timeout(QUIET, self.receive()).await {
            panic!("{} hears {message:?}", self.id);
        }
    }
}

impl Publish {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.payload)
            .unwrap_or_else(|_| panic!("no JSON: {}", String::from_utf8_lossy(&self.payload)))
    }

    /// The value of a user property.
    pub fn user(&self, name: &str) -> &str {
        let mut values = self.props.user.iter().filter(|(n, _)| n == name);
        values.next().map_or("", |(_, value)| value)
    }
}
