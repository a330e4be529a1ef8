//! Verdicts on connections by address, fast.
//!
//! Each side of a connection is decided on its own, by four searches in sorted arrays: the governed address
//! gives the table of the policies that govern it together; the other address gives its class among the peers
//! of that table's rules; the class has, for each protocol, the ports cut into ranges with the rule that
//! decides each. Nothing is evaluated per rule at run time.

use std::{
    borrow::Borrow,
    collections::{BTreeSet, HashMap},
    fmt,
    net::IpAddr,
};

use crate::{
    document::{Action, Mode},
    ir::{self, DEFAULT_DENY, Direction, Policy, Rule},
    sets::{Bound, IntervalSet, NUMBERED, PORT_PROTOCOLS, protocol_name},
};

/// Steps (rule × range pairs) that building may take. About 200 bytes of memory and 100 ns each at worst.
const WORK: usize = 10_000_000;

/// The policies overlap so much that an engine for them would need too much memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the rules overlap in more than {WORK} places, too many to decide flows fast")]
pub struct TooComplex;

/// What is decided about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// A rule allows it.
    Allow,
    /// A rule, or the end of a policy, denies it.
    Deny,
    /// No policy governs either side.
    Ungoverned,
}

/// What one side of a connection decided: nothing, or an [`Entry`] of the engine that decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Side(u32);

const DENY: u32 = 1 << 31;

impl Side {
    /// Whether a policy governs this side.
    pub fn is_governed(self) -> bool {
        self.0 != 0
    }

    /// Whether this side denies the connection.
    pub fn denies(self) -> bool {
        self.0 & DENY != 0
    }

    pub(crate) fn index(self) -> Option<usize> {
        ((self.0 & !DENY) as usize).checked_sub(1)
    }
}

/// What both sides of a connection decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Decision {
    /// Policies that govern the source.
    pub egress: Side,
    /// Policies that govern the destination.
    pub ingress: Side,
}

impl Decision {
    /// The verdict: denied when either side denies.
    pub fn verdict(self) -> Verdict {
        if self.egress.denies() || self.ingress.denies() {
            Verdict::Deny
        } else if self.egress.is_governed() || self.ingress.is_governed() {
            Verdict::Allow
        } else {
            Verdict::Ungoverned
        }
    }

    /// The side that decides: of a denial the first that denies, as a packet meets them; of an allowed
    /// connection the destination's where it is governed.
    pub fn deciding(self) -> (Direction, Side) {
        if self.egress.denies() || (!self.ingress.is_governed() && self.egress.is_governed()) {
            (Direction::Egress, self.egress)
        } else {
            (Direction::Ingress, self.ingress)
        }
    }
}

/// What is decided about a connection, by what is enforced and by everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// What policies in mode `enforce` decide. This is the connection's verdict.
    pub enforced: Decision,
    /// What it would be if policies in mode `observe` or `stage` were enforced too; `None` when there are none.
    pub observed: Option<Decision>,
}

/// Something that decides: a rule, or a policy's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The policy.
    pub policy: String,
    /// Its version; 0 when it is not stored.
    pub version: u64,
    /// The rule, or `default-deny`.
    pub rule: String,
    /// The direction of the rule.
    pub direction: Direction,
    /// Whether it allows.
    pub allows: bool,
    /// The policy's mode.
    pub mode: Mode,
}

impl fmt::Display for Entry {
    /// `name@version rule`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", ir::reference(&self.policy, self.version), self.rule)
    }
}

/// A verdict in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The verdict of what is enforced.
    pub verdict: Verdict,
    /// What decided; `None` for an ungoverned connection.
    pub entry: Option<Entry>,
    /// Why, in words; what observing policies would change included.
    pub reason: String,
}

/// Verdicts of a set of policies.
#[derive(Debug, Default)]
pub struct Engine {
    entries: Vec<Entry>,
    enforced: Plane,
    all: Option<Plane>,
}

/// A function from a value to a number, constant between the starts of its steps.
#[derive(Debug)]
struct Steps<T> {
    starts: Vec<T>,
    values: Vec<u32>,
}

impl<T> Default for Steps<T> {
    fn default() -> Self {
        Self {
            starts: Vec::new(),
            values: Vec::new(),
        }
    }
}

impl<T: Bound> Steps<T> {
    fn at(&self, value: T) -> u32 {
        let after = self.starts.partition_point(|start| *start <= value);
        match after.checked_sub(1) {
            Some(i) => self.values[i],
            None => 0,
        }
    }

    /// Cuts the values where any set begins or ends; `classify` gets the sets that hold each piece.
    fn build(
        sets: &[&IntervalSet<T>],
        mut classify: impl FnMut(&BTreeSet<u32>) -> Result<u32, TooComplex>,
    ) -> Result<Self, TooComplex> {
        let mut events = Vec::new();
        for (i, set) in (0u32..).zip(sets) {
            for (start, end) in set.ranges() {
                events.push((*start, true, i));
                if let Some(after) = end.next() {
                    events.push((after, false, i));
                }
            }
        }
        events.sort_unstable();
        let mut steps = Self::default();
        let mut active = BTreeSet::new();
        let (mut at, mut next) = (T::MIN, 0);
        loop {
            while let Some((_, begins, i)) = events.get(next).filter(|(place, ..)| *place == at) {
                if *begins {
                    active.insert(*i);
                } else {
                    active.remove(i);
                }
                next += 1;
            }
            let value = classify(&active)?;
            if steps.values.last() != Some(&value) {
                steps.starts.push(at);
                steps.values.push(value);
            }
            match events.get(next) {
                Some((place, ..)) => at = *place,
                None => return Ok(steps),
            }
        }
    }
}

/// Both directions of the policies that take part.
#[derive(Debug, Default)]
struct Plane {
    egress: Governed,
    ingress: Governed,
}

/// One direction: who is governed by which table. Table 0 is nobody's.
#[derive(Debug, Default)]
struct Governed {
    v4: Steps<u32>,
    v6: Steps<u128>,
    tables: Vec<Table>,
}

/// The rules of policies that govern an address together.
#[derive(Debug, Default)]
struct Table {
    v4: Steps<u32>,
    v6: Steps<u128>,
    classes: Vec<Services>,
}

/// Which entry decides each protocol and port (or type of ICMP), for one class of peers.
#[derive(Debug, Default)]
struct Services {
    ports: [Steps<u16>; 5],
    portless: Steps<u8>,
}

impl Governed {
    fn decide(&self, governed: IpAddr, peer: IpAddr, protocol: u8, port: u16) -> Side {
        let table = match governed {
            IpAddr::V4(a) => self.v4.at(u32::from(a)),
            IpAddr::V6(a) => self.v6.at(u128::from(a)),
        };
        let Some(table) = (table as usize).checked_sub(1).and_then(|i| self.tables.get(i)) else {
            return Side(0);
        };
        let class = match peer {
            IpAddr::V4(a) => table.v4.at(u32::from(a)),
            IpAddr::V6(a) => table.v6.at(u128::from(a)),
        };
        let services = &table.classes[class as usize];
        Side(match NUMBERED.iter().position(|p| *p == protocol) {
            Some(i) => services.ports[i].at(port),
            None => services.portless.at(protocol),
        })
    }
}

/// A rule in the order in which rules of a table decide.
struct Ordered<'p> {
    rule: &'p Rule,
    entry: u32,
    portless: IntervalSet<u8>,
}

struct Builder<'p> {
    policies: &'p [&'p Policy],
    /// The first entry of each policy and direction; the rules follow, then the default.
    first_entry: HashMap<(usize, Direction), u32>,
    work: usize,
}

impl Builder<'_> {
    fn spend(&mut self, steps: usize) -> Result<(), TooComplex> {
        self.work = self.work.checked_sub(steps.max(1)).ok_or(TooComplex)?;
        Ok(())
    }

    fn plane(&mut self, takes_part: impl Fn(&Policy) -> bool) -> Result<Plane, TooComplex> {
        let members: Vec<usize> = (0..self.policies.len())
            .filter(|i| takes_part(self.policies[*i]))
            .collect();
        Ok(Plane {
            egress: self.governed(&members, Direction::Egress)?,
            ingress: self.governed(&members, Direction::Ingress)?,
        })
    }

    fn governed(&mut self, members: &[usize], direction: Direction) -> Result<Governed, TooComplex> {
        let members: Vec<usize> = members
            .iter()
            .copied()
            .filter(|i| self.policies[*i].rules(direction).is_some())
            .collect();
        let mut known: HashMap<Vec<u32>, u32> = HashMap::new();
        let mut governed = Governed::default();
        let policies = self.policies;
        let v4: Vec<_> = members.iter().map(|i| &policies[*i].subject.addresses.v4).collect();
        let v6: Vec<_> = members.iter().map(|i| &policies[*i].subject.addresses.v6).collect();
        let mut tables = Vec::new();
        let mut classify = |active: &BTreeSet<u32>| {
            if active.is_empty() {
                return Ok(0);
            }
            self.spend(active.len())?;
            let key: Vec<u32> = active.iter().copied().collect();
            if let Some(table) = known.get(&key) {
                return Ok(*table);
            }
            let together: Vec<usize> = key.iter().map(|i| members[*i as usize]).collect();
            tables.push(self.table(&together, direction)?);
            let number = u32::try_from(tables.len()).map_err(|_| TooComplex)?;
            known.insert(key, number);
            Ok(number)
        };
        governed.v4 = Steps::build(&v4, &mut classify)?;
        governed.v6 = Steps::build(&v6, &mut classify)?;
        governed.tables = tables;
        Ok(governed)
    }

    fn table(&mut self, together: &[usize], direction: Direction) -> Result<Table, TooComplex> {
        let policies = self.policies;
        let mut ordered: Vec<(u16, bool, Ordered<'_>)> = Vec::new();
        for p in together {
            let first = self.first_entry[&(*p, direction)];
            for (entry, rule) in (first..).zip(policies[*p].rules(direction).unwrap_or_default()) {
                let denies = rule.action == Action::Deny;
                // A flow tells neither requests nor times: this rule may deny another request than the flow's.
                if denies && !rule.condition.is_none() {
                    continue;
                }
                ordered.push((
                    policies[*p].tier,
                    !denies,
                    Ordered {
                        rule,
                        entry: (entry + 1) | if denies { DENY } else { 0 },
                        portless: IntervalSet::from_ranges(rule.services.portless().map(|p| (p, p))),
                    },
                ));
            }
        }
        // Stable: within a tier and action, policies stay in order, and their rules too.
        ordered.sort_by_key(|(tier, allows, _)| (*tier, *allows));
        let ordered: Vec<Ordered<'_>> = ordered.into_iter().map(|(.., rule)| rule).collect();
        let default = together.iter().min_by_key(|p| policies[**p].tier).map_or(0, |p| {
            let rules = policies[*p].rules(direction).map_or(0, <[Rule]>::len);
            (self.first_entry[&(*p, direction)] + rules as u32 + 1) | DENY
        });

        let mut known: HashMap<Vec<u32>, u32> = HashMap::new();
        let mut classes = Vec::new();
        let v4: Vec<_> = ordered.iter().map(|o| &o.rule.peers.addresses.v4).collect();
        let v6: Vec<_> = ordered.iter().map(|o| &o.rule.peers.addresses.v6).collect();
        let mut classify = |active: &BTreeSet<u32>| {
            self.spend(active.len())?;
            let key: Vec<u32> = active.iter().copied().collect();
            if let Some(class) = known.get(&key) {
                return Ok(*class);
            }
            let matching: Vec<&Ordered<'_>> = key.iter().map(|i| &ordered[*i as usize]).collect();
            let class = u32::try_from(classes.len()).map_err(|_| TooComplex)?;
            classes.push(self.services(&matching, default)?);
            known.insert(key, class);
            Ok(class)
        };
        let v4 = Steps::build(&v4, &mut classify)?;
        let v6 = Steps::build(&v6, &mut classify)?;
        Ok(Table { v4, v6, classes })
    }

    fn services(&mut self, rules: &[&Ordered<'_>], default: u32) -> Result<Services, TooComplex> {
        let mut services = Services::default();
        // The rules are in deciding order, so the first that holds a port decides it.
        let first = |active: &BTreeSet<u32>| active.first().map_or(default, |i| rules[*i as usize].entry);
        let empty = IntervalSet::empty();
        for (i, protocol) in NUMBERED.into_iter().enumerate() {
            let sets: Vec<_> = rules
                .iter()
                .map(|o| o.rule.services.numbers(protocol).unwrap_or(&empty))
                .collect();
            self.spend(sets.iter().map(|s| s.ranges().len()).sum())?;
            services.ports[i] = Steps::build(&sets, |active| Ok(first(active)))?;
        }
        let sets: Vec<_> = rules.iter().map(|o| &o.portless).collect();
        self.spend(sets.len())?;
        services.portless = Steps::build(&sets, |active| Ok(first(active)))?;
        Ok(services)
    }
}

impl Engine {
    /// Prepares verdicts of policies. Where several could be named as deciding, earlier ones in `policies` are.
    ///
    /// # Errors
    /// [`TooComplex`] when rules overlap too much.
    pub fn build<P: Borrow<Policy>>(policies: &[P]) -> Result<Self, TooComplex> {
        let policies: Vec<&Policy> = policies.iter().map(Borrow::borrow).collect();
        Self::build_from(&policies)
    }

    fn build_from(policies: &[&Policy]) -> Result<Self, TooComplex> {
        let mut entries = Vec::new();
        let mut first_entry = HashMap::new();
        for (p, policy) in policies.iter().enumerate() {
            for direction in Direction::BOTH {
                let Some(rules) = policy.rules(direction) else {
                    continue;
                };
                let first = u32::try_from(entries.len()).ok().filter(|n| *n < DENY - 1);
                first_entry.insert((p, direction), first.ok_or(TooComplex)?);
                let entry = |rule: &str, allows| Entry {
                    policy: policy.name.clone(),
                    version: policy.version,
                    rule: rule.to_owned(),
                    direction,
                    allows,
                    mode: policy.mode,
                };
                entries.extend(rules.iter().map(|r| entry(&r.name, r.action == Action::Allow)));
                entries.push(entry(DEFAULT_DENY, false));
            }
        }
        let mut builder = Builder {
            policies,
            first_entry,
            work: WORK,
        };
        let enforced = builder.plane(|p| p.mode == Mode::Enforce)?;
        let all = if policies.iter().any(|p| p.mode != Mode::Enforce) {
            Some(builder.plane(|_| true)?)
        } else {
            None
        };
        Ok(Self { entries, enforced, all })
    }

    /// Decides a connection. Of ICMP, `port` is the type; of a protocol without ports it is ignored.
    ///
    /// Where a rule depends on what a flow does not tell (the request, the opener's trust, the time), the flow counts
    /// as allowed if it may be.
    pub fn decide(&self, src: IpAddr, dst: IpAddr, protocol: u8, port: u16) -> Judgement {
        let (src, dst) = (src.to_canonical(), dst.to_canonical());
        let on = |plane: &Plane| {
            if src == dst {
                return Decision::default();
            }
            Decision {
                egress: plane.egress.decide(src, dst, protocol, port),
                ingress: plane.ingress.decide(dst, src, protocol, port),
            }
        };
        Judgement {
            enforced: on(&self.enforced),
            observed: self.all.as_ref().map(on),
        }
    }

    /// What decided a side; `None` when nothing governs it.
    pub fn entry(&self, side: Side) -> Option<&Entry> {
        self.entries.get(side.index()?)
    }

    /// Everything that can decide.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Decides a connection and says why.
    pub fn explain(&self, src: IpAddr, dst: IpAddr, protocol: u8, port: u16) -> Explanation {
        let judgement = self.decide(src, dst, protocol, port);
        let verdict = judgement.enforced.verdict();
        let service = if PORT_PROTOCOLS.contains(&protocol) {
            format!("{}/{port}", protocol_name(protocol))
        } else {
            protocol_name(protocol)
        };
        let mut reason = format!("{src} → {dst} {service}: {}", self.words(judgement.enforced, src, dst));
        if let Some(observed) = judgement.observed
            && observed.verdict() != verdict
        {
            reason.push_str(&format!(
                "; with policies in mode observe: {}",
                self.words(observed, src, dst)
            ));
        }
        Explanation {
            verdict,
            entry: self.entry(judgement.enforced.deciding().1).cloned(),
            reason,
        }
    }

    fn words(&self, decision: Decision, src: IpAddr, dst: IpAddr) -> String {
        let (direction, side) = decision.deciding();
        let Some(entry) = self.entry(side) else {
            return "no policy governs either side".to_owned();
        };
        let policy = ir::reference(&entry.policy, entry.version);
        let (host, what) = match direction {
            Direction::Egress => (src, "may open"),
            Direction::Ingress => (dst, "may receive"),
        };
        if entry.rule == DEFAULT_DENY {
            return format!("denied: policy {policy} governs what {host} {what}, and no rule allows this");
        }
        let verb = if entry.allows { "allowed" } else { "denied" };
        format!("{verb} by rule {} of policy {policy}", entry.rule)
    }
}
