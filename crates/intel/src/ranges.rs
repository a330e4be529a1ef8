//! Nested networks as disjoint ranges of addresses, each with the narrowest network that contains it.

/// An address as a number.
pub(crate) trait Bits: Copy + Ord {
    /// The next one, if there is one.
    fn next(self) -> Option<Self>;
    /// Its upper half-word, for the first step of a search.
    fn top(self) -> usize;
}

impl Bits for u32 {
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
    #[inline]
    fn top(self) -> usize {
        (self >> 16) as usize
    }
}

impl Bits for u128 {
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
    #[inline]
    fn top(self) -> usize {
        (self >> 112) as usize
    }
}

/// No network.
const NONE: u32 = u32::MAX;

/// One network of the table: its entry, and the network around it.
#[derive(Clone, Copy, Debug)]
struct Net {
    entry: u32,
    around: u32,
}

/// The networks of one address family.
#[derive(Clone, Debug)]
pub(crate) struct Ranges<B> {
    /// Where each range begins; the first one at the family's first address.
    starts: Box<[B]>,
    /// The narrowest network of each range, or [`NONE`].
    inner: Box<[u32]>,
    nets: Box<[Net]>,
    /// For each value of the upper 16 bits, the last range that begins at or before it.
    top: Box<[u32]>,
}

impl<B: Bits> Ranges<B> {
    /// From first address, last address and entry of each network. Networks are nested or apart, and each is there once.
    pub(crate) fn new(zero: B, mut networks: Vec<(B, B, u32)>, first_of_top: impl Fn(usize) -> B) -> Self {
        if networks.is_empty() {
            return Self {
                starts: Box::default(),
                inner: Box::default(),
                nets: Box::default(),
                top: Box::default(),
            };
        }
        networks.sort_unstable_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
        let (mut starts, mut inner) = (vec![zero], vec![NONE]);
        let mut begin = |at: B, net: u32| {
            if starts.last() == Some(&at) {
                if let Some(last) = inner.last_mut() {
                    *last = net;
                }
            } else {
                starts.push(at);
                inner.push(net);
            }
        };
        let mut nets: Vec<Net> = Vec::with_capacity(networks.len());
        // The networks around the present address, with their last addresses.
        let mut open: Vec<(u32, B)> = Vec::new();
        let close = |open: &mut Vec<(u32, B)>, before: Option<B>, begin: &mut dyn FnMut(B, u32)| {
            while let Some(&(_, last)) = open.last()
                && before.is_none_or(|b| last < b)
            {
                open.pop();
                if let Some(after) = last.next() {
                    begin(after, open.last().map_or(NONE, |o| o.0));
                }
            }
        };
        for (first, last, entry) in networks {
            close(&mut open, Some(first), &mut begin);
            let number = u32::try_from(nets.len()).unwrap_or(NONE);
            nets.push(Net {
                entry,
                around: open.last().map_or(NONE, |o| o.0),
            });
            begin(first, number);
            open.push((number, last));
        }
        close(&mut open, None, &mut begin);
        let top = (0..=usize::from(u16::MAX))
            .map(|t| {
                let first = first_of_top(t);
                u32::try_from(starts.partition_point(|s| *s <= first) - 1).unwrap_or(NONE)
            })
            .collect();
        Self {
            starts: starts.into_boxed_slice(),
            inner: inner.into_boxed_slice(),
            nets: nets.into_boxed_slice(),
            top,
        }
    }

    /// The entries of the networks that contain an address, narrowest first.
    #[inline]
    pub(crate) fn containing(&self, address: B) -> impl Iterator<Item = u32> + '_ {
        let mut net = self.innermost(address);
        std::iter::from_fn(move || {
            let at = self.nets.get(net as usize)?;
            net = at.around;
            Some(at.entry)
        })
    }

    #[inline]
    fn innermost(&self, address: B) -> u32 {
        let top = address.top();
        let Some(&low) = self.top.get(top) else {
            return NONE;
        };
        let high = self.top.get(top + 1).map_or(self.starts.len() - 1, |r| *r as usize);
        let within = &self.starts[low as usize..=high];
        let at = low as usize + within.partition_point(|s| *s <= address) - 1;
        self.inner[at]
    }

    pub(crate) fn octets(&self) -> usize {
        size_of_val(&*self.starts) + size_of_val(&*self.inner) + size_of_val(&*self.nets) + size_of_val(&*self.top)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table(networks: &[(u32, u8)]) -> Ranges<u32> {
        let ends = |(address, prefix): (u32, u8)| {
            let host = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
            (address & !host, address | host)
        };
        let mut seen = std::collections::BTreeSet::new();
        let networks = networks.iter().filter(|n| seen.insert((ends(**n), n.1)));
        let all = networks
            .map(|n| {
                let (first, last) = ends(*n);
                (first, last, u32::from(n.1))
            })
            .collect();
        Ranges::new(0, all, |t| (t as u32) << 16)
    }

    #[test]
    fn the_narrowest_is_first_and_the_ends_belong() {
        let ranges = table(&[
            (0x0a00_0000, 8),
            (0x0a01_0000, 16),
            (0x0a01_0200, 24),
            (0xffff_ff00, 24),
        ]);
        let at = |a: u32| ranges.containing(a).collect::<Vec<_>>();
        assert_eq!(at(0x0a01_0203), [24, 16, 8]);
        assert_eq!(at(0x0a01_0300), [16, 8]);
        assert_eq!(at(0x0a02_0000), [8]);
        assert_eq!(at(0x0aff_ffff), [8]);
        assert_eq!(at(0x0b00_0000), [0; 0]);
        assert_eq!(at(0x09ff_ffff), [0; 0]);
        assert_eq!(at(u32::MAX), [24]);
        assert_eq!(table(&[]).containing(5).count(), 0);
        assert_eq!(table(&[(0, 0)]).containing(u32::MAX).collect::<Vec<_>>(), [0]);
    }

    proptest! {
        #[test]
        fn agrees_with_asking_every_network(
            networks in prop::collection::vec((any::<u32>(), 0_u8..32), 0..40),
            picks in prop::collection::vec((any::<prop::sample::Index>(), any::<u16>()), 20),
        ) {
            let ranges = table(&networks);
            for (pick, near) in picks {
                let base = if networks.is_empty() { 0 } else { networks[pick.index(networks.len())].0 };
                let address = base ^ u32::from(near);
                let mut want: Vec<u32> = networks
                    .iter()
                    .filter(|(a, p)| (a ^ address).checked_shr(32 - u32::from(*p)).unwrap_or(0) == 0)
                    .map(|n| u32::from(n.1))
                    .collect();
                want.sort_unstable_by(|a, b| b.cmp(a));
                want.dedup();
                prop_assert_eq!(ranges.containing(address).collect::<Vec<_>>(), want);
            }
        }
    }
}
