//! Devices: messages into the broker, as fast as it takes them or at a rate.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufWriter},
    net::TcpStream,
    time::{Instant, sleep_until},
};

use crate::{
    api::nanoseconds,
    wire::{Packet, Props, Publish},
};

/// Messages whose PUBACK is still to come; a broker with much to do falls behind no further.
const IN_FLIGHT: u64 = 2000;
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

/// Publishes it all.
pub async fn publish(broker: u16, load: Load) -> io::Result<()> {
    let Load { messages: count, devices, size, per_second } = load;
    let stream = TcpStream::connect(("127.0.0.1", broker)).await?;
    stream.set_nodelay(true)?;
    let (mut reader, writer) = stream.into_split();
    let mut writer = BufWriter::with_capacity(64 * 1024, writer);
    let connect = Packet::Connect {
        client_id: "devices".to_owned(),
        clean_start: true,
        keep_alive: 0,
        username: None,
        password: None,
        props: Props::default(),
    };
    writer.write_all(&connect.encode()).await?;
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
        writer.write_all(&message(n, devices, size).encode()).await?;
    }
    writer.flush().await?;
    while bytes_read < count * PUBACK {
        bytes_read += reader.read(&mut buffer).await? as u64;
    }
    Ok(())
}

fn message(n: u64, devices: u64, size: usize) -> Packet {
    let device = format!("d{}", n % devices);
    let mut payload = payload(n, nanoseconds()).into_bytes();
    payload.resize(payload.len().max(size), b' ');
    Packet::Publish(Publish {
        topic: format!("v1/device/{device}/telemetry"),
        payload,
        qos: 1,
        packet_id: u16::try_from(n % 65_535).unwrap_or_default() + 1,
        props: Props {
            user: vec![
                ("device_id".to_owned(), device.clone()),
                ("access_key".to_owned(), format!("key-of-{device}")),
            ],
            ..Props::default()
        },
        ..Publish::default()
    })
}
