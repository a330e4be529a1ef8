//! A map that never outgrows its bound: the least active entry makes room, and that is counted.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, Hasher, RandomState},
};

const NONE: u32 = u32::MAX;

/// Hashes by folded multiplication, which is several times faster than the standard library's hash for keys of a few
/// words. The seeds are random in each process, so that nobody outside can choose keys that collide.
#[derive(Clone, Debug)]
struct Seeded {
    start: u64,
    factor: u64,
}

impl Seeded {
    fn new() -> Self {
        let random = RandomState::new();
        Self {
            start: random.hash_one(1_u8),
            factor: random.hash_one(2_u8) | 1,
        }
    }
}

impl BuildHasher for Seeded {
    type Hasher = Folded;

    fn build_hasher(&self) -> Folded {
        Folded {
            state: self.start,
            factor: self.factor,
        }
    }
}

struct Folded {
    state: u64,
    factor: u64,
}

impl Hasher for Folded {
    fn finish(&self) -> u64 {
        fold(self.state, 0x9E37_79B9_7F4A_7C15)
    }

    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.write_u64(u64::from_le_bytes(*word));
        }
        if !rest.is_empty() {
            let mut last = [0; 8];
            last[..rest.len()].copy_from_slice(rest);
            self.write_u64(u64::from_le_bytes(last));
        }
    }

    fn write_u8(&mut self, n: u8) {
        self.write_u64(n.into());
    }

    fn write_u16(&mut self, n: u16) {
        self.write_u64(n.into());
    }

    fn write_u64(&mut self, n: u64) {
        self.state = fold(self.state ^ n, self.factor);
    }

    fn write_u128(&mut self, n: u128) {
        self.write_u64(n as u64);
        self.write_u64((n >> 64) as u64);
    }

    fn write_usize(&mut self, n: usize) {
        self.write_u64(n as u64);
    }
}

fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ ((product >> 64) as u64)
}

#[derive(Debug)]
struct Slot<K, V> {
    key: K,
    value: V,
    older: u32,
    newer: u32,
}

/// Keys in the order of their last use. What is evicted depends only on the order of calls, never on hash
/// seeds, so that replaying the same messages gives the same state.
#[derive(Debug)]
pub struct BoundedMap<K, V> {
    index: HashMap<K, u32, Seeded>,
    slots: Vec<Slot<K, V>>,
    oldest: u32,
    newest: u32,
    capacity: usize,
    evicted: u64,
}

impl<K: Hash + Eq + Clone, V> BoundedMap<K, V> {
    /// Makes a map for at most `capacity` entries, at least one and below 2^32. Memory is taken as it fills.
    pub fn new(capacity: usize) -> Self {
        Self {
            index: HashMap::with_hasher(Seeded::new()),
            slots: Vec::new(),
            oldest: NONE,
            newest: NONE,
            capacity: capacity.clamp(1, (NONE - 1) as usize),
            evicted: 0,
        }
    }

    /// Entries held.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Nothing is held.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Entries that had to make room since the map was made.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// The entry of `key`, without counting as a use.
    pub fn peek(&self, key: &K) -> Option<&V> {
        let at = *self.index.get(key)?;
        Some(&self.slots[at as usize].value)
    }

    /// The entry of `key`, which becomes the most recently used.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let at = *self.index.get(key)?;
        self.touch(at);
        Some(&mut self.slots[at as usize].value)
    }

    /// The entry of `key`, made when there is none, which becomes the most recently used.
    pub fn get_or_insert_with(&mut self, key: K, make: impl FnOnce() -> V) -> &mut V {
        let at = match self.index.get(&key) {
            Some(&at) => {
                self.touch(at);
                at
            }
            None => self.insert(key, make()),
        };
        &mut self.slots[at as usize].value
    }

    /// Every entry, least recently used first: the order in which to insert them to get this map again.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        let mut at = self.oldest;
        std::iter::from_fn(move || {
            let slot = self.slots.get(at as usize)?;
            at = slot.newer;
            Some((&slot.key, &slot.value))
        })
    }

    fn insert(&mut self, key: K, value: V) -> u32 {
        let slot = Slot {
            key: key.clone(),
            value,
            older: NONE,
            newer: NONE,
        };
        let at = if self.slots.len() < self.capacity {
            self.slots.push(slot);
            (self.slots.len() - 1) as u32
        } else {
            let at = self.oldest;
            self.unlink(at);
            self.evicted += 1;
            let evicted = std::mem::replace(&mut self.slots[at as usize], slot);
            self.index.remove(&evicted.key);
            at
        };
        self.index.insert(key, at);
        self.link_newest(at);
        at
    }

    fn touch(&mut self, at: u32) {
        if self.newest != at {
            self.unlink(at);
            self.link_newest(at);
        }
    }

    fn unlink(&mut self, at: u32) {
        let (older, newer) = {
            let slot = &self.slots[at as usize];
            (slot.older, slot.newer)
        };
        match older {
            NONE => self.oldest = newer,
            older => self.slots[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.slots[newer as usize].older = older,
        }
    }

    fn link_newest(&mut self, at: u32) {
        let before = self.newest;
        let slot = &mut self.slots[at as usize];
        slot.older = before;
        slot.newer = NONE;
        match before {
            NONE => self.oldest = at,
            before => self.slots[before as usize].newer = at,
        }
        self.newest = at;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn neighbouring_keys_are_spread_over_all_bits() {
        let seeded = Seeded::new();
        let mut seen = std::collections::HashSet::new();
        let mut ones = [0_u32; 64];
        for n in 0..4_096_u128 {
            let hash = seeded.hash_one((n + (0xFFFF_0A00_0000 << 80), 443_u16));
            seen.insert(hash);
            (0..64).for_each(|bit| ones[bit] += (hash >> bit & 1) as u32);
        }
        assert_eq!(seen.len(), 4_096);
        assert!(ones.iter().all(|n| (1_200..2_900).contains(n)), "{ones:?}");
    }

    proptest! {
        #[test]
        fn behaves_like_a_list_ordered_by_last_use(
            capacity in 1_usize..8,
            uses in prop::collection::vec((0_u8..12, any::<bool>()), 0..200),
        ) {
            let mut map = BoundedMap::new(capacity);
            let mut model: Vec<(u8, usize)> = Vec::new();
            let mut evicted = 0;
            for (turn, (key, insert)) in uses.into_iter().enumerate() {
                let known = model.iter().position(|(k, _)| *k == key);
                if insert {
                    let got = *map.get_or_insert_with(key, || turn);
                    let entry = match known {
                        Some(at) => model.remove(at),
                        None => {
                            if model.len() == capacity {
                                model.remove(0);
                                evicted += 1;
                            }
                            (key, turn)
                        }
                    };
                    prop_assert_eq!(got, entry.1);
                    model.push(entry);
                } else {
                    let got = map.get_mut(&key).copied();
                    prop_assert_eq!(got, known.map(|at| model[at].1));
                    if let Some(at) = known {
                        let entry = model.remove(at);
                        model.push(entry);
                    }
                }
                let order: Vec<(u8, usize)> = map.iter().map(|(k, v)| (*k, *v)).collect();
                prop_assert_eq!(&order, &model);
                prop_assert_eq!(map.len(), model.len());
                prop_assert_eq!(map.evicted(), evicted);
            }
        }
    }
}
