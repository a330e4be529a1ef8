//! Beacons: a host turns to the same outside destination again and again, at intervals and with sizes more regular than
//! people and programs that react to people make them.
//!
//! A channel is a source and a name (TLS server name, HTTP host, what was asked of a proxy) or, without a name, an
//! address. Its last contacts are compared with two explanations: intervals from a gamma distribution, whose shape is
//! what period and jitter come to, against exponential ones, as independent events make them; and sizes that hardly
//! vary against sizes that vary by a factor of e. The logarithm of the likelihood ratio is the evidence, in nats.
//! The shape is estimated after Ye and Chen (2017); no interval has to be near a fixed period, so that a jitter of 40 %
//! costs evidence and not the detection.
//!
//! Not told: destinations that several hosts of the tenant turn to, what was as regular while normal was learnt, clocks
//! (NTP), and what a proxy does for the hosts behind it, which are judged by what they ask of the proxy.

use garrison_flow::FlowState;
use garrison_models::rng::mix;

use super::{Row, is_one_host};
use crate::domain::{
    detector::{Detector, beacon_technique},
    facts::{TCP, UDP, number, text},
    finding::{Finding, Target, service_name},
    settings::BeaconSettings,
    shard::{Context, Shard, feature, feature_within},
    wide::{Crowd, Seen, Wide, host_hash, name_hash},
    window::{Host, Nanos, SECOND},
};

/// Flows on a channel closer to the last one than this belong to the same contact.
pub const SAME_CONTACT: Nanos = SECOND;
/// A channel's presence is kept in slots of this length.
pub const SLOT: Nanos = 300 * SECOND;
/// So many of them: two hours.
pub const SLOTS: u32 = 24;
/// A name asked of a proxy is the proxy's clients' for so long.
const PROXIED_FOR: Nanos = 3_600 * SECOND;
/// The most that a contact's size can speak for a beacon, and against one, in nats.
const SIZE_SPEAKS: (f64, f64) = (-1.0, 0.3);
/// Spread of the logarithm of sizes, as beacons have it and as other traffic has it.
const SIZE_SPREAD: (f64, f64) = (0.15, 1.0);
/// What evidence must have more, nats, where the destination was in use while normal was learnt.
const LEARNT: f64 = 4.0;
/// Shapes above this, a jitter below 10 %, say nothing more: clocks are not better.
const MOST_SHAPE: f64 = 100.0;

/// One contact.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Contact {
    /// When it began.
    #[prost(sfixed64, tag = "1")]
    pub time: Nanos,
    /// Payload octets the source sent in its first flow.
    #[prost(uint32, tag = "2")]
    pub sent: u32,
    /// Payload octets it received.
    #[prost(uint32, tag = "3")]
    pub received: u32,
}

/// The latest contacts of a source with a destination.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Channel {
    /// In order of time.
    #[prost(message, repeated, tag = "1")]
    pub contacts: Vec<Contact>,
    /// Time of the latest flow.
    #[prost(sfixed64, tag = "2")]
    pub latest: Nanos,
    /// One bit for each slot with a contact; the lowest is that of the latest flow.
    #[prost(uint32, tag = "3")]
    pub slots: u32,
    /// It was as regular while normal was learnt.
    #[prost(bool, tag = "4")]
    pub usual: bool,
    /// Flows, all in all.
    #[prost(uint32, tag = "5")]
    pub flows: u32,
    /// It was used while normal was learnt.
    #[prost(bool, tag = "7")]
    pub learnt: bool,
    /// The destination was asked of a proxy.
    #[prost(bool, tag = "6")]
    pub proxied: bool,
}

/// What the contacts of a channel say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evidence {
    /// In all, nats.
    pub total: f64,
    /// Of it by the intervals.
    pub time: f64,
    /// Median interval.
    pub period: Nanos,
    /// Coefficient of variation of the intervals that the shape stands for.
    pub jitter: f64,
    /// Spread of the logarithm of the octets sent, from the median deviation.
    pub spread: f64,
}

impl Channel {
    /// Notes a flow. True when it begins a contact.
    pub fn note(&mut self, contact: Contact, most: usize) -> bool {
        if self.flows == 0 {
            self.latest = contact.time;
        }
        self.flows = self.flows.saturating_add(1);
        let at = self.contacts.partition_point(|c| c.time <= contact.time);
        let near = |c: &Contact| contact.time.abs_diff(c.time) < SAME_CONTACT as u64;
        let goes_on = contact.time >= self.latest
            && contact.time.abs_diff(self.latest) < SAME_CONTACT as u64
            && !self.contacts.is_empty();
        let same = goes_on
            || at.checked_sub(1).is_some_and(|before| near(&self.contacts[before]))
            || self.contacts.get(at).is_some_and(near);
        self.mark(contact.time);
        if same || (at == 0 && self.contacts.len() >= most) {
            return false;
        }
        if self.contacts.len() >= most {
            self.contacts.remove(0);
            self.contacts.insert(at - 1, contact);
        } else {
            self.contacts.insert(at, contact);
        }
        true
    }

    /// Adds what another part of the same channel has seen.
    pub fn merge(&mut self, other: &Self, most: usize) {
        let (flows, usual) = (self.flows.saturating_add(other.flows), self.usual || other.usual);
        let slots = (other.slots, other.latest);
        for contact in &other.contacts {
            self.note(*contact, most);
        }
        for back in (0..SLOTS).filter(|back| slots.0 >> back & 1 == 1) {
            self.mark(slots.1.saturating_sub(i64::from(back) * SLOT));
        }
        self.flows = flows;
        self.usual = usual;
        self.proxied |= other.proxied;
        self.learnt |= other.learnt;
    }

    fn mark(&mut self, time: Nanos) {
        let (now, then) = (time.div_euclid(SLOT), self.latest.div_euclid(SLOT));
        if now > then {
            let by = u32::try_from(now - then).unwrap_or(u32::MAX);
            self.slots = self.slots.checked_shl(by).unwrap_or(0);
        }
        self.latest = self.latest.max(time);
        let back = u32::try_from(then.max(now) - now).unwrap_or(u32::MAX);
        if back < SLOTS {
            self.slots |= 1 << back;
        }
        self.slots &= (1 << SLOTS) - 1;
    }

    /// Share of the two hours before `now` in whose slots the channel was used.
    pub fn presence(&self, now: Nanos) -> f64 {
        let behind = now.div_euclid(SLOT).saturating_sub(self.latest.div_euclid(SLOT));
        let behind = u32::try_from(behind.max(0)).unwrap_or(u32::MAX);
        let slots = self.slots.checked_shl(behind).unwrap_or(0) & ((1 << SLOTS) - 1);
        f64::from(slots.count_ones()) / f64::from(SLOTS)
    }

    /// What the contacts say. `None` while there are fewer than `least`.
    pub fn evidence(&self, least: usize) -> Option<Evidence> {
        if self.contacts.len() < least.max(4) {
            return None;
        }
        let first = self.contacts.len() - least;
        let contacts = &self.contacts[first..];
        let n = (contacts.len() - 1) as f64;
        let (mut sum, mut logs) = (0.0, 0.0);
        let mut intervals = [0_i64; MOST_CONTACTS];
        for (pair, interval) in contacts.windows(2).zip(&mut intervals) {
            *interval = (pair[1].time - pair[0].time).max(1);
            sum += *interval as f64;
            logs += (*interval as f64).ln();
        }
        let statistic = ((sum / n).ln() - logs / n).max(0.0);
        let shape = shape(statistic);
        let time = n * advantage(shape, statistic);
        let intervals = &mut intervals[..contacts.len() - 1];
        intervals.sort_unstable();
        let spread = spread(contacts);
        let (beacon, other) = SIZE_SPREAD;
        let a_contact = (other / beacon).ln() + spread * spread / 2.0 * (other.powi(-2) - beacon.powi(-2));
        let size = (n + 1.0) * a_contact.clamp(SIZE_SPEAKS.0, SIZE_SPEAKS.1);
        Some(Evidence {
            total: time + size,
            time,
            period: intervals[intervals.len() / 2],
            jitter: shape.sqrt().recip(),
            spread,
        })
    }

    /// How much the channel stands out among others, 0 to 1, for a list of those most worth a look: regular intervals,
    /// regular sizes and, twice, presence over time.
    pub fn standing(&self, least: usize, now: Nanos) -> Option<f64> {
        let evidence = self.evidence(least)?;
        let regular = |spread: f64| 1.0 / (1.0 + 10.0 * spread);
        let interval = regular(evidence.jitter * evidence.jitter / 2.0);
        let size = regular(evidence.spread * evidence.spread / 2.0);
        Some((interval + size + 2.0 * self.presence(now)) / 4.0)
    }
}

/// The most contacts that a judgement can rest on.
pub const MOST_CONTACTS: usize = 64;

// The maximum-likelihood shape of a gamma distribution for a difference between the logarithm of the mean and the mean
// of the logarithm.
fn shape(statistic: f64) -> f64 {
    let s = statistic.max(1e-6);
    let root = ((s - 3.0) * (s - 3.0) + 24.0 * s).sqrt();
    ((3.0 - s + root) / (12.0 * s)).clamp(1.0, MOST_SHAPE)
}

// What one interval adds for a gamma distribution of this shape and against an exponential one, nats.
fn advantage(shape: f64, statistic: f64) -> f64 {
    1.0 - shape + shape * shape.ln() - ln_gamma(shape) - (shape - 1.0) * statistic
}

// Stirling's series; good to 1e-4 from 1 on, which is all that is asked of it.
fn ln_gamma(x: f64) -> f64 {
    (x - 0.5) * x.ln() - x + 0.5 * std::f64::consts::TAU.ln() + 1.0 / (12.0 * x) - 1.0 / (360.0 * x.powi(3))
}

fn spread(contacts: &[Contact]) -> f64 {
    let mut logs = [0.0_f64; MOST_CONTACTS];
    for (contact, log) in contacts.iter().zip(&mut logs) {
        *log = (f64::from(contact.sent) + 1.0).ln();
    }
    let logs = &mut logs[..contacts.len()];
    logs.sort_unstable_by(f64::total_cmp);
    let median = logs[logs.len() / 2];
    // From the median deviation, because the result of an order is sent once in a while.
    logs.iter_mut().for_each(|log| *log = (*log - median).abs());
    logs.sort_unstable_by(f64::total_cmp);
    1.4826 * logs[logs.len() / 2]
}

/// Where a flow leads, for a channel.
struct Destination<'a> {
    key: u64,
    name: Option<&'a str>,
    proxied: bool,
}

fn destination<'a>(row: &Row<'a>) -> Option<Destination<'a>> {
    let (i, dst) = (row.i, row.dst());
    let (columns, facts) = (row.columns, row.facts);
    let method = text(columns.http_method, i);
    let proxied = facts.dst_inside[i]
        && method.is_some_and(|method| {
            method == "CONNECT" || text(columns.http_uri, i).is_some_and(|uri| uri.starts_with("http://"))
        });
    let outside = !facts.dst_inside[i] && is_one_host(dst) && !is_link_local(dst);
    if !(proxied || outside) {
        return None;
    }
    let host = || text(columns.http_host, i).map(without_port);
    let name = if proxied {
        host().or_else(|| text(columns.tls_sni, i))
    } else {
        text(columns.tls_sni, i).or_else(host).filter(|name| !is_address(name))
    };
    let name = name.filter(|name| !name.is_empty());
    if proxied && name.is_none() {
        return None;
    }
    let key = match name {
        Some(name) => name_hash(name),
        None => address_key(dst, row.dst_port()),
    };
    Some(Destination { key, name, proxied })
}

/// The key of a destination that has no name.
pub fn address_key(dst: Host, port: u16) -> u64 {
    mix(host_hash(dst) ^ u64::from(port))
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') && port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

fn is_address(name: &str) -> bool {
    name.starts_with('[') || name.parse::<std::net::IpAddr>().is_ok()
}

fn is_link_local(host: Host) -> bool {
    matches!(host.ip(), std::net::IpAddr::V4(v4) if v4.is_link_local())
}

// A clock's question and answer have 48 octets (RFC 5905).
fn is_clock(row: &Row<'_>, sent: u64) -> bool {
    let packets = number(row.columns.src_packets, row.i).max(1);
    row.protocol() == UDP && row.dst_port() == 123 && sent.is_multiple_of(48) && sent / 48 == packets
}

/// The channel's part in a pass: `beacon.periodic`.
pub fn observe(shard: &mut Shard, wide: &mut Wide, row: &Row<'_>, context: &Context<'_>, out: &mut Vec<Finding>) {
    let settings = &context.settings.beacon;
    if !row.news.settled
        || !matches!(row.protocol(), TCP | UDP)
        || !context.settings.runs(Detector::BeaconPeriodic)
        || matches!(row.state, FlowState::New)
    {
        return;
    }
    let Some(destination) = destination(row) else {
        return;
    };
    let sent = number(row.columns.src_bytes, row.i);
    if is_clock(row, sent) {
        return;
    }
    let (src, time) = (
        row.src(),
        row.columns.first_seen.value(row.i).min(row.facts.time[row.i]),
    );
    wide.dirty = true;
    let crowd = wide.crowds.get_or_insert_with(destination.key, || Crowd {
        first: time,
        ..Crowd::default()
    });
    crowd.add(src);
    let hosts = crowd.hosts();
    if destination.proxied {
        let seen = wide.proxied.get_or_insert_with(destination.key, Seen::default);
        seen.at = seen.at.max(time);
    }
    let channel = shard
        .channels
        .get_or_insert_with((src, destination.key), Channel::default);
    channel.proxied |= destination.proxied;
    channel.learnt |= context.learning;
    let contact = Contact {
        time,
        sent: u32::try_from(sent).unwrap_or(u32::MAX),
        received: u32::try_from(number(row.columns.dst_bytes, row.i)).unwrap_or(u32::MAX),
    };
    if !channel.note(contact, settings.contacts) {
        return;
    }
    let forwarded = !destination.proxied
        && (wide.proxied.peek(&destination.key)).is_some_and(|seen| time.abs_diff(seen.at) < PROXIED_FOR as u64);
    let excused = channel.usual || forwarded || hosts >= settings.popular;
    // Most destinations are: what the contacts say is asked only where it is told, or learnt.
    if excused && !context.learning {
        return;
    }
    let Some(evidence) = channel.evidence(settings.contacts) else {
        return;
    };
    if !tells(&evidence, settings, channel.learnt && !context.learning) {
        return;
    }
    if context.learning {
        channel.usual = true;
        return;
    }
    out.push(found(row, &destination, &evidence, hosts, settings));
}

/// The evidence is enough for an alert; a destination that was in use while normal was learnt needs more.
pub fn tells(evidence: &Evidence, settings: &BeaconSettings, learnt: bool) -> bool {
    let needed = settings.evidence + if learnt { LEARNT } else { 0.0 };
    evidence.total >= needed && (settings.least_period..=settings.longest_period).contains(&evidence.period)
}

fn found(
    row: &Row<'_>,
    destination: &Destination<'_>,
    evidence: &Evidence,
    hosts: f64,
    settings: &BeaconSettings,
) -> Finding {
    let (src, dst) = (row.src(), row.dst());
    let service = service_name(dst, row.dst_port(), row.protocol());
    let whom = match (destination.name, destination.proxied) {
        (Some(name), true) => format!("{name} through the proxy {service}"),
        (Some(name), false) => name.to_owned(),
        (None, _) => service.clone(),
    };
    let period = evidence.period as f64 / SECOND as f64;
    let count = settings.contacts as f64;
    let share = (evidence.time / evidence.total).clamp(0.0, 1.0);
    Finding {
        title: format!(
            "Beacon of {src} to {whom}: every {period:.0} s, varying by {:.0} %",
            100.0 * evidence.jitter
        ),
        confidence: 0.6 + 0.35 * (1.0 - settings.evidence / evidence.total),
        targets: vec![Target::Service(dst, row.dst_port(), row.protocol())],
        techniques: beacon_technique(row.columns, row.i, destination.proxied),
        features: vec![
            feature_within(
                "interval_variation",
                "1",
                evidence.jitter,
                1.0,
                share,
                variation_limit(evidence, settings),
            ),
            feature("period", "s", period, 0.0, 0.0),
            feature_within("contacts", "contacts", count, 0.0, 0.0, count - 1.0),
            feature("sent_size_variation", "1", evidence.spread, SIZE_SPREAD.1, 1.0 - share),
            feature_within("destination_hosts", "hosts", hosts.round(), 0.0, 0.0, settings.popular),
        ],
        score: evidence.total,
        threshold: settings.evidence,
        ..Finding::of(Detector::BeaconPeriodic, row, whom)
    }
}

// The variation of intervals at which the sizes alone would not have been enough.
fn variation_limit(evidence: &Evidence, settings: &BeaconSettings) -> f64 {
    let sizes = evidence.total - evidence.time;
    let n = (settings.contacts - 1) as f64;
    let (mut low, mut high) = (evidence.jitter, 1.0_f64);
    for _ in 0..40 {
        let middle = f64::midpoint(low, high);
        let shape = middle.powi(-2);
        // The statistic that has this shape: ln k - psi(k), near enough.
        let statistic = 1.0 / (2.0 * shape) + 1.0 / (12.0 * shape * shape);
        if sizes + n * advantage(shape, statistic) >= settings.evidence {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}

#[cfg(test)]
mod tests;
