//! Who holds how much of what may be pending: one device with many waiting messages must not keep the others out.
//!
//! The broker sends in its own order and no more at once than the window allows. When the window is nearly full, and
//! one device holds more than its share of it and does not get on, then its newest messages are refused, with a
//! reason, and make room. While there is room, or the device gets on, nothing is refused.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::gauge::ConstGauge,
};
/// The window is nearly full when so much of it is in use, in quarters.
const NEARLY_FULL: usize = 3;
/// A device's share of it, in quarters.
const SHARE: usize = 1;

/// Messages and bytes that are pending, by device.
#[derive(Default)]
pub struct Shares {
    held: Mutex<HashMap<Arc<str>, Held>>,
    messages: AtomicUsize,
    bytes: AtomicUsize,
}

/// Times are readings of the clock that runs while the API is known to answer: in an outage nobody is stuck.
#[derive(Default)]
struct Held {
    /// When each of its messages came, in order.
    arrivals: VecDeque<Duration>,
    bytes: usize,
    /// When one of them was done; or when the first came.
    progress: Option<Duration>,
}

/// What may be pending in all.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// Messages.
    pub messages: usize,
    /// Bytes.
    pub bytes: usize,
}

/// How one device stands that holds more than its share of a window that is nearly full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crowd {
    /// Messages that it holds.
    pub messages: usize,
    /// How long its oldest message has been here.
    pub oldest: Duration,
    /// How long none of its messages was done.
    pub stuck: Duration,
}

/// A message's place in the window, for as long as this lives.
pub struct Place {
    shares: Arc<Shares>,
    device: Arc<str>,
    bytes: usize,
}

impl Place {
    /// The message is done, at this reading of the clock.
    pub fn done(self, clock: Duration) {
        if let Some(own) = self.shares.held().get_mut(&self.device) {
            own.progress = Some(clock);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.shares.held();
        if let Some(own) = held.get_mut(&self.device) {
            own.arrivals.pop_front();
            own.bytes -= self.bytes;
            if own.arrivals.is_empty() {
                held.remove(&self.device);
            }
        }
        self.shares.messages.fetch_sub(1, Ordering::Relaxed);
        self.shares.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Shares {
    /// A message of this device is pending, from this reading of the clock on.
    pub fn take(self: &Arc<Self>, device: &Arc<str>, bytes: usize, clock: Duration) -> Place {
        let mut held = self.held();
        let own = held.entry(device.clone()).or_default();
        own.arrivals.push_back(clock);
        own.bytes += bytes;
        own.progress.get_or_insert(clock);
        self.messages.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Place { shares: self.clone(), device: device.clone(), bytes }
    }

    /// Messages that are pending in all.
    pub fn messages(&self) -> usize {
        self.messages.load(Ordering::Relaxed)
    }

    /// How the device stands at this reading of the clock, if the window is nearly full and it holds more than its share.
    pub fn crowd(&self, device: &str, window: Window, clock: Duration) -> Option<Crowd> {
        let over = |part: usize, whole: usize, quarters: usize| {
            part.saturating_mul(4) >= whole.saturating_mul(quarters)
        };
        let (messages, bytes) =
            (self.messages.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed));
        let full_of_messages = over(messages, window.messages, NEARLY_FULL);
        let full_of_bytes = over(bytes, window.bytes, NEARLY_FULL);
        if !full_of_messages && !full_of_bytes {
            return None;
        }
        let held = self.held();
        let own = held.get(device)?;
        let much = full_of_messages && over(own.arrivals.len(), window.messages, SHARE)
            || full_of_bytes && over(own.bytes, window.bytes, SHARE);
        much.then(|| Crowd {
            messages: own.arrivals.len(),
            oldest: clock.saturating_sub(own.arrivals.front().copied().unwrap_or(clock)),
            stuck: clock.saturating_sub(own.progress.unwrap_or(clock)),
        })
    }

    /// The device that holds most, and how many messages.
    pub fn largest(&self) -> Option<(Arc<str>, usize)> {
        let held = self.held();
        let largest = held.iter().max_by_key(|(_, held)| held.arrivals.len());
        largest.map(|(device, held)| (device.clone(), held.arrivals.len()))
    }

    fn held(&self) -> MutexGuard<'_, HashMap<Arc<str>, Held>> {
        // No code that can panic runs under this lock.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Shares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Shares({:?} messages)", self.messages)
    }
}

impl Collector for Shares {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let most = self.largest().map_or(0, |(_, messages)| messages);
        let gauge = ConstGauge::new(i64::try_from(most).unwrap_or(i64::MAX));
        let family = encoder.encode_descriptor(
            "messages_pending_of_one_device",
            "Messages pending of the device that has most of them",
            None,
            gauge.metric_type(),
        )?;
        gauge.encode(family)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Window = Window { messages: 20, bytes: 1000 };

    fn places(shares: &Arc<Shares>, device: &str, count: usize, bytes: usize) -> Vec<Place> {
        (0..count).map(|_| shares.take(&device.into(), bytes, Duration::ZERO)).collect()
    }

    #[test]
    fn only_who_holds_more_than_a_share_of_a_full_window_crowds_it() {
        let shares = Arc::<Shares>::default();
        let clock = Duration::from_secs(3);
        let mut a = places(&shares, "a", 14, 1);
        assert_eq!(shares.crowd("a", WINDOW, clock), None, "there is room");
        let b = places(&shares, "b", 1, 1);
        let crowd = shares.crowd("a", WINDOW, clock).unwrap();
        assert_eq!((crowd.messages, crowd.stuck, crowd.oldest), (14, clock, clock));
        assert_eq!(shares.crowd("b", WINDOW, clock), None, "its share is small");
        let boundless = Window { bytes: usize::MAX, ..WINDOW };
        assert!(shares.crowd("a", boundless, clock).is_some());
        assert_eq!(shares.largest(), Some(("a".into(), 14)));
        // It gets on.
        a.pop().unwrap().done(clock);
        let _more = places(&shares, "b", 2, 1);
        assert_eq!(shares.crowd("a", WINDOW, clock).unwrap().stuck, Duration::ZERO);
        drop((a, b));
        assert_eq!(shares.crowd("a", WINDOW, clock), None);
    }

    #[test]
    fn bytes_count_as_messages_do() {
        let shares = Arc::<Shares>::default();
        let a = places(&shares, "a", 2, 400);
        assert_eq!(shares.crowd("a", WINDOW, Duration::ZERO).unwrap().messages, 2);
        assert_eq!(shares.crowd("b", WINDOW, Duration::ZERO), None);
        drop(a);
        assert!(shares.held().is_empty() && shares.bytes.load(Ordering::Relaxed) == 0);
    }
}
