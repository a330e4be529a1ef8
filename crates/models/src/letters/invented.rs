//! Families of generated names that are made up for training. There are few published families, and a model that has
//! learnt those alone knows three generators and not what generators have in common. Each family here is a generator of
//! its own: its letters and how often they come, its lengths, its syllables and its suffixes are drawn anew.

use crate::rng::SplitMix64;

const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz";
const VOWELS: &[u8] = b"aeiou";
const CONSONANTS: &[u8] = b"bcdfghjklmnpqrstvwxyz";
const PAIRS: [&str; 10] = ["ch", "sh", "th", "st", "tr", "ck", "nd", "br", "ng", "ph"];
const DIPHTHONGS: [&str; 6] = ["ea", "ei", "ou", "io", "ai", "oo"];
const SYLLABLES: [&str; 7] = ["cv", "cvc", "vc", "cvv", "v", "ccv", "vcc"];
// `com` counts as often as it is chosen by those who register in bulk.
const SUFFIXES: [&str; 26] = [
    "com", "com", "com", "com", "com", "com", "net", "org", "info", "biz", "ru", "cn", "cc", "ws", "in", "su", "co.uk",
    "eu", "top", "xyz", "me", "tv", "us", "de", "pw", "online",
];
const LONGEST: usize = 40;

/// A made-up name: the registered label and the suffix behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invented {
    /// The label.
    pub label: String,
    /// The suffix, without the dot before it.
    pub suffix: &'static str,
}

enum Generator {
    // Each letter by itself, drawn by these running sums.
    Letters(Vec<u8>, Vec<f64>),
    // Syllables of the family's sounds; always in the same order when `fixed`.
    Sounds {
        vowels: Vec<String>,
        consonants: Vec<String>,
        shapes: Vec<&'static str>,
        fixed: bool,
    },
    // A list of syllables that was made once.
    List(Vec<String>),
}

/// Names of so many families, `each` of every one.
pub fn families(count: usize, each: usize, seed: u64) -> Vec<Invented> {
    let mut rng = SplitMix64::new(seed ^ 0x0FA4_17E5);
    let mut names = Vec::with_capacity(count * each);
    for _ in 0..count {
        let generator = Generator::draw(&mut rng);
        let least = 5 + rng.below(12);
        let spread = if rng.unit() < 0.4 { 0 } else { 1 + rng.below(8) };
        let suffixes: Vec<&'static str> = (0..=rng.below(5))
            .map(|_| *pick::<&'static str, _>(&SUFFIXES, &mut rng))
            .collect();
        for _ in 0..each {
            let length = (least + rng.below(spread + 1)) as usize;
            names.push(Invented {
                label: generator.name(length, &mut rng),
                suffix: pick::<&'static str, _>(&suffixes, &mut rng),
            });
        }
    }
    names
}

fn pick<'a, T, F: AsRef<[T]> + ?Sized>(from: &'a F, rng: &mut SplitMix64) -> &'a T {
    let from = from.as_ref();
    &from[rng.below(from.len() as u64) as usize]
}

fn some(from: &[u8], least: usize, rng: &mut SplitMix64) -> Vec<u8> {
    let mut all = from.to_vec();
    rng.shuffle(&mut all);
    all.truncate(least + rng.below((from.len() - least + 1) as u64) as usize);
    all
}

fn sounds(letters: &[u8]) -> Vec<String> {
    letters.iter().map(|b| char::from(*b).to_string()).collect()
}

impl Generator {
    fn draw(rng: &mut SplitMix64) -> Self {
        let kind = rng.unit();
        if kind < 0.30 {
            let letters = if rng.unit() < 0.4 {
                some(LETTERS, 10, rng)
            } else {
                LETTERS.to_vec()
            };
            let even = rng.unit() < 0.6;
            return Self::letters(letters, even, rng);
        }
        if kind < 0.37 {
            let letters: &[u8] = if rng.unit() < 0.6 {
                b"abcdefghijklmnopqrstuvwxyz0123456789"
            } else {
                b"0123456789abcdef"
            };
            return Self::letters(letters.to_vec(), true, rng);
        }
        let mut vowels = sounds(&some(VOWELS, 4, rng));
        let mut consonants = sounds(&some(CONSONANTS, 10, rng));
        if rng.unit() < 0.2 {
            vowels.push("y".to_owned());
        }
        if rng.unit() < 0.3 {
            (0..=rng.below(4)).for_each(|_| vowels.push((*pick::<&str, _>(&DIPHTHONGS, rng)).to_owned()));
        }
        if rng.unit() < 0.3 {
            (0..=rng.below(5)).for_each(|_| consonants.push((*pick::<&str, _>(&PAIRS, rng)).to_owned()));
        }
        let fixed = rng.unit() < 0.5;
        let mut shapes: Vec<&'static str> = (0..2 + rng.below(4))
            .map(|_| *pick::<&'static str, _>(&SYLLABLES, rng))
            .collect();
        if !shapes.iter().any(|s| s.contains('c')) {
            shapes.push("cv");
        }
        let sounds = Self::Sounds {
            vowels,
            consonants,
            shapes,
            fixed,
        };
        if rng.unit() < 0.7 {
            return sounds;
        }
        let count = 20 + rng.below(130);
        Self::List(
            (0..count)
                .map(|_| sounds.name(2 + rng.below(2) as usize, rng))
                .collect(),
        )
    }

    fn letters(letters: Vec<u8>, even: bool, rng: &mut SplitMix64) -> Self {
        let mut sum = 0.0;
        let sums = letters
            .iter()
            .map(|_| {
                // A gamma variate of shape 2: some letters come often, none never.
                sum += if even {
                    1.0
                } else {
                    -(1.0 - rng.unit()).ln() - (1.0 - rng.unit()).ln()
                };
                sum
            })
            .collect();
        Self::Letters(letters, sums)
    }

    fn name(&self, length: usize, rng: &mut SplitMix64) -> String {
        let length = length.min(LONGEST);
        let mut name = String::with_capacity(length + 4);
        match self {
            Self::Letters(letters, sums) => {
                for _ in 0..length {
                    let at = rng.unit() * sums.last().copied().unwrap_or(0.0);
                    let k = sums.partition_point(|s| *s <= at).min(letters.len() - 1);
                    name.push(char::from(letters[k]));
                }
            }
            Self::Sounds {
                vowels,
                consonants,
                shapes,
                fixed,
            } => {
                let mut turn = 0;
                while name.len() < length {
                    let shape = if *fixed {
                        shapes[turn % shapes.len()]
                    } else {
                        pick::<&'static str, _>(shapes, rng)
                    };
                    for sound in shape.bytes() {
                        name.push_str(pick::<String, _>(if sound == b'v' { vowels } else { consonants }, rng));
                    }
                    turn += 1;
                }
            }
            Self::List(syllables) => {
                while name.len() < length {
                    name.push_str(pick::<String, _>(syllables, rng));
                }
            }
        }
        name.truncate(length);
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_the_same_again_and_differ_from_each_other() {
        let names = families(40, 5, 3);
        assert_eq!(names, families(40, 5, 3));
        assert_eq!(names.len(), 200);
        assert!(names.iter().all(|n| (5..=LONGEST).contains(&n.label.len())));
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        assert!(names.iter().all(|n| n.label.bytes().all(fits)));
        let different: std::collections::HashSet<&str> = names.iter().map(|n| n.label.as_str()).collect();
        assert!(different.len() > 190, "{}", different.len());
    }
}
