//! From indicators to an index.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use crate::{
    canonical,
    filter::Filter,
    hash::Keyed,
    index::{CLAIM, Claim, Details, HEAD, Index, place},
    indicator::{Indicator, Span},
    ranges::Ranges,
    value::{Kind, Value},
};

/// Labels, and techniques, kept of an indicator.
const WORDS: usize = 8;
/// Longest label, reference or context, octets.
const LONGEST_TEXT: usize = 160;
/// Different combinations of source, confidence, context, labels and techniques. Of more, only source and confidence
/// are kept.
const COMBINATIONS: usize = 65_536;

/// There is no room for more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the index holds {most} indicators and takes no more; raise the limit or drop a feed")]
pub struct Full {
    /// How many it may hold.
    pub most: usize,
}

/// Collects indicators for an [`Index`].
#[derive(Debug)]
pub struct Builder {
    hash: Keyed,
    most: usize,
    now: i64,
    /// Entries of one claim each, as they lie in an index.
    staged: Vec<u8>,
    rows: Vec<(u64, u32)>,
    details: Vec<Details>,
    known: HashMap<Details, u32>,
    words: HashSet<Arc<str>>,
    sources: Vec<Arc<str>>,
    simplified: u64,
}

impl Builder {
    /// For at most so many claims. What is no longer valid at `now`, seconds since the epoch, is left out.
    pub fn new(most: usize, now: i64) -> Self {
        Self {
            hash: Keyed::of_process(),
            most,
            now,
            staged: Vec::new(),
            rows: Vec::new(),
            details: Vec::new(),
            known: HashMap::new(),
            words: HashSet::new(),
            sources: Vec::new(),
            simplified: 0,
        }
    }

    /// Claims so far, repeated ones included.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Nothing was added.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Claims whose labels and context were dropped, because there were too many different ones.
    pub fn simplified(&self) -> u64 {
        self.simplified
    }

    /// Takes over the claims of an earlier index that are to be kept. Answers how many have expired.
    ///
    /// # Errors
    /// [`Full`].
    pub fn carry(&mut self, from: &Index, mut keep: impl FnMut(&Claim<'_>) -> bool) -> Result<u64, Full> {
        let mut numbers: HashMap<u32, u32> = HashMap::new();
        let mut expired = 0;
        for entry in from.entries() {
            for claim in entry.claims() {
                if claim.span.over(self.now) {
                    expired += 1;
                } else if keep(&claim) {
                    let number = match numbers.get(&claim.number) {
                        Some(number) => *number,
                        None => {
                            let source = self.source(claim.source);
                            let number = self.intern(Details {
                                source,
                                ..claim.details.clone()
                            });
                            numbers.insert(claim.number, number);
                            number
                        }
                    };
                    self.stage(entry.kind(), entry.key(), number, claim.span, claim.reference)?;
                }
            }
        }
        Ok(expired)
    }

    /// Adds what a source says. `confidence` stands in where the indicator has none; `deliberate` says that it holds
    /// although a warning list has the value. False when it is no longer valid.
    ///
    /// # Errors
    /// [`Full`].
    pub fn add(&mut self, source: &str, indicator: &Indicator, confidence: u8, deliberate: bool) -> Result<bool, Full> {
        if indicator.span.over(self.now) {
            return Ok(false);
        }
        let source = self.source(source);
        let details = Details {
            source,
            confidence: indicator.confidence.unwrap_or(confidence).min(100),
            deliberate,
            context: self.word(&indicator.context),
            labels: indicator.labels.iter().take(WORDS).map(|l| self.word(l)).collect(),
            techniques: indicator.techniques.iter().take(WORDS).map(|t| self.word(t)).collect(),
        };
        let number = self.intern(details);
        let value = &indicator.value;
        self.stage(
            value.kind(),
            value.key(),
            number,
            indicator.span,
            cut(&indicator.reference),
        )?;
        Ok(true)
    }

    fn source(&mut self, name: &str) -> u16 {
        let at = self.sources.iter().position(|s| **s == *name).unwrap_or_else(|| {
            self.sources.push(name.into());
            self.sources.len() - 1
        });
        u16::try_from(at).unwrap_or(u16::MAX)
    }

    fn word(&mut self, text: &str) -> Arc<str> {
        let text = cut(text);
        if let Some(word) = self.words.get(text) {
            return Arc::clone(word);
        }
        let word: Arc<str> = text.into();
        if self.words.len() < 2 * COMBINATIONS {
            self.words.insert(Arc::clone(&word));
        }
        word
    }

    fn intern(&mut self, details: Details) -> u32 {
        if let Some(number) = self.known.get(&details) {
            return *number;
        }
        let plain = details.context.is_empty() && details.labels.is_empty() && details.techniques.is_empty();
        if self.details.len() >= COMBINATIONS && !plain {
            self.simplified += 1;
            return self.intern(Details {
                context: "".into(),
                labels: Box::default(),
                techniques: Box::default(),
                ..details
            });
        }
        let number = u32::try_from(self.details.len()).unwrap_or(u32::MAX);
        self.details.push(details.clone());
        self.known.insert(details, number);
        number
    }

    fn stage(&mut self, kind: Kind, key: &[u8], details: u32, span: Span, reference: &str) -> Result<(), Full> {
        let full = Full { most: self.most };
        let at = u32::try_from(self.staged.len()).map_err(|_| full.clone())?;
        if self.rows.len() >= self.most {
            return Err(full);
        }
        self.rows.push((self.hash.key(kind, key), at));
        head(&mut self.staged, kind, 1, key);
        claim(&mut self.staged, details, span, reference.as_bytes());
        Ok(())
    }

    /// Makes the index.
    pub fn build(mut self) -> Index {
        self.rows.sort_unstable();
        let slots = (self.rows.len() * 3 / 2).max(1);
        let mut index = Index {
            hash: self.hash,
            filter: Filter::new(self.rows.len()),
            slots: vec![0; slots].into_boxed_slice(),
            arena: Box::default(),
            details: self.details.into_boxed_slice(),
            sources: self.sources.into_boxed_slice(),
            v4: Ranges::new(0, Vec::new(), |_| 0),
            v6: Ranges::new(0, Vec::new(), |_| 0),
            depths: 0,
            kinds: Default::default(),
            claims: 0,
        };
        let mut arena = Vec::with_capacity(self.staged.len());
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        let staged = |at: u32| Staged::read(&self.staged[at as usize..]);
        let mut rows = &self.rows[..];
        while let Some(&(hash, _)) = rows.first() {
            let (same, rest) = rows.split_at(rows.partition_point(|r| r.0 == hash));
            rows = rest;
            // Nearly always the rows of one value; different ones of the same hash are told apart.
            let mut waiting: Vec<Staged<'_>> = same.iter().map(|(_, at)| staged(*at)).collect();
            while let Some(first) = waiting.first().copied() {
                let (of_it, others): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|s| s.is_of(&first));
                waiting = others;
                let Ok(at) = u32::try_from(arena.len()) else { break };
                let claims = best(&of_it, &index.details);
                head(&mut arena, first.kind, claims.len() as u8, first.key);
                for c in &claims {
                    claim(&mut arena, c.details, c.span, c.reference);
                }
                index.claims += claims.len() as u64;
                index.kinds[first.kind as usize] += 1;
                index.filter.insert(hash);
                insert(&mut index.slots, hash, at);
                match first.kind {
                    Kind::DomainTree => {
                        let dots = first.key.iter().filter(|b| **b == b'.').count();
                        index.depths |= 1 << dots.min(63);
                    }
                    Kind::Network => match Value::new(Kind::Network, first.key).as_network() {
                        Some((IpAddr::V4(a), p)) => {
                            let host = u32::MAX.checked_shr(p.into()).unwrap_or(0);
                            v4.push((u32::from(a), u32::from(a) | host, at));
                        }
                        Some((IpAddr::V6(a), p)) => {
                            let host = u128::MAX.checked_shr(p.into()).unwrap_or(0);
                            v6.push((u128::from(a), u128::from(a) | host, at));
                        }
                        None => {}
                    },
                    _ => {}
                }
            }
        }
        index.arena = arena.into_boxed_slice();
        index.v4 = Ranges::new(0, v4, |top| (top as u32) << 16);
        index.v6 = Ranges::new(0, v6, |top| (top as u128) << 112);
        index
    }
}

impl Index {
    /// What this index knows and an earlier one does not: the values that are new.
    pub fn since(&self, earlier: &Index) -> Index {
        let mut builder = Builder::new(usize::try_from(self.claims).unwrap_or(usize::MAX), 0);
        builder.sources = self.sources.to_vec();
        builder.details = self.details.to_vec();
        for entry in self.entries() {
            if earlier.exact(&entry.to_value()).is_none() {
                for claim in entry.claims() {
                    // There is room for every claim.
                    let _ = builder.stage(entry.kind(), entry.key(), claim.number, claim.span, claim.reference);
                }
            }
        }
        builder.build()
    }
}

/// An entry as it was staged.
#[derive(Clone, Copy)]
struct Staged<'a> {
    kind: Kind,
    key: &'a [u8],
    details: u32,
    span: Span,
    reference: &'a [u8],
}

impl<'a> Staged<'a> {
    fn read(bytes: &'a [u8]) -> Self {
        let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let key = HEAD + usize::from(u16::from_le_bytes([bytes[2], bytes[3]]));
        let reference = usize::from(bytes[key + 12]);
        Self {
            kind: Kind::of_octet(bytes[0]).unwrap_or(Kind::File),
            key: &bytes[HEAD..key],
            details: number(key),
            span: Span {
                from: number(key + 4),
                until: number(key + 8),
            },
            reference: &bytes[key + CLAIM..key + CLAIM + reference],
        }
    }

    fn is_of(&self, other: &Self) -> bool {
        self.kind == other.kind && self.key == other.key
    }
}

// One claim a source: of several, the one that is valid longest, then the surest.
fn best<'a>(staged: &[Staged<'a>], details: &[Details]) -> Vec<Staged<'a>> {
    let of = |s: &Staged<'_>| details.get(s.details as usize);
    let mut claims: Vec<Staged<'a>> = Vec::new();
    for s in staged {
        let source = of(s).map(|d| d.source);
        let rank = |s: &Staged<'_>| (s.span.until, of(s).map(|d| d.confidence));
        match claims.iter().position(|c| of(c).map(|d| d.source) == source) {
            Some(at) if rank(&claims[at]) >= rank(s) => {}
            Some(at) => claims[at] = *s,
            None if claims.len() < usize::from(u8::MAX) => claims.push(*s),
            None => {}
        }
    }
    claims
}

fn insert(slots: &mut [u64], hash: u64, at: u32) {
    let mut slot = place(hash, slots.len());
    while slots[slot] != 0 {
        slot = (slot + 1) % slots.len();
    }
    slots[slot] = (hash & 0xffff_ffff) << 32 | u64::from(at + 1);
}

fn head(to: &mut Vec<u8>, kind: Kind, claims: u8, key: &[u8]) {
    to.extend([kind as u8, claims]);
    to.extend((key.len() as u16).to_le_bytes());
    to.extend(key);
}

fn claim(to: &mut Vec<u8>, details: u32, span: Span, reference: &[u8]) {
    for number in [details, span.from, span.until] {
        to.extend(number.to_le_bytes());
    }
    to.push(reference.len() as u8);
    to.extend(reference);
}

fn cut(text: &str) -> &str {
    canonical::cut(text, LONGEST_TEXT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Indicator {
        Indicator::of(Value::guess(text, false).unwrap())
    }

    #[test]
    fn several_sources_may_claim_a_value_and_one_claims_it_once() {
        let mut builder = Builder::new(10, 100);
        let mut sure = said("192.0.2.1");
        sure.confidence = Some(90);
        sure.labels = vec!["c2".to_owned()];
        sure.reference = "indicator--1".to_owned();
        for (source, indicator) in [("a", &said("192.0.2.1")), ("a", &sure), ("b", &said("192.0.2.1"))] {
            assert!(builder.add(source, indicator, 40, false).unwrap());
        }
        let index = builder.build();
        assert_eq!((index.len(), index.claims()), (1, 2));
        let entry = index.exact(&sure.value).unwrap();
        let claims: Vec<_> = entry.claims().collect();
        assert_eq!(
            claims.iter().map(|c| (c.source, c.confidence())).collect::<Vec<_>>(),
            [("a", 90), ("b", 40)]
        );
        assert_eq!(claims[0].labels().collect::<Vec<_>>(), ["c2"]);
        assert_eq!(claims[0].reference, "indicator--1");
    }

    #[test]
    fn what_has_expired_is_left_out_and_later_taken_away() {
        let mut builder = Builder::new(10, 100);
        let mut passing = said("192.0.2.1");
        passing.span = Span::of(None, Some(150));
        assert!(builder.add("a", &passing, 40, false).unwrap());
        passing.span = Span::of(None, Some(99));
        assert!(!builder.add("a", &passing, 40, false).unwrap());
        builder.add("b", &said("192.0.2.2"), 40, true).unwrap();
        let index = builder.build();
        let mut later = Builder::new(10, 151);
        assert_eq!(later.carry(&index, |_| true).unwrap(), 1);
        let later = later.build();
        assert_eq!(later.len(), 1);
        assert!(
            later
                .entries()
                .all(|e| e.claims().all(|c| c.source == "b" && c.deliberate()))
        );
    }

    #[test]
    fn a_source_is_replaced_and_the_new_is_told() {
        let mut builder = Builder::new(10, 0);
        for (source, text) in [("a", "192.0.2.1"), ("a", "192.0.2.2"), ("b", "evil.example")] {
            builder.add(source, &said(text), 50, false).unwrap();
        }
        let before = builder.build();
        let mut builder = Builder::new(10, 0);
        builder.carry(&before, |claim| claim.source != "a").unwrap();
        for text in ["192.0.2.2", "192.0.2.3"] {
            builder.add("a", &said(text), 50, false).unwrap();
        }
        let after = builder.build();
        let mut values: Vec<String> = after.entries().map(|e| e.to_value().to_string()).collect();
        values.sort();
        assert_eq!(values, ["192.0.2.2", "192.0.2.3", "evil.example"]);
        let new: Vec<String> = after
            .since(&before)
            .entries()
            .map(|e| e.to_value().to_string())
            .collect();
        assert_eq!(new, ["192.0.2.3"]);
        assert!(after.since(&after).is_empty());
    }

    #[test]
    fn a_full_index_says_so() {
        let mut builder = Builder::new(1, 0);
        builder.add("a", &said("192.0.2.1"), 50, false).unwrap();
        let error = builder.add("a", &said("192.0.2.2"), 50, false).unwrap_err();
        assert!(error.to_string().contains("holds 1 indicators"));
    }

    #[test]
    fn labels_without_end_cost_no_memory_without_end() {
        let mut builder = Builder::new(200_000, 0);
        for n in 0..70_000_u32 {
            let mut indicator = Indicator::of(Value::address(IpAddr::from(n.to_be_bytes())));
            indicator.labels = vec![format!("label {n}")];
            builder.add("a", &indicator, 50, false).unwrap();
        }
        assert!(builder.simplified() > 4_000);
        assert!(builder.details.len() <= COMBINATIONS + 2);
        assert_eq!(builder.build().len(), 70_000);
    }
}
