//! Devices: messages into the broker, as fast as it takes them or at a rate. Those of the tests wait for each PUBACK, to
//! account for every message; these keep thousands in flight, to fill the broker.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufWriter},
    net::TcpStream,
    time::{Instant, sleep_until},
};

use testkit::wire::{Packet, Publish};

use crate::api::nanoseconds;

/// Messages whose PUBACK is still to come; a broker with much to do falls behind no further.
const IN_FLIGHT: u64 = 2000;
/// The last level of the topics of telemetry.
pub const TELEMETRY: &str = "telemetry";
/// Bytes of a PUBACK of success, which is what all are: somebody has subscribed.
const PUBACK: u64 = 4;

/// About 100 bytes of telemetry.
pub fn payload(n: u64, at: u64) -> String {
    format!(
        r#"{{"t":{at},"n":{n},"status":"online","telemetries":{{"fan_speed":100.1,"connection":"4g","usbc":true}}}}"#
    )
}

/// What is published.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub messages: u64,
    /// They take turns.
    pub devices: u64,
    /// Least size of a payload, in bytes.
    pub size: usize,
    /// In all; `None` is as fast as the broker takes them.
    pub per_second: Option<u32>,
}

/// Publishes it all, as telemetry.
pub async fn publish(broker: u16, load: Load) -> io::Result<()> {
    publish_on(broker, TELEMETRY, load).await
}

/// Publishes it all on the topics that end with this level.
pub async fn publish_on(broker: u16, level: &str, load: Load) -> io::Result<()> {
    let Load { messages: count, devices, size, per_second } = load;
    let stream = TcpStream::connect(("127.0.0.1", broker)).await?;
    stream.set_nodelay(true)?;
    let (mut reader, writer) = stream.into_split();
    let mut writer = BufWriter::with_capacity(64 * 1024, writer);
    writer.write_all(&Packet::connect("devices").encode()).await?;
    writer.flush().await?;
    // The CONNACK; its length is one byte.
    let mut head = [0; 2];
    reader.read_exact(&mut head).await?;
    reader.read_exact(&mut vec![0; usize::from(head[1])]).await?;
    let (mut bytes_read, mut buffer) = (0, vec![0; 64 * 1024]);
    let began = Instant::now();
    for n in 0..count {
        if let Some(per_second) = per_second {
            let due = began + Duration::from_secs_f64(n as f64 / f64::from(per_second));
            if due > Instant::now() {
                writer.flush().await?;
                sleep_until(due).await;
            }
        }
        while n - bytes_read / PUBACK >= IN_FLIGHT {
            writer.flush().await?;
            bytes_read += reader.read(&mut buffer).await? as u64;
        }
        writer.write_all(&message(n, level, devices, size).encode()).await?;
    }
    writer.flush().await?;
    while bytes_read < count * PUBACK {
        bytes_read += reader.read(&mut buffer).await? as u64;
    }
    Ok(())
}

fn message(n: u64, level: &str, devices: u64, size: usize) -> Packet {
    let device = format!("d{}", n % devices);
    let mut payload = payload(n, nanoseconds()).into_bytes();
    payload.resize(payload.len().max(size), b' ');
    let packet_id = u16::try_from(n % 65_535).unwrap_or_default() + 1;
    let topic = format!("v1/device/{device}/{level}");
    Packet::Publish(Publish { topic, ..testkit::telemetry(packet_id, &device, payload) })
}
