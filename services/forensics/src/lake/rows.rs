//! Rows of which only some columns were read.

use arrow_array::{Array as _, RecordBatch, cast::AsArray as _, types};
use garrison_flow::{Filter, FlowRow};

/// What the first pass reads of a row that matches: all that a filter may ask of the last record.
pub(super) const FIRST_PASS: [&str; 12] = [
    "flow_id",
    "record_seq",
    "first_seen",
    "last_seen",
    "protocol",
    "src_ip",
    "dst_ip",
    "src_port",
    "dst_port",
    "community_id",
    "state",
    "service",
];

/// The columns that a filter asks about.
pub(super) fn filter_columns(filter: &Filter) -> Vec<&'static str> {
    let wanted = [
        ("last_seen", filter.since.is_some()),
        ("first_seen", filter.until.is_some()),
        ("protocol", !filter.protocols.is_empty()),
        ("src_ip", !filter.hosts.is_empty() || !filter.src_hosts.is_empty()),
        ("dst_ip", !filter.hosts.is_empty() || !filter.dst_hosts.is_empty()),
        ("src_port", !filter.ports.is_empty()),
        ("dst_port", !filter.ports.is_empty()),
        ("community_id", !filter.community_ids.is_empty()),
        ("flow_id", !filter.flow_ids.is_empty()),
    ];
    wanted
        .into_iter()
        .filter(|(_, needed)| *needed)
        .map(|(name, _)| name)
        .collect()
}

/// Hands every row to `take` with the columns that the batch has; the others have their defaults.
pub(super) fn each_row(batch: &RecordBatch, mut take: impl FnMut(&FlowRow<'_>)) {
    let fixed = |name| batch.column_by_name(name).map(|column| column.as_fixed_size_binary());
    let time = |name| {
        batch
            .column_by_name(name)
            .map(|column| column.as_primitive::<types::TimestampNanosecondType>())
    };
    let port = |name| {
        batch
            .column_by_name(name)
            .map(|column| column.as_primitive::<types::UInt16Type>())
    };
    let small = |name| {
        batch
            .column_by_name(name)
            .map(|column| column.as_primitive::<types::UInt8Type>())
    };
    let text = |name| batch.column_by_name(name).map(|column| column.as_string::<i32>());
    let (flow_id, src_ip, dst_ip) = (fixed("flow_id"), fixed("src_ip"), fixed("dst_ip"));
    let (first_seen, last_seen) = (time("first_seen"), time("last_seen"));
    let (src_port, dst_port) = (port("src_port"), port("dst_port"));
    let (protocol, state) = (small("protocol"), small("state"));
    let (community_id, service) = (text("community_id"), text("service"));
    let record_seq = batch
        .column_by_name("record_seq")
        .map(|column| column.as_primitive::<types::UInt32Type>());

    let sixteen = |bytes: &[u8]| <[u8; 16]>::try_from(bytes).unwrap_or_default();
    let address = |bytes: &[u8]| std::net::Ipv6Addr::from(sixteen(bytes)).to_canonical();
    let mut row = FlowRow::default();
    for i in 0..batch.num_rows() {
        if let Some(column) = flow_id {
            row.flow_id = sixteen(column.value(i));
        }
        if let Some(column) = src_ip {
            row.src_ip = address(column.value(i));
        }
        if let Some(column) = dst_ip {
            row.dst_ip = address(column.value(i));
        }
        if let Some(column) = first_seen {
            row.first_seen = column.value(i);
        }
        if let Some(column) = last_seen {
            row.last_seen = column.value(i);
        }
        if let Some(column) = src_port {
            row.src_port = column.value(i);
        }
        if let Some(column) = dst_port {
            row.dst_port = column.value(i);
        }
        if let Some(column) = protocol {
            row.protocol = column.value(i);
        }
        if let Some(column) = state {
            row.state = column.value(i);
        }
        if let Some(column) = record_seq {
            row.record_seq = column.value(i);
        }
        if let Some(column) = community_id {
            row.community_id = column.value(i);
        }
        if let Some(column) = service {
            row.service = (!column.is_null(i)).then(|| column.value(i));
        }
        take(&row);
    }
}
