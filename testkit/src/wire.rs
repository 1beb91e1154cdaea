//! MQTT 5 on the wire, written for the tests and for both sides: a test device is a client, the
//! fake broker a server. It shares no code with the gateway, so that a fault of the one cannot hide
//! behind the same fault of the other.
//!
//! Left out, because no test speaks them: `QoS` 2, AUTH, wills.

mod packet;
mod props;
#[cfg(test)]
mod tests;

use std::io::{self, ErrorKind};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

pub use self::{
    packet::{Packet, Publish},
    props::Props,
};

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

    /// Connects to the broker at this port of this machine, with this CONNECT; it must be let in.
    pub async fn connect(port: u16, connect: &Packet) -> io::Result<Self> {
        let mut wire = Self::new(TcpStream::connect(("127.0.0.1", port)).await?);
        wire.send(connect).await?;
        match wire.receive().await? {
            Some(Packet::ConnAck { reason: 0, .. }) => Ok(wire),
            other => Err(io::Error::other(format!("no CONNACK of success: {other:?}"))),
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
