//! Contacts between internal hosts that were never seen while normal was learnt: how lateral movement begins.

use arrow_array::Array as _;
use garrison_flow::{Columns, FlowState};

use super::{Row, is_one_host};
use crate::domain::{
    detector::Detector,
    facts::{Facts, TCP, UDP, text},
    finding::{Finding, Target, service_name},
    shard::{Contacts, Context, Shard, feature},
    window::Reach,
};

// Linux hands out ports from 32768, others from 49152 (RFC 6335). A service behind such a port changes its
// number from day to day.
const FIRST_DYNAMIC_PORT: u16 = 32_768;

/// The record shows that the called side answered, so that the flow counts as a contact.
pub fn is_contact(columns: &Columns<'_>, facts: &Facts, i: usize) -> bool {
    let answered = if columns.dst_packets.is_valid(i) {
        columns.dst_packets.value(i) > 0
    } else {
        facts.state[i] == Some(FlowState::Ended)
    };
    // Without its beginning, a connection does not tell who opened it.
    let midstream = text(columns.conn_state, i) == Some("OTH");
    answered && !midstream && facts.reach[i] == Reach::Answered && matches!(columns.protocol.value(i), TCP | UDP)
}

/// `contact.new_internal`: the first answered flow of an internal host to an internal service.
pub fn new_internal(shard: &mut Shard, row: &Row<'_>, context: &Context<'_>, out: &mut Vec<Finding>) {
    let judged = context.learnt && context.settings.runs(Detector::ContactNewInternal);
    if row.news.contact_seen || !(judged || context.learning) || !is_contact(row.columns, row.facts, row.i) {
        return;
    }
    let (src, dst) = (row.src(), row.dst());
    let inside = |host| context.settings.is_internal(host);
    if src == dst || !is_one_host(dst) || !inside(src) || !inside(dst) {
        return;
    }
    let protocol = row.protocol();
    let port = match row.dst_port() {
        FIRST_DYNAMIC_PORT.. => 0,
        port => port,
    };
    let contacts = shard.contacts.get_or_insert_with(src, Contacts::default);
    let known = contacts.known.len() as f64;
    let most = context.settings.bounds.contacts_a_source;
    let new = contacts.insert((dst, port, protocol), most);
    if !new || contacts.overflowed || context.learning || !judged {
        return;
    }
    super::lateral::new_contact(shard, row, context, out);
    let service = service_name(dst, row.dst_port(), protocol);
    out.push(Finding {
        detector: Detector::ContactNewInternal,
        title: format!("First contact of {src} with the internal service {service}"),
        severity: Detector::ContactNewInternal.severity(),
        // The more is known of a source, the more a new contact means.
        confidence: 1.0 - 1.0 / (known + 2.0),
        source: src,
        targets: vec![Target::Service(dst, row.dst_port(), protocol)],
        subject: service,
        techniques: Detector::ContactNewInternal.techniques(),
        features: vec![
            feature("new_contacts", "services", 1.0, 0.0, 1.0),
            feature("known_contacts", "services", known, known, 0.0),
        ],
        flows: vec![row.flow_ref()],
        trigger: row.facts.time[row.i],
        score: 1.0,
        threshold: 1.0,
        loud: None,
        class: None,
    });
}
