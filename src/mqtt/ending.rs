//! Why a connection ended that the gateway did not end: a sentence for the operator, and the cause.

use std::io;

use super::{Transport, reason};
use crate::tls;

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub(super) struct Ending {
    /// A sentence for the operator.
    pub text: String,
    pub cause: Cause,
}

/// What ended it, as far as the broker lets know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// It could not be made, or the broker has not answered.
    NotConnected,
    /// The broker has not accepted it.
    Refused,
    /// The network, or the broker for reasons of its own: no packet of ours is to blame.
    Unrelated,
    /// The broker closed it without a reason: a publication may be to blame, or another client.
    Unexplained,
    /// The broker's DISCONNECT says that a packet of ours was wrong.
    OverPackets,
    /// Another client has connected with our client identifier.
    TakenOver,
}

/// Every word that [`Cause::word`] has.
pub(crate) const CONNECTION_FAILURES: [&str; 6] =
    ["unreachable", "refused", "interrupted", "closed", "protocol", "taken_over"];

impl Cause {
    /// The label in metrics.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::NotConnected => "unreachable",
            Self::Refused => "refused",
            Self::Unrelated => "interrupted",
            Self::Unexplained => "closed",
            Self::OverPackets => "protocol",
            Self::TakenOver => "taken_over",
        }
    }
}

impl Ending {
    pub(super) fn no_connection(text: impl Into<String>) -> Self {
        Self { text: text.into(), cause: Cause::NotConnected }
    }

    /// Nothing came, or nothing went, for too long.
    pub(super) fn stalled(text: &str) -> Self {
        Self { text: text.to_owned(), cause: Cause::Unrelated }
    }

    /// The broker refused CONNECT [MQTT 5.0, 3.2.2.2].
    pub(super) fn refused(reason: u8, text: &str) -> Self {
        let hint = match reason {
            0x85..=0x87 | 0x8A | 0x8C => "; check client id, user name and password",
            0x84 => "; does it speak MQTT 5?",
            _ => "",
        };
        let said = said(reason, text);
        let text = format!("the broker refused the connection: {said}{hint}");
        Self { text, cause: Cause::Refused }
    }

    /// The broker's CONNACK is one of MQTT 3.1.1.
    pub(super) fn old_protocol() -> Self {
        let text = "the broker answers as MQTT 3 does; does it speak MQTT 5?".to_owned();
        Self { text, cause: Cause::Refused }
    }

    /// The broker sent a DISCONNECT [MQTT 5.0, 3.14].
    pub(super) fn disconnect(reason: u8, text: &str) -> Self {
        let cause = match reason {
            reason::SESSION_TAKEN_OVER => Cause::TakenOver,
            0 => Cause::Unexplained,
            _ if reason::is_broker_own(reason) => Cause::Unrelated,
            _ => Cause::OverPackets,
        };
        Self { text: format!("the broker ended the connection: {}", said(reason, text)), cause }
    }

    /// The stream has ended, or broken.
    pub(super) fn closed(error: Option<&io::Error>) -> Self {
        let how = error.map(|error| format!(" ({})", tls::plain(error))).unwrap_or_default();
        let text = format!("the broker closed the connection without a reason{how}");
        Self { text, cause: Cause::Unexplained }
    }

    /// The same before the broker has answered CONNECT.
    pub(super) fn unanswered(error: Option<&io::Error>, transport: Transport) -> Self {
        if let Some(error) = error {
            // What a server holds against a client's certificate comes after the handshake.
            let remedy = tls::remedy(error, "broker");
            if !remedy.is_empty() {
                return Self::no_connection(format!("TLS: {}{remedy}", tls::plain(error)));
            }
        }
        let how = error.map(|error| format!(" ({})", tls::plain(error))).unwrap_or_default();
        let port = match transport {
            Transport::Mqtt => {
                ", or is `[broker] url` its port for TLS (`mqtts://`) or web sockets?"
            }
            Transport::Ws => ", or is `[broker] url` its port for TLS (`wss://`)?",
            Transport::Mqtts | Transport::Wss => "?",
        };
        Self::no_connection(format!(
            "the broker closed the connection before it answered{how}; does it speak MQTT 5{port}"
        ))
    }

    /// Whether the broker never accepted the connection.
    pub(super) fn is_before_connack(&self) -> bool {
        matches!(self.cause, Cause::NotConnected | Cause::Refused)
    }

    /// Whether a publication may have caused it.
    pub(super) fn may_be_a_publication(&self) -> bool {
        matches!(self.cause, Cause::Unexplained | Cause::OverPackets)
    }

    /// Whether another client may have caused it.
    pub(super) fn may_be_another_client(&self) -> bool {
        matches!(self.cause, Cause::Unexplained | Cause::TakenOver)
    }
}

/// The reason's name, and what the broker adds in its own words, printable.
fn said(reason: u8, text: &str) -> String {
    let name = if reason == 0 { "NormalDisconnection".to_owned() } else { reason::name(reason) };
    if text.is_empty() { name } else { format!("{name} {}", text.escape_debug()) }
}
