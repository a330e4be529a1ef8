//! Lateral movement: one host turns, within an hour, to several internal hosts that it never turned to while normal was
//! learnt, by protocols that log somebody in.

use super::Row;
use crate::domain::{
    detector::{Detector, remote_service},
    finding::{Finding, Target},
    shard::{Context, Shard, feature, feature_within},
    window::{CountWindow, Host},
};

/// `lateral.credential`; asked for each new contact.
pub fn new_contact(shard: &mut Shard, row: &Row<'_>, context: &Context<'_>, out: &mut Vec<Finding>) {
    let settings = &context.settings.lateral;
    if !settings.ports.contains(&row.dst_port()) || !context.settings.runs(Detector::LateralCredential) {
        return;
    }
    let (src, dst) = (row.src(), row.dst());
    let window = shard
        .lateral
        .get_or_insert_with((src, Host(0), 0), CountWindow::default);
    let known = window.events().any(|(_, _, flow)| flow.dst == dst);
    if known {
        return;
    }
    let hosts = window.observe(1, row.facts.time[row.i], settings.hosts.span, row.flow_ref());
    if hosts < settings.hosts.count as u64 {
        return;
    }
    let flows: Vec<_> = window.events().map(|(_, _, flow)| flow.clone()).collect();
    let hosts = hosts as f64;
    out.push(Finding {
        title: format!("Lateral movement of {src}: logins at {hosts:.0} internal hosts that are new to it"),
        confidence: 0.6 + 0.3 * (1.0 - settings.hosts.count as f64 / (hosts + 1.0)),
        targets: flows
            .iter()
            .map(|f| Target::Service(f.dst, f.dst_port, f.protocol))
            .collect(),
        techniques: remote_service(flows.iter().map(|f| f.dst_port)),
        features: vec![
            feature_within(
                "new_login_hosts",
                "hosts",
                hosts,
                0.0,
                1.0,
                settings.hosts.count as f64 - 1.0,
            ),
            feature("span", "s", settings.hosts.span.length as f64 / 1e9, 0.0, 0.0),
        ],
        flows,
        score: hosts,
        threshold: settings.hosts.count as f64,
        ..Finding::of(Detector::LateralCredential, row, "login services".to_owned())
    });
}
