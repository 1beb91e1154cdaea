//! Reads packets from the broker, as leniently as possible: a message that cannot be read would be sent again on every
//! connection, for ever.
//!
//! Invalid UTF-8 is read as U+FFFD, an unknown property ends the properties and not the packet, and a message that is
//! too large is skipped. Only a stream in which the packets cannot be separated any more ends the connection.

use std::{borrow::Cow, time::Duration};

use bytes::{Buf, Bytes, BytesMut};

use super::{
    cursor::{Cursor, Value},
    window::PacketId,
};
use crate::{message::Properties, user_properties::UserProperties};

/// So many user properties of a message are kept; one with more is refused.
const MAX_USER_PROPERTIES: usize = 256;
/// The most that stands before a message's payload and matters when it is not taken: topic and packet
/// identifier, in bytes.
const MAX_HEAD: usize = 2 + 65_535 + 2;

/// A packet from the broker.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    ConnAck(ConnAck),
    Publish(Publish),
    PubAck {
        packet_id: PacketId,
        reason: u8,
    },
    PubRel {
        packet_id: PacketId,
    },
    SubAck {
        packet_id: PacketId,
        reasons: Bytes,
    },
    UnsubAck {
        packet_id: PacketId,
        reasons: Bytes,
    },
    PingResp,
    /// With its Reason String, or an empty one.
    Disconnect {
        reason: u8,
        text: String,
    },
    /// Of no meaning to us, or too short to have one; the packet type.
    Other(u8),
}

/// What the broker answers to CONNECT [MQTT 5.0, 3.2].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ConnAck {
    /// It has the form of MQTT 3.1.1, without properties.
    pub old: bool,
    pub session_present: bool,
    pub reason: u8,
    /// Reason String, or empty.
    pub text: String,
    pub limits: Limits,
}

/// What the broker allows on this connection; where it says nothing, what the standard says.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a property of CONNACK, as it stands there"
)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Limits {
    pub receive_maximum: u16,
    pub maximum_qos: u8,
    /// In bytes.
    pub maximum_packet_size: Option<u32>,
    /// In seconds; none is what was asked for.
    pub session_expiry: Option<u32>,
    /// In seconds; none is what was asked for.
    pub server_keep_alive: Option<u16>,
    pub retain: bool,
    pub wildcard_subscriptions: bool,
    pub shared_subscriptions: bool,
    pub subscription_identifiers: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            receive_maximum: u16::MAX,
            maximum_qos: 2,
            maximum_packet_size: None,
            session_expiry: None,
            server_keep_alive: None,
            retain: true,
            wildcard_subscriptions: true,
            shared_subscriptions: true,
            subscription_identifiers: true,
        }
    }
}

/// A PUBLISH [MQTT 5.0, 3.3].
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Publish {
    pub dup: bool,
    pub qos: u8,
    /// 0 at `QoS` 0, which has none.
    pub packet_id: PacketId,
    pub topic: String,
    pub payload: Bytes,
    pub properties: Properties,
    pub subscription_ids: Vec<u32>,
    /// Size of the packet, in bytes.
    pub size: usize,
    /// Why it is no message that could be handled.
    pub fault: Option<&'static str>,
}

/// The stream is no MQTT: where the next packet begins is unknown.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the broker sent bytes that are no valid MQTT packet")]
pub(super) struct NoPackets;

/// Cuts a stream of bytes into packets.
pub(super) struct Reader {
    /// Our Maximum Packet Size, in bytes.
    max_packet: usize,
    /// What is still to come of a packet that is passed over, in bytes.
    skip: usize,
}

impl Reader {
    pub(super) fn new(max_packet: usize) -> Self {
        Self { max_packet, skip: 0 }
    }

    /// Takes the next packet off the buffer; `None` while it is not complete.
    ///
    /// # Errors
    /// [`NoPackets`], after which nothing more can be read.
    pub(super) fn next(&mut self, input: &mut BytesMut) -> Result<Option<Incoming>, NoPackets> {
        let skipped = self.skip.min(input.len());
        input.advance(skipped);
        self.skip -= skipped;
        if self.skip > 0 {
            return Ok(None);
        }
        let Some((first, start, length)) = header(input)? else { return Ok(None) };
        let size = start + length;
        if size > self.max_packet {
            return Ok(self.pass_over(input, first, start, size));
        }
        if input.len() < size {
            input.reserve(size - input.len());
            return Ok(None);
        }
        let mut body = input.split_to(size).freeze();
        body.advance(start);
        Ok(Some(packet(first, &body, size)))
    }

    /// Skips a packet that is larger than the CONNECT allows [MQTT-3.1.2-24]. A message is acknowledged like any other, or
    /// the broker would send it again for ever.
    fn pass_over(
        &mut self,
        input: &mut BytesMut,
        first: u8,
        start: usize,
        size: usize,
    ) -> Option<Incoming> {
        if input.len() < size.min(start + MAX_HEAD) {
            return None;
        }
        let head = input.split_to(size.min(start + MAX_HEAD)).freeze();
        self.skip = size - head.len();
        if first >> 4 != 3 {
            return Some(Incoming::Other(first >> 4));
        }
        let mut publish = publish_head(first, &mut Cursor(head.get(start..).unwrap_or_default()));
        publish.size = head.len();
        publish.fault = Some("it is larger than max_packet");
        Some(Incoming::Publish(publish))
    }
}

/// First byte, where the body starts and how long it is, in bytes; `None` while that has not come.
fn header(input: &[u8]) -> Result<Option<(u8, usize, usize)>, NoPackets> {
    let Some((first, rest)) = input.split_first() else { return Ok(None) };
    let mut length = 0;
    for (index, byte) in rest.iter().take(4).enumerate() {
        length |= usize::from(byte & 0x7F) << (7 * index);
        if byte & 0x80 == 0 {
            return Ok(Some((*first, index + 2, length)));
        }
    }
    if rest.len() < 4 { Ok(None) } else { Err(NoPackets) }
}

fn packet(first: u8, body: &Bytes, size: usize) -> Incoming {
    let mut cursor = Cursor(body);
    let kind = first >> 4;
    let packet = match kind {
        2 => connack(&mut cursor).map(Incoming::ConnAck),
        3 => Some(Incoming::Publish(publish(first, body, size))),
        4 => cursor.u16().map(|packet_id| {
            let reason = cursor.u8().unwrap_or_default();
            Incoming::PubAck { packet_id, reason }
        }),
        6 => cursor.u16().map(|packet_id| Incoming::PubRel { packet_id }),
        9 | 11 => cursor.u16().map(|packet_id| {
            cursor.properties(|_, _| {});
            let reasons = Bytes::copy_from_slice(cursor.0);
            if kind == 9 {
                Incoming::SubAck { packet_id, reasons }
            } else {
                Incoming::UnsubAck { packet_id, reasons }
            }
        }),
        13 => Some(Incoming::PingResp),
        // Reason code and properties may be left out [MQTT 5.0, 3.14.2.1].
        14 => {
            let (reason, mut text) = (cursor.u8().unwrap_or_default(), String::new());
            cursor.properties(|id, value| reason_string(id, &value, &mut text));
            Some(Incoming::Disconnect { reason, text })
        }
        _ => None,
    };
    packet.unwrap_or(Incoming::Other(kind))
}

fn reason_string(id: u8, value: &Value<'_>, text: &mut String) {
    if let (0x1F, Value::Text(bytes)) = (id, value) {
        *text = lossy(bytes).into();
    }
}

fn connack(cursor: &mut Cursor<'_>) -> Option<ConnAck> {
    let (flags, reason) = (cursor.u8()?, cursor.u8()?);
    let old = cursor.0.is_empty();
    let (mut limits, mut text) = (Limits::default(), String::new());
    cursor.properties(|id, value| {
        reason_string(id, &value, &mut text);
        match (id, value) {
            // 0 is a protocol error [MQTT 5.0, 3.2.2.3.3]; nothing could ever be published.
            (0x21, Value::U16(value)) => limits.receive_maximum = value.max(1),
            (0x24, Value::U8(value)) => limits.maximum_qos = value,
            (0x25, Value::U8(value)) => limits.retain = value != 0,
            (0x27, Value::U32(value)) => limits.maximum_packet_size = Some(value),
            (0x11, Value::U32(value)) => limits.session_expiry = Some(value),
            (0x13, Value::U16(value)) => limits.server_keep_alive = Some(value),
            (0x28, Value::U8(value)) => limits.wildcard_subscriptions = value != 0,
            (0x29, Value::U8(value)) => limits.subscription_identifiers = value != 0,
            (0x2A, Value::U8(value)) => limits.shared_subscriptions = value != 0,
            _ => {}
        }
    });
    Some(ConnAck { old, session_present: flags & 1 != 0, reason, text, limits })
}

/// What stands before the properties.
fn publish_head(first: u8, cursor: &mut Cursor<'_>) -> Publish {
    let mut publish =
        Publish { dup: first & 0x08 != 0, qos: (first >> 1) & 3, ..Publish::default() };
    let topic = cursor.bytes().unwrap_or_default();
    publish.topic = lossy(topic).into();
    if topic.is_empty() {
        // Also where a topic alias stands for it: we allow none [MQTT-3.3.2-9].
        publish.fault = Some("it has no topic");
    } else if publish.topic.as_bytes() != topic {
        publish.fault = Some("its topic is not UTF-8");
    }
    if publish.qos > 0 {
        publish.packet_id = cursor.u16().unwrap_or_default();
    }
    if publish.qos > 0 && publish.packet_id == 0 || publish.qos == 3 {
        // Without an identifier there is nothing to acknowledge: as at QoS 0.
        (publish.qos, publish.packet_id) = (0, 0);
        publish.fault = Some("it has no packet identifier");
    }
    publish
}

fn publish(first: u8, body: &Bytes, size: usize) -> Publish {
    let mut cursor = Cursor(body);
    let mut publish = publish_head(first, &mut cursor);
    let Publish { properties, subscription_ids, fault, .. } = &mut publish;
    let complete = cursor.properties(|id, value| match (id, value) {
        (0x02, Value::U32(seconds)) => {
            properties.expiry = Some(Duration::from_secs(seconds.into()));
        }
        (0x03, Value::Text(text)) => properties.content_type = Some(lossy(text).into()),
        (0x08, Value::Text(text)) => properties.response_topic = Some(lossy(text).into()),
        (0x09, Value::Text(data)) => {
            properties.correlation_data = Some(Bytes::copy_from_slice(data));
        }
        (0x0B, Value::VarInt(id)) => subscription_ids.push(id),
        (0x26, Value::Pair(name, value)) if properties.user.len() < MAX_USER_PROPERTIES => {
            properties.user.push(&lossy(name), &lossy(value));
        }
        (0x26, _) => *fault = Some("it has more than 256 user properties"),
        _ => {}
    });
    if !complete {
        *fault = Some("its properties cannot be read");
    }
    // One filter, one identifier; more than a handful are not ours.
    subscription_ids.truncate(16);
    if fault.is_some() {
        properties.user = UserProperties::default();
    }
    // Copied: a slice would keep the whole read buffer, which can be twice as large, for as long as the message
    // is held.
    publish.payload = Bytes::copy_from_slice(cursor.0);
    publish.size = size;
    publish
}

fn lossy(bytes: &[u8]) -> Cow<'_, str> {
    // Nearly every text is UTF-8, and that is seen faster than where it is not.
    str::from_utf8(bytes).map_or_else(|_| String::from_utf8_lossy(bytes), Cow::Borrowed)
}

#[cfg(test)]
mod tests;
