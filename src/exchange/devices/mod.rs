//! What the gateway knows of each device, for as long as the process lives: the key last accepted, the values last
//! seen, the items pushed, and what the table's `remember` has made.
//!
//! Only devices that the upstream has accepted get a place, so that strangers cannot push anybody
//! out; the least recently used one makes room.

mod told;

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

use self::told::{Seen, Told};
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
    told: Told,
    pushed: Items,
}

/// What became of an object that was to be remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// It was known already.
    Known,
    /// It is remembered.
    New,
    /// It is no object, or more than 4 KiB: what was remembered before still is.
    Not,
}

/// Something that an answer says, at one entry of `then`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct News {
    entry: u64,
    value: Option<u64>,
}

impl News {
    /// A value.
    pub(super) fn of(entry: u64, value: &[u8]) -> Self {
        Self { entry, value: Some(fingerprint(value)) }
    }

    /// Nothing to compare with next time.
    pub(super) fn none(entry: u64) -> Self {
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
            Some(known) if !known.told.memory().is_empty() => {
                filter::parse(known.told.memory()).unwrap_or_default()
            }
            _ => Val::Null,
        }
    }

    /// Merges an object into what is remembered.
    pub(super) fn remember(&self, speaker: &Speaker, news: &Val) -> Kept {
        let Val::Obj(news) = news else { return Kept::Not };
        let mut known = self.known();
        let Some(known) = known_to(speaker, &mut known) else { return Kept::Known };
        let mut memory = match filter::parse(known.told.memory()) {
            Ok(Val::Obj(memory)) => (*memory).clone(),
            _ => Map::default(),
        };
        for (name, value) in news.iter() {
            memory.insert(name.clone(), value.clone());
        }
        // To a filter, null and not there are the same.
        memory.retain(|_, value| !matches!(value, Val::Null));
        let text = if memory.is_empty() {
            Ok(Bytes::new())
        } else {
            filter::to_json(&Val::obj(memory), MAX_MEMORY_BYTES)
        };
        let Ok(text) = text else { return Kept::Not };
        if *text == *known.told.memory() {
            return Kept::Known;
        }
        known.told.remember(&text);
        Kept::New
    }

    /// Whether nothing follows from this answer, as last time: see `devices::told`.
    pub(super) fn is_quiet(&self, speaker: &Speaker, answer: u64) -> bool {
        known_to(speaker, &mut self.known()).is_some_and(|known| known.told.is_quiet(answer))
    }

    /// Nothing followed from this answer.
    pub(super) fn mark_quiet(&self, speaker: &Speaker, answer: u64) {
        if let Some(known) = known_to(speaker, &mut self.known()) {
            known.told.mark_quiet(answer);
        }
    }

    /// Whether the value differs from the one last seen at that entry of `then`.
    pub(super) fn is_news(&self, device: &str, news: News) -> bool {
        let seen = |known: &Device| news.seen().is_some_and(|seen| known.told.has_seen(seen));
        !self.known().peek(device).is_some_and(seen)
    }

    /// The news has been dealt with.
    pub(super) fn mark_seen(&self, device: &str, news: News) {
        if let Some(news) = news.seen()
            && let Some(known) = self.known().peek_mut(device)
        {
            known.told.see(news);
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
