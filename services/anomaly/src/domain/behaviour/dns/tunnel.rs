//! Tunnels: names below one parent that carry data, because a server there reads the questions. A tunnel cannot avoid
//! asking for many different names, long and without a pattern: that is its throughput. A window for each source and
//! parent counts questions, different names, their length and their letters, and a logistic model weighs them.

use super::{Row, Split, crowd};
use crate::domain::{
    activity::Distinct,
    detector::Detector,
    facts::number,
    finding::{Finding, Target},
    shard::{Context, Shard, feature, feature_within},
    wide::{Wide, name_hash},
    window::Nanos,
};

/// How many numbers the model weighs.
pub const FEATURES: usize = 6;

/// What the model weighs, in order; the intercept comes last. From `examples/train_names.rs`, which trained it on the
/// tunnels in netrack/learn (Apache-2.0) and on windows of names in use.
pub const WEIGHTS: [f64; FEATURES + 1] = include!("tunnel.weights");

/// Questions before a window is judged.
pub const LEAST_QUESTIONS: u32 = 10;
const LETTERS: usize = 37;
// Of a question's message, what is not the name: header, type and class, the name's first and last octet.
const AROUND_NAME: u64 = 18;

/// The questions of one source below one parent, in a window that begins with the first.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Zone {
    /// When the window began.
    #[prost(sfixed64, tag = "1")]
    pub began: Nanos,
    /// Questions.
    #[prost(uint32, tag = "2")]
    pub questions: u32,
    /// Different names, as [`Distinct`] has it.
    #[prost(fixed64, repeated, tag = "3")]
    pub names: Vec<u64>,
    /// Octets of the names before the parent.
    #[prost(uint64, tag = "4")]
    pub octets: u64,
    /// Labels before the parent.
    #[prost(uint32, tag = "5")]
    pub labels: u32,
    /// How often each letter, digit, and anything else, was seen.
    #[prost(uint32, repeated, tag = "6")]
    pub letters: Vec<u32>,
    /// Questions that are not seen singly, because they came in one flow.
    #[prost(uint32, tag = "7")]
    pub unseen: u32,
}

impl Zone {
    /// Notes a name, by what stands before its parent.
    pub fn note(&mut self, sub: &str) {
        let hash = name_hash(sub);
        self.names.resize(4, 0);
        self.names[(hash >> 6) as usize % 4] |= 1 << (hash & 63);
        self.questions = self.questions.saturating_add(1);
        self.octets += sub.len() as u64;
        self.labels = self
            .labels
            .saturating_add(1 + sub.bytes().filter(|b| *b == b'.').count() as u32);
        self.letters.resize(LETTERS, 0);
        for byte in sub.bytes().filter(|b| *b != b'.') {
            let at = match byte.to_ascii_lowercase() {
                letter @ b'a'..=b'z' => usize::from(letter - b'a'),
                digit @ b'0'..=b'9' => 26 + usize::from(digit - b'0'),
                _ => LETTERS - 1,
            };
            self.letters[at] = self.letters[at].saturating_add(1);
        }
    }

    /// Notes questions whose names are not known, only how long they are.
    pub fn note_unseen(&mut self, questions: u32, octets: u64) {
        self.questions = self.questions.saturating_add(questions);
        self.unseen = self.unseen.saturating_add(questions);
        self.octets += octets;
        self.labels = self.labels.saturating_add(questions);
    }

    /// Adds what another part of the same window has seen.
    pub fn merge(&mut self, other: &Self) {
        let mut names = self.distinct();
        names.merge(&other.distinct());
        self.names = names.0.to_vec();
        self.began = self.began.min(other.began);
        self.questions = self.questions.saturating_add(other.questions);
        self.octets += other.octets;
        self.labels = self.labels.saturating_add(other.labels);
        self.unseen = self.unseen.saturating_add(other.unseen);
        self.letters.resize(LETTERS, 0);
        for (mine, theirs) in self.letters.iter_mut().zip(&other.letters) {
            *mine = mine.saturating_add(*theirs);
        }
    }

    fn distinct(&self) -> Distinct {
        Distinct(self.names.as_slice().try_into().unwrap_or_default())
    }

    // Different names: those seen, estimated, and those not seen, which are taken to differ like the others.
    fn different(&self) -> f64 {
        let seen = f64::from(self.questions - self.unseen.min(self.questions)).max(1.0);
        let estimated = f64::from(self.distinct().estimate()).min(seen);
        estimated + f64::from(self.unseen) * (estimated / seen)
    }

    fn entropy(&self) -> f64 {
        let sum: f64 = self.letters.iter().map(|n| f64::from(*n)).sum();
        let bits = |n: &u32| match f64::from(*n) / sum.max(1.0) {
            0.0 => 0.0,
            p => -p * p.log2(),
        };
        self.letters.iter().map(bits).sum()
    }

    /// What the model weighs.
    pub fn features(&self) -> [f64; FEATURES] {
        let questions = f64::from(self.questions.max(1));
        let different = self.different();
        let length = self.octets as f64 / questions;
        let carried = different * length * self.entropy() / 8.0;
        [
            different.ln_1p(),
            length / 20.0,
            self.entropy(),
            f64::from(self.labels) / questions,
            different / questions,
            carried.ln_1p(),
        ]
    }

    /// The logarithm of the odds that it is a tunnel.
    pub fn score(&self, weights: &[f64; FEATURES + 1]) -> f64 {
        let features = self.features();
        features.iter().zip(weights).map(|(x, w)| x * w).sum::<f64>() + weights[FEATURES]
    }
}

pub(super) fn observe(
    shard: &mut Shard,
    wide: &mut Wide,
    row: &Row<'_>,
    context: &Context<'_>,
    split: &Split<'_>,
    parent: u64,
    out: &mut Vec<Finding>,
) {
    let settings = &context.settings.tunnel;
    if !context.settings.runs(Detector::DnsTunnel) {
        return;
    }
    let time = row.facts.time[row.i];
    let zone = shard.zones.get_or_insert_with((row.src(), parent), || Zone {
        began: time,
        ..Zone::default()
    });
    if time.saturating_sub(zone.began) > settings.window {
        *zone = Zone {
            began: time,
            ..Zone::default()
        };
    }
    let before = zone.questions / LEAST_QUESTIONS;
    let mut unseen = row.news.questions;
    if row.news.named && !split.sub.is_empty() {
        zone.note(split.sub);
        unseen -= 1;
    }
    if unseen > 0 {
        // The flow's octets tell how long its names are on average.
        let all = number(row.columns.dns_queries, row.i).max(1);
        let message = number(row.columns.src_bytes, row.i) / all;
        let name = message.saturating_sub(AROUND_NAME + split.parent.len() as u64);
        zone.note_unseen(unseen, name.min(255) * u64::from(unseen));
    }
    if zone.questions / LEAST_QUESTIONS == before {
        return;
    }
    let score = zone.score(&WEIGHTS);
    if score < settings.evidence {
        return;
    }
    let zone = zone.clone();
    let hosts = crowd(wide, parent, row.src(), row);
    if hosts >= settings.popular {
        return;
    }
    out.push(found(row, split, &zone, score, context));
    if let Some(zone) = shard.zones.get_mut(&(row.src(), parent)) {
        *zone = Zone {
            began: time,
            ..Zone::default()
        };
    }
}

fn found(row: &Row<'_>, split: &Split<'_>, zone: &Zone, score: f64, context: &Context<'_>) -> Finding {
    let settings = &context.settings.tunnel;
    let weighed = zone.features();
    let different = zone.different();
    let length = weighed[1] * 20.0;
    // With shorter names alone it would have been normal: the length at which the sum falls to the threshold, the
    // octets carried falling with it.
    let mut shorter = length;
    let mut normal = weighed;
    for _ in 0..64 {
        shorter *= 0.9;
        normal[1] = shorter / 20.0;
        normal[5] = (different * shorter * weighed[2] / 8.0).ln_1p();
        let sum: f64 = normal.iter().zip(&WEIGHTS).map(|(x, w)| x * w).sum::<f64>() + WEIGHTS[FEATURES];
        if sum < settings.evidence {
            break;
        }
    }
    let share = |at: usize| ((weighed[at] - normal[at]) * WEIGHTS[at] / score.max(1e-9)).clamp(0.0, 1.0);
    Finding {
        title: format!(
            "DNS tunnel of {} below {}: {} questions for {different:.0} names",
            row.src(),
            split.parent,
            zone.questions
        ),
        confidence: 1.0 / (1.0 + (-score).exp()),
        targets: vec![Target::Service(row.dst(), row.dst_port(), row.protocol())],
        features: vec![
            feature_within(
                "name_length",
                "octets",
                length,
                (context.usual)("dns_query_length"),
                share(1),
                shorter,
            ),
            feature("names", "names", different, 1.0, share(0)),
            feature("octets_carried", "octets", weighed[5].exp_m1(), 0.0, share(5)),
            feature("letter_entropy", "bit/octet", weighed[2], 0.0, share(2)),
            feature("questions", "questions", f64::from(zone.questions), 1.0, 0.0),
        ],
        score,
        threshold: settings.evidence,
        ..Finding::of(Detector::DnsTunnel, row, split.parent.to_ascii_lowercase())
    }
}
