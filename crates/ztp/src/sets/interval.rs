/// A finite, totally ordered type whose values can be counted through.
pub trait Bound: Copy + Ord + std::fmt::Debug {
    /// The smallest value.
    const MIN: Self;
    /// The largest value.
    const MAX: Self;
    /// The next larger value; `None` at the end.
    fn next(self) -> Option<Self>;
    /// The next smaller value; `None` at the start.
    fn previous(self) -> Option<Self>;
}

macro_rules! bounds {
    ($($int:ty),*) => {$(
        impl Bound for $int {
            const MIN: Self = <$int>::MIN;
            const MAX: Self = <$int>::MAX;
            fn next(self) -> Option<Self> { self.checked_add(1) }
            fn previous(self) -> Option<Self> { self.checked_sub(1) }
        }
    )*};
}
bounds!(u8, u16, u32, u128);

/// A set of values held as sorted, disjoint, non-adjacent closed intervals.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IntervalSet<T> {
    ranges: Vec<(T, T)>,
}

impl<T> Default for IntervalSet<T> {
    fn default() -> Self {
        Self { ranges: Vec::new() }
    }
}

impl<T: Bound> IntervalSet<T> {
    /// The empty set.
    pub fn empty() -> Self {
        Self::default()
    }

    /// Every value.
    pub fn full() -> Self {
        Self {
            ranges: vec![(T::MIN, T::MAX)],
        }
    }

    /// The union of closed intervals, in any order; an interval whose start is above its end is empty.
    pub fn from_ranges(ranges: impl IntoIterator<Item = (T, T)>) -> Self {
        let mut sorted: Vec<(T, T)> = ranges.into_iter().filter(|(a, b)| a <= b).collect();
        sorted.sort_unstable();
        let mut merged: Vec<(T, T)> = Vec::with_capacity(sorted.len());
        for (start, end) in sorted {
            match merged.last_mut() {
                // Adjacent intervals become one, so that equal sets are equal values.
                Some(last) if last.1.next().is_none_or(|after| start <= after) => {
                    last.1 = last.1.max(end);
                }
                _ => merged.push((start, end)),
            }
        }
        Self { ranges: merged }
    }

    /// The intervals, ascending.
    pub fn ranges(&self) -> &[(T, T)] {
        &self.ranges
    }

    /// Whether the set has no member.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Whether the set has every value.
    pub fn is_full(&self) -> bool {
        self.ranges == [(T::MIN, T::MAX)]
    }

    /// Whether `value` is a member.
    pub fn contains(&self, value: T) -> bool {
        let after = self.ranges.partition_point(|(start, _)| *start <= value);
        after > 0 && self.ranges[after - 1].1 >= value
    }

    /// Members of either.
    pub fn union(&self, other: &Self) -> Self {
        Self::from_ranges(self.ranges.iter().chain(&other.ranges).copied())
    }

    /// Members of both.
    pub fn intersect(&self, other: &Self) -> Self {
        let (mut i, mut j) = (0, 0);
        let mut ranges = Vec::new();
        while let (Some(a), Some(b)) = (self.ranges.get(i), other.ranges.get(j)) {
            let (start, end) = (a.0.max(b.0), a.1.min(b.1));
            if start <= end {
                ranges.push((start, end));
            }
            if a.1 < b.1 {
                i += 1;
            } else {
                j += 1;
            }
        }
        Self { ranges }
    }

    /// Whether anything is a member of both.
    pub fn overlaps(&self, other: &Self) -> bool {
        let (mut i, mut j) = (0, 0);
        while let (Some(a), Some(b)) = (self.ranges.get(i), other.ranges.get(j)) {
            if a.0.max(b.0) <= a.1.min(b.1) {
                return true;
            }
            if a.1 < b.1 {
                i += 1;
            } else {
                j += 1;
            }
        }
        false
    }

    /// Everything that is no member.
    pub fn complement(&self) -> Self {
        let mut ranges = Vec::with_capacity(self.ranges.len() + 1);
        let mut from = Some(T::MIN);
        for (start, end) in &self.ranges {
            if let (Some(from), Some(before)) = (from, start.previous())
                && from <= before
            {
                ranges.push((from, before));
            }
            from = end.next();
        }
        if let Some(from) = from {
            ranges.push((from, T::MAX));
        }
        Self { ranges }
    }

    /// Members of `self` that are not in `other`.
    pub fn subtract(&self, other: &Self) -> Self {
        self.intersect(&other.complement())
    }

    /// Whether every member is in `other`.
    pub fn is_subset(&self, other: &Self) -> bool {
        self.subtract(other).is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set() -> impl Strategy<Value = IntervalSet<u8>> {
        prop::collection::vec((any::<u8>(), any::<u8>()), 0..6).prop_map(IntervalSet::from_ranges)
    }

    proptest! {
        #[test]
        fn operations_mean_what_they_say(a in set(), b in set()) {
            let (union, both, minus, not) = (a.union(&b), a.intersect(&b), a.subtract(&b), a.complement());
            for v in 0..=u8::MAX {
                prop_assert_eq!(union.contains(v), a.contains(v) || b.contains(v));
                prop_assert_eq!(both.contains(v), a.contains(v) && b.contains(v));
                prop_assert_eq!(minus.contains(v), a.contains(v) && !b.contains(v));
                prop_assert_eq!(not.contains(v), !a.contains(v));
            }
            prop_assert_eq!(a.overlaps(&b), !both.is_empty());
            prop_assert_eq!(a.is_subset(&b), (0..=u8::MAX).all(|v| !a.contains(v) || b.contains(v)));
            prop_assert_eq!(not.complement(), a.clone());
            for set in [union, both, minus, not] {
                for pair in set.ranges().windows(2) {
                    prop_assert!(pair[0].1.next().is_some_and(|after| after < pair[1].0), "not canonical");
                }
            }
        }
    }
}
