//! The packet ring on disk: the newest packets of a sensor in a bounded number of octets, found again by flow and time.
//!
//! Capture hands packets over in chunks and never waits: when the writer is behind or the disk is full, packets are
//! counted instead of kept.

mod format;
mod slice;
mod writer;

pub use slice::{Slice, SliceError, SliceFilter};
pub use writer::PacketRing;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError},
    },
    time::{Duration, Instant},
};

use crate::domain::{
    key::FlowKey,
    packet::{LinkType, Packet},
};

/// Octets of a chunk that is handed to the writer.
const CHUNK: usize = 256 << 10;
/// Chunks that may wait for the writer.
const WAITING: usize = 32;

/// The capturing side of a packet ring.
pub struct RingFeed {
    sender: SyncSender<Chunk>,
    empty: Arc<Mutex<Receiver<Vec<u8>>>>,
    bytes: Vec<u8>,
    packets: u64,
    since: Option<Instant>,
    flush: Duration,
    snaplen: usize,
    dropped: Arc<AtomicU64>,
}

struct Chunk {
    bytes: Vec<u8>,
    packets: u64,
}

// A packet in a chunk: this head, then its octets.
const HEAD: usize = 8 + 4 + 4 + 2 + 1 + 37;

impl RingFeed {
    /// The capturing side for another worker of the same sensor.
    pub fn another(&self) -> Self {
        Self {
            sender: self.sender.clone(),
            empty: Arc::clone(&self.empty),
            bytes: Vec::new(),
            packets: 0,
            since: None,
            flush: self.flush,
            snaplen: self.snaplen,
            dropped: Arc::clone(&self.dropped),
        }
    }

    /// Keeps a packet.
    pub fn packet(&mut self, packet: &Packet<'_>, key: Option<&FlowKey>) {
        let data = &packet.data[..packet.data.len().min(self.snaplen)];
        // The card took the tag out of the frame; on disk it is back in.
        let tagged = packet
            .vlan_tci
            .filter(|_| packet.link == LinkType::Ethernet && data.len() >= 12);
        let extra = if tagged.is_some() { 4 } else { 0 };
        self.bytes.extend(packet.time.to_le_bytes());
        self.bytes.extend(((data.len() + extra) as u32).to_le_bytes());
        self.bytes.extend((packet.wire_len + extra as u32).to_le_bytes());
        self.bytes.extend(packet.link.number().to_le_bytes());
        match key {
            None => self.bytes.extend([0; 38]),
            Some(key) => {
                self.bytes.push(if key.src.starts_with(&V4_PREFIX) { 4 } else { 6 });
                self.bytes.extend(key.src);
                self.bytes.extend(key.dst);
                self.bytes.extend(key.src_port.to_le_bytes());
                self.bytes.extend(key.dst_port.to_le_bytes());
                self.bytes.push(key.protocol);
            }
        }
        match tagged {
            None => self.bytes.extend_from_slice(data),
            Some(tci) => {
                self.bytes.extend_from_slice(&data[..12]);
                self.bytes.extend([0x81, 0]);
                self.bytes.extend(tci.to_be_bytes());
                self.bytes.extend_from_slice(&data[12..]);
            }
        }
        self.packets += 1;
        if self.bytes.len() >= CHUNK {
            self.flush();
        }
    }

    /// Hands over what has waited long enough.
    pub fn flush_due(&mut self, now: Instant) {
        if self.bytes.is_empty() {
            return;
        }
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) >= self.flush {
            self.flush();
        }
    }

    /// Hands over everything.
    pub fn flush(&mut self) {
        self.since = None;
        if self.packets == 0 {
            return;
        }
        let empty = self.empty.lock().unwrap_or_else(PoisonError::into_inner).try_recv();
        let fresh = empty.unwrap_or_else(|_| Vec::with_capacity(CHUNK + (64 << 10)));
        let chunk = Chunk {
            bytes: std::mem::replace(&mut self.bytes, fresh),
            packets: std::mem::take(&mut self.packets),
        };
        if let Err(TrySendError::Full(chunk) | TrySendError::Disconnected(chunk)) = self.sender.try_send(chunk) {
            self.dropped.fetch_add(chunk.packets, Ordering::Relaxed);
            self.bytes = chunk.bytes;
            self.bytes.clear();
        }
    }
}

const V4_PREFIX: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
