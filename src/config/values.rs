//! The forms in which values are written: durations, sizes, addresses, calls, topics.

use std::{net::SocketAddr, str::FromStr, sync::Arc, time::Duration};

use bytesize::ByteSize;
use url::Url;

use crate::{
    call::{Endpoint, Method, headers::Headers},
    mqtt::{Address, Transport},
    secrets::Secret,
    template::Template,
    topic,
};

/// Longest duration of any key.
const MAX_DURATION: Duration = Duration::from_hours(10 * 366 * 24);
/// Largest number of any key: no machine has memory for more devices, calls or entries.
const MAX_NUMBER: usize = 10_000_000;

pub(super) fn address(text: &str) -> Result<Address, String> {
    let wanted =
        "write `mqtt://host:1883`, `mqtts://host:8883`, `ws://host/mqtt` or `wss://host/mqtt`";
    let url = Url::parse(text).map_err(|error| format!("invalid URL ({error}); {wanted}"))?;
    let (transport, port) = match url.scheme() {
        "mqtt" => (Transport::Mqtt, 1883),
        "mqtts" => (Transport::Mqtts, 8883),
        "ws" => (Transport::Ws, 80),
        "wss" => (Transport::Wss, 443),
        scheme => return Err(format!("unknown scheme `{scheme}`; {wanted}")),
    };
    if !url.username().is_empty() || url.password().is_some() {
        return Err("the URL has credentials; set `username` and `password` instead".to_owned());
    }
    let host = url
        .host_str()
        .filter(|host| !host.is_empty())
        .ok_or_else(|| format!("the URL has no host; {wanted}"))?;
    Ok(Address {
        transport,
        host: host.to_owned(),
        port: url.port().unwrap_or(port),
        url: Secret::new(text),
    })
}

pub(super) fn base_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text)
        .map_err(|error| format!("invalid URL ({error}); write `https://host/path`"))?;
    if text.contains(['{', '}']) {
        return Err(
            "nothing is filled into the URL; names and secrets in braces stand in `call` and in headers"
                .to_owned(),
        );
    }
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("unknown scheme `{}`; write http:// or https://", url.scheme()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("the URL has credentials; take them out: devices bring their own, and the gateway's go into [upstream.auth]".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(
            "the URL has a query or fragment; take it out, since paths are appended".to_owned()
        );
    }
    Ok(url)
}

/// Where a collector takes traces.
pub(super) fn collector(text: &str) -> Result<Url, String> {
    let wanted = "write `http://host:4318`";
    let url = Url::parse(text).map_err(|error| format!("invalid URL ({error}); {wanted}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("unknown scheme `{}`; {wanted}: OTLP over HTTP", url.scheme()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(
            "the URL has credentials; put what the collector wants into OTEL_EXPORTER_OTLP_HEADERS"
                .to_owned(),
        );
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(
            "the URL has a query or fragment; take it out: the path of OTLP is appended".to_owned()
        );
    }
    Ok(url)
}

pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text)
        .map_err(|_| format!("invalid duration `{text}`; write `500ms`, `30s`, `5m` or `1h`"))?;
    // A deadline is a point in time, and clocks end somewhere.
    if duration > MAX_DURATION {
        return Err(format!("duration `{text}` is too long; write at most `10years`"));
    }
    Ok(duration)
}

pub(super) fn positive_duration(text: &str) -> Result<Duration, String> {
    let duration = duration(text)?;
    if duration.is_zero() {
        Err("the duration must be longer than zero; write `10s`".to_owned())
    } else {
        Ok(duration)
    }
}

pub(super) fn size(text: &str) -> Result<usize, String> {
    let wanted = || format!("invalid size `{text}`; write `64KiB` or `1MiB`");
    let size: ByteSize = text.parse().map_err(|_| wanted())?;
    usize::try_from(size.as_u64()).ok().filter(|size| *size > 0).ok_or_else(wanted)
}

pub(super) fn number(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=MAX_NUMBER).contains(number));
    number.ok_or_else(|| format!("invalid number `{text}`; write a number from 1 to {MAX_NUMBER}"))
}

/// A part of a whole.
pub(super) fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| format!("invalid share `{text}`; write a number from 0 to 1, such as 0.1"))
}

/// A text that crosses to a broker: not empty, and nothing that MQTT forbids [MQTT-1.5.4-2].
pub(super) fn non_empty(text: &str) -> Result<String, String> {
    if text.is_empty() {
        Err("must not be empty".to_owned())
    } else if text.chars().any(char::is_control) {
        Err("control characters are not allowed".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

/// Headers that belong to the connection, or that the gateway sets itself: a device's key in one of them
/// would break the request or smuggle a second one into it.
const RESERVED_HEADERS: [&str; 17] = [
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

/// Headers that only the gateway or HTTP itself can set. The others of [`RESERVED_HEADERS`] may be written, but carry
/// no key.
pub(super) fn is_reserved_header(name: &str) -> bool {
    let may_be_written = ["accept", "user-agent"].iter().any(|n| name.eq_ignore_ascii_case(n));
    !may_be_written && RESERVED_HEADERS.iter().any(|n| name.eq_ignore_ascii_case(n))
}

pub(super) fn key_header<H: FromStr>(text: &str) -> Result<H, String> {
    if RESERVED_HEADERS.iter().any(|name| text.eq_ignore_ascii_case(name)) {
        return Err(format!(
            "header `{text}` is set by HTTP or by the gateway and cannot carry a key; write `X-Api-Key`"
        ));
    }
    text.parse().map_err(|_| format!("invalid header name `{text}`"))
}

pub(super) fn key_prefix(text: &str) -> Result<String, String> {
    if text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        Ok(text.to_owned())
    } else {
        Err("only printable ASCII characters are allowed in a header".to_owned())
    }
}

/// Not echoed: it may hold a password.
pub(super) fn proxy(text: &str) -> Result<Secret, String> {
    let wanted = "write `http://host:port` or `https://host:port`";
    let url = Url::parse(text).map_err(|error| format!("invalid URL ({error}); {wanted}"))?;
    match url.scheme() {
        "http" | "https" => Ok(Secret::new(text)),
        scheme => Err(format!("unknown scheme `{scheme}` of a proxy; {wanted}")),
    }
}

pub(super) fn capture(text: &str) -> Result<String, String> {
    if topic::is_name(text) {
        Ok(text.to_owned())
    } else {
        Err(format!("invalid name of a capture `{text}`; use letters, digits and `_`"))
    }
}

/// Where the admin endpoint listens; empty is nowhere.
pub(super) fn listener(text: &str) -> Result<Option<SocketAddr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let wanted = || format!("invalid address `{text}`; write `127.0.0.1:9180`, or \"\" for none");
    text.parse().map(Some).map_err(|_| wanted())
}

/// The path of the probe; empty is no probe.
pub(super) fn probe_path(text: &str) -> Result<Option<Box<str>>, String> {
    match text {
        "" => Ok(None),
        path if path.starts_with('/') && !path.contains([' ', '#']) => Ok(Some(path.into())),
        _ => Err(format!("invalid path `{text}`; write `/health`, or \"\" for no probe")),
    }
}

/// The name of a row or a filter, which is a label in metrics and logs.
pub(super) fn label(text: &str) -> Result<Arc<str>, String> {
    let is_legal = |b: u8| b.is_ascii_alphanumeric() || b"_-".contains(&b);
    if !text.is_empty() && text.bytes().all(is_legal) {
        Ok(text.into())
    } else {
        Err(format!("invalid name `{text}`; use letters, digits, `_` and `-`"))
    }
}

/// The call of a row: a method and a path.
pub(super) fn endpoint(text: &str) -> Result<Endpoint, String> {
    const METHODS: [Method; 6] =
        [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::HEAD];
    let wanted = || format!("invalid call `{text}`; write `POST /path/{{name}}`");
    let (method, path) = text.split_once(' ').ok_or_else(wanted)?;
    let path = path.trim();
    let method = METHODS.into_iter().find(|known| known.as_str() == method).ok_or_else(|| {
        format!("unknown method `{method}`; write GET, POST, PUT, PATCH, DELETE or HEAD")
    })?;
    if !path.starts_with('/') || path.contains(['#', ' ']) {
        return Err(wanted());
    }
    Ok(Endpoint { method, path: Template::parse(path)?, headers: Headers::default(), sign: None })
}

pub(super) fn topic_template(text: &str) -> Result<Template, String> {
    if text.chars().any(char::is_control) {
        return Err("control characters are not allowed".to_owned());
    }
    if text.contains(['+', '#']) || text.starts_with('$') {
        return Err(format!(
            "invalid topic `{text}`: the gateway publishes on it, so it has no wildcards and no leading `$`"
        ));
    }
    let template = Template::parse(text)?;
    if let Some(name) = template.secrets().next() {
        return Err(format!("`{{${name}}}` is a secret, which no topic may show; take it out"));
    }
    Ok(template)
}

/// `true` or `false`.
pub(crate) fn truth(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| format!("invalid value `{text}`; write true or false"))
}

/// One word of a closed vocabulary.
pub(crate) fn one_of<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T, String> {
    words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
        let words: Vec<_> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        format!("unknown value `{text}`; write one of {}", words.join(", "))
    })
}
