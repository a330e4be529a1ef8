//! Printing: tables for people, tab-separated lines for pipes, JSON for programs.

use std::io::{IsTerminal as _, Write as _};

use chrono::{DateTime, SecondsFormat, Utc};
use clap::ValueEnum;
use comfy_table::{Attribute, Cell, ContentArrangement, Table, presets};
use garrison_proto::Timestamp;
use prost::{Message, Name};
use prost_reflect::{DescriptorPool, DynamicMessage};
use serde_json::{Value, json};

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Aligned columns for people
    Table,
    /// Tab-separated lines with a header
    Tsv,
    /// Protobuf's canonical JSON; of `flows read` the columns of the flow schema
    Json,
    /// Zeek's conn.log
    Zeek,
    /// Flow events of Suricata's EVE
    Eve,
    /// Comma-separated values, every column
    Csv,
    /// An Apache Parquet file
    Parquet,
    /// An Apache Arrow IPC stream
    Arrow,
}

impl Format {
    /// One of those that only whole files of flows have.
    pub fn is_for_files(self) -> bool {
        !matches!(self, Self::Table | Self::Tsv | Self::Json)
    }
}

/// Prints data to standard output.
#[derive(Debug)]
pub struct Printer {
    format: Format,
    bold: bool,
}

impl Printer {
    /// Prints in the given format, or in the one that suits standard output.
    pub fn new(format: Option<Format>) -> Self {
        let terminal = std::io::stdout().is_terminal();
        let suitable = if terminal { Format::Table } else { Format::Tsv };
        Self {
            format: format.unwrap_or(suitable),
            bold: terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        }
    }

    /// Prints for programs.
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// A list: `name` is its key in JSON, `row` makes a line's cells.
    pub fn list<M: Message + Name>(&self, name: &str, headers: &[&str], items: &[M], row: impl Fn(&M) -> Vec<String>) {
        if self.is_json() {
            let items: Vec<Value> = items.iter().map(to_json).collect();
            return self.json(&json!({ name: items }));
        }
        self.rows(headers, items.iter().map(row));
    }

    /// Rows of text, not for JSON.
    pub fn rows(&self, headers: &[&str], rows: impl Iterator<Item = Vec<String>>) {
        let mut out = std::io::stdout().lock();
        if self.format == Format::Tsv {
            let clean = |cell: &String| cell.replace(['\t', '\n', '\r'], " ");
            // A closed pipe ends us by signal; any other failure of stdout has nobody left to be told.
            let _ = writeln!(out, "{}", headers.join("\t"));
            for row in rows {
                let _ = writeln!(out, "{}", row.iter().map(clean).collect::<Vec<_>>().join("\t"));
            }
            return;
        }
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(headers.iter().map(|header| {
            let cell = Cell::new(header.to_uppercase());
            if self.bold {
                cell.add_attribute(Attribute::Bold)
            } else {
                cell
            }
        }));
        for row in rows {
            table.add_row(row.iter().map(|cell| printable(cell)));
        }
        let _ = writeln!(out, "{}", table.trim_fmt());
    }

    /// One thing: its fields one a line.
    pub fn record<M: Message + Name>(&self, message: &M, fields: &[(&str, String)]) {
        match self.format {
            Format::Json => self.json(&to_json(message)),
            Format::Tsv => self.rows(
                &["field", "value"],
                fields
                    .iter()
                    .map(|(name, value)| vec![(*name).to_owned(), value.clone()]),
            ),
            // Formats of files do not come here.
            _ => {
                let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
                let mut out = std::io::stdout().lock();
                for (name, value) in fields.iter().filter(|(_, value)| !value.is_empty()) {
                    let value = value.replace('\n', &format!("\n{:1$}", "", width + 2));
                    let _ = writeln!(out, "{name:width$}  {value}");
                }
            }
        }
    }

    /// A value of our own as JSON.
    pub fn json(&self, value: &Value) {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{value:#}");
    }

    /// One object on one line, for streams.
    pub fn json_line<M: Message + Name>(&self, message: &M) {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{}", to_json(message));
    }
}

// What comes from the network may hold terminal escapes; a table must not pass them on.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c })
        .collect()
}

/// Protobuf's canonical JSON of a message, from the compiled descriptors.
pub fn to_json<M: Message + Name>(message: &M) -> Value {
    static POOL: std::sync::OnceLock<DescriptorPool> = std::sync::OnceLock::new();
    let pool = POOL.get_or_init(|| {
        DescriptorPool::decode(garrison_proto::FILE_DESCRIPTOR_SET).expect("the build made the descriptors")
    });
    let descriptor = pool
        .get_message_by_name(&M::full_name())
        .expect("every message is in the descriptors");
    let dynamic = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice())
        .expect("a message decodes by its own descriptor");
    serde_json::to_value(&dynamic).expect("protobuf has a JSON form")
}

/// A time for people: UTC, to the millisecond.
pub fn time(time: Option<&Timestamp>) -> String {
    let time: Option<DateTime<Utc>> = time.and_then(garrison_proto::from_timestamp);
    time.map(|time| time.to_rfc3339_opts(SecondsFormat::Millis, true))
        .unwrap_or_default()
}

/// An enumeration's value for people: `SEVERITY_HIGH` becomes `high`.
pub fn word(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix)
        .unwrap_or(name)
        .to_lowercase()
        .replace('_', "-")
}
