//! The connection task: connects, reads, writes, takes commands, watches the clock, and connects again. It
//! never waits for anything but its own `select!`.
//!
//! Here are the socket and the time. What outlives a connection, and every decision about what is sent, is
//! in [`Session`].

use std::{
    io,
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
    COMMANDS, Command, Delivery, Ended, Mode, Publisher, Settings, Status, Subscriptions,
    Transport,
    ending::{Cause, Ending},
    one_off::subscribe_again,
    reader::Reader,
    session::Session,
    socket::{self, Input, Output},
    traffic::Traffic,
};
use crate::{
    backoff::Backoff,
    log::seconds,
    metrics::Metrics,
    secrets::{Secret, password::Password},
    tls::TlsError,
};

/// The first wait before another attempt to reach the broker.
const RECONNECT: Duration = Duration::from_millis(200);
/// After a connection that lasted this long the back-off starts anew.
const GOOD_CONNECTION: Duration = Duration::from_secs(10);
/// How long the broker's answer to CONNECT may take.
const CONNECTING: Duration = Duration::from_secs(10);
/// How long the broker may take to close the connection after our DISCONNECT.
const CLOSE: Duration = Duration::from_secs(2);
/// The same after an overrun: the broker goes on sending and reads in between.
const OVERRUN_CLOSE: Duration = Duration::from_secs(10);
/// How long reading goes on after a failed write: the broker may have sent the reason before it closed.
const FINAL_READ: Duration = Duration::from_secs(1);
/// This many short connections in a row look like a second client with the same client identifier.
const SHORT_CONNECTIONS: u32 = 3;
/// How many bytes are read at once.
const READ: usize = 64 * 1024;

/// The connection cannot even be tried.
#[derive(Debug, thiserror::Error)]
#[error("the broker's TLS settings cannot be used: {0}")]
pub struct ConnectionSetupError(#[from] TlsError);

/// The connection to the broker; [`Connection::run`] connects it and keeps it connected.
pub(crate) struct Connection {
    settings: Settings,
    session: Session,
    commands: mpsc::Receiver<Command>,
    metrics: Arc<Metrics>,
    status: watch::Sender<Status>,
    mode: Mode,
}

/// How a connection ended.
enum End {
    /// The gateway was told to end it, and everything is sent.
    Finished,
    /// Every [`Publisher`] and receipt is gone: no command can come any more.
    Abandoned,
    /// The broker sent more than `max_pending_bytes`; it sends the rest again on the next connection.
    Overrun,
    /// The broker or the network ended it.
    Broken(Ending),
}

impl Connection {
    /// Sets everything up. Opens no socket.
    ///
    /// # Errors
    /// [`ConnectionSetupError`] when a certificate file cannot be used.
    pub(crate) fn new(
        settings: Settings,
        subscriptions: Subscriptions,
        metrics: Arc<Metrics>,
    ) -> Result<(Self, Publisher, watch::Receiver<Status>), ConnectionSetupError> {
        settings.tls.check()?;
        let mode = subscriptions.mode;
        let (sender, commands) = mpsc::channel(COMMANDS);
        let (status, watcher) = watch::channel(Status::Down("not connected yet".to_owned()));
        // A sender of the session's own would keep the channel open for ever.
        let weak = sender.downgrade();
        let session =
            Session::new(settings.clone(), subscriptions, weak, metrics.clone(), status.clone());
        let connection = Self { settings, session, commands, metrics, status, mode };
        Ok((connection, Publisher { commands: sender }, watcher))
    }

    /// How many unacknowledged messages the broker delivers at once, now and later: the smaller of
    /// `max_pending` and the Receive Maximum of its CONNACK. Strictly, that property is the broker's
    /// limit for our publications; Mosquitto and EMQX announce their own delivery window in it.
    pub(crate) fn receive_window(&self) -> Arc<AtomicUsize> {
        self.session.receive_window()
    }

    /// Stays connected until told to finish, reconnecting whenever it must. `deliver` gets every
    /// message once; it must not block.
    pub(crate) async fn run(mut self, mut deliver: impl FnMut(Delivery)) -> Ended {
        let reconnect = Backoff { initial: RECONNECT, max: self.settings.reconnect_max };
        // Short or failed connections in a row.
        let mut failures = 0;
        loop {
            // On the heap, once for each connection.
            let end = Box::pin(self.serve(&mut deliver)).await;
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
                    return Ended::Finished;
                }
            };
            self.metrics.connection_failed(ending.cause.word());
            if self.mode == Mode::Drain && lasted.is_some() && ending.may_be_another_client() {
                return self.yield_to_another(ending.text).await;
            }
            if self.session.is_finishing() && ending.is_before_connack() {
                // Nothing can be sent any more, and the broker still has what is not acknowledged.
                self.status.send_replace(Status::Down(ending.text.clone()));
                return Ended::BrokerGone(ending.text);
            }
            if lasted.is_some_and(|lasted| lasted >= GOOD_CONNECTION) {
                failures = 0;
            }
            let wait = reconnect.after(if self.session.is_suspicious() { 0 } else { failures });
            failures += 1;
            let (broker, trouble) = (&self.settings.address, &ending.text);
            let wait_seconds = seconds(wait);
            tracing::warn!(%broker, trouble, wait_seconds, "no connection to the broker");
            let short = lasted.is_some() && failures.is_multiple_of(SHORT_CONNECTIONS);
            let unsaid = ending.cause == Cause::Unexplained && !self.session.is_suspicious();
            if ending.cause == Cause::TakenOver || short && unsaid {
                let client_id = &*self.settings.client_id;
                let question = "is another client connected with the same client id?";
                tracing::warn!(client_id, "connections do not last; {question}");
            }
            // Where the text may be about the address.
            let address = (ending.cause == Cause::NotConnected).then(|| format!("{broker}: "));
            let address = address.unwrap_or_default();
            self.status.send_replace(Status::Down(format!("{address}{trouble}")));
            if !self.wait(wait).await {
                self.status.send_replace(Status::Ended);
                return Ended::Finished;
            }
        }
    }

    /// Another client uses the session that was to be drained: subscriptions that are already ended are
    /// made again.
    async fn yield_to_another(self, text: String) -> Ended {
        let patterns = self.session.ended_subscriptions();
        if !patterns.is_empty()
            && let Err(trouble) = subscribe_again(&self.settings, patterns).await
        {
            tracing::error!(%trouble, "the subscriptions of the session are ended, and stay so");
        }
        self.status.send_replace(Status::Down(text.clone()));
        Ended::SessionInUse(text)
    }

    /// Opens the socket and looks at the password for a new connection.
    async fn open(&self) -> Result<(Input, Output, Option<Secret>), Ending> {
        let connected = socket::connect(&self.settings).await;
        let (input, output) =
            connected.map_err(|error| Ending::no_connection(error.to_string()))?;
        Ok((input, output, self.settings.password.as_ref().map(Password::now)))
    }

    /// One connection, from CONNECT to its end.
    async fn serve(&mut self, deliver: &mut impl FnMut(Delivery)) -> End {
        let (mut input, mut output, password) = match self.open().await {
            Ok(open) => open,
            Err(ending) => return End::Broken(ending),
        };
        let Self { session, commands, settings, .. } = self;
        let mut stream = Stream::new(settings);
        session.connecting(password.as_ref(), &mut stream.outgoing);
        let mut batch = Vec::with_capacity(COMMANDS);
        let began = Instant::now();
        let mut traffic = Traffic::new(began);
        let mut flushed = true;
        let mut clock = pin!(sleep_until(began + CONNECTING));
        loop {
            let patience = patience(session);
            let silent = traffic.read.min(traffic.written) + patience;
            let next = session.next_timeout().map_or(silent, |next| next.min(silent));
            // The timer is moved later only once it has fired. That it mostly fires for nothing is cheaper
            // than moving it with every message.
            if next < clock.deadline() || clock.is_elapsed() {
                clock.as_mut().reset(next);
            }
            let idle = stream.outgoing.is_empty();
            if idle && flushed && session.is_leaving() {
                return stream.await_close(session, &mut input, deliver).await;
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
                        return stream.read_rest(session, &mut input, &error, deliver).await;
                    }
                    traffic.written = Instant::now();
                }
                read = input.read_buf(&mut stream.incoming) => {
                    traffic.read = Instant::now();
                    if let Err(ending) = stream.received(read, session, traffic.read, deliver) {
                        return End::Broken(ending);
                    }
                }
                () = &mut clock => {
                    let now = Instant::now();
                    session.advance(now);
                    if let Some(text) = traffic.stalled(now, patience, !stream.outgoing.is_empty()) {
                        return End::Broken(Ending::stalled(text));
                    }
                }
            }
            let now = Instant::now();
            if stream.outgoing.is_empty() {
                traffic.written = now;
            }
            session.transmit(&mut stream.outgoing, now);
        }
    }

    /// Waits before the next connection, taking commands meanwhile. `false` when nothing is left to do on
    /// one.
    async fn wait(&mut self, wait: Duration) -> bool {
        let mut batch = Vec::with_capacity(COMMANDS);
        let mut until = pin!(sleep(wait));
        loop {
            if self.session.is_finished() {
                return false;
            }
            tokio::select! {
                count = self.commands.recv_many(&mut batch, COMMANDS), if self.session.has_room() => {
                    if count == 0 {
                        return false;
                    }
                    batch.drain(..).for_each(|command| self.session.command(command));
                }
                () = &mut until => return true,
            }
        }
    }
}

/// How long the connection may be without a byte in either direction. Once it is made, pings alone cause some.
fn patience(session: &Session) -> Duration {
    if session.is_connected() {
        session.keep_alive() * 2 + Duration::from_secs(5)
    } else {
        CONNECTING
    }
}

/// Writes what is waiting, then flushes. Cancel safe: what is not written stays in `bytes`.
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

/// The buffers of one connection: bytes not decoded yet, and bytes not written yet.
struct Stream {
    reader: Reader,
    incoming: BytesMut,
    outgoing: BytesMut,
    transport: Transport,
}

impl Stream {
    fn new(settings: &Settings) -> Self {
        let reader = Reader::new(settings.max_packet as usize);
        let (incoming, outgoing) = (BytesMut::new(), BytesMut::new());
        Self { reader, incoming, outgoing, transport: settings.address.transport }
    }

    /// The stream has ended, or broken.
    fn closed(&self, error: Option<&io::Error>, session: &Session) -> Ending {
        if session.is_connected() {
            Ending::closed(error)
        } else {
            Ending::unanswered(error, self.transport)
        }
    }

    /// Decodes and handles what a read has brought.
    fn received(
        &mut self,
        read: io::Result<usize>,
        session: &mut Session,
        now: Instant,
        deliver: &mut impl FnMut(Delivery),
    ) -> Result<(), Ending> {
        match read {
            Ok(0) => return Err(self.closed(None, session)),
            Ok(_) => {}
            Err(error) => return Err(self.closed(Some(&error), session)),
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
            if let Err(ending) = self.received(read, session, Instant::now(), deliver) {
                return ending;
            }
        }
    }

    /// After our DISCONNECT the broker closes the connection, when it has read everything. Who closes
    /// first may cut off the last PUBACKs: a broker that is writing gives up on reading.
    async fn await_close(
        mut self,
        session: &mut Session,
        input: &mut Input,
        deliver: &mut impl FnMut(Delivery),
    ) -> End {
        let (end, patience) = if session.is_finished() {
            (End::Finished, CLOSE)
        } else {
            (End::Overrun, OVERRUN_CLOSE)
        };
        let _ = timeout(patience, self.read(session, input, deliver)).await;
        end
    }

    /// After a failed write: a DISCONNECT or a PUBACK that the broker sent before it closed still counts.
    async fn read_rest(
        mut self,
        session: &mut Session,
        input: &mut Input,
        error: &io::Error,
        deliver: &mut impl FnMut(Delivery),
    ) -> End {
        let ending = timeout(FINAL_READ, self.read(session, input, deliver)).await;
        End::Broken(ending.unwrap_or_else(|_| self.closed(Some(error), session)))
    }
}
