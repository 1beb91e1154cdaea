//! The forms in which values are written: durations, sizes, addresses.

use std::time::Duration;

use bytesize::ByteSize;
use url::Url;

use crate::{
    mqtt::{Address, Transport},
    secret::Secret,
    topic,
};

/// Longest duration that makes sense anywhere.
const MAX_DURATION: Duration = Duration::from_hours(10 * 366 * 24);
/// Largest number that makes sense anywhere.
const MAX_NUMBER: usize = 10_000_000;

pub(super) fn address(text: &str) -> Result<Address, String> {
    let wanted =
        "write `mqtt://host:1883`, `mqtts://host:8883`, `ws://host/mqtt` or `wss://host/mqtt`";
    let url = Url::parse(text).map_err(|error| format!("this is no URL ({error}); {wanted}"))?;
    let (transport, port) = match url.scheme() {
        "mqtt" => (Transport::Mqtt, 1883),
        "mqtts" => (Transport::Mqtts, 8883),
        "ws" => (Transport::Ws, 80),
        "wss" => (Transport::Wss, 443),
        scheme => return Err(format!("`{scheme}` is not how MQTT travels; {wanted}")),
    };
    if !url.username().is_empty() || url.password().is_some() {
        return Err(
            "credentials do not belong into the URL; set `username` and `password`".to_owned()
        );
    }
    let host = url
        .host_str()
        .filter(|host| !host.is_empty())
        .ok_or_else(|| format!("no host; {wanted}"))?;
    Ok(Address {
        transport,
        host: host.to_owned(),
        port: url.port().unwrap_or(port),
        url: Secret::new(text),
    })
}

pub(super) fn base_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("this is no URL: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!(
            "`{}` is not how REST travels; write http:// or https://",
            url.scheme()
        ));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("credentials do not belong into the URL; devices bring their own".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("paths are appended, so it cannot have a `?` or `#`".to_owned());
    }
    Ok(url)
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text)
        .map_err(|_| format!("`{text}` is no duration; write `500ms`, `30s`, `5m` or `1h`"))?;
    // Clocks cannot count for ever.
    if duration > MAX_DURATION {
        return Err(format!("`{text}` is longer than anybody waits; write at most `10years`"));
    }
    Ok(duration)
}

pub(super) fn positive_duration(text: &str) -> Result<Duration, String> {
    let duration = duration(text)?;
    if duration.is_zero() {
        Err("nothing can be done in no time; write `10s`".to_owned())
    } else {
        Ok(duration)
    }
}

pub(super) fn size(text: &str) -> Result<usize, String> {
    let wanted = || format!("`{text}` is no size; write `64KiB` or `1MiB`");
    let size: ByteSize = text.parse().map_err(|_| wanted())?;
    usize::try_from(size.as_u64()).ok().filter(|size| *size > 0).ok_or_else(wanted)
}

pub(super) fn number(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=MAX_NUMBER).contains(number));
    number.ok_or_else(|| format!("`{text}`: a number from 1 to {MAX_NUMBER} is wanted here"))
}

pub(super) fn word(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("it cannot be empty".to_owned()) } else { Ok(text.to_owned()) }
}

pub(super) fn capture(text: &str) -> Result<String, String> {
    if topic::is_name(text) {
        Ok(text.to_owned())
    } else {
        Err(format!("`{text}` is no name of a capture"))
    }
}
