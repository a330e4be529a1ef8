//! The Merkle tree of an append-only log, after RFC 9162 §2.1 (the same tree as RFC 6962).
//!
//! A log of `n` entries is stored as the hashes of its perfect subtrees ([`Node`]): appending an entry completes
//! at most `log2 n` of them, and every proof is made of at most `log2 n` ranges, each of a few stored nodes.
//! [`Plan`] says which nodes a proof needs, so that a store can fetch them in one query.

use ring::digest::{Context, SHA256};

/// A SHA-256 hash.
pub type Hash = [u8; 32];

/// The largest tree that is handled; proofs have at most this many times two hashes.
const MAX_LEVELS: usize = 64;

/// Why a proof does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// The proof has too few or too many hashes for these sizes.
    #[error("the proof has {given} hashes, which is not the number that these tree sizes call for")]
    Length {
        /// Hashes in the proof.
        given: usize,
    },
    /// The entry is not in a tree of this size.
    #[error("entry {index} is not in a tree of {size} entries")]
    OutOfRange {
        /// The entry asked for, from 0.
        index: u64,
        /// Entries in the tree.
        size: u64,
    },
    /// The older size is larger than the newer one.
    #[error("a log of {second} entries cannot extend one of {first}: entries were removed")]
    Shrunk {
        /// Entries in the older tree.
        first: u64,
        /// Entries in the newer tree.
        second: u64,
    },
    /// The hashes do not lead to the root.
    #[error("the hashes lead to another root ({which}): the entries differ from what was signed")]
    Root {
        /// Which of the roots, `tree`, `older tree` or `newer tree`.
        which: &'static str,
    },
}

impl ProofError {
    /// The stable code under `docs/errors/`.
    pub fn code(&self) -> &'static str {
        "GAR-PROOF-0003"
    }
}

/// Hash of an entry: `SHA-256(0x00 || body)`.
pub fn leaf_hash(body: &[u8]) -> Hash {
    let mut context = Context::new(&SHA256);
    context.update(&[0]);
    context.update(body);
    finish(context)
}

/// Hash of an inner node: `SHA-256(0x01 || left || right)`.
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    let mut context = Context::new(&SHA256);
    context.update(&[1]);
    context.update(left);
    context.update(right);
    finish(context)
}

/// Root of the tree without entries: `SHA-256()`.
pub fn empty_root() -> Hash {
    crate::sha256(&[])
}

fn finish(context: Context) -> Hash {
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

/// A perfect subtree: level 0 is one entry, level `l` covers entries `index << l .. (index + 1) << l`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Node {
    /// log2 of the number of entries below.
    pub level: u8,
    /// Position among the nodes of this level, from 0.
    pub index: u64,
}

/// The perfect subtrees that make up entries `begin..end`, left to right.
fn cover(begin: u64, end: u64) -> Vec<Node> {
    let mut nodes = Vec::new();
    let mut at = begin;
    while at < end {
        let aligned = if at == 0 { 63 } else { at.trailing_zeros() };
        let fits = (end - at).ilog2();
        let level = aligned.min(fits);
        nodes.push(Node {
            level: level as u8,
            index: at >> level,
        });
        at += 1 << level;
    }
    nodes
}

/// Root of a range from the hashes of the perfect subtrees that cover it.
fn fold(hashes: impl DoubleEndedIterator<Item = Hash>) -> Option<Hash> {
    hashes.rev().reduce(|right, left| node_hash(&left, &right))
}

/// The perfect subtrees whose hashes make the root of a tree of `size` entries, largest first.
pub fn peaks(size: u64) -> Vec<Node> {
    cover(0, size)
}

/// Which stored nodes a proof is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    ranges: Vec<Vec<Node>>,
}

impl Plan {
    /// The inclusion proof of entry `index` in the tree of `size` entries (RFC 9162 §2.1.3.1).
    ///
    /// # Errors
    /// [`ProofError::OutOfRange`] when the entry is not in that tree.
    pub fn inclusion(index: u64, size: u64) -> Result<Self, ProofError> {
        if index >= size {
            return Err(ProofError::OutOfRange { index, size });
        }
        let (mut begin, mut end) = (0, size);
        let mut ranges = Vec::new();
        while end - begin > 1 {
            let split = begin + largest_power_below(end - begin);
            if index < split {
                ranges.push(cover(split, end));
                end = split;
            } else {
                ranges.push(cover(begin, split));
                begin = split;
            }
        }
        ranges.reverse();
        Ok(Self { ranges })
    }

    /// The consistency proof between the trees of `first` and `second` entries (RFC 9162 §2.1.4.1).
    /// Empty when the older tree is empty or the sizes are equal.
    ///
    /// # Errors
    /// [`ProofError::Shrunk`] when `first` is larger than `second`.
    pub fn consistency(first: u64, second: u64) -> Result<Self, ProofError> {
        if first > second {
            return Err(ProofError::Shrunk { first, second });
        }
        let mut ranges = Vec::new();
        if first == 0 || first == second {
            return Ok(Self { ranges });
        }
        let (mut begin, mut end, mut whole) = (0, second, true);
        while first != end {
            let split = begin + largest_power_below(end - begin);
            if first <= split {
                ranges.push(cover(split, end));
                end = split;
            } else {
                ranges.push(cover(begin, split));
                begin = split;
                whole = false;
            }
        }
        if !whole {
            ranges.push(cover(begin, end));
        }
        ranges.reverse();
        Ok(Self { ranges })
    }

    /// Every node that [`resolve`](Self::resolve) will ask for.
    pub fn nodes(&self) -> impl Iterator<Item = Node> + '_ {
        self.ranges.iter().flatten().copied()
    }

    /// Makes the proof from stored hashes. `None` when a node is not there.
    pub fn resolve(&self, mut hash: impl FnMut(Node) -> Option<Hash>) -> Option<Vec<Hash>> {
        self.ranges
            .iter()
            .map(|range| {
                let hashes: Option<Vec<Hash>> = range.iter().map(|node| hash(*node)).collect();
                fold(hashes?.into_iter())
            })
            .collect()
    }
}

/// The largest power of two smaller than `n`, for `n > 1`.
fn largest_power_below(n: u64) -> u64 {
    1 << (n - 1).ilog2()
}

/// A tree that only grows, in memory of `log2 size` hashes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tree {
    size: u64,
    peaks: Vec<Hash>,
}

impl Tree {
    /// The tree without entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// A tree from the hashes of [`peaks`] of its size, in that order. `None` when their number is wrong.
    pub fn from_peaks(size: u64, peaks: Vec<Hash>) -> Option<Self> {
        (peaks.len() == size.count_ones() as usize).then_some(Self { size, peaks })
    }

    /// Number of entries.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Root hash.
    pub fn root(&self) -> Hash {
        fold(self.peaks.iter().copied()).unwrap_or_else(empty_root)
    }

    /// Appends an entry's leaf hash and reports every perfect subtree that this completes, the leaf first.
    pub fn push(&mut self, leaf: Hash, mut completed: impl FnMut(Node, Hash)) {
        let mut node = Node {
            level: 0,
            index: self.size,
        };
        let mut hash = leaf;
        completed(node, hash);
        while node.index & 1 == 1 {
            let Some(left) = self.peaks.pop() else { break };
            hash = node_hash(&left, &hash);
            node = Node {
                level: node.level + 1,
                index: node.index >> 1,
            };
            completed(node, hash);
        }
        self.peaks.push(hash);
        self.size += 1;
    }
}

/// Checks that `leaf` is entry `index` of the tree with this size and root (RFC 9162 §2.1.3.2).
///
/// # Errors
/// [`ProofError`] when it is not.
pub fn verify_inclusion(leaf: &Hash, index: u64, size: u64, proof: &[Hash], root: &Hash) -> Result<(), ProofError> {
    if index >= size {
        return Err(ProofError::OutOfRange { index, size });
    }
    let length = ProofError::Length { given: proof.len() };
    if proof.len() > MAX_LEVELS {
        return Err(length);
    }
    let (mut position, mut last, mut hash) = (index, size - 1, *leaf);
    for sibling in proof {
        if last == 0 {
            return Err(length);
        }
        if position & 1 == 1 || position == last {
            hash = node_hash(sibling, &hash);
            while position & 1 == 0 && position != 0 {
                position >>= 1;
                last >>= 1;
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        position >>= 1;
        last >>= 1;
    }
    if last != 0 {
        return Err(length);
    }
    (hash == *root).then_some(()).ok_or(ProofError::Root { which: "tree" })
}

/// Checks that the newer tree only appended to the older one (RFC 9162 §2.1.4.2).
///
/// # Errors
/// [`ProofError`] when it does not.
pub fn verify_consistency(
    first: u64,
    first_root: &Hash,
    second: u64,
    second_root: &Hash,
    proof: &[Hash],
) -> Result<(), ProofError> {
    let length = ProofError::Length { given: proof.len() };
    if first > second {
        return Err(ProofError::Shrunk { first, second });
    }
    if first == 0 || first == second {
        if !proof.is_empty() {
            return Err(length);
        }
        let expected = if first == 0 { empty_root() } else { *second_root };
        return (*first_root == expected)
            .then_some(())
            .ok_or(ProofError::Root { which: "older tree" });
    }
    if proof.is_empty() || proof.len() > 2 * MAX_LEVELS {
        return Err(length);
    }
    // A power of two is a perfect subtree of the newer tree, and its root is left out of the proof.
    let (seed, rest) = if first.is_power_of_two() {
        (first_root, proof)
    } else {
        (&proof[0], &proof[1..])
    };
    let (mut position, mut last) = (first - 1, second - 1);
    while position & 1 == 1 {
        position >>= 1;
        last >>= 1;
    }
    let (mut older, mut newer) = (*seed, *seed);
    for hash in rest {
        if last == 0 {
            return Err(length);
        }
        if position & 1 == 1 || position == last {
            older = node_hash(hash, &older);
            newer = node_hash(hash, &newer);
            while position & 1 == 0 && position != 0 {
                position >>= 1;
                last >>= 1;
            }
        } else {
            newer = node_hash(&newer, hash);
        }
        position >>= 1;
        last >>= 1;
    }
    if last != 0 {
        return Err(length);
    }
    if older != *first_root {
        return Err(ProofError::Root { which: "older tree" });
    }
    (newer == *second_root)
        .then_some(())
        .ok_or(ProofError::Root { which: "newer tree" })
}

#[cfg(test)]
#[path = "merkle_tests.rs"]
mod tests;
