//! Sending flow records on as IPFIX over UDP, without ever waiting for the collector.

use std::{
    collections::BTreeSet,
    io,
    net::{SocketAddr, ToSocketAddrs as _, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use garrison_flow::{FlowBatch, FlowState};
use garrison_proto::TenantId;

use super::watch::now;
use crate::export::ipfix::IpfixWriter;

/// Batches that may wait for the network.
const WAITING: usize = 256;
/// How long a message may wait to be filled.
const FILL: Duration = Duration::from_millis(500);
/// How often a collector's name is looked up again while it cannot be reached.
const LOOK: Duration = Duration::from_secs(10);

/// Where records go.
#[derive(Clone, Debug)]
pub struct Forwarding {
    /// The collector: host and UDP port.
    pub to: String,
    /// The sensors whose records go there; all when there is none.
    pub sensors: BTreeSet<String>,
    /// The tenants whose records go there; all when there is none.
    pub tenants: BTreeSet<TenantId>,
    /// Observation domain.
    pub domain: u32,
    /// Largest message, octets.
    pub max_bytes: usize,
    /// How often templates are sent again.
    pub templates: Duration,
}

/// What became of the records that were to be sent on.
#[derive(Debug, Default)]
pub struct Forwarded {
    /// Records sent. UDP does not tell whether they came.
    pub sent: AtomicU64,
    /// Records not sent, because the network was slower than the sensors or the collector could not be found.
    pub lost: AtomicU64,
    /// Messages sent.
    pub messages: AtomicU64,
}

/// One end of a forwarder.
#[derive(Clone)]
pub struct Forwarder {
    how: Arc<Forwarding>,
    counts: Arc<Forwarded>,
    sender: SyncSender<FlowBatch>,
}

impl Forwarder {
    /// Where records go.
    pub fn to(&self) -> &str {
        &self.how.to
    }

    /// What became of them.
    pub fn counts(&self) -> &Arc<Forwarded> {
        &self.counts
    }

    /// Hands a batch of a sensor over, or counts it as lost when too much waits already.
    pub fn offer(&self, tenant: &TenantId, sensor: &str, batch: &FlowBatch) {
        let Forwarding { tenants, sensors, .. } = &*self.how;
        if !(tenants.is_empty() || tenants.contains(tenant)) || !(sensors.is_empty() || sensors.contains(sensor)) {
            return;
        }
        match self.sender.try_send(batch.clone()) {
            Ok(()) => {}
            Err(TrySendError::Full(batch) | TrySendError::Disconnected(batch)) => {
                self.counts.lost.fetch_add(ended(&batch), Ordering::Relaxed);
            }
        }
    }
}

// Only ended flows are sent: their counters are whole.
fn ended(batch: &FlowBatch) -> u64 {
    let states = batch.columns().state;
    states
        .values()
        .iter()
        .filter(|state| **state == FlowState::Ended as u8)
        .count() as u64
}

/// Starts the thread. It ends when every forwarder of it is gone.
///
/// # Errors
/// When the system gives no thread.
pub fn start(how: Forwarding) -> io::Result<(Forwarder, JoinHandle<()>)> {
    let (sender, batches) = sync_channel(WAITING);
    let forwarder = Forwarder {
        how: Arc::new(how),
        counts: Arc::default(),
        sender,
    };
    let (how, counts) = (Arc::clone(&forwarder.how), Arc::clone(&forwarder.counts));
    let thread = std::thread::Builder::new()
        .name("forward".to_owned())
        .spawn(move || run(&how, &counts, &batches))?;
    Ok((forwarder, thread))
}

struct Link<'a> {
    how: &'a Forwarding,
    socket: Option<UdpSocket>,
    looked: Option<Instant>,
    told: bool,
}

impl Link<'_> {
    // The socket, connected anew now and then while it does not work.
    fn socket(&mut self) -> Option<&UdpSocket> {
        if self.socket.is_none() && self.looked.is_none_or(|looked| looked.elapsed() >= LOOK) {
            self.looked = Some(Instant::now());
            match connect(&self.how.to) {
                Ok(socket) => {
                    tracing::info!(to = self.how.to, "sending flow records as IPFIX");
                    self.socket = Some(socket);
                    self.told = false;
                }
                Err(error) => self.trouble(&error),
            }
        }
        self.socket.as_ref()
    }

    fn trouble(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.told, true) {
            tracing::warn!(
                to = self.how.to,
                %error,
                "GAR-FLOW-0062: flow records cannot be sent on; trying again, and counting what is lost"
            );
        }
    }
}

fn connect(to: &str) -> io::Result<UdpSocket> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in to.to_socket_addrs()? {
        let any: SocketAddr = match address {
            SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
            SocketAddr::V6(_) => ([0u16; 8], 0).into(),
        };
        match UdpSocket::bind(any).and_then(|socket| socket.connect(address).map(|()| socket)) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn run(how: &Forwarding, counts: &Forwarded, batches: &Receiver<FlowBatch>) {
    let mut writer = IpfixWriter::new(how.domain, how.max_bytes);
    let mut link = Link {
        how,
        socket: None,
        looked: None,
        told: false,
    };
    let mut templates = Instant::now();
    let mut flushed = Instant::now();
    let mut written = 0;
    let mut send = |message: &[u8], records: u64| match link.socket().map(|socket| socket.send(message)) {
        Some(Ok(_)) => {
            counts.sent.fetch_add(records, Ordering::Relaxed);
            counts.messages.fetch_add(1, Ordering::Relaxed);
        }
        failed => {
            counts.lost.fetch_add(records, Ordering::Relaxed);
            // A refused datagram is told by the next call; the socket stays good.
            if let Some(Err(error)) = failed {
                link.trouble(&error);
            }
        }
    };
    loop {
        let next = batches.recv_timeout(FILL);
        if templates.elapsed() >= how.templates {
            templates = Instant::now();
            writer.resend_templates();
        }
        match next {
            Ok(batch) => {
                for row in batch.rows().filter(|row| row.state == FlowState::Ended as u8) {
                    writer.write(&row, now(), &mut |message| send(message, std::mem::take(&mut written)));
                    written += 1;
                }
                // A trickle must not hold a message back for ever.
                if flushed.elapsed() >= FILL {
                    flushed = Instant::now();
                    writer.flush(now(), &mut |message| send(message, std::mem::take(&mut written)));
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                flushed = Instant::now();
                writer.flush(now(), &mut |message| send(message, std::mem::take(&mut written)));
            }
            Err(RecvTimeoutError::Disconnected) => {
                writer.flush(now(), &mut |message| send(message, std::mem::take(&mut written)));
                return;
            }
        }
    }
}
