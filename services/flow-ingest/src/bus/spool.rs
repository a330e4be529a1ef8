//! Messages on disk while the broker is away: segment files, oldest first, within a bound, whole after a crash.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use chrono::DateTime;
use garrison_bus::Message;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::queue::Item;
use crate::app::sensor::Sensor;

/// Octets of a segment.
const SEGMENT: u64 = 4 << 20;
/// Longest message that is believed when a segment is read.
const MAX_MESSAGE: usize = 64 << 20;

/// The spool.
pub struct Spool {
    folder: PathBuf,
    limit: u64,
    segments: VecDeque<Segment>,
    writer: Option<File>,
    next: u64,
    reported: bool,
}

struct Segment {
    path: PathBuf,
    bytes: u64,
    // What giving it up would cost this run's sensors.
    rows: Vec<(Option<Arc<Sensor>>, u64)>,
}

/// Removes a segment's file when each of its messages is settled. One that is not settled stays for the next run.
pub struct SegmentGuard {
    path: PathBuf,
    left: AtomicUsize,
}

impl SegmentGuard {
    pub(super) fn settled(&self) {
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(%error, path = %self.path.display(), "a spool segment could not be removed");
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Head {
    id: Uuid,
    subject: String,
    kind: String,
    source: String,
    time: i64,
    content_type: String,
    traceparent: Option<String>,
    rows: u64,
    sensor: String,
    run: Uuid,
}

impl Spool {
    /// Opens the spool in its folder with what an earlier run left there.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn open(folder: &Path, limit: u64) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let mut paths: Vec<PathBuf> = fs::read_dir(folder)?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| path.extension().is_some_and(|e| e == "spool"))
            .collect();
        paths.sort();
        let mut spool = Self {
            folder: folder.to_owned(),
            limit,
            segments: VecDeque::new(),
            writer: None,
            next: 0,
            reported: false,
        };
        for path in paths {
            let number = path
                .file_stem()
                .and_then(|s| s.to_str())
                .and_then(|s| s.parse::<u64>().ok());
            let Some(number) = number else { continue };
            spool.next = spool.next.max(number + 1);
            let bytes = fs::metadata(&path)?.len();
            spool.segments.push_back(Segment {
                path,
                bytes,
                rows: Vec::new(),
            });
        }
        Ok(spool)
    }

    /// Nothing is on disk that was not taken.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Octets on disk that were not taken.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// Appends a message. Gives back what is given up: this message when the disk takes no more. Oldest segments that
    /// are given up for the bound are counted here.
    pub(super) fn append(&mut self, item: Item) -> Vec<Item> {
        let record = encode(&item);
        while self.bytes() + record.len() as u64 > self.limit && self.segments.len() > 1 {
            self.drop_oldest();
        }
        if self.bytes() + record.len() as u64 > self.limit {
            return vec![item];
        }
        match self.write(&record) {
            Ok(()) => {
                self.reported = false;
                if let Some(segment) = self.segments.back_mut() {
                    segment.bytes += record.len() as u64;
                    segment.rows.push((item.sensor.clone(), item.rows));
                }
                Vec::new()
            }
            Err(error) => {
                if !self.reported {
                    tracing::error!(%error, folder = %self.folder.display(), "GAR-FLOW-0030: the spool cannot write");
                    self.reported = true;
                }
                vec![item]
            }
        }
    }

    fn write(&mut self, record: &[u8]) -> io::Result<()> {
        let full = self.segments.back().is_some_and(|segment| segment.bytes >= SEGMENT);
        if self.writer.is_none() || full {
            let path = self.folder.join(format!("{:016}.spool", self.next));
            self.next += 1;
            let file = OpenOptions::new().create_new(true).write(true).open(&path)?;
            self.writer = Some(file);
            self.segments.push_back(Segment {
                path,
                bytes: 0,
                rows: Vec::new(),
            });
        }
        let (Some(file), Some(segment)) = (&mut self.writer, self.segments.back()) else {
            return Err(io::Error::other("no segment is open"));
        };
        file.write_all(record).inspect_err(|_| {
            // Half a record at the end would only be skipped when it is read, but it takes room.
            let _ = file.set_len(segment.bytes);
            let _ = io::Seek::seek(file, io::SeekFrom::Start(segment.bytes));
        })
    }

    fn drop_oldest(&mut self) {
        let Some(segment) = self.segments.pop_front() else {
            return;
        };
        if self.segments.is_empty() {
            self.writer = None;
        }
        let rows: u64 = segment.rows.iter().map(|(_, rows)| rows).sum();
        tracing::error!(
            records = rows,
            "GAR-FLOW-0031: records are lost: the spool on disk is full"
        );
        for (sensor, rows) in &segment.rows {
            if let Some(sensor) = sensor {
                sensor.lost(*rows);
            }
        }
        if let Err(error) = fs::remove_file(&segment.path) {
            tracing::warn!(%error, path = %segment.path.display(), "a spool segment could not be removed");
        }
    }

    /// Takes the messages of the oldest segment. `None` when there is none.
    pub(super) fn take_segment(&mut self, sensors: &[Arc<Sensor>], run: Uuid) -> Option<Vec<Item>> {
        let segment = self.segments.pop_front()?;
        if self.segments.is_empty() {
            self.writer = None;
        }
        let data = match fs::read(&segment.path) {
            Ok(data) => data,
            Err(error) => {
                tracing::error!(%error, path = %segment.path.display(), "GAR-FLOW-0031: records are lost: a spool segment cannot be read");
                for (sensor, rows) in &segment.rows {
                    if let Some(sensor) = sensor {
                        sensor.lost(*rows);
                    }
                }
                return Some(Vec::new());
            }
        };
        let mut items = Vec::new();
        let mut rest = &data[..];
        while let Some((head, payload, after)) = decode(rest) {
            rest = after;
            let sensor = match head.run == run {
                true => sensors.iter().find(|sensor| sensor.id == head.sensor).cloned(),
                false => None,
            };
            items.push(Item {
                rows: head.rows,
                sensor,
                oldest: None,
                span: tracing::Span::none(),
                run: head.run,
                guard: None,
                order: 0,
                message: Message {
                    id: head.id,
                    subject: head.subject,
                    kind: head.kind,
                    source: head.source,
                    time: DateTime::from_timestamp_nanos(head.time),
                    content_type: head.content_type.into(),
                    payload: Bytes::copy_from_slice(payload),
                    traceparent: head.traceparent,
                },
            });
        }
        if !rest.is_empty() {
            tracing::warn!(path = %segment.path.display(), octets = rest.len(), "the end of a spool segment is not whole; left out");
        }
        let guard = Arc::new(SegmentGuard {
            path: segment.path,
            left: AtomicUsize::new(items.len() + 1),
        });
        for item in &mut items {
            item.guard = Some(Arc::clone(&guard));
        }
        // The reader's own share, so that a segment without messages goes too.
        guard.settled();
        Some(items)
    }

    /// Writes messages for the next run. Gives back those there is no room for.
    pub(super) fn keep_for_next_run(&mut self, items: Vec<Item>) -> Vec<Item> {
        let mut gone = Vec::new();
        for item in items {
            // One that came from disk is still there.
            if item.guard.is_none() {
                gone.extend(self.append(item));
            }
        }
        if let Some(file) = &self.writer {
            // What cannot be synced is still in the kernel's cache.
            let _ = file.sync_data();
        }
        gone
    }
}

// A record: length of what follows the checksum, 8 octets of SHA-256 over it, length of the head, head, payload.
fn encode(item: &Item) -> Vec<u8> {
    let message = &item.message;
    let head = Head {
        id: message.id,
        subject: message.subject.clone(),
        kind: message.kind.clone(),
        source: message.source.clone(),
        time: message.time.timestamp_nanos_opt().unwrap_or_default(),
        content_type: message.content_type.to_string(),
        traceparent: message.traceparent.clone(),
        rows: item.rows,
        sensor: item.sensor.as_ref().map(|sensor| sensor.id.clone()).unwrap_or_default(),
        run: item.run,
    };
    // Plain strings and numbers always serialise.
    let head = serde_json::to_vec(&head).unwrap_or_default();
    let mut body = Vec::with_capacity(4 + head.len() + message.payload.len());
    body.extend((head.len() as u32).to_le_bytes());
    body.extend(head);
    body.extend_from_slice(&message.payload);
    let mut record = Vec::with_capacity(12 + body.len());
    record.extend((body.len() as u32).to_le_bytes());
    record.extend(&Sha256::digest(&body)[..8]);
    record.extend(body);
    record
}

fn decode(data: &[u8]) -> Option<(Head, &[u8], &[u8])> {
    let length = u32::from_le_bytes(*data.first_chunk::<4>()?) as usize;
    let sum = data.get(4..12)?;
    if length > MAX_MESSAGE {
        return None;
    }
    let body = data.get(12..12 + length)?;
    if Sha256::digest(body)[..8] != *sum {
        return None;
    }
    let head_length = u32::from_le_bytes(*body.first_chunk::<4>()?) as usize;
    let head = serde_json::from_slice(body.get(4..4 + head_length)?).ok()?;
    Some((head, body.get(4 + head_length..)?, &data[12 + length..]))
}
