//! Which alerts people should look at first: how grave and how sure they are, and what people said of alerts like them.
//!
//! A verdict moves alerts with the same fingerprint most, those of the same detector and entity less, and all others of
//! the detector a little and never far: whatever is said of single alerts, a detector is not silenced by it. Nothing is
//! left out; only the order changes.

use std::collections::HashMap;

use garrison_proto::alert::v1::{Alert, Severity, Verdict};

/// What was said of one alert.
#[derive(Clone, Debug, PartialEq)]
pub struct Said {
    /// The alert's fingerprint.
    pub fingerprint: String,
    /// Its detector.
    pub detector: String,
    /// Its entity.
    pub entity: String,
    /// What was said.
    pub verdict: Verdict,
}

/// How far verdicts move an alert, on a scale of logarithms: by its fingerprint, by detector and entity, by detector.
const WEIGHTS: [f64; 3] = [1.2, 0.5, 0.15];
/// How far each can move it at most. A detector alone takes a third at most.
const LIMITS: [f64; 3] = [2.3, 0.9, 0.4];

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    right: f64,
    wrong: f64,
}

impl Counts {
    fn add(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::True => self.right += 1.0,
            Verdict::False => self.wrong += 1.0,
            // It was right, and nobody has to do anything.
            Verdict::Benign => self.wrong += 0.7,
            Verdict::Unspecified => {}
        }
    }

    fn shift(self) -> f64 {
        ((1.0 + self.right) / (1.0 + self.wrong)).ln()
    }
}

/// What was said, by what it was said of.
#[derive(Debug, Default)]
pub struct Ranking {
    levels: [HashMap<String, Counts>; 3],
}

impl Ranking {
    /// Takes what was said.
    pub fn new(said: impl Iterator<Item = Said>) -> Self {
        let mut ranking = Self::default();
        for said in said {
            let keys = keys(&said.fingerprint, &said.detector, &said.entity);
            for (level, key) in ranking.levels.iter_mut().zip(keys) {
                level.entry(key).or_default().add(said.verdict);
            }
        }
        ranking
    }

    /// How far up an alert belongs, 0 to 100, and by what factor verdicts moved it.
    pub fn rank(&self, alert: &Alert) -> (f64, f64) {
        let grave = match alert.severity() {
            Severity::Critical => 100.0,
            Severity::High => 80.0,
            Severity::Medium => 55.0,
            Severity::Low => 30.0,
            Severity::Info | Severity::Unspecified => 10.0,
        };
        let sure = 0.4 + 0.6 * alert.confidence.clamp(0.0, 1.0);
        let entity = alert.entity.as_ref().map_or("", |e| e.value.as_str());
        let keys = keys(&alert.fingerprint, &alert.detector, entity);
        let mut shift = 0.0;
        for (((level, key), weight), limit) in self.levels.iter().zip(keys).zip(WEIGHTS).zip(LIMITS) {
            let said = level.get(&key).copied().unwrap_or_default().shift();
            shift += (weight * said).clamp(-limit, limit);
        }
        let factor = shift.exp();
        ((grave * sure * factor).clamp(0.0, 100.0), factor)
    }
}

fn keys(fingerprint: &str, detector: &str, entity: &str) -> [String; 3] {
    [
        fingerprint.to_owned(),
        format!("{detector} {entity}"),
        detector.to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use garrison_proto::alert::v1::{Entity, EntityKind};
    use proptest::prelude::*;

    use super::*;

    fn alert(fingerprint: &str, entity: &str) -> Alert {
        Alert {
            detector: "beacon.periodic".to_owned(),
            fingerprint: fingerprint.to_owned(),
            severity: Severity::Medium.into(),
            confidence: 0.8,
            entity: Some(Entity {
                kind: EntityKind::Host.into(),
                value: entity.to_owned(),
            }),
            ..Alert::default()
        }
    }

    fn said(fingerprint: &str, entity: &str, verdict: Verdict) -> Said {
        Said {
            fingerprint: fingerprint.to_owned(),
            detector: "beacon.periodic".to_owned(),
            entity: entity.to_owned(),
            verdict,
        }
    }

    #[test]
    fn a_verdict_moves_its_like_most_and_the_detector_little() {
        let before = Ranking::default().rank(&alert("a", "10.0.0.1")).0;
        let ranking = Ranking::new([said("a", "10.0.0.1", Verdict::False)].into_iter());
        let same = ranking.rank(&alert("a", "10.0.0.1")).0;
        let host = ranking.rank(&alert("b", "10.0.0.1")).0;
        let detector = ranking.rank(&alert("c", "10.0.0.2")).0;
        assert!(
            same < host && host < detector && detector < before,
            "{same} {host} {detector} {before}"
        );
        let ranking = Ranking::new([said("a", "10.0.0.1", Verdict::True)].into_iter());
        assert!(ranking.rank(&alert("a", "10.0.0.1")).0 > before);
        let benign = Ranking::new([said("a", "10.0.0.1", Verdict::Benign)].into_iter());
        let benign = benign.rank(&alert("a", "10.0.0.1")).0;
        assert!(same < benign && benign < before);
    }

    proptest! {
        #[test]
        fn no_number_of_verdicts_silences_a_detector(n in 0_usize..3_000) {
            let told = (0..n).map(|i| said(&format!("f{i}"), &format!("10.0.{}.{}", i / 250, i % 250), Verdict::False));
            let (rank, factor) = Ranking::new(told).rank(&alert("another", "192.0.2.1"));
            prop_assert!(factor >= 0.65, "{factor}");
            prop_assert!(rank > 0.6 * Ranking::default().rank(&alert("another", "192.0.2.1")).0);
        }
    }
}
