//! Sets of texts told by patterns, decided exactly.

use std::{collections::BTreeSet, fmt};

use serde::Serialize;

/// A set of texts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum TextPattern {
    /// Every text.
    Any,
    /// This text alone.
    Exact(String),
    /// Every text that starts so.
    Prefix(String),
    /// Every text that ends so.
    Suffix(String),
}

impl TextPattern {
    /// Reads `text`, `text*`, `*text` or `*`. A star anywhere else is refused.
    pub fn read(text: &str) -> Option<Self> {
        let plain = |part: &str| (!part.contains('*')).then(|| part.to_owned());
        if text == "*" {
            Some(Self::Any)
        } else if let Some(prefix) = text.strip_suffix('*') {
            plain(prefix).map(Self::Prefix)
        } else if let Some(suffix) = text.strip_prefix('*') {
            plain(suffix).map(Self::Suffix)
        } else {
            plain(text).map(Self::Exact)
        }
    }

    /// Whether a text is a member.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => text == exact,
            Self::Prefix(prefix) => text.starts_with(prefix.as_str()),
            Self::Suffix(suffix) => text.ends_with(suffix.as_str()),
        }
    }

    /// Whether every text of `other` is one of `self`.
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Any, _) => true,
            (Self::Prefix(outer), Self::Prefix(inner)) => inner.starts_with(outer.as_str()),
            (Self::Suffix(outer), Self::Suffix(inner)) => inner.ends_with(outer.as_str()),
            (outer, Self::Exact(text)) => outer.matches(text),
            (Self::Prefix(text) | Self::Suffix(text), _) => text.is_empty(),
            (Self::Exact(_), _) => false,
        }
    }
}

impl fmt::Display for TextPattern {
    /// As [`TextPattern::read`] reads it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Exact(text) => f.write_str(text),
            Self::Prefix(text) => write!(f, "{text}*"),
            Self::Suffix(text) => write!(f, "*{text}"),
        }
    }
}

/// The union of patterns, none of which another one covers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
pub struct TextSet {
    patterns: BTreeSet<TextPattern>,
}

impl TextSet {
    /// Every text.
    pub fn full() -> Self {
        Self::of([TextPattern::Any])
    }

    /// The union of patterns.
    pub fn of(patterns: impl IntoIterator<Item = TextPattern>) -> Self {
        let all: BTreeSet<TextPattern> = patterns
            .into_iter()
            .map(|pattern| match pattern {
                TextPattern::Prefix(text) | TextPattern::Suffix(text) if text.is_empty() => TextPattern::Any,
                other => other,
            })
            .collect();
        let patterns = all
            .iter()
            .filter(|inner| !all.iter().any(|outer| outer != *inner && outer.covers(inner)))
            .cloned()
            .collect();
        Self { patterns }
    }

    /// The patterns.
    pub fn patterns(&self) -> impl Iterator<Item = &TextPattern> {
        self.patterns.iter()
    }

    /// Whether a text is a member.
    pub fn matches(&self, text: &str) -> bool {
        self.patterns.iter().any(|pattern| pattern.matches(text))
    }

    /// Whether there is no member.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether every text is a member.
    pub fn is_full(&self) -> bool {
        self.patterns.contains(&TextPattern::Any)
    }

    /// Whether every member is in `other`.
    pub fn is_subset(&self, other: &Self) -> bool {
        witnesses([self, other])
            .iter()
            .all(|text| !self.matches(text) || other.matches(text))
    }
}

impl fmt::Display for TextSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, pattern) in self.patterns.iter().enumerate() {
            write!(f, "{}{pattern}", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// Stands for whatever no pattern speaks of.
const FRESH: char = '\u{10FFFD}';

/// Texts that stand for all: whichever of the sets' patterns hold of any text, they hold of one of these.
///
/// Of the prefixes (suffixes) that a text starts (ends) with, the longest says which others do. Where the longest ones
/// do not overlap in the text, putting something foreign between them changes nothing; where they do, the text is
/// one of the few ways to lay one over the other. Texts that are named in full stand for themselves.
pub fn witnesses<'s>(sets: impl IntoIterator<Item = &'s TextSet>) -> Vec<String> {
    let mut found = BTreeSet::new();
    let mut prefixes = BTreeSet::from([""]);
    let mut suffixes = BTreeSet::from([""]);
    for pattern in sets.into_iter().flat_map(|set| &set.patterns) {
        match pattern {
            TextPattern::Any => {}
            TextPattern::Exact(text) => {
                found.insert(text.clone());
            }
            TextPattern::Prefix(text) => {
                prefixes.insert(text);
            }
            TextPattern::Suffix(text) => {
                suffixes.insert(text);
            }
        }
    }
    for prefix in &prefixes {
        for suffix in &suffixes {
            found.insert(format!("{prefix}{FRESH}{suffix}"));
            let ends = suffix.char_indices().map(|(at, _)| at).chain([suffix.len()]);
            for at in ends {
                let (over, rest) = suffix.split_at(at);
                if prefix.ends_with(over) {
                    found.insert(format!("{prefix}{rest}"));
                }
            }
        }
    }
    found.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pattern() -> impl Strategy<Value = TextPattern> {
        prop_oneof![
            1 => Just(TextPattern::Any),
            3 => "[ab]{0,3}".prop_map(TextPattern::Exact),
            3 => "[ab]{0,3}".prop_map(TextPattern::Prefix),
            3 => "[ab]{0,3}".prop_map(TextPattern::Suffix),
        ]
    }

    fn texts() -> Vec<String> {
        let mut all = vec![String::new()];
        let mut from = 0;
        for _ in 0..7 {
            let to = all.len();
            for i in from..to {
                for letter in ["a", "b", "c"] {
                    let longer = format!("{}{letter}", all[i]);
                    all.push(longer);
                }
            }
            from = to;
        }
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

        #[test]
        fn witnesses_stand_for_every_text(a in prop::collection::vec(pattern(), 0..4), b in prop::collection::vec(pattern(), 0..4)) {
            let (a, b) = (TextSet::of(a), TextSet::of(b));
            let signature = |text: &str| -> Vec<bool> {
                a.patterns().chain(b.patterns()).map(|p| p.matches(text)).collect()
            };
            let known: BTreeSet<Vec<bool>> = witnesses([&a, &b]).iter().map(|t| signature(t)).collect();
            for text in texts() {
                prop_assert!(known.contains(&signature(&text)), "nothing stands for {text:?}");
            }
            let subset = texts().iter().all(|t| !a.matches(t) || b.matches(t));
            prop_assert_eq!(a.is_subset(&b), subset);
        }
    }

    #[test]
    fn stars_are_read_at_one_end_only() {
        assert_eq!(TextPattern::read("*"), Some(TextPattern::Any));
        assert_eq!(TextPattern::read("/a*"), Some(TextPattern::Prefix("/a".into())));
        assert_eq!(TextPattern::read("*.b"), Some(TextPattern::Suffix(".b".into())));
        assert_eq!(TextPattern::read("a*b"), None);
        assert_eq!(TextPattern::read("*a*"), None);
    }
}
