//! MQTT 5 on the wire, written for the tests and for both sides: a test device is a client, the
//! fake broker a server. It shares no code with the gateway's client library, so that a fault of
//! the one cannot hide behind the same fault of the other.
//!
//! Left out, because no test speaks them: `QoS` 2, AUTH, wills.

use std::io::{self, ErrorKind};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

/// The properties of any packet [MQTT 5.0, 2.2.2].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Props {
    pub user: Vec<(String, String)>,
    pub response_topic: Option<String>,
    pub correlation: Option<Vec<u8>>,
    pub content_type: Option<String>,
    pub payload_format: Option<u8>,
    pub expiry: Option<u32>,
    pub receive_maximum: Option<u16>,
    pub maximum_packet_size: Option<u32>,
    pub maximum_qos: Option<u8>,
    pub session_expiry: Option<u32>,
    pub server_keep_alive: Option<u16>,
    pub shared_subscriptions: Option<u8>,
    pub topic_alias: Option<u16>,
    pub topic_alias_maximum: Option<u16>,
    pub assigned_client_id: Option<String>,
    pub reason_string: Option<String>,
    pub subscription_ids: Vec<u32>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Publish {
    pub topic: String,
    pub payload: Vec<u8>,
    pub qos: u8,
    pub dup: bool,
    pub retain: bool,
    /// 0 at `QoS` 0, which has none.
    pub packet_id: u16,
    pub props: Props,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Packet {
    Connect {
        client_id: String,
        clean_start: bool,
        keep_alive: u16,
        username: Option<String>,
        password: Option<Vec<u8>>,
        props: Props,
    },
    ConnAck {
        session_present: bool,
        reason: u8,
        props: Props,
    },
    Publish(Publish),
    PubAck {
        packet_id: u16,
        reason: u8,
    },
    /// Each filter with its options byte. An identifier is passed over; one with other properties is an
    /// error: nobody here sends any.
    Subscribe {
        packet_id: u16,
        filters: Vec<(String, u8)>,
    },
    SubAck {
        packet_id: u16,
        reasons: Vec<u8>,
    },
    Unsubscribe {
        packet_id: u16,
        filters: Vec<String>,
    },
    UnsubAck {
        packet_id: u16,
        reasons: Vec<u8>,
    },
    PingReq,
    PingResp,
    Disconnect {
        reason: u8,
        props: Props,
    },
}

impl Packet {
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        let first = match self {
            Self::Connect { client_id, clean_start, keep_alive, username, password, props } => {
                put_text(&mut body, "MQTT");
                body.push(5);
                body.push(
                    u8::from(*clean_start) << 1
                        | u8::from(password.is_some()) << 6
                        | u8::from(username.is_some()) << 7,
                );
                body.extend(keep_alive.to_be_bytes());
                props.put(&mut body);
                put_text(&mut body, client_id);
                if let Some(username) = username {
                    put_text(&mut body, username);
                }
                if let Some(password) = password {
                    put_bytes(&mut body, password);
                }
                0x10
            }
            Self::ConnAck { session_present, reason, props } => {
                body.extend([u8::from(*session_present), *reason]);
                props.put(&mut body);
                0x20
            }
            Self::Publish(publish) => {
                put_text(&mut body, &publish.topic);
                if publish.qos > 0 {
                    body.extend(publish.packet_id.to_be_bytes());
                }
                publish.props.put(&mut body);
                body.extend(&publish.payload);
                0x30 | u8::from(publish.dup) << 3 | publish.qos << 1 | u8::from(publish.retain)
            }
            Self::PubAck { packet_id, reason } => {
                body.extend(packet_id.to_be_bytes());
                if *reason != 0 {
                    body.push(*reason);
                }
                0x40
            }
            Self::Subscribe { packet_id, filters } => {
                body.extend(packet_id.to_be_bytes());
                body.push(0);
                for (filter, options) in filters {
                    put_text(&mut body, filter);
                    body.push(*options);
                }
                0x82
            }
            Self::SubAck { packet_id, reasons } | Self::UnsubAck { packet_id, reasons } => {
                body.extend(packet_id.to_be_bytes());
                body.push(0);
                body.extend(reasons);
                if matches!(self, Self::SubAck { .. }) { 0x90 } else { 0xB0 }
            }
            Self::Unsubscribe { packet_id, filters } => {
                body.extend(packet_id.to_be_bytes());
                body.push(0);
                for filter in filters {
                    put_text(&mut body, filter);
                }
                0xA2
            }
            Self::PingReq => 0xC0,
            Self::PingResp => 0xD0,
            // The long form: the one that every client library understands.
            Self::Disconnect { reason, props } => {
                body.push(*reason);
                props.put(&mut body);
                0xE0
            }
        };
        let mut packet = vec![first];
        put_varint(&mut packet, body.len());
        packet.extend(body);
        packet
    }

    /// Takes the first packet off the buffer; `None` while it is not complete.
    fn decode(buffer: &mut Vec<u8>) -> io::Result<Option<Self>> {
        let Some(&first) = buffer.first() else { return Ok(None) };
        let mut length = 0usize;
        let mut start = 1;
        loop {
            let Some(&byte) = buffer.get(start) else { return Ok(None) };
            length |= usize::from(byte & 0x7F) << (7 * (start - 1));
            start += 1;
            if byte & 0x80 == 0 {
                break;
            }
            if start == 5 {
                return Err(malformed("remaining length"));
            }
        }
        if buffer.len() < start + length {
            return Ok(None);
        }
        let packet = Self::parse(first, &mut Cursor(&buffer[start..start + length]))?;
        buffer.drain(..start + length);
        Ok(Some(packet))
    }

    fn parse(first: u8, body: &mut Cursor<'_>) -> io::Result<Self> {
        let flags = first & 0x0F;
        // [MQTT-2.1.3-1]: the flags are reserved everywhere but in PUBLISH.
        let expected = match first >> 4 {
            3 => flags,
            8 | 10 => 2,
            _ => 0,
        };
        if flags != expected {
            return Err(malformed(&format!("flags of {first:#04x}")));
        }
        let packet = match first >> 4 {
            1 => {
                if body.text()? != "MQTT" || body.u8()? != 5 {
                    return Err(malformed("protocol name or version"));
                }
                let flags = body.u8()?;
                if flags & 0b0011_1101 != 0 {
                    return Err(malformed("CONNECT flags, or a will"));
                }
                let keep_alive = body.u16()?;
                let props = body.props()?;
                Self::Connect {
                    clean_start: flags & 0x02 != 0,
                    keep_alive,
                    props,
                    client_id: body.text()?,
                    username: if flags & 0x80 != 0 { Some(body.text()?) } else { None },
                    password: if flags & 0x40 != 0 { Some(body.bytes()?.to_vec()) } else { None },
                }
            }
            2 => Self::ConnAck {
                session_present: body.u8()? & 1 != 0,
                reason: body.u8()?,
                props: body.props()?,
            },
            3 => {
                let qos = (flags >> 1) & 3;
                Self::Publish(Publish {
                    qos,
                    dup: flags & 8 != 0,
                    retain: flags & 1 != 0,
                    topic: body.text()?,
                    packet_id: if qos > 0 { body.u16()? } else { 0 },
                    props: body.props()?,
                    payload: body.rest().to_vec(),
                })
            }
            4 => {
                let packet_id = body.u16()?;
                let (reason, _) = body.reason()?;
                Self::PubAck { packet_id, reason }
            }
            8 => {
                let packet_id = body.u16()?;
                let props = body.props()?;
                if (Props { subscription_ids: Vec::new(), ..props }) != Props::default() {
                    return Err(malformed("SUBSCRIBE with properties"));
                }
                let mut filters = Vec::new();
                while !body.0.is_empty() {
                    filters.push((body.text()?, body.u8()?));
                }
                Self::Subscribe { packet_id, filters }
            }
            10 => {
                let packet_id = body.u16()?;
                body.props()?;
                let mut filters = Vec::new();
                while !body.0.is_empty() {
                    filters.push(body.text()?);
                }
                Self::Unsubscribe { packet_id, filters }
            }
            kind @ (9 | 11) => {
                let packet_id = body.u16()?;
                body.props()?;
                let reasons = body.rest().to_vec();
                if kind == 9 {
                    Self::SubAck { packet_id, reasons }
                } else {
                    Self::UnsubAck { packet_id, reasons }
                }
            }
            12 => Self::PingReq,
            13 => Self::PingResp,
            14 => {
                let (reason, props) = body.reason()?;
                Self::Disconnect { reason, props }
            }
            _ => return Err(malformed(&format!("packet type of {first:#04x}"))),
        };
        if body.0.is_empty() { Ok(packet) } else { Err(malformed("bytes after the packet's end")) }
    }
}

impl Props {
    fn put(&self, out: &mut Vec<u8>) {
        let mut body = Vec::new();
        let bytes = [(0x01, self.payload_format), (0x24, self.maximum_qos)];
        for (id, value) in bytes.into_iter().chain([(0x2A, self.shared_subscriptions)]) {
            if let Some(value) = value {
                body.extend([id, value]);
            }
        }
        for (id, value) in [
            (0x13, self.server_keep_alive),
            (0x21, self.receive_maximum),
            (0x22, self.topic_alias_maximum),
            (0x23, self.topic_alias),
        ] {
            if let Some(value) = value {
                body.push(id);
                body.extend(value.to_be_bytes());
            }
        }
        for (id, value) in
            [(0x02, self.expiry), (0x11, self.session_expiry), (0x27, self.maximum_packet_size)]
        {
            if let Some(value) = value {
                body.push(id);
                body.extend(value.to_be_bytes());
            }
        }
        for (id, value) in [
            (0x03, &self.content_type),
            (0x08, &self.response_topic),
            (0x12, &self.assigned_client_id),
            (0x1F, &self.reason_string),
        ] {
            if let Some(value) = value {
                body.push(id);
                put_text(&mut body, value);
            }
        }
        if let Some(correlation) = &self.correlation {
            body.push(0x09);
            put_bytes(&mut body, correlation);
        }
        for id in &self.subscription_ids {
            body.push(0x0B);
            put_varint(&mut body, *id as usize);
        }
        for (name, value) in &self.user {
            body.push(0x26);
            put_text(&mut body, name);
            put_text(&mut body, value);
        }
        put_varint(out, body.len());
        out.extend(body);
    }
}

fn put_varint(out: &mut Vec<u8>, mut value: usize) {
    assert!(value < 1 << 28, "{value} does not fit a variable byte integer");
    loop {
        let low = value.to_le_bytes()[0] & 0x7F;
        value >>= 7;
        if value == 0 {
            return out.push(low);
        }
        out.push(low | 0x80);
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = u16::try_from(bytes.len()).expect("a string of MQTT has at most 65,535 bytes");
    out.extend(length.to_be_bytes());
    out.extend(bytes);
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_bytes(out, text.as_bytes());
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("malformed packet: {what}"))
}

/// What is left of a packet's body.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> io::Result<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count).ok_or_else(|| malformed("too short"))?;
        self.0 = tail;
        Ok(head)
    }

    fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        Ok(self.take(N)?.try_into().expect("as many as taken"))
    }

    fn u8(&mut self) -> io::Result<u8> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    fn u16(&mut self) -> io::Result<u16> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    fn u32(&mut self) -> io::Result<u32> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    fn varint(&mut self) -> io::Result<u32> {
        let mut value = 0;
        for shift in [0, 7, 14, 21] {
            let byte = self.u8()?;
            value |= u32::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(malformed("variable byte integer"))
    }

    fn bytes(&mut self) -> io::Result<&'a [u8]> {
        let length = self.u16()?;
        self.take(length.into())
    }

    fn text(&mut self) -> io::Result<String> {
        String::from_utf8(self.bytes()?.to_vec()).map_err(|_| malformed("not UTF-8"))
    }

    /// Reason code and properties, which may be left out from the end [MQTT 5.0, 3.4.2.1].
    fn reason(&mut self) -> io::Result<(u8, Props)> {
        let reason = if self.0.is_empty() { 0 } else { self.u8()? };
        let props = if self.0.is_empty() { Props::default() } else { self.props()? };
        Ok((reason, props))
    }

    fn props(&mut self) -> io::Result<Props> {
        let length = self.varint()?;
        let mut body = Cursor(self.take(length as usize)?);
        let mut props = Props::default();
        while !body.0.is_empty() {
            match body.u8()? {
                0x01 => props.payload_format = Some(body.u8()?),
                0x02 => props.expiry = Some(body.u32()?),
                0x03 => props.content_type = Some(body.text()?),
                0x08 => props.response_topic = Some(body.text()?),
                0x09 => props.correlation = Some(body.bytes()?.to_vec()),
                0x0B => props.subscription_ids.push(body.varint()?),
                0x11 => props.session_expiry = Some(body.u32()?),
                0x12 => props.assigned_client_id = Some(body.text()?),
                0x13 => props.server_keep_alive = Some(body.u16()?),
                0x1F => props.reason_string = Some(body.text()?),
                0x21 => props.receive_maximum = Some(body.u16()?),
                0x22 => props.topic_alias_maximum = Some(body.u16()?),
                0x23 => props.topic_alias = Some(body.u16()?),
                0x24 => props.maximum_qos = Some(body.u8()?),
                0x26 => props.user.push((body.text()?, body.text()?)),
                0x27 => props.maximum_packet_size = Some(body.u32()?),
                0x2A => props.shared_subscriptions = Some(body.u8()?),
                // Known, and of no interest to any test.
                0x17 | 0x19 | 0x25 | 0x28 | 0x29 => drop(body.u8()?),
                0x1A | 0x1C => drop(body.text()?),
                other => return Err(malformed(&format!("property {other:#04x}"))),
            }
        }
        Ok(props)
    }
}

/// A connection on which whole packets go out and come in.
pub struct Wire {
    reader: WireReader,
    writer: WireWriter,
}

impl Wire {
    pub fn new(stream: TcpStream) -> Self {
        // The tests measure order, not throughput: nothing may wait for the next packet. A socket
        // that is gone already shows at the first read.
        let _ = stream.set_nodelay(true);
        let (read, write) = stream.into_split();
        Self {
            reader: WireReader { stream: read, buffer: Vec::new() },
            writer: WireWriter { stream: write },
        }
    }

    pub async fn send(&mut self, packet: &Packet) -> io::Result<()> {
        self.writer.send(packet).await
    }

    pub async fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.writer.send_raw(bytes).await
    }

    /// The next packet; `None` when the peer has closed. Cancel-safe: what came of a packet stays.
    pub async fn receive(&mut self) -> io::Result<Option<Packet>> {
        self.reader.receive().await
    }

    /// The next bytes, whatever they mean.
    pub async fn receive_raw(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.reader.buffer.len() < count {
            if self.reader.stream.read_buf(&mut self.reader.buffer).await? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.reader.buffer.drain(..count).collect())
    }

    pub fn split(self) -> (WireReader, WireWriter) {
        (self.reader, self.writer)
    }
}

/// The reading half of a [`Wire`].
pub struct WireReader {
    stream: OwnedReadHalf,
    /// What came and is not a whole packet yet.
    buffer: Vec<u8>,
}

impl WireReader {
    /// The next packet; `None` when the peer has closed. Cancel-safe: what came of a packet stays.
    pub async fn receive(&mut self) -> io::Result<Option<Packet>> {
        loop {
            if let Some(packet) = Packet::decode(&mut self.buffer)? {
                return Ok(Some(packet));
            }
            match self.stream.read_buf(&mut self.buffer).await {
                Ok(0) if self.buffer.is_empty() => return Ok(None),
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                // Who closes with something unread resets: to a test it is the same.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }
}

/// The writing half of a [`Wire`].
pub struct WireWriter {
    stream: OwnedWriteHalf,
}

impl WireWriter {
    pub async fn send(&mut self, packet: &Packet) -> io::Result<()> {
        self.send_raw(&packet.encode()).await
    }

    pub async fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{net::TcpListener, time::timeout};

    use super::*;

    /// One of each packet, with everything set that it can carry.
    fn packets() -> Vec<Packet> {
        let text = |text: &str| Some(text.to_owned());
        let props = Props {
            user: vec![("a".into(), "1".into()), ("a".into(), "2".into())],
            response_topic: text("v1/r"),
            correlation: Some(vec![0, 255]),
            content_type: text("application/json"),
            payload_format: Some(1),
            expiry: Some(60),
            receive_maximum: Some(5),
            maximum_packet_size: Some(1 << 20),
            maximum_qos: Some(1),
            session_expiry: Some(3600),
            server_keep_alive: Some(0),
            shared_subscriptions: Some(0),
            topic_alias: Some(3),
            topic_alias_maximum: Some(4),
            assigned_client_id: text("id"),
            reason_string: text("why"),
            subscription_ids: vec![1, 268_435_455],
        };
        let publish = Publish {
            topic: "v1/device/d1/telemetry".into(),
            payload: vec![7; 20_000],
            qos: 1,
            dup: true,
            retain: true,
            packet_id: 65_535,
            props: props.clone(),
        };
        vec![
            Packet::Connect {
                client_id: "c".into(),
                clean_start: true,
                keep_alive: 30,
                username: text("u"),
                password: Some(b"p".to_vec()),
                props: props.clone(),
            },
            Packet::ConnAck { session_present: true, reason: 0x87, props: props.clone() },
            Packet::Publish(Publish { qos: 0, packet_id: 0, ..publish.clone() }),
            Packet::Publish(publish),
            Packet::PubAck { packet_id: 1, reason: 0 },
            Packet::PubAck { packet_id: 2, reason: 0x97 },
            Packet::Subscribe { packet_id: 3, filters: vec![("a/+".into(), 0b10_0001)] },
            Packet::SubAck { packet_id: 3, reasons: vec![1, 0x87] },
            Packet::Unsubscribe { packet_id: 4, filters: vec!["a/+".into()] },
            Packet::UnsubAck { packet_id: 4, reasons: vec![0] },
            Packet::PingReq,
            Packet::PingResp,
            Packet::Disconnect { reason: 0x8E, props },
        ]
    }

    #[test]
    fn every_packet_survives_the_wire() {
        let packets = packets();
        let mut stream: Vec<u8> = packets.iter().flat_map(Packet::encode).collect();
        for packet in packets {
            assert_eq!(Packet::decode(&mut stream).unwrap(), Some(packet));
        }
        assert!(stream.is_empty());
    }

    /// The bytes of the standard's own forms: a round trip alone would not see both sides wrong.
    #[test]
    fn bytes_are_those_of_the_standard() {
        let publish = Publish {
            topic: "a/b".into(),
            payload: b"x".to_vec(),
            qos: 1,
            packet_id: 10,
            props: Props { expiry: Some(1), ..Props::default() },
            ..Publish::default()
        };
        let bytes = b"\x32\x0e\x00\x03a/b\x00\x0a\x05\x02\x00\x00\x00\x01x";
        assert_eq!(Packet::Publish(publish).encode(), bytes);
        let short = [
            (&b"\x40\x02\x00\x07"[..], Packet::PubAck { packet_id: 7, reason: 0 }),
            (b"\x40\x04\x00\x07\x10\x00", Packet::PubAck { packet_id: 7, reason: 0x10 }),
            (b"\xe0\x00", Packet::Disconnect { reason: 0, props: Props::default() }),
            (b"\xe0\x01\x8e", Packet::Disconnect { reason: 0x8E, props: Props::default() }),
        ];
        for (bytes, packet) in short {
            assert_eq!(Packet::decode(&mut bytes.to_vec()).unwrap(), Some(packet));
        }
        for bytes in [
            &b"\x41\x02\x00\x07"[..],
            b"\x40\x01\x00",
            b"\xf0\x00",
            b"\x82\x06\x00\x01\x03\x1f\x00\x00",
        ] {
            Packet::decode(&mut bytes.to_vec()).unwrap_err();
        }
    }

    #[tokio::test]
    async fn a_read_that_is_given_up_loses_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (mut client, mut server) = (Wire::new(client.unwrap()), Wire::new(server.unwrap().0));
        let packets = packets();
        for packet in &packets {
            let bytes = packet.encode();
            client.send_raw(&bytes[..1]).await.unwrap();
            timeout(Duration::from_millis(5), server.receive()).await.unwrap_err();
            client.send_raw(&bytes[1..]).await.unwrap();
            assert_eq!(server.receive().await.unwrap().as_ref(), Some(packet));
        }
        drop(client);
        assert_eq!(server.receive().await.unwrap(), None);
    }
}
