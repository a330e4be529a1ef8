//! The index: every indicator in one block of memory, found through a hash table behind a filter.
//!
//! An entry lies in `arena` as: kind, number of claims, length of the key (two octets), key, and for each claim twelve
//! octets of details and validity and the source's reference with its length before it. A slot of the table holds 32 bits
//! of the hash and where the entry lies, so a miss costs a look into the filter, and a hit one into the table and one into
//! the arena.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use crate::{
    canonical::{self, LONGEST_NAME},
    filter::Filter,
    hash::Keyed,
    indicator::Span,
    ranges::Ranges,
    value::{Kind, Value, show},
};

/// Octets before an entry's key.
pub(crate) const HEAD: usize = 4;
/// Octets of a claim before its reference.
pub(crate) const CLAIM: usize = 13;

/// What many claims share.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Details {
    pub(crate) source: u16,
    pub(crate) confidence: u8,
    pub(crate) deliberate: bool,
    pub(crate) context: Arc<str>,
    pub(crate) labels: Box<[Arc<str>]>,
    pub(crate) techniques: Box<[Arc<str>]>,
}

/// Indicators that can be asked. Never changes.
#[derive(Clone, Debug)]
pub struct Index {
    pub(crate) hash: Keyed,
    pub(crate) filter: Filter,
    pub(crate) slots: Box<[u64]>,
    pub(crate) arena: Box<[u8]>,
    pub(crate) details: Box<[Details]>,
    pub(crate) sources: Box<[Arc<str>]>,
    pub(crate) v4: Ranges<u32>,
    pub(crate) v6: Ranges<u128>,
    /// How many labels names have that stand for a tree: a bit for each number, the highest for all from there on.
    pub(crate) depths: u64,
    /// Entries of each kind, by its number.
    pub(crate) kinds: [u32; Kind::ALL.len() + 1],
    pub(crate) claims: u64,
}

impl Default for Index {
    fn default() -> Self {
        crate::build::Builder::new(0, 0).build()
    }
}

impl Index {
    /// Values known.
    pub fn len(&self) -> usize {
        self.kinds.iter().map(|n| *n as usize).sum()
    }

    /// Nothing is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Claims made of them: several sources may know a value.
    pub fn claims(&self) -> u64 {
        self.claims
    }

    /// Values known of a kind.
    pub fn count(&self, kind: Kind) -> usize {
        self.kinds[kind as usize] as usize
    }

    /// Memory held, octets.
    pub fn octets(&self) -> usize {
        let details = self.details.iter().map(|d| {
            size_of::<Details>() + (d.labels.len() + d.techniques.len()) * size_of::<Arc<str>>() + d.context.len()
        });
        self.filter.octets()
            + size_of_val(&*self.slots)
            + self.arena.len()
            + details.sum::<usize>()
            + self.v4.octets()
            + self.v6.octets()
    }

    /// What is known of exactly this value: networks and parent domains are not asked.
    pub fn exact(&self, value: &Value) -> Option<Entry<'_>> {
        self.find(self.hash.key(value.kind(), value.key()), value.kind(), value.key())
    }

    /// Everything known of an address: itself, then the networks around it, narrowest first.
    #[inline]
    pub fn address<'a>(&'a self, address: IpAddr, mut visit: impl FnMut(Entry<'a>)) {
        match address.to_canonical() {
            IpAddr::V4(v4) => self.v4_address(u32::from(v4), &mut visit),
            IpAddr::V6(v6) => self.v6_address(u128::from(v6), &mut visit),
        }
    }

    /// As [`address`](Self::address), of the sixteen octets of flow batches: IPv4 mapped into IPv6.
    #[inline]
    pub fn address_octets<'a>(&'a self, octets: [u8; 16], mut visit: impl FnMut(Entry<'a>)) {
        const MAPPED: u128 = 0xffff_0000_0000;
        let bits = u128::from_be_bytes(octets);
        if bits >> 32 == MAPPED >> 32 {
            self.v4_address(bits as u32, &mut visit);
        } else {
            self.v6_address(bits, &mut visit);
        }
    }

    #[inline]
    fn v4_address<'a>(&'a self, bits: u32, visit: &mut impl FnMut(Entry<'a>)) {
        let hash = self.hash.address(u64::from(bits.swap_bytes()), 4);
        if self.filter.may_contain(hash)
            && let Some(entry) = self.probe(hash, Kind::Address, &bits.to_be_bytes())
        {
            visit(entry);
        }
        for at in self.v4.containing(bits) {
            visit(self.entry(at));
        }
    }

    #[inline]
    fn v6_address<'a>(&'a self, bits: u128, visit: &mut impl FnMut(Entry<'a>)) {
        let swapped = bits.swap_bytes();
        let hash = self.hash.address(swapped as u64, (swapped >> 64) as u64);
        if self.filter.may_contain(hash)
            && let Some(entry) = self.probe(hash, Kind::Address, &Ipv6Addr::from(bits).octets())
        {
            visit(entry);
        }
        for at in self.v6.containing(bits) {
            visit(self.entry(at));
        }
    }

    /// Everything known of a name: itself, and the trees it is in, widest first. Upper case and a final dot do not matter.
    #[inline]
    pub fn domain<'a>(&'a self, name: &str, mut visit: impl FnMut(Entry<'a>)) {
        if self.kinds[Kind::Domain as usize] + self.kinds[Kind::DomainTree as usize] == 0 {
            return;
        }
        let name = name.strip_suffix('.').unwrap_or(name).as_bytes();
        if name.is_empty() || name.len() > LONGEST_NAME {
            return;
        }
        let exact = self.kinds[Kind::Domain as usize] > 0;
        let mut labels = 0;
        self.hash.suffixes(name, |state, start| {
            let depths = self.depths >> labels.min(63);
            labels += 1;
            if depths & 1 != 0 {
                let hash = self.hash.named(state, Kind::DomainTree);
                if self.filter.may_contain(hash)
                    && let Some(entry) = self.probe_name(hash, Kind::DomainTree, &name[start..])
                {
                    visit(entry);
                }
            }
            if start == 0 && exact {
                let hash = self.hash.named(state, Kind::Domain);
                if self.filter.may_contain(hash)
                    && let Some(entry) = self.probe_name(hash, Kind::Domain, name)
                {
                    visit(entry);
                }
            }
            // Without exact names, only as many labels are worth reading as trees have.
            exact || depths > 1 || labels > 63
        });
    }

    // Keys are in lower case, what is asked may not be.
    fn probe_name(&self, hash: u64, kind: Kind, name: &[u8]) -> Option<Entry<'_>> {
        let mut lower = [0; LONGEST_NAME];
        let lower = &mut lower[..name.len()];
        lower.copy_from_slice(name);
        lower.make_ascii_lowercase();
        self.probe(hash, kind, lower)
    }

    /// What is known of the URL that a request asked for. `scratch` is only room to work in.
    #[inline]
    pub fn requested(&self, host: &str, target: &str, scratch: &mut Vec<u8>) -> Option<Entry<'_>> {
        if self.kinds[Kind::Url as usize] == 0 || !canonical::requested(host, target, scratch) {
            return None;
        }
        self.find(self.hash.key(Kind::Url, scratch), Kind::Url, scratch)
    }

    /// What is known of a fingerprint or hash in hexadecimal digits, or of a JA4 fingerprint.
    #[inline]
    pub fn fingerprint(&self, kind: Kind, text: &str) -> Option<Entry<'_>> {
        if self.kinds[kind as usize] == 0 {
            return None;
        }
        let mut room = [0; 64];
        let key = match kind {
            Kind::Ja4 | Kind::Ja4s => text.as_bytes(),
            _ => {
                let key = room.get_mut(..text.len() / 2)?;
                hex::decode_to_slice(text, key).ok()?;
                key
            }
        };
        self.find(self.hash.key(kind, key), kind, key)
    }

    /// Everything that is known of a value, of the networks and parent domains around it, and of the host of a URL.
    pub fn about<'a>(&'a self, value: &Value, mut visit: impl FnMut(Entry<'a>)) {
        match value.kind() {
            Kind::Address => {
                if let Some(address) = value.as_address() {
                    self.address(address, visit);
                }
            }
            Kind::Network => {
                if let Some((first, prefix)) = value.as_network() {
                    self.address(first, |entry| {
                        let known = entry.to_value();
                        if known.as_network().is_some_and(|(_, p)| p <= prefix) {
                            visit(entry);
                        }
                    });
                }
            }
            Kind::Domain | Kind::DomainTree => {
                if let Some(name) = value.as_text() {
                    self.domain(name, visit);
                }
            }
            _ => {
                if let Some(entry) = self.exact(value) {
                    visit(entry);
                }
            }
        }
    }

    /// Every entry.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        let mut at = 0;
        std::iter::from_fn(move || {
            (at < self.arena.len()).then(|| {
                let entry = self.entry(at as u32);
                at += entry.octets();
                entry
            })
        })
    }

    /// The names of the sources.
    pub fn sources(&self) -> impl Iterator<Item = &str> {
        self.sources.iter().map(AsRef::as_ref)
    }

    #[inline]
    fn find(&self, hash: u64, kind: Kind, key: &[u8]) -> Option<Entry<'_>> {
        if self.filter.may_contain(hash) {
            self.probe(hash, kind, key)
        } else {
            None
        }
    }

    #[inline]
    fn probe(&self, hash: u64, kind: Kind, key: &[u8]) -> Option<Entry<'_>> {
        let tag = hash as u32;
        let mut at = place(hash, self.slots.len());
        loop {
            let slot = *self.slots.get(at)?;
            if slot == 0 {
                return None;
            }
            if (slot >> 32) as u32 == tag {
                let entry = self.entry(slot as u32 - 1);
                if entry.bytes[0] == kind as u8 && entry.key() == key {
                    return Some(entry);
                }
            }
            at += 1;
            if at == self.slots.len() {
                at = 0;
            }
        }
    }

    #[inline]
    fn entry(&self, at: u32) -> Entry<'_> {
        Entry {
            index: self,
            bytes: &self.arena[at as usize..],
        }
    }
}

/// Where a hash belongs in a table of so many slots. Monotonic in the hash.
#[inline]
pub(crate) fn place(hash: u64, slots: usize) -> usize {
    ((u128::from(hash) * slots as u128) >> 64) as usize
}

/// A value that is known, with what is claimed of it.
#[derive(Clone, Copy)]
pub struct Entry<'a> {
    index: &'a Index,
    bytes: &'a [u8],
}

impl<'a> Entry<'a> {
    /// The value's kind.
    pub fn kind(&self) -> Kind {
        Kind::of_octet(self.bytes[0]).unwrap_or(Kind::File)
    }

    /// The value.
    pub fn to_value(&self) -> Value {
        Value::new(self.kind(), self.key())
    }

    #[inline]
    pub(crate) fn key(&self) -> &'a [u8] {
        let length = usize::from(u16::from_le_bytes([self.bytes[2], self.bytes[3]]));
        &self.bytes[HEAD..HEAD + length]
    }

    /// What is claimed of it, one claim a source.
    pub fn claims(&self) -> impl Iterator<Item = Claim<'a>> + use<'a> {
        let mut left = self.bytes[1];
        let mut rest = &self.bytes[HEAD + self.key().len()..];
        let index = self.index;
        std::iter::from_fn(move || {
            left = left.checked_sub(1)?;
            let (head, tail) = rest.split_first_chunk::<CLAIM>()?;
            let (reference, tail) = tail.split_at_checked(head[12].into())?;
            rest = tail;
            let number = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
            let details = index.details.get(number(0) as usize)?;
            Some(Claim {
                details,
                number: number(0),
                source: index.sources.get(usize::from(details.source))?,
                span: Span {
                    from: number(4),
                    until: number(8),
                },
                reference: std::str::from_utf8(reference).unwrap_or_default(),
            })
        })
    }

    fn octets(&self) -> usize {
        let claims = self.claims().map(|c| CLAIM + c.reference.len());
        HEAD + self.key().len() + claims.sum::<usize>()
    }
}

impl fmt::Debug for Entry<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.kind().name())?;
        show(self.kind(), self.key(), f)?;
        f.debug_list().entries(self.claims().map(|c| c.source)).finish()
    }
}

/// What one source says of a value.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    pub(crate) details: &'a Details,
    pub(crate) number: u32,
    /// Who says so.
    pub source: &'a str,
    /// When it holds.
    pub span: Span,
    /// The source's id of it; empty where there is none.
    pub reference: &'a str,
}

impl<'a> Claim<'a> {
    /// How sure the source is, 0 to 100.
    pub fn confidence(&self) -> u8 {
        self.details.confidence
    }

    /// It holds although a warning list has the value.
    pub fn deliberate(&self) -> bool {
        self.details.deliberate
    }

    /// One line on where it comes from; empty where there is none.
    pub fn context(&self) -> &'a str {
        &self.details.context
    }

    /// What the source calls it.
    pub fn labels(&self) -> impl ExactSizeIterator<Item = &'a str> + use<'a> {
        self.details.labels.iter().map(AsRef::as_ref)
    }

    /// Ids of MITRE ATT&CK techniques.
    pub fn techniques(&self) -> impl ExactSizeIterator<Item = &'a str> + use<'a> {
        self.details.techniques.iter().map(AsRef::as_ref)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{build::Builder, indicator::Indicator};

    fn index(values: &[Value]) -> Index {
        let mut builder = Builder::new(1_000, 0);
        for value in values {
            builder.add("test", &Indicator::of(value.clone()), 50, false).unwrap();
        }
        builder.build()
    }

    fn guessed(values: &[&str]) -> Index {
        let values: Vec<Value> = values.iter().map(|v| Value::guess(v, false).unwrap()).collect();
        index(&values)
    }

    fn domain(index: &Index, name: &str) -> Vec<String> {
        let mut found = Vec::new();
        index.domain(name, |entry| found.push(entry.to_value().to_string()));
        found
    }

    #[test]
    fn names_match_themselves_or_all_below() {
        let index = guessed(&["exact.example", "*.tree.example", "*.deep.tree.example", "tree.example"]);
        assert_eq!(domain(&index, "exact.example"), ["exact.example"]);
        assert_eq!(domain(&index, "EXACT.example."), ["exact.example"]);
        assert!(domain(&index, "sub.exact.example").is_empty());
        assert!(domain(&index, "notexact.example").is_empty());
        assert_eq!(domain(&index, "tree.example"), ["*.tree.example", "tree.example"]);
        assert_eq!(
            domain(&index, "a.b.deep.tree.example"),
            ["*.tree.example", "*.deep.tree.example"]
        );
        assert!(domain(&index, "nottree.example").is_empty());
        let endless = vec!["a"; 127].join(".");
        for odd in ["", ".", "..", "example", &endless, &"a".repeat(300)] {
            assert!(domain(&index, odd).is_empty());
        }
    }

    #[test]
    fn addresses_match_themselves_and_the_networks_around() {
        let index = guessed(&[
            "192.0.2.7",
            "192.0.2.0/24",
            "192.0.0.0/16",
            "2001:db8::/32",
            "2001:db8::7",
        ]);
        let about = |text: &str| {
            let mut found = Vec::new();
            let address: IpAddr = text.parse().unwrap();
            index.address(address, |e| found.push(e.to_value().to_string()));
            let mut again = Vec::new();
            let octets = match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            index.address_octets(octets, |e| again.push(e.to_value().to_string()));
            assert_eq!(found, again);
            found
        };
        assert_eq!(about("192.0.2.7"), ["192.0.2.7", "192.0.2.0/24", "192.0.0.0/16"]);
        assert_eq!(about("::ffff:192.0.3.7"), ["192.0.0.0/16"]);
        assert_eq!(about("2001:db8::7"), ["2001:db8::7", "2001:db8::/32"]);
        assert!(about("2001:db9::7").is_empty());
        let mut found = Vec::new();
        let network = Value::guess("192.0.2.128/25", false).unwrap();
        index.about(&network, |e| found.push(e.to_value().to_string()));
        assert_eq!(found, ["192.0.2.0/24", "192.0.0.0/16"]);
    }

    #[test]
    fn requests_and_fingerprints_are_found_as_flows_have_them() {
        let ja4 = "t13d1516h2_8daaf6152771_b186095e22b6";
        let md5 = "0123456789abcdef0123456789abcdef";
        let index = index(&[
            Value::parse(Kind::Url, "https://evil.example/a?b").unwrap(),
            Value::parse(Kind::Ja3, md5).unwrap(),
            Value::parse(Kind::Ja4, ja4).unwrap(),
            Value::parse(Kind::Certificate, &"ab".repeat(32)).unwrap(),
        ]);
        let mut scratch = Vec::new();
        assert!(index.requested("Evil.example", "/a?b", &mut scratch).is_some());
        assert!(index.requested("evil.example", "/a?c", &mut scratch).is_none());
        assert!(index.fingerprint(Kind::Ja3, &md5.to_uppercase()).is_some());
        assert!(index.fingerprint(Kind::Ja3s, md5).is_none());
        assert!(index.fingerprint(Kind::Ja4, ja4).is_some());
        assert!(index.fingerprint(Kind::Certificate, &"ab".repeat(32)).is_some());
        for odd in ["", "x", &"ab".repeat(31), &"zz".repeat(32), &"a".repeat(1_000)] {
            assert!(index.fingerprint(Kind::Certificate, odd).is_none());
        }
        assert!(Index::default().is_empty());
        assert!(Index::default().exact(&Value::parse(Kind::Ja3, md5).unwrap()).is_none());
    }

    fn value() -> impl Strategy<Value = Value> {
        prop_oneof![
            (0_u32..64).prop_map(|n| Value::address(IpAddr::from((0x0a00_0000 + n).to_be_bytes()))),
            (0_u32..64, 20_u8..33)
                .prop_map(|(n, p)| { Value::network(IpAddr::from((0x0a00_0000 + n * 64).to_be_bytes()), p).unwrap() }),
            "[ab]{1,2}(\\.[ab]{1,2}){1,4}".prop_map(|n| Value::parse(Kind::Domain, &n).unwrap()),
            "[ab]{1,2}(\\.[ab]{1,2}){1,4}".prop_map(|n| Value::parse(Kind::DomainTree, &n).unwrap()),
        ]
    }

    fn matches(indicator: &Value, asked: &Value) -> bool {
        match (indicator.kind(), asked.kind()) {
            (Kind::Network, Kind::Address) => {
                let address = asked.as_address().unwrap();
                let (_, prefix) = indicator.as_network().unwrap();
                Value::network(address, prefix).as_ref() == Some(indicator)
            }
            (Kind::DomainTree, Kind::Domain) => {
                let (tree, name) = (indicator.as_text().unwrap(), asked.as_text().unwrap());
                name == tree || name.ends_with(&format!(".{tree}"))
            }
            _ => indicator == asked,
        }
    }

    proptest! {
        #[test]
        fn agrees_with_comparing_every_indicator(
            values in prop::collection::vec(value(), 0..60),
            asked in prop::collection::vec(value(), 20),
        ) {
            let index = index(&values);
            let known: std::collections::BTreeSet<&Value> = values.iter().collect();
            prop_assert_eq!(index.len(), known.len());
            prop_assert_eq!(index.entries().map(|e| e.to_value()).collect::<std::collections::BTreeSet<_>>().len(), known.len());
            for asked in asked.iter().filter(|a| matches!(a.kind(), Kind::Address | Kind::Domain)) {
                let mut found: Vec<Value> = Vec::new();
                index.about(asked, |entry| found.push(entry.to_value()));
                found.sort();
                let want: Vec<Value> = known.iter().filter(|i| matches(i, asked)).map(|v| (*v).clone()).collect();
                prop_assert_eq!(found, want);
            }
        }
    }
}
