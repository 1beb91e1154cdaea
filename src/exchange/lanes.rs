//! One item at a time per key, in order; keys side by side, up to a limit.
//!
//! A key has a lane while it has items. Tasks serve the lanes in turn, one item each; nothing is kept for a key
//! without items. How much can wait in all lanes together is bounded by whoever pushes: the broker's Receive
//! Maximum. The limit on tasks is for brokers that overrun it: a task has all that a call needs, an item that
//! waits has not.

use std::{
    collections::VecDeque,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use foldhash::{HashMap, HashMapExt};
use tokio::sync::{Notify, Semaphore};

/// Most tasks without an item that wait for one. To wake a task costs less than to begin and to end one.
const MOST_IDLE: usize = 8;

/// The lanes.
pub(crate) struct Lanes<K, T, S> {
    state: Arc<Mutex<State<K, T>>>,
    limit: usize,
    /// A permit wakes a task that waits for an item.
    wake: Arc<Semaphore>,
    /// Notified when no item is being served, for [`Lanes::idle`].
    idle: Arc<Notify>,
    serve: S,
}

struct State<K, T> {
    /// By key, the items that wait behind the one that is being served, or for the key's turn.
    waiting: HashMap<K, VecDeque<T>>,
    /// Keys that have items and none that is being served, in order of their turns.
    ready: VecDeque<K>,
    /// Tasks that serve an item, or are about to look for one.
    working: usize,
    /// Tasks that wait for an item.
    waiting_tasks: usize,
    closed: bool,
}

/// What a task does next.
enum Next<K, T> {
    Serve(K, T),
    Wait,
    End,
}

impl<K, T, S: Clone> Clone for Lanes<K, T, S> {
    fn clone(&self) -> Self {
        Self {
            state: self.state.clone(),
            limit: self.limit,
            wake: self.wake.clone(),
            idle: self.idle.clone(),
            serve: self.serve.clone(),
        }
    }
}

impl<K, T, S, F> Lanes<K, T, S>
where
    K: Eq + Hash + Clone + Send + 'static,
    T: Send + 'static,
    S: Fn(T) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    /// Lanes served by at most `limit` tasks; `serve` handles an item, and must not panic.
    pub(crate) fn new(limit: usize, serve: S) -> Self {
        let state = State {
            waiting: HashMap::new(),
            ready: VecDeque::new(),
            working: 0,
            waiting_tasks: 0,
            closed: false,
        };
        let wake = Arc::new(Semaphore::new(0));
        Self { state: Arc::new(Mutex::new(state)), limit, wake, idle: Arc::default(), serve }
    }

    /// Puts an item behind the others of its key. After [`Lanes::close`] it is dropped.
    pub(crate) fn push(&self, key: K, item: T) {
        let mut state = self.state();
        if state.closed {
            return;
        }
        if let Some(waiting) = state.waiting.get_mut(&key) {
            waiting.push_back(item);
            return;
        }
        state.waiting.insert(key.clone(), VecDeque::from([item]));
        state.ready.push_back(key);
        if state.working == self.limit {
            return;
        }
        state.working += 1;
        if state.waiting_tasks > 0 {
            state.waiting_tasks -= 1;
            drop(state);
            self.wake.add_permits(1);
        } else {
            drop(state);
            tokio::spawn(self.clone().work());
        }
    }

    /// Begins no further item: every task ends with the one that it serves.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.waiting.clear();
        state.ready.clear();
        self.wake.close();
    }

    /// Waits until no item is being served.
    pub(crate) async fn idle(&self) {
        loop {
            let idle = self.idle.notified();
            if self.state().working == 0 {
                return;
            }
            idle.await;
        }
    }

    /// One task: serves an item of one key, then one of the next.
    async fn work(self) {
        let mut done = None;
        loop {
            match self.next(done.take()) {
                Next::Serve(key, item) => {
                    (self.serve)(item).await;
                    done = Some(key);
                }
                Next::Wait => match self.wake.acquire().await {
                    Ok(permit) => permit.forget(),
                    // The lanes are closed.
                    Err(_) => return,
                },
                Next::End => return,
            }
        }
    }

    /// The next key's next item. A key that has more items waits for its turn again.
    fn next(&self, done: Option<K>) -> Next<K, T> {
        let mut state = self.state();
        if let Some(key) = done
            && let Some(waiting) = state.waiting.get(&key)
        {
            if waiting.is_empty() {
                state.waiting.remove(&key);
            } else {
                state.ready.push_back(key);
            }
        }
        let State { waiting, ready, .. } = &mut *state;
        if let Some(key) = ready.pop_front()
            && let Some(item) = waiting.get_mut(&key).and_then(VecDeque::pop_front)
        {
            return Next::Serve(key, item);
        }
        state.working -= 1;
        if state.working == 0 {
            self.idle.notify_waiters();
        }
        if state.closed || state.waiting_tasks == MOST_IDLE {
            return Next::End;
        }
        state.waiting_tasks += 1;
        Next::Wait
    }

    fn state(&self) -> MutexGuard<'_, State<K, T>> {
        // No code that can panic runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Mutex, time::Duration};

    use tokio::time::{Instant, sleep};

    use super::*;

    type Item = (&'static str, u64);
    type Served = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;
    /// What is done, with the second at which it was.
    type Done = Arc<Mutex<Vec<(&'static str, u64, u64)>>>;

    /// Lanes whose items take as long as their key says.
    fn lanes(
        limit: usize,
        done: &Done,
    ) -> Lanes<&'static str, Item, impl Fn(Item) -> Served + Clone + use<>> {
        let (done, began) = (done.clone(), Instant::now());
        let serve = move |(key, n): Item| -> Served {
            let done = done.clone();
            Box::pin(async move {
                sleep(Duration::from_secs(if key == "slow" { 10 } else { 1 })).await;
                done.lock().unwrap().push((key, n, began.elapsed().as_secs()));
            })
        };
        Lanes::new(limit, serve)
    }

    #[tokio::test(start_paused = true)]
    async fn order_is_kept_per_key_and_keys_run_side_by_side() {
        let done = Done::default();
        let lanes = lanes(10, &done);
        for n in 0..3 {
            lanes.push("slow", ("slow", n));
            lanes.push("quick", ("quick", n));
        }
        lanes.idle().await;
        let quick = [("quick", 0, 1), ("quick", 1, 2), ("quick", 2, 3)];
        let slow = [("slow", 0, 10), ("slow", 1, 20), ("slow", 2, 30)];
        assert_eq!(*done.lock().unwrap(), [quick, slow].concat());
        assert!(lanes.state().waiting.is_empty(), "an idle key leaves nothing behind");
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_are_at_work_than_may_be_and_keys_take_turns() {
        let done = Done::default();
        let lanes = lanes(2, &done);
        for n in 0..2 {
            for key in ["slow", "a", "b", "c"] {
                lanes.push(key, (key, n));
            }
        }
        lanes.idle().await;
        let quick = [("a", 0, 1), ("b", 0, 2), ("c", 0, 3), ("a", 1, 4), ("b", 1, 5), ("c", 1, 6)];
        assert_eq!(
            *done.lock().unwrap(),
            [&quick[..], &[("slow", 0, 10), ("slow", 1, 20)]].concat()
        );
        assert!(lanes.state().waiting.is_empty() && lanes.state().ready.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_without_an_item_is_woken_by_the_next_and_only_a_few_wait() {
        let done = Done::default();
        let lanes = lanes(100, &done);
        let keys = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];
        for n in 0..3 {
            for key in keys {
                lanes.push(key, (key, n));
            }
            // In time that passes at once: who is not woken fails the test, and does not hold it up.
            tokio::time::timeout(Duration::from_hours(1), lanes.idle()).await.unwrap();
            let state = lanes.state();
            assert_eq!((state.working, state.waiting_tasks), (0, MOST_IDLE));
        }
        assert_eq!(done.lock().unwrap().len(), 3 * keys.len());
        lanes.close();
        for _ in 0..MOST_IDLE {
            tokio::task::yield_now().await;
        }
        assert_eq!(Arc::strong_count(&lanes.state), 1, "all have ended");
    }

    #[tokio::test(start_paused = true)]
    async fn closing_ends_with_the_item_under_way() {
        let done = Done::default();
        let lanes = lanes(1, &done);
        for (key, n) in [("k", 0), ("k", 1), ("l", 0)] {
            lanes.push(key, (key, n));
        }
        // Begun, not only pushed.
        tokio::task::yield_now().await;
        lanes.close();
        lanes.push("m", ("m", 0));
        lanes.idle().await;
        assert_eq!(*done.lock().unwrap(), [("k", 0, 1)]);
    }
}
