//! What packets are made of: properties, strings, numbers; as bytes in both directions.

use std::io::{self, ErrorKind};

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

impl Props {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
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

pub(super) fn put_varint(out: &mut Vec<u8>, mut value: usize) {
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

pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = u16::try_from(bytes.len()).expect("a string of MQTT has at most 65,535 bytes");
    out.extend(length.to_be_bytes());
    out.extend(bytes);
}

pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    put_bytes(out, text.as_bytes());
}

pub(super) fn malformed(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("malformed packet: {what}"))
}

/// What is left of a packet's body.
pub(super) struct Cursor<'a>(pub(super) &'a [u8]);

impl<'a> Cursor<'a> {
    pub(super) fn take(&mut self, count: usize) -> io::Result<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count).ok_or_else(|| malformed("too short"))?;
        self.0 = tail;
        Ok(head)
    }

    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    pub(super) fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        Ok(self.take(N)?.try_into().expect("as many as taken"))
    }

    pub(super) fn u8(&mut self) -> io::Result<u8> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    pub(super) fn u16(&mut self) -> io::Result<u16> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> io::Result<u32> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    pub(super) fn varint(&mut self) -> io::Result<u32> {
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

    pub(super) fn bytes(&mut self) -> io::Result<&'a [u8]> {
        let length = self.u16()?;
        self.take(length.into())
    }

    pub(super) fn text(&mut self) -> io::Result<String> {
        String::from_utf8(self.bytes()?.to_vec()).map_err(|_| malformed("not UTF-8"))
    }

    /// Reason code and properties, which may be left out from the end [MQTT 5.0, 3.4.2.1].
    pub(super) fn reason(&mut self) -> io::Result<(u8, Props)> {
        let reason = if self.0.is_empty() { 0 } else { self.u8()? };
        let props = if self.0.is_empty() { Props::default() } else { self.props()? };
        Ok((reason, props))
    }

    pub(super) fn props(&mut self) -> io::Result<Props> {
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
