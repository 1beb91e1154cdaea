//! Warnings: what is valid and probably not meant. Printed by `check` and at start; no reason to refuse.

use super::Config;
use crate::{descriptors, mqtt::Transport, table::route::Credentials};

impl Config {
    /// One sentence for each, beginning with its key.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let broker = &self.broker;
        let plain = matches!(broker.address.transport, Transport::Mqtt | Transport::Ws);
        if plain && !is_here(&broker.address.host) {
            let password = if broker.password.is_some() { "the password and " } else { "" };
            warnings.push(format!(
                "[broker] url: {password}the devices' keys travel in clear text to {}; write mqtts:// or wss://",
                broker.address
            ));
        }
        let trusting =
            self.table.routes.iter().filter(|r| r.credentials == Credentials::Remembered);
        let trusting: Vec<&str> = trusting.map(|route| &*route.name).collect();
        if !trusting.is_empty() && broker.username.is_none() && broker.tls.cert_file.is_none() {
            warnings.push(format!(
                "[broker] username: {} use a device's remembered key for whoever writes on its topics \
                 (credentials = \"remembered\"), and a broker without users lets anybody do that",
                trusting.join(", ")
            ));
        }
        let url = &self.upstream.url;
        let host = url.host_str().unwrap_or_default();
        if url.scheme() == "http" && !is_here(host) {
            warnings.push(format!(
                "[upstream] url: the devices' keys travel in clear text to {url}; write https://"
            ));
        }
        if ["example.com", "example.org", "example.net"].iter().any(|e| host.ends_with(e)) {
            warnings.push(format!(
                "[upstream] url: {url} is a placeholder; set it, or GATEWAY_UPSTREAM_URL, to your API"
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
        warnings.extend(descriptors::warning(self.upstream.max_in_flight));
        if !self.service_links.is_empty() {
            warnings.push(format!(
                "{}: ignored, since Kubernetes sets them for a Service of that name; \
                 `enableServiceLinks: false` keeps them out",
                self.service_links.join(", ")
            ));
        }
        warnings
    }
}

/// Whether the host is this machine: a loopback address or `localhost`.
fn is_here(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    address.map_or(host == "localhost" || host.ends_with(".localhost"), |a| a.is_loopback())
}
