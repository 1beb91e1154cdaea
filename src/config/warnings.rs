//! Warnings: what is valid and probably not meant. Printed by `check` and at start; no reason to refuse.

use std::collections::BTreeSet;

use http::HeaderName;

use super::Config;
use crate::{
    descriptors, mqtt::Transport, table::route::Credentials, topic::PatternIndex, wall_clock,
};

impl Config {
    /// One sentence for each, beginning with its key.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let broker = &self.broker;
        let plain = matches!(broker.address.transport, Transport::Mqtt | Transport::Ws);
        let keys = self.table.routes.iter().any(|route| route.credentials != Credentials::None);
        let what = if keys { "the devices' keys" } else { "the devices' messages" };
        if plain && !is_here(&broker.address.host) {
            let password = if broker.password.is_some() { "the password and " } else { "" };
            warnings.push(format!(
                "[broker] url: {password}{what} travel in clear text to {}; write mqtts:// or wss://",
                broker.address
            ));
        }
        if broker.username.is_none() && broker.tls.files().cert_file.is_none() {
            warnings.extend(self.trusting());
        }
        warnings.extend(self.idle());
        let url = &self.upstream.url;
        let host = url.host_str().unwrap_or_default();
        if url.scheme() == "http" && !is_here(host) {
            warnings.push(format!(
                "[upstream] url: {what} travel in clear text to {url}; write https://"
            ));
        }
        warnings.extend(self.plain_token_url());
        if ["example.com", "example.org", "example.net"].iter().any(|e| host.ends_with(e)) {
            warnings.push(format!(
                "[upstream] url: {url} is a placeholder; set it, or GATEWAY_UPSTREAM_URL, to your API"
            ));
        }
        let calls = self.table.routes.iter().filter_map(|route| route.call.as_ref());
        let calls = calls.chain(self.table.fetches.iter().filter_map(|fetch| fetch.call.as_ref()));
        let plain = calls.flat_map(|call| call.headers.in_plain_sight()).map(HeaderName::as_str);
        for header in plain.collect::<BTreeSet<_>>() {
            warnings.push(format!(
                "headers: the value of `{header}` stands in the configuration for everybody to read; write it into \
                 [secrets] and `{{$name}}` in its place"
            ));
        }
        for key in &self.unfit_defaults {
            warnings.push(format!(
                "{key}: not set, and the default has names that this table does not capture, so nothing is \
                 published there; set it, or \"\" for none"
            ));
        }
        let (max_packet, largest) = (broker.max_packet as usize, self.upstream.max_request_bytes);
        if max_packet <= largest {
            warnings.push(format!(
                "[broker] max_packet: {max_packet} bytes are less than a payload of max_request_bytes = \
                 {largest} needs with its properties; the broker silently drops messages above max_packet"
            ));
        }
        warnings.extend(self.ending().chain(descriptors::warning(self.upstream.max_in_flight)));
        if !self.service_links.is_empty() {
            warnings.push(format!(
                "{}: ignored, since Kubernetes sets them for a Service of that name; \
                 `enableServiceLinks: false` keeps them out",
                self.service_links.join(", ")
            ));
        }
        warnings
    }

    /// The certificates that end soon.
    fn ending(&self) -> impl Iterator<Item = String> {
        let now = wall_clock::now();
        let broker = self.broker.tls.warnings("broker", now);
        broker.chain(self.upstream.tls.warnings("upstream", now))
    }

    /// The rows that swallow what no other row would have had.
    fn idle(&self) -> impl Iterator<Item = String> {
        let table = &self.table;
        let rows = table.routes.iter().enumerate().filter(|(row, route)| {
            route.swallows() && table.patterns.outer(PatternIndex(*row)).is_none()
        });
        rows.map(|(_, route)| {
            format!(
                "route `{}`: it does nothing with a message but take it from the broker, and lies inside no other \
                 row; write `call`, `answer`, `then` or `reply`, or take it out",
                route.name
            )
        })
    }

    /// The rows that believe a topic, where the broker lets anybody write on it.
    fn trusting(&self) -> impl Iterator<Item = String> {
        let what = [
            (
                Credentials::Remembered,
                "use a device's remembered key for whoever writes on its topics",
            ),
            (Credentials::Listed, "use a device's listed key for whoever writes on its topics"),
            (Credentials::None, "take whoever writes on a device's topics for that device"),
        ];
        what.into_iter().filter_map(|(credentials, what)| {
            let rows = self.table.routes.iter().filter(|route| !route.swallows());
            let rows = rows.filter(|route| route.credentials == credentials);
            let rows: Vec<&str> = rows.map(|route| &*route.name).collect();
            (!rows.is_empty()).then(|| {
                let (rows, word) = (rows.join(", "), credentials.as_str());
                format!(
                    "[broker] username: {rows} {what} (credentials = \"{word}\"), and a broker without users \
                     lets anybody do that"
                )
            })
        })
    }

    /// The secret of `[upstream.auth.oauth2]`, where it is not encrypted on its way.
    fn plain_token_url(&self) -> Option<String> {
        let url = self.upstream.token_url()?;
        let plain = url.scheme_str() == Some("http") && !is_here(url.host().unwrap_or_default());
        plain.then(|| {
            format!(
                "[upstream.auth.oauth2] token_url: the client's secret travels in clear text to {url}; write https://"
            )
        })
    }
}

/// Whether the host is this machine: a loopback address or `localhost`.
fn is_here(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    address.map_or(host == "localhost" || host.ends_with(".localhost"), |a| a.is_loopback())
}
