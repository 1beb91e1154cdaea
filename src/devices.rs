//! What the gateway knows of each device, for as long as the process lives: the key last accepted,
//! what it has seen and pushed, and what the table told it to remember.
//!
//! Only devices that the upstream has accepted get a place, so that strangers cannot push anybody
//! out; the least recently used one makes room.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
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
    /// The value last seen at each entry of `then`. Boxed like the others: there are many devices, and
    /// few entries that seldom change.
    seen: Box<[Seen]>,
    /// What was pushed, on which topic, and when.
    pushed: Box<[(Item, Instant)]>,
    /// A JSON object, as text.
    memory: Box<[u8]>,
    /// The last answer that nothing followed from, as long as the memory is the same.
    quiet: Option<u64>,
}

/// What became of an object that was to be remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It was known already.
    Known,
    /// It is remembered.
    New,
    /// It is no object, or too much: what was known before still is.
    Not,
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

/// At one entry of `then`, the value last seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    entry: u64,
    value: u64,
}

impl News {
    fn seen(self) -> Option<Seen> {
        self.value.map(|value| Seen { entry: self.entry, value })
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
            seen: Box::default(),
            pushed: Box::default(),
            memory: Box::default(),
            quiet: None,
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

    /// Merges an object into what is remembered.
    pub fn remember(&self, caller: &Caller<'_>, news: &Val) -> Kept {
        let Val::Obj(news) = news else { return Kept::Not };
        let mut known = self.known();
        let Some(known) = known_to(caller, &mut known) else { return Kept::Known };
        let mut memory = match filter::parse(&known.memory) {
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
        if *text == *known.memory {
            return Kept::Known;
        }
        known.memory = (*text).into();
        known.quiet = None;
        Kept::New
    }

    /// Whether this answer is the last one that nothing followed from. Filters are functions of the
    /// answer and the memory: nothing would follow from it now.
    pub fn is_quiet(&self, caller: &Caller<'_>, answer: u64) -> bool {
        known_to(caller, &mut self.known()).is_some_and(|known| known.quiet == Some(answer))
    }

    /// Nothing followed from this answer.
    pub fn quiet(&self, caller: &Caller<'_>, answer: u64) {
        if let Some(known) = known_to(caller, &mut self.known()) {
            known.quiet = Some(answer);
        }
    }

    /// Whether the value differs from the one last seen at that entry of `then`.
    pub fn is_news(&self, device: &str, news: News) -> bool {
        let seen = |known: &Device| news.seen().is_some_and(|seen| known.seen.contains(&seen));
        !self.known().peek(device).is_some_and(seen)
    }

    /// The news has been dealt with.
    pub fn saw(&self, device: &str, news: News) {
        if let Some(news) = news.seen()
            && let Some(known) = self.known().peek_mut(device)
        {
            let others = known.seen.iter().filter(|seen| seen.entry != news.entry);
            known.seen = others.copied().chain([news]).collect();
            // The last quiet answer may be news again: it may say what was before.
            known.quiet = None;
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
            let others: Vec<_> =
                known.pushed.iter().filter(|(pushed, _)| *pushed != item).collect();
            let oldest = (others.len() + 1).saturating_sub(MAX_ITEMS);
            let kept = others.into_iter().skip(oldest).copied();
            known.pushed = kept.chain([(item, Instant::now())]).collect();
        }
    }

    /// The device has dealt with what was pushed on this topic.
    pub fn answered(&self, device: &str, topic: &str) {
        if let Some(known) = self.known().peek_mut(device) {
            let topic = fingerprint(topic);
            let others = known.pushed.iter().filter(|(pushed, _)| pushed.topic != topic);
            known.pushed = others.copied().collect();
        }
    }

    fn known(&self) -> MutexGuard<'_, LruCache<Arc<str>, Device>> {
        // A panic elsewhere cannot leave an entry half-written: each is changed in one step.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is known of the device, for whoever holds the accepted key: a stranger changes nothing.
fn known_to<'k>(
    caller: &Caller<'_>,
    known: &'k mut LruCache<Arc<str>, Device>,
) -> Option<&'k mut Device> {
    known.peek_mut(&caller.device).filter(|known| known.key == caller.key)
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
        let captures = Captures::default();
        let caller = |key: Secret| Caller { device: d1.clone(), key, captures: &captures };
        let (own, stranger) = (caller(key), caller(Secret::new("other")));
        let json = |text: &str| filter::parse(text.as_bytes()).unwrap();
        assert_eq!(devices.remember(&own, &json(r#"{"a":1,"b":2}"#)), Kept::New);
        devices.quiet(&own, 7);
        assert_eq!(devices.remember(&own, &json(r#"{"b":2}"#)), Kept::Known);
        assert!(devices.is_quiet(&own, 7) && !devices.is_quiet(&own, 8));
        assert!(!devices.is_quiet(&stranger, 7));
        assert_eq!(devices.remember(&own, &json(r#"{"b":3}"#)), Kept::New);
        assert!(!devices.is_quiet(&own, 7), "with another memory another thing may follow");
        assert_eq!(devices.remember(&own, &json(r#"{"c":null}"#)), Kept::Known);
        devices.remember(&stranger, &json(r#"{"a":9}"#));
        devices.quiet(&stranger, 7);
        assert!(!devices.is_quiet(&own, 7), "a stranger changes nothing");
        assert_eq!(devices.memory(&own).to_string(), r#"{"a":1,"b":3}"#);
        assert_eq!(devices.memory(&stranger), Val::Null);
        let much = json(&format!("{{\"c\":\"{}\"}}", "x".repeat(5000)));
        assert_eq!(devices.remember(&own, &much), Kept::Not);
        assert_eq!(devices.memory(&own).to_string(), r#"{"a":1,"b":3}"#);
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
