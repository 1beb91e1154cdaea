//! Short connections beside the gateway's own: what does the broker allow, and the end of a session.

use std::{collections::VecDeque, time::Duration};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::{
    Address, Settings, Transport,
    ending::Ending,
    limits, packet,
    reader::{ConnAck, Incoming, Limits, NoPackets, Reader},
    reason,
    socket::{self, ConnectError, Input, Output},
};
use crate::{secrets::password::Password, topic::Pattern};

/// Why such a connection does not do what it is for.
#[derive(Debug, thiserror::Error)]
#[error("{address}: {trouble}")]
pub(crate) struct OneOffError {
    address: Address,
    trouble: Trouble,
}

#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Ended(#[from] Ending),
    #[error(transparent)]
    Unreadable(#[from] NoPackets),
    #[error("the broker does not read what is sent to it")]
    Unread,
    #[error("the broker does not answer; is `[broker] url` its port for MQTT?")]
    Silent,
    #[error("the broker refuses subscriptions; allow them in its access list: {}", .0.join(", "))]
    Subscriptions(Vec<String>),
}

/// How long each answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connects, reads what the broker announces, subscribes to the table's filters, and leaves nothing; under
/// a client identifier of its own, so that a running gateway keeps its session.
///
/// # Errors
/// [`OneOffError`].
pub(crate) async fn check_broker(
    settings: &Settings,
    patterns: &[Pattern],
) -> Result<String, OneOffError> {
    let client_id = format!("{}-check", settings.client_id).into();
    // As a member of the group itself it would be given messages that others wait for.
    let share_group = settings.share_group.as_ref().map(|group| format!("{group}-check").into());
    let settings = Settings { client_id, share_group, ..settings.clone() };
    // How long a session is kept shows only where one is asked for; it has no subscriptions. No clean start:
    // a broker that binds client identifiers to users takes us for the gateway itself, and would end its
    // session with all that waits in it.
    let (connection, connack) = OneOff::begin(&settings, false, expiry(&settings)).await?;
    connection.end().await;
    if connack.session_present {
        return Ok(report(&settings, &connack.limits, None));
    }
    let (mut connection, _) = OneOff::begin(&settings, true, 0).await?;
    let refused = connection.subscribe(&settings, patterns).await;
    connection.end().await;
    let refused = refused?;
    if refused.is_empty() {
        Ok(report(&settings, &connack.limits, Some(patterns.len())))
    } else {
        Err(OneOffError { address: settings.address, trouble: Trouble::Subscriptions(refused) })
    }
}

/// Ends the session of this client identifier, with everything the broker still holds in it.
///
/// # Errors
/// [`OneOffError`].
pub(crate) async fn end_session(settings: &Settings) -> Result<(), OneOffError> {
    let (connection, _) = OneOff::begin(settings, true, 0).await?;
    connection.end().await;
    Ok(())
}

/// Makes the subscriptions of a session again, for the other client that uses it.
///
/// # Errors
/// [`OneOffError`].
pub(super) async fn subscribe_again(
    settings: &Settings,
    patterns: &[Pattern],
) -> Result<(), OneOffError> {
    let (mut connection, _) = OneOff::begin(settings, false, expiry(settings)).await?;
    let refused = connection.subscribe(settings, patterns).await;
    connection.end().await;
    refused.map(drop)
}

/// In seconds; the largest value is for ever [MQTT 5.0, 3.1.2.11.2].
pub(super) fn expiry(settings: &Settings) -> u32 {
    u32::try_from(settings.session_expiry.as_secs()).unwrap_or(u32::MAX)
}

/// A connection that acknowledges no messages: the broker delivers them on the next connection.
struct OneOff {
    address: Address,
    input: Input,
    output: Output,
    reader: Reader,
    incoming: BytesMut,
    answers: VecDeque<Incoming>,
    clean: bool,
}

impl OneOff {
    /// Connects. A clean start ends whatever session there was [MQTT-3.1.2-4].
    async fn begin(
        settings: &Settings,
        clean: bool,
        expiry: u32,
    ) -> Result<(Self, ConnAck), OneOffError> {
        let address = settings.address.clone();
        let (input, output) = match socket::connect(settings).await {
            Ok(open) => open,
            Err(error) => return Err(OneOffError { address, trouble: error.into() }),
        };
        let reader = Reader::new(settings.max_packet as usize);
        let (incoming, answers) = (BytesMut::new(), VecDeque::new());
        let mut connection = Self { address, input, output, reader, incoming, answers, clean };
        let mut out = BytesMut::new();
        let start = packet::Start { clean, expiry };
        let password = settings.password.as_ref().map(Password::now);
        packet::connect(settings, start, password.as_ref(), &mut out);
        connection.send(&out).await?;
        loop {
            match connection.next(false).await? {
                Incoming::ConnAck(connack) if connack.old => {
                    return Err(connection.failed(Ending::old_protocol()));
                }
                Incoming::ConnAck(connack) if connack.reason != 0 => {
                    let refused = Ending::refused(connack.reason, &connack.text);
                    return Err(connection.failed(refused));
                }
                Incoming::ConnAck(connack) => return Ok((connection, connack)),
                _ => {}
            }
        }
    }

    fn failed(&self, trouble: impl Into<Trouble>) -> OneOffError {
        OneOffError { address: self.address.clone(), trouble: trouble.into() }
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), OneOffError> {
        let Self { output, .. } = self;
        let sent = timeout(PATIENCE, async {
            output.write_all(bytes).await?;
            output.flush().await
        });
        match sent.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.failed(Ending::closed(Some(&error)))),
            Err(_) => Err(self.failed(Trouble::Unread)),
        }
    }

    /// The next packet that is no message.
    async fn next(&mut self, established: bool) -> Result<Incoming, OneOffError> {
        loop {
            if let Some(packet) = self.answers.pop_front() {
                return Ok(packet);
            }
            self.incoming.reserve(4096);
            let read = timeout(PATIENCE, self.input.read_buf(&mut self.incoming)).await;
            let error = match read.map_err(|_| self.failed(Trouble::Silent))? {
                Ok(0) => Some(None),
                Ok(_) => None,
                Err(error) => Some(Some(error)),
            };
            if let Some(error) = error {
                let error = error.as_ref();
                return Err(self.failed(if established {
                    Ending::closed(error)
                } else {
                    Ending::unanswered(error, self.address.transport)
                }));
            }
            loop {
                let packet = self.reader.next(&mut self.incoming);
                let Some(packet) = packet.map_err(|error| self.failed(error))? else { break };
                match packet {
                    Incoming::Disconnect { reason, text } => {
                        return Err(self.failed(Ending::disconnect(reason, &text)));
                    }
                    Incoming::Publish(_) => {}
                    packet => self.answers.push_back(packet),
                }
            }
        }
    }

    /// Subscribes to the patterns; what the broker refuses.
    async fn subscribe(
        &mut self,
        settings: &Settings,
        patterns: &[Pattern],
    ) -> Result<Vec<String>, OneOffError> {
        let mut refused = Vec::new();
        let group = settings.share_group.as_deref();
        for (packet_id, pattern) in (1..).zip(patterns) {
            let filter = packet::filter(pattern, group);
            let mut out = BytesMut::new();
            packet::subscribe(packet_id, &filter, None, &mut out);
            self.send(&out).await?;
            let reasons = loop {
                if let Incoming::SubAck { reasons, .. } = self.next(true).await? {
                    break reasons;
                }
            };
            match reasons.first() {
                Some(code) if !reason::is_failure(*code) => {}
                Some(code) => refused.push(format!("{} ({})", filter.path, reason::name(*code))),
                None => refused.push(format!("{} (no answer)", filter.path)),
            }
        }
        Ok(refused)
    }

    /// Leaves, and ends a session that was clean at its start. The answer is there; how the connection ends does not matter any more.
    async fn end(mut self) {
        let mut out = BytesMut::new();
        packet::disconnect(self.clean, &mut out);
        if self.send(&out).await.is_ok() {
            let _ =
                timeout(Duration::from_secs(1), async { while self.next(true).await.is_ok() {} })
                    .await;
        }
    }
}

fn report(settings: &Settings, limits: &Limits, filters: Option<usize>) -> String {
    let subscriptions = filters.map_or_else(
        || "not tried: there is a session, the gateway's where ids are bound to users".to_owned(),
        |filters| format!("{filters} accepted"),
    );
    let or =
        |value: Option<u32>, default: &str| value.map_or(default.to_owned(), |v| v.to_string());
    let encrypted = matches!(settings.address.transport, Transport::Mqtts | Transport::Wss);
    let mut text = format!(
        "{} accepts us{}\n  subscriptions        {subscriptions}\n  takes at once        {}\n  \
         largest packet       {}\n  session expiry       {}\n  maximum QoS          {}\n  \
         shared subscriptions {}",
        settings.address,
        if encrypted { " over TLS" } else { "" },
        limits.receive_maximum,
        or(limits.maximum_packet_size, "no limit"),
        or(limits.session_expiry, "as asked"),
        limits.maximum_qos,
        if limits.shared_subscriptions { "yes" } else { "no" },
    );
    let mut warnings = limits::warnings(settings, limits);
    if limits.receive_maximum < settings.max_pending {
        warnings.push(format!(
            "Receive Maximum is {}, below max_pending = {}: with Mosquitto and EMQX it is also how many \
             messages the gateway gets at once; raise max_inflight_messages (Mosquitto) or \
             mqtt.max_inflight (EMQX)",
            limits.receive_maximum, settings.max_pending
        ));
    }
    for warning in warnings {
        text.push_str("\n  ");
        text.push_str(&warning);
    }
    text
}
