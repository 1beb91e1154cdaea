//! The connection task: connects, reads, writes, hears commands, watches the clock, and connects again. It
//! never waits for anything but its own `select!`.
//!
//! What happens on a connection ends with it: buffers, packet identifiers, limits. What must go on is in
//! [`Session`], which decides what is said; here is only the socket and the time.

use std::{
    fs, io,
    path::Path,
    pin::pin,
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    COMMANDS, Command, Delivery, Ended, Publisher, Settings, Status, Subscriptions,
    ending::{Cause, Ending},
    reader::Reader,
    session::Session,
    socket::{self, Input, Output},
    visit::subscribe_again,
};
use crate::{backoff::Backoff, metrics::Metrics, secret::Secret, tls::TlsError};

/// The first wait before another attempt to reach the broker.
const RECONNECT: Duration = Duration::from_millis(200);
/// A connection that lasted this long was a good one: the next failure counts as the first.
const GOOD_CONNECTION: Duration = Duration::from_secs(10);
/// How long the way to the broker may take, and its answer to CONNECT.
const CONNECTING: Duration = Duration::from_secs(10);
/// How long the broker may take to close the connection after our DISCONNECT.
const FAREWELL: Duration = Duration::from_secs(2);
/// The same when it is pouring out what we do not take: it reads in between.
const OVERRUN_FAREWELL: Duration = Duration::from_secs(10);
/// How long is read on when nothing can be written any more.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// So many short connections in a row look like a second client with the same identifier.
const SHORT_CONNECTIONS: u32 = 3;
/// How much is read at once, in bytes.
const READ: usize = 64 * 1024;

/// The connection cannot even be tried.
#[derive(Debug, thiserror::Error)]
#[error("the broker's TLS settings cannot be used: {0}")]
pub struct ConnectionSetupError(#[from] TlsError);

/// The connection to the broker; [`Connection::run`] makes it live.
pub struct Connection {
    settings: Settings,
    session: Session,
    commands: mpsc::Receiver<Command>,
    metrics: Arc<Metrics>,
    status: watch::Sender<Status>,
    /// Nothing is subscribed to, everything is ended.
    drain: bool,
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
    Broken(Ending),
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
        settings.tls.check()?;
        let drain = subscriptions.drain;
        let (sender, commands) = mpsc::channel(COMMANDS);
        let (status, watcher) = watch::channel(Status::Down("not connected yet".to_owned()));
        // A sender of the session's own would keep the channel open for ever.
        let weak = sender.downgrade();
        let session =
            Session::new(settings.clone(), subscriptions, weak, metrics.clone(), status.clone());
        let connection = Self { settings, session, commands, metrics, status, drain };
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
    pub async fn run(mut self, mut deliver: impl FnMut(Delivery)) -> Ended {
        let reconnect = Backoff { initial: RECONNECT, max: self.settings.reconnect_max };
        // Short or failed connections in a row.
        let mut failures = 0;
        loop {
            // On the heap, once for each connection.
            let end = Box::pin(self.live(&mut deliver)).await;
            let ending = if let End::Broken(ending) = &end { Some(ending) } else { None };
            let lasted = self.session.disconnected(ending, Instant::now());
            self.metrics.disconnected();
            let ending = match end {
                End::Broken(ending) => ending,
                End::Overrun => {
                    failures = 0;
                    continue;
                }
                End::Finished | End::Abandoned => {
                    self.status.send_replace(Status::Ended);
                    return Ended::Told;
                }
            };
            if self.drain && lasted.is_some() && ending.is_contested() {
                return self.yield_to_another(ending.text).await;
            }
            if self.session.is_finishing() && ending.cause == Cause::NoConnection {
                // There is nobody to say it to, and the broker still has what is not acknowledged.
                self.status.send_replace(Status::Down(ending.text.clone()));
                return Ended::Unheard(ending.text);
            }
            if lasted.is_some_and(|lasted| lasted >= GOOD_CONNECTION) {
                failures = 0;
            }
            let wait = reconnect.after(if self.session.is_suspicious() { 0 } else { failures });
            failures += 1;
            let (broker, trouble) = (&self.settings.address, &ending.text);
            tracing::warn!(%broker, trouble, ?wait, "no connection to the broker");
            let short = lasted.is_some() && failures.is_multiple_of(SHORT_CONNECTIONS);
            let unsaid = ending.cause == Cause::Unsaid && !self.session.is_suspicious();
            if ending.cause == Cause::TakenOver || short && unsaid {
                let client_id = &*self.settings.client_id;
                let question = "is another client connected with the same client id?";
                tracing::warn!(client_id, "connections do not last; {question}");
            }
            self.status.send_replace(Status::Down(ending.text));
            if self.pause(wait).await.is_none() {
                self.status.send_replace(Status::Ended);
                return Ended::Told;
            }
        }
    }

    /// Another client uses the session that was to be drained: nothing of it is ended, and what was comes
    /// back.
    async fn yield_to_another(self, text: String) -> Ended {
        let patterns = self.session.ended_subscriptions();
        if !patterns.is_empty()
            && let Err(trouble) = subscribe_again(&self.settings, patterns).await
        {
            tracing::error!(trouble, "the subscriptions of the session are ended, and stay so");
        }
        self.status.send_replace(Status::Down(text.clone()));
        Ended::Contested(text)
    }

    /// One connection, from its first byte to its last.
    async fn live(&mut self, deliver: &mut impl FnMut(Delivery)) -> End {
        let connecting = timeout(CONNECTING, socket::connect(&self.settings)).await;
        let (mut input, mut output) = match connecting {
            Ok(Ok(socket)) => socket,
            Ok(Err(text)) => return End::Broken(Ending::no_connection(text)),
            Err(_) => {
                return End::Broken(Ending::no_connection("the broker did not answer in time"));
            }
        };
        let password = match password(&self.settings) {
            Ok(password) => password,
            Err(text) => return End::Broken(Ending::no_connection(text)),
        };
        let Self { session, commands, settings, .. } = self;
        let mut stream = Stream {
            reader: Reader::new(settings.max_packet as usize),
            incoming: BytesMut::new(),
            outgoing: BytesMut::new(),
        };
        session.connecting(password.as_ref(), &mut stream.outgoing);
        let mut batch = Vec::with_capacity(COMMANDS);
        let began = Instant::now();
        // When the last byte came, and went, or might have.
        let (mut heard, mut wrote) = (began, began);
        let mut flushed = true;
        let mut clock = pin!(sleep_until(began + CONNECTING));
        loop {
            let patience =
                if session.is_connected() { patience(session.keep_alive()) } else { CONNECTING };
            let silent = (heard.min(wrote)) + patience;
            let next = session.next_timeout().map_or(silent, |next| next.min(silent));
            // The clock is set forward only when it has struck: it mostly strikes in vain, which is
            // cheaper than setting it with every message.
            if next < clock.deadline() || clock.is_elapsed() {
                clock.as_mut().reset(next);
            }
            let idle = stream.outgoing.is_empty();
            if idle && flushed && session.is_leaving() {
                return stream.farewell(session, &mut input, deliver).await;
            }
            stream.incoming.reserve(READ);
            tokio::select! {
                biased;
                count = commands.recv_many(&mut batch, COMMANDS), if session.has_room() => {
                    if count == 0 {
                        return End::Abandoned;
                    }
                    batch.drain(..).for_each(|command| session.command(command));
                }
                written = push(&mut output, &mut stream.outgoing, &mut flushed), if !idle || !flushed => {
                    if let Err(error) = written {
                        return stream.last_words(session, &mut input, &error, deliver).await;
                    }
                    wrote = Instant::now();
                }
                read = input.read_buf(&mut stream.incoming) => {
                    heard = Instant::now();
                    if let Err(ending) = stream.came(read, session, heard, deliver) {
                        return End::Broken(ending);
                    }
                }
                () = &mut clock => {
                    let now = Instant::now();
                    session.pass(now);
                    let stuck = !stream.outgoing.is_empty();
                    let (deaf, dumb) = (wrote + patience <= now, heard + patience <= now);
                    if stuck && (deaf || dumb) {
                        return End::Broken(Ending::stalled("the broker has stopped reading"));
                    }
                    if dumb {
                        return End::Broken(Ending::stalled("the broker did not answer in time"));
                    }
                }
            }
            let now = Instant::now();
            if stream.outgoing.is_empty() {
                wrote = now;
            }
            session.transmit(&mut stream.outgoing, now);
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

/// How long a connection may be without a byte in either direction: pings alone make some.
fn patience(keep_alive: Duration) -> Duration {
    keep_alive * 2 + Duration::from_secs(5)
}

/// The password in force: that of the file as it is now, if it is in a file.
pub(super) fn password(settings: &Settings) -> Result<Option<Secret>, String> {
    let read = |file: &Path| {
        let text = fs::read_to_string(file);
        let text = text.map_err(|error| format!("password_file {}: {error}", file.display()))?;
        Ok(Secret::new(text.trim_end_matches(['\r', '\n'])))
    };
    match &settings.password_file {
        Some(file) => read(file).map(Some),
        None => Ok(settings.password.clone()),
    }
}

/// Writes what there is, and sees to it that it leaves. May be dropped half-way.
async fn push(output: &mut Output, bytes: &mut BytesMut, flushed: &mut bool) -> io::Result<()> {
    if !bytes.is_empty() {
        let written = output.write(bytes).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes.advance(written);
        *flushed = false;
    }
    if bytes.is_empty() {
        output.flush().await?;
        *flushed = true;
    }
    Ok(())
}

/// What has come and is not read, what is said and not written.
struct Stream {
    reader: Reader,
    incoming: BytesMut,
    outgoing: BytesMut,
}

impl Stream {
    /// Bytes came, or the end of them.
    fn came(
        &mut self,
        read: io::Result<usize>,
        session: &mut Session,
        now: Instant,
        deliver: &mut impl FnMut(Delivery),
    ) -> Result<(), Ending> {
        match read {
            Ok(0) => return Err(Ending::closed(None, session.is_connected())),
            Ok(_) => {}
            Err(error) => return Err(Ending::closed(Some(&error), session.is_connected())),
        }
        loop {
            match self.reader.next(&mut self.incoming) {
                Ok(Some(packet)) => session.handle(packet, now, deliver)?,
                Ok(None) => return Ok(()),
                Err(error) => return Err(Ending::stalled(&error.to_string())),
            }
        }
    }

    async fn read(
        &mut self,
        session: &mut Session,
        input: &mut Input,
        deliver: &mut impl FnMut(Delivery),
    ) -> Ending {
        loop {
            self.incoming.reserve(READ);
            let read = input.read_buf(&mut self.incoming).await;
            if let Err(ending) = self.came(read, session, Instant::now(), deliver) {
                return ending;
            }
        }
    }

    /// After our DISCONNECT the broker closes the connection, when it has read everything. Who closes
    /// first may cut off the last PUBACKs: a broker that is writing gives up on reading.
    async fn farewell(
        mut self,
        session: &mut Session,
        input: &mut Input,
        deliver: &mut impl FnMut(Delivery),
    ) -> End {
        let (end, patience) = if session.is_finished() {
            (End::Finished, FAREWELL)
        } else {
            (End::Overrun, OVERRUN_FAREWELL)
        };
        let _ = timeout(patience, self.read(session, input, deliver)).await;
        end
    }

    /// Nothing can be written any more; what the broker said before it closed counts.
    async fn last_words(
        mut self,
        session: &mut Session,
        input: &mut Input,
        error: &io::Error,
        deliver: &mut impl FnMut(Delivery),
    ) -> End {
        let ending = timeout(LAST_WORDS, self.read(session, input, deliver)).await;
        let connected = session.is_connected();
        End::Broken(ending.unwrap_or_else(|_| Ending::closed(Some(error), connected)))
    }
}
