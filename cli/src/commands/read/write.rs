//! Flow records in the formats that other tools read.

use std::io::{self, BufWriter, Write};

use arrow_array::{Array as _, RecordBatch, cast::AsArray as _, types::*};
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{DataType, TimeUnit};
use chrono::{DateTime, SecondsFormat};
use garrison_flow::{FlowBatchBuilder, FlowRow};
use parquet::{arrow::ArrowWriter, basic::Compression, file::properties::WriterProperties};
use serde_json::{Map, Value, json};

use crate::{
    commands::flows::{HEADERS, line},
    output::{Format, printable},
};

/// Rows that are gathered for columns.
const BATCH: usize = 8192;
/// Rows by which a table's widths are measured; the ones behind them get the same.
const MEASURED: usize = 200;

/// Takes records and writes them.
pub trait Writer {
    /// Takes one.
    fn row(&mut self, row: &FlowRow<'_>) -> io::Result<()>;
    /// Writes what is left.
    fn finish(&mut self) -> io::Result<()>;
}

/// Makes the writer of a format.
pub fn writer(format: Format, out: Box<dyn Write + Send>) -> io::Result<Box<dyn Writer>> {
    let out = BufWriter::with_capacity(1 << 16, out);
    Ok(match format {
        Format::Table => Box::new(Table {
            out,
            waiting: Vec::new(),
            widths: None,
        }),
        Format::Tsv => Box::new(Tsv { out, first: true }),
        Format::Json => Box::new(Columns::new(Json(out))),
        Format::Csv => Box::new(Columns::new(Csv { out, first: true })),
        Format::Zeek => Box::new(Zeek { out, begun: false }),
        Format::Eve => Box::new(Eve(out)),
        Format::Parquet => Box::new(Columns::new(Parquet(Some(parquet_writer(out)?)))),
        Format::Arrow => {
            let writer = StreamWriter::try_new(out, &garrison_flow::schema()).map_err(io::Error::other)?;
            Box::new(Columns::new(Arrow(writer)))
        }
    })
}

type Out = BufWriter<Box<dyn Write + Send>>;

struct Table {
    out: Out,
    waiting: Vec<Vec<String>>,
    widths: Option<Vec<usize>>,
}

impl Table {
    fn put(&mut self, cells: &[String]) -> io::Result<()> {
        let widths = self.widths.as_deref().unwrap_or_default();
        let mut text = String::new();
        for (i, cell) in cells.iter().enumerate() {
            let width = widths.get(i).copied().unwrap_or(0);
            match i + 1 == cells.len() {
                true => text.push_str(cell),
                false => text.push_str(&format!("{cell:width$}  ")),
            }
        }
        writeln!(self.out, "{}", text.trim_end())
    }

    fn measure(&mut self) -> io::Result<()> {
        let headers: Vec<String> = HEADERS.iter().map(|header| header.to_uppercase()).collect();
        let rows = std::mem::take(&mut self.waiting);
        let widest = |i: usize| rows.iter().chain([&headers]).map(|row| row[i].chars().count()).max();
        self.widths = Some((0..headers.len()).map(|i| widest(i).unwrap_or(0)).collect());
        self.put(&headers)?;
        rows.iter().try_for_each(|row| self.put(row))
    }
}

impl Writer for Table {
    fn row(&mut self, row: &FlowRow<'_>) -> io::Result<()> {
        let cells: Vec<String> = cells(row).iter().map(|cell| printable(cell)).collect();
        if self.widths.is_some() {
            return self.put(&cells);
        }
        self.waiting.push(cells);
        match self.waiting.len() < MEASURED {
            true => Ok(()),
            false => self.measure(),
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        if self.widths.is_none() {
            self.measure()?;
        }
        self.out.flush()
    }
}

struct Tsv {
    out: Out,
    first: bool,
}

impl Writer for Tsv {
    fn row(&mut self, row: &FlowRow<'_>) -> io::Result<()> {
        if std::mem::take(&mut self.first) {
            writeln!(self.out, "{}", HEADERS.join("\t"))?;
        }
        let cells: Vec<String> = cells(row)
            .iter()
            .map(|cell| cell.replace(['\t', '\n', '\r'], " "))
            .collect();
        writeln!(self.out, "{}", cells.join("\t"))
    }

    fn finish(&mut self) -> io::Result<()> {
        if self.first {
            writeln!(self.out, "{}", HEADERS.join("\t"))?;
        }
        self.out.flush()
    }
}

// As the fleet's flows are shown, but with what is unknown left out instead of zero.
fn cells(row: &FlowRow<'_>) -> Vec<String> {
    let mut cells = line(&row.to_proto());
    let pair = |a: Option<u64>, b: Option<u64>| {
        let one = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
        format!("{}/{}", one(a), one(b))
    };
    cells[6] = pair(row.src_packets, row.dst_packets);
    cells[7] = pair(row.src_bytes.or(row.src_ip_bytes), row.dst_bytes.or(row.dst_ip_bytes));
    cells
}

/// Takes records by the batch.
trait Batches {
    fn batch(&mut self, batch: &RecordBatch) -> io::Result<()>;
    fn finish(&mut self) -> io::Result<()>;
}

struct Columns<B> {
    builder: FlowBatchBuilder,
    inner: B,
}

impl<B: Batches> Columns<B> {
    fn new(inner: B) -> Self {
        Self {
            builder: FlowBatchBuilder::new(BATCH),
            inner,
        }
    }
}

impl<B: Batches> Writer for Columns<B> {
    fn row(&mut self, row: &FlowRow<'_>) -> io::Result<()> {
        self.builder.push(row);
        match self.builder.len() < BATCH {
            true => Ok(()),
            false => self.inner.batch(self.builder.finish().record_batch()),
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        if !self.builder.is_empty() {
            self.inner.batch(self.builder.finish().record_batch())?;
        }
        self.inner.finish()
    }
}

struct Parquet(Option<ArrowWriter<Out>>);

fn parquet_writer(out: Out) -> io::Result<ArrowWriter<Out>> {
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(Default::default()))
        .set_max_row_group_row_count(Some(128 * 1024))
        .build();
    ArrowWriter::try_new(out, garrison_flow::schema(), Some(properties)).map_err(io::Error::other)
}

impl Batches for Parquet {
    fn batch(&mut self, batch: &RecordBatch) -> io::Result<()> {
        match &mut self.0 {
            Some(writer) => writer.write(batch).map_err(io::Error::other),
            None => Ok(()),
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        match self.0.take() {
            Some(writer) => writer.into_inner().map_err(io::Error::other)?.flush(),
            None => Ok(()),
        }
    }
}

struct Arrow(StreamWriter<Out>);

impl Batches for Arrow {
    fn batch(&mut self, batch: &RecordBatch) -> io::Result<()> {
        self.0.write(batch).map_err(io::Error::other)
    }

    fn finish(&mut self) -> io::Result<()> {
        self.0.finish().map_err(io::Error::other)?;
        self.0.get_mut().flush()
    }
}

struct Json(Out);

impl Batches for Json {
    fn batch(&mut self, batch: &RecordBatch) -> io::Result<()> {
        let schema = batch.schema();
        for row in 0..batch.num_rows() {
            let mut object = Map::new();
            for (field, column) in schema.fields().iter().zip(batch.columns()) {
                if column.is_valid(row) {
                    object.insert(field.name().clone(), cell(field.name(), column, row));
                }
            }
            writeln!(self.0, "{}", Value::Object(object))?;
        }
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

struct Csv {
    out: Out,
    first: bool,
}

impl Csv {
    fn header(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.first) {
            let schema = garrison_flow::schema();
            let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
            writeln!(self.out, "{}", names.join(","))?;
        }
        Ok(())
    }
}

impl Batches for Csv {
    fn batch(&mut self, batch: &RecordBatch) -> io::Result<()> {
        self.header()?;
        let schema = batch.schema();
        for row in 0..batch.num_rows() {
            for (i, (field, column)) in schema.fields().iter().zip(batch.columns()).enumerate() {
                if i > 0 {
                    self.out.write_all(b",")?;
                }
                if column.is_valid(row) {
                    let text = match cell(field.name(), column, row) {
                        Value::String(text) => text,
                        other => other.to_string(),
                    };
                    self.out.write_all(quoted(&text).as_bytes())?;
                }
            }
            writeln!(self.out)?;
        }
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        self.header()?;
        self.out.flush()
    }
}

// RFC 4180 §2. A formula of a spreadsheet is defused: names in packets are an attacker's words.
fn quoted(text: &str) -> String {
    let formula = text.starts_with(['=', '+', '@']) || (text.starts_with('-') && text.parse::<f64>().is_err());
    let defused = if formula { format!("'{text}") } else { text.to_owned() };
    match defused.contains(['"', ',', '\n', '\r']) {
        true => format!("\"{}\"", defused.replace('"', "\"\"")),
        false => defused,
    }
}

fn cell(name: &str, column: &dyn arrow_array::Array, row: usize) -> Value {
    match column.data_type() {
        DataType::UInt8 => column.as_primitive::<UInt8Type>().value(row).into(),
        DataType::UInt16 => column.as_primitive::<UInt16Type>().value(row).into(),
        DataType::UInt32 => column.as_primitive::<UInt32Type>().value(row).into(),
        DataType::UInt64 => column.as_primitive::<UInt64Type>().value(row).into(),
        DataType::Float32 => column.as_primitive::<Float32Type>().value(row).into(),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            time(column.as_primitive::<TimestampNanosecondType>().value(row)).into()
        }
        DataType::Utf8 => {
            let text = column.as_string::<i32>().value(row);
            match name {
                // Objects already.
                "extra" | "app" => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
                _ => text.into(),
            }
        }
        DataType::FixedSizeBinary(16) => {
            let bytes: [u8; 16] = column.as_fixed_size_binary().value(row).try_into().unwrap_or_default();
            match name {
                "flow_id" => garrison_flow::flow_id_text(&bytes).into(),
                _ => garrison_flow::address::from_bytes(bytes).to_string().into(),
            }
        }
        DataType::FixedSizeBinary(_) => {
            let octets = column.as_fixed_size_binary().value(row);
            let digits: Vec<String> = octets.iter().map(|octet| format!("{octet:02x}")).collect();
            digits.join(":").into()
        }
        DataType::FixedSizeList(..) => {
            let lengths = column.as_fixed_size_list().value(row);
            lengths.as_primitive::<Int16Type>().values().to_vec().into()
        }
        _ => Value::Null,
    }
}

fn time(nanoseconds: i64) -> String {
    DateTime::from_timestamp_nanos(nanoseconds).to_rfc3339_opts(SecondsFormat::Nanos, true)
}

struct Zeek {
    out: Out,
    begun: bool,
}

const ZEEK: [(&str, &str); 22] = [
    ("ts", "time"),
    ("uid", "string"),
    ("id.orig_h", "addr"),
    ("id.orig_p", "port"),
    ("id.resp_h", "addr"),
    ("id.resp_p", "port"),
    ("proto", "enum"),
    ("service", "string"),
    ("duration", "interval"),
    ("orig_bytes", "count"),
    ("resp_bytes", "count"),
    ("conn_state", "string"),
    ("local_orig", "bool"),
    ("local_resp", "bool"),
    ("missed_bytes", "count"),
    ("history", "string"),
    ("orig_pkts", "count"),
    ("orig_ip_bytes", "count"),
    ("resp_pkts", "count"),
    ("resp_ip_bytes", "count"),
    ("tunnel_parents", "set[string]"),
    ("community_id", "string"),
];

impl Zeek {
    fn begin(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.begun, true) {
            return Ok(());
        }
        self.out
            .write_all(b"#separator \\x09\n#set_separator\t,\n#empty_field\t(empty)\n#unset_field\t-\n#path\tconn\n")?;
        let names: Vec<&str> = ZEEK.iter().map(|(name, _)| *name).collect();
        let types: Vec<&str> = ZEEK.iter().map(|(_, kind)| *kind).collect();
        writeln!(self.out, "#fields\t{}\n#types\t{}", names.join("\t"), types.join("\t"))
    }
}

impl Writer for Zeek {
    fn row(&mut self, row: &FlowRow<'_>) -> io::Result<()> {
        self.begin()?;
        let number = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
        let text = |value: Option<&str>| value.map_or_else(|| "-".to_owned(), zeek_text);
        let seconds = |nanoseconds: i64| {
            let (whole, rest) = (
                nanoseconds.div_euclid(1_000_000_000),
                nanoseconds.rem_euclid(1_000_000_000),
            );
            format!("{whole}.{:06}", rest / 1000)
        };
        let protocol = match row.protocol {
            1 | 58 => "icmp",
            6 => "tcp",
            17 => "udp",
            132 => "sctp",
            _ => "unknown_transport",
        };
        let duration = row.last_seen - row.first_seen;
        let values = [
            seconds(row.first_seen),
            zeek_uid(&row.flow_id),
            row.src_ip.to_string(),
            row.src_port.to_string(),
            row.dst_ip.to_string(),
            row.dst_port.to_string(),
            protocol.to_owned(),
            text(row.service.map(|name| if name == "tls" { "ssl" } else { name })),
            // Zeek leaves the duration of a single packet unset.
            if duration > 0 {
                seconds(duration)
            } else {
                "-".to_owned()
            },
            number(row.src_bytes),
            number(row.dst_bytes),
            text(row.conn_state),
            "-".to_owned(),
            "-".to_owned(),
            number(row.missed_bytes.or(row.conn_state.map(|_| 0))),
            text(row.history),
            number(row.src_packets),
            number(row.src_ip_bytes),
            number(row.dst_packets),
            number(row.dst_ip_bytes),
            "-".to_owned(),
            row.community_id.to_owned(),
        ];
        writeln!(self.out, "{}", values.join("\t"))
    }

    fn finish(&mut self) -> io::Result<()> {
        self.begin()?;
        self.out.flush()
    }
}

// Zeek writes what would break a line as `\x09`, and what would pass for unset as well.
fn zeek_text(text: &str) -> String {
    match text {
        "-" => "\\x2d".to_owned(),
        "" => "(empty)".to_owned(),
        _ => text
            .chars()
            .map(|c| match c {
                '\\' => "\\\\".to_owned(),
                c if c.is_control() => format!("\\x{:02x}", u32::from(c)),
                c => c.to_string(),
            })
            .collect(),
    }
}

// `C` and digits of base 62, as Zeek's own.
fn zeek_uid(id: &[u8; 16]) -> String {
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    // The time in front is left out: what follows is as good as random.
    let mut number = u128::from_be_bytes(*id) & ((1 << 96) - 1);
    let mut text = String::from("C");
    for _ in 0..17 {
        text.push(char::from(DIGITS[(number % 62) as usize]));
        number /= 62;
    }
    text
}

struct Eve(Out);

impl Writer for Eve {
    fn row(&mut self, row: &FlowRow<'_>) -> io::Result<()> {
        let protocol = match row.protocol {
            1 => "ICMP".to_owned(),
            6 => "TCP".to_owned(),
            17 => "UDP".to_owned(),
            58 => "IPv6-ICMP".to_owned(),
            132 => "SCTP".to_owned(),
            other => other.to_string(),
        };
        let reason = match row.end_reason {
            Some("eof" | "shutdown") => "shutdown",
            Some("evicted" | "reused") => "forced",
            _ => "timeout",
        };
        let state = match (row.end_reason, row.dst_packets) {
            (Some("fin" | "rst"), _) => "closed",
            (_, Some(0)) => "new",
            _ => "established",
        };
        let mut flow = Map::new();
        let mut add = |name: &str, value: Option<u64>| {
            if let Some(value) = value {
                flow.insert(name.to_owned(), value.into());
            }
        };
        add("pkts_toserver", row.src_packets);
        add("pkts_toclient", row.dst_packets);
        add("bytes_toserver", row.src_ip_bytes);
        add("bytes_toclient", row.dst_ip_bytes);
        add(
            "age",
            Some(((row.last_seen - row.first_seen) / 1_000_000_000).max(0) as u64),
        );
        flow.insert("start".to_owned(), eve_time(row.first_seen).into());
        flow.insert("end".to_owned(), eve_time(row.last_seen).into());
        flow.insert("state".to_owned(), state.into());
        flow.insert("reason".to_owned(), reason.into());
        flow.insert("alerted".to_owned(), false.into());
        let id = u64::from_be_bytes(row.flow_id[8..].try_into().unwrap_or_default()) >> 11;
        let mut event = json!({
            "timestamp": eve_time(row.last_seen),
            "flow_id": id,
            "event_type": "flow",
            "src_ip": row.src_ip.to_string(),
            "dest_ip": row.dst_ip.to_string(),
            "proto": protocol,
            "community_id": row.community_id,
            "flow": flow,
        });
        if let Some(object) = event.as_object_mut() {
            let (first, second) = match matches!(row.protocol, 1 | 58) {
                true => ("icmp_type", "icmp_code"),
                false => ("src_port", "dest_port"),
            };
            object.insert(first.to_owned(), row.src_port.into());
            object.insert(second.to_owned(), row.dst_port.into());
            if let Some(service) = row.service {
                object.insert("app_proto".to_owned(), service.into());
            }
            if let Some(vlan) = row.vlan {
                object.insert("vlan".to_owned(), json!([vlan]));
            }
            if row.src_tcp_flags.is_some() || row.dst_tcp_flags.is_some() {
                let (there, back) = (row.src_tcp_flags.unwrap_or(0), row.dst_tcp_flags.unwrap_or(0));
                object.insert(
                    "tcp".to_owned(),
                    json!({
                        "tcp_flags": format!("{:02x}", there | back),
                        "tcp_flags_ts": format!("{there:02x}"),
                        "tcp_flags_tc": format!("{back:02x}"),
                    }),
                );
            }
        }
        writeln!(self.0, "{event}")
    }

    fn finish(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn eve_time(nanoseconds: i64) -> String {
    DateTime::from_timestamp_nanos(nanoseconds)
        .format("%Y-%m-%dT%H:%M:%S%.6f+0000")
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_of_csv_neither_break_lines_nor_run_as_formulas() {
        assert_eq!(quoted("a,\"b\"\n"), "\"a,\"\"b\"\"\n\"");
        assert_eq!(quoted("=cmd()"), "'=cmd()");
        assert_eq!(quoted("-1.5"), "-1.5");
    }

    #[test]
    fn zeek_text_is_one_field_and_never_unset() {
        assert_eq!(zeek_text("a\tb\\"), "a\\x09b\\\\");
        assert_eq!(zeek_text("-"), "\\x2d");
        assert_eq!(zeek_uid(&[0xff; 16]).len(), 18);
    }
}
