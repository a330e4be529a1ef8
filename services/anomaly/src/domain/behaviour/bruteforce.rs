//! Password guessing: failed HTTP logins, which the sensor counts by their status, and short sessions with
//! login services whose content is encrypted.

use garrison_flow::FlowState;

use super::Row;
use crate::domain::{
    detector::Detector,
    facts::{TCP, number},
    finding::{Finding, Target, service_name},
    shard::{Context, Shard, feature},
    window::{CountWindow, Reach},
};

/// `bruteforce.http`: many failed logins of one source at one service.
pub fn logins(shard: &mut Shard, row: &Row<'_>, context: &Context<'_>, out: &mut Vec<Finding>) {
    if row.news.auth_failures == 0 || !context.settings.runs(Detector::BruteforceHttp) {
        return;
    }
    let key = (row.src(), row.dst(), row.dst_port());
    let window = shard.logins.get_or_insert_with(key, CountWindow::default);
    let threshold = &context.settings.logins;
    let failures = window.observe(
        row.news.auth_failures,
        row.facts.time[row.i],
        threshold.span,
        row.flow_ref(),
    );
    if failures < threshold.count as u64 {
        return;
    }
    let requests = number(row.columns.http_requests, row.i).max(1) as f64;
    let refused = (number(row.columns.http_auth_failures, row.i) as f64 / requests).min(1.0);
    let service = service_name(row.dst(), row.dst_port(), TCP);
    let features = vec![
        feature(
            "failed_logins",
            "responses",
            failures as f64,
            (context.usual)("http_auth_failures"),
            1.0,
        ),
        feature("refused_share", "1", refused, 0.0, 0.0),
    ];
    out.push(Finding {
        title: format!(
            "Password guessing at {service} by {}: {failures} failed logins",
            row.src()
        ),
        confidence: 0.75 + 0.24 * refused,
        score: failures as f64,
        threshold: threshold.count as f64,
        ..found(Detector::BruteforceHttp, row, service, features, window)
    });
}

/// `bruteforce.connection`: many short sessions of one source with one login service.
pub fn sessions(shard: &mut Shard, row: &Row<'_>, context: &Context<'_>, out: &mut Vec<Finding>) {
    let settings = &context.settings.short_session;
    if row.state != FlowState::Ended
        || row.protocol() != TCP
        || row.facts.reach[row.i] != Reach::Answered
        || !settings.ports.contains(&row.dst_port())
        || !context.settings.runs(Detector::BruteforceConnection)
    {
        return;
    }
    let answered = number(row.columns.dst_bytes, row.i);
    let first_seen = row.columns.first_seen.value(row.i);
    let lasted = row.columns.last_seen.value(row.i).saturating_sub(first_seen);
    // A session without a word from the service is no guess, but a probe.
    if answered == 0 || answered > settings.most_bytes || lasted > settings.longest {
        return;
    }
    let key = (row.src(), row.dst(), row.dst_port());
    let window = shard.sessions.get_or_insert_with(key, CountWindow::default);
    let threshold = &context.settings.sessions;
    let count = window.observe(1, row.facts.time[row.i], threshold.span, row.flow_ref());
    if count < threshold.count as u64 {
        return;
    }
    let service = service_name(row.dst(), row.dst_port(), TCP);
    let features = vec![feature("short_sessions", "flows", count as f64, 0.0, 1.0)];
    out.push(Finding {
        title: format!(
            "Password guessing at {service} by {}: {count} short sessions",
            row.src()
        ),
        confidence: 0.75,
        score: count as f64,
        threshold: threshold.count as f64,
        ..found(Detector::BruteforceConnection, row, service, features, window)
    });
}

// Takes the window's flows and leaves it fresh, so that the next crossing is a repeat.
fn found(
    detector: Detector,
    row: &Row<'_>,
    service: String,
    features: Vec<garrison_proto::alert::v1::Feature>,
    window: &mut CountWindow,
) -> Finding {
    let mut flows: Vec<_> = Vec::new();
    for (_, _, flow) in window.events() {
        // One connection may carry many failures; it is named once, as it was last.
        flows.retain(|f: &crate::domain::window::FlowRef| f.flow_id != flow.flow_id);
        flows.push(flow.clone());
    }
    window.clear();
    Finding {
        detector,
        title: String::new(),
        severity: detector.severity(),
        confidence: 0.0,
        source: row.src(),
        targets: vec![Target::Service(row.dst(), row.dst_port(), TCP)],
        subject: service,
        techniques: detector.techniques(),
        features,
        flows,
        trigger: row.facts.time[row.i],
        score: 0.0,
        threshold: 0.0,
        loud: None,
        class: None,
    }
}
