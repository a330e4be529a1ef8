use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::{
    CHUNK, Chunk, HEAD, RingFeed, WAITING,
    format::{self, Entry, Index, NO_FLOW},
};
use crate::{
    config::RingConfig,
    domain::{key::FlowKey, packet::LinkType},
};

// How long a ring that could not write waits before it tries again.
const RETRY: Duration = Duration::from_secs(2);

/// The packet ring of a sensor.
pub struct PacketRing {
    pub(super) folder: PathBuf,
    pub(super) limit: u64,
    segment_bytes: u64,
    pub(super) state: Mutex<State>,
    dropped: Arc<AtomicU64>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) closed: VecDeque<Segment>,
    pub(super) active: Option<Active>,
    problem: Option<String>,
}

#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    pub(super) range: (i64, i64),
}

pub(super) struct Active {
    pub(super) path: PathBuf,
    file: File,
    pub(super) bytes: u64,
    pub(super) index: Index,
    links: Vec<LinkType>,
}

impl PacketRing {
    /// Opens the ring in its folder, with what an earlier run left there, and starts its writer.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn open(folder: &Path, config: &RingConfig) -> io::Result<(Arc<Self>, RingFeed, JoinHandle<()>)> {
        fs::create_dir_all(folder)?;
        let ring = Arc::new(Self {
            folder: folder.to_owned(),
            limit: config.bytes,
            segment_bytes: config.segment_bytes,
            state: Mutex::default(),
            dropped: Arc::default(),
        });
        ring.recover()?;
        let (sender, chunks) = sync_channel(WAITING);
        let (used, empty) = sync_channel(WAITING);
        let feed = RingFeed {
            sender,
            empty: Arc::new(Mutex::new(empty)),
            bytes: Vec::with_capacity(CHUNK + (64 << 10)),
            packets: 0,
            since: None,
            flush: Duration::from_millis(config.flush_ms),
            snaplen: config.snaplen as usize,
            dropped: Arc::clone(&ring.dropped),
        };
        let writer = Arc::clone(&ring);
        let thread = std::thread::Builder::new()
            .name("packet-ring".to_owned())
            .spawn(move || writer.run(&chunks, &used))?;
        Ok((ring, feed, thread))
    }

    /// Packets that were not kept.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Why packets are not being kept. `None` while they are.
    pub fn problem(&self) -> Option<String> {
        self.lock().problem.clone()
    }

    /// Oldest and newest packet, nanoseconds since the epoch.
    pub fn range(&self) -> Option<(i64, i64)> {
        let state = self.lock();
        let active = state.active.as_ref().and_then(|active| active.index.range());
        state
            .closed
            .iter()
            .map(|segment| segment.range)
            .chain(active)
            .reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
    }

    /// Octets on disk.
    pub fn bytes(&self) -> u64 {
        let state = self.lock();
        let active = state.active.as_ref().map_or(0, |active| active.bytes);
        state.closed.iter().map(|segment| segment.bytes).sum::<u64>() + active
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recover(&self) -> io::Result<()> {
        let mut paths: Vec<PathBuf> = fs::read_dir(&self.folder)?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| path.extension().is_some_and(|e| e == "pcapng"))
            .collect();
        // Names begin with the time of the segment's first packet in 19 digits.
        paths.sort();
        let mut state = self.lock();
        for path in paths {
            match recover_segment(&path) {
                Ok(Some(segment)) => state.closed.push_back(segment),
                Ok(None) => remove(&path),
                Err(error) => {
                    tracing::warn!(%error, path = %path.display(), "GAR-FLOW-0022: a segment of the packet ring cannot be read; it is left out");
                }
            }
        }
        Ok(())
    }

    fn run(&self, chunks: &Receiver<Chunk>, used: &SyncSender<Vec<u8>>) {
        let mut out = Vec::with_capacity(CHUNK * 2);
        let mut paused: Option<Instant> = None;
        while let Ok(mut chunk) = chunks.recv() {
            if paused.is_some_and(|since| since.elapsed() < RETRY) {
                self.dropped.fetch_add(chunk.packets, Ordering::Relaxed);
            } else {
                match self.store(&chunk.bytes, &mut out) {
                    Ok(()) => {
                        if paused.take().is_some() {
                            self.lock().problem = None;
                            tracing::info!(folder = %self.folder.display(), "the packet ring keeps packets again");
                        }
                    }
                    Err(error) => {
                        self.dropped.fetch_add(chunk.packets, Ordering::Relaxed);
                        if paused.is_none() {
                            tracing::error!(%error, folder = %self.folder.display(), "GAR-FLOW-0020: the packet ring cannot write; packets are counted, not kept");
                        }
                        paused = Some(Instant::now());
                        self.lock().problem = Some(format!("GAR-FLOW-0020: {error}"));
                    }
                }
            }
            chunk.bytes.clear();
            // A full return path only costs a later allocation.
            let _ = used.try_send(chunk.bytes);
        }
        self.close_active(&mut self.lock());
    }

    fn store(&self, mut bytes: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        let mut state = self.lock();
        if state
            .active
            .as_ref()
            .is_some_and(|active| active.bytes >= self.segment_bytes)
        {
            self.close_active(&mut state);
        }
        if state.active.is_none() {
            self.make_room(&mut state);
            let Some(first) = bytes.first_chunk::<8>() else {
                return Ok(());
            };
            state.active = Some(Active::create(&self.folder, i64::from_le_bytes(*first))?);
        }
        let State { active, .. } = &mut *state;
        let Some(active) = active else { return Ok(()) };
        out.clear();
        let before = (active.index.entries.len(), active.index.flows.len(), active.links.len());
        if active.bytes == 0 {
            format::section(out);
        }
        while let Some((entry, key, data, rest)) = take(bytes) {
            bytes = rest;
            let interface = match active.links.iter().position(|link| *link == entry.link) {
                Some(number) => number,
                None => {
                    format::interface(out, entry.link);
                    active.links.push(entry.link);
                    active.links.len() - 1
                }
            };
            let offset = active.bytes + out.len() as u64;
            let start = out.len();
            format::packet(out, interface as u32, entry.time, entry.length, &[data]);
            let entry = Entry {
                offset: offset as u32,
                length: (out.len() - start) as u32,
                ..entry
            };
            active.index.add(key, entry);
        }
        if let Err(error) = active.file.write_all(out) {
            // What was written of the chunk is taken back, so that the segment stays whole.
            active.index.entries.truncate(before.0);
            active.links.truncate(before.2);
            let kept = active.file.set_len(active.bytes);
            let sought = io::Seek::seek(&mut active.file, io::SeekFrom::Start(active.bytes));
            if kept.and(sought.map(|_| ())).is_err() || active.bytes == 0 {
                let path = active.path.clone();
                state.active = None;
                remove(&path);
            }
            return Err(error);
        }
        active.bytes += out.len() as u64;
        Ok(())
    }

    fn make_room(&self, state: &mut State) {
        let mut bytes: u64 = state.closed.iter().map(|segment| segment.bytes).sum();
        while bytes + self.segment_bytes + CHUNK as u64 > self.limit {
            let Some(oldest) = state.closed.pop_front() else {
                return;
            };
            bytes -= oldest.bytes;
            remove(&oldest.path);
        }
    }

    fn close_active(&self, state: &mut State) {
        let Some(active) = state.active.take() else {
            return;
        };
        let Some(range) = active.index.range() else {
            remove(&active.path);
            return;
        };
        // Without its index a segment is read whole when it is asked for.
        if let Err(error) = active.index.write(&active.path.with_extension("idx")) {
            tracing::warn!(%error, path = %active.path.display(), "the index of a packet ring segment could not be written");
        }
        state.closed.push_back(Segment {
            path: active.path,
            bytes: active.bytes,
            range,
        });
    }
}

impl Active {
    fn create(folder: &Path, first: i64) -> io::Result<Self> {
        let mut time = first.max(0);
        loop {
            let path = folder.join(format!("{time:019}.pcapng"));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => {
                    return Ok(Self {
                        path,
                        file,
                        bytes: 0,
                        index: Index::default(),
                        links: Vec::new(),
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => time += 1,
                Err(error) => return Err(error),
            }
        }
    }
}

fn recover_segment(path: &Path) -> io::Result<Option<Segment>> {
    let index_path = path.with_extension("idx");
    let index = match Index::read(&index_path) {
        Ok(index) => index,
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let index = match index {
        Some(index) => index,
        None => {
            let data = fs::read(path)?;
            let (index, whole) = Index::rebuild(&data);
            OpenOptions::new().write(true).open(path)?.set_len(whole as u64)?;
            // On a full disk it is rebuilt again next time.
            let _ = index.write(&index_path);
            index
        }
    };
    let bytes = fs::metadata(path)?.len();
    Ok(index.range().map(|range| Segment {
        path: path.to_owned(),
        bytes,
        range,
    }))
}

fn remove(path: &Path) {
    for path in [path.to_owned(), path.with_extension("idx")] {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, path = %path.display(), "a packet ring segment could not be removed");
            }
            _ => {}
        }
    }
}

type Taken<'a> = (Entry, Option<(FlowKey, u8)>, &'a [u8], &'a [u8]);

// Reads a packet that `RingFeed::packet` wrote.
fn take(bytes: &[u8]) -> Option<Taken<'_>> {
    let head = bytes.get(..HEAD)?;
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let captured = word(8) as usize;
    let data = bytes.get(HEAD..HEAD + captured)?;
    let entry = Entry {
        time: i64::from_le_bytes(head[..8].try_into().ok()?),
        flow: NO_FLOW,
        offset: 0,
        length: word(12),
        link: LinkType::from_number(u32::from(u16::from_le_bytes([head[16], head[17]])))?,
    };
    let version = head[18];
    let key = FlowKey {
        src: head[19..35].try_into().ok()?,
        dst: head[35..51].try_into().ok()?,
        src_port: u16::from_le_bytes([head[51], head[52]]),
        dst_port: u16::from_le_bytes([head[53], head[54]]),
        protocol: head[55],
    };
    Some((
        entry,
        (version != 0).then_some((key, version)),
        data,
        &bytes[HEAD + captured..],
    ))
}
