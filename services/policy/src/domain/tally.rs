//! How often each policy and rule decided.

use std::collections::HashMap;

use garrison_ztp::{Engine, Judgement, Side, Verdict, document::Mode};

/// What is counted: policy, rule and verdict. Policy and rule are empty for flows that nothing governs.
pub type CountKey = (String, String, Verdict);

/// Counts of verdicts; the second number is the latest time, in nanoseconds since the epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    counts: HashMap<CountKey, (u64, i64)>,
}

/// Counts within one batch by the engine's own numbers: no text is touched for a flow.
#[derive(Debug, Default)]
pub struct BatchTally {
    sides: HashMap<Side, (u64, i64)>,
    ungoverned: (u64, i64),
    /// Flows by verdict: allow, deny, ungoverned.
    verdicts: [u64; 3],
}

impl BatchTally {
    /// Counts a flow: both sides of what is enforced, and what observing policies would say.
    pub fn add(&mut self, engine: &Engine, judgement: &Judgement, time: i64) {
        let enforced = judgement.enforced;
        let verdict = enforced.verdict();
        self.verdicts[verdict as usize] += 1;
        if verdict == Verdict::Ungoverned {
            bump(&mut self.ungoverned, time);
        }
        let observed = judgement.observed.into_iter().flat_map(|d| [d.egress, d.ingress]);
        let observing = observed.filter(|side| engine.entry(*side).is_some_and(|e| e.mode != Mode::Enforce));
        for side in [enforced.egress, enforced.ingress].into_iter().chain(observing) {
            if side.is_governed() {
                bump(self.sides.entry(side).or_default(), time);
            }
        }
    }

    /// Flows with this verdict.
    pub fn flows(&self, verdict: Verdict) -> u64 {
        self.verdicts[verdict as usize]
    }
}

fn bump(count: &mut (u64, i64), time: i64) {
    count.0 += 1;
    count.1 = count.1.max(time);
}

impl Tally {
    /// Adds a batch's counts.
    pub fn add(&mut self, engine: &Engine, batch: &BatchTally) {
        for (side, count) in &batch.sides {
            if let Some(entry) = engine.entry(*side) {
                let verdict = if entry.allows { Verdict::Allow } else { Verdict::Deny };
                self.put((entry.policy.clone(), entry.rule.clone(), verdict), *count);
            }
        }
        if batch.ungoverned.0 > 0 {
            self.put((String::new(), String::new(), Verdict::Ungoverned), batch.ungoverned);
        }
    }

    /// Adds counts that could not be written.
    pub fn merge(&mut self, other: Self) {
        for (key, count) in other.counts {
            self.put(key, count);
        }
    }

    fn put(&mut self, key: CountKey, (flows, last): (u64, i64)) {
        let count = self.counts.entry(key).or_default();
        count.0 += flows;
        count.1 = count.1.max(last);
    }

    /// The counts.
    pub fn iter(&self) -> impl Iterator<Item = (&CountKey, u64, i64)> {
        self.counts.iter().map(|(key, (flows, last))| (key, *flows, *last))
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use garrison_ztp::check;

    use super::*;

    fn engine(modes: [&str; 2]) -> Engine {
        let document = |name: &str, mode: &str, rules: &str| {
            format!(
                "---\napiVersion: garrison.dev/v1alpha1\nkind: ZeroTrustPolicy\nmetadata: {{name: {name}}}\nspec:\n  mode: {mode}\n  subject: {{cidrs: [10.0.0.2]}}\n  ingress: {rules}\n"
            )
        };
        let text = document(
            "first",
            modes[0],
            "[{name: web, from: [{any: true}], ports: [{protocol: TCP, port: 80}]}]",
        ) + &document(
            "second",
            modes[1],
            "[{name: no, action: deny, from: [{cidr: 10.0.0.9}]}]",
        );
        let policies: Vec<_> = check(&text).documents.iter().map(|d| d.lower(1)).collect();
        Engine::build(&policies).unwrap()
    }

    fn counted(engine: &Engine, flows: &[(&str, &str, u16)]) -> Vec<(String, String, Verdict, u64)> {
        let mut batch = BatchTally::default();
        for (src, dst, port) in flows {
            let judgement = engine.decide(src.parse().unwrap(), dst.parse().unwrap(), 6, *port);
            batch.add(engine, &judgement, 7);
        }
        let mut tally = Tally::default();
        tally.add(engine, &batch);
        let mut counts: Vec<_> = tally
            .iter()
            .map(|((p, r, v), n, _)| (p.clone(), r.clone(), *v, n))
            .collect();
        counts.sort();
        counts
    }

    #[test]
    fn an_observing_policy_counts_what_it_would_do_beside_what_is_enforced() {
        let engine = engine(["enforce", "observe"]);
        let flows = [
            ("10.0.0.9", "10.0.0.2", 80),
            ("10.0.0.1", "10.0.0.2", 22),
            ("10.0.0.1", "10.0.0.3", 22),
        ];
        let text = |p: &str, r: &str, v, n| (p.to_owned(), r.to_owned(), v, n);
        assert_eq!(
            counted(&engine, &flows),
            [
                text("", "", Verdict::Ungoverned, 1),
                text("first", "default-deny", Verdict::Deny, 1),
                text("first", "web", Verdict::Allow, 1),
                text("second", "no", Verdict::Deny, 1),
            ]
        );
    }
}
