//! How a connection ended that nobody wanted to end, in words and by whose doing.

use std::io;

use super::reason;

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ending {
    /// For the operator.
    pub text: String,
    pub cause: Cause,
}

/// By whose doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// There was none yet.
    NoConnection,
    /// The network's, or the broker's as far as it went away, with nothing against what we sent.
    Elsewhere,
    /// The broker closed it and did not say why: a publication may be to blame, or another client.
    Unsaid,
    /// The broker ended it over what we sent, and said so.
    Said,
    /// Another client has connected under our identifier.
    TakenOver,
}

impl Ending {
    pub(super) fn no_connection(text: impl Into<String>) -> Self {
        Self { text: text.into(), cause: Cause::NoConnection }
    }

    /// Nothing came, or nothing went, for too long.
    pub(super) fn stalled(text: &str) -> Self {
        Self { text: text.to_owned(), cause: Cause::Elsewhere }
    }

    /// The broker refused CONNECT [MQTT 5.0, 3.2.2.2].
    pub(super) fn refused(reason: u8, text: &str) -> Self {
        let hint = match reason {
            0x85..=0x87 | 0x8A | 0x8C => "; check client id, user name and password",
            0x84 => "; does it speak MQTT 5?",
            _ => "",
        };
        let said = said(reason, text);
        Self::no_connection(format!("the broker refused the connection: {said}{hint}"))
    }

    /// The broker's CONNACK is one of MQTT 3.1.1.
    pub(super) fn old_protocol() -> Self {
        Self::no_connection("the broker answers as MQTT 3 does; does it speak MQTT 5?")
    }

    /// The broker sent a DISCONNECT [MQTT 5.0, 3.14].
    pub(super) fn disconnect(reason: u8, text: &str) -> Self {
        let cause = match reason {
            reason::SESSION_TAKEN_OVER => Cause::TakenOver,
            0 => Cause::Unsaid,
            _ if reason::is_broker_own(reason) => Cause::Elsewhere,
            _ => Cause::Said,
        };
        Self { text: format!("the broker ended the connection: {}", said(reason, text)), cause }
    }

    /// The stream has ended, or broken.
    pub(super) fn closed(error: Option<&io::Error>, established: bool) -> Self {
        let how = error.map(|error| format!(" ({error})")).unwrap_or_default();
        if established {
            let text = format!("the broker closed the connection without a reason{how}");
            return Self { text, cause: Cause::Unsaid };
        }
        Self::no_connection(format!(
            "the broker closed the connection before it answered{how}; does it speak MQTT 5? Is this \
             its port, with TLS or without?"
        ))
    }

    /// Whether it may be over a publication.
    pub(super) fn is_over_something(&self) -> bool {
        matches!(self.cause, Cause::Unsaid | Cause::Said)
    }

    /// Whether it may be another client's doing.
    pub(super) fn is_contested(&self) -> bool {
        matches!(self.cause, Cause::Unsaid | Cause::TakenOver)
    }
}

/// The reason's name, and what the broker adds in its own words, printable.
fn said(reason: u8, text: &str) -> String {
    let name = if reason == 0 { "NormalDisconnection".to_owned() } else { reason::name(reason) };
    if text.is_empty() { name } else { format!("{name} {}", text.escape_debug()) }
}
