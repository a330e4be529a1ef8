//! Generated domains: a host asks for one name after the other that no person would have chosen, mostly in vain. Each
//! new name adds its odds to a sum that does not fall below zero (Page's CUSUM, 1954) and fades with time; names that
//! several hosts ask for say nothing.

use garrison_models::rng::mix;

use super::{Row, Split, crowd, names::NameModel};
use crate::domain::{
    detector::Detector,
    finding::{Finding, Target},
    shard::{Context, Shard, feature, feature_within},
    wide::Wide,
    window::{Nanos, SECOND},
};

/// What one name can add or take, nats.
const ODDS: (f64, f64) = (-4.0, 3.0);
/// What an answer adds: that the name does not exist, and that it does.
const ANSWER: (f64, f64) = (0.5, -1.5);
/// The sum falls to 37 % in this time.
const FADES: Nanos = 1_800 * SECOND;
/// Names remembered, so that each counts once.
const REMEMBERED: usize = 64;
/// Shorter labels are taken: there is nothing to see in them.
const SHORTEST: usize = 5;
const NAME_ERROR: u8 = 3;

/// What a source asked for.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Asked {
    /// The sum.
    #[prost(double, tag = "1")]
    pub sum: f64,
    /// Names since it was zero.
    #[prost(uint32, tag = "2")]
    pub names: u32,
    /// Of them, names that do not exist.
    #[prost(uint32, tag = "3")]
    pub missing: u32,
    /// Time of the latest.
    #[prost(sfixed64, tag = "4")]
    pub latest: Nanos,
    /// Hashes of the latest names.
    #[prost(fixed32, repeated, tag = "5")]
    pub recent: Vec<u32>,
}

impl Asked {
    /// Adds a name's odds. Returns the sum.
    pub fn add(&mut self, odds: f64, missing: bool, time: Nanos) -> f64 {
        if self.names > 0 {
            let passed = time.saturating_sub(self.latest).max(0) as f64;
            self.sum *= (-passed / FADES as f64).exp();
        }
        self.latest = self.latest.max(time);
        let answer = if missing { ANSWER.0 } else { ANSWER.1 };
        self.sum = (self.sum + odds.clamp(ODDS.0, ODDS.1) + answer).max(0.0);
        if self.sum > 0.0 {
            self.names = self.names.saturating_add(1);
            self.missing = self.missing.saturating_add(u32::from(missing));
        } else {
            (self.names, self.missing) = (0, 0);
        }
        self.sum
    }

    // True when the name is new.
    fn remember(&mut self, hash: u32) -> bool {
        if self.recent.contains(&hash) {
            return false;
        }
        if self.recent.len() >= REMEMBERED {
            self.recent.remove(0);
        }
        self.recent.push(hash);
        true
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
    let settings = &context.settings.generated;
    if !context.settings.runs(Detector::DnsGenerated) || split.label.len() < SHORTEST {
        return;
    }
    let asked = shard.asked.get_or_insert_with(row.src(), Asked::default);
    if !asked.remember((mix(parent) >> 32) as u32) {
        return;
    }
    let hosts = crowd(wide, parent, row.src(), row);
    if hosts >= settings.popular {
        return;
    }
    let odds = NameModel::built_in().score(split.label);
    let missing = row.rcode() == Some(NAME_ERROR);
    let sum = asked.add(odds, missing, row.facts.time[row.i]);
    if sum < settings.evidence || asked.names < settings.names {
        return;
    }
    let (names, missing) = (f64::from(asked.names), f64::from(asked.missing));
    (asked.sum, asked.names, asked.missing) = (0.0, 0, 0);
    let each = sum / names;
    out.push(Finding {
        title: format!(
            "{} asks for domains that look generated, {names:.0} of them, the latest {}",
            row.src(),
            split.parent
        ),
        confidence: 0.6 + 0.35 * (missing / names),
        targets: vec![Target::Service(row.dst(), row.dst_port(), row.protocol())],
        features: vec![
            feature_within(
                "generated_names",
                "names",
                names,
                0.0,
                1.0 - missing / names / 2.0,
                (settings.evidence / each).ceil() - 1.0,
            ),
            feature("missing_names", "names", missing, 0.0, missing / names / 2.0),
            feature("odds_a_name", "nat", each, ODDS.0, 0.0),
        ],
        score: sum,
        threshold: settings.evidence,
        ..Finding::of(Detector::DnsGenerated, row, "generated domains".to_owned())
    });
}
