//! What is known of the sources of one shard, and the one pass over a batch's rows that keeps it current and
//! runs the behaviours.

use arrow_array::Array as _;
use garrison_flow::{Columns, FlowState};
use garrison_proto::alert::v1::Feature;

use super::{
    activity::{ActivitySummary, SourceActivity, host_hash, port_hash},
    behaviour::{
        self, Row,
        beacon::Channel,
        dns::{generated::Asked, tunnel::Zone},
        slow::Tried,
        volume::Volume,
    },
    bounded::BoundedMap,
    facts::{Facts, number},
    finding::{Finding, Fingerprint, Fold},
    intel::{self, Matched, View, asked},
    settings::{Bounds, Settings},
    wide::Wide,
    window::{CountWindow, DistinctWindow, Host, Nanos},
};

/// What is remembered of a flow between its records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowMemory {
    /// Sequence number of the last record taken; `None` before the first.
    pub record_seq: Option<u32>,
    /// The opener's payload octets in it.
    pub src_bytes: u64,
    /// Its failed logins.
    pub auth_failures: u32,
    /// The flow was counted as failed.
    pub failed: bool,
    /// The flow's contact was looked at.
    pub contact: bool,
    /// What was done once for the flow, by [`once`].
    pub once: u8,
    /// Its DNS questions.
    pub questions: u32,
}

/// What is done once for a flow: bits of [`FlowMemory::once`].
pub mod once {
    /// It ended, or has lasted for half a minute: its sizes say something.
    pub const SETTLED: u8 = 1;
    /// Its DNS question was answered, or was not and never will be.
    pub const NAMED: u8 = 2;
    /// It has lasted for as long as makes an alert.
    pub const LONG: u8 = 4;
    /// Its client program is known.
    pub const CLIENT: u8 = 8;
    /// Its certificate is known.
    pub const CERTIFIED: u8 = 16;
}

/// How many rows before its use an entry is fetched.
const AHEAD: usize = 8;

/// A flow that lives counts as settled after this.
const SETTLED_AFTER: Nanos = 30 * super::window::SECOND;

/// The internal services a source is known to use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contacts {
    /// Host, port and IP protocol number, sorted; port 0 stands for every dynamic port.
    pub known: Vec<(Host, u16, u8)>,
    /// There were more than could be kept: the source is not judged any more.
    pub overflowed: bool,
}

impl Contacts {
    /// Adds a service. False when it was known.
    pub fn insert(&mut self, service: (Host, u16, u8), most: usize) -> bool {
        match self.known.binary_search(&service) {
            Ok(_) => false,
            Err(_) if self.known.len() >= most => {
                self.overflowed = true;
                true
            }
            Err(at) => {
                self.known.insert(at, service);
                true
            }
        }
    }
}

/// One source, one destination.
pub type Pair = (Host, Host);
/// A protocol and a port.
pub type Port = (u8, u16);
/// One source, one service.
pub type ServicePair = (Host, Host, u16);

/// The state of one shard of one tenant. Every map is bounded and forgets the least active first.
#[derive(Debug)]
pub struct Shard {
    /// Flows, to tell repeats and to count what is new in a record.
    pub flows: BoundedMap<[u8; 16], FlowMemory>,
    /// What sources did in the last minute.
    pub sources: BoundedMap<Host, SourceActivity>,
    /// Ports tried in vain, by source and destination.
    pub vertical: BoundedMap<Pair, DistinctWindow<Port>>,
    /// Hosts tried in vain, by source and port.
    pub horizontal: BoundedMap<(Host, Port), DistinctWindow<Host>>,
    /// Failed HTTP logins, by source and service.
    pub logins: BoundedMap<ServicePair, CountWindow>,
    /// Short sessions, by source and service.
    pub sessions: BoundedMap<ServicePair, CountWindow>,
    /// Internal services that sources use.
    pub contacts: BoundedMap<Host, Contacts>,
    /// Contacts with outside destinations, by source and the hash of the destination.
    pub channels: BoundedMap<(Host, u64), Channel>,
    /// Questions below a parent domain, by source and the hash of the parent.
    pub zones: BoundedMap<(Host, u64), Zone>,
    /// Domains that sources asked for.
    pub asked: BoundedMap<Host, Asked>,
    /// What sources send to the outside.
    pub volumes: BoundedMap<Host, Volume>,
    /// Internal services that sources tried in vain over hours.
    pub tried: BoundedMap<Host, Tried>,
    /// Logins at hosts that are new, by source.
    pub lateral: BoundedMap<ServicePair, CountWindow>,
    /// Alerts that repeats are folded into.
    pub folds: BoundedMap<Fingerprint, Fold>,
}

/// What holds while a batch is judged.
pub struct Context<'a> {
    /// Thresholds and bounds.
    pub settings: &'a Settings,
    /// New contacts become known without an alert.
    pub learning: bool,
    /// Normal was learnt, so that a contact can be new.
    pub learnt: bool,
    /// Usual values of some features, by name, from the model; 0 without one.
    pub usual: &'a dyn Fn(&str) -> f64,
    /// What threat intelligence knows, where there is any.
    pub intel: Option<&'a View>,
}

/// What one pass saw.
#[derive(Debug, Default)]
pub struct Pass {
    /// What the behaviours found, in the order of the rows.
    pub findings: Vec<Finding>,
    /// What threat intelligence knew.
    pub matched: Vec<Matched>,
    /// Rows of flows with something to score: not the first packet only, not a repeat.
    pub scorable: Vec<usize>,
    /// Records that were seen before.
    pub repeated: u64,
    /// Records too old for their source's window.
    pub late: u64,
    /// Records whose state means nothing.
    pub unusable: u64,
}

impl Shard {
    /// Starts empty.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            flows: BoundedMap::new(bounds.flows),
            sources: BoundedMap::new(bounds.sources),
            vertical: BoundedMap::new(bounds.windows),
            horizontal: BoundedMap::new(bounds.windows),
            logins: BoundedMap::new(bounds.windows),
            sessions: BoundedMap::new(bounds.windows),
            contacts: BoundedMap::new(bounds.contact_sources),
            channels: BoundedMap::new(bounds.channels),
            zones: BoundedMap::new(bounds.zones),
            asked: BoundedMap::new(bounds.windows),
            volumes: BoundedMap::new(bounds.windows),
            tried: BoundedMap::new(bounds.windows),
            lateral: BoundedMap::new(bounds.windows),
            folds: BoundedMap::new(bounds.folds),
        }
    }

    /// Entries held, over all maps but flows.
    pub fn entities(&self) -> usize {
        self.sources.len()
            + self.vertical.len()
            + self.horizontal.len()
            + self.logins.len()
            + self.sessions.len()
            + self.contacts.len()
            + self.channels.len()
            + self.zones.len()
            + self.asked.len()
            + self.volumes.len()
            + self.tried.len()
            + self.lateral.len()
    }

    /// Entries that had to make room, over all maps.
    pub fn evicted(&self) -> u64 {
        self.flows.evicted()
            + self.sources.evicted()
            + self.vertical.evicted()
            + self.horizontal.evicted()
            + self.logins.evicted()
            + self.sessions.evicted()
            + self.contacts.evicted()
            + self.channels.evicted()
            + self.zones.evicted()
            + self.asked.evicted()
            + self.volumes.evicted()
            + self.tried.evicted()
            + self.lateral.evicted()
            + self.folds.evicted()
    }

    /// Takes every row of a batch in order: keeps the windows current, fills the activity columns of `facts`
    /// and runs the behaviours.
    pub fn pass(&mut self, wide: &mut Wide, columns: &Columns<'_>, facts: &mut Facts, context: &Context<'_>) -> Pass {
        let mut pass = Pass::default();
        for i in 0..facts.src.len() {
            self.fetch(wide, columns, facts, i);
            let Some(state) = facts.state[i] else {
                pass.unusable += 1;
                continue;
            };
            let Some(news) = self.news(columns, facts, i, context) else {
                pass.repeated += 1;
                continue;
            };
            pass.late += u64::from(!self.note_activity(columns, facts, i, &news));
            if state != FlowState::New {
                pass.scorable.push(i);
            }
            if let Some(view) = context.intel {
                view.ask(columns, facts, i, news.unasked, &mut pass.matched);
            }
            let row = Row {
                columns,
                facts,
                i,
                state,
                news: &news,
            };
            behaviour::scan::vertical(self, &row, context, &mut pass.findings);
            behaviour::scan::horizontal(self, &row, context, &mut pass.findings);
            behaviour::bruteforce::logins(self, &row, context, &mut pass.findings);
            behaviour::bruteforce::sessions(self, &row, context, &mut pass.findings);
            behaviour::contact::new_internal(self, &row, context, &mut pass.findings);
            behaviour::beacon::observe(self, wide, &row, context, &mut pass.findings);
            behaviour::dns::observe(self, wide, &row, context, &mut pass.findings);
            behaviour::volume::observe(self, wide, &row, context, &mut pass.findings);
            behaviour::slow::observe(self, &row, context, &mut pass.findings);
            behaviour::flood::flood(wide, &row, context, &mut pass.findings);
            behaviour::flood::distributed(wide, &row, context, &mut pass.findings);
            behaviour::novelty::long(wide, &row, context, &mut pass.findings);
            behaviour::novelty::client(wide, &row, context, &mut pass.findings);
            behaviour::novelty::device(wide, &row, context, &mut pass.findings);
            behaviour::hygiene::clear_text(wide, &row, context, &mut pass.findings);
            behaviour::hygiene::certificate(wide, &row, context, &mut pass.findings);
        }
        pass
    }

    // What the record adds to what is known of its flow. `None` for a repeat: counters are cumulative, so a
    // record that was overtaken adds nothing either.
    fn news(&mut self, columns: &Columns<'_>, facts: &Facts, i: usize, context: &Context<'_>) -> Option<News> {
        let contacts_observed = context.learning || context.learnt;
        let memory = self.flows.get_or_insert_with(flow_id(columns, i), FlowMemory::default);
        let seq = columns.record_seq.value(i);
        if memory.record_seq.is_some_and(|last| seq <= last) {
            return None;
        }
        let src_bytes = number(columns.src_bytes, i);
        let auth_failures = u32::try_from(number(columns.http_auth_failures, i)).unwrap_or(u32::MAX);
        let failed = facts.reach[i] == super::window::Reach::Failed;
        let lasted = columns.last_seen.value(i).saturating_sub(columns.first_seen.value(i));
        let settled = facts.state[i] == Some(FlowState::Ended)
            || (facts.state[i] == Some(FlowState::Active) && lasted >= SETTLED_AFTER);
        let mut once = if settled { once::SETTLED } else { 0 };
        if lasted >= context.settings.long.after {
            once |= once::LONG;
        }
        if columns.ja4.is_valid(i) || columns.http_user_agent.is_valid(i) {
            once |= once::CLIENT;
        }
        if columns.tls_not_after.is_valid(i) || columns.tls_self_signed.is_valid(i) {
            once |= once::CERTIFIED;
        }
        let mut questions = 0;
        if columns.dns_query.is_valid(i) && (settled || columns.dns_rcode.is_valid(i)) {
            once |= once::NAMED;
            questions = u32::try_from(number(columns.dns_queries, i)).unwrap_or(u32::MAX).max(1);
        }
        once |= intel::facts_of(columns, i);
        let first = memory.record_seq.is_none();
        let news = News {
            unasked: (once & !memory.once & asked::ONCE) | if first { asked::ADDRESSES } else { 0 },
            first_record: memory.record_seq.is_none(),
            bytes: src_bytes.saturating_sub(memory.src_bytes),
            auth_failures: auth_failures.saturating_sub(memory.auth_failures),
            failed: failed && !memory.failed,
            contact_seen: memory.contact,
            settled: once & !memory.once & once::SETTLED != 0,
            named: once & !memory.once & once::NAMED != 0,
            long: once & !memory.once & once::LONG != 0,
            client: once & !memory.once & once::CLIENT != 0,
            certified: once & !memory.once & once::CERTIFIED != 0,
            questions: questions.saturating_sub(memory.questions),
        };
        *memory = FlowMemory {
            record_seq: Some(seq),
            src_bytes: src_bytes.max(memory.src_bytes),
            auth_failures: auth_failures.max(memory.auth_failures),
            failed: failed || memory.failed,
            contact: memory.contact || (contacts_observed && behaviour::contact::is_contact(columns, facts, i)),
            once: memory.once | once,
            questions: questions.max(memory.questions),
        };
        Some(news)
    }

    fn note_activity(&mut self, columns: &Columns<'_>, facts: &mut Facts, i: usize, news: &News) -> bool {
        let source = self.sources.get_or_insert_with(facts.src[i], SourceActivity::default);
        let bucket = source.bucket(facts.time[i]);
        let in_time = bucket.is_some();
        if let Some(bucket) = bucket {
            if news.first_record {
                let port = port_hash(columns.protocol.value(i), columns.dst_port.value(i));
                bucket.flows = bucket.flows.saturating_add(1);
                bucket.hosts.add(host_hash(facts.dst[i].0));
                bucket.ports.add(port);
            }
            bucket.failed = bucket.failed.saturating_add(u32::from(news.failed));
            bucket.bytes = bucket.bytes.saturating_add(news.bytes);
        }
        // No other row is scored.
        if facts.state[i] != Some(FlowState::New) {
            facts.activity[i] = source.summary(facts.time[i]);
        }
        in_time
    }

    /// What the source of a row has done in the minute that ends with it, while the row is looked at.
    pub fn activity(&self, row: &Row<'_>) -> ActivitySummary {
        let source = self.sources.peek(&row.src());
        source.map_or_else(ActivitySummary::default, |source| source.summary(row.facts.time[row.i]))
    }

    // The entries that a row will ask for are fetched in two steps while those before it are looked at: first where they
    // are, then what they hold.
    fn fetch(&self, wide: &Wide, columns: &Columns<'_>, facts: &Facts, i: usize) {
        let (far, near) = (i + 2 * AHEAD, i + AHEAD);
        if far < facts.src.len() {
            self.flows.fetch_place(&flow_id(columns, far));
            self.sources.fetch_place(&facts.src[far]);
            self.vertical.fetch_place(&(facts.src[far], facts.dst[far]));
            wide.victims.fetch_place(&(facts.dst[far], columns.dst_port.value(far)));
        }
        if near < facts.src.len() {
            self.flows.fetch(&flow_id(columns, near));
            self.sources.fetch(&facts.src[near]);
            self.vertical.fetch(&(facts.src[near], facts.dst[near]));
            wide.victims.fetch(&(facts.dst[near], columns.dst_port.value(near)));
        }
    }
}

fn flow_id(columns: &Columns<'_>, i: usize) -> [u8; 16] {
    let mut id = [0; 16];
    id.copy_from_slice(columns.flow_id.value(i));
    id
}

/// What a record adds to what was known of its flow.
#[derive(Clone, Copy, Debug)]
pub struct News {
    /// Nothing was known of the flow.
    pub first_record: bool,
    /// Payload octets the opener sent since.
    pub bytes: u64,
    /// Logins that failed since.
    pub auth_failures: u32,
    /// It has failed, and had not before.
    pub failed: bool,
    /// Its contact was looked at already.
    pub contact_seen: bool,
    /// It ended or has lasted for half a minute, and had not before.
    pub settled: bool,
    /// Its DNS question is known with what became of it, and was not before.
    pub named: bool,
    /// It has lasted for as long as makes an alert, and had not before.
    pub long: bool,
    /// Its client program is known, and was not before.
    pub client: bool,
    /// Its certificate is known, and was not before.
    pub certified: bool,
    /// DNS questions since.
    pub questions: u32,
    /// What threat intelligence was not asked about yet: bits of [`asked`].
    pub unasked: u8,
}

/// A number for an alert.
pub fn feature(name: &str, unit: &str, value: f64, usual: f64, contribution: f64) -> Feature {
    Feature {
        name: name.to_owned(),
        value,
        usual,
        contribution,
        unit: unit.to_owned(),
        normal: None,
    }
}

/// A number for an alert, with the nearest value that would have been normal if all others had stayed as they are.
pub fn feature_within(name: &str, unit: &str, value: f64, usual: f64, contribution: f64, normal: f64) -> Feature {
    Feature {
        normal: Some(normal),
        ..feature(name, unit, value, usual, contribution)
    }
}

/// A span of flow time.
pub const fn seconds(n: i64) -> Nanos {
    n * super::window::SECOND
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::domain::{
        detector::Detector,
        network::Kind,
        registry::CandidateSettings,
        sample::SampleSettings,
        settings::{
            BeaconSettings, DistributedSettings, FloodSettings, GeneratedSettings, LateralSettings, LongSettings,
            Network, ShortSession, SlowSettings, Threshold, TunnelSettings, VolumeSettings, WideBounds,
        },
        spot::SpotSettings,
        window::Span,
    };

    pub(crate) fn settings() -> Settings {
        let threshold = |count: usize| Threshold {
            count,
            span: Span {
                length: seconds(60),
                grace: 250_000_000,
                bound: 4 * count,
            },
            burst: 2 * count,
            loud: 5 * count,
        };
        Settings {
            enabled: [true; Detector::ALL.len()],
            vertical: threshold(15),
            horizontal: threshold(15),
            logins: threshold(10),
            sessions: threshold(10),
            short_session: ShortSession {
                ports: vec![21, 22],
                longest: seconds(10),
                most_bytes: 8_000,
            },
            internal: vec![Network::new("10.0.0.0".parse().unwrap(), 8)],
            network: Kind::Ensemble(garrison_models::ensemble::Shape {
                hidden: vec![24],
                members: 2,
                masked: 0.5,
                steps: 500,
            }),
            candidate: CandidateSettings {
                every: 1,
                shadow_rows: 1_000,
                automatic: false,
                update_every: 0,
                sample: SampleSettings {
                    rows: 2_000,
                    memory: seconds(1_000),
                    source_share: 0.1,
                },
                most_lost: 0.1,
                guarded: true,
            },
            spot: SpotSettings {
                rate: 1e-3,
                level: 0.98,
                peaks: 500,
                drift_depth: 0,
                floor: 0.2,
            },
            budget: crate::domain::budget::BudgetSettings {
                alerts_a_day: [100.0, 200.0],
                never_held_severity: [
                    garrison_proto::alert::v1::Severity::Critical,
                    garrison_proto::alert::v1::Severity::High,
                ],
                never_held: Detector::ALL.map(|d| d.id().starts_with("scan.")),
                kept: 1_000,
            },
            fold: seconds(3_600),
            flows_an_alert: 32,
            targets_an_alert: 32,
            sample_rows: 4_000,
            seed: 1,
            clock_tolerance: seconds(60),
            beacon: BeaconSettings {
                contacts: 12,
                evidence: 12.0,
                least_period: seconds(5),
                longest_period: seconds(6 * 3_600),
                popular: 5.0,
            },
            tunnel: TunnelSettings {
                evidence: 3.0,
                window: seconds(600),
                popular: 5.0,
            },
            generated: GeneratedSettings {
                evidence: 12.0,
                names: 5,
                popular: 5.0,
            },
            volume: VolumeSettings {
                least: 100 << 20,
                factor: 3.0,
                hours: 12,
            },
            flood: FloodSettings {
                flows_a_second: 500,
                factor: 10.0,
            },
            slow: SlowSettings {
                services: 40.0,
                failed_share: 0.5,
                window: seconds(86_400),
            },
            distributed: DistributedSettings {
                ports: 100.0,
                sources: 8.0,
                window: seconds(600),
            },
            lateral: LateralSettings {
                hosts: Threshold {
                    span: Span {
                        length: seconds(3_600),
                        grace: 0,
                        bound: 6,
                    },
                    ..threshold(3)
                },
                ports: vec![22, 445, 3389],
            },
            long: LongSettings {
                after: seconds(4 * 3_600),
                popular: 5.0,
            },
            wide: WideBounds {
                destinations: 10_000,
                names: 1_000,
                victims: 1_000,
                devices: 1_000,
            },
            bounds: Bounds {
                flows: 10_000,
                sources: 1_000,
                windows: 1_000,
                contact_sources: 1_000,
                contacts_a_source: 64,
                folds: 1_000,
                channels: 1_000,
                zones: 1_000,
            },
        }
    }

    #[test]
    fn contacts_overflow_instead_of_growing() {
        let mut contacts = Contacts::default();
        for port in 0..10 {
            contacts.insert((Host(1), port, 6), 8);
        }
        assert_eq!(contacts.known.len(), 8);
        assert!(contacts.overflowed);
        assert!(!contacts.insert((Host(1), 3, 6), 8));
    }
}
