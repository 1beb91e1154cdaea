//! `/events`: everybody who listens hears once a second how everything stands. While nobody does, nothing is looked at.
//!
//! A listener that reads slowly is told what is new when it reads on; nothing is queued for it, and nobody waits for it.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::StreamBody;
use hyper::body::{Body, Frame};
use tokio::{
    sync::{Notify, watch},
    time::sleep,
};

use super::status::Status;

/// How many may listen. One more ends the one that has listened longest.
const MAX_LISTENERS: usize = 8;
/// From one event to the next.
const PERIOD: Duration = Duration::from_secs(1);
/// How long a browser waits before it listens again, in its own words.
const RETRY: &str = "retry: 2000\n";

/// A connection, as far as listening is concerned.
#[derive(Default)]
pub(super) struct Listener {
    /// Whether it listens.
    listens: AtomicBool,
    /// Whether it has taken an event since this was last asked.
    takes: AtomicBool,
    end: Notify,
}

impl Listener {
    /// Whether it listens.
    pub(super) fn listens(&self) -> bool {
        self.listens.load(Ordering::Relaxed)
    }

    /// Whether it has taken an event since this was last asked.
    pub(super) fn takes(&self) -> bool {
        self.takes.swap(false, Ordering::Relaxed)
    }

    /// Waits until it must make room for another one.
    pub(super) async fn ended(&self) {
        self.end.notified().await;
    }

    /// Its connection is closed.
    pub(super) fn leave(&self) {
        self.listens.store(false, Ordering::Relaxed);
    }
}

/// Those who listen, and what they hear.
pub(super) struct Events {
    latest: watch::Sender<Option<Arc<Status>>>,
    wanted: Notify,
    listeners: Mutex<VecDeque<Arc<Listener>>>,
}

impl Events {
    pub(super) fn new() -> Self {
        let latest = watch::Sender::new(None);
        Self { latest, wanted: Notify::new(), listeners: Mutex::default() }
    }

    /// Looks at everything while somebody listens; runs for ever. What `begin` returns looks.
    pub(super) async fn run<L: FnMut() -> Status>(&self, begin: impl Fn() -> L) {
        loop {
            self.wanted.notified().await;
            let mut look = begin();
            while self.latest.receiver_count() > 0 {
                self.latest.send_replace(Some(Arc::new(look())));
                sleep(PERIOD).await;
            }
            // The next listener must not hear what was.
            self.latest.send_replace(None);
        }
    }

    /// This connection listens from now on: what it hears.
    pub(super) fn listen(
        &self,
        listener: &Arc<Listener>,
    ) -> impl Body<Data = Bytes, Error = Infallible> + Send + use<> {
        listener.listens.store(true, Ordering::Relaxed);
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.retain(|listener| listener.listens());
        if listeners.len() == MAX_LISTENERS
            && let Some(longest) = listeners.pop_front()
        {
            longest.end.notify_one();
        }
        listeners.push_back(listener.clone());
        let mut latest = self.latest.subscribe();
        latest.mark_changed();
        self.wanted.notify_one();
        let start = (latest, listener.clone(), 0, RETRY);
        StreamBody::new(stream::unfold(start, async |(mut latest, listener, mut told, retry)| {
            loop {
                latest.changed().await.ok()?;
                listener.takes.store(true, Ordering::Relaxed);
                let status = latest.borrow_and_update().clone();
                if let Some(status) = status {
                    let event = format!("{retry}data: {}\n\n", status.event(&mut told));
                    return Some((Ok(Frame::data(event.into())), (latest, listener, told, "")));
                }
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use http_body_util::BodyExt;
    use tokio::time::Instant;

    use super::*;

    async fn hears(body: &mut (impl Body<Data = Bytes, Error = Infallible> + Unpin)) -> String {
        let frame = body.frame().await.unwrap().unwrap();
        String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_looked_at_while_nobody_listens() {
        let events = Arc::new(Events::new());
        let looks = Arc::new(AtomicUsize::new(0));
        tokio::spawn({
            let (events, looks) = (events.clone(), looks.clone());
            async move {
                let look = || {
                    looks.fetch_add(1, Ordering::Relaxed);
                    Status::default()
                };
                events.run(|| look).await;
            }
        });
        sleep(PERIOD * 10).await;
        assert_eq!((looks.load(Ordering::Relaxed), events.latest.borrow().is_none()), (0, true));

        let began = Instant::now();
        let listener = Arc::new(Listener::default());
        let mut body = Box::pin(events.listen(&listener));
        assert!(hears(&mut body).await.starts_with("retry: 2000\ndata: {"));
        assert_eq!(began.elapsed(), Duration::ZERO, "the first event comes at once");
        assert!(listener.takes() && !listener.takes());
        assert!(hears(&mut body).await.starts_with("data: {"));
        assert_eq!(began.elapsed(), PERIOD);

        drop(body);
        let looked = looks.load(Ordering::Relaxed);
        sleep(PERIOD * 10).await;
        assert_eq!(
            (looks.load(Ordering::Relaxed), events.latest.borrow().is_none()),
            (looked, true)
        );
    }
}
