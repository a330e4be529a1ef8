//! What a configuration must be like, checked before anything starts.

use garrison_service::{ConfigError, Core, ServiceConfig};

use super::{Config, Pace};
use crate::{capture::spread::MOST_WORKERS, export::ipfix::MESSAGE_BYTES};

impl ServiceConfig for Config {
    fn core(&self) -> &Core {
        &self.core
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let wrong = |key: String, problem: &str| Err(ConfigError::invalid(key, problem.to_owned()));
        for (i, sensor) in self.sensors.iter().enumerate() {
            let key = |name: &str| format!("sensors[{i}].{name}");
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
            if sensor.id.is_empty() || sensor.id.len() > 63 || !sensor.id.chars().all(plain) {
                return wrong(key("id"), "must be 1 to 63 letters, digits, hyphens and underscores");
            }
            if self.sensors[..i].iter().any(|other| other.id == sensor.id) {
                return wrong(key("id"), "is the id of another sensor too");
            }
            let sources = [
                ("interfaces", !sensor.all_interfaces().is_empty()),
                ("file", sensor.file.is_some()),
                ("folder", sensor.folder.is_some()),
                ("log", sensor.log.is_some()),
                ("listen", sensor.listen.is_some()),
            ];
            let mut named = sources.iter().filter(|(_, named)| *named);
            match (named.next(), named.next()) {
                (None, _) => {
                    return wrong(
                        key("interfaces"),
                        "is missing: name interfaces, a file, a folder, a log or an address to listen on",
                    );
                }
                (Some((first, _)), Some((second, _))) => {
                    return wrong(key(second), &format!("cannot go together with {first}"));
                }
                _ => {}
            }
            if sensor.log.is_some() && sensor.format.is_none() {
                return wrong(key("format"), "is missing: say what the log is");
            }
            if sensor.format.is_some() && sensor.log.is_none() && sensor.file.is_none() && sensor.folder.is_none() {
                return wrong(key("format"), "is of a log, a file or a folder");
            }
            if sensor.filter.is_some() && (sensor.log.is_some() || sensor.listen.is_some()) {
                return wrong(key("filter"), "is of interfaces, a capture file or a folder");
            }
            if !(1..=MOST_WORKERS).contains(&sensor.workers) {
                return wrong(key("workers"), "must be 1 to 64");
            }
            if sensor.workers > 1 && sensor.all_interfaces().is_empty() && sensor.file.is_none() {
                return wrong(key("workers"), "is of interfaces or a capture file");
            }
            if sensor.workers > 1 && sensor.file.is_some() && sensor.pace != Pace::Fast {
                return wrong(key("workers"), "must be 1 for a file that is not played fast");
            }
            if !(100..=86_400_000).contains(&sensor.settle_ms) {
                return wrong(key("settle_ms"), "must be 100 to 86400000");
            }
            if sensor.sampling == 0 {
                return wrong(key("sampling"), "must be at least 1");
            }
            if !(64 << 10..=1 << 30).contains(&sensor.receive_bytes) {
                return wrong(key("receive_bytes"), "must be 65536 to 1073741824");
            }
            if !(64..=262_144).contains(&sensor.snaplen) {
                return wrong(key("snaplen"), "must be 64 to 262144");
            }
        }
        for (i, export) in self.export.iter().enumerate() {
            let key = |name: &str| format!("export[{i}].{name}");
            let port = export
                .to
                .rsplit_once(':')
                .map(|(host, port)| (host, port.parse::<u16>()));
            if !matches!(port, Some((host, Ok(1..))) if !host.is_empty()) {
                return wrong(key("to"), "must be a host and a port, such as collector.example:4739");
            }
            if !MESSAGE_BYTES.contains(&export.max_bytes) {
                return wrong(key("max_bytes"), "must be 512 to 65000");
            }
            if !(1_000..=86_400_000).contains(&export.template_ms) {
                return wrong(key("template_ms"), "must be 1000 to 86400000");
            }
            if let Some(id) = export
                .sensors
                .iter()
                .find(|id| !self.sensors.iter().any(|s| s.id == **id))
            {
                return wrong(key("sensors"), &format!("names {id:?}, which is no sensor's id"));
            }
        }
        for (key, holds, problem) in [
            (
                "batch.rows",
                (1..=65_536).contains(&self.batch.rows),
                "must be 1 to 65536",
            ),
            (
                "batch.max_bytes",
                self.batch.max_bytes >= 64 << 10,
                "must be at least 65536",
            ),
            (
                "table.max_flows",
                (16..=1 << 30).contains(&self.table.max_flows),
                "must be 16 to 1073741824",
            ),
            (
                "table.reassembly_bytes",
                (1024..=1 << 20).contains(&self.table.reassembly_bytes),
                "must be 1024 to 1048576",
            ),
            (
                "table.active_interval_ms",
                self.table.active_interval_ms >= 100,
                "must be at least 100",
            ),
            ("table.tunnels", self.table.tunnels <= 16, "must be 0 to 16"),
            (
                "capture.ring_bytes",
                self.capture.ring_bytes >= 256 << 10,
                "must be at least 262144",
            ),
            (
                "capture.retire_ms",
                (1..=1000).contains(&self.capture.retire_ms),
                "must be 1 to 1000",
            ),
            (
                "spool.memory_bytes",
                self.spool.memory_bytes >= 1 << 20,
                "must be at least 1048576",
            ),
        ] {
            if !holds {
                return wrong(key.to_owned(), problem);
            }
        }
        if let Some(ring) = &self.ring {
            if ring.segment_bytes < 64 << 10 || ring.segment_bytes > 1 << 30 {
                return wrong("ring.segment_bytes".into(), "must be 65536 to 1073741824");
            }
            if ring.bytes < ring.segment_bytes * 2 {
                return wrong("ring.bytes".into(), "must be at least twice ring.segment_bytes");
            }
            if !(64..=262_144).contains(&ring.snaplen) {
                return wrong("ring.snaplen".into(), "must be 64 to 262144");
            }
        }
        Ok(())
    }
}
