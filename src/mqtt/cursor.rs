//! The pieces that packets are made of [MQTT 5.0, 1.5 and 2.2.2].

/// The value of a property.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    U8(u8),
    U16(u16),
    U32(u32),
    VarInt(u32),
    /// A string, not checked to be UTF-8, or binary data.
    Text(&'a [u8]),
    Pair(&'a [u8], &'a [u8]),
}

/// What is left of a packet. Every method takes from its front; `None` if there is too little.
pub(super) struct Cursor<'a>(pub(super) &'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count)?;
        self.0 = tail;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_be_bytes)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// Variable Byte Integer [MQTT 5.0, 1.5.5].
    fn varint(&mut self) -> Option<u32> {
        let mut value = 0;
        for shift in [0, 7, 14, 21] {
            let byte = self.u8()?;
            value |= u32::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    /// Binary data, or the bytes of a string.
    pub(super) fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(length.into())
    }

    /// Reads the properties; `false` if not all of them could be. What stands behind them is then still
    /// found, as long as their length is true.
    pub(super) fn properties(&mut self, mut each: impl FnMut(u8, Value<'a>)) -> bool {
        if self.0.is_empty() {
            return true;
        }
        let length = self.varint().and_then(|length| usize::try_from(length).ok());
        let Some(block) = length.and_then(|length| self.take(length)) else {
            self.0 = &[];
            return false;
        };
        let mut block = Cursor(block);
        while let Some(id) = block.u8() {
            let Some(value) = block.value(id) else { return false };
            each(id, value);
        }
        true
    }

    fn value(&mut self, id: u8) -> Option<Value<'a>> {
        match id {
            0x01 | 0x17 | 0x19 | 0x24 | 0x25 | 0x28 | 0x29 | 0x2A => self.u8().map(Value::U8),
            0x13 | 0x21 | 0x22 | 0x23 => self.u16().map(Value::U16),
            0x02 | 0x11 | 0x18 | 0x27 => self.u32().map(Value::U32),
            0x0B => self.varint().map(Value::VarInt),
            0x03 | 0x08 | 0x09 | 0x12 | 0x15 | 0x16 | 0x1A | 0x1C | 0x1F => {
                self.bytes().map(Value::Text)
            }
            0x26 => Some(Value::Pair(self.bytes()?, self.bytes()?)),
            _ => None,
        }
    }
}
