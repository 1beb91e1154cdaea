//! What the gateway knows of each device, for as long as the process lives: the key last accepted,
//! what it has seen and pushed, and what the table told it to remember.
//!
//! Only devices that the upstream has accepted get a place, so that strangers cannot push anybody
//! out; the least recently used one makes room.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jaq_json::Map;
use lru::LruCache;
use tokio::time::Instant;

use crate::{
    call::{Caller, StatusCode},
    filter::{self, Val},
    fingerprint::fingerprint,
    secret::Secret,
};

/// Most pushed items kept per device; the oldest is forgotten first.
const MAX_ITEMS: usize = 64;
/// Most bytes remembered per device; more is not remembered at all.
const MAX_MEMORY_BYTES: usize = 4096;

/// All known devices.
pub struct Devices {
    known: Mutex<LruCache<Arc<str>, Device>>,
    capacity: usize,
}

struct Device {
    key: Secret,
    /// The value last seen at each entry of `then`.
    seen: Vec<News>,
    /// What was pushed, on which topic, and when.
    pushed: Vec<(Item, Instant)>,
    /// A JSON object, as text.
    memory: Box<[u8]>,
}

/// Something that an answer says, at one entry of `then`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct News {
    entry: u64,
    value: Option<u64>,
}

impl News {
    /// A value.
    pub fn of(entry: u64, value: &[u8]) -> Self {
        Self { entry, value: Some(fingerprint(value)) }
    }

    /// Nothing to compare with next time.
    pub fn none(entry: u64) -> Self {
        Self { entry, value: None }
    }
}

/// A push, told apart by its topic and by what identifies it there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    topic: u64,
    id: u64,
}

impl Item {
    /// An item identified by `id` on `topic`.
    pub fn new(topic: &str, id: &[u8]) -> Self {
        Self { topic: fingerprint(topic), id: fingerprint(id) }
    }
}

impl Devices {
    /// A memory for at most `capacity` devices.
    pub fn new(capacity: usize) -> Self {
        Self { known: Mutex::new(LruCache::unbounded()), capacity: capacity.max(1) }
    }

    /// The key last accepted upstream for this device.
    pub fn key(&self, device: &str) -> Option<Secret> {
        self.known().get(device).map(|known| known.key.clone())
    }

    /// What the upstream's answer says of the caller's key: a success makes it the one to remember,
    /// a 401 forgets it.
    pub fn verdict(&self, caller: &Caller<'_>, status: StatusCode) {
        if status.is_success() {
            self.accepted(&caller.device, &caller.key);
        } else if status == StatusCode::UNAUTHORIZED {
            self.refused(&caller.device, &caller.key);
        }
    }

    fn accepted(&self, device: &Arc<str>, key: &Secret) {
        let mut known = self.known();
        if let Some(device) = known.get_mut(device) {
            if device.key != *key {
                device.key = key.clone();
            }
            return;
        }
        if known.len() >= self.capacity {
            known.pop_lru();
        }
        let fresh = Device {
            key: key.clone(),
            seen: Vec::new(),
            pushed: Vec::new(),
            memory: Box::default(),
        };
        known.put(device.clone(), fresh);
    }

    /// If it is the key we know, everything known of the device is forgotten. A stranger's wrong key
    /// changes nothing.
    fn refused(&self, device: &str, key: &Secret) {
        let mut known = self.known();
        if known.peek(device).is_some_and(|known| known.key == *key) {
            known.pop(device);
        }
    }

    /// What the table told to remember, to whoever holds the accepted key; else null.
    pub fn memory(&self, caller: &Caller<'_>) -> Val {
        let known = self.known();
        match known.peek(&caller.device) {
            Some(known) if known.key == caller.key && !known.memory.is_empty() => {
                filter::parse(&known.memory).unwrap_or_default()
            }
            _ => Val::Null,
        }
    }

    /// Merges an object into what is remembered. Says whether it fits; what does not is dropped.
    pub fn remember(&self, device: &str, news: &Val) -> bool {
        let Val::Obj(news) = news else { return false };
        let mut known = self.known();
        let Some(known) = known.peek_mut(device) else { return true };
        let mut memory = match filter::parse(&known.memory) {
            Ok(Val::Obj(memory)) => (*memory).clone(),
            _ => Map::default(),
        };
        for (name, value) in news.iter() {
            memory.insert(name.clone(), value.clone());
        }
        let text = filter::to_json(&Val::obj(memory));
        let fits = text.len() <= MAX_MEMORY_BYTES;
        if fits && *text != *known.memory {
            known.memory = (*text).into();
        }
        fits
    }

    /// Whether the value differs from the one last seen at that entry of `then`.
    pub fn is_news(&self, device: &str, news: News) -> bool {
        self.known().peek(device).is_none_or(|known| !known.seen.contains(&news))
    }

    /// The news has been dealt with.
    pub fn saw(&self, device: &str, news: News) {
        if news.value.is_some()
            && let Some(known) = self.known().peek_mut(device)
        {
            known.seen.retain(|seen| seen.entry != news.entry);
            known.seen.push(news);
        }
    }

    /// Whether the item was pushed within the last `period`.
    pub fn pushed_within(&self, device: &str, item: Item, period: Duration) -> bool {
        self.known().peek(device).is_some_and(|known| {
            known.pushed.iter().any(|(pushed, at)| *pushed == item && at.elapsed() < period)
        })
    }

    /// The item has been pushed.
    pub fn pushed(&self, device: &str, item: Item) {
        if let Some(known) = self.known().peek_mut(device) {
            known.pushed.retain(|(pushed, _)| *pushed != item);
            if known.pushed.len() == MAX_ITEMS {
                known.pushed.remove(0);
            }
            known.pushed.push((item, Instant::now()));
        }
    }

    /// The device has dealt with what was pushed on this topic.
    pub fn answered(&self, device: &str, topic: &str) {
        if let Some(known) = self.known().peek_mut(device) {
            let topic = fingerprint(topic);
            known.pushed.retain(|(pushed, _)| pushed.topic != topic);
        }
    }

    fn known(&self) -> MutexGuard<'_, LruCache<Arc<str>, Device>> {
        // A panic elsewhere cannot leave an entry half-written: each is changed in one step.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topic::Captures;

    fn devices() -> (Devices, Arc<str>, Secret) {
        let devices = Devices::new(2);
        let (d1, key): (Arc<str>, _) = ("d1".into(), Secret::new("k1"));
        devices.accepted(&d1, &key);
        (devices, d1, key)
    }

    #[test]
    fn only_the_known_key_is_forgotten_on_401() {
        let (devices, d1, key) = devices();
        devices.refused(&d1, &Secret::new("wrong"));
        assert_eq!(devices.key(&d1), Some(key.clone()));
        devices.refused(&d1, &key);
        assert_eq!(devices.key(&d1), None);
    }

    #[test]
    fn the_least_recently_used_device_makes_room() {
        let (devices, d1, key) = devices();
        devices.accepted(&"d2".into(), &key);
        devices.accepted(&d1, &key);
        devices.accepted(&"d3".into(), &key);
        assert!(devices.key("d2").is_none());
        assert!(devices.key("d1").is_some() && devices.key("d3").is_some());
    }

    #[test]
    fn memory_is_merged_bounded_and_only_for_the_key_holder() {
        let (devices, d1, key) = devices();
        let json = |text: &str| filter::parse(text.as_bytes()).unwrap();
        assert!(devices.remember(&d1, &json(r#"{"a":1,"b":2}"#)));
        assert!(devices.remember(&d1, &json(r#"{"b":3}"#)));
        let memory = |key: &Secret| {
            let captures = Captures::default();
            devices.memory(&Caller { device: d1.clone(), key: key.clone(), captures: &captures })
        };
        assert_eq!(memory(&key).to_string(), r#"{"a":1,"b":3}"#);
        assert_eq!(memory(&Secret::new("other")), Val::Null);
        assert!(!devices.remember(&d1, &json(&format!("{{\"c\":\"{}\"}}", "x".repeat(5000)))));
        assert_eq!(memory(&key).to_string(), r#"{"a":1,"b":3}"#);
    }

    #[tokio::test(start_paused = true)]
    async fn items_are_told_apart_and_come_due() {
        let (devices, d1, _) = devices();
        let (item, minute) = (Item::new("t", b"1"), Duration::from_mins(1));
        assert!(!devices.pushed_within(&d1, item, minute));
        devices.pushed(&d1, item);
        assert!(devices.pushed_within(&d1, item, minute));
        assert!(!devices.pushed_within(&d1, Item::new("t", b"2"), minute));
        assert!(!devices.pushed_within(&d1, Item::new("u", b"1"), minute));
        devices.answered(&d1, "u");
        assert!(devices.pushed_within(&d1, item, minute));
        tokio::time::advance(minute).await;
        assert!(!devices.pushed_within(&d1, item, minute));
        devices.pushed(&d1, item);
        devices.answered(&d1, "t");
        assert!(!devices.pushed_within(&d1, item, minute));
    }

    #[test]
    fn news_is_what_differs_from_last_time() {
        let (devices, d1, _) = devices();
        let news = News::of(0, b"1");
        assert!(devices.is_news(&d1, news));
        devices.saw(&d1, news);
        assert!(!devices.is_news(&d1, news));
        assert!(devices.is_news(&d1, News::of(1, b"1")) && devices.is_news(&d1, News::of(0, b"2")));
    }
}
