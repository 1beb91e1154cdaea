//! The connection task: connects, polls, hears commands, watches the clock, and connects again. It
//! never waits for anything but its own `select!`.
//!
//! Each connection gets a client and an event loop of its own and takes them with it when it ends.
//! The client library carries much from one connection to the next: acknowledgements, publications,
//! packet identifiers, limits, events. None of it can be trusted there, and all that must go on is
//! in [`Session`] anyway.

use std::{
    pin::pin,
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use rumqttc::{
    Outgoing,
    v5::{AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, StateError},
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    COMMANDS, Command, Delivery, Publisher, Settings, Status, Subscriptions,
    options::options,
    session::{REQUESTS, Session},
};
use crate::{backoff::Backoff, metrics::Metrics, tls::TlsError};

/// Waits between attempts to reach the broker.
const RECONNECT: Backoff =
    Backoff { initial: Duration::from_millis(200), max: Duration::from_secs(15) };
/// A connection that lasted this long was a good one: the next failure counts as the first.
const GOOD_CONNECTION: Duration = Duration::from_secs(10);
/// How long the broker may take to close the connection after our DISCONNECT.
const FAREWELL: Duration = Duration::from_secs(2);
/// The same when it is pouring out what we do not take: it reads in between.
const OVERRUN_FAREWELL: Duration = Duration::from_secs(10);
/// So many short connections in a row look like a second client with the same identifier.
const SHORT_CONNECTIONS: u32 = 3;

/// The connection cannot even be tried.
#[derive(Debug, thiserror::Error)]
#[error("the broker's TLS settings cannot be used: {0}")]
pub struct ConnectionSetupError(#[from] TlsError);

/// The connection to the broker; [`Connection::run`] makes it live.
pub struct Connection {
    settings: Settings,
    options: MqttOptions,
    session: Session,
    commands: mpsc::Receiver<Command>,
    metrics: Arc<Metrics>,
    status: watch::Sender<Status>,
}

/// How a connection ended.
enum End {
    /// Told to, and everything is through.
    Finished,
    /// Nobody is left who could tell anything.
    Abandoned,
    /// More came than may be held; what was not taken comes again on the next connection.
    Overrun,
    /// Broken, and how.
    Broken(String),
}

impl Connection {
    /// Sets everything up. Opens no socket.
    ///
    /// # Errors
    /// [`ConnectionSetupError`] when a certificate file cannot be used.
    pub fn new(
        settings: Settings,
        subscriptions: Subscriptions,
        metrics: Arc<Metrics>,
    ) -> Result<(Self, Publisher, watch::Receiver<Status>), ConnectionSetupError> {
        let options = options(&settings)?;
        let (sender, commands) = mpsc::channel(COMMANDS);
        let (status, watcher) = watch::channel(Status::Down("not connected yet".to_owned()));
        // A sender of the session's own would keep the channel open for ever.
        let weak = sender.downgrade();
        let session =
            Session::new(settings.clone(), subscriptions, weak, metrics.clone(), status.clone());
        let connection = Self { settings, options, session, commands, metrics, status };
        Ok((connection, Publisher { commands: sender }, watcher))
    }

    /// How many unacknowledged messages the broker delivers at once, now and later: the smaller of
    /// `max_pending` and the Receive Maximum of its CONNACK. Strictly, that property is the broker's
    /// limit for our publications; Mosquitto and EMQX announce their own delivery window in it.
    pub fn receive_window(&self) -> Arc<AtomicUsize> {
        self.session.receive_window()
    }

    /// Stays connected until told to finish, reconnecting whenever it must. `deliver` gets every
    /// message once; it must not block.
    pub async fn run(mut self, mut deliver: impl FnMut(Delivery)) {
        // Short or failed connections in a row.
        let mut failures = 0;
        loop {
            let (client, event_loop) = AsyncClient::new(self.options.clone(), REQUESTS);
            // On the heap, once for each connection: it holds the whole event loop.
            let end = Box::pin(self.live(client, event_loop, &mut deliver)).await;
            let lasted = self.session.disconnected();
            self.metrics.disconnected();
            let trouble = match end {
                End::Broken(trouble) => trouble,
                End::Overrun => {
                    failures = 0;
                    continue;
                }
                End::Finished | End::Abandoned => {
                    self.status.send_replace(Status::Ended);
                    return;
                }
            };
            if lasted.is_some_and(|lasted| lasted >= GOOD_CONNECTION) {
                failures = 0;
            }
            let wait = RECONNECT.after(failures);
            failures += 1;
            let broker = &self.settings.address;
            tracing::warn!(%broker, trouble, ?wait, "no connection to the broker");
            if lasted.is_some() && failures.is_multiple_of(SHORT_CONNECTIONS) {
                let client_id = &*self.settings.client_id;
                let question = "is another client connected with the same client id?";
                tracing::warn!(client_id, "connections do not last; {question}");
            }
            self.status.send_replace(Status::Down(trouble));
            if self.pause(wait).await.is_none() {
                return;
            }
        }
    }

    /// One connection, from its first byte to its last.
    async fn live(
        &mut self,
        client: AsyncClient,
        mut event_loop: EventLoop,
        deliver: &mut impl FnMut(Delivery),
    ) -> End {
        let Self { session, commands, settings, .. } = self;
        let mut batch = Vec::with_capacity(COMMANDS);
        let mut patience = patience(settings.keep_alive);
        let mut last_event = Instant::now();
        let mut clock = pin!(sleep_until(last_event + patience));
        session.connecting(client);
        loop {
            let event = {
                // One future for as long as it takes: dropped half-way, it can lose what it took
                // from its queue.
                let mut poll = pin!(event_loop.poll());
                loop {
                    // The clock is set forward only when it has struck: it mostly strikes in vain,
                    // which is cheaper than setting it with every message.
                    let silent = last_event + patience;
                    let next = session.next_late().map_or(silent, |late| late.min(silent));
                    if next < clock.deadline() || clock.is_elapsed() {
                        clock.as_mut().reset(next);
                    }
                    tokio::select! {
                        biased;
                        count = commands.recv_many(&mut batch, COMMANDS), if session.has_room() => {
                            if count == 0 {
                                return End::Abandoned;
                            }
                            batch.drain(..).for_each(|command| session.command(command));
                            session.pump();
                        }
                        event = &mut poll => break event,
                        () = &mut clock => {
                            session.pass(Instant::now());
                            session.pump();
                            // The library itself waits for ever when the peer stops reading.
                            if last_event + patience <= Instant::now() {
                                return End::Broken("the broker has stopped reading".to_owned());
                            }
                        }
                    }
                }
            };
            last_event = Instant::now();
            match event {
                Ok(Event::Outgoing(Outgoing::Disconnect)) => {
                    // The broker closes the connection when it has read everything. Who closes first
                    // may cut off the last PUBACKs: a broker that is writing gives up on reading.
                    let closed = async { while event_loop.poll().await.is_ok() {} };
                    let (end, patience) = if session.is_finished() {
                        (End::Finished, FAREWELL)
                    } else {
                        (End::Overrun, OVERRUN_FAREWELL)
                    };
                    let _ = timeout(patience, closed).await;
                    return end;
                }
                Ok(event) => session.event(event, last_event, deliver),
                Err(error) => return End::Broken(describe(&error)),
            }
            // A broker that announces Keep Alive 0 turns pings off; the library would then ping
            // without pause.
            if event_loop.options.keep_alive().is_zero() {
                event_loop.options.set_keep_alive(settings.keep_alive);
            }
            patience = self::patience(event_loop.options.keep_alive());
            session.pump();
        }
    }

    /// Waits before the next connection, hearing commands meanwhile. `None` when there is no point.
    async fn pause(&mut self, wait: Duration) -> Option<()> {
        let mut batch = Vec::with_capacity(COMMANDS);
        let mut until = pin!(sleep(wait));
        loop {
            if self.session.is_finished() {
                return None;
            }
            tokio::select! {
                count = self.commands.recv_many(&mut batch, COMMANDS), if self.session.has_room() => {
                    if count == 0 {
                        return None;
                    }
                    batch.drain(..).for_each(|command| self.session.command(command));
                }
                () = &mut until => return Some(()),
            }
        }
    }
}

/// How long a connection may be without any event: pings alone make some, at the interval that the
/// broker has chosen.
fn patience(keep_alive: Duration) -> Duration {
    keep_alive * 2 + Duration::from_secs(5)
}

/// What went wrong and what to do about it.
pub(super) fn describe(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ConnectionRefused(code) => format!(
            "the broker refused the connection: {code:?}; check client id, user name and password"
        ),
        ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, reason_string }) => {
            let reason = reason_string.as_deref().unwrap_or_default();
            format!("the broker ended the connection: {reason_code:?} {reason}")
        }
        ConnectionError::MqttState(StateError::ConnectionAborted) => {
            "the broker closed the connection; does it speak MQTT 5?".to_owned()
        }
        ConnectionError::Timeout(_) => "the broker did not answer in time".to_owned(),
        other => other.to_string(),
    }
}
