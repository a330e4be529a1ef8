//! Which flows have been judged, in bounded memory.

use std::collections::HashMap;

/// How a record of a flow stands to what is known of the flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// The flow was never judged, or is forgotten.
    First,
    /// The flow was judged by other policies than now hold, and still lives.
    Again,
    /// The flow was judged.
    Known,
}

/// Remembers flows by a hash of their id, with the epoch of the policies that judged them.
///
/// Two generations: when the young one is full it becomes the old one, and the old one is forgotten, so at
/// least `capacity` and at most twice as many flows are remembered.
#[derive(Debug)]
pub struct Seen {
    capacity: usize,
    young: HashMap<u64, u64>,
    old: HashMap<u64, u64>,
}

impl Seen {
    /// Remembers at least `capacity` flows.
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity.max(1),
            young: HashMap::new(),
            old: HashMap::new(),
        }
    }

    /// Notes a record of a flow and says whether the flow is to be judged by the policies of `epoch`. A flow that
    /// is over is judged only if it never was, and then forgotten soon.
    pub fn note(&mut self, flow_id: &[u8; 16], epoch: u64, ended: bool) -> Sight {
        let key = key(flow_id);
        let sight = match self.young.get(&key).or_else(|| self.old.get(&key)) {
            None => Sight::First,
            Some(judged) if *judged < epoch && !ended => Sight::Again,
            Some(_) => Sight::Known,
        };
        if sight != Sight::Known {
            if self.young.len() >= self.capacity {
                self.old = std::mem::take(&mut self.young);
            }
            self.young.insert(key, epoch);
        }
        sight
    }

    /// Takes back a [`Sight::First`] whose judgement could not be stored.
    pub fn forget(&mut self, flow_id: &[u8; 16]) {
        let key = key(flow_id);
        self.young.remove(&key);
        self.old.remove(&key);
    }

    /// How many flows are remembered.
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    /// Whether no flow is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Flow ids are random or hashes already; folding the halves loses nothing that matters.
fn key(flow_id: &[u8; 16]) -> u64 {
    let mut halves = [[0; 8]; 2];
    halves[0].copy_from_slice(&flow_id[..8]);
    halves[1].copy_from_slice(&flow_id[8..]);
    u64::from_le_bytes(halves[0]) ^ u64::from_le_bytes(halves[1]).rotate_left(29)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u64) -> [u8; 16] {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&n.to_le_bytes());
        id
    }

    #[test]
    fn a_flow_is_judged_once_an_epoch_while_it_lives() {
        let mut seen = Seen::new(10);
        assert_eq!(seen.note(&id(1), 5, false), Sight::First);
        assert_eq!(seen.note(&id(1), 5, false), Sight::Known);
        assert_eq!(
            seen.note(&id(1), 6, true),
            Sight::Known,
            "an ended flow is not judged by later policies"
        );
        assert_eq!(seen.note(&id(1), 6, false), Sight::Again);
        assert_eq!(seen.note(&id(1), 6, false), Sight::Known);
        assert_eq!(
            seen.note(&id(2), 6, true),
            Sight::First,
            "a flow that is only known by its end is judged"
        );
        seen.forget(&id(2));
        assert_eq!(seen.note(&id(2), 6, false), Sight::First);
    }

    #[test]
    fn memory_is_bounded_and_the_recent_is_kept() {
        let mut seen = Seen::new(100);
        for n in 0..10_000 {
            seen.note(&id(n), 1, false);
            assert!(seen.len() <= 200);
        }
        for n in 9_900..10_000 {
            assert_eq!(seen.note(&id(n), 1, false), Sight::Known);
        }
    }
}
