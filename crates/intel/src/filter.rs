//! A blocked Bloom filter (Putze, Sanders, Singler 2007): says of most values that nothing is known of them, from a memory
//! that fits a core's cache.

/// Bits a key.
const BITS: usize = 12;

/// The filter. Each key sets four bits of one word.
#[derive(Clone, Debug)]
pub(crate) struct Filter {
    words: Box<[u64]>,
}

impl Filter {
    /// An empty one with room for so many keys.
    pub(crate) fn new(keys: usize) -> Self {
        Self {
            words: vec![0; (keys * BITS).div_ceil(64).max(1)].into_boxed_slice(),
        }
    }

    pub(crate) fn insert(&mut self, hash: u64) {
        let at = self.place(hash);
        self.words[at] |= mask(hash);
    }

    /// False: it was never inserted.
    #[inline]
    pub(crate) fn may_contain(&self, hash: u64) -> bool {
        let mask = mask(hash);
        self.words[self.place(hash)] & mask == mask
    }

    pub(crate) fn octets(&self) -> usize {
        self.words.len() * 8
    }

    #[inline]
    fn place(&self, hash: u64) -> usize {
        ((u128::from(hash) * self.words.len() as u128) >> 64) as usize
    }
}

#[inline]
fn mask(hash: u64) -> u64 {
    1 << (hash & 63) | 1 << (hash >> 6 & 63) | 1 << (hash >> 12 & 63) | 1 << (hash >> 18 & 63)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{hash::Keyed, value::Kind};

    #[test]
    fn knows_what_was_put_in_and_little_else() {
        let hash = |n: u32| Keyed::of_process().key(Kind::Address, &n.to_be_bytes());
        let mut filter = Filter::new(20_000);
        for n in 0..20_000 {
            filter.insert(hash(n));
        }
        assert!((0..20_000).all(|n| filter.may_contain(hash(n))));
        let wrong = (20_000..120_000).filter(|n| filter.may_contain(hash(*n))).count();
        assert!(wrong < 5_000, "{wrong} of 100,000");
    }
}
