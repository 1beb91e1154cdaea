//! Reads `[broker]`.

use std::time::Duration;

use super::{
    files::{certificates, password},
    reader::Section,
    values::{address, duration, non_empty, positive_duration, size},
};
use crate::mqtt::{Settings, Transport};

/// Shortest and longest Keep Alive, in seconds: pings cost little from here on, and a packet has two bytes for it
/// [MQTT-3.1.2.10].
const KEEP_ALIVE_SECS: std::ops::RangeInclusive<u64> = 5..=65_535;

pub(super) fn read(root: &Section<'_>) -> Settings {
    let broker = root.section("broker");
    let address = broker.value("url", address);
    let encrypted = matches!(address.transport, Transport::Mqtts | Transport::Wss);
    let settings = Settings {
        address,
        client_id: broker.value("client_id", non_empty).into(),
        share_group: broker.parsed("share_group", group),
        former_share_groups: broker.parsed("former_share_group", group).into_iter().collect(),
        reconnect_max: broker.value("reconnect_max", positive_duration),
        session_expiry: broker.value("session_expiry", duration),
        keep_alive: broker.value("keep_alive", keep_alive),
        max_pending: broker.value("max_pending", receive_maximum),
        max_pending_bytes: broker.value("max_pending_bytes", size),
        max_packet: broker.value("max_packet", packet_size),
        // The table says it.
        retains: false,
        // The upstream says it.
        longest_payload: 0,
        ack_hold: broker.value("ack_hold", |text| match text {
            "forever" => Ok(None),
            text => duration(text).map(Some).map_err(|error| format!("{error}, or `forever`")),
        }),
        username: broker.parsed("username", |text| Ok(text.to_owned())),
        password: password(&broker),
        tls: certificates(&broker, encrypted),
    };
    broker.finish();
    settings
}

/// The name of a group of a shared subscription [MQTT-4.8.2-1].
fn group(text: &str) -> Result<Box<str>, String> {
    if text.contains(['/', '+', '#']) {
        Err(format!("invalid group name `{text}`; it must not contain `/`, `+` or `#`"))
    } else {
        non_empty(text).map(Into::into)
    }
}

fn keep_alive(text: &str) -> Result<Duration, String> {
    let keep_alive = duration(text)?;
    if KEEP_ALIVE_SECS.contains(&keep_alive.as_secs()) {
        Ok(keep_alive)
    } else {
        Err(format!("`{text}` is out of range; write 5s to 18h"))
    }
}

/// [MQTT-3.1.2.11.3].
fn receive_maximum(text: &str) -> Result<u16, String> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| format!("invalid number `{text}`; write a number from 1 to 65535"))
}

fn packet_size(text: &str) -> Result<u32, String> {
    u32::try_from(size(text)?)
        .map_err(|_| format!("`{text}` is too large; a packet has at most 256MiB"))
}
