//! The keyed hash of the index: multiply, fold, repeat (after wyhash, Wang Yi 2019).
//!
//! The key is drawn once a process, so that neither the author of a feed nor that of a packet can choose values that
//! fall together. The hash decides where to look; what is found there is compared in full.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher as _, Hasher as _},
    sync::OnceLock,
};

use crate::value::Kind;

const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// The hash with its key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keyed {
    seed: [u64; 3],
}

impl Keyed {
    /// With the key of this process.
    pub(crate) fn of_process() -> Self {
        static KEY: OnceLock<Keyed> = OnceLock::new();
        *KEY.get_or_init(|| {
            let random = RandomState::new();
            let draw = |n: u64| {
                let mut hasher = random.build_hasher();
                hasher.write_u64(n);
                hasher.finish() | 1
            };
            Keyed {
                seed: [draw(1), draw(2), draw(3)],
            }
        })
    }

    #[inline]
    fn octets(self, data: &[u8]) -> u64 {
        let mut state = self.seed[0] ^ data.len() as u64;
        let (blocks, rest) = data.as_chunks::<16>();
        for block in blocks {
            let (low, high) = halves(block);
            state = fold(low ^ state, high ^ self.seed[1]);
        }
        let (low, high) = match rest.len() {
            0 => (0, 0),
            1..4 => {
                // First, middle and last octet cover one to three.
                let middle = rest[rest.len() / 2];
                let last = rest[rest.len() - 1];
                (u64::from(rest[0]) << 16 | u64::from(middle) << 8 | u64::from(last), 0)
            }
            4..8 => (first4(rest), first4(&rest[rest.len() - 4..])),
            _ => (first8(rest), first8(&rest[rest.len() - 8..])),
        };
        fold(low ^ state, high ^ self.seed[1])
    }

    /// Of an address.
    #[inline]
    pub(crate) fn address(self, low: u64, high: u64) -> u64 {
        fold(low ^ self.seed[0], high ^ self.seed[1]).wrapping_mul(MIX) ^ self.seed[2]
    }

    /// Of a key of any kind.
    pub(crate) fn key(self, kind: Kind, key: &[u8]) -> u64 {
        match (kind, key.len()) {
            (Kind::Address, 4) => self.address(first4(key), 4),
            (Kind::Address, 16) => {
                let (low, high) = (first8(key), first8(&key[8..]));
                self.address(low, high)
            }
            (Kind::Domain | Kind::DomainTree, _) => {
                let mut hash = 0;
                self.suffixes(key, |of, _| {
                    hash = of;
                    true
                });
                self.named(hash, kind)
            }
            _ => self.named(self.octets(key), kind),
        }
    }

    /// Gives the state of a name and each of its parents, from the rightmost label to the whole, with where it begins,
    /// until the visitor has enough. Upper case counts as lower case.
    #[inline]
    pub(crate) fn suffixes(self, name: &[u8], mut visit: impl FnMut(u64, usize) -> bool) {
        let mut state = self.seed[2];
        // The octets of the label since the last fold, with a one before them that tells their number.
        let mut word = 1_u64;
        for (at, octet) in name.iter().enumerate().rev() {
            if *octet == b'.' {
                state = fold(word ^ state, MIX);
                word = 1;
                if !visit(state, at + 1) {
                    return;
                }
            } else {
                word = word << 8 | u64::from(octet.to_ascii_lowercase());
                if word >> 56 != 0 {
                    state = fold(word ^ state, self.seed[1]);
                    word = 1;
                }
            }
        }
        visit(fold(word ^ state, MIX), 0);
    }

    /// Separates the kinds.
    #[inline]
    pub(crate) fn named(self, state: u64, kind: Kind) -> u64 {
        fold(state ^ (kind as u64), self.seed[1]) ^ self.seed[0]
    }
}

#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ ((product >> 64) as u64)
}

#[inline]
fn first4(data: &[u8]) -> u64 {
    data.first_chunk::<4>().map_or(0, |b| u64::from(u32::from_le_bytes(*b)))
}

#[inline]
fn first8(data: &[u8]) -> u64 {
    data.first_chunk::<8>().map_or(0, |b| u64::from_le_bytes(*b))
}

#[inline]
fn halves(block: &[u8; 16]) -> (u64, u64) {
    (first8(block), first8(&block[8..]))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn similar_keys_do_not_fall_together() {
        let hash = Keyed::of_process();
        let mut seen = HashSet::new();
        let mut keys = 0;
        for n in 0..20_000_u32 {
            keys += 3;
            seen.insert(hash.key(Kind::Address, &n.to_be_bytes()));
            seen.insert(hash.key(Kind::Domain, format!("host{n}.example.net").as_bytes()));
            seen.insert(hash.key(Kind::DomainTree, format!("host{n}.example.net").as_bytes()));
        }
        assert_eq!(seen.len(), keys);
        // The upper bits choose the place: they must spread evenly.
        let mut places = [0_u32; 64];
        for h in &seen {
            places[(h >> 58) as usize] += 1;
        }
        let mean = keys as u32 / 64;
        assert!(places.iter().all(|n| n.abs_diff(mean) < mean / 4), "{places:?}");
    }

    #[test]
    fn the_states_of_a_name_are_those_of_its_parents() {
        let hash = Keyed::of_process();
        let mut states = Vec::new();
        hash.suffixes(b"a.bc.example.org", |state, start| {
            states.push((state, start));
            true
        });
        assert_eq!(states.iter().map(|s| s.1).collect::<Vec<_>>(), [13, 5, 2, 0]);
        for (state, start) in states {
            let parent = &b"a.bc.example.org"[start..];
            assert_eq!(hash.named(state, Kind::DomainTree), hash.key(Kind::DomainTree, parent));
        }
    }

    #[test]
    fn every_length_counts() {
        let hash = Keyed::of_process();
        let same = [b'a'; 80];
        let mut seen = HashSet::new();
        for length in 0..80 {
            seen.insert(hash.key(Kind::Url, &same[..length]));
            seen.insert(hash.key(Kind::Domain, &same[..length]));
            let mut dotted = same;
            dotted[length] = b'.';
            seen.insert(hash.key(Kind::Domain, &dotted));
        }
        assert_eq!(seen.len(), 240);
    }
}
