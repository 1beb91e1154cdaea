//! Names that nothing asked for: the nearest known one, and variables that Kubernetes sets by itself.

use crate::secrets::sounds_secret;

/// From which likeness on, between 0 and 1, a known name is suggested: `ulr` and `url` have 0.67, names that have
/// little more than a letter in common are below.
const SUGGESTED: f64 = 0.4;

/// `X_SERVICE_HOST`, `X_SERVICE_PORT[_NAME]`, `X_PORT=tcp://...`, `X_PORT_80_TCP[_ADDR|_PORT|_PROTO]`.
pub(super) fn is_service_link(name: &str, value: &str) -> bool {
    let is_address = ["tcp://", "udp://", "sctp://"].iter().any(|s| value.starts_with(s));
    let port_of = |rest: &str| {
        let (number, rest) = rest.split_once('_').unwrap_or((rest, ""));
        let protocol = rest.split('_').next().unwrap_or_default();
        number.parse::<u16>().is_ok() && ["TCP", "UDP", "SCTP"].contains(&protocol)
    };
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || name.ends_with("_PORT") && is_address
        || name.split("_PORT_").skip(1).any(port_of)
}

/// The nearest known name, as the end of a sentence.
pub(super) fn nearest<'k>(known: impl Iterator<Item = &'k str>, name: &str) -> String {
    match nearest_name(known, name) {
        Some(known) => format!("; do you mean `{known}`?"),
        None => String::new(),
    }
}

/// The same for a key that nothing asked for. Who writes a secret where none is known does not mean another key.
pub(super) fn nearest_key<'k>(known: impl Iterator<Item = &'k str>, name: &str) -> String {
    match nearest_name(known, name) {
        None if !sounds_secret(name) => String::new(),
        Some(known) if sounds_secret(known) || !sounds_secret(name) => {
            format!("; do you mean `{known}`?")
        }
        Some(_) | None => {
            "; a secret goes into [secrets], and `{$name}` into `headers` or `call`".to_owned()
        }
    }
}

fn nearest_name<'k>(known: impl Iterator<Item = &'k str>, name: &str) -> Option<&'k str> {
    let nearest = known
        .map(|known| (strsim::normalized_damerau_levenshtein(known, name), known))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    nearest.filter(|(likeness, _)| *likeness > SUGGESTED).map(|(_, known)| known)
}
