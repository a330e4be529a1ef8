//! Names as messages: tunnels, which carry data in the names of one parent domain, and generated domains, which malware
//! tries one after the other to find who commands it.

pub mod generated;
pub mod names;
pub mod tunnel;

use garrison_models::rng::mix;

use super::Row;
use crate::domain::{
    facts::text,
    finding::Finding,
    shard::{Context, Shard},
    wide::{Crowd, Wide, name_hash},
    window::Host,
};
use names::Split;

// Destinations of flows and parents of questions are different crowds.
const QUESTIONS: u64 = 0xD15E_A5ED_0DD5_EED5;

/// Both detectors' part in a pass.
pub fn observe(shard: &mut Shard, wide: &mut Wide, row: &Row<'_>, context: &Context<'_>, out: &mut Vec<Finding>) {
    if row.news.questions == 0 {
        return;
    }
    let Some(name) = text(row.columns.dns_query, row.i) else {
        return;
    };
    let Some(split) = Split::of(name) else {
        return;
    };
    let parent = name_hash(split.parent);
    if row.news.named && !split.sub.is_empty() || row.news.questions > 1 {
        tunnel::observe(shard, wide, row, context, &split, parent, out);
    }
    if row.news.named {
        generated::observe(shard, wide, row, context, &split, parent, out);
    }
}

// How many hosts ask for names of a parent, this one included.
fn crowd(wide: &mut Wide, parent: u64, source: Host, row: &Row<'_>) -> f64 {
    wide.dirty = true;
    let time = row.facts.time[row.i];
    let crowd = wide.crowds.get_or_insert_with(mix(parent ^ QUESTIONS), || Crowd {
        first: time,
        ..Crowd::default()
    });
    crowd.add(source);
    crowd.hosts()
}

#[cfg(test)]
mod tests;
