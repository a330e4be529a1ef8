//! Threat intelligence: what is known of the values in a flow, and what to make of it.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use arrow_array::Array as _;
use garrison_flow::{Columns, FlowBatch, FlowState};
use garrison_intel::{Claim, Entry, Index, Kind, Value, Warnings};
use garrison_proto::alert::v1::{Alert, IndicatorMatch, Severity, Technique};

use super::{
    detector::Detector,
    facts::{Facts, number, text},
    finding::{Finding, Target, service_name},
    settings::Settings,
    shard::feature,
    window::{Nanos, Reach, SECOND, timestamp},
};

/// TLS 1.3, which encrypts certificates.
const TLS13: u64 = 0x0304;

/// Claims that an alert lists at most.
const CLAIMS: usize = 4;

/// Flows remembered while one looks back, so that each is told once.
const TOLD: usize = 65_536;

/// Which facts of a flow are asked about, each once: bits of [`FlowMemory::once`](super::shard::FlowMemory::once), but for
/// the addresses, which are asked about at the flow's first record.
pub mod asked {
    /// Both addresses.
    pub const ADDRESSES: u8 = 0x01;
    /// Server name, host and URL, DNS question.
    pub const NAMES: u8 = 0x20;
    /// JA3 and JA4 of the client.
    pub const CLIENT: u8 = 0x40;
    /// JA3S, JA4S and the certificate of the server.
    pub const SERVER: u8 = 0x80;
    /// What a flow can be asked about once.
    pub const ONCE: u8 = NAMES | CLIENT | SERVER;
}

/// What a confidence is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grades {
    /// From here on an alert is of medium severity, 0 to 100.
    pub medium: u8,
    /// From here on it is high.
    pub high: u8,
}

impl Grades {
    /// A listed address that reaches in is one step less grave than one that is reached out to: the Internet knocks at
    /// every door.
    fn severity(self, confidence: u8, inbound: bool) -> Severity {
        let outbound = if confidence >= self.high {
            Severity::High
        } else if confidence >= self.medium {
            Severity::Medium
        } else {
            Severity::Low
        };
        match (inbound, outbound) {
            (true, Severity::High) => Severity::Medium,
            (true, _) => Severity::Low,
            (false, severity) => severity,
        }
    }
}

/// What a tenant's flows are asked about.
#[derive(Clone, Debug)]
pub struct View {
    /// The indicators.
    pub index: Arc<Index>,
    /// What everybody uses.
    pub warnings: Arc<Warnings>,
    /// What the tenant allows.
    pub allowed: Arc<Warnings>,
    /// What a confidence is worth.
    pub grades: Grades,
    /// The flows were seen before these indicators were known: from when on those hold does not matter.
    pub retroactive: bool,
}

/// A finding, and the indicators that it rests on.
#[derive(Clone, Debug)]
pub struct Matched {
    /// The finding.
    pub finding: Finding,
    /// What the alert says of them.
    pub indicators: Vec<IndicatorMatch>,
}

impl Matched {
    /// Adds the indicators to the alert of the finding.
    pub fn complete(&self, alert: &mut Alert) {
        alert.indicators.clone_from(&self.indicators);
    }
}

/// What a row has that can be asked about, but for its addresses.
pub fn facts_of(columns: &Columns<'_>, i: usize) -> u8 {
    let bit = |there: bool, bit: u8| if there { bit } else { 0 };
    let named = columns.tls_sni.is_valid(i) || columns.http_host.is_valid(i) || columns.dns_query.is_valid(i);
    // The certificate follows the server's hello, where it is not encrypted or left out.
    let hello = columns.ja3s.is_valid(i) || columns.ja4s.is_valid(i);
    let no_more = number(columns.tls_version, i) >= TLS13 || columns.state.value(i) == FlowState::Ended as u8;
    bit(named, asked::NAMES)
        | bit(columns.ja3.is_valid(i) || columns.ja4.is_valid(i), asked::CLIENT)
        | bit(columns.tls_cert_sha256.is_valid(i) || (hello && no_more), asked::SERVER)
}

/// How the flow met the value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The source is listed.
    Inbound,
    /// The destination is.
    Outbound,
    /// A name was asked for.
    Asked,
    /// The source or the server shows a fingerprint.
    Shows,
}

/// A row.
#[derive(Clone, Copy)]
struct Shared<'a> {
    columns: &'a Columns<'a>,
    facts: &'a Facts,
    i: usize,
}

impl<'a> Shared<'a> {
    fn seen(self, field: &'static str, observed: &'a str, way: Way) -> Seen<'a> {
        Seen {
            of: self,
            field,
            observed,
            way,
        }
    }
}

/// One value of it.
struct Seen<'a> {
    of: Shared<'a>,
    field: &'static str,
    observed: &'a str,
    way: Way,
}

impl View {
    /// Asks about those facts of a row that `which` names.
    pub fn ask(&self, columns: &Columns<'_>, facts: &Facts, i: usize, which: u8, out: &mut Vec<Matched>) {
        if which & asked::ADDRESSES != 0 {
            self.addresses(columns, facts, i, out);
        }
        if which & asked::ONCE == 0 {
            return;
        }
        let shared = Shared { columns, facts, i };
        if which & asked::NAMES != 0 {
            for (field, column, way) in [
                ("tls_sni", columns.tls_sni, Way::Outbound),
                ("http_host", columns.http_host, Way::Outbound),
                ("dns_query", columns.dns_query, Way::Asked),
            ] {
                let Some(name) = text(column, i) else { continue };
                let name = if field == "http_host" { without_port(name) } else { name };
                let mut entries = Vec::new();
                self.index.domain(name, |entry| entries.push(entry));
                // A host may be written as an address.
                if field == "http_host"
                    && let Ok(address) = name.trim_matches(['[', ']']).parse::<IpAddr>()
                {
                    self.index.address(address, |entry| entries.push(entry));
                }
                self.weigh(&entries, &shared.seen(field, name, way), out);
            }
        }
        if which & asked::NAMES != 0
            && let (Some(host), Some(target)) = (text(columns.http_host, i), text(columns.http_uri, i))
        {
            let mut url = Vec::new();
            if let Some(entry) = self.index.requested(host, target, &mut url) {
                let observed = String::from_utf8_lossy(&url).into_owned();
                self.weigh(&[entry], &shared.seen("http_uri", &observed, Way::Outbound), out);
            }
        }
        for (side, field, column, kind) in [
            (asked::CLIENT, "ja3", columns.ja3, Kind::Ja3),
            (asked::CLIENT, "ja4", columns.ja4, Kind::Ja4),
            (asked::SERVER, "ja3s", columns.ja3s, Kind::Ja3s),
            (asked::SERVER, "ja4s", columns.ja4s, Kind::Ja4s),
            (
                asked::SERVER,
                "tls_cert_sha256",
                columns.tls_cert_sha256,
                Kind::Certificate,
            ),
        ] {
            if which & side != 0
                && let Some(observed) = text(column, i)
                && let Some(entry) = self.index.fingerprint(kind, observed)
            {
                self.weigh(&[entry], &shared.seen(field, observed, Way::Shows), out);
            }
        }
    }

    #[inline]
    fn addresses(&self, columns: &Columns<'_>, facts: &Facts, i: usize, out: &mut Vec<Matched>) {
        for (field, host, way) in [
            ("src_ip", facts.src[i], Way::Inbound),
            ("dst_ip", facts.dst[i], Way::Outbound),
        ] {
            let mut entries: Option<Vec<Entry<'_>>> = None;
            self.index.address_octets(host.0.to_be_bytes(), |entry| {
                entries.get_or_insert_default().push(entry)
            });
            if let Some(entries) = entries {
                let observed = host.to_string();
                let shared = Shared { columns, facts, i };
                self.weigh(&entries, &shared.seen(field, &observed, way), out);
            }
        }
    }

    /// The claims of an entry that hold for a value that was seen at a time, seconds since the epoch.
    fn believed<'a>(&self, entry: Entry<'a>, observed: &Value, seconds: i64) -> impl Iterator<Item = Claim<'a>> {
        // An indicator that is a network or tree may have something in it that everybody uses.
        let within = matches!(entry.kind(), Kind::Network | Kind::DomainTree);
        let warned = within && self.warnings.lists(observed);
        let retroactive = self.retroactive;
        entry.claims().filter(move |claim| {
            let holds = if retroactive {
                !claim.span.over(seconds)
            } else {
                claim.span.contains(seconds)
            };
            holds && (!warned || claim.deliberate())
        })
    }

    fn weigh(&self, entries: &[Entry<'_>], seen: &Seen<'_>, out: &mut Vec<Matched>) {
        if entries.is_empty() {
            return;
        }
        let seconds = seen.of.facts.time[seen.of.i].div_euclid(SECOND);
        let value = |entry: &Entry<'_>| {
            let kind = match entry.kind() {
                Kind::Network => Kind::Address,
                Kind::DomainTree => Kind::Domain,
                kind => kind,
            };
            Value::parse(kind, seen.observed).unwrap_or_else(|_| entry.to_value())
        };
        let mut claims: Vec<(Value, Claim<'_>)> = Vec::new();
        for entry in entries {
            let (observed, listed) = (value(entry), entry.to_value());
            if self.allowed.lists(&observed) || self.allowed.lists(&listed) {
                continue;
            }
            claims.extend(
                self.believed(*entry, &observed, seconds)
                    .map(|claim| (listed.clone(), claim)),
            );
        }
        // The surest first; of equally sure ones the one that says most.
        claims.sort_by_key(|(_, claim)| std::cmp::Reverse((claim.confidence(), claim.labels().len())));
        claims.truncate(CLAIMS);
        if let Some(((value, claim), _)) = claims.split_first() {
            let indicators = claims
                .iter()
                .map(|(value, claim)| IndicatorMatch {
                    field: seen.field.to_owned(),
                    observed: seen.observed.chars().take(512).collect(),
                    retroactive: self.retroactive,
                    ..said(value, claim)
                })
                .collect();
            out.push(Matched {
                finding: self.finding(seen, value, claim, &claims),
                indicators,
            });
        }
    }

    fn finding(&self, seen: &Seen<'_>, value: &Value, claim: &Claim<'_>, claims: &[(Value, Claim<'_>)]) -> Finding {
        let Shared { columns, facts, i } = seen.of;
        let (src, dst) = (facts.src[i], facts.dst[i]);
        let (port, protocol) = (columns.dst_port.value(i), columns.protocol.value(i));
        let flow = facts.flow_ref(columns, i);
        let inbound = seen.way == Way::Inbound;
        let confidence = claim.confidence();
        let mut severity = self.grades.severity(confidence, inbound);
        if inbound && facts.reach[i] != Reach::Answered {
            severity = Severity::Low;
        }
        let labels: Vec<&str> = claim.labels().take(3).collect();
        let labels = if labels.is_empty() {
            String::new()
        } else {
            format!(" as {}", labels.join(", "))
        };
        let says = format!("{} lists{labels}", claim.source);
        let observed: String = seen.observed.chars().take(120).collect();
        let mut title = match seen.way {
            Way::Inbound => format!("{src}, which {says}, turned to {}", service_name(dst, port, protocol)),
            Way::Outbound => format!("{src} turned to {observed}, which {says}"),
            Way::Asked => format!("{src} asked for {observed}, which {says}"),
            Way::Shows => format!("{src} met the {} {observed}, which {says}", shown(value.kind())),
        };
        if self.retroactive {
            title.push_str(", before it was listed");
        }
        Finding {
            detector: Detector::IntelMatch,
            title,
            severity,
            confidence: f64::from(confidence) / 100.0,
            source: src,
            targets: vec![Target::Service(dst, port, protocol)],
            subject: format!("{} {value}", value.kind().name()),
            techniques: techniques(claims, seen.way),
            features: vec![
                feature("confidence", "%", confidence.into(), 0.0, 1.0),
                feature("claims", "sources", claims.len() as f64, 0.0, 0.0),
            ],
            flows: vec![flow],
            trigger: facts.time[i],
            score: confidence.into(),
            threshold: 0.0,
            loud: None,
            class: None,
        }
    }

    /// Asks about flows that were judged before. `told` holds what was found in their earlier records.
    pub fn look_back(
        &self,
        batch: &FlowBatch,
        settings: &Settings,
        published: Nanos,
        told: &mut HashMap<[u8; 16], u8>,
    ) -> Vec<Matched> {
        let mut facts = Facts::read(batch, published.saturating_add(settings.clock_tolerance));
        facts.place(settings);
        let columns = batch.columns();
        let mut matched = Vec::new();
        for i in 0..batch.len() {
            if facts.state[i].is_none() {
                continue;
            }
            let there = facts_of(&columns, i) | asked::ADDRESSES;
            for fact in [asked::ADDRESSES, asked::NAMES, asked::CLIENT, asked::SERVER] {
                if there & fact == 0 {
                    continue;
                }
                let found = matched.len();
                self.ask(&columns, &facts, i, fact, &mut matched);
                if matched.len() > found {
                    let mut id = [0; 16];
                    id.copy_from_slice(columns.flow_id.value(i));
                    if told.len() >= TOLD {
                        told.clear();
                    }
                    let bits = told.entry(id).or_default();
                    if *bits & fact != 0 {
                        matched.truncate(found);
                    }
                    *bits |= fact;
                }
            }
        }
        matched
    }

    /// Everything that is known of a value, whether it holds now or not, and whether the tenant allows it.
    pub fn lookup(&self, value: &Value) -> (Vec<IndicatorMatch>, bool) {
        let mut matches = Vec::new();
        self.index.about(value, |entry| {
            let listed = entry.to_value();
            matches.extend(entry.claims().map(|claim| said(&listed, &claim)));
        });
        (matches, self.allowed.lists(value))
    }
}

fn shown(kind: Kind) -> &'static str {
    match kind {
        Kind::Ja3 => "JA3 fingerprint",
        Kind::Ja3s => "JA3S fingerprint",
        Kind::Ja4 => "JA4 fingerprint",
        Kind::Ja4s => "JA4S fingerprint",
        Kind::Certificate => "certificate",
        _ => "value",
    }
}

/// What a source says of a value.
fn said(value: &Value, claim: &Claim<'_>) -> IndicatorMatch {
    let time = |seconds: u32| Some(timestamp(i64::from(seconds) * SECOND));
    IndicatorMatch {
        kind: value.kind().name().to_owned(),
        value: value.to_string(),
        source: claim.source.to_owned(),
        confidence: claim.confidence().into(),
        labels: claim.labels().map(str::to_owned).collect(),
        techniques: claim.techniques().map(str::to_owned).collect(),
        reference: claim.reference.to_owned(),
        context: claim.context().to_owned(),
        valid_from: time(claim.span.from).filter(|_| claim.span.from != 0),
        valid_until: time(claim.span.until).filter(|_| claim.span.until != u32::MAX),
        ..IndicatorMatch::default()
    }
}

/// The techniques that the sources name; where none does, what reaching out to something bad shows.
fn techniques(claims: &[(Value, Claim<'_>)], way: Way) -> Vec<Technique> {
    let mut ids: Vec<&str> = Vec::new();
    for id in claims.iter().flat_map(|(_, claim)| claim.techniques()) {
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    if ids.is_empty() && way != Way::Inbound {
        return Detector::IntelMatch.techniques();
    }
    let technique = |id: &&str| Technique {
        id: (*id).to_owned(),
        ..Technique::default()
    };
    ids.iter().map(technique).collect()
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        // The last group of a bare IPv6 address is no port.
        Some((name, _)) if name.contains(':') && !name.ends_with(']') => host,
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests;
