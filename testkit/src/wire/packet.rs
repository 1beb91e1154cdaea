//! Packets of MQTT 5 as values, and as bytes in both directions.

use std::io;

use super::props::{Cursor, Props, malformed, put_bytes, put_text, put_varint};

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
    /// Each filter with its options byte. One with other properties is an error: nobody here sends any.
    Subscribe {
        packet_id: u16,
        identifier: Option<u32>,
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
    /// The CONNECT of a client without a login that starts anew and sends no pings.
    pub fn connect(client_id: &str) -> Self {
        Self::Connect {
            client_id: client_id.to_owned(),
            clean_start: true,
            keep_alive: 0,
            username: None,
            password: None,
            props: Props::default(),
        }
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each kind of packet")]
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
            Self::Subscribe { packet_id, identifier, filters } => {
                body.extend(packet_id.to_be_bytes());
                let subscription_ids = identifier.iter().copied().collect();
                Props { subscription_ids, ..Props::default() }.put(&mut body);
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
    pub(super) fn decode(buffer: &mut Vec<u8>) -> io::Result<Option<Self>> {
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

    #[expect(clippy::too_many_lines, reason = "one arm for each kind of packet")]
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
                let mut props = body.props()?;
                let identifier = props.subscription_ids.pop();
                if props != Props::default() {
                    return Err(malformed("SUBSCRIBE with properties"));
                }
                let mut filters = Vec::new();
                while !body.0.is_empty() {
                    filters.push((body.text()?, body.u8()?));
                }
                Self::Subscribe { packet_id, identifier, filters }
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
