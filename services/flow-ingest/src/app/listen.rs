//! Flow exports from a UDP socket: datagrams in, records out.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsFd as _,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use ipnet::IpNet;

use super::{recorder::Recorder, sensor::Sensor, watch::now};
use crate::{
    capture::afpacket::wait_for,
    export::{Collector, Malformed, Outcome},
};

/// Datagrams taken before batches have their turn.
const TURN: usize = 64;
/// How long the worker sleeps at most.
const SLEEP: Duration = Duration::from_millis(200);
/// How often the kernel is asked for its drops, and a socket that could not be opened is tried again.
const LOOK: Duration = Duration::from_secs(1);
/// How often changed templates are written.
const SAVE: Duration = Duration::from_secs(10);
/// Longest datagram over UDP, octets.
const LONGEST: usize = 65_535;

/// How a socket is read.
#[derive(Clone, Debug)]
pub struct Listening {
    /// Where.
    pub address: SocketAddr,
    /// Whose datagrams are read; all when there is none.
    pub exporters: Vec<IpNet>,
    /// Octets the kernel holds for the socket.
    pub receive_bytes: usize,
    /// The file that keeps templates across restarts.
    pub keep: Option<PathBuf>,
}

/// Flow exports cannot be received.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The socket could not be opened.
    #[error("GAR-FLOW-0051: flow exports cannot be received on {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Reading failed.
    #[error("GAR-FLOW-0051: receiving flow exports on {address} failed")]
    Receive {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

struct Worker<'a> {
    sensor: &'a Sensor,
    listening: &'a Listening,
    collector: Collector,
    recorder: Recorder,
    dropped: u64,
    malformed: Option<(u64, IpAddr, Malformed)>,
    saved: Instant,
}

/// Reads datagrams until `stop` is set.
pub fn listen(
    sensor: &Arc<Sensor>,
    listening: &Listening,
    mut collector: Collector,
    recorder: Recorder,
    stop: &AtomicBool,
) {
    if let Some(path) = &listening.keep {
        match collector.load(path) {
            Ok(0) => {}
            Ok(templates) => tracing::info!(sensor = sensor.id, templates, "templates of exporters taken back"),
            // Exporters send their templates again, so this costs the records until then.
            Err(error) => tracing::warn!(
                sensor = sensor.id,
                cause = std::error::Error::source(&error).map(ToString::to_string),
                "{error}; waiting for the exporters to send them again"
            ),
        }
    }
    let mut worker = Worker {
        sensor,
        listening,
        collector,
        recorder,
        dropped: 0,
        malformed: None,
        saved: Instant::now(),
    };
    while !stop.load(Ordering::Relaxed) {
        match worker.run(stop) {
            Ok(()) => break,
            Err(error) => {
                let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
                let problem = format!("{error}{}", cause.unwrap_or_default());
                if sensor.status().problem.as_ref() != Some(&problem) {
                    tracing::warn!(
                        sensor = sensor.id,
                        problem,
                        "no flow exports are received; trying again"
                    );
                }
                sensor.update(|status| status.problem = Some(problem));
                std::thread::sleep(LOOK.min(SLEEP));
            }
        }
    }
    worker.complain();
    worker.note();
    worker.save(true);
    worker.recorder.flush();
}

impl Worker<'_> {
    fn run(&mut self, stop: &AtomicBool) -> Result<(), ListenError> {
        let address = self.listening.address;
        let bind = |source| ListenError::Bind { address, source };
        let socket = UdpSocket::bind(address).map_err(bind)?;
        socket.set_nonblocking(true).map_err(bind)?;
        enlarge(&socket, self.listening.receive_bytes);
        let inode = rustix::fs::fstat(&socket).map(|stat| stat.st_ino).unwrap_or_default();
        tracing::info!(sensor = self.sensor.id, %address, "receiving flow exports");
        self.sensor.update(|status| status.problem = None);
        let before = self.dropped;
        let mut buffer = vec![0; LONGEST];
        let mut looked = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            let mut busy = false;
            for _ in 0..TURN {
                match socket.recv_from(&mut buffer) {
                    Ok((length, from)) => {
                        busy = true;
                        self.take(from.ip(), &buffer[..length]);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(source) => return Err(ListenError::Receive { address, source }),
                }
            }
            if looked.elapsed() >= LOOK {
                looked = Instant::now();
                self.dropped = before + kernel_drops(inode).unwrap_or(self.dropped - before);
                self.save(false);
                self.complain();
                if let Some(interfaces) = self.collector.take_new_interfaces() {
                    self.sensor.update(|status| status.interfaces = interfaces);
                }
            }
            self.note();
            let due = self.recorder.flush_due(Instant::now());
            if !busy {
                let until_due = due.map_or(SLEEP, |due| due.saturating_duration_since(Instant::now()));
                wait_for(socket.as_fd(), SLEEP.min(until_due));
            }
        }
        self.dropped = before + kernel_drops(inode).unwrap_or(self.dropped - before);
        Ok(())
    }

    fn take(&mut self, from: IpAddr, datagram: &[u8]) {
        let from = from.to_canonical();
        let welcome = &self.listening.exporters;
        if !welcome.is_empty() && !welcome.iter().any(|network| network.contains(&from)) {
            self.collector.refuse();
            return;
        }
        if let Outcome::Malformed(what) = self.collector.datagram(from, now(), datagram, &mut self.recorder) {
            let before = self.malformed.map_or(0, |(count, ..)| count);
            self.malformed = Some((before + 1, from, what));
        }
    }

    // At most one line a second, however many datagrams are malformed.
    fn complain(&mut self) {
        if let Some((count, exporter, what)) = self.malformed.take() {
            tracing::warn!(
                sensor = self.sensor.id,
                %exporter,
                count,
                "GAR-FLOW-0052: malformed flow exports, the last: {what}"
            );
        }
    }

    fn note(&mut self) {
        let counts = self.collector.counts();
        self.recorder.note_counts(counts, 0, self.dropped);
        let tally = self.collector.tally();
        self.sensor.update(|status| status.exports = Some(tally));
    }

    fn save(&mut self, now: bool) {
        let Some(path) = &self.listening.keep else { return };
        if !self.collector.has_news() || (!now && self.saved.elapsed() < SAVE) {
            return;
        }
        self.saved = Instant::now();
        if let Err(error) = self.collector.save(path) {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::warn!(sensor = self.sensor.id, cause, "{error}");
        }
    }
}

// Beyond the kernel's limit (net.core.rmem_max) only with CAP_NET_ADMIN; what is granted is what there is.
fn enlarge(socket: &UdpSocket, bytes: usize) {
    use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_recv_buffer_size_force};
    if set_socket_recv_buffer_size_force(socket, bytes).is_err() {
        // A smaller buffer loses more under bursts, and the drops are counted.
        let _ = set_socket_recv_buffer_size(socket, bytes);
    }
}

// What the kernel dropped for want of room in the socket, from /proc/net/udp and /proc/net/udp6.
fn kernel_drops(inode: u64) -> Option<u64> {
    let inode = inode.to_string();
    ["/proc/net/udp", "/proc/net/udp6"].iter().find_map(|path| {
        let table = std::fs::read_to_string(path).ok()?;
        table.lines().skip(1).find_map(|line| {
            let columns: Vec<&str> = line.split_ascii_whitespace().collect();
            (columns.get(9) == Some(&inode.as_str())).then(|| columns.last()?.parse().ok())?
        })
    })
}
