//! The forms in which values are written: durations, sizes, addresses.

use std::{str::FromStr, time::Duration};

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
    let url = Url::parse(text)
        .map_err(|error| format!("this is no URL ({error}); write `https://host/path`"))?;
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

/// A text that crosses to a broker: not empty, and nothing that MQTT forbids [MQTT-1.5.4-2].
pub(super) fn word(text: &str) -> Result<String, String> {
    if text.is_empty() {
        Err("it cannot be empty".to_owned())
    } else if text.chars().any(char::is_control) {
        Err("no control characters here".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

/// Headers that belong to the connection, or that the gateway sets itself: a device's key in one of them
/// breaks the request, or makes two of it.
const TAKEN_HEADERS: [&str; 17] = [
    "accept",
    "accept-encoding",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "date",
    "expect",
    "host",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
];

pub(super) fn key_header<H: FromStr>(text: &str) -> Result<H, String> {
    if TAKEN_HEADERS.iter().any(|taken| text.eq_ignore_ascii_case(taken)) {
        return Err(format!("`{text}` is HTTP's own and cannot carry a key; write `X-Api-Key`"));
    }
    text.parse().map_err(|_| format!("`{text}` is no header name"))
}

pub(super) fn key_prefix(text: &str) -> Result<String, String> {
    if text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        Ok(text.to_owned())
    } else {
        Err("printable ASCII characters only: it stands in a header".to_owned())
    }
}

/// Not echoed: it may hold a password.
pub(super) fn proxy(text: &str) -> Result<Secret, String> {
    let wanted = "write `http://host:port` or `https://host:port`";
    let url = Url::parse(text).map_err(|error| format!("this is no URL ({error}); {wanted}"))?;
    match url.scheme() {
        "http" | "https" => Ok(Secret::new(text)),
        scheme => Err(format!("`{scheme}` is no proxy we can speak to; {wanted}")),
    }
}

pub(super) fn capture(text: &str) -> Result<String, String> {
    if topic::is_name(text) {
        Ok(text.to_owned())
    } else {
        Err(format!("`{text}` is no name of a capture"))
    }
}
