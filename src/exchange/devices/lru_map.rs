//! A map that knows which of its entries was used least recently, made for a million small ones.
//!
//! Entries stand in chunks, which no growth moves or copies, and are linked by their numbers; the table that finds them has
//! nothing but these numbers. So an entry takes 14 to 20 bytes beside its content. In the crate `lru`, with pointers
//! and an allocation for each, it takes 43 to 62.

use std::{
    hash::{BuildHasher, Hash},
    mem,
    ops::{Index, IndexMut},
};

use foldhash::fast::RandomState;
use hashbrown::HashTable;

/// Entries of a chunk.
const CHUNK: usize = 1024;
/// The number of no entry.
const NONE: u32 = u32::MAX;

/// See above.
pub(super) struct LruMap<K, V> {
    numbers: HashTable<u32>,
    hasher: RandomState,
    entries: Entries<K, V>,
    newest: u32,
    oldest: u32,
    /// The first without content; each names the next as its `older`.
    free: u32,
}

/// Every chunk but the last is full.
struct Entries<K, V>(Vec<Vec<Entry<K, V>>>);

struct Entry<K, V> {
    content: Option<(K, V)>,
    newer: u32,
    older: u32,
}

impl<K: Hash + Eq, V> LruMap<K, V> {
    pub(super) fn new() -> Self {
        Self {
            numbers: HashTable::new(),
            hasher: RandomState::default(),
            entries: Entries(Vec::new()),
            newest: NONE,
            oldest: NONE,
            free: NONE,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.numbers.len()
    }

    /// What is kept under this key. To look is no use.
    pub(super) fn peek_mut(&mut self, key: &K) -> Option<&mut V> {
        let number = self.number(key)?;
        self.entries.value(number)
    }

    /// What is kept under this key. That uses it.
    pub(super) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let number = self.number(key)?;
        if number != self.newest {
            self.unlink(number);
            self.link(number);
        }
        self.entries.value(number)
    }

    /// Keeps this under a key that has nothing yet. That uses it.
    pub(super) fn insert(&mut self, key: K, value: V) {
        let hash = self.hasher.hash_one(&key);
        let number = match self.free {
            NONE => self.entries.add(),
            free => mem::replace(&mut self.free, self.entries[free].older),
        };
        self.entries[number].content = Some((key, value));
        self.link(number);
        let (entries, hasher) = (&self.entries, &self.hasher);
        self.numbers.insert_unique(hash, number, |number| entries.hash(*number, hasher));
    }

    /// Takes out what is kept under this key.
    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        self.number(key).and_then(|number| self.take(number))
    }

    /// Takes out what was used least recently.
    pub(super) fn remove_oldest(&mut self) -> Option<V> {
        if self.oldest == NONE { None } else { self.take(self.oldest) }
    }

    fn number(&self, key: &K) -> Option<u32> {
        let hash = self.hasher.hash_one(key);
        self.numbers.find(hash, |number| self.entries.key(*number) == Some(key)).copied()
    }

    fn take(&mut self, number: u32) -> Option<V> {
        let hash = self.entries.hash(number, &self.hasher);
        if let Ok(found) = self.numbers.find_entry(hash, |other| *other == number) {
            found.remove();
        }
        self.unlink(number);
        self.entries[number].older = mem::replace(&mut self.free, number);
        self.entries[number].content.take().map(|(_, value)| value)
    }

    /// It becomes the newest.
    fn link(&mut self, number: u32) {
        let older = mem::replace(&mut self.newest, number);
        (self.entries[number].newer, self.entries[number].older) = (NONE, older);
        *self.newer_of(older) = number;
    }

    /// Its neighbours become each other's.
    fn unlink(&mut self, number: u32) {
        let Entry { newer, older, .. } = self.entries[number];
        *self.newer_of(older) = newer;
        *self.older_of(newer) = older;
    }

    /// Where the newer neighbour of an entry is named; of none, the oldest of all.
    fn newer_of(&mut self, number: u32) -> &mut u32 {
        if number == NONE { &mut self.oldest } else { &mut self.entries[number].newer }
    }

    /// Where the older neighbour of an entry is named; of none, the newest of all.
    fn older_of(&mut self, number: u32) -> &mut u32 {
        if number == NONE { &mut self.newest } else { &mut self.entries[number].older }
    }
}

impl<K, V> Entries<K, V> {
    /// One without content, at the end.
    fn add(&mut self) -> u32 {
        if self.0.last().is_none_or(|last| last.len() == CHUNK) {
            self.0.push(Vec::with_capacity(CHUNK));
        }
        let last = self.0.len() - 1;
        let chunk = &mut self.0[last];
        chunk.push(Entry { content: None, newer: NONE, older: NONE });
        u32::try_from(last * CHUNK + chunk.len() - 1)
            .expect("four billion entries do not fit into memory")
    }

    fn key(&self, number: u32) -> Option<&K> {
        self[number].content.as_ref().map(|(key, _)| key)
    }

    fn hash(&self, number: u32, hasher: &RandomState) -> u64
    where
        K: Hash,
    {
        self.key(number).map_or(0, |key| hasher.hash_one(key))
    }

    fn value(&mut self, number: u32) -> Option<&mut V> {
        self[number].content.as_mut().map(|(_, value)| value)
    }
}

impl<K, V> Index<u32> for Entries<K, V> {
    type Output = Entry<K, V>;

    fn index(&self, number: u32) -> &Entry<K, V> {
        &self.0[number as usize / CHUNK][number as usize % CHUNK]
    }
}

impl<K, V> IndexMut<u32> for Entries<K, V> {
    fn index_mut(&mut self, number: u32) -> &mut Entry<K, V> {
        &mut self.0[number as usize / CHUNK][number as usize % CHUNK]
    }
}

#[cfg(test)]
mod tests {
    use lru::LruCache;
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Use(u16),
        Look(u16),
        Insert(u16),
        Remove(u16),
        RemoveOldest,
    }

    fn step() -> impl Strategy<Value = Step> {
        let key = || 0..40_u16;
        prop_oneof![
            3 => key().prop_map(Step::Use),
            1 => key().prop_map(Step::Look),
            5 => key().prop_map(Step::Insert),
            2 => key().prop_map(Step::Remove),
            1 => Just(Step::RemoveOldest),
        ]
    }

    proptest! {
        #[test]
        fn it_is_what_lru_is(steps in proptest::collection::vec(step(), 0..300)) {
            let (mut own, mut model) = (LruMap::new(), LruCache::unbounded());
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Use(key) => prop_assert_eq!(own.get_mut(&key), model.get_mut(&key)),
                    Step::Look(key) => prop_assert_eq!(own.peek_mut(&key), model.peek_mut(&key)),
                    Step::Insert(key) => {
                        if !model.contains(&key) {
                            own.insert(key, number);
                            model.put(key, number);
                        }
                    }
                    Step::Remove(key) => prop_assert_eq!(own.remove(&key), model.pop(&key)),
                    Step::RemoveOldest => {
                        prop_assert_eq!(own.remove_oldest(), model.pop_lru().map(|(_, value)| value));
                    }
                }
                prop_assert_eq!(own.len(), model.len());
            }
            while let Some((_, value)) = model.pop_lru() {
                prop_assert_eq!(own.remove_oldest(), Some(value));
            }
            prop_assert_eq!(own.remove_oldest(), None);
        }
    }

    #[test]
    fn many_chunks_are_used_again_and_again() {
        let mut map = LruMap::new();
        let many = 3 * CHUNK + 1;
        for key in 0..10 * many {
            if map.len() == many {
                assert_eq!(map.remove_oldest(), Some(key - many));
            }
            map.insert(key, key);
        }
        assert_eq!(map.entries.0.len(), 4);
        assert!((9 * many..10 * many).all(|key| map.peek_mut(&key) == Some(&mut { key })));
        assert_eq!(map.peek_mut(&0), None);
    }

    #[test]
    fn an_entry_has_two_numbers_beside_its_content() {
        assert_eq!(size_of::<Entry<Box<str>, u64>>(), size_of::<(Box<str>, u64)>() + 8);
    }
}
