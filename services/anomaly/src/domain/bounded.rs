//! A map that never outgrows its bound: the least active entry makes room, and that is counted.
//!
//! Millions of records a second each look into a dozen of these maps, and nearly every look is a miss of the cache. So the
//! table is a flat list of eight octets an entry, part of the hash and the place of the value; the order of use is a list
//! of places that is only appended to, so that a use touches no neighbours; and what will be asked for soon can be fetched
//! ahead.

use std::{
    collections::VecDeque,
    hash::{BuildHasher, Hash, Hasher, RandomState},
};

use super::prefetch::prefetch;

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

// The bits of a hash that are kept in the table; the lowest of them say where an entry belongs.
fn tag(hash: u64) -> u32 {
    hash as u32
}

// Where an entry is: some bits of its hash, and its slot.
#[derive(Clone, Copy, Debug)]
struct Place {
    tag: u32,
    at: u32,
}

const FREE: Place = Place { tag: 0, at: NONE };

#[derive(Debug)]
struct Slot<K, V> {
    key: K,
    value: V,
    // Its last use, counted over all uses.
    used: u64,
}

/// Keys in the order of their last use. What is evicted depends only on the order of calls, never on hash
/// seeds, so that replaying the same messages gives the same state.
#[derive(Debug)]
pub struct BoundedMap<K, V> {
    seeded: Seeded,
    // Open addressing with linear probing (Knuth, volume 3, 6.4): a power of two, at most five eighths full.
    table: Vec<Place>,
    slots: Vec<Slot<K, V>>,
    // The slots in the order in which they were used. Only the last time of a slot counts.
    uses: VecDeque<u32>,
    // How many uses have left the list.
    forgotten: u64,
    capacity: usize,
    evicted: u64,
}

impl<K: Hash + Eq + Clone, V> BoundedMap<K, V> {
    /// Makes a map for at most `capacity` entries, at least one and below 2^32. Memory is taken as it fills.
    pub fn new(capacity: usize) -> Self {
        Self {
            seeded: Seeded::new(),
            table: Vec::new(),
            slots: Vec::new(),
            uses: VecDeque::new(),
            forgotten: 0,
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
        let at = self.find(self.seeded.hash_one(key), key)?;
        Some(&self.slots[at as usize].value)
    }

    /// The entry of `key`, which becomes the most recently used.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let at = self.find(self.seeded.hash_one(key), key)?;
        self.touch(at);
        Some(&mut self.slots[at as usize].value)
    }

    /// The entry of `key`, made when there is none, which becomes the most recently used.
    pub fn get_or_insert_with(&mut self, key: K, make: impl FnOnce() -> V) -> &mut V {
        let hash = self.seeded.hash_one(&key);
        let at = match self.find(hash, &key) {
            Some(at) => {
                self.touch(at);
                at
            }
            None => self.insert(hash, key, make()),
        };
        &mut self.slots[at as usize].value
    }

    /// Every entry, least recently used first: the order in which to insert them to get this map again.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.uses.iter().zip(self.forgotten..).filter_map(|(at, use_)| {
            let slot = self.slots.get(*at as usize)?;
            (slot.used == use_).then_some((&slot.key, &slot.value))
        })
    }

    /// Asks for the part of the table where `key` is, so that [`fetch`](Self::fetch) finds it near.
    pub fn fetch_place(&self, key: &K) {
        if !self.table.is_empty() {
            prefetch(&self.table[self.home(self.seeded.hash_one(key))]);
        }
    }

    /// Asks for the entry of `key`, so that the next call finds it near.
    pub fn fetch(&self, key: &K) {
        if self.table.is_empty() {
            return;
        }
        let hash = self.seeded.hash_one(key);
        let place = self.table[self.home(hash)];
        if place.tag == tag(hash)
            && let Some(slot) = self.slots.get(place.at as usize)
        {
            prefetch(slot);
        }
    }

    // Of a table that is not empty.
    fn home(&self, hash: u64) -> usize {
        hash as usize & (self.table.len() - 1)
    }

    fn find(&self, hash: u64, key: &K) -> Option<u32> {
        if self.table.is_empty() {
            return None;
        }
        let (mask, tag) = (self.table.len() - 1, tag(hash));
        let mut i = hash as usize & mask;
        loop {
            let place = self.table[i];
            if place.at == NONE {
                return None;
            }
            if place.tag == tag && self.slots[place.at as usize].key == *key {
                return Some(place.at);
            }
            i = (i + 1) & mask;
        }
    }

    fn insert(&mut self, hash: u64, key: K, value: V) -> u32 {
        let used = self.forgotten + self.uses.len() as u64;
        let slot = Slot { key, value, used };
        let at = if self.slots.len() < self.capacity {
            if (self.slots.len() + 1) * 8 > self.table.len() * 5 {
                self.grow();
            }
            self.slots.push(slot);
            (self.slots.len() - 1) as u32
        } else {
            let at = self.oldest();
            self.evicted += 1;
            let evicted = std::mem::replace(&mut self.slots[at as usize], slot);
            self.remove(self.seeded.hash_one(&evicted.key), at);
            at
        };
        self.place(hash, at);
        self.note(at);
        at
    }

    fn place(&mut self, hash: u64, at: u32) {
        let mask = self.table.len() - 1;
        let mut i = hash as usize & mask;
        while self.table[i].at != NONE {
            i = (i + 1) & mask;
        }
        self.table[i] = Place { tag: tag(hash), at };
    }

    fn grow(&mut self) {
        let size = (self.table.len() * 2).max(8);
        self.table = vec![FREE; size];
        for at in 0..self.slots.len() {
            let hash = self.seeded.hash_one(&self.slots[at].key);
            self.place(hash, at as u32);
        }
    }

    // Takes a place out of the table, and moves those behind it up that would not be found any more.
    fn remove(&mut self, hash: u64, at: u32) {
        let mask = self.table.len() - 1;
        let mut hole = hash as usize & mask;
        while self.table[hole].at != at {
            hole = (hole + 1) & mask;
        }
        let mut i = hole;
        loop {
            i = (i + 1) & mask;
            let place = self.table[i];
            if place.at == NONE {
                break;
            }
            let home = place.tag as usize & mask;
            // Its home lies behind the hole: it stays.
            if (i.wrapping_sub(home) & mask) < (i.wrapping_sub(hole) & mask) {
                continue;
            }
            self.table[hole] = place;
            hole = i;
        }
        self.table[hole] = FREE;
    }

    // The slot whose last use is the longest ago; that use leaves the list.
    fn oldest(&mut self) -> u32 {
        loop {
            let Some(at) = self.uses.pop_front() else {
                // Every slot has a use in the list.
                return 0;
            };
            let use_ = self.forgotten;
            self.forgotten += 1;
            if self.slots[at as usize].used == use_ {
                return at;
            }
        }
    }

    fn touch(&mut self, at: u32) {
        let next = self.forgotten + self.uses.len() as u64;
        let used = &mut self.slots[at as usize].used;
        if *used + 1 != next {
            *used = next;
            self.note(at);
        }
    }

    fn note(&mut self, at: u32) {
        self.uses.push_back(at);
        if self.uses.len() > 4 * self.slots.len() + 16 {
            self.tidy();
        }
    }

    // Leaves out the uses that do not count any more.
    fn tidy(&mut self) {
        let mut kept = VecDeque::with_capacity(self.slots.len() * 2);
        let first = self.forgotten + self.uses.len() as u64;
        for (at, use_) in self.uses.iter().zip(self.forgotten..) {
            let slot = &mut self.slots[*at as usize];
            if slot.used == use_ {
                slot.used = first + kept.len() as u64;
                kept.push_back(*at);
            }
        }
        self.uses = kept;
        self.forgotten = first;
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
