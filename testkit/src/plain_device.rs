//! A device that speaks MQTT 3.1.1, as most that are for sale do: its messages have no properties at all. It has its own
//! few packets: those of MQTT 5 differ from them in every place where properties stand.

use std::io;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    time::timeout,
};

use crate::patience::{PATIENCE, QUIET};

/// An MQTT 3.1.1 client that keeps what it receives.
pub struct PlainDevice {
    writer: OwnedWriteHalf,
    inbox: mpsc::Receiver<Heard>,
    /// Packet identifiers of PUBACKs.
    acknowledged: mpsc::Receiver<u16>,
    next_id: u16,
    aside: Vec<Heard>,
}

/// A message as such a client has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    pub topic: String,
    pub payload: Vec<u8>,
}

impl Heard {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.payload).into_owned()
    }
}

impl PlainDevice {
    pub(crate) async fn connect(port: u16, id: &str, filter: &str) -> Self {
        let (mut reader, mut writer) =
            TcpStream::connect(("127.0.0.1", port)).await.unwrap().into_split();
        // Level 4, a clean session, no keep alive.
        let connect = [text("MQTT"), vec![4, 2, 0, 0], text(id)].concat();
        writer.write_all(&packet(0x10, &connect)).await.unwrap();
        assert_eq!(receive(&mut reader).await.unwrap(), (0x20, vec![0, 0]), "CONNACK");
        let subscribe = [vec![0, 1], text(filter), vec![0]].concat();
        writer.write_all(&packet(0x82, &subscribe)).await.unwrap();
        assert_eq!(receive(&mut reader).await.unwrap(), (0x90, vec![0, 1, 0]), "SUBACK");
        let (inbox_sender, inbox) = mpsc::channel(10_000);
        let (acknowledged_sender, acknowledged) = mpsc::channel(10_000);
        tokio::spawn(async move {
            while let Ok((first, body)) = receive(&mut reader).await {
                // A test that has ended does not care.
                let _ = match first >> 4 {
                    3 => inbox_sender.send(heard(&body)).await.map_err(|_| ()),
                    4 => acknowledged_sender.send(number(&body)).await.map_err(|_| ()),
                    other => panic!("a packet of type {other}"),
                };
            }
        });
        Self { writer, inbox, acknowledged, next_id: 0, aside: Vec::new() }
    }

    /// Publishes at `QoS` 1 and waits for the broker's PUBACK.
    pub async fn publish(&mut self, topic: &str, payload: impl AsRef<[u8]>) {
        self.next_id = self.next_id % u16::MAX + 1;
        let id = self.next_id.to_be_bytes().to_vec();
        let body = [text(topic), id, payload.as_ref().to_vec()].concat();
        self.writer.write_all(&packet(0x32, &body)).await.unwrap();
        let acknowledged = timeout(PATIENCE, self.acknowledged.recv()).await.expect("a PUBACK");
        assert_eq!(acknowledged, Some(self.next_id));
    }

    /// The next message on this topic; others stay for later.
    pub async fn on(&mut self, topic: &str) -> Heard {
        if let Some(index) = self.aside.iter().position(|heard| heard.topic == topic) {
            return self.aside.remove(index);
        }
        loop {
            let heard = timeout(PATIENCE, self.inbox.recv()).await;
            let heard =
                heard.unwrap_or_else(|_| panic!("nothing on {topic}; aside: {:?}", self.aside));
            let heard = heard.expect("the broker keeps the connection");
            if heard.topic == topic {
                return heard;
            }
            self.aside.push(heard);
        }
    }

    /// Nothing comes for a while.
    pub async fn silent(&mut self) {
        assert!(self.aside.is_empty(), "there is {:?}", self.aside);
        if let Ok(heard) = timeout(QUIET, self.inbox.recv()).await {
            panic!("it hears {heard:?}");
        }
    }
}

fn text(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).unwrap().to_be_bytes();
    [&length, text.as_bytes()].concat()
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![first];
    let mut left = body.len();
    loop {
        let byte = u8::try_from(left % 128).unwrap();
        left /= 128;
        packet.push(if left > 0 { byte | 0x80 } else { byte });
        if left == 0 {
            break;
        }
    }
    packet.extend(body);
    packet
}

fn number(body: &[u8]) -> u16 {
    u16::from_be_bytes([body[0], body[1]])
}

/// A PUBLISH at `QoS` 0, as which everything comes that is subscribed to so.
fn heard(body: &[u8]) -> Heard {
    let (topic, payload) = body[2..].split_at(number(body).into());
    Heard { topic: String::from_utf8(topic.to_vec()).unwrap(), payload: payload.to_vec() }
}

async fn receive(reader: &mut OwnedReadHalf) -> io::Result<(u8, Vec<u8>)> {
    let first = reader.read_u8().await?;
    let (mut length, mut shift) = (0, 0);
    loop {
        let byte = reader.read_u8().await?;
        length |= usize::from(byte & 0x7F) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).await?;
    Ok((first, body))
}
