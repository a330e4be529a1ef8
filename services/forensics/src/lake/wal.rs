//! Write-ahead segments: files to which raw flow batches are appended before they are acknowledged.
//!
//! A record is a fixed header and the Arrow IPC message as it came. All numbers are little-endian.
//!
//! | bytes | what |
//! |---|---|
//! | 4 | length of the payload |
//! | 4 | CRC-32 (ISO-HDLC) over everything that follows |
//! | 16 | id of the message |
//! | 4 | rows |
//! | 8 | earliest first packet, nanoseconds since 1970 |
//! | 8 | latest last packet |
//! | … | payload |
//!
//! A process that dies while it appends leaves a tail whose length or checksum does not fit; it was never
//! acknowledged and is cut off at the next start.

use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::fs::FileExt as _,
    path::Path,
};

use uuid::Uuid;

/// Begins every segment.
pub(crate) const MAGIC: [u8; 8] = *b"GARWAL01";
/// Bytes of a record's header.
pub(crate) const HEADER: usize = 44;
/// No payload is larger.
pub(crate) const MAX_PAYLOAD: usize = garrison_flow::MAX_ENCODED_BYTES;

/// Where a record is and what it covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    /// Id of the message.
    pub(crate) id: Uuid,
    /// Where its payload begins.
    pub(crate) offset: u64,
    /// Bytes of the payload.
    pub(crate) length: u32,
    /// What is in it.
    pub(crate) extent: Extent,
}

/// Rows and times that a batch, a segment or a file covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Number of rows.
    pub rows: u64,
    /// Earliest first packet, nanoseconds since 1970.
    pub first_seen: i64,
    /// Latest last packet, nanoseconds since 1970.
    pub last_seen: i64,
}

impl Extent {
    /// Nothing at all.
    pub const EMPTY: Self = Self {
        rows: 0,
        first_seen: i64::MAX,
        last_seen: i64::MIN,
    };

    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            rows: self.rows + other.rows,
            first_seen: self.first_seen.min(other.first_seen),
            last_seen: self.last_seen.max(other.last_seen),
        }
    }
}

/// Appends a record's bytes to a buffer.
pub(crate) fn encode(buffer: &mut Vec<u8>, id: Uuid, extent: Extent, payload: &[u8]) {
    let start = buffer.len();
    buffer.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    buffer.extend_from_slice(&[0; 4]);
    buffer.extend_from_slice(id.as_bytes());
    buffer.extend_from_slice(&(extent.rows as u32).to_le_bytes());
    buffer.extend_from_slice(&extent.first_seen.to_le_bytes());
    buffer.extend_from_slice(&extent.last_seen.to_le_bytes());
    buffer.extend_from_slice(payload);
    let crc = crc32fast::hash(&buffer[start + 8..]);
    buffer[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
}

/// What was found in a segment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Recovered {
    /// Whole records.
    pub(crate) records: Vec<Record>,
    /// Bytes up to the end of the last of them; 0 when not even the magic is there.
    pub(crate) length: u64,
    /// The first bad record is all there and only its checksum is wrong: not a torn write but damage.
    pub(crate) damaged: bool,
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

/// Reads a segment up to the first record that is not whole.
pub(crate) fn recover(path: &Path) -> io::Result<Recovered> {
    let mut file = io::BufReader::with_capacity(1 << 20, File::open(path)?);
    let size = file.get_ref().metadata()?.len();
    let mut found = Recovered {
        records: Vec::new(),
        length: 0,
        damaged: false,
    };
    let mut magic = [0; 8];
    if size < 8 || file.read_exact(&mut magic).is_err() || magic != MAGIC {
        found.damaged = size >= 8;
        return Ok(found);
    }
    found.length = 8;
    let mut record = Vec::new();
    while size - found.length >= HEADER as u64 {
        record.resize(HEADER, 0);
        file.read_exact(&mut record)?;
        let length = u32::from_le_bytes(array(&record, 0));
        let crc = u32::from_le_bytes(array(&record, 4));
        if length as usize > MAX_PAYLOAD {
            found.damaged = true;
            break;
        }
        if size - found.length - (HEADER as u64) < u64::from(length) {
            break;
        }
        record.resize(HEADER + length as usize, 0);
        file.read_exact(&mut record[HEADER..])?;
        if crc32fast::hash(&record[8..]) != crc {
            found.damaged = true;
            break;
        }
        found.records.push(Record {
            id: Uuid::from_bytes(array(&record, 8)),
            offset: found.length + HEADER as u64,
            length,
            extent: Extent {
                rows: u64::from(u32::from_le_bytes(array(&record, 24))),
                first_seen: i64::from_le_bytes(array(&record, 28)),
                last_seen: i64::from_le_bytes(array(&record, 36)),
            },
        });
        found.length += (HEADER + length as usize) as u64;
    }
    Ok(found)
}

/// Reads a record's payload.
pub(crate) fn read(file: &File, record: &Record) -> io::Result<Vec<u8>> {
    let mut payload = vec![0; record.length as usize];
    file.read_exact_at(&mut payload, record.offset)?;
    Ok(payload)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn segment(payloads: &[Vec<u8>]) -> (Vec<u8>, Vec<Uuid>) {
        let mut bytes = MAGIC.to_vec();
        let mut ids = Vec::new();
        for (i, payload) in payloads.iter().enumerate() {
            let id = Uuid::from_u128(i as u128 + 1);
            let extent = Extent {
                rows: i as u64,
                first_seen: -5,
                last_seen: 7,
            };
            encode(&mut bytes, id, extent, payload);
            ids.push(id);
        }
        (bytes, ids)
    }

    fn recovered(bytes: &[u8]) -> (Recovered, tempfile::NamedTempFile) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        (recover(file.path()).unwrap(), file)
    }

    proptest! {
        #[test]
        fn a_cut_loses_only_the_records_it_cuts(
            payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..6),
            cut in any::<prop::sample::Index>()
        ) {
            let (bytes, ids) = segment(&payloads);
            let cut = cut.index(bytes.len() + 1);
            let (found, file) = recovered(&bytes[..cut]);
            let mut end = MAGIC.len();
            let whole = payloads.iter().take_while(|p| { end += HEADER + p.len(); end <= cut }).count();
            prop_assert_eq!(found.records.len(), if cut < 8 { 0 } else { whole });
            let open = File::open(file.path()).unwrap();
            for ((record, id), payload) in found.records.iter().zip(&ids).zip(&payloads) {
                prop_assert_eq!(record.id, *id);
                prop_assert_eq!(&read(&open, record).unwrap(), payload);
                prop_assert_eq!(record.extent.last_seen, 7);
            }
        }

        #[test]
        fn a_flipped_byte_never_yields_a_changed_record(
            payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..100), 1..5),
            at in any::<prop::sample::Index>(), mask in 1u8..=255
        ) {
            let (mut bytes, _) = segment(&payloads);
            let at = at.index(bytes.len());
            bytes[at] ^= mask;
            let (found, file) = recovered(&bytes);
            let open = File::open(file.path()).unwrap();
            prop_assert!(found.records.len() < payloads.len());
            for (record, payload) in found.records.iter().zip(&payloads) {
                prop_assert_eq!(&read(&open, record).unwrap(), payload);
            }
        }

        #[test]
        fn garbage_does_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let (found, _file) = recovered(&[&MAGIC[..], &bytes].concat());
            prop_assert!(found.length <= 8 + bytes.len() as u64);
            recovered(&bytes);
        }
    }
}
