//! What a draft would have done to flows that were recorded.

use std::{
    borrow::Borrow,
    collections::{HashMap, HashSet},
    hash::{BuildHasher, Hasher},
    net::IpAddr,
};

use serde::Serialize;

use crate::{
    Decision, Engine, Policy, TooComplex, Verdict,
    document::Mode,
    ir::{DEFAULT_DENY, Direction},
};

/// Most different connections (source, destination, protocol, port) that are told apart; the rest is counted together.
pub const CONNECTIONS: usize = 1_000_000;
/// Most flows that are told apart by their id.
pub const FLOWS: usize = 50_000_000;

const HOUR: i64 = 3_600 * 1_000_000_000;
const DAY: i64 = 24 * HOUR;
/// The hours of a week.
const WEEK: usize = 168;

/// One record of a flow.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    /// Which flow; several records may tell of one.
    pub flow: [u8; 16],
    /// Who opened it.
    pub src: IpAddr,
    /// To whom.
    pub dst: IpAddr,
    /// IP protocol.
    pub protocol: u8,
    /// Destination port.
    pub port: u16,
    /// When it was first seen, nanoseconds since the epoch.
    pub first_seen: i64,
    /// When it was last seen, nanoseconds since the epoch.
    pub last_seen: i64,
}

/// A fast hash with a key of its own for each replay, for addresses and ids that are mixed well enough by two
/// multiplications. Nobody learns the order of these maps.
#[derive(Clone, Copy, Debug)]
struct Mixing(u64);

impl Default for Mixing {
    fn default() -> Self {
        Self(std::hash::RandomState::new().hash_one(0u8) | 1)
    }
}

impl BuildHasher for Mixing {
    type Hasher = Mixed;

    fn build_hasher(&self) -> Mixed {
        Mixed {
            key: self.0,
            state: self.0,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Mixed {
    key: u64,
    state: u64,
}

impl Mixed {
    fn mix(&mut self, value: u64) {
        let product = u128::from(self.state ^ value) * u128::from(self.key ^ 0x9e37_79b9_7f4a_7c15);
        self.state = (product as u64) ^ ((product >> 64) as u64);
    }
}

impl Hasher for Mixed {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.mix(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.mix(value.into());
    }

    fn write_u16(&mut self, value: u16) {
        self.mix(value.into());
    }

    fn write_u32(&mut self, value: u32) {
        self.mix(value.into());
    }

    fn write_u64(&mut self, value: u64) {
        self.mix(value);
    }

    fn write_usize(&mut self, value: usize) {
        self.mix(value as u64);
    }

    fn write_isize(&mut self, value: isize) {
        self.mix(value as u64);
    }

    fn finish(&self) -> u64 {
        let product = u128::from(self.state) * u128::from(self.key | 1);
        (product as u64) ^ ((product >> 64) as u64)
    }
}

/// Replays records against a draft.
#[derive(Debug)]
pub struct Replay {
    draft: Engine,
    /// What is enforced today, to tell what the draft changes.
    current: Option<Engine>,
    /// Flows and the last of them, by entry of the draft.
    decided: Vec<Option<(u64, i64)>>,
    seen: HashSet<u64, Mixing>,
    blocked: HashMap<(IpAddr, IpAddr, u8, u16), Blocked, Mixing>,
    told: Seen,
    report: Totals,
}

/// Which times records tell of.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    hours: [bool; WEEK],
    first: i64,
    last: i64,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            hours: [false; WEEK],
            first: i64::MAX,
            last: i64::MIN,
        }
    }
}

impl Seen {
    pub(crate) fn note(&mut self, time: i64) {
        self.first = self.first.min(time);
        self.last = self.last.max(time);
        // The epoch began on a Thursday; which day a week begins on does not matter here.
        let hour = usize::try_from(time.div_euclid(HOUR).rem_euclid(WEEK as i64)).unwrap_or_default();
        self.hours[hour] = true;
    }

    pub(crate) fn confidence(&self) -> Confidence {
        let days = if self.last >= self.first {
            (self.last - self.first) as f64 / DAY as f64
        } else {
            0.0
        };
        let hours = self.hours.iter().filter(|seen| **seen).count();
        let level = if hours * 100 >= WEEK * 95 && days >= 6.5 {
            Level::High
        } else if hours * 2 >= WEEK {
            Level::Medium
        } else {
            Level::Low
        };
        Confidence {
            hours_of_week: hours,
            days,
            level,
        }
    }
}

/// How many flows met what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// Flows, each counted once.
    pub flows: u64,
    /// Flows that the draft allows.
    pub allowed: u64,
    /// Flows that the draft blocks.
    pub blocked: u64,
    /// Flows that it blocks and that are not blocked today; equal to `blocked` when today is not known.
    pub newly_blocked: u64,
    /// Flows that it lets pass and that are blocked today.
    pub newly_passing: u64,
    /// Flows that nothing in it governs.
    pub ungoverned: u64,
    /// Flows that it blocks beyond the connections that are told apart.
    pub blocked_untold: u64,
}

#[derive(Debug)]
struct Blocked {
    flows: u64,
    first: i64,
    last: i64,
    /// In ascending order.
    days: Vec<i64>,
    entry: usize,
    newly: bool,
}

/// A connection that the draft blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockedConnection {
    /// Who opened it.
    pub source: IpAddr,
    /// To whom.
    pub destination: IpAddr,
    /// IP protocol.
    pub protocol: u8,
    /// Destination port.
    pub port: u16,
    /// How many flows.
    pub flows: u64,
    /// When the first of them began, nanoseconds since the epoch.
    pub first_seen: i64,
    /// When the last of them was seen, nanoseconds since the epoch.
    pub last_seen: i64,
    /// On how many days.
    pub days: usize,
    /// Seen on a single day of two or more: a job that runs rarely looks like this, and nobody may miss it at once.
    pub rare: bool,
    /// Whether it is blocked only by the draft.
    pub newly: bool,
    /// The policy that blocks it.
    pub policy: String,
    /// Its rule, or `default-deny`.
    pub rule: String,
}

/// How often one rule decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleCoverage {
    /// The policy.
    pub policy: String,
    /// The rule, or `default-deny`.
    pub rule: String,
    /// `ingress` or `egress`.
    pub direction: &'static str,
    /// Whether it allows.
    pub allows: bool,
    /// How many flows it decided.
    pub flows: u64,
    /// When the last of them was seen, nanoseconds since the epoch; `None` when there was none.
    pub last_seen: Option<i64>,
}

/// How much the recorded flows can tell.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Confidence {
    /// How many of the 168 hours of a week had flows.
    pub hours_of_week: usize,
    /// From the first to the last flow, days.
    pub days: f64,
    /// What to make of it.
    pub level: Level,
}

/// How much to trust a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Less than half of a week was seen: what was not seen says nothing.
    Low,
    /// Half of a week or more.
    Medium,
    /// A whole week, nearly every hour of it.
    High,
}

/// What a draft would have done.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The sums.
    #[serde(flatten)]
    pub totals: Totals,
    /// How much the flows can tell.
    pub confidence: Confidence,
    /// What would be blocked, that with the most flows first.
    pub blocked: Vec<BlockedConnection>,
    /// Every rule, in the order of the documents.
    pub rules: Vec<RuleCoverage>,
}

impl Report {
    /// Rules that decided nothing. With a low confidence that may be for want of flows.
    pub fn unused(&self) -> impl Iterator<Item = &RuleCoverage> {
        self.rules.iter().filter(|r| r.flows == 0 && r.rule != DEFAULT_DENY)
    }
}

fn enforced<P: Borrow<Policy>>(policies: &[P]) -> Result<Engine, TooComplex> {
    let policies: Vec<Policy> = policies
        .iter()
        .map(|policy| Policy {
            mode: Mode::Enforce,
            ..policy.borrow().clone()
        })
        .collect();
    Engine::build(&policies)
}

impl Replay {
    /// Prepares a replay against a draft, whose policies count as enforced whatever their mode. `current` is what is
    /// enforced today, if that is known.
    ///
    /// # Errors
    /// [`TooComplex`] when rules overlap too much.
    pub fn new<P: Borrow<Policy>>(draft: &[P], current: Option<&[P]>) -> Result<Self, TooComplex> {
        Ok(Self {
            draft: enforced(draft)?,
            current: current.map(|policies| Engine::build(policies)).transpose()?,
            decided: Vec::new(),
            seen: HashSet::default(),
            blocked: HashMap::default(),
            told: Seen::default(),
            report: Totals::default(),
        })
    }

    /// Takes one record. Further records of a flow move only its last time. `false` when there are more flows than can
    /// be told apart, and the record was not taken.
    pub fn record(&mut self, record: &Record) -> bool {
        self.told.note(record.first_seen);
        self.told.note(record.last_seen);
        // Eight octets are enough to tell flows apart.
        let mut half = [0; 8];
        for (i, byte) in record.flow.iter().enumerate() {
            half[i % 8] ^= byte.rotate_left((i / 8) as u32);
        }
        let id = u64::from_le_bytes(half);
        if self.seen.len() >= FLOWS && !self.seen.contains(&id) {
            return false;
        }
        let new = self.seen.insert(id);
        let decision = self
            .draft
            .decide(record.src, record.dst, record.protocol, record.port)
            .enforced;
        for side in [decision.egress, decision.ingress] {
            if let Some(entry) = side.index() {
                if self.decided.len() <= entry {
                    self.decided.resize(entry + 1, None);
                }
                let (flows, last) = self.decided[entry].get_or_insert((0, i64::MIN));
                *flows += u64::from(new);
                *last = (*last).max(record.last_seen);
            }
        }
        let verdict = decision.verdict();
        let today = self.current.as_ref().map(|current| {
            current
                .decide(record.src, record.dst, record.protocol, record.port)
                .enforced
                .verdict()
        });
        let newly = today != Some(Verdict::Deny);
        if new {
            self.report.flows += 1;
            match verdict {
                Verdict::Allow => self.report.allowed += 1,
                Verdict::Ungoverned => self.report.ungoverned += 1,
                Verdict::Deny => {
                    self.report.blocked += 1;
                    self.report.newly_blocked += u64::from(newly);
                }
            }
            if verdict != Verdict::Deny && today == Some(Verdict::Deny) {
                self.report.newly_passing += 1;
            }
        }
        if verdict == Verdict::Deny {
            self.block(record, decision, new, newly);
        }
        true
    }

    fn block(&mut self, record: &Record, decision: Decision, new: bool, newly: bool) {
        let key = (record.src, record.dst, record.protocol, record.port);
        let room = self.blocked.len() < CONNECTIONS;
        let Some(entry) = decision.deciding().1.index() else {
            return;
        };
        if !room && !self.blocked.contains_key(&key) {
            self.report.blocked_untold += u64::from(new);
            return;
        }
        let blocked = self.blocked.entry(key).or_insert_with(|| Blocked {
            flows: 0,
            first: record.first_seen,
            last: record.last_seen,
            days: Vec::new(),
            entry,
            newly,
        });
        blocked.flows += u64::from(new);
        blocked.first = blocked.first.min(record.first_seen);
        blocked.last = blocked.last.max(record.last_seen);
        for time in [record.first_seen, record.last_seen] {
            let day = time.div_euclid(DAY);
            // Records come nearly in order.
            if blocked.days.last() != Some(&day)
                && let Err(at) = blocked.days.binary_search(&day)
            {
                blocked.days.insert(at, day);
            }
        }
    }

    /// What the draft would have done to everything so far.
    pub fn report(&self) -> Report {
        let confidence = self.told.confidence();
        let days = confidence.days;
        let entries = self.draft.entries();
        let mut blocked: Vec<BlockedConnection> = self
            .blocked
            .iter()
            .map(|((source, destination, protocol, port), blocked)| BlockedConnection {
                source: *source,
                destination: *destination,
                protocol: *protocol,
                port: *port,
                flows: blocked.flows,
                first_seen: blocked.first,
                last_seen: blocked.last,
                days: blocked.days.len(),
                rare: blocked.days.len() == 1 && days >= 1.0,
                newly: blocked.newly,
                policy: entries[blocked.entry].policy.clone(),
                rule: entries[blocked.entry].rule.clone(),
            })
            .collect();
        blocked.sort_by(|a, b| {
            let key = |c: &BlockedConnection| (c.source, c.destination, c.protocol, c.port);
            b.flows.cmp(&a.flows).then_with(|| key(a).cmp(&key(b)))
        });
        let rules = entries
            .iter()
            .enumerate()
            .map(|(i, entry)| {
                let decided = self.decided.get(i).and_then(Option::as_ref);
                RuleCoverage {
                    policy: entry.policy.clone(),
                    rule: entry.rule.clone(),
                    direction: match entry.direction {
                        Direction::Egress => "egress",
                        Direction::Ingress => "ingress",
                    },
                    allows: entry.allows,
                    flows: decided.map_or(0, |(flows, _)| *flows),
                    last_seen: decided.map(|(_, last)| *last),
                }
            })
            .collect();
        Report {
            totals: self.report,
            confidence,
            blocked,
            rules,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAFT: &str = "apiVersion: garrison.dev/v1alpha1
kind: ZeroTrustPolicy
metadata: {name: db}
spec:
  subject: {cidrs: [10.0.0.10]}
  ingress:
    - {name: web, from: [{cidr: 10.0.0.1}], ports: [{protocol: TCP, port: 5432}]}
    - {name: never-used, from: [{cidr: 10.0.0.2}], ports: [{protocol: TCP, port: 5432}]}
";

    fn policies(text: &str) -> Vec<Policy> {
        crate::check(text).documents.iter().map(|d| d.lower(0)).collect()
    }

    fn record(flow: u8, src: [u8; 4], time: i64) -> Record {
        Record {
            flow: [flow; 16],
            src: src.into(),
            dst: [10, 0, 0, 10].into(),
            protocol: 6,
            port: 5432,
            first_seen: time,
            last_seen: time,
        }
    }

    fn distinct(mut record: Record, n: u8) -> Record {
        record.flow[0] = n;
        record.flow[1] = !n;
        record
    }

    #[test]
    fn a_draft_is_judged_by_what_was_recorded() {
        let mut replay = Replay::new(&policies(DRAFT), None).unwrap();
        // Every hour of eight days, a flow of the web server; a backup once.
        for hour in 0..24 * 8_i64 {
            let n = u8::try_from(hour).unwrap();
            assert!(replay.record(&distinct(record(1, [10, 0, 0, 1], hour * HOUR), n)));
        }
        let backup = distinct(record(9, [10, 0, 0, 99], 3 * DAY), 7);
        // Two records of one flow count once.
        assert!(replay.record(&backup) && replay.record(&backup));
        let report = replay.report();
        assert_eq!(report.totals.flows, 24 * 8 + 1);
        assert_eq!((report.totals.allowed, report.totals.blocked), (24 * 8, 1));
        assert_eq!(report.confidence.level, Level::High);
        assert_eq!(report.blocked.len(), 1);
        let blocked = &report.blocked[0];
        assert_eq!(blocked.source, IpAddr::from([10, 0, 0, 99]));
        assert!(blocked.rare && blocked.newly, "a job that runs rarely is called out");
        assert_eq!(blocked.rule, DEFAULT_DENY);
        let unused: Vec<&str> = report.unused().map(|r| r.rule.as_str()).collect();
        assert_eq!(unused, ["never-used"]);
    }

    #[test]
    fn what_is_blocked_today_is_not_news() {
        let draft = policies(DRAFT);
        let current = policies(&DRAFT.replace("spec:\n", "spec:\n  mode: enforce\n"));
        let mut replay = Replay::new(&draft, Some(&current)).unwrap();
        replay.record(&record(1, [10, 0, 0, 99], 0));
        let report = replay.report();
        assert_eq!((report.totals.blocked, report.totals.newly_blocked), (1, 0));
        assert!(!report.blocked[0].newly);
        assert_eq!(report.confidence.level, Level::Low);

        let nothing = policies(&DRAFT.replace("10.0.0.10]", "10.0.0.11]"));
        let mut replay = Replay::new(&nothing, Some(&current)).unwrap();
        replay.record(&record(1, [10, 0, 0, 99], 0));
        assert_eq!(replay.report().totals.newly_passing, 1);
    }
}
