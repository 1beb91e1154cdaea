//! Counts how much of the window each device has, so that one device with many pending messages does not keep the others
//! out.
//!
//! The broker decides the order in which it sends, and sends no more at once than the window allows. When the window is
//! nearly full, and one device has more than its fair share of it and makes no progress, the device's newest messages
//! are refused with a reason, which makes room. While there is room, or the device makes progress, nothing is refused.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use foldhash::HashMap;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeMetric},
    metrics::gauge::ConstGauge,
};
use tokio::time::Instant;

/// The window counts as nearly full when this much of it is in use, in quarters.
const NEARLY_FULL: usize = 3;
/// A device's fair share of the window, in quarters.
const FAIR_SHARE: usize = 1;

/// Messages and bytes that are pending, by device.
#[derive(Default)]
pub struct Shares {
    devices: Mutex<HashMap<Arc<str>, Share>>,
    messages: AtomicUsize,
    bytes: AtomicUsize,
}

/// What one device has of the window. Times are readings of the clock that runs while the API is known to answer, so that
/// no device counts as stuck in an outage.
#[derive(Default)]
struct Share {
    /// When each of its pending messages arrived, oldest first, by that clock and by that of the wall.
    arrivals: VecDeque<(Duration, Instant)>,
    bytes: usize,
    /// When a message of the device was last finished, or when the first one arrived.
    progress: Option<Duration>,
}

/// How much may be pending in all.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// Messages.
    pub messages: usize,
    /// Bytes.
    pub bytes: usize,
}

/// A device that has more than its fair share of a window that is nearly full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverShare {
    /// How many of its messages are pending.
    pub messages: usize,
    /// How long its oldest message has been pending.
    pub oldest: Duration,
    /// How long ago the last of its messages was finished.
    pub stuck: Duration,
}

/// A message's place in the window, for as long as this lives.
pub struct Place {
    shares: Arc<Shares>,
    device: Arc<str>,
    bytes: usize,
}

impl Place {
    /// The message is finished, at this reading of the clock.
    pub fn done(self, clock: Duration) {
        if let Some(own) = self.shares.devices().get_mut(&self.device) {
            own.progress = Some(clock);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut devices = self.shares.devices();
        if let Some(own) = devices.get_mut(&self.device) {
            own.arrivals.pop_front();
            own.bytes -= self.bytes;
            if own.arrivals.is_empty() {
                devices.remove(&self.device);
            }
        }
        self.shares.messages.fetch_sub(1, Ordering::Relaxed);
        self.shares.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Shares {
    /// A message of this device that arrived then is pending from now on; `clock` is the reading of the clock.
    pub fn take(
        self: &Arc<Self>,
        device: &Arc<str>,
        bytes: usize,
        clock: Duration,
        arrived: Instant,
    ) -> Place {
        let mut devices = self.devices();
        let own = devices.entry(device.clone()).or_default();
        own.arrivals.push_back((clock, arrived));
        own.bytes += bytes;
        own.progress.get_or_insert(clock);
        self.messages.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Place { shares: self.clone(), device: device.clone(), bytes }
    }

    /// How many messages are pending in all.
    pub fn messages(&self) -> usize {
        self.messages.load(Ordering::Relaxed)
    }

    /// What the device has at this reading of the clock, if the window is nearly full and that is more than a fair share.
    pub fn over_share(&self, device: &str, window: Window, clock: Duration) -> Option<OverShare> {
        let reaches = |part: usize, whole: usize, quarters: usize| {
            part.saturating_mul(4) >= whole.saturating_mul(quarters)
        };
        let (messages, bytes) =
            (self.messages.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed));
        let full_of_messages = reaches(messages, window.messages, NEARLY_FULL);
        let full_of_bytes = reaches(bytes, window.bytes, NEARLY_FULL);
        if !full_of_messages && !full_of_bytes {
            return None;
        }
        let devices = self.devices();
        let own = devices.get(device)?;
        let is_over = full_of_messages && reaches(own.arrivals.len(), window.messages, FAIR_SHARE)
            || full_of_bytes && reaches(own.bytes, window.bytes, FAIR_SHARE);
        is_over.then(|| OverShare {
            messages: own.arrivals.len(),
            oldest: clock.saturating_sub(own.arrivals.front().map_or(clock, |(clock, _)| *clock)),
            stuck: clock.saturating_sub(own.progress.unwrap_or(clock)),
        })
    }

    /// The device with the most pending messages, and how many it has.
    pub fn largest(&self) -> Option<(Arc<str>, usize)> {
        let devices = self.devices();
        let largest = devices.iter().max_by_key(|(_, share)| share.arrivals.len());
        largest.map(|(device, share)| (device.clone(), share.arrivals.len()))
    }

    /// How long the oldest message that is pending has been so.
    pub fn oldest(&self) -> Duration {
        let devices = self.devices();
        let oldest = devices.values().filter_map(|share| share.arrivals.front()).map(|(_, at)| at);
        oldest.min().map_or(Duration::ZERO, Instant::elapsed)
    }

    fn devices(&self) -> MutexGuard<'_, HashMap<Arc<str>, Share>> {
        // No code that can panic runs under this lock.
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
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
        let help = "Messages pending of the device with the most of them";
        gauge(&mut encoder, "messages_pending_of_one_device", help, most)?;
        let help = "Bytes of payload of the messages that are pending";
        let bytes = self.bytes.load(Ordering::Relaxed);
        gauge(&mut encoder, "messages_pending_bytes", help, bytes)?;
        let help = "How long the oldest message that is pending has been so";
        gauge(&mut encoder, "oldest_pending_seconds", help, self.oldest().as_secs_f64())
    }
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: impl EncodeGaugeValue,
) -> fmt::Result {
    let gauge = ConstGauge::new(value);
    let kind = gauge.metric_type();
    gauge.encode(encoder.encode_descriptor(name, help, None, kind)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Window = Window { messages: 20, bytes: 1000 };

    fn places(shares: &Arc<Shares>, device: &str, count: usize, bytes: usize) -> Vec<Place> {
        (0..count)
            .map(|_| shares.take(&device.into(), bytes, Duration::ZERO, Instant::now()))
            .collect()
    }

    #[test]
    fn only_more_than_a_fair_share_of_a_full_window_is_too_much() {
        let shares = Arc::<Shares>::default();
        let clock = Duration::from_secs(3);
        let mut a = places(&shares, "a", 14, 1);
        assert_eq!(shares.over_share("a", WINDOW, clock), None, "there is room");
        let b = places(&shares, "b", 1, 1);
        let over = shares.over_share("a", WINDOW, clock).unwrap();
        assert_eq!((over.messages, over.stuck, over.oldest), (14, clock, clock));
        assert_eq!(shares.over_share("b", WINDOW, clock), None, "its share is small");
        let boundless = Window { bytes: usize::MAX, ..WINDOW };
        assert!(shares.over_share("a", boundless, clock).is_some());
        assert_eq!(shares.largest(), Some(("a".into(), 14)));
        // It gets on.
        a.pop().unwrap().done(clock);
        let _more = places(&shares, "b", 2, 1);
        assert_eq!(shares.over_share("a", WINDOW, clock).unwrap().stuck, Duration::ZERO);
        drop((a, b));
        assert_eq!(shares.over_share("a", WINDOW, clock), None);
    }

    #[test]
    fn bytes_count_as_messages_do() {
        let shares = Arc::<Shares>::default();
        let a = places(&shares, "a", 2, 400);
        assert_eq!(shares.over_share("a", WINDOW, Duration::ZERO).unwrap().messages, 2);
        assert_eq!(shares.over_share("b", WINDOW, Duration::ZERO), None);
        drop(a);
        assert!(shares.devices().is_empty() && shares.bytes.load(Ordering::Relaxed) == 0);
    }
}
