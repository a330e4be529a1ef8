//! Replays the kept corpora and mutates them for a bounded time.
//!
//! `GARRISON_FUZZ_SECONDS` (2) is how long each parser is tried, `GARRISON_FUZZ_SEED` (1) where mutation begins. An input
//! that makes a parser panic is written under `fuzz/artifacts` and named; when it is mended, the input belongs into the
//! corpus.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    time::{Duration, Instant},
};

use garrison_fuzz::{TARGETS, run};
use sha2::{Digest as _, Sha256};

/// Longest input that is made.
const LONGEST: usize = 1 << 16;

fn fuzz() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = fuzz().join("corpus").join(target);
    let mut paths: Vec<PathBuf> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    /// A piece of something so long.
    fn piece(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.below(length + 1);
        start..start + self.below((length - start).min(256) + 1)
    }
}

/// One to eight small changes, as fuzzers make them.
fn mutate(input: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut Random) {
    const NUMBERS: [u64; 8] = [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0xffff_ffff];
    for _ in 0..=random.below(8) {
        let at = random.below(input.len());
        match random.below(9) {
            0 if !input.is_empty() => input[at] ^= 1 << random.below(8),
            1 if !input.is_empty() => input[at] = random.next() as u8,
            2 => {
                let piece = random.piece(input.len());
                input.drain(piece);
            }
            3 => {
                let piece = random.piece(input.len());
                let copy = input[piece].to_vec();
                input.splice(at..at, copy);
            }
            4 => {
                let other = &seeds[random.below(seeds.len())];
                let piece = random.piece(other.len());
                let copy = other[piece].to_vec();
                input.splice(at..at, copy);
            }
            5 => {
                // A number that matters, in one of four widths and two orders.
                let number = NUMBERS[random.below(NUMBERS.len())];
                let width = 1 << random.below(4);
                let octets = if random.below(2) == 0 {
                    number.to_le_bytes()[..width].to_vec()
                } else {
                    number.to_be_bytes()[8 - width..].to_vec()
                };
                for (to, from) in input.iter_mut().skip(at).zip(octets) {
                    *to = from;
                }
            }
            6 => input.truncate(at),
            7 => {
                let octet = random.next() as u8;
                let count = random.below(64);
                input.splice(at..at, std::iter::repeat_n(octet, count));
            }
            _ if !input.is_empty() => {
                let other = random.below(input.len());
                input.swap(at, other);
            }
            _ => input.push(random.next() as u8),
        }
    }
    input.truncate(LONGEST);
}

fn attempt(target: &str, input: &[u8]) -> bool {
    catch_unwind(AssertUnwindSafe(|| run(target, input))).unwrap_or_else(|_| {
        let folder = fuzz().join("artifacts").join(target);
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join(format!("crash-{}", &hex::encode(Sha256::digest(input))[..16]));
        fs::write(&path, input).unwrap();
        panic!(
            "{target} panics on {}: mend it and keep the input in the corpus",
            path.display()
        );
    })
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is {text:?}, which is no number"))
    })
}

fn try_out(target: &str) {
    let seeds = corpus(target);
    let accepted = seeds.iter().filter(|seed| attempt(target, seed)).count();
    assert!(
        accepted > 0,
        "{target}: no seed is a good one, so mutation stays at the door"
    );
    for seed in &seeds {
        for end in 0..seed.len().min(512) {
            attempt(target, &seed[..end]);
        }
    }
    let until = Instant::now() + Duration::from_secs(number("GARRISON_FUZZ_SECONDS", 2));
    let mut random = Random(number("GARRISON_FUZZ_SEED", 1));
    let (mut tried, mut through) = (0_u64, 0_u64);
    // However slow the machine is, some are tried.
    while tried < 200 || Instant::now() < until {
        let mut input = seeds[random.below(seeds.len())].clone();
        mutate(&mut input, &seeds, &mut random);
        through += u64::from(attempt(target, &input));
        tried += 1;
    }
    println!(
        "{target}: {} seeds, {tried} mutations, {through} of them accepted",
        seeds.len()
    );
}

macro_rules! tried_out {
    ($($name:ident)+) => {
        $(
            #[test]
            fn $name() {
                try_out(stringify!($name));
            }
        )+

        #[test]
        fn every_target_is_tried_out_and_has_a_program() {
            let known: BTreeSet<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
            assert_eq!(BTreeSet::from([$(stringify!($name)),+]), known);
            let manifest = fs::read_to_string(fuzz().join("Cargo.toml")).unwrap();
            let manifest: toml::Table = manifest.parse().unwrap();
            let programs = manifest["bin"].as_array().unwrap();
            let programs: BTreeSet<&str> = programs.iter().map(|bin| bin["name"].as_str().unwrap()).collect();
            // libFuzzer ends at a panic that the reader of flow batches catches.
            let guided: BTreeSet<&str> = known.iter().copied().filter(|name| *name != "flow_batch").collect();
            assert_eq!(programs, guided);
            let corpora = fs::read_dir(fuzz().join("corpus")).unwrap();
            let corpora: BTreeSet<String> =
                corpora.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            assert_eq!(corpora, known.iter().map(ToString::to_string).collect());
        }
    };
}

tried_out!(packet stream http2 capture exports flow_log flow_batch feed policy cluster security_group assertions playbook bundle log token certificate subject);
