use std::collections::{BTreeMap, BTreeSet};

/// The labels of a workload or a namespace.
pub type Labels = BTreeMap<String, String>;

/// What one label may be: exactly the values given, or any but those; and whether it may be missing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LabelValues {
    /// Whether the label may be missing.
    pub absent: bool,
    /// `values` are forbidden rather than required.
    pub inverted: bool,
    /// The values.
    pub values: BTreeSet<String>,
}

impl LabelValues {
    /// The label is there with one of the values (Kubernetes `In`).
    pub fn within(values: impl IntoIterator<Item = String>) -> Self {
        Self {
            absent: false,
            inverted: false,
            values: values.into_iter().collect(),
        }
    }

    /// The label is missing or has another value (Kubernetes `NotIn`).
    pub fn not_within(values: impl IntoIterator<Item = String>) -> Self {
        Self {
            absent: true,
            inverted: true,
            values: values.into_iter().collect(),
        }
    }

    /// The label is there (Kubernetes `Exists`).
    pub fn exists() -> Self {
        Self {
            absent: false,
            inverted: true,
            values: BTreeSet::new(),
        }
    }

    /// The label is missing (Kubernetes `DoesNotExist`).
    pub fn missing() -> Self {
        Self {
            absent: true,
            inverted: false,
            values: BTreeSet::new(),
        }
    }

    fn matches(&self, value: Option<&String>) -> bool {
        value.map_or(self.absent, |value| self.values.contains(value) != self.inverted)
    }

    fn is_empty(&self) -> bool {
        !self.absent && !self.inverted && self.values.is_empty()
    }

    fn is_full(&self) -> bool {
        self.absent && self.inverted && self.values.is_empty()
    }

    fn complement(&self) -> Self {
        Self {
            absent: !self.absent,
            inverted: !self.inverted,
            values: self.values.clone(),
        }
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.absent && other.absent
            || match (self.inverted, other.inverted) {
                (false, false) => !self.values.is_disjoint(&other.values),
                (false, true) => !self.values.is_subset(&other.values),
                (true, false) => !other.values.is_subset(&self.values),
                // Values are without end.
                (true, true) => true,
            }
    }

    fn intersect(&self, other: &Self) -> Self {
        let (inverted, values) = match (self.inverted, other.inverted) {
            (false, false) => (false, &self.values & &other.values),
            (false, true) => (false, &self.values - &other.values),
            (true, false) => (false, &other.values - &self.values),
            (true, true) => (true, &self.values | &other.values),
        };
        Self {
            absent: self.absent && other.absent,
            inverted,
            values,
        }
    }
}

/// A set of workloads (or namespaces) by their labels: the conjunction of one [`LabelValues`] a label.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    labels: BTreeMap<String, LabelValues>,
}

impl Selector {
    /// Everything.
    pub fn full() -> Self {
        Self::default()
    }

    /// Narrows by one label.
    #[must_use]
    pub fn and(mut self, key: impl Into<String>, values: LabelValues) -> Self {
        let key = key.into();
        let values = match self.labels.get(&key) {
            Some(present) => present.intersect(&values),
            None => values,
        };
        if values.is_full() {
            self.labels.remove(&key);
        } else {
            self.labels.insert(key, values);
        }
        self
    }

    /// What each label may be; a label that is not here may be anything.
    pub fn labels(&self) -> &BTreeMap<String, LabelValues> {
        &self.labels
    }

    /// Whether labels are in the set.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.labels.iter().all(|(key, values)| values.matches(labels.get(key)))
    }

    /// Whether no labels can be in the set.
    pub fn is_empty(&self) -> bool {
        self.labels.values().any(LabelValues::is_empty)
    }

    /// Whether all labels are in the set.
    pub fn is_full(&self) -> bool {
        self.labels.is_empty()
    }

    /// Members of both.
    #[must_use]
    pub fn intersect(&self, other: &Self) -> Self {
        other
            .labels
            .iter()
            .fold(self.clone(), |set, (key, values)| set.and(key.clone(), values.clone()))
    }

    /// Whether anything is a member of both.
    pub fn overlaps(&self, other: &Self) -> bool {
        let mine = self.labels.iter().all(|(key, values)| match other.labels.get(key) {
            Some(theirs) => values.overlaps(theirs),
            None => !values.is_empty(),
        });
        mine && !other.is_empty()
    }

    /// Members of `self` that are not in `other`, as disjoint sets.
    pub fn subtract(&self, other: &Self) -> Vec<Self> {
        if self.is_empty() {
            return Vec::new();
        }
        if other.is_empty() {
            return vec![self.clone()];
        }
        let mut rest = self.clone();
        let mut pieces = Vec::new();
        for (key, values) in &other.labels {
            let piece = rest.clone().and(key.clone(), values.complement());
            if !piece.is_empty() {
                pieces.push(piece);
            }
            rest = rest.and(key.clone(), values.clone());
        }
        pieces
    }

    /// Disjoint selectors that Kubernetes can write: a label that "is missing or one of …" becomes two.
    pub fn writable(&self) -> Vec<Self> {
        let mut done = vec![Self::full()];
        for (key, values) in &self.labels {
            let either = if values.absent && !values.inverted && !values.values.is_empty() {
                vec![
                    LabelValues::missing(),
                    LabelValues::within(values.values.iter().cloned()),
                ]
            } else {
                vec![values.clone()]
            };
            done = done
                .iter()
                .flat_map(|set| either.iter().map(|v| set.clone().and(key.clone(), v.clone())))
                .collect();
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn values() -> impl Strategy<Value = LabelValues> {
        (any::<bool>(), any::<bool>(), prop::collection::btree_set("[xyz]", 0..3)).prop_map(
            |(absent, inverted, values)| LabelValues {
                absent,
                inverted,
                values,
            },
        )
    }

    fn selector() -> impl Strategy<Value = Selector> {
        prop::collection::btree_map("[ab]", values(), 0..3).prop_map(|labels| {
            labels
                .into_iter()
                .fold(Selector::full(), |set, (key, values)| set.and(key, values))
        })
    }

    proptest! {
        #[test]
        fn operations_mean_what_they_say(a in selector(), b in selector()) {
            let both = a.intersect(&b);
            let minus = a.subtract(&b);
            let written = a.writable();
            let mut any = false;
            for first in [None, Some("x"), Some("y"), Some("z"), Some("w")] {
                for second in [None, Some("x"), Some("y"), Some("z"), Some("w")] {
                    let labels: Labels = [("a", first), ("b", second)]
                        .into_iter()
                        .filter_map(|(k, v)| Some((k.to_owned(), v?.to_owned())))
                        .collect();
                    let (in_a, in_b) = (a.matches(&labels), b.matches(&labels));
                    any |= in_a;
                    prop_assert_eq!(both.matches(&labels), in_a && in_b);
                    let pieces = minus.iter().filter(|p| p.matches(&labels)).count();
                    prop_assert_eq!(pieces, usize::from(in_a && !in_b), "not exact or not disjoint");
                    prop_assert_eq!(written.iter().filter(|p| p.matches(&labels)).count(), usize::from(in_a));
                }
            }
            prop_assert_eq!(a.is_empty(), !any);
            prop_assert_eq!(a.overlaps(&b), !both.is_empty());
        }
    }
}
