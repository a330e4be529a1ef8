//! Subjects: `<domain>.v1.<tenant>.…`, built and read in one place.
//!
//! Builders cannot produce a wildcard, an empty token or an extra token: in free text (detector names, kinds)
//! every byte outside `a-z 0-9 _ -` becomes a hyphen after lower-casing, and empty text becomes `unknown`.
//! [`parse`] refuses everything the builders could not have made.

use std::net::IpAddr;

use garrison_proto::{TenantId, alert::v1::Severity, response::v1::Action};

/// Number of shards that flows are spread over.
pub const SHARDS: u16 = 16;

/// Longest token the builders make and [`parse`] takes, in bytes.
pub const MAX_TOKEN: usize = 64;

/// A subject is not one of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("GAR-BUS-0007: {subject:?} is not a subject of the fleet: {reason}")]
pub struct InvalidSubject {
    subject: String,
    reason: &'static str,
}

/// A subject, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed<'a> {
    /// `flows`, `alerts`, …
    pub domain: &'a str,
    /// Whose message it is.
    pub tenant: TenantId,
    /// The tokens after the tenant.
    pub rest: Vec<&'a str>,
}

/// `flows.v1.<tenant>.<shard>`. A shard outside [`SHARDS`] wraps around.
pub fn flows(tenant: &TenantId, shard: u16) -> String {
    format!("flows.v1.{tenant}.{}", shard % SHARDS)
}

/// `alerts.v1.<tenant>.<severity>.<detector>`; the detector's dots become hyphens.
pub fn alerts(tenant: &TenantId, severity: Severity, detector: &str) -> String {
    format!("alerts.v1.{tenant}.{}.{}", severity_token(severity), token(detector))
}

/// `responses.v1.<tenant>.<action>.<state>`.
pub fn responses(tenant: &TenantId, action: Action, state: &str) -> String {
    format!("responses.v1.{tenant}.{}.{}", action_token(action), token(state))
}

/// `responses.v1.<tenant>.<action>.<state>.<node>`: what the enforcer on a node says about a response. The broker lets
/// a node publish under its own name alone.
pub fn reports(tenant: &TenantId, action: Action, state: &str, node: &str) -> String {
    format!("{}.{}", responses(tenant, action, state), token(node))
}

/// `events.v1.<tenant>.<kind>`.
pub fn events(tenant: &TenantId, kind: &str) -> String {
    format!("events.v1.{tenant}.{}", token(kind))
}

/// `audit.v1.<tenant>.<service>`.
pub fn audit(tenant: &TenantId, service: &str) -> String {
    format!("audit.v1.{tenant}.{}", token(service))
}

/// `siem.v1.<tenant>.<OCSF class>`.
pub fn siem(tenant: &TenantId, class: &str) -> String {
    format!("siem.v1.{tenant}.{}", token(class))
}

/// `dlq.v1.<stream>.<consumer>`. The only subject without a tenant; the message's headers name it.
pub fn dlq(stream: &str, consumer: &str) -> String {
    format!("dlq.v1.{}.{}", token(stream), token(consumer))
}

/// The token for a severity: `info`, `low`, `medium`, `high`, `critical` or `unspecified`.
pub fn severity_token(severity: Severity) -> &'static str {
    match severity {
        Severity::Unspecified => "unspecified",
        Severity::Info => "info",
        Severity::Low => "low",
        Severity::Medium => "medium",
        Severity::High => "high",
        Severity::Critical => "critical",
    }
}

/// The token for an action: `block`, `rate-limit`, `isolate` or `unspecified`.
pub fn action_token(action: Action) -> &'static str {
    match action {
        Action::Unspecified => "unspecified",
        Action::Block => "block",
        Action::RateLimit => "rate-limit",
        Action::Isolate => "isolate",
    }
}

/// Makes one safe subject token of any text.
pub fn token(text: &str) -> String {
    if text.is_empty() {
        return "unknown".to_owned();
    }
    let safe = |b: u8| {
        let b = b.to_ascii_lowercase();
        if b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' {
            b as char
        } else {
            '-'
        }
    };
    text.bytes().take(MAX_TOKEN).map(safe).collect()
}

/// The shard of a source host: stable across processes and versions (FNV-1a over the address bytes, with
/// IPv4-mapped IPv6 addresses taken as IPv4).
pub fn shard_of(src: IpAddr) -> u16 {
    let fnv = |bytes: &[u8]| {
        bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
    };
    let hash = match src.to_canonical() {
        IpAddr::V4(address) => fnv(&address.octets()),
        IpAddr::V6(address) => fnv(&address.octets()),
    };
    // The low bits of FNV mix worst; fold the high half in.
    ((hash ^ (hash >> 32)) % u64::from(SHARDS)) as u16
}

/// Takes a subject apart and checks every token.
///
/// # Errors
/// [`InvalidSubject`] when it is not `<domain>.v1.<tenant>.<one or more tokens>` of a known domain.
pub fn parse(subject: &str) -> Result<Parsed<'_>, InvalidSubject> {
    let refuse = |reason| InvalidSubject {
        subject: subject.chars().take(200).collect(),
        reason,
    };
    let mut tokens = subject.split('.');
    let domain = tokens.next().unwrap_or_default();
    let expected = match domain {
        "flows" | "events" | "audit" | "siem" => 1..=1,
        "alerts" => 2..=2,
        // An order, or a node's report.
        "responses" => 2..=3,
        _ => return Err(refuse("unknown domain")),
    };
    if tokens.next() != Some("v1") {
        return Err(refuse("the second token must be v1"));
    }
    let tenant = tokens
        .next()
        .ok_or_else(|| refuse("it names no tenant"))?
        .parse()
        .map_err(|_| refuse("the third token is no tenant id"))?;
    let rest: Vec<&str> = tokens.take(expected.end() + 1).collect();
    if !expected.contains(&rest.len()) {
        return Err(refuse("wrong number of tokens"));
    }
    let safe = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-');
    if !rest
        .iter()
        .all(|t| (1..=MAX_TOKEN).contains(&t.len()) && t.bytes().all(safe))
    {
        return Err(refuse("a token is empty, too long or has unsafe characters"));
    }
    Ok(Parsed { domain, tenant, rest })
}

/// Whose message is on a subject.
///
/// # Errors
/// [`InvalidSubject`] as [`parse`].
pub fn tenant_of(subject: &str) -> Result<TenantId, InvalidSubject> {
    parse(subject).map(|parsed| parsed.tenant)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn acme() -> TenantId {
        "acme".parse().unwrap()
    }

    #[test]
    fn builds_the_documented_subjects() {
        let acme = acme();
        assert_eq!(flows(&acme, 3), "flows.v1.acme.3");
        assert_eq!(flows(&acme, SHARDS), "flows.v1.acme.0");
        assert_eq!(
            alerts(&acme, Severity::High, "scan.vertical"),
            "alerts.v1.acme.high.scan-vertical"
        );
        assert_eq!(
            responses(&acme, Action::RateLimit, "dispatched"),
            "responses.v1.acme.rate-limit.dispatched"
        );
        assert_eq!(
            reports(&acme, Action::Block, "applied", "edge-1"),
            "responses.v1.acme.block.applied.edge-1"
        );
        assert_eq!(events(&acme, "login"), "events.v1.acme.login");
        assert_eq!(audit(&acme, "flow-ingest"), "audit.v1.acme.flow-ingest");
        assert_eq!(siem(&acme, "detection_finding"), "siem.v1.acme.detection_finding");
        assert_eq!(dlq("FLOWS", "enforcer-router"), "dlq.v1.flows.enforcer-router");
    }

    #[test]
    fn refuses_what_no_builder_makes() {
        for bad in [
            "",
            ".",
            "flows",
            "flows.v1",
            "flows.v1.acme",
            "flows.v1.acme.",
            "flows.v2.acme.1",
            "flows.v1.*.1",
            "flows.v1.acme.>",
            "flows.v1.acme.1.2",
            "alerts.v1.acme.high",
            "alerts.v1.acme.high.scan.more",
            "responses.v1.acme.block",
            "responses.v1.acme.block.applied.edge.more",
            "responses.v1.acme.block.applied.",
            "alerts.v1.acme.high.a b",
            "events.v1.ACME.login",
            "events.v1..login",
            "events.v1.acme.lo\u{0}gin",
            "$JS.API.INFO",
            "dlq.v1.flows.x",
            "events.v1.acme.logïn",
        ] {
            assert!(parse(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn shards_are_pinned_and_spread() {
        // A change of these values would move hosts between shards under running consumers.
        assert_eq!(
            shard_of("10.0.0.1".parse().unwrap()),
            shard_of("::ffff:10.0.0.1".parse().unwrap())
        );
        let mut hosts = [0u32; SHARDS as usize];
        for last in 0..=255u8 {
            hosts[usize::from(shard_of(IpAddr::from([192, 168, 1, last])))] += 1;
        }
        assert!(hosts.iter().all(|n| (4..=40).contains(n)), "{hosts:?}");
    }

    proptest! {
        #[test]
        fn any_text_becomes_one_safe_token(text in ".*") {
            for subject in [
                alerts(&acme(), Severity::Low, &text), events(&acme(), &text),
                responses(&acme(), Action::Block, &text), reports(&acme(), Action::Block, "applied", &text), audit(&acme(), &text), siem(&acme(), &text),
            ] {
                let parsed = parse(&subject).unwrap();
                prop_assert_eq!(parsed.tenant, acme());
            }
        }

        #[test]
        fn parsing_never_panics(text in ".*") {
            let _ = parse(&text);
        }
    }
}
