//! One at a time per key, in order; keys side by side.
//!
//! A lane exists only while its key has something to do: one task that serves its items one after
//! another. Nothing is kept for a key that is idle. How much can wait in all lanes together is
//! bounded by whoever pushes: the broker's Receive Maximum.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

/// The lanes.
pub struct Lanes<K, T> {
    state: Arc<Mutex<State<K, T>>>,
    /// How many lanes exist, for [`Lanes::idle`].
    running: watch::Sender<usize>,
}

struct State<K, T> {
    waiting: HashMap<K, VecDeque<T>>,
    closed: bool,
}

impl<K, T> Clone for Lanes<K, T> {
    fn clone(&self) -> Self {
        Self { state: self.state.clone(), running: self.running.clone() }
    }
}

impl<K, T> Default for Lanes<K, T> {
    fn default() -> Self {
        let state = State { waiting: HashMap::new(), closed: false };
        Self { state: Arc::new(Mutex::new(state)), running: watch::Sender::new(0) }
    }
}

impl<K, T> Lanes<K, T>
where
    K: Eq + Hash + Clone + Send + 'static,
    T: Send + 'static,
{
    /// Puts an item behind the others of its key; `serve` handles it when its turn comes, and must
    /// not panic. After [`Lanes::close`] the item is dropped.
    pub fn push<F>(&self, key: K, item: T, serve: impl Fn(T) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send,
    {
        let mut state = self.state();
        if state.closed {
            return;
        }
        if let Some(waiting) = state.waiting.get_mut(&key) {
            waiting.push_back(item);
            return;
        }
        state.waiting.insert(key.clone(), VecDeque::new());
        drop(state);
        self.running.send_modify(|lanes| *lanes += 1);
        let lanes = self.clone();
        tokio::spawn(async move {
            let mut next = Some(item);
            while let Some(item) = next {
                serve(item).await;
                next = lanes.next(&key);
            }
            lanes.running.send_modify(|lanes| *lanes -= 1);
        });
    }

    /// Begins no more: every lane ends with the item it is at.
    pub fn close(&self) {
        self.state().closed = true;
    }

    /// Waits until no lane is left.
    pub async fn idle(&self) {
        // The sender is ours, so the channel cannot close before us.
        let _ = self.running.subscribe().wait_for(|lanes| *lanes == 0).await;
    }

    fn next(&self, key: &K) -> Option<T> {
        let mut state = self.state();
        let next = state.waiting.get_mut(key).and_then(VecDeque::pop_front);
        if next.is_none() || state.closed {
            state.waiting.remove(key);
            return None;
        }
        next
    }

    fn state(&self) -> MutexGuard<'_, State<K, T>> {
        // No code that can panic runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{
        sync::mpsc,
        time::{Instant, sleep},
    };

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn order_is_kept_per_key_and_keys_run_side_by_side() {
        let lanes = Lanes::default();
        let (done, mut results) = mpsc::channel(100);
        let began = Instant::now();
        for n in 0..3 {
            for key in ["slow", "quick"] {
                let done = done.clone();
                lanes.push(key, n, move |n| {
                    let done = done.clone();
                    async move {
                        sleep(Duration::from_secs(if key == "slow" { 10 } else { 1 })).await;
                        done.send((key, n, began.elapsed().as_secs())).await.unwrap();
                    }
                });
            }
        }
        lanes.idle().await;
        drop(done);
        let mut order = Vec::new();
        while let Some(result) = results.recv().await {
            order.push(result);
        }
        let quick = [("quick", 0, 1), ("quick", 1, 2), ("quick", 2, 3)];
        let slow = [("slow", 0, 10), ("slow", 1, 20), ("slow", 2, 30)];
        assert_eq!(order, [quick, slow].concat());
        assert!(lanes.state().waiting.is_empty(), "an idle key leaves nothing behind");
    }

    #[tokio::test(start_paused = true)]
    async fn closing_ends_with_the_item_under_way() {
        let lanes = Lanes::default();
        let (done, mut results) = mpsc::channel(100);
        for n in 0..3 {
            let done = done.clone();
            lanes.push("k", n, move |n| {
                let done = done.clone();
                async move {
                    sleep(Duration::from_secs(1)).await;
                    done.send(n).await.unwrap();
                }
            });
        }
        lanes.close();
        lanes.idle().await;
        drop(done);
        assert_eq!(results.recv().await, Some(0));
        assert_eq!(results.recv().await, None);
    }
}
