//! What should not be: credentials that everybody on the way can read, and certificates of internal services that nobody
//! can trust. Each is told once a day for the same service.

use arrow_array::Array as _;
use garrison_models::rng::mix;

use super::Row;
use crate::domain::{
    detector::Detector,
    facts::{number, text},
    finding::{Finding, Target, service_name},
    shard::{Context, feature, feature_within},
    wide::{Seen, Wide, host_hash},
    window::{Nanos, Reach, SECOND},
};

const DAY: Nanos = 86_400 * SECOND;

// True at most once a day.
fn once_a_day(wide: &mut Wide, key: u64, time: Nanos) -> bool {
    let seen = wide.told.get_or_insert_with(key, || Seen { at: Nanos::MIN / 2 });
    let due = time.saturating_sub(seen.at) > DAY;
    if due {
        seen.at = time;
        wide.dirty = true;
    }
    due
}

/// `credentials.clear_text`.
pub fn clear_text(wide: &mut Wide, row: &Row<'_>, context: &Context<'_>, out: &mut Vec<Finding>) {
    let i = row.i;
    let columns = row.columns;
    if !row.news.settled || row.facts.reach[i] != Reach::Answered || columns.tls_version.is_valid(i) {
        return;
    }
    let Some(service) = text(columns.service, i) else {
        return;
    };
    let logs_in = match service {
        "ftp" | "telnet" | "pop3" | "imap" => number(columns.src_bytes, i) > 0,
        // The service asked for a login, and then was content.
        "http" => {
            number(columns.http_auth_failures, i) > 0
                && columns.http_status.is_valid(i)
                && columns.http_status.value(i) < 400
        }
        _ => false,
    };
    if !logs_in || !context.settings.runs(Detector::CredentialsClearText) {
        return;
    }
    let (src, dst) = (row.src(), row.dst());
    let key = mix(host_hash(src) ^ mix(host_hash(dst) ^ u64::from(row.dst_port())) ^ 0xC1EA);
    if !once_a_day(wide, key, row.facts.time[i]) {
        return;
    }
    let whole = service_name(dst, row.dst_port(), row.protocol());
    let outside = !(row.facts.src_inside[i] && row.facts.dst_inside[i]);
    out.push(Finding {
        title: format!("Login of {src} at {whole} that anybody on the way can read: {service} without TLS"),
        severity: if outside {
            garrison_proto::alert::v1::Severity::Medium
        } else {
            Detector::CredentialsClearText.severity()
        },
        confidence: 0.8,
        targets: vec![Target::Service(dst, row.dst_port(), row.protocol())],
        features: vec![feature_within("encrypted", "1", 0.0, 1.0, 1.0, 1.0)],
        ..Finding::of(Detector::CredentialsClearText, row, whole)
    });
}

/// `certificate.invalid`: an internal service with a certificate that is expired, not valid yet, or its own issuer's.
pub fn certificate(wide: &mut Wide, row: &Row<'_>, context: &Context<'_>, out: &mut Vec<Finding>) {
    let i = row.i;
    let columns = row.columns;
    if !row.news.certified || !row.facts.dst_inside[i] || !context.settings.runs(Detector::CertificateInvalid) {
        return;
    }
    let time = row.facts.time[i];
    let day = |t: Nanos| t as f64 / DAY as f64;
    let not_after = columns
        .tls_not_after
        .is_valid(i)
        .then(|| columns.tls_not_after.value(i));
    let not_before = columns
        .tls_not_before
        .is_valid(i)
        .then(|| columns.tls_not_before.value(i));
    let (problem, number, features) = match (not_after, not_before) {
        (Some(end), _) if end < time => {
            let over = day(time.saturating_sub(end));
            (
                "has expired",
                1,
                feature_within("expired_for", "d", over, 0.0, 1.0, 0.0),
            )
        }
        (_, Some(begin)) if begin > time => {
            let early = day(begin.saturating_sub(time));
            (
                "is not valid yet",
                2,
                feature_within("valid_in", "d", early, 0.0, 1.0, 0.0),
            )
        }
        _ if columns.tls_self_signed.is_valid(i) && columns.tls_self_signed.value(i) == 1 => (
            "is signed by itself",
            3,
            feature_within("self_signed", "1", 1.0, 0.0, 1.0, 0.0),
        ),
        _ => return,
    };
    let dst = row.dst();
    let key = mix(mix(host_hash(dst) ^ u64::from(row.dst_port())) ^ 0xCE27 ^ number << 32);
    if !once_a_day(wide, key, time) {
        return;
    }
    let service = service_name(dst, row.dst_port(), row.protocol());
    let subject: String = text(columns.tls_subject, i)
        .unwrap_or("unnamed")
        .chars()
        .take(120)
        .collect();
    out.push(Finding {
        title: format!("The certificate of {service} {problem}: {subject}"),
        // The service is at fault, whoever calls it.
        source: dst,
        confidence: 0.9,
        targets: vec![Target::Service(dst, row.dst_port(), row.protocol())],
        features: vec![features, feature("clients", "hosts", 1.0, 0.0, 0.0)],
        ..Finding::of(Detector::CertificateInvalid, row, format!("{service} {problem}"))
    });
}
