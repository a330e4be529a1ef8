//! Open addressing from a flow's hash to its slot: one array of words, linear probing, deletion without tombstones.

use super::flow::NONE;

/// Maps hashes to slot numbers. Its size is fixed at twice the flows it may hold, so it never fills.
pub struct Index {
    // High half: high half of the hash. Low half: slot + 1; 0 for an empty place.
    words: Box<[u64]>,
    mask: usize,
}

impl Index {
    /// Makes an index for at most `flows` flows. Untouched pages cost no memory.
    pub fn new(flows: usize) -> Self {
        let size = (flows.max(8) * 3 / 2).next_power_of_two();
        Self {
            words: vec![0; size].into_boxed_slice(),
            mask: size - 1,
        }
    }

    /// The place where a search for this hash begins. Reading it early hides the memory's latency.
    pub fn first(&self, hash: u64) -> u64 {
        self.words[hash as usize & self.mask]
    }

    /// The slot among those with this hash that `matches` accepts.
    pub fn find(&self, hash: u64, mut matches: impl FnMut(u32) -> bool) -> Option<u32> {
        let mut at = hash as usize & self.mask;
        loop {
            let word = self.words[at];
            if word == 0 {
                return None;
            }
            if word >> 32 == hash >> 32 {
                let slot = word as u32 - 1;
                if matches(slot) {
                    return Some(slot);
                }
            }
            at = (at + 1) & self.mask;
        }
    }

    /// Adds a slot.
    pub fn insert(&mut self, hash: u64, slot: u32) {
        debug_assert_ne!(slot, NONE);
        let mut at = hash as usize & self.mask;
        while self.words[at] != 0 {
            at = (at + 1) & self.mask;
        }
        self.words[at] = hash >> 32 << 32 | u64::from(slot + 1);
    }

    /// Removes a slot. `hash_of` gives the hash of any other slot, to close the gap it leaves.
    pub fn remove(&mut self, hash: u64, slot: u32, hash_of: impl Fn(u32) -> u64) {
        let mut at = hash as usize & self.mask;
        loop {
            match self.words[at] {
                0 => return,
                word if word as u32 == slot + 1 => break,
                _ => at = (at + 1) & self.mask,
            }
        }
        let mut hole = at;
        loop {
            at = (at + 1) & self.mask;
            let word = self.words[at];
            if word == 0 {
                break;
            }
            let home = hash_of(word as u32 - 1) as usize & self.mask;
            // It may move into the hole unless its home lies behind the hole.
            if at.wrapping_sub(home) & self.mask >= at.wrapping_sub(hole) & self.mask {
                self.words[hole] = word;
                hole = at;
            }
        }
        self.words[hole] = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_holds_exactly_what_was_put_in(
            // Few distinct hashes, so that places collide and wrap round.
            operations in prop::collection::vec((any::<bool>(), 0_u32..64), 0..400),
        ) {
            let hash = |slot: u32| (u64::from(slot % 5) * 29) | (u64::from(slot % 3) << 32);
            let mut index = Index::new(64);
            let mut model = HashMap::new();
            for (insert, slot) in operations {
                if insert && !model.contains_key(&slot) {
                    index.insert(hash(slot), slot);
                    model.insert(slot, ());
                } else if !insert && model.remove(&slot).is_some() {
                    index.remove(hash(slot), slot, hash);
                }
                for slot in 0..64 {
                    let found = index.find(hash(slot), |other| other == slot);
                    prop_assert_eq!(found.is_some(), model.contains_key(&slot), "{}", slot);
                }
            }
        }
    }
}
