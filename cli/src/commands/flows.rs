use clap::{Args, Subcommand};
use garrison_proto::{
    Timestamp,
    flow::v1::{Flow, FlowFilter, ListSensorsRequest, StreamFlowsRequest, flow_service_client::FlowServiceClient},
    forensics::v1::{SearchFlowsRequest, flow_search_service_client::FlowSearchServiceClient},
};
use tonic_types::StatusExt as _;

use crate::{
    Context,
    commands::parse_time,
    error::CliError,
    output::{time, word},
};

pub(super) const HEADERS: [&str; 10] = [
    "last seen",
    "state",
    "proto",
    "source",
    "destination",
    "service",
    "pkts",
    "bytes",
    "conn",
    "detail",
];

/// Which flows.
#[derive(Args)]
pub struct Filter {
    /// Address or network of either side; repeat for any of several
    #[arg(long, value_name = "CIDR")]
    host: Vec<String>,
    /// Address or network of the opening side
    #[arg(long, value_name = "CIDR")]
    src: Vec<String>,
    /// Address or network of the answering side
    #[arg(long, value_name = "CIDR")]
    dst: Vec<String>,
    /// Port of either side
    #[arg(long)]
    port: Vec<u16>,
    /// tcp, udp, icmp, or a protocol number
    #[arg(long, value_parser = protocol)]
    proto: Vec<u32>,
    /// Application protocol: http, tls, dns
    #[arg(long)]
    service: Vec<String>,
    /// Community ID
    #[arg(long)]
    community_id: Vec<String>,
    /// Flow id
    #[arg(long)]
    flow_id: Vec<String>,
}

impl Filter {
    fn build(self, since: Option<Timestamp>, until: Option<Timestamp>) -> FlowFilter {
        FlowFilter {
            hosts: self.host,
            src_hosts: self.src,
            dst_hosts: self.dst,
            ports: self.port.into_iter().map(u32::from).collect(),
            protocols: self.proto,
            services: self.service,
            community_ids: self.community_id,
            flow_ids: self.flow_id,
            since,
            until,
            states: Vec::new(),
        }
    }
}

fn protocol(text: &str) -> Result<u32, String> {
    match text.to_ascii_lowercase().as_str() {
        "icmp" => Ok(1),
        "tcp" => Ok(6),
        "udp" => Ok(17),
        "icmp6" | "icmpv6" => Ok(58),
        number => {
            let number: u8 = number
                .parse()
                .map_err(|_| format!("{text:?} is no protocol: write tcp, udp, icmp or a number"))?;
            Ok(number.into())
        }
    }
}

/// Watch and search flows.
#[derive(Subcommand)]
pub enum Flows {
    /// Follow flows as they are seen, until interrupted
    ///
    /// For example: garrison flows observe --dst 10.0.0.0/8 --service http
    Observe {
        #[command(flatten)]
        filter: Filter,
        /// Stop after so many records
        #[arg(long, short = 'n')]
        count: Option<u64>,
    },
    /// Read flows from a file, with no fleet: captures, flow exports, logs of other sensors and clouds
    ///
    /// What the file is, is told by its content: pcap and pcapng; IPFIX, NetFlow and sFlow datagrams; Zeek's conn.log;
    /// Suricata's EVE; flow logs of AWS (text and Parquet), Azure and Google Cloud; Cilium Hubble. Compressed with gzip or
    /// zstd or not. Formats with -o besides table, tsv and json: zeek (conn.log), eve, csv, parquet, arrow.
    ///
    /// For example: garrison flows read incident.pcapng.gz -o zeek | zeek-cut id.orig_h id.resp_h service
    Read(super::read::Read),
    /// Search stored flows
    ///
    /// For example: garrison flows search --host 10.1.2.3 --since 2h
    Search {
        #[command(flatten)]
        filter: Filter,
        /// Not before this time, or this long ago
        #[arg(long, value_parser = parse_time)]
        since: Option<Timestamp>,
        /// Before this time, or this long ago
        #[arg(long, value_parser = parse_time)]
        until: Option<Timestamp>,
        /// At most so many flows
        #[arg(long, default_value_t = 1000)]
        limit: u32,
    },
}

impl Flows {
    pub async fn run(self, context: &Context) -> Result<(), CliError> {
        match self {
            // Needs no fleet, so it was answered before one was looked for.
            Self::Read(_) => Ok(()),
            Self::Observe { filter, count } => observe(context, filter.build(None, None), count).await,
            Self::Search {
                filter,
                since,
                until,
                limit,
            } => search(context, filter.build(since, until), limit).await,
        }
    }
}

async fn observe(context: &Context, filter: FlowFilter, count: Option<u64>) -> Result<(), CliError> {
    let follow = async || -> Result<_, CliError> {
        // With a token that was renewed when it was about to end.
        let mut client = FlowServiceClient::new(context.remote.service("flow-ingest").await?);
        let request = StreamFlowsRequest {
            filter: Some(filter.clone()),
        };
        Ok(client.stream_flows(request).await?.into_inner())
    };
    let mut stream = follow().await?;
    let mut left = count.unwrap_or(u64::MAX);
    let mut first = true;
    while left > 0 {
        let answer = match stream.message().await {
            Ok(Some(answer)) => answer,
            Ok(None) => break,
            // Tokens live for minutes, and people watch for longer.
            Err(status) if expired(&status) => {
                stream = follow().await?;
                continue;
            }
            Err(status) => return Err(status.into()),
        };
        if answer.skipped > 0 {
            eprintln!(
                "{} records were skipped: this terminal is too slow for them",
                answer.skipped
            );
        }
        let take = answer.flows.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        left -= take as u64;
        for flow in &answer.flows[..take] {
            if context.printer.is_json() {
                context.printer.json_line(flow);
                continue;
            }
            // Without knowing what follows, columns cannot be aligned; a stream is lines.
            if std::mem::take(&mut first) {
                println!("{}", HEADERS.join("\t"));
            }
            println!("{}", line(flow).join("\t"));
        }
    }
    Ok(())
}

/// The token ended while the call went on.
fn expired(status: &tonic::Status) -> bool {
    let info = status.get_details_error_info();
    status.code() == tonic::Code::Unauthenticated && info.is_some_and(|info| info.reason == "GAR-AUTH-0003")
}

async fn search(context: &Context, filter: FlowFilter, limit: u32) -> Result<(), CliError> {
    let mut client = FlowSearchServiceClient::new(context.remote.service("forensics").await?);
    let request = SearchFlowsRequest {
        filter: Some(filter),
        limit,
    };
    let mut stream = client.search_flows(request).await?.into_inner();
    let mut flows = Vec::new();
    while let Some(answer) = stream.message().await? {
        if let Some(stats) = answer.stats {
            let cut = if stats.truncated {
                "; cut short by the limit"
            } else {
                ""
            };
            eprintln!(
                "{} files read, {} skipped by the index, {} rows looked at{cut}",
                stats.files_read, stats.files_skipped, stats.rows_read
            );
        }
        if context.printer.is_json() {
            answer.flows.iter().for_each(|flow| context.printer.json_line(flow));
        } else {
            flows.extend(answer.flows);
        }
    }
    if !context.printer.is_json() {
        context.printer.rows(&HEADERS, flows.iter().map(line));
    }
    Ok(())
}

pub(super) fn line(flow: &Flow) -> Vec<String> {
    let detail = [
        flow.http_method.as_str(),
        &flow.http_host,
        &flow.http_uri,
        &flow.tls_sni,
        &flow.ja4,
        &flow.dns_query,
    ];
    let mut detail: Vec<String> = detail.into_iter().filter(|text| !text.is_empty()).map(safe).collect();
    if flow.http_status > 0 {
        detail.push(flow.http_status.to_string());
    }
    vec![
        time(flow.last_seen.as_ref()),
        word(flow.state().as_str_name(), "FLOW_STATE_"),
        protocol_name(flow.protocol),
        endpoint(&flow.src_ip, flow.src_port),
        endpoint(&flow.dst_ip, flow.dst_port),
        flow.service.clone(),
        format!("{}/{}", flow.src_packets, flow.dst_packets),
        format!("{}/{}", flow.src_bytes, flow.dst_bytes),
        flow.conn_state.clone(),
        detail.join(" "),
    ]
}

// Names in packets are an attacker's words.
fn safe(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

fn endpoint(address: &str, port: u32) -> String {
    if address.contains(':') {
        format!("[{address}]:{port}")
    } else {
        format!("{address}:{port}")
    }
}

fn protocol_name(number: u32) -> String {
    match number {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmp6".to_owned(),
        other => other.to_string(),
    }
}

/// Show sensors.
#[derive(Subcommand)]
pub enum Sensors {
    /// List sensors with their loss ledgers
    List,
}

impl Sensors {
    pub async fn run(self, context: &Context) -> Result<(), CliError> {
        let Self::List = self;
        let mut client = FlowServiceClient::new(context.remote.service("flow-ingest").await?);
        let sensors = client.list_sensors(ListSensorsRequest {}).await?.into_inner().sensors;
        let headers = [
            "sensor",
            "source",
            "state",
            "flows",
            "received",
            "parsed",
            "malformed",
            "shed",
            "kernel drops",
            "records",
            "lost",
            "ring",
        ];
        context.printer.list("sensors", &headers, &sensors, |sensor| {
            let ledger = sensor.ledger.unwrap_or_default();
            let state = match (sensor.problem.as_str(), sensor.finished) {
                ("", true) => "finished".to_owned(),
                ("", false) => if sensor.live { "live" } else { "reading" }.to_owned(),
                (problem, _) => problem.to_owned(),
            };
            let mut row = vec![sensor.name.clone(), sensor.source.clone(), state];
            let numbers = [
                sensor.active_flows,
                ledger.received,
                ledger.parsed,
                ledger.malformed,
                ledger.shed,
                ledger.dropped_by_kernel,
                ledger.records_published,
                ledger.records_lost,
                sensor.ring_bytes,
            ];
            row.extend(numbers.map(|number| number.to_string()));
            row
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use garrison_proto::flow::v1::FlowState;

    use super::*;

    #[test]
    fn protocols_are_named_or_numbered() {
        assert_eq!(protocol("TCP"), Ok(6));
        assert_eq!(protocol("132"), Ok(132));
        assert!(protocol("256").is_err());
    }

    #[test]
    fn a_line_has_a_cell_for_each_header_and_no_escape_from_the_network() {
        let flow = Flow {
            http_uri: "/\u{1b}[2J".to_owned(),
            src_ip: "::1".to_owned(),
            state: FlowState::New.into(),
            ..Flow::default()
        };
        let line = line(&flow);
        assert_eq!(line.len(), HEADERS.len());
        assert!(!line.join("").contains('\u{1b}'));
        assert_eq!(line[3], "[::1]:0");
        assert_eq!(line[1], "new");
    }
}
