//! What the gateway knows of each device, for as long as the process lives: the key last accepted, the values last
//! seen, the items pushed, and what the table's `remember` has made.
//!
//! Only devices that the upstream has accepted get a place, so that strangers cannot push anybody
//! out; the least recently used one makes room.

mod filter_state;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use jaq_json::Map;
use lru::LruCache;

use self::filter_state::{FilterState, Seen};
use super::items::{Item, Items};
use crate::{
    call::{Authorization, StatusCode},
    filter::{self, MAX_OUTPUTS, Val},
    fingerprint::fingerprint,
    secret::Secret,
    table::identity::Speaker,
};

/// Most pushed items kept per device; the oldest is forgotten first. As many as two runs of a filter put out.
const MAX_ITEMS: usize = 2 * MAX_OUTPUTS;
/// A device may keep [`MAX_ITEMS`] as long as all devices together keep fewer than this many for each device that
/// may be known; beyond that, this many.
const FAIR_ITEMS: usize = 64;
/// Most bytes remembered per device; more is not remembered at all.
const MAX_MEMORY_BYTES: usize = 4096;

/// All known devices.
pub(super) struct Devices {
    known: Mutex<LruCache<Arc<str>, Device>>,
    capacity: usize,
    /// Pushed items kept, of all devices.
    items: AtomicUsize,
}

#[derive(Default)]
struct Device {
    /// The key last accepted; none as long as the API has judged no key of this device.
    key: Option<Secret>,
    state: FilterState,
    pushed: Items,
}

/// What [`Devices::remember`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remembered {
    /// Nothing: it is remembered already.
    Unchanged,
    /// The object is remembered.
    Changed,
    /// Nothing: it is no object, or more than 4 KiB. What was remembered before still is.
    Refused,
}

/// The value that an answer has at one entry of `then`, if it is compared with the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Observed {
    entry: u64,
    value: Option<u64>,
}

impl Observed {
    /// A value.
    pub(super) fn of(entry: u64, value: &[u8]) -> Self {
        Self { entry, value: Some(fingerprint(value)) }
    }

    /// An entry that runs whatever was seen before.
    pub(super) fn always(entry: u64) -> Self {
        Self { entry, value: None }
    }

    fn seen(self) -> Option<Seen> {
        self.value.map(|value| Seen { entry: self.entry, value })
    }
}

impl Devices {
    /// A memory for at most `capacity` devices, `remembered_devices` in the configuration.
    pub(super) fn new(capacity: usize) -> Self {
        // A bounded one would allocate room for all at once; `accept` keeps it within `capacity`.
        let known = Mutex::new(LruCache::unbounded());
        Self { known, capacity: capacity.max(1), items: AtomicUsize::new(0) }
    }

    /// The key last accepted upstream for this device.
    pub(super) fn key(&self, device: &str) -> Option<Secret> {
        self.known().get(device).and_then(|known| known.key.clone())
    }

    /// Learns from the answer to a row's own call. If the call carried the device's key, a success makes that key
    /// the one to remember, and a 401 forgets the device. What else a call carries says nothing about any key of a
    /// device: then a success only makes the device known.
    pub(super) fn learn_key(&self, device: &Arc<str>, carried: &Authorization, status: StatusCode) {
        let key = carried.speakers_key();
        if status.is_success() {
            self.accept(device, key);
        } else if status == StatusCode::UNAUTHORIZED
            && let Some(key) = key
        {
            self.refuse(device, key);
        }
    }

    /// Something was fetched for the device. That makes the key that the call carried the one to remember only if the
    /// device is not known: not every endpoint looks at keys.
    pub(super) fn met(&self, device: &Arc<str>, carried: &Authorization) {
        if !self.known().contains(device) {
            self.accept(device, carried.speakers_key());
        }
    }

    fn accept(&self, device: &Arc<str>, key: Option<&Secret>) {
        let mut known = self.known();
        if !known.contains(device) {
            if known.len() >= self.capacity
                && let Some((_, least)) = known.pop_lru()
            {
                self.count(least.pushed.len(), 0);
            }
            known.put(device.clone(), Device::default());
        }
        if let Some(device) = known.get_mut(device)
            && let Some(key) = key
            && device.key.as_ref() != Some(key)
        {
            device.key = Some(key.clone());
        }
    }

    /// If it is the key we know, everything known of the device is forgotten. A stranger's wrong key
    /// changes nothing.
    fn refuse(&self, device: &str, key: &Secret) {
        let mut known = self.known();
        if known.peek(device).is_some_and(|known| known.key.as_ref() == Some(key))
            && let Some(device) = known.pop(device)
        {
            self.count(device.pushed.len(), 0);
        }
    }

    /// What the table told to remember, to whoever holds the accepted key; else null.
    pub(super) fn memory(&self, speaker: &Speaker) -> Val {
        match known_to(speaker, &mut self.known()) {
            Some(known) if !known.state.memory().is_empty() => {
                filter::parse(known.state.memory()).unwrap_or_default()
            }
            _ => Val::Null,
        }
    }

    /// Merges an object into what is remembered.
    pub(super) fn remember(&self, speaker: &Speaker, object: &Val) -> Remembered {
        let Val::Obj(object) = object else { return Remembered::Refused };
        let mut known = self.known();
        let Some(known) = known_to(speaker, &mut known) else { return Remembered::Unchanged };
        let mut memory = match filter::parse(known.state.memory()) {
            Ok(Val::Obj(memory)) => (*memory).clone(),
            _ => Map::default(),
        };
        for (name, value) in object.iter() {
            memory.insert(name.clone(), value.clone());
        }
        // To a filter, null and not there are the same.
        memory.retain(|_, value| !matches!(value, Val::Null));
        let text = if memory.is_empty() {
            Ok(Bytes::new())
        } else {
            filter::to_json(&Val::obj(memory), MAX_MEMORY_BYTES)
        };
        let Ok(text) = text else { return Remembered::Refused };
        if *text == *known.state.memory() {
            return Remembered::Unchanged;
        }
        known.state.remember(&text);
        Remembered::Changed
    }

    /// Whether this answer, given by its fingerprint, has no effect, as last time: see `filter_state`.
    pub(super) fn is_without_effect(&self, speaker: &Speaker, answer: u64) -> bool {
        known_to(speaker, &mut self.known())
            .is_some_and(|known| known.state.is_without_effect(answer))
    }

    /// This answer, given by its fingerprint, has had no effect.
    pub(super) fn mark_without_effect(&self, speaker: &Speaker, answer: u64) {
        if let Some(known) = known_to(speaker, &mut self.known()) {
            known.state.mark_without_effect(answer);
        }
    }

    /// Whether the value differs from the one last seen at that entry of `then`.
    pub(super) fn has_changed(&self, device: &str, observed: Observed) -> bool {
        let seen = |known: &Device| observed.seen().is_some_and(|seen| known.state.has_seen(seen));
        !self.known().peek(device).is_some_and(seen)
    }

    /// What was observed has been dealt with.
    pub(super) fn mark_seen(&self, device: &str, observed: Observed) {
        if let Some(seen) = observed.seen()
            && let Some(known) = self.known().peek_mut(device)
        {
            known.state.see(seen);
        }
    }

    /// Whether the item was pushed within the last `period`.
    pub(super) fn pushed_within(&self, device: &str, item: Item, period: Duration) -> bool {
        self.known().peek(device).is_some_and(|known| known.pushed.has(item, period))
    }

    /// The item has been pushed.
    pub(super) fn mark_pushed(&self, device: &str, item: Item) {
        if let Some(known) = self.known().peek_mut(device) {
            let before = known.pushed.len();
            let few = self.items.load(Ordering::Relaxed) < self.capacity.saturating_mul(FAIR_ITEMS);
            known.pushed.add(item, if few { MAX_ITEMS } else { FAIR_ITEMS });
            self.count(before, known.pushed.len());
        }
    }

    /// The device has dealt with what was pushed on this topic.
    pub(super) fn forget_pushed_on(&self, device: &str, topic: &str) {
        if let Some(known) = self.known().peek_mut(device) {
            let before = known.pushed.len();
            known.pushed.forget(topic);
            self.count(before, known.pushed.len());
        }
    }

    /// A device kept `before` items, and keeps `now`. Called under the lock.
    fn count(&self, before: usize, now: usize) {
        let items = self.items.load(Ordering::Relaxed);
        self.items.store(items.saturating_sub(before) + now, Ordering::Relaxed);
    }

    fn known(&self) -> MutexGuard<'_, LruCache<Arc<str>, Device>> {
        // A panic elsewhere cannot leave an entry half-written: each is changed in one step.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is known of the device, for whoever holds the accepted key: a stranger reads and changes nothing.
fn known_to<'k>(
    speaker: &Speaker,
    known: &'k mut LruCache<Arc<str>, Device>,
) -> Option<&'k mut Device> {
    known.peek_mut(&speaker.device).filter(|known| known.key == speaker.key)
}

#[cfg(test)]
mod tests;
