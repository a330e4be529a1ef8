//! Slow scans: a host tries many internal services in vain over a day, never so many at once that a fast scan is told.

use super::Row;
use crate::domain::{
    activity::{Distinct, port_hash},
    detector::Detector,
    facts::{TCP, UDP},
    finding::{Finding, Target},
    shard::{Context, Shard, feature_within},
    wide::host_hash,
    window::{Nanos, Reach},
};
use garrison_models::rng::mix;

/// What a source tried in vain.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Tried {
    /// When the window began.
    #[prost(sfixed64, tag = "1")]
    pub began: Nanos,
    /// Services, as [`Distinct`] has it.
    #[prost(fixed64, repeated, tag = "2")]
    pub services: Vec<u64>,
    /// Attempts in vain.
    #[prost(uint32, tag = "3")]
    pub failed: u32,
    /// Attempts that were answered.
    #[prost(uint32, tag = "4")]
    pub answered: u32,
    /// The number of services at which it is told again; 0 before the first time.
    #[prost(double, tag = "5")]
    pub next: f64,
}

/// `scan.slow`.
pub fn observe(shard: &mut Shard, row: &Row<'_>, context: &Context<'_>, out: &mut Vec<Finding>) {
    let (facts, i) = (row.facts, row.i);
    if !facts.dst_inside[i]
        || !matches!(row.protocol(), TCP | UDP)
        || !context.settings.runs(Detector::ScanSlow)
        || !(row.news.failed || row.news.settled)
    {
        return;
    }
    let (src, dst, time) = (row.src(), row.dst(), facts.time[i]);
    if !row.news.failed {
        if facts.reach[i] == Reach::Answered
            && let Some(tried) = shard.tried.get_mut(&src)
        {
            tried.answered = tried.answered.saturating_add(1);
        }
        return;
    }
    // What is fast is told as such.
    let activity = shard.activity(row);
    if f64::from(activity.flows * activity.failed_share) >= context.settings.vertical.count as f64 {
        return;
    }
    let settings = &context.settings.slow;
    let fresh = || Tried {
        began: time,
        ..Tried::default()
    };
    let tried = shard.tried.get_or_insert_with(src, fresh);
    if time.saturating_sub(tried.began) > settings.window {
        *tried = fresh();
    }
    let mut services = Distinct(tried.services.as_slice().try_into().unwrap_or_default());
    services.add(mix(host_hash(dst) ^ port_hash(row.protocol(), row.dst_port())));
    tried.services = services.0.to_vec();
    tried.failed = tried.failed.saturating_add(1);
    let (count, failed) = (f64::from(services.estimate()), f64::from(tried.failed));
    let share = failed / (failed + f64::from(tried.answered));
    if count < settings.services.max(tried.next) || share < settings.failed_share {
        return;
    }
    tried.next = 2.0 * count;
    out.push(Finding {
        title: format!("Slow scan by {src}: about {count:.0} internal services tried in vain"),
        confidence: 0.5 + 0.4 * share,
        targets: vec![Target::Service(dst, row.dst_port(), row.protocol())],
        features: vec![
            feature_within(
                "failed_services",
                "services",
                count,
                0.0,
                share,
                settings.services - 1.0,
            ),
            feature_within("failed_share", "1", share, 0.0, 1.0 - share, settings.failed_share),
        ],
        score: count,
        threshold: settings.services,
        ..Finding::of(Detector::ScanSlow, row, "internal services".to_owned())
    });
}
