//! The one flow schema: every column once, with its type, whether it may be unknown, and what it means.
//!
//! From the table in this file come the Arrow schema, [`FlowRow`], [`FlowBatchBuilder`] and [`Columns`].
//! A column that a source cannot know is null there, never zero.

use std::{net::IpAddr, sync::Arc};

use arrow_array::{
    ArrayRef, FixedSizeBinaryArray, FixedSizeListArray, Float32Array, Int16Array, RecordBatch, StringArray,
    TimestampNanosecondArray, UInt8Array, UInt16Array, UInt32Array, UInt64Array,
    cast::AsArray as _,
    types::{Float32Type, UInt8Type, UInt16Type, UInt32Type, UInt64Type},
};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};

use crate::{
    address,
    batch::{FlowBatch, FlowError},
    column::{Fixed, Lengths, Scalar, Text, Time},
};

/// Version of the schema, in the metadata of every batch under [`VERSION_KEY`]. Readers refuse a newer one, and fill in
/// the columns that an older one lacks: a version only ever appends columns that may be null.
pub const SCHEMA_VERSION: u32 = 2;

/// Metadata key of the schema version.
pub const VERSION_KEY: &str = "garrison.flow.version";

/// How many packets' lengths `first_lengths` holds.
pub const FIRST_LENGTHS: usize = 8;

pub(crate) const ZONE: &str = "UTC";

// How each kind of column looks in Arrow, in a row and in a builder. `opt_` kinds may be null.
macro_rules! kind {
    (data_type u8) => { DataType::UInt8 };
    (data_type u16) => { DataType::UInt16 };
    (data_type u32) => { DataType::UInt32 };
    (data_type u64) => { DataType::UInt64 };
    (data_type f32) => { DataType::Float32 };
    (data_type time) => { DataType::Timestamp(TimeUnit::Nanosecond, Some(ZONE.into())) };
    (data_type id) => { DataType::FixedSizeBinary(16) };
    (data_type ip) => { DataType::FixedSizeBinary(16) };
    (data_type mac) => { DataType::FixedSizeBinary(6) };
    (data_type text) => { DataType::Utf8 };
    (data_type lengths) => {
        DataType::FixedSizeList(Arc::new(Field::new("item", DataType::Int16, false)), FIRST_LENGTHS as i32)
    };

    (row $l:lifetime u8) => { u8 };
    (row $l:lifetime u16) => { u16 };
    (row $l:lifetime u32) => { u32 };
    (row $l:lifetime u64) => { u64 };
    (row $l:lifetime f32) => { f32 };
    (row $l:lifetime time) => { i64 };
    (row $l:lifetime id) => { [u8; 16] };
    (row $l:lifetime ip) => { IpAddr };
    (row $l:lifetime mac) => { [u8; 6] };
    (row $l:lifetime text) => { &$l str };
    (row $l:lifetime lengths) => { [i16; FIRST_LENGTHS] };

    (array u8) => { UInt8Array };
    (array u16) => { UInt16Array };
    (array u32) => { UInt32Array };
    (array u64) => { UInt64Array };
    (array f32) => { Float32Array };
    (array time) => { TimestampNanosecondArray };
    (array id) => { FixedSizeBinaryArray };
    (array ip) => { FixedSizeBinaryArray };
    (array mac) => { FixedSizeBinaryArray };
    (array text) => { StringArray };
    (array lengths) => { FixedSizeListArray };

    (builder u8) => { Scalar<UInt8Type> };
    (builder u16) => { Scalar<UInt16Type> };
    (builder u32) => { Scalar<UInt32Type> };
    (builder u64) => { Scalar<UInt64Type> };
    (builder f32) => { Scalar<Float32Type> };
    (builder time) => { Time };
    (builder id) => { Fixed<16> };
    (builder ip) => { Fixed<16> };
    (builder mac) => { Fixed<6> };
    (builder text) => { Text };
    (builder lengths) => { Lengths };

    (stored ip, $v:expr) => { address::to_bytes($v) };
    (stored $scalar:ident, $v:expr) => { $v };

    (value id, $a:expr, $i:expr) => { read_fixed::<16>($a, $i) };
    (value mac, $a:expr, $i:expr) => { read_fixed::<6>($a, $i) };
    (value ip, $a:expr, $i:expr) => { address::from_bytes(read_fixed::<16>($a, $i)) };
    (value lengths, $a:expr, $i:expr) => { read_lengths($a, $i) };
    (value $scalar:ident, $a:expr, $i:expr) => { $a.value($i) };
}

// A required column or one that may be null.
macro_rules! row_type {
    ($l:lifetime required $kind:ident) => { kind!(row $l $kind) };
    ($l:lifetime optional $kind:ident) => { Option<kind!(row $l $kind)> };
}

macro_rules! append {
    (required $kind:ident, $b:expr, $rows:expr, $v:expr) => { $b.push(kind!(stored $kind, $v)) };
    (optional $kind:ident, $b:expr, $rows:expr, $v:expr) => {
        if let Some(value) = $v {
            $b.set($rows, kind!(stored $kind, value));
        }
    };
}

macro_rules! value {
    (required $kind:ident, $a:expr, $i:expr) => { kind!(value $kind, $a, $i) };
    (optional $kind:ident, $a:expr, $i:expr) => {{
        use arrow_array::Array as _;
        if $a.is_null($i) { None } else { Some(kind!(value $kind, $a, $i)) }
    }};
}

macro_rules! nullable {
    (required) => {
        false
    };
    (optional) => {
        true
    };
}

macro_rules! columns {
    ($($(#[doc = $doc:literal])+ $name:ident: $need:ident $kind:ident,)+) => {
        /// One record of a flow, borrowed from a batch or about to enter one.
        #[derive(Clone, Debug, PartialEq)]
        pub struct FlowRow<'a> {
            $($(#[doc = $doc])+ pub $name: row_type!('a $need $kind),)+
        }

        /// The columns of a batch as typed arrays, for work on whole vectors.
        #[derive(Clone, Copy, Debug)]
        pub struct Columns<'a> {
            $($(#[doc = $doc])+ pub $name: &'a kind!(array $kind),)+
        }

        /// Collects rows into a [`FlowBatch`]. Reusable: [`finish`](Self::finish) leaves it empty.
        #[derive(Debug)]
        pub struct FlowBatchBuilder {
            rows: usize,
            $($name: kind!(builder $kind),)+
        }

        impl FlowBatchBuilder {
            /// Makes a builder that expects `capacity` rows. It holds no memory for columns without values.
            pub fn new(capacity: usize) -> Self {
                Self { rows: 0, $($name: <kind!(builder $kind)>::new(capacity),)+ }
            }

            /// Appends one record.
            pub fn push(&mut self, row: &FlowRow<'_>) {
                $(append!($need $kind, self.$name, self.rows, row.$name);)+
                self.rows += 1;
            }

            /// Takes the rows collected so far as a batch.
            pub fn finish(&mut self) -> FlowBatch {
                let rows = std::mem::take(&mut self.rows);
                let arrays: Vec<ArrayRef> = vec![$(self.$name.finish(rows),)+];
                FlowBatch::from_built(schema(), arrays)
            }
        }

        impl<'a> Columns<'a> {
            // The schema was checked when the batch was made, so every cast below holds.
            pub(crate) fn of(batch: &'a RecordBatch) -> Self {
                let mut arrays = batch.columns().iter();
                let mut next = || {
                    let array: &'a ArrayRef = arrays.next().expect("schema checked on construction");
                    array
                };
                Self { $($name: cast!($kind, next()),)+ }
            }

            /// One row. Panics when `i` is not below the batch's length, as slices do.
            pub fn row(&self, i: usize) -> FlowRow<'a> {
                FlowRow { $($name: value!($need $kind, self.$name, i),)+ }
            }
        }

        fn fields() -> Vec<Field> {
            vec![$(Field::new(stringify!($name), kind!(data_type $kind), nullable!($need)),)+]
        }

        /// Name, type, whether it may be unknown, and meaning of every column, for documentation.
        pub fn describe() -> Vec<ColumnDescription> {
            vec![$(ColumnDescription {
                name: stringify!($name),
                kind: stringify!($kind),
                optional: nullable!($need),
                meaning: concat!($($doc),+).trim(),
            },)+]
        }
    };
}

macro_rules! cast {
    (text, $a:expr) => {
        $a.as_string::<i32>()
    };
    (lengths, $a:expr) => {
        $a.as_fixed_size_list()
    };
    (id, $a:expr) => {
        $a.as_fixed_size_binary()
    };
    (ip, $a:expr) => {
        $a.as_fixed_size_binary()
    };
    (mac, $a:expr) => {
        $a.as_fixed_size_binary()
    };
    (u8, $a:expr) => {
        $a.as_primitive()
    };
    (u16, $a:expr) => {
        $a.as_primitive()
    };
    (u32, $a:expr) => {
        $a.as_primitive()
    };
    (u64, $a:expr) => {
        $a.as_primitive()
    };
    (f32, $a:expr) => {
        $a.as_primitive()
    };
    (time, $a:expr) => {
        $a.as_primitive()
    };
}

/// One column, for documentation.
#[derive(Clone, Copy, Debug)]
pub struct ColumnDescription {
    /// Column name.
    pub name: &'static str,
    /// `u8` … `u64`, `f32`, `time` (nanoseconds since the epoch, UTC), `id`, `ip` (16 bytes, IPv4 mapped
    /// into IPv6 after RFC 4291 §2.5.5.2), `mac`, `text`, `lengths`.
    pub kind: &'static str,
    /// Null where the source cannot know it.
    pub optional: bool,
    /// What it says.
    pub meaning: &'static str,
}

columns! {
    /// Identifies the flow: the same in each of its records.
    flow_id: required id,
    /// Counts the records of a flow from 0.
    record_seq: required u32,
    /// 1 new, 2 active, 3 ended; see `FlowState`.
    state: required u8,
    /// The sensor that saw it.
    sensor: required text,
    /// Where the record comes from: `packet`, `netflow5`, `netflow9`, `ipfix`, `sflow`, `zeek`, `suricata`, ….
    origin: required text,
    /// Time of the first packet.
    first_seen: required time,
    /// Time of the last packet so far.
    last_seen: required time,
    /// 4 or 6.
    ip_version: required u8,
    /// IP protocol number (IANA).
    protocol: required u8,
    /// Address of the side that opened the flow.
    src_ip: required ip,
    /// Address of the side that was called.
    dst_ip: required ip,
    /// Port of the opener; for ICMP the type.
    src_port: required u16,
    /// Port that was called; for ICMP the code.
    dst_port: required u16,
    /// Link address of the opener, as seen by the sensor.
    src_mac: optional mac,
    /// Link address of the called side, as seen by the sensor.
    dst_mac: optional mac,
    /// Outermost VLAN id (IEEE 802.1Q).
    vlan: optional u16,
    /// Kind of the innermost tunnel that carried it: `gre`, `vxlan`, ….
    tunnel_kind: optional text,
    /// The tunnel's key or network identifier.
    tunnel_id: optional u32,
    /// Community ID version 1.
    community_id: required text,
    /// Packets sent by the opener so far.
    src_packets: optional u64,
    /// Packets sent by the called side so far.
    dst_packets: optional u64,
    /// Octets above the transport header sent by the opener so far.
    src_bytes: optional u64,
    /// Octets above the transport header sent by the called side so far.
    dst_bytes: optional u64,
    /// IP octets, headers included, sent by the opener so far.
    src_ip_bytes: optional u64,
    /// IP octets, headers included, sent by the called side so far.
    dst_ip_bytes: optional u64,
    /// Zeek's connection state: `S0`, `SF`, `REJ`, ….
    conn_state: optional text,
    /// Zeek's history string.
    history: optional text,
    /// TCP flags seen from the opener, or-ed together.
    src_tcp_flags: optional u8,
    /// TCP flags seen from the called side, or-ed together.
    dst_tcp_flags: optional u8,
    /// Segments the opener sent again.
    src_retransmits: optional u32,
    /// Segments the called side sent again.
    dst_retransmits: optional u32,
    /// Payload octets that were acknowledged and never seen.
    missed_bytes: optional u64,
    /// Nanoseconds from SYN to SYN-ACK.
    tcp_rtt_ns: optional u64,
    /// Smallest payload of the opener's packets, octets.
    src_len_min: optional u16,
    /// Largest payload of the opener's packets, octets.
    src_len_max: optional u16,
    /// Mean payload of the opener's packets, octets.
    src_len_mean: optional f32,
    /// Standard deviation of the opener's payload lengths, octets.
    src_len_std: optional f32,
    /// Smallest payload of the called side's packets, octets.
    dst_len_min: optional u16,
    /// Largest payload of the called side's packets, octets.
    dst_len_max: optional u16,
    /// Mean payload of the called side's packets, octets.
    dst_len_mean: optional f32,
    /// Standard deviation of the called side's payload lengths, octets.
    dst_len_std: optional f32,
    /// Mean time between the opener's packets, microseconds.
    src_iat_mean_us: optional f32,
    /// Standard deviation of the time between the opener's packets, microseconds.
    src_iat_std_us: optional f32,
    /// Mean time between the called side's packets, microseconds.
    dst_iat_mean_us: optional f32,
    /// Standard deviation of the time between the called side's packets, microseconds.
    dst_iat_std_us: optional f32,
    /// Payload lengths of the first eight packets with payload: positive from the opener, negative to it, 0 for none.
    first_lengths: optional lengths,
    /// Shannon entropy of the opener's first payload octets, bits an octet.
    src_entropy: optional f32,
    /// Shannon entropy of the called side's first payload octets, bits an octet.
    dst_entropy: optional f32,
    /// One in how many packets was looked at; 1 for all. Counters of a sampled flow are estimates: what was counted
    /// times this.
    sampling: required u32,
    /// Why the flow ended: `fin`, `rst`, `idle`, `evicted` to make room, `reused` by a connection with the same ports,
    /// `eof` of the capture file, `shutdown`; `aggregated` for the sum of what a flood called, with the number of flows in
    /// `extra`.
    end_reason: optional text,
    /// Application protocol, recognised by content: `http`, `tls`, `dns`, ….
    service: optional text,
    /// Method of the first HTTP request.
    http_method: optional text,
    /// Host of the first HTTP request.
    http_host: optional text,
    /// Target of the first HTTP request, cut at 512 octets.
    http_uri: optional text,
    /// User agent of the first HTTP request, cut at 256 octets.
    http_user_agent: optional text,
    /// Referrer of the first HTTP request, cut at 512 octets.
    http_referrer: optional text,
    /// Content type of the first HTTP response.
    http_content_type: optional text,
    /// Status of the latest HTTP response.
    http_status: optional u16,
    /// HTTP requests so far.
    http_requests: optional u32,
    /// HTTP responses so far that refused a login: status 401 or 403.
    http_auth_failures: optional u32,
    /// TLS version that was agreed, or offered while none is: 0x0303 for TLS 1.2, 0x0304 for TLS 1.3.
    tls_version: optional u16,
    /// TLS cipher suite that was agreed.
    tls_cipher: optional u16,
    /// TLS server name.
    tls_sni: optional text,
    /// First protocol of the client's ALPN list, or the agreed one.
    tls_alpn: optional text,
    /// JA3 fingerprint of the client.
    ja3: optional text,
    /// JA3S fingerprint of the server.
    ja3s: optional text,
    /// JA4 fingerprint of the client.
    ja4: optional text,
    /// JA4S fingerprint of the server.
    ja4s: optional text,
    /// Subject of the server's certificate.
    tls_subject: optional text,
    /// Issuer of the server's certificate.
    tls_issuer: optional text,
    /// End of the certificate's validity.
    tls_not_after: optional time,
    /// SHA-256 of the server's certificate, hexadecimal.
    tls_cert_sha256: optional text,
    /// Name in the first DNS question.
    dns_query: optional text,
    /// Type in the first DNS question.
    dns_qtype: optional u16,
    /// DNS response code of the latest answer.
    dns_rcode: optional u8,
    /// DNS questions so far.
    dns_queries: optional u32,
    /// Answers of the latest DNS response, separated by commas.
    dns_answers: optional text,
    /// Further facts of the application protocol as a JSON object.
    app: optional text,
    /// The device that reported the flow to the sensor: the exporter, or the host that wrote the log.
    exporter: optional ip,
    /// What a firewall or policy on the path did with it, as its source says: `accept`, `deny` or `drop`.
    verdict: optional text,
    /// What the source says beyond these columns, as a JSON object: interfaces, autonomous systems, cloud resources,
    /// fields of a vendor by name or number.
    extra: optional text,
    /// Beginning of the certificate's validity.
    tls_not_before: optional time,
    /// 1 where the certificate's issuer is its subject, else 0. Its signature is not verified.
    tls_self_signed: optional u8,
    /// The shortest time to live among the answers of the latest DNS response, seconds.
    dns_ttl: optional u32,
    /// Octets of the bodies of HTTP requests so far, as their heads and chunks announce them.
    http_request_bytes: optional u64,
    /// Octets of the bodies of HTTP responses so far, as their heads and chunks announce them.
    http_response_bytes: optional u64,
    /// The SSH client's banner.
    ssh_client: optional text,
    /// The SSH server's banner.
    ssh_server: optional text,
    /// HASSH fingerprint of the SSH client.
    hassh: optional text,
    /// HASSH fingerprint of the SSH server.
    hassh_server: optional text,
}

impl Default for FlowRow<'_> {
    // An empty row for tests and for filling in field by field.
    fn default() -> Self {
        Self {
            flow_id: [0; 16],
            record_seq: 0,
            state: FlowState::New as u8,
            sensor: "",
            origin: "packet",
            first_seen: 0,
            last_seen: 0,
            ip_version: 4,
            protocol: 0,
            src_ip: IpAddr::from([0, 0, 0, 0]),
            dst_ip: IpAddr::from([0, 0, 0, 0]),
            src_port: 0,
            dst_port: 0,
            src_mac: None,
            dst_mac: None,
            vlan: None,
            tunnel_kind: None,
            tunnel_id: None,
            community_id: "",
            src_packets: None,
            dst_packets: None,
            src_bytes: None,
            dst_bytes: None,
            src_ip_bytes: None,
            dst_ip_bytes: None,
            conn_state: None,
            history: None,
            src_tcp_flags: None,
            dst_tcp_flags: None,
            src_retransmits: None,
            dst_retransmits: None,
            missed_bytes: None,
            tcp_rtt_ns: None,
            src_len_min: None,
            src_len_max: None,
            src_len_mean: None,
            src_len_std: None,
            dst_len_min: None,
            dst_len_max: None,
            dst_len_mean: None,
            dst_len_std: None,
            src_iat_mean_us: None,
            src_iat_std_us: None,
            dst_iat_mean_us: None,
            dst_iat_std_us: None,
            first_lengths: None,
            src_entropy: None,
            dst_entropy: None,
            sampling: 1,
            end_reason: None,
            service: None,
            http_method: None,
            http_host: None,
            http_uri: None,
            http_user_agent: None,
            http_referrer: None,
            http_content_type: None,
            http_status: None,
            http_requests: None,
            http_auth_failures: None,
            tls_version: None,
            tls_cipher: None,
            tls_sni: None,
            tls_alpn: None,
            ja3: None,
            ja3s: None,
            ja4: None,
            ja4s: None,
            tls_subject: None,
            tls_issuer: None,
            tls_not_after: None,
            tls_cert_sha256: None,
            dns_query: None,
            dns_qtype: None,
            dns_rcode: None,
            dns_queries: None,
            dns_answers: None,
            app: None,
            exporter: None,
            verdict: None,
            extra: None,
            tls_not_before: None,
            tls_self_signed: None,
            dns_ttl: None,
            http_request_bytes: None,
            http_response_bytes: None,
            ssh_client: None,
            ssh_server: None,
            hassh: None,
            hassh_server: None,
        }
    }
}

/// How much of a flow has been seen when a record was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FlowState {
    /// Its first packet.
    New = 1,
    /// It goes on.
    Active = 2,
    /// It is over; no further record follows.
    Ended = 3,
}

impl FlowState {
    /// Reads the column's value. `None` for a number that means nothing.
    pub fn from_column(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::New),
            2 => Some(Self::Active),
            3 => Some(Self::Ended),
            _ => None,
        }
    }
}

impl FlowBatchBuilder {
    /// Rows collected so far.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// No row was collected since the last [`finish`](Self::finish).
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }
}

/// The Arrow schema of a flow batch, without metadata.
pub fn schema() -> SchemaRef {
    static SCHEMA: std::sync::OnceLock<SchemaRef> = std::sync::OnceLock::new();
    SCHEMA.get_or_init(|| Arc::new(Schema::new(fields()))).clone()
}

/// Checks that a schema has our columns, in order, with our types; its metadata may differ. The last ones may be missing
/// where they may be null, as in batches of an older version. Gives how many there are.
pub(crate) fn check(given: &Schema) -> Result<usize, FlowError> {
    let expected = schema();
    let wrong = |field: &Field, problem: String| FlowError::Column {
        name: field.name().clone(),
        problem,
    };
    for (index, want) in expected.fields().iter().enumerate() {
        let Some(got) = given.fields().get(index) else {
            return match expected.fields()[index..].iter().find(|field| !field.is_nullable()) {
                None if index >= FIRST_VERSION_COLUMNS => Ok(index),
                None => Err(wrong(want, "is missing".to_owned())),
                Some(required) => Err(wrong(required, "is missing".to_owned())),
            };
        };
        if got.name() != want.name() || got.data_type() != want.data_type() {
            let problem = format!(
                "is {} of type {} instead of {}",
                got.name(),
                got.data_type(),
                want.data_type()
            );
            return Err(wrong(want, problem));
        }
    }
    match given.fields().get(expected.fields().len()) {
        None => Ok(expected.fields().len()),
        Some(extra) => Err(wrong(extra, "is not part of the schema".to_owned())),
    }
}

// Columns of version 1. Every version has at least these.
const FIRST_VERSION_COLUMNS: usize = 78;

fn read_fixed<const N: usize>(array: &FixedSizeBinaryArray, i: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(array.value(i));
    bytes
}

fn read_lengths(array: &FixedSizeListArray, i: usize) -> [i16; FIRST_LENGTHS] {
    let values = array.value(i);
    let values: &Int16Array = values.as_primitive();
    let mut lengths = [0; FIRST_LENGTHS];
    lengths.copy_from_slice(values.values());
    lengths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_values_stay_in_their_rows_however_sparse_and_through_reuse() {
        let mut builder = FlowBatchBuilder::new(2);
        for count in [5u64, 0, 9] {
            let row = |i: u64| FlowRow {
                src_packets: (i % 3 == 1).then_some(i),
                service: (i == 4).then_some("http"),
                first_lengths: (i == 2).then_some([1, -2, 3, 0, 0, 0, 0, 0]),
                exporter: (i == 8).then_some(IpAddr::from([192, 0, 2, 1])),
                ..FlowRow::default()
            };
            (0..count).for_each(|i| builder.push(&row(i)));
            let batch = builder.finish();
            assert_eq!(
                batch.rows().collect::<Vec<_>>(),
                (0..count).map(row).collect::<Vec<_>>()
            );
        }
    }
}
