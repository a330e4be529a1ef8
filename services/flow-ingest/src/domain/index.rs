//! Open addressing from a flow's hash to its slot: one array of words, linear probing, deletion without tombstones.
//!
//! A word holds all that says where it belongs, so that removing and growing touch no flow.

use super::{flow::NONE, prefetch::fetch};

/// Maps hashes to slot numbers. It grows with what it holds, up to a size that its flows never fill.
pub struct Index {
    // High half: the hash's high half, the tag. Low half: slot + 1; 0 for an empty place.
    words: Box<[u64]>,
    mask: usize,
    held: usize,
    most: usize,
}

// Places an index begins with.
const FIRST: usize = 1 << 10;

fn tag(hash: u64) -> u64 {
    hash >> 32
}

fn slot_of(word: u64) -> u32 {
    (word as u32).wrapping_sub(1)
}

impl Index {
    /// Makes an index for at most `flows` flows.
    pub fn new(flows: usize) -> Self {
        let most = (flows.max(8) * 3 / 2).next_power_of_two();
        let size = most.min(FIRST);
        Self {
            words: vec![0; size].into_boxed_slice(),
            mask: size - 1,
            held: 0,
            most,
        }
    }

    /// Has the place brought near where a search for this hash begins.
    #[inline(always)]
    pub fn fetch(&self, hash: u64) {
        fetch(&self.words[tag(hash) as usize & self.mask]);
    }

    /// The slot in the place where a search for this hash begins: most likely the one it finds.
    #[inline(always)]
    pub fn first(&self, hash: u64) -> u32 {
        slot_of(self.words[tag(hash) as usize & self.mask])
    }

    /// The slot among those with this hash that `matches` accepts.
    #[inline]
    pub fn find(&self, hash: u64, mut matches: impl FnMut(u32) -> bool) -> Option<u32> {
        let mut at = tag(hash) as usize & self.mask;
        loop {
            let word = self.words[at];
            if word == 0 {
                return None;
            }
            if word >> 32 == tag(hash) {
                let slot = slot_of(word);
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
        self.held += 1;
        if self.held * 3 > self.words.len() * 2 && self.words.len() < self.most {
            self.grow();
        }
        self.place(tag(hash) << 32 | u64::from(slot + 1));
    }

    fn place(&mut self, word: u64) {
        let mut at = (word >> 32) as usize & self.mask;
        while self.words[at] != 0 {
            at = (at + 1) & self.mask;
        }
        self.words[at] = word;
    }

    fn grow(&mut self) {
        let size = self.words.len() * 2;
        let old = std::mem::replace(&mut self.words, vec![0; size].into_boxed_slice());
        self.mask = size - 1;
        for word in old.into_iter().filter(|word| *word != 0) {
            self.place(word);
        }
    }

    /// Removes a slot.
    pub fn remove(&mut self, hash: u64, slot: u32) {
        let mut at = tag(hash) as usize & self.mask;
        loop {
            match self.words[at] {
                0 => return,
                word if slot_of(word) == slot => break,
                _ => at = (at + 1) & self.mask,
            }
        }
        self.held -= 1;
        let mut hole = at;
        loop {
            at = (at + 1) & self.mask;
            let word = self.words[at];
            if word == 0 {
                break;
            }
            let home = (word >> 32) as usize & self.mask;
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
            let hash = |slot: u32| (u64::from(slot % 5) * 29) << 32 | u64::from(slot % 3);
            let mut index = Index::new(64);
            let mut model = HashMap::new();
            for (insert, slot) in operations {
                if insert && !model.contains_key(&slot) {
                    index.insert(hash(slot), slot);
                    model.insert(slot, ());
                } else if !insert && model.remove(&slot).is_some() {
                    index.remove(hash(slot), slot);
                }
                for slot in 0..64 {
                    let found = index.find(hash(slot), |other| other == slot);
                    prop_assert_eq!(found.is_some(), model.contains_key(&slot), "{}", slot);
                }
            }
        }
    }

    #[test]
    fn growing_loses_nothing() {
        let hash = |slot: u32| u64::from(slot).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut index = Index::new(10_000);
        let began = index.words.len();
        for slot in 0..10_000 {
            index.insert(hash(slot), slot);
        }
        assert!(index.words.len() > began && index.words.len() == index.most);
        for slot in (0..10_000).step_by(2) {
            index.remove(hash(slot), slot);
        }
        for slot in 0..10_000 {
            assert_eq!(
                index.find(hash(slot), |other| other == slot).is_some(),
                slot % 2 == 1,
                "{slot}"
            );
        }
    }
}
