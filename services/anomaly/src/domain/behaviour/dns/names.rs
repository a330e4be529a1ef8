//! Domain names: where the part begins that somebody registered, and whether that part looks made by a person.
//!
//! The model is a logistic one over hashed groups of two to four neighbouring letters, over groups of four and five in
//! which only vowel, consonant, digit and hyphen are told apart, and over the length. It is trained on names in use and
//! on names that generators made, some of them written for the training; see `examples/train_names.rs`.

use std::sync::OnceLock;

use garrison_models::{
    hashed,
    rng::{SplitMix64, mix},
};

// Labels that registries of countries use as a kind of their own: what is registered stands one label before.
const KINDS: &[&str] = &[
    "ac", "co", "com", "edu", "go", "gob", "gouv", "gov", "gv", "ltd", "me", "mil", "ne", "net", "nic", "nom", "or",
    "org", "plc", "sch",
];
// Names below these are addresses, or mean something only nearby.
const NOT_REGISTERED: &[&str] = &[
    "arpa",
    "home",
    "internal",
    "intranet",
    "invalid",
    "lan",
    "local",
    "localdomain",
    "onion",
];

/// A domain name in its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split<'a> {
    /// What stands before the registered part, without the dot between.
    pub sub: &'a str,
    /// The registered label.
    pub label: &'a str,
    /// The registered label with its suffix.
    pub parent: &'a str,
}

impl<'a> Split<'a> {
    /// Splits a name. `None` for one label alone, and for names that nobody registers.
    pub fn of(name: &'a str) -> Option<Self> {
        let name = name.strip_suffix('.').unwrap_or(name);
        let (before, top) = name.rsplit_once('.')?;
        if NOT_REGISTERED.iter().any(|n| n.eq_ignore_ascii_case(top)) {
            return None;
        }
        let (mut start, mut label) = last_label(before);
        if start > 0 && top.len() == 2 && KINDS.iter().any(|kind| kind.eq_ignore_ascii_case(label)) {
            (start, label) = last_label(&before[..start - 1]);
        }
        Some(Self {
            sub: name[..start].strip_suffix('.').unwrap_or(""),
            label,
            parent: &name[start..],
        })
    }
}

fn last_label(text: &str) -> (usize, &str) {
    match text.rfind('.') {
        Some(dot) => (dot + 1, &text[dot + 1..]),
        None => (0, text),
    }
}

/// Weights are kept for so many hashes.
const WIDTH: usize = 1 << 15;
/// Longest label looked at; RFC 1035 allows no longer one.
const LONGEST: usize = 63;

/// Tells labels that a generator made.
#[derive(Clone, Debug, PartialEq)]
pub struct NameModel {
    weights: Vec<i8>,
    scale: f32,
}

impl NameModel {
    /// The model that comes with the service.
    pub fn built_in() -> &'static Self {
        static MODEL: OnceLock<NameModel> = OnceLock::new();
        MODEL.get_or_init(|| {
            Self::from_bytes(include_bytes!("names.weights")).unwrap_or_else(|| Self {
                weights: vec![0; WIDTH],
                scale: 0.0,
            })
        })
    }

    /// The logarithm of the odds that a generator made the label.
    pub fn score(&self, label: &str) -> f64 {
        let mut sum = 0.0;
        features(label, |at, value| sum += f32::from(self.weights[at]) * value);
        f64::from(sum * self.scale)
    }

    /// Trains on labels. The same labels and seed give the same model.
    pub fn train(generated: &[&str], in_use: &[&str], seed: u64) -> Self {
        let mut rng = SplitMix64::new(seed);
        let weights = hashed::train(WIDTH, generated, in_use, &mut rng, |label, _, row| {
            features(label, |at, value| row.push((at, value)));
        });
        let most = weights.iter().fold(1e-6_f32, |most, w| most.max(w.abs()));
        let scale = most / 127.0;
        Self {
            weights: weights.iter().map(|w| (w / scale).round() as i8).collect(),
            scale,
        }
    }

    /// As it is kept in a file: the scale, then one octet a weight.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.scale.to_le_bytes().to_vec();
        bytes.extend(self.weights.iter().map(|w| w.cast_unsigned()));
        bytes
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote. `None` when it is not that.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (scale, weights) = bytes.split_first_chunk()?;
        let scale = f32::from_le_bytes(*scale);
        (weights.len() == WIDTH && scale.is_finite()).then(|| Self {
            weights: weights.iter().map(|w| w.cast_signed()).collect(),
            scale,
        })
    }
}

fn features(label: &str, mut each: impl FnMut(usize, f32)) {
    let mut letters = [b'^'; LONGEST + 2];
    let mut kinds = letters;
    let mut n = 1;
    for byte in label.bytes().take(LONGEST) {
        let byte = byte.to_ascii_lowercase();
        letters[n] = byte;
        kinds[n] = match byte {
            b'a' | b'e' | b'i' | b'o' | b'u' | b'y' => b'v',
            b'0'..=b'9' => b'd',
            b'-' => b'-',
            _ => b'c',
        };
        n += 1;
    }
    (letters[n], kinds[n]) = (b'$', b'$');
    n += 1;
    let length = n - 2;
    let value = 1.0 / (length.max(1) as f32).sqrt();
    groups(&letters[..n], 2..=4, 1, |hash| each(hash, value));
    groups(&kinds[..n], 4..=5, 2, |hash| each(hash, value));
    each(place(3, length.min(24) as u64), 1.0);
    each(place(4, 0), 1.0);
}

fn groups(bytes: &[u8], lengths: std::ops::RangeInclusive<usize>, salt: u64, mut each: impl FnMut(usize)) {
    for start in 0..bytes.len() {
        let mut packed = 0_u64;
        for (n, byte) in bytes[start..].iter().take(*lengths.end()).enumerate() {
            packed = packed << 8 | u64::from(*byte);
            if lengths.contains(&(n + 1)) {
                each(place(salt << 8 | (n as u64 + 1), packed));
            }
        }
    }
}

fn place(salt: u64, what: u64) -> usize {
    (mix(what ^ salt << 48) >> 32) as usize % WIDTH
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_split_where_they_are_registered() {
        let parts = |name| Split::of(name).map(|s| (s.sub, s.label, s.parent));
        assert_eq!(parts("www.example.org."), Some(("www", "example", "example.org")));
        assert_eq!(parts("example.org"), Some(("", "example", "example.org")));
        assert_eq!(parts("a.b.example.co.uk"), Some(("a.b", "example", "example.co.uk")));
        assert_eq!(parts("co.uk"), Some(("", "co", "co.uk")));
        assert_eq!(parts("localhost"), None);
        assert_eq!(parts("1.0.0.10.in-addr.arpa"), None);
        assert_eq!(parts("printer.local"), None);
    }

    #[test]
    fn the_built_in_model_tells_random_letters_from_words() {
        let model = NameModel::built_in();
        for (word, noise) in [
            ("wikipedia", "xkqzjvwpt"),
            ("weatherforecast", "qhdkwzpvjxbnfgt"),
            ("onlineshop", "vjx8q2zk4w"),
        ] {
            assert!(model.score(word) < 0.0, "{word}: {}", model.score(word));
            assert!(model.score(noise) > 0.0, "{noise}: {}", model.score(noise));
        }
    }

    #[test]
    fn training_is_the_same_again_and_survives_its_file() {
        let made = ["xqzkjv", "wvzzkq", "qqjxz", "zkxwvq"];
        let used = ["garden", "market", "weather", "school"];
        let model = NameModel::train(&made, &used, 7);
        assert_eq!(model, NameModel::train(&made, &used, 7));
        assert_eq!(NameModel::from_bytes(&model.to_bytes()).unwrap(), model);
        assert!(model.score("zqkxjv") > model.score("gardens"));
        assert!(NameModel::from_bytes(&[1, 2, 3]).is_none());
    }

    proptest! {
        #[test]
        fn any_text_is_split_and_scored(name in any::<String>()) {
            if let Some(split) = Split::of(&name) {
                prop_assert!(split.parent.starts_with(split.label));
                prop_assert!(NameModel::built_in().score(split.label).is_finite());
            }
        }
    }
}
