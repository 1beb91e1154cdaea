//! What the gateway knows of each device, for as long as the process lives: the key last accepted, the values last
//! seen, the items pushed, and what the table's `remember` has made.
//!
//! Only devices that the upstream has accepted get a place, so that a stranger cannot push another device out; a new device
//! replaces the one that was used least recently. A device that needs a key on some rows of the table and none on others has
//! two places: what was learnt with its key cannot be read without it, and what is read with it cannot be planted without it.

mod filter_state;
mod lru_map;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use jaq_json::Map;

use self::{
    filter_state::{FilterState, Seen},
    lru_map::LruMap,
};
use super::items::{Item, Items};
use crate::{
    call::{Authorization, StatusCode},
    filter::{self, MAX_OUTPUTS, Val},
    fingerprint::fingerprint,
    secrets::Secret,
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
    known: Mutex<LruMap<Name, Device>>,
    capacity: usize,
    /// Pushed items kept, of all devices.
    items: AtomicUsize,
}

/// Whose place it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Name {
    device: Arc<str>,
    /// Whether who speaks for the device shows a key.
    shows_key: bool,
}

impl Name {
    fn of(speaker: &Speaker) -> Self {
        Self { device: speaker.device.clone(), shows_key: speaker.key.is_some() }
    }
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
        // `accept` keeps it within `capacity`.
        let known = Mutex::new(LruMap::new());
        Self { known, capacity: capacity.max(1), items: AtomicUsize::new(0) }
    }

    /// The key last accepted upstream for this device.
    pub(super) fn key(&self, device: &Arc<str>) -> Option<Secret> {
        let name = Name { device: device.clone(), shows_key: true };
        self.known().get_mut(&name).and_then(|known| known.key.clone())
    }

    /// Learns from the answer to a row's own call. If the call carried the device's key, a success makes that key
    /// the one to remember, and a 401 forgets the device. What else a call carries says nothing about any key of a
    /// device: then a success only makes the device known.
    pub(super) fn learn_key(&self, speaker: &Speaker, carried: &Authorization, status: StatusCode) {
        let key = carried.speakers_key();
        if status.is_success() {
            self.accept(Name::of(speaker), key);
        } else if status == StatusCode::UNAUTHORIZED
            && let Some(key) = key
        {
            self.refuse(&Name::of(speaker), key);
        }
    }

    /// Something was fetched for the device. That makes the key that the call carried the one to remember only if the
    /// device is not known: not every endpoint looks at keys.
    pub(super) fn met(&self, speaker: &Speaker, carried: &Authorization) {
        let name = Name::of(speaker);
        let is_known = self.known().peek_mut(&name).is_some();
        if !is_known {
            self.accept(name, carried.speakers_key());
        }
    }

    fn accept(&self, name: Name, key: Option<&Secret>) {
        let mut known = self.known();
        if let Some(device) = known.get_mut(&name) {
            if key.is_some() && device.key.as_ref() != key {
                device.key = key.cloned();
            }
            return;
        }
        if known.len() >= self.capacity
            && let Some(oldest) = known.remove_oldest()
        {
            self.count(oldest.pushed.len(), 0);
        }
        known.insert(name, Device { key: key.cloned(), ..Device::default() });
    }

    /// If it is the key we know, everything known of the device by its key is forgotten. A stranger's wrong key
    /// changes nothing.
    fn refuse(&self, name: &Name, key: &Secret) {
        let mut known = self.known();
        if known.peek_mut(name).is_some_and(|known| known.key.as_ref() == Some(key))
            && let Some(device) = known.remove(name)
        {
            self.count(device.pushed.len(), 0);
        }
    }

    /// What the table's `remember` has made, for a speaker with the accepted key; else null.
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
    pub(super) fn has_changed(&self, speaker: &Speaker, observed: Observed) -> bool {
        let mut known = self.known();
        let seen = observed.seen().zip(known_to(speaker, &mut known));
        !seen.is_some_and(|(seen, known)| known.state.has_seen(seen))
    }

    /// What was observed has been dealt with.
    pub(super) fn mark_seen(&self, speaker: &Speaker, observed: Observed) {
        if let Some(seen) = observed.seen()
            && let Some(known) = known_to(speaker, &mut self.known())
        {
            known.state.see(seen);
        }
    }

    /// Whether the item was pushed within the last `period`.
    pub(super) fn pushed_within(&self, speaker: &Speaker, item: Item, period: Duration) -> bool {
        known_to(speaker, &mut self.known()).is_some_and(|known| known.pushed.has(item, period))
    }

    /// The item has been pushed.
    pub(super) fn mark_pushed(&self, speaker: &Speaker, item: Item) {
        if let Some(known) = known_to(speaker, &mut self.known()) {
            let before = known.pushed.len();
            let few = self.items.load(Ordering::Relaxed) < self.capacity.saturating_mul(FAIR_ITEMS);
            known.pushed.add(item, if few { MAX_ITEMS } else { FAIR_ITEMS });
            self.count(before, known.pushed.len());
        }
    }

    /// The device has dealt with what was pushed on this topic, whether its message has shown a key or not: what is
    /// forgotten here can only be pushed again, to the device itself.
    pub(super) fn forget_pushed_on(&self, device: &Arc<str>, topic: &str) {
        let mut known = self.known();
        for shows_key in [true, false] {
            if let Some(known) = known.peek_mut(&Name { device: device.clone(), shows_key }) {
                let before = known.pushed.len();
                known.pushed.forget(topic);
                self.count(before, known.pushed.len());
            }
        }
    }

    /// How many devices are known. One that speaks with a key and without one counts twice.
    pub(super) fn len(&self) -> usize {
        self.known().len()
    }

    /// A device kept `before` items, and keeps `now`. Called under the lock.
    fn count(&self, before: usize, now: usize) {
        let items = self.items.load(Ordering::Relaxed);
        self.items.store(items.saturating_sub(before) + now, Ordering::Relaxed);
    }

    fn known(&self) -> MutexGuard<'_, LruMap<Name, Device>> {
        // A panic elsewhere cannot leave an entry half-written: each is changed in one step.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is known of the device, for a speaker with the accepted key, or with no key where none is asked for. A stranger
/// neither reads nor changes it.
fn known_to<'k>(speaker: &Speaker, known: &'k mut LruMap<Name, Device>) -> Option<&'k mut Device> {
    known.peek_mut(&Name::of(speaker)).filter(|known| known.key == speaker.key)
}

#[cfg(test)]
mod tests;
