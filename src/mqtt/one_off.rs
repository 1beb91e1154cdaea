//! Short connections beside the gateway's own: to end a session, and for `check.rs`.

use std::{
    collections::{HashSet, VecDeque},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep, timeout},
};

use super::{
    Address, Settings,
    ending::Ending,
    packet::{self, PublishLimits},
    reader::{ConnAck, Incoming, NoPackets, Publish, Reader},
    socket::{self, ConnectError, Input, Output},
    window::PacketId,
};
use crate::{
    message::{Properties, Publication, Purpose, VIA},
    secrets::password::Password,
    topic::Pattern,
};

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
    #[error("{ending}")]
    Refused { ending: Ending, reason: u8 },
    #[error(transparent)]
    Unreadable(#[from] NoPackets),
    #[error("the broker does not read what is sent to it")]
    Unread,
    #[error("the broker does not answer; is `[broker] url` its port for MQTT?")]
    Silent,
}

impl OneOffError {
    /// Whether the broker does not take this client identifier, perhaps because another one is bound to the user.
    pub(super) fn is_about_identity(&self) -> bool {
        matches!(self.trouble, Trouble::Refused { reason: 0x85..=0x87, .. })
    }
}

/// How long each answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a message may take to come back.
const RETURN: Duration = Duration::from_secs(2);
/// Of publications, one after the other.
const PACKET_ID: PacketId = 1;

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
    let answers = connection.subscribe(settings, patterns, false).await;
    connection.end().await;
    answers.map(drop)
}

/// In seconds; the largest value is for ever [MQTT 5.0, 3.1.2.11.2].
pub(super) fn expiry(settings: &Settings) -> u32 {
    u32::try_from(settings.session_expiry.as_secs()).unwrap_or(u32::MAX)
}

/// A connection that acknowledges no messages where there was a session: the broker delivers them on the next connection.
pub(super) struct OneOff {
    address: Address,
    input: Input,
    output: Output,
    reader: Reader,
    incoming: BytesMut,
    answers: VecDeque<Incoming>,
    clean: bool,
    /// The topics of messages that have come with this Correlation Data.
    returned: HashSet<String>,
    marker: Bytes,
}

impl OneOff {
    /// Connects. A clean start ends whatever session there was [MQTT-3.1.2-4].
    pub(super) async fn begin(
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
        let (returned, marker) = (HashSet::new(), format!("{:032x}", fastrand::u128(..)).into());
        let mut connection =
            Self { address, input, output, reader, incoming, answers, clean, returned, marker };
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
                    let (ending, reason) =
                        (Ending::refused(connack.reason, &connack.text), connack.reason);
                    return Err(connection.failed(Trouble::Refused { ending, reason }));
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
                    Incoming::Publish(message) => self.came(message).await?,
                    packet => self.answers.push_back(packet),
                }
            }
        }
    }

    async fn came(&mut self, message: Publish) -> Result<(), OneOffError> {
        let mut out = BytesMut::new();
        if self.clean && message.packet_id != 0 {
            // Else those of devices would keep ours from coming.
            packet::puback(message.packet_id, &mut out);
        }
        if message.properties.correlation_data.as_ref() == Some(&self.marker) {
            self.returned.insert(message.topic);
        }
        if out.is_empty() { Ok(()) } else { self.send(&out).await }
    }

    /// Subscribes to the patterns; what the broker answers to each. For what is published on this connection too, if
    /// `own`.
    pub(super) async fn subscribe(
        &mut self,
        settings: &Settings,
        patterns: &[Pattern],
        own: bool,
    ) -> Result<Vec<(String, Option<u8>)>, OneOffError> {
        let mut answers = Vec::new();
        let group = settings.share_group.as_deref();
        for (packet_id, pattern) in (1..).zip(patterns) {
            let mut filter = packet::filter(pattern, group);
            filter.nolocal &= !own;
            let mut out = BytesMut::new();
            packet::subscribe(packet_id, &filter, None, &mut out);
            self.send(&out).await?;
            let reasons = loop {
                if let Incoming::SubAck { reasons, .. } = self.next(true).await? {
                    break reasons;
                }
            };
            answers.push((filter.path, reasons.first().copied()));
        }
        Ok(answers)
    }

    /// Publishes a message that no gateway takes, without a payload, and that nobody keeps; the broker's answer.
    pub(super) async fn publish(&mut self, topic: &str, via: &str) -> Result<u8, OneOffError> {
        let properties = Properties {
            user: [(VIA, via)].into_iter().collect(),
            correlation_data: Some(self.marker.clone()),
            expiry: Some(Duration::from_secs(1)),
            ..Properties::default()
        };
        let publication = Publication {
            purpose: Purpose::Push,
            topic: topic.to_owned(),
            payload: Bytes::new(),
            retain: false,
            properties,
        };
        let mut out = BytesMut::new();
        let limits = PublishLimits { max_packet: usize::MAX, retain: false };
        packet::publish(&publication, PACKET_ID, limits, &mut out);
        self.send(&out).await?;
        loop {
            if let Incoming::PubAck { reason, .. } = self.next(true).await? {
                return Ok(reason);
            }
        }
    }

    /// Waits until a message has come back on each of these topics; those on which none has.
    pub(super) async fn missing(&mut self, topics: &[String]) -> Result<Vec<String>, OneOffError> {
        let missing = |returned: &HashSet<String>| {
            let missing = topics.iter().filter(|topic| !returned.contains(*topic));
            missing.cloned().collect::<Vec<_>>()
        };
        let end = Instant::now() + RETURN;
        while !missing(&self.returned).is_empty() && Instant::now() < end {
            // A ping's answer, which stands behind what the broker has sent before it.
            let mut out = BytesMut::new();
            packet::ping(&mut out);
            self.send(&out).await?;
            while !matches!(self.next(true).await?, Incoming::PingResp) {}
            sleep(RETURN / 20).await;
        }
        Ok(missing(&self.returned))
    }

    /// Leaves, and ends a session that was clean at its start. The answer is there; how the connection ends does not matter any more.
    pub(super) async fn end(mut self) {
        let mut out = BytesMut::new();
        packet::disconnect(self.clean, &mut out);
        if self.send(&out).await.is_ok() {
            let _ =
                timeout(Duration::from_secs(1), async { while self.next(true).await.is_ok() {} })
                    .await;
        }
    }
}
