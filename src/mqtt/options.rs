//! What is said to the broker at every connection.

use std::sync::Arc;

use rumqttc::{TlsConfiguration, v5::MqttOptions};

use super::{Address, Settings, Transport};
use crate::tls::TlsError;

/// Publications in flight at most, whatever the broker would take.
pub(super) const MAX_IN_FLIGHT: u16 = 100;

/// The options of every connection.
pub(super) fn options(settings: &Settings) -> Result<MqttOptions, TlsError> {
    let Address { transport, host, port, url } = &settings.address;
    let web_socket = matches!(transport, Transport::Ws | Transport::Wss);
    // The library takes the whole URL as the host of a web socket, and ignores the port.
    let host = if web_socket { url.expose() } else { host };
    let mut options = MqttOptions::new(&*settings.client_id, host, *port);
    let tls = || Ok::<_, TlsError>(TlsConfiguration::Rustls(Arc::new(settings.tls.client()?)));
    options.set_transport(match transport {
        Transport::Mqtt => rumqttc::Transport::tcp(),
        Transport::Mqtts => rumqttc::Transport::tls_with_config(tls()?),
        Transport::Ws => rumqttc::Transport::ws(),
        Transport::Wss => rumqttc::Transport::wss_with_config(tls()?),
    });
    if let Some(username) = &settings.username {
        let password = settings.password.as_ref().map_or("", |password| password.expose());
        options.set_credentials(username, password);
    }
    options
        .set_clean_start(false)
        // Without the property the session would end with the connection; the largest value is for
        // ever [MQTT 5.0, 3.1.2.11.2].
        .set_session_expiry_interval(Some(
            u32::try_from(settings.session_expiry.as_secs()).unwrap_or(u32::MAX),
        ))
        .set_keep_alive(settings.keep_alive)
        .set_receive_maximum(Some(settings.max_pending))
        // The library's own limit is 10 KiB, of which the broker would not know. No topic aliases:
        // the library loses the topic of a message that uses one.
        .set_max_packet_size(Some(settings.max_packet))
        .set_outgoing_inflight_upper_limit(MAX_IN_FLIGHT)
        .set_manual_acks(true);
    Ok(options)
}
