//! Connections that are kept for further requests.
//!
//! A request takes the connection that was used last. Where none is free it waits for whichever comes first: one that another
//! request is done with, or one that is opened meanwhile. A few are opened at once. More are opened only where somebody has
//! waited a moment in vain, a few at a time: so a burst of requests to an API that answers at once does not open as many
//! connections as it has requests, and one that answers slowly soon gets all that it needs.

use std::{
    collections::VecDeque,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::Uri;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    connection::{Connection, MAX_REQUESTS, SendError},
    connector::Connector,
};

/// Idle connections are closed after this time. Many servers close them after 5 s; closing them earlier makes it rare that
/// a request is sent just when the server closes the connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// Connections are used for this time at most, so that a host name that gets another address is noticed.
const MAX_AGE: Duration = Duration::from_mins(1);
/// This many are opened at a time.
const FEW: usize = 8;
/// How long the first of those that wait must have waited before more than a few are opened.
const MOMENT: Duration = Duration::from_millis(5);
/// One that takes longer to open keeps no other from being opened: its address may be dead, and the name may have another now.
const SLOW: Duration = Duration::from_secs(1);

/// The kept connections to one server.
pub(super) struct Pool {
    connector: Connector,
    to: Uri,
    state: Mutex<State>,
    /// Each connection has a clone, from when it begins to open.
    open: Arc<()>,
}

struct State {
    /// Those that a request can be sent on: without a request, or over HTTP/2. The one used last is the last.
    kept: Vec<Kept>,
    /// Requests that no connection was free for, the first first.
    waiting: VecDeque<Waiting>,
    /// How many are being opened.
    opening: usize,
    /// How many requests at once the last opened one takes. As long as that is unknown, a single one is opened if it may be
    /// many.
    capacity: usize,
    /// Whether a task closes those that are idle too long.
    is_tidied: bool,
    /// Whether a task opens more while somebody waits.
    is_grown: bool,
}

struct Kept {
    connection: Connection,
    since: Instant,
}

struct Waiting {
    since: Instant,
    turn: oneshot::Sender<Result<Connection, SendError>>,
}

impl Kept {
    fn is_spent(&self, now: Instant) -> bool {
        self.connection.age(now) >= MAX_AGE
            || (self.connection.is_idle() && now - self.since >= IDLE_TIMEOUT)
    }
}

impl State {
    fn keep(&mut self, connection: Connection) {
        self.kept.push(Kept { connection, since: Instant::now() });
    }

    /// Whether not even those that are being opened will do.
    fn wants_more(&self) -> bool {
        self.opening < self.waiting.len().div_ceil(self.capacity)
    }

    /// One for a request.
    fn take(&mut self) -> Option<Connection> {
        let (now, mut at) = (Instant::now(), self.kept.len());
        while at > 0 {
            at -= 1;
            let kept = &mut self.kept[at];
            if kept.is_spent(now) || !kept.connection.is_usable() {
                self.kept.remove(at);
            } else if !kept.connection.is_shared() {
                return Some(self.kept.remove(at).connection);
            } else if let Some(place) = kept.connection.share() {
                kept.since = now;
                return Some(place);
            }
        }
        None
    }
}

impl Pool {
    /// Opens none. `many`: whether a connection may turn out to take many requests at once.
    pub(super) fn new(connector: Connector, to: Uri, many: bool) -> Arc<Self> {
        let capacity = if many { MAX_REQUESTS } else { 1 };
        let state = State {
            kept: Vec::new(),
            waiting: VecDeque::new(),
            opening: 0,
            capacity,
            is_tidied: false,
            is_grown: false,
        };
        Arc::new(Self { connector, to, state: Mutex::new(state), open: Arc::default() })
    }

    /// A connection, or a place on one, for a request.
    ///
    /// # Errors
    /// [`SendError`] when one could not be opened that this request has waited for from its beginning.
    pub(super) async fn get(self: &Arc<Self>) -> Result<Connection, SendError> {
        let mut turn = {
            let mut state = self.state();
            if let Some(connection) = state.take() {
                return Ok(connection);
            }
            let (sender, receiver) = oneshot::channel();
            state.waiting.push_back(Waiting { since: Instant::now(), turn: sender });
            self.settle(&mut state);
            Turn { pool: self, receiver, has_come: false }
        };
        let connection = (&mut turn.receiver).await;
        turn.has_come = true;
        connection.expect("nobody who waits is forgotten while there is a pool")
    }

    /// A request is done with its connection, or with its place on it.
    pub(super) fn put(self: &Arc<Self>, connection: Connection) {
        let mut state = self.state();
        if connection.is_shared() {
            drop(connection);
        } else {
            state.keep(connection);
        }
        self.settle(&mut state);
    }

    /// Gives what is free to those that wait, and opens more for the rest.
    fn settle(self: &Arc<Self>, state: &mut State) {
        while !state.waiting.is_empty()
            && let Some(connection) = state.take()
        {
            if let Some(waiting) = state.waiting.pop_front()
                && let Err(Ok(unwanted)) = waiting.turn.send(Ok(connection))
                && !unwanted.is_shared()
            {
                state.keep(unwanted);
            }
        }
        // One clone is the pool's own.
        while Arc::strong_count(&self.open) <= FEW && state.wants_more() {
            self.open_one(state);
        }
        if state.wants_more() && !state.is_grown {
            state.is_grown = true;
            tokio::spawn(self.clone().grow());
        }
        if !state.kept.is_empty() && !state.is_tidied {
            state.is_tidied = true;
            tokio::spawn(self.clone().tidy());
        }
    }

    /// Opens more while somebody waits.
    async fn grow(self: Arc<Self>) {
        loop {
            sleep(MOMENT).await;
            let mut state = self.state();
            let Some(first) = state.waiting.front() else {
                state.is_grown = false;
                return;
            };
            if first.since.elapsed() >= MOMENT {
                let most = state.opening + FEW;
                while state.opening < most && state.wants_more() {
                    self.open_one(&mut state);
                }
            }
        }
    }

    fn open_one(self: &Arc<Self>, state: &mut State) {
        state.opening += 1;
        tokio::spawn(self.clone().open(self.open.clone()));
    }

    /// Opens a connection for whoever waits longest then.
    async fn open(self: Arc<Self>, open: Arc<()>) {
        let began = Instant::now();
        let mut open = pin!(Connection::open(self.connector.clone(), self.to.clone(), open));
        let opened = timeout(SLOW, &mut open).await;
        self.state().opening -= 1;
        let opened = if let Ok(opened) = opened {
            opened
        } else {
            self.settle(&mut self.state());
            open.await
        };
        let mut state = self.state();
        match opened {
            Ok(connection) => {
                state.capacity = connection.capacity();
                state.keep(connection);
            }
            Err(mut error) => {
                // To those that came later it says nothing.
                while let Some(waiting) = state.waiting.pop_front_if(|first| first.since <= began) {
                    match waiting.turn.send(Err(error)) {
                        Err(Err(unheard)) => error = unheard,
                        _ => break,
                    }
                }
            }
        }
        self.settle(&mut state);
    }

    /// Closes connections that are idle too long, until there is none.
    async fn tidy(self: Arc<Self>) {
        loop {
            let now = Instant::now();
            let next = {
                let mut state = self.state();
                state.kept.retain(|kept| !kept.is_spent(now));
                let Some(oldest) = state.kept.iter().map(|kept| kept.since).min() else {
                    state.is_tidied = false;
                    return;
                };
                oldest + IDLE_TIMEOUT
            };
            // Over HTTP/2 the oldest may have requests under way.
            sleep_until(if next > now { next } else { now + SLOW }).await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that waits. With this value it waits no longer.
struct Turn<'p> {
    pool: &'p Arc<Pool>,
    receiver: oneshot::Receiver<Result<Connection, SendError>>,
    has_come: bool,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.has_come {
            return;
        }
        self.receiver.close();
        match self.receiver.try_recv() {
            Ok(Ok(connection)) => self.pool.put(connection),
            Ok(Err(_)) => {}
            Err(_) => self.pool.state().waiting.retain(|waiting| !waiting.turn.is_closed()),
        }
    }
}
