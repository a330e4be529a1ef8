//! The service's configuration.

mod check;

use std::{net::SocketAddr, path::PathBuf};

use garrison_proto::TenantId;
use garrison_service::Core;
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    domain::{Limits, packet::Decoder},
    import::Format,
};

/// Configuration of flow-ingest.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What every service has.
    pub core: Core,
    /// Where packets come from. Without one the service only waits.
    #[serde(default)]
    pub sensors: Vec<SensorConfig>,
    /// The flow table of each sensor.
    #[serde(default)]
    pub table: TableConfig,
    /// Live capture.
    #[serde(default)]
    pub capture: CaptureConfig,
    /// How records are gathered into messages.
    #[serde(default)]
    pub batch: BatchConfig,
    /// The packet ring on disk. Without this section no packets are kept.
    #[serde(default)]
    pub ring: Option<RingConfig>,
    /// Where batches wait while the broker is away.
    #[serde(default)]
    pub spool: SpoolConfig,
    /// What sensors remember across restarts: templates of flow exporters, files already read. Without this section they
    /// begin anew each time.
    #[serde(default)]
    pub state: Option<StateConfig>,
    /// Collectors that get the flow records too.
    #[serde(default)]
    pub export: Vec<ExportConfig>,
}

/// A collector that gets flow records as IPFIX (RFC 7011) over UDP: one biflow (RFC 5103) for each flow that ended.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExportConfig {
    /// The collector: host and UDP port, for example `collector.example:4739`.
    pub to: String,
    /// Whose records go there; all tenants' when it is left out.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub tenants: Vec<TenantId>,
    /// Which sensors' records go there; all when it is left out.
    #[serde(default)]
    pub sensors: Vec<String>,
    /// Observation domain id.
    #[serde(default = "default_domain")]
    pub domain: u32,
    /// Largest message, octets. Keep it below the path's MTU less 48.
    #[serde(default = "default_message_bytes")]
    pub max_bytes: usize,
    /// How often templates are sent again, milliseconds.
    #[serde(default = "default_template_ms")]
    pub template_ms: u64,
}

/// What sensors remember across restarts.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StateConfig {
    /// Folder; each sensor has bounded files of its own in it.
    pub path: PathBuf,
}

/// A sensor. Exactly one of `interface` or `interfaces`, `file`, `folder`, `log` and `listen` says where its flows come
/// from.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SensorConfig {
    /// Its name in records and in `sensors/{id}`: 1 to 63 letters, digits, hyphens and underscores.
    pub id: String,
    /// Whose traffic it sees.
    #[schemars(with = "String")]
    pub tenant: TenantId,
    /// An interface to capture on.
    #[serde(default)]
    pub interface: Option<String>,
    /// Several interfaces that feed one flow table. On a router name every interface whose traffic passes it: with
    /// `direction = "in"` each forwarded packet is then seen once, and both directions of a flow meet.
    #[serde(default)]
    pub interfaces: Vec<String>,
    /// A file to read instead: a capture (pcap or pcapng), flow exports, or a log in one of the formats of `format`, told by
    /// its content, compressed with gzip or zstd or not. `-` is standard input.
    #[serde(default)]
    pub file: Option<PathBuf>,
    /// A folder whose files are read, each once and in the order they were written, also those that come later. Hidden ones
    /// and those that end with `.tmp`, `.part`, `.partial`, `.filepart` or `.crdownload` are left alone.
    #[serde(default)]
    pub folder: Option<PathBuf>,
    /// How long a file of a folder must be left unchanged to count as whole, milliseconds.
    #[serde(default = "default_settle_ms")]
    pub settle_ms: u64,
    /// A log of another sensor that is followed as it grows, through rotation and truncation. Needs `format`.
    #[serde(default)]
    pub log: Option<PathBuf>,
    /// What a log is; of a file or a folder it is told by the content where this is left out.
    #[serde(default)]
    pub format: Option<Format>,
    /// Which frames are captured: those that come in through the interface, or those that leave it too.
    #[serde(default)]
    pub direction: Direction,
    /// Which packets of interfaces, a capture file or a folder of them are metered, in tcpdump's syntax (pcap-filter(7)), for
    /// example `tcp port 80 or icmp`. The others are not counted. Needs the package libpcap0.8.
    #[serde(default)]
    pub filter: Option<String>,
    /// Also capture frames that are not for this host.
    #[serde(default)]
    pub promiscuous: bool,
    /// Octets of each frame that are captured.
    #[serde(default = "default_snaplen")]
    pub snaplen: u32,
    /// Threads that share an interface's packets, or those of a capture file that is played fast, flow by flow. Each has a
    /// flow table and a ring of its own.
    #[serde(default = "default_workers")]
    pub workers: usize,
    /// How fast a file is played.
    #[serde(default)]
    pub pace: Pace,
    /// Which times the packets of a file get.
    #[serde(default)]
    pub timestamps: Timestamps,
    /// Address and UDP port where flow exports come in: NetFlow 5 and 9, IPFIX and sFlow 5, told apart by their content.
    /// For example `0.0.0.0:2055`.
    #[serde(default)]
    pub listen: Option<SocketAddr>,
    /// Networks whose exporters are heard. Without one all are.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub exporters: Vec<IpNet>,
    /// Octets the kernel holds for the socket of `listen` between two looks at it. More than `net.core.rmem_max` needs
    /// CAP_NET_ADMIN.
    #[serde(default = "default_receive_bytes")]
    pub receive_bytes: usize,
    /// One in how many packets those exporters look at that do not tell it themselves.
    #[serde(default = "default_sampling")]
    pub sampling: u32,
    /// Keep what exporters and logs say beyond the columns of the flow schema, in its column `extra`.
    #[serde(default = "default_extra")]
    pub extra: bool,
}

/// Which frames are captured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Those that come in.
    #[default]
    In,
    /// All.
    Both,
}

/// How fast a file is played.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Pace {
    /// As fast as possible.
    #[default]
    Fast,
    /// With the pauses it was captured with.
    Realtime,
}

/// Which times the packets of a file get.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Timestamps {
    /// Those in the file.
    #[default]
    Capture,
    /// Shifted to the present: played in real time the first packet is now, played fast the last one is.
    Now,
}

/// The flow table of each sensor.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TableConfig {
    /// Most flows held at once. A new one beyond makes the least valuable one end.
    pub max_flows: usize,
    /// Most flows with application state at once.
    pub max_applications: usize,
    /// Most octets of a stream held to reassemble a head that is spread over segments, each direction.
    pub reassembly_bytes: usize,
    /// Milliseconds after which a TCP connection attempt without an answer is over.
    pub tcp_attempt_ms: u64,
    /// Idle timeout of TCP, milliseconds.
    pub tcp_idle_ms: u64,
    /// Idle timeout of UDP, milliseconds.
    pub udp_idle_ms: u64,
    /// Idle timeout of ICMP, milliseconds.
    pub icmp_idle_ms: u64,
    /// Idle timeout of other protocols, milliseconds.
    pub other_idle_ms: u64,
    /// How long a closed TCP connection waits for stragglers, milliseconds.
    pub close_linger_ms: u64,
    /// How long a reset TCP connection waits for stragglers, milliseconds.
    pub reset_linger_ms: u64,
    /// How often a flow that goes on is reported, milliseconds.
    pub active_interval_ms: u64,
    /// Shortest time between two reports of new facts of one flow, milliseconds.
    pub fact_interval_ms: u64,
    /// How many tunnels inside each other are followed: GRE, ERSPAN, IP in IP, PBB, FabricPath, Teredo, VXLAN, Geneve,
    /// GTP-U. 0 for none.
    pub tunnels: u8,
    /// Whether packets with a wrong checksum are malformed. Leave it off where the network card of a captured host
    /// computes checksums: they are wrong in what it sends.
    pub checksums: bool,
    /// Whether VLANs are networks of their own, so that the same addresses in two of them are two flows. Leave it off where
    /// the two directions of a flow, or a packet before and after its router, come with different tags.
    pub vlans_apart: bool,
}

/// Live capture.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CaptureConfig {
    /// Kernel memory of each interface's capture ring, octets.
    pub ring_bytes: usize,
    /// How long the kernel may hold back a packet, milliseconds. Kernels before 6.18 round it up to a timer tick
    /// (4 ms at 250 Hz).
    pub retire_ms: u32,
}

/// How records are gathered into messages.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BatchConfig {
    /// Records that close a batch.
    pub rows: usize,
    /// Age that closes a batch, milliseconds. The first record after a pause goes out at once.
    pub age_ms: u64,
    /// Largest message, octets; a larger batch is split. Keep it below the broker's `max_payload`.
    pub max_bytes: usize,
}

/// The packet ring on disk.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RingConfig {
    /// Folder; each sensor has its own below it.
    pub path: PathBuf,
    /// Most octets on disk, each sensor. The oldest packets go first.
    #[serde(default = "default_ring_bytes")]
    pub bytes: u64,
    /// Octets of one segment file.
    #[serde(default = "default_segment_bytes")]
    pub segment_bytes: u64,
    /// Octets of each packet that are kept.
    #[serde(default = "default_snaplen")]
    pub snaplen: u32,
    /// How long packets may wait in memory, milliseconds.
    #[serde(default = "default_flush_ms")]
    pub flush_ms: u64,
    /// Most octets of one packet slice that is fetched.
    #[serde(default = "default_slice_bytes")]
    pub max_slice_bytes: u64,
}

/// Where batches wait while the broker is away.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SpoolConfig {
    /// Folder for what memory has no room for. Without it only memory is used.
    pub path: Option<PathBuf>,
    /// Most octets in memory.
    pub memory_bytes: usize,
    /// Most octets on disk. The oldest batches are given up first, and counted.
    pub disk_bytes: u64,
}

fn default_snaplen() -> u32 {
    65_535
}

fn default_receive_bytes() -> usize {
    8 << 20
}

fn default_domain() -> u32 {
    1
}

fn default_message_bytes() -> usize {
    1_400
}

fn default_template_ms() -> u64 {
    60_000
}

fn default_workers() -> usize {
    1
}

fn default_settle_ms() -> u64 {
    5_000
}

fn default_sampling() -> u32 {
    1
}

fn default_extra() -> bool {
    true
}

fn default_ring_bytes() -> u64 {
    1 << 30
}

fn default_segment_bytes() -> u64 {
    16 << 20
}

fn default_flush_ms() -> u64 {
    50
}

fn default_slice_bytes() -> u64 {
    64 << 20
}

impl Default for TableConfig {
    fn default() -> Self {
        let limits = Limits::default();
        let ms = |nanoseconds: i64| nanoseconds as u64 / 1_000_000;
        Self {
            max_flows: limits.flows,
            max_applications: limits.applications,
            reassembly_bytes: limits.stream_bytes,
            tcp_attempt_ms: ms(limits.tcp_attempt),
            tcp_idle_ms: ms(limits.tcp_idle),
            udp_idle_ms: ms(limits.udp_idle),
            icmp_idle_ms: ms(limits.icmp_idle),
            other_idle_ms: ms(limits.other_idle),
            close_linger_ms: ms(limits.close_linger),
            reset_linger_ms: ms(limits.reset_linger),
            active_interval_ms: ms(limits.active_interval),
            fact_interval_ms: ms(limits.fact_interval),
            tunnels: limits.decoder.tunnels,
            checksums: limits.decoder.checksums,
            vlans_apart: limits.vlans_apart,
        }
    }
}

impl TableConfig {
    /// The limits a table is made with.
    pub fn limits(&self) -> Limits {
        let ns = |ms: u64| (ms.min(86_400_000_000) * 1_000_000) as i64;
        Limits {
            flows: self.max_flows,
            applications: self.max_applications,
            stream_bytes: self.reassembly_bytes,
            tcp_attempt: ns(self.tcp_attempt_ms),
            tcp_idle: ns(self.tcp_idle_ms),
            udp_idle: ns(self.udp_idle_ms),
            icmp_idle: ns(self.icmp_idle_ms),
            other_idle: ns(self.other_idle_ms),
            close_linger: ns(self.close_linger_ms),
            reset_linger: ns(self.reset_linger_ms),
            active_interval: ns(self.active_interval_ms),
            fact_interval: ns(self.fact_interval_ms),
            decoder: Decoder {
                tunnels: self.tunnels,
                checksums: self.checksums,
            },
            vlans_apart: self.vlans_apart,
        }
    }
}

impl Default for CaptureConfig {
    fn default() -> Self {
        Self {
            ring_bytes: 8 << 20,
            retire_ms: 1,
        }
    }
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self {
            rows: 4096,
            age_ms: 2,
            max_bytes: 900 << 10,
        }
    }
}

impl Default for SpoolConfig {
    fn default() -> Self {
        Self {
            path: None,
            memory_bytes: 64 << 20,
            disk_bytes: 1 << 30,
        }
    }
}

impl SensorConfig {
    /// Every interface, however it was written.
    pub fn all_interfaces(&self) -> Vec<String> {
        let mut all: Vec<String> = self.interface.iter().chain(&self.interfaces).cloned().collect();
        all.dedup();
        all
    }
}
