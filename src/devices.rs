//! What the gateway knows of each device, for as long as the process lives: the key last accepted,
//! what it has seen and pushed, and what the table told it to remember.
//!
//! Only devices that the upstream has accepted get a place, so that strangers cannot push anybody
//! out; the least recently used one makes room.

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

use crate::{
    call::{Caller, StatusCode},
    filter::{self, MAX_OUTPUTS, Val},
    fingerprint::fingerprint,
    items::{Item, Items},
    secret::Secret,
};

/// Most pushed items kept per device; the oldest is forgotten first. As many as two runs of a filter put out.
const MAX_ITEMS: usize = 2 * MAX_OUTPUTS;
/// Most of them as long as all devices together have few, as many to a device of those that may be known. Where
/// there are more, each may keep only so many.
const FAIR_ITEMS: usize = 64;
/// Most bytes remembered per device; more is not remembered at all.
const MAX_MEMORY_BYTES: usize = 4096;

/// All known devices.
pub struct Devices {
    known: Mutex<LruCache<Arc<str>, Device>>,
    capacity: usize,
    /// Pushed items kept, of all devices.
    items: AtomicUsize,
}

struct Device {
    key: Secret,
    /// The value last seen at each entry of `then`. Boxed like the others: there are many devices, and
    /// few entries that seldom change.
    seen: Box<[Seen]>,
    pushed: Items,
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

impl Devices {
    /// A memory for at most `capacity` devices.
    pub fn new(capacity: usize) -> Self {
        let known = Mutex::new(LruCache::unbounded());
        Self { known, capacity: capacity.max(1), items: AtomicUsize::new(0) }
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

    /// Something was got for the caller. That makes its key the one to remember only if there is none: not
    /// every endpoint looks at keys.
    pub fn met(&self, caller: &Caller<'_>) {
        if !self.known().contains(&caller.device) {
            self.accepted(&caller.device, &caller.key);
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
        if known.len() >= self.capacity
            && let Some((_, least)) = known.pop_lru()
        {
            self.count(least.pushed.len(), 0);
        }
        let fresh = Device {
            key: key.clone(),
            seen: Box::default(),
            pushed: Items::default(),
            memory: Box::default(),
            quiet: None,
        };
        known.put(device.clone(), fresh);
    }

    /// If it is the key we know, everything known of the device is forgotten. A stranger's wrong key
    /// changes nothing.
    fn refused(&self, device: &str, key: &Secret) {
        let mut known = self.known();
        if known.peek(device).is_some_and(|known| known.key == *key)
            && let Some(device) = known.pop(device)
        {
            self.count(device.pushed.len(), 0);
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
        self.known().peek(device).is_some_and(|known| known.pushed.has(item, period))
    }

    /// The item has been pushed.
    pub fn pushed(&self, device: &str, item: Item) {
        if let Some(known) = self.known().peek_mut(device) {
            let before = known.pushed.len();
            let few = self.items.load(Ordering::Relaxed) < self.capacity.saturating_mul(FAIR_ITEMS);
            known.pushed.add(item, if few { MAX_ITEMS } else { FAIR_ITEMS });
            self.count(before, known.pushed.len());
        }
    }

    /// The device has dealt with what was pushed on this topic.
    pub fn answered(&self, device: &str, topic: &str) {
        if let Some(known) = self.known().peek_mut(device) {
            let before = known.pushed.len();
            known.pushed.forget(topic);
            self.count(before, known.pushed.len());
        }
    }

    /// A device kept so many items, and keeps so many now. Called under the lock.
    fn count(&self, before: usize, now: usize) {
        let items = self.items.load(Ordering::Relaxed);
        self.items.store(items.saturating_sub(before) + now, Ordering::Relaxed);
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

    #[tokio::test(start_paused = true)]
    async fn as_many_items_are_kept_as_filters_put_out_but_not_for_everybody() {
        let (devices, d1, key) = devices();
        let minute = Duration::from_mins(1);
        let push = |device: &str, count: usize| {
            for number in 0..count {
                devices.pushed(device, Item::new("t", &number.to_le_bytes()));
            }
            let kept = (0..count).filter(|number| {
                devices.pushed_within(device, Item::new("t", &number.to_le_bytes()), minute)
            });
            kept.count()
        };
        // Two devices have room for 128 together, and nobody less than 64.
        assert_eq!(push(&d1, 100), 100);
        devices.accepted(&"d2".into(), &key);
        assert_eq!(push("d2", 100), FAIR_ITEMS);
        devices.answered(&d1, "t");
        assert_eq!(push("d2", 100), 100, "what others no longer need");
        devices.refused("d2", &key);
        assert_eq!(push(&d1, 120), 120);
        assert_eq!(devices.items.load(Ordering::Relaxed), 120);
        let many = Devices::new(1000);
        many.accepted(&d1, &key);
        for number in 0..MAX_ITEMS + 10 {
            many.pushed(&d1, Item::new("t", &number.to_le_bytes()));
        }
        assert_eq!(many.items.load(Ordering::Relaxed), MAX_ITEMS);
    }

    #[test]
    fn something_got_for_a_stranger_takes_nobodys_place() {
        let (devices, d1, key) = devices();
        let captures = Captures::default();
        let stranger = Caller { device: d1.clone(), key: Secret::new("k2"), captures: &captures };
        devices.met(&stranger);
        assert_eq!(devices.key(&d1), Some(key));
        devices.met(&Caller { device: "d2".into(), ..stranger });
        assert_eq!(devices.key("d2"), Some(Secret::new("k2")));
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
