//! The one table of features: name, unit, formula, source and the code that computes each from the columns
//! of a batch. `docs/concepts/features.md` is generated from it and a test keeps the two alike.

use arrow_array::{Array as _, PrimitiveArray, StringArray, types::ArrowPrimitiveType};
use garrison_flow::{Columns, FlowState};
use garrison_models::Matrix;

use super::{
    facts::{Facts, ICMP, ICMP6, TCP, UDP},
    logarithm::ln_1p,
    window::Reach,
};

/// Where a feature's numbers come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The record itself.
    Flow,
    /// What the flow's source did in the last minute of flow time, this record included.
    SourceWindow,
}

/// How a feature is laid out for the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transform {
    /// As it is.
    Identity,
    /// `ln(1 + x)`: counters span many orders of magnitude.
    Log1p,
}

impl Transform {
    // To the model's space, in place.
    fn apply(self, values: &mut [f32]) {
        if self == Self::Log1p {
            values.iter_mut().for_each(|v| *v = v.max(0.0));
            ln_1p(values);
        }
    }

    /// Back from the model's space to the feature's unit.
    pub fn invert(self, x: f32) -> f64 {
        match self {
            Self::Identity => f64::from(x),
            Self::Log1p => f64::from(x).exp_m1(),
        }
    }
}

/// One feature.
pub struct Feature {
    /// Its name, in models, alerts and metrics.
    pub name: &'static str,
    /// Unit of its value; `1` for shares and flags.
    pub unit: &'static str,
    /// How its value is computed from the flow schema's columns.
    pub formula: &'static str,
    /// Where the numbers come from.
    pub source: Source,
    /// How the model sees it.
    pub transform: Transform,
    // Writes its value for every row, before the transform.
    column: fn(&Input<'_>, &mut [f32]),
}

/// What features are computed from.
#[derive(Clone, Copy)]
struct Input<'a> {
    columns: Columns<'a>,
    facts: &'a Facts,
}

/// Number of features.
pub const WIDTH: usize = FEATURES.len();

macro_rules! features {
    ($($name:literal, $unit:literal, $source:ident, $transform:ident, $formula:literal => $column:expr;)+) => {
        /// The table.
        pub static FEATURES: &[Feature] = &[$(Feature {
            name: $name,
            unit: $unit,
            formula: $formula,
            source: Source::$source,
            transform: Transform::$transform,
            column: $column,
        },)+];
    };
}

features! {
    "duration", "s", Flow, Log1p, "last_seen − first_seen" => |f, out| {
        for (i, v) in out.iter_mut().enumerate() { *v = seconds(f, i); }
    };
    "src_packets", "packets", Flow, Log1p, "src_packets" => |f, out| fill(f.columns.src_packets, out);
    "dst_packets", "packets", Flow, Log1p, "dst_packets" => |f, out| fill(f.columns.dst_packets, out);
    "src_bytes", "octets", Flow, Log1p, "src_bytes" => |f, out| fill(f.columns.src_bytes, out);
    "dst_bytes", "octets", Flow, Log1p, "dst_bytes" => |f, out| fill(f.columns.dst_bytes, out);
    "byte_balance", "1", Flow, Identity, "(src_bytes − dst_bytes) / (src_bytes + dst_bytes), 0 without payload" => |f, out| {
        pairwise(f.columns.src_bytes, f.columns.dst_bytes, out, |s, d| if s + d > 0.0 { (s - d) / (s + d) } else { 0.0 });
    };
    "src_mean_payload", "octets", Flow, Log1p, "src_bytes / src_packets" => |f, out| {
        pairwise(f.columns.src_bytes, f.columns.src_packets, out, |b, p| b / p.max(1.0));
    };
    "dst_mean_payload", "octets", Flow, Log1p, "dst_bytes / dst_packets" => |f, out| {
        pairwise(f.columns.dst_bytes, f.columns.dst_packets, out, |b, p| b / p.max(1.0));
    };
    "packet_rate", "packets/s", Flow, Log1p, "(src_packets + dst_packets) / max(duration, 1 ms)" => |f, out| {
        pairwise(f.columns.src_packets, f.columns.dst_packets, out, |s, d| s + d);
        for (i, v) in out.iter_mut().enumerate() { *v /= seconds(f, i).max(1e-3); }
    };
    "tcp", "1", Flow, Identity, "protocol = 6" => |f, out| protocol(f, out, |p| p == TCP);
    "udp", "1", Flow, Identity, "protocol = 17" => |f, out| protocol(f, out, |p| p == UDP);
    "icmp", "1", Flow, Identity, "protocol = 1 or 58" => |f, out| protocol(f, out, |p| p == ICMP || p == ICMP6);
    "well_known_port", "1", Flow, Identity, "dst_port < 1024" => |f, out| port(f, out, |p| p < 1024);
    "dynamic_port", "1", Flow, Identity, "dst_port ≥ 49152 (RFC 6335)" => |f, out| port(f, out, |p| p >= 49_152);
    "failed", "1", Flow, Identity, "the flow was refused or never answered" => |f, out| {
        for (v, reach) in out.iter_mut().zip(&f.facts.reach) { *v = flag(*reach == Reach::Failed); }
    };
    "reset", "1", Flow, Identity, "conn_state is RSTO or RSTR" => |f, out| {
        matches(f.columns.conn_state, out, |s| matches!(s, "RSTO" | "RSTR"));
    };
    "ended", "1", Flow, Identity, "state = ended; 0 for a flow that still lives" => |f, out| {
        for (v, state) in out.iter_mut().zip(&f.facts.state) { *v = flag(*state == Some(FlowState::Ended)); }
    };
    "retransmits", "segments", Flow, Log1p, "src_retransmits + dst_retransmits" => |f, out| {
        pairwise(f.columns.src_retransmits, f.columns.dst_retransmits, out, |s, d| s + d);
    };
    "src_entropy", "bit/octet", Flow, Identity, "src_entropy, 0 when unknown" => |f, out| floats(f.columns.src_entropy, out);
    "dst_entropy", "bit/octet", Flow, Identity, "dst_entropy, 0 when unknown" => |f, out| floats(f.columns.dst_entropy, out);
    "service_known", "1", Flow, Identity, "service was recognised" => |f, out| matches(f.columns.service, out, |_| true);
    "http_requests", "requests", Flow, Log1p, "http_requests" => |f, out| fill(f.columns.http_requests, out);
    "http_auth_failures", "responses", Flow, Log1p, "http_auth_failures (status 401 or 403)" => |f, out| {
        fill(f.columns.http_auth_failures, out);
    };
    "http_error", "1", Flow, Identity, "http_status ≥ 400" => |f, out| {
        fill(f.columns.http_status, out);
        for v in out { *v = flag(*v >= 400.0); }
    };
    "http_uri_length", "octets", Flow, Log1p, "length of http_uri" => |f, out| lengths(f.columns.http_uri, out);
    "tls", "1", Flow, Identity, "tls_version is known" => |f, out| {
        for (i, v) in out.iter_mut().enumerate() { *v = flag(f.columns.tls_version.is_valid(i)); }
    };
    "dns_query_length", "octets", Flow, Log1p, "length of dns_query" => |f, out| lengths(f.columns.dns_query, out);
    "dns_failure", "1", Flow, Identity, "dns_rcode ≠ 0" => |f, out| {
        fill(f.columns.dns_rcode, out);
        for v in out { *v = flag(*v > 0.0); }
    };
    "source_flows", "flows", SourceWindow, Log1p, "flows the source opened in the last 60 s" => |f, out| {
        for (v, a) in out.iter_mut().zip(&f.facts.activity) { *v = a.flows; }
    };
    "source_failed_share", "1", SourceWindow, Identity, "share of them that was refused or never answered" => |f, out| {
        for (v, a) in out.iter_mut().zip(&f.facts.activity) { *v = a.failed_share; }
    };
    "source_hosts", "hosts", SourceWindow, Log1p, "different hosts the source called in the last 60 s, estimated" => |f, out| {
        for (v, a) in out.iter_mut().zip(&f.facts.activity) { *v = a.hosts; }
    };
    "source_ports", "ports", SourceWindow, Log1p, "different ports the source called in the last 60 s, estimated" => |f, out| {
        for (v, a) in out.iter_mut().zip(&f.facts.activity) { *v = a.ports; }
    };
    "source_bytes", "octets", SourceWindow, Log1p, "payload octets the source sent as opener in the last 60 s" => |f, out| {
        for (v, a) in out.iter_mut().zip(&f.facts.activity) { *v = a.bytes; }
    };
}

/// Names of the features, in the order of a row.
pub fn names() -> impl Iterator<Item = &'static str> {
    FEATURES.iter().map(|f| f.name)
}

/// Computes every feature of every row, transformed.
pub fn compute(columns: Columns<'_>, facts: &Facts) -> Matrix {
    let rows = facts.src.len();
    let mut matrix = Matrix::zeros(WIDTH, rows);
    if rows > 0 {
        let input = Input { columns, facts };
        for (feature, out) in FEATURES.iter().zip(matrix.values_mut().chunks_exact_mut(rows)) {
            (feature.column)(&input, out);
            feature.transform.apply(out);
        }
    }
    matrix
}

/// Computes every feature of some rows, transformed: those of the indices, in their order.
pub fn compute_some(columns: Columns<'_>, facts: &Facts, indices: &[usize]) -> Matrix {
    let mut matrix = Matrix::zeros(WIDTH, indices.len());
    if !indices.is_empty() {
        let input = Input { columns, facts };
        let mut whole = vec![0.0; facts.src.len()];
        for (feature, out) in FEATURES.iter().zip(matrix.values_mut().chunks_exact_mut(indices.len())) {
            (feature.column)(&input, &mut whole);
            for (v, i) in out.iter_mut().zip(indices) {
                *v = whole[*i];
            }
            feature.transform.apply(out);
        }
    }
    matrix
}

/// The table as the page `docs/concepts/features.md`.
pub fn documentation() -> String {
    use std::fmt::Write as _;
    let mut page = String::from(
        "# Features\n\n\
         What `anomaly` measures of every flow record before a model sees it. This page is written by the \
         code's own table (`services/anomaly/src/domain/features.rs`); columns named in a formula are those \
         of the flow schema.\n\n\
         `ln` means that the model sees `ln(1 + x)`. Alerts show values in the unit given here.\n\n\
         | name | unit | of | scale | formula |\n|---|---|---|---|---|\n",
    );
    for f in FEATURES {
        let source = match f.source {
            Source::Flow => "flow",
            Source::SourceWindow => "source, 60 s",
        };
        let scale = match f.transform {
            Transform::Identity => "as is",
            Transform::Log1p => "ln",
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            page,
            "| `{}` | {} | {source} | {scale} | {} |",
            f.name, f.unit, f.formula
        );
    }
    page
}

fn flag(holds: bool) -> f32 {
    if holds { 1.0 } else { 0.0 }
}

fn seconds(f: &Input<'_>, i: usize) -> f32 {
    let span = f
        .columns
        .last_seen
        .value(i)
        .saturating_sub(f.columns.first_seen.value(i));
    (span.max(0) as f64 * 1e-9) as f32
}

// Counters as floats; unknown is 0.
fn fill<T>(array: &PrimitiveArray<T>, out: &mut [f32])
where
    T: ArrowPrimitiveType,
    T::Native: Number,
{
    for (v, x) in out.iter_mut().zip(array.values()) {
        *v = x.as_f32();
    }
    if let Some(nulls) = array.nulls() {
        for (v, known) in out.iter_mut().zip(nulls) {
            if !known {
                *v = 0.0;
            }
        }
    }
}

fn floats(array: &arrow_array::Float32Array, out: &mut [f32]) {
    fill(array, out);
    for v in out {
        if !v.is_finite() {
            *v = 0.0;
        }
    }
}

fn pairwise<A, B>(a: &PrimitiveArray<A>, b: &PrimitiveArray<B>, out: &mut [f32], f: impl Fn(f32, f32) -> f32)
where
    A: ArrowPrimitiveType,
    A::Native: Number,
    B: ArrowPrimitiveType,
    B::Native: Number,
{
    fill(a, out);
    let mut second = vec![0.0; out.len()];
    fill(b, &mut second);
    for (v, b) in out.iter_mut().zip(second) {
        *v = f(*v, b);
    }
}

fn protocol(f: &Input<'_>, out: &mut [f32], is: impl Fn(u8) -> bool) {
    for (v, p) in out.iter_mut().zip(f.columns.protocol.values()) {
        *v = flag(is(*p));
    }
}

// ICMP carries a code where ports are.
fn port(f: &Input<'_>, out: &mut [f32], is: impl Fn(u16) -> bool) {
    let ports = f.columns.dst_port.values().iter();
    for ((v, p), protocol) in out.iter_mut().zip(ports).zip(f.columns.protocol.values()) {
        *v = flag(!matches!(*protocol, ICMP | ICMP6) && is(*p));
    }
}

fn matches(array: &StringArray, out: &mut [f32], is: impl Fn(&str) -> bool) {
    for (i, v) in out.iter_mut().enumerate() {
        *v = flag(array.is_valid(i) && is(array.value(i)));
    }
}

fn lengths(array: &StringArray, out: &mut [f32]) {
    for (i, v) in out.iter_mut().enumerate() {
        *v = if array.is_valid(i) {
            array.value_length(i) as f32
        } else {
            0.0
        };
    }
}

trait Number: Copy {
    fn as_f32(self) -> f32;
}

macro_rules! number {
    ($($t:ty)*) => {$(impl Number for $t { fn as_f32(self) -> f32 { self as f32 } })*};
}
number!(u8 u16 u32 u64 f32);

#[cfg(test)]
mod tests {
    use garrison_flow::{FlowBatchBuilder, FlowRow};

    use super::*;

    fn value(row: &FlowRow<'_>, name: &str) -> f64 {
        let mut builder = FlowBatchBuilder::new(1);
        builder.push(row);
        let batch = builder.finish();
        let facts = Facts::read(&batch, i64::MAX);
        let matrix = compute(batch.columns(), &facts);
        let j = FEATURES.iter().position(|f| f.name == name).unwrap();
        FEATURES[j].transform.invert(matrix.feature(j)[0])
    }

    fn row() -> FlowRow<'static> {
        FlowRow {
            state: FlowState::Ended as u8,
            first_seen: 1_000_000_000,
            last_seen: 3_000_000_000,
            protocol: TCP,
            dst_port: 443,
            src_packets: Some(10),
            dst_packets: Some(30),
            src_bytes: Some(1_000),
            dst_bytes: Some(3_000),
            conn_state: Some("SF"),
            http_status: Some(401),
            http_uri: Some("/login"),
            ..FlowRow::default()
        }
    }

    #[test]
    fn formulas_give_the_numbers_they_name() {
        for (name, want) in [
            ("duration", 2.0),
            ("src_packets", 10.0),
            ("byte_balance", -0.5),
            ("src_mean_payload", 100.0),
            ("packet_rate", 20.0),
            ("tcp", 1.0),
            ("udp", 0.0),
            ("well_known_port", 1.0),
            ("failed", 0.0),
            ("ended", 1.0),
            ("http_error", 1.0),
            ("http_uri_length", 6.0),
            ("dns_query_length", 0.0),
        ] {
            let got = value(&row(), name);
            assert!((got - want).abs() < 1e-3 * want.abs().max(1.0), "{name}: {got}");
        }
        let refused = FlowRow {
            conn_state: Some("REJ"),
            ..row()
        };
        assert_eq!(value(&refused, "failed"), 1.0);
    }

    #[test]
    fn some_rows_are_what_they_are_among_all() {
        let mut builder = FlowBatchBuilder::new(5);
        for n in 0..5_u64 {
            builder.push(&FlowRow {
                src_bytes: (n != 2).then_some(n * 100),
                ..row()
            });
        }
        let batch = builder.finish();
        let facts = Facts::read(&batch, i64::MAX);
        let indices = [4, 2, 0];
        let all = compute(batch.columns(), &facts).select(&indices);
        assert_eq!(compute_some(batch.columns(), &facts, &indices), all);
    }

    #[test]
    fn unknown_and_absurd_values_stay_finite() {
        let absurd = FlowRow {
            first_seen: i64::MAX,
            last_seen: i64::MIN,
            src_bytes: Some(u64::MAX),
            src_entropy: Some(f32::NAN),
            ..FlowRow::default()
        };
        for f in FEATURES {
            assert!(value(&absurd, f.name).is_finite(), "{}", f.name);
            assert!(value(&FlowRow::default(), f.name).is_finite(), "{}", f.name);
        }
    }

    #[test]
    fn names_are_unique_and_the_page_in_the_book_is_this_table() {
        let names: std::collections::BTreeSet<_> = FEATURES.iter().map(|f| f.name).collect();
        assert_eq!(names.len(), WIDTH);
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/concepts/features.md");
        if std::env::var_os("GARRISON_WRITE_DOCS").is_some() {
            std::fs::write(path, documentation()).unwrap();
        }
        let page = std::fs::read_to_string(path).unwrap();
        assert!(
            page == documentation(),
            "docs/concepts/features.md is out of date: run the tests with GARRISON_WRITE_DOCS=1"
        );
    }
}
