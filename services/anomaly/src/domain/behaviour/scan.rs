//! Scans: many ports of one host, or one port on many hosts, tried in vain. After the sequential idea of Jung,
//! Paxson, Berger and Balakrishnan (2004) that failures, not connections, tell a scanner from a busy client.

use super::{Row, is_one_host};
use crate::domain::{
    detector::Detector,
    facts::{ICMP, ICMP6, TCP, UDP},
    finding::{Finding, Target, service_name},
    settings::Threshold,
    shard::{Context, Shard, feature},
    window::{Attempt, DistinctWindow, FlowRef, Reach},
};

/// `scan.vertical`: one source, one destination, many different ports.
pub fn vertical(shard: &mut Shard, row: &Row<'_>, context: &Context<'_>, out: &mut Vec<Finding>) {
    if !context.settings.runs(Detector::ScanVertical) || !matches!(row.protocol(), TCP | UDP) {
        return;
    }
    let (src, dst) = (row.src(), row.dst());
    let reach = if row.facts.half_open[row.i] {
        Reach::Failed
    } else {
        row.facts.reach[row.i]
    };
    let threshold = &context.settings.vertical;
    let Some(window) = window(&mut shard.vertical, (src, dst), reach, || is_one_host(dst)) else {
        return;
    };
    let port = (row.protocol(), row.dst_port());
    let Some(tried) = crossed(window, port, reach, row, threshold, true) else {
        return;
    };
    let share = f64::from(shard.activity(row).failed_share);
    let count = tried.len() as f64;
    out.push(Finding {
        detector: Detector::ScanVertical,
        title: format!("Port scan of {dst} by {src}: {} ports", tried.len()),
        severity: Detector::ScanVertical.severity(),
        confidence: 0.7 + 0.29 * share,
        source: src,
        targets: vec![Target::Host(dst)],
        subject: dst.to_string(),
        techniques: Detector::ScanVertical.techniques(),
        features: vec![
            feature("failed_ports", "ports", count, (context.usual)("source_ports"), 1.0),
            feature(
                "source_failed_share",
                "1",
                share,
                (context.usual)("source_failed_share"),
                0.0,
            ),
        ],
        flows: tried.into_iter().map(|a| a.flow).collect(),
        trigger: row.facts.time[row.i],
        score: count,
        threshold: threshold.count as f64,
        loud: threshold.loud(),
        class: None,
    });
}

/// `scan.horizontal`: one source, one port, many different destinations. For ICMP the type stands for the
/// port: a ping sweep.
pub fn horizontal(shard: &mut Shard, row: &Row<'_>, context: &Context<'_>, out: &mut Vec<Finding>) {
    if !context.settings.runs(Detector::ScanHorizontal) {
        return;
    }
    let protocol = row.protocol();
    let port = match protocol {
        TCP | UDP => row.dst_port(),
        ICMP | ICMP6 => row.columns.src_port.value(row.i),
        _ => return,
    };
    let (src, dst) = (row.src(), row.dst());
    let reach = row.facts.reach[row.i];
    let threshold = &context.settings.horizontal;
    let key = (src, (protocol, port));
    let Some(window) = window(&mut shard.horizontal, key, reach, || is_one_host(dst)) else {
        return;
    };
    // A resolver has many questions open at once; only connections are judged before the grace is over.
    let Some(tried) = crossed(window, dst, reach, row, threshold, protocol == TCP) else {
        return;
    };
    let what = match protocol {
        TCP | UDP => {
            let name = service_name(dst, port, protocol);
            format!("port {}", name.rsplit(':').next().unwrap_or_default())
        }
        _ => "ICMP".to_owned(),
    };
    let share = f64::from(shard.activity(row).failed_share);
    let count = tried.len() as f64;
    out.push(Finding {
        detector: Detector::ScanHorizontal,
        title: format!("Sweep of {} hosts on {what} by {src}", tried.len()),
        severity: Detector::ScanHorizontal.severity(),
        confidence: 0.7 + 0.29 * share,
        source: src,
        targets: tried.iter().map(|a| Target::Host(a.value)).collect(),
        subject: what,
        techniques: Detector::ScanHorizontal.techniques(),
        features: vec![
            feature("failed_hosts", "hosts", count, (context.usual)("source_hosts"), 1.0),
            feature(
                "source_failed_share",
                "1",
                share,
                (context.usual)("source_failed_share"),
                0.0,
            ),
        ],
        flows: tried.into_iter().map(|a| a.flow).collect(),
        trigger: row.facts.time[row.i],
        score: count,
        threshold: threshold.count as f64,
        loud: threshold.loud(),
        class: None,
    });
}

// An answer needs a window only where there is one already.
fn window<K, T>(
    map: &mut crate::domain::bounded::BoundedMap<K, DistinctWindow<T>>,
    key: K,
    reach: Reach,
    eligible: impl FnOnce() -> bool,
) -> Option<&mut DistinctWindow<T>>
where
    K: std::hash::Hash + Eq + Clone,
    T: PartialEq + Copy,
{
    if reach == Reach::Answered {
        map.get_mut(&key)
    } else {
        eligible().then(|| map.get_or_insert_with(key, DistinctWindow::default))
    }
}

// Notes the attempt. When that crosses the threshold: the attempts, with the flow of this record last. They count no
// more, so that the next crossing is a repeat with attempts of its own.
fn crossed<T: PartialEq + Copy>(
    window: &mut DistinctWindow<T>,
    value: T,
    reach: Reach,
    row: &Row<'_>,
    threshold: &Threshold,
    burst: bool,
) -> Option<Vec<Attempt<T>>> {
    let flow = || row.flow_ref();
    let in_vain = window.observe(value, row.facts.time[row.i], reach, threshold.span, flow);
    let all = in_vain < threshold.count;
    if all && !(burst && window.attempts().len() >= threshold.burst) {
        return None;
    }
    let mut attempts = window.report(all, threshold.span.grace);
    let this: FlowRef = row.flow_ref();
    if let Some(at) = attempts.iter().position(|a| a.flow.flow_id == this.flow_id) {
        let mut last = attempts.remove(at);
        last.flow = this;
        attempts.push(last);
    }
    Some(attempts)
}
