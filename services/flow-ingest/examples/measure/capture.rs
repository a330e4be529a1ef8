//! A large capture of real traffic: the captures of a corpus side by side, again and again with other addresses.

use std::{
    ffi::OsStr,
    fs,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use flow_ingest::{capture::CaptureFile, domain::packet::LinkType};

/// How long a round lasts, nanoseconds: longer captures are played faster.
const ROUND: i64 = 10_000_000_000;
const START: i64 = 1_700_000_000_000_000_000;
/// Longer frames, as segmentation offload leaves them, are more than other tools take.
const LONGEST: usize = 65_535;

struct Frame {
    at: i64,
    data: Vec<u8>,
    wire: u32,
}

/// What was made.
pub struct Made {
    pub captures: usize,
    pub left_out: usize,
    pub rounds: u32,
    pub packets: u64,
    pub bytes: u64,
}

/// Writes a capture of about `bytes` octets.
pub fn make(corpora: &Path, out: &Path, bytes: u64) -> Result<Made, String> {
    let mut frames = Vec::new();
    let (mut captures, mut left_out) = (0, 0);
    for folder in ["packets/ndpi", "packets/zeek"] {
        for path in files(&corpora.join(folder)).map_err(|error| format!("{folder}: {error}"))? {
            match one(&path) {
                Some(read) => {
                    captures += 1;
                    frames.extend(read);
                }
                None => left_out += 1,
            }
        }
    }
    if frames.is_empty() {
        return Err(format!("{} has no captures with Ethernet frames", corpora.display()));
    }
    frames.sort_by_key(|frame| frame.at);
    let mut made = Made {
        captures,
        left_out,
        rounds: 0,
        packets: 0,
        bytes: 24,
    };
    write(&frames, out, bytes, &mut made).map_err(|error| format!("{}: {error}", out.display()))?;
    Ok(made)
}

fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let known = ["pcap", "pcapng", "cap", "trace"].map(OsStr::new);
        if path.extension().is_some_and(|end| known.contains(&end)) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

// The frames of a capture of Ethernet. What cannot be read to its end is left out whole.
fn one(path: &Path) -> Option<Vec<Frame>> {
    let mut file = CaptureFile::open(path).ok()?;
    let mut frames: Vec<Frame> = Vec::new();
    let (mut first, mut latest) = (None, 0);
    while let Some(burst) = file.burst().ok()? {
        for packet in burst.packets() {
            if packet.link != LinkType::Ethernet || packet.data.len() > LONGEST {
                return None;
            }
            // Times that go back are moved, so that sorting keeps the order of the file.
            latest = (packet.time - *first.get_or_insert(packet.time)).max(latest);
            frames.push(Frame {
                at: latest,
                data: packet.data.to_vec(),
                wire: packet.wire_len,
            });
        }
    }
    if latest >= ROUND {
        for frame in &mut frames {
            frame.at = (i128::from(frame.at) * i128::from(ROUND - 1) / i128::from(latest)) as i64;
        }
    }
    Some(frames)
}

fn write(frames: &[Frame], out: &Path, bytes: u64, made: &mut Made) -> io::Result<()> {
    let mut file = BufWriter::with_capacity(1 << 20, fs::File::create(out)?);
    for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 262_144, 1] {
        file.write_all(&word.to_le_bytes())?;
    }
    let mut copy = Vec::new();
    while made.bytes < bytes && made.rounds < 1 << 16 {
        let began = START + i64::from(made.rounds) * ROUND;
        for frame in frames {
            copy.clear();
            copy.extend_from_slice(&frame.data);
            readdress(&mut copy, made.rounds as u16);
            let micros = (began + frame.at) / 1000;
            let (seconds, fraction) = (micros / 1_000_000, micros % 1_000_000);
            for word in [seconds as u32, fraction as u32, copy.len() as u32, frame.wire] {
                file.write_all(&word.to_le_bytes())?;
            }
            file.write_all(&copy)?;
            made.packets += 1;
            made.bytes += 16 + copy.len() as u64;
        }
        made.rounds += 1;
    }
    file.flush()
}

/// Gives a frame's outer addresses other values, those of each round, and corrects the checksums (RFC 1624). Addresses
/// of groups stay.
fn readdress(frame: &mut [u8], round: u16) {
    let mut at = 12;
    while matches!(half(frame, at), Some(0x8100 | 0x88a8)) {
        at += 4;
    }
    let (kind, at) = (half(frame, at), at + 2);
    let [high, low] = round.to_be_bytes();
    let (addresses, header, later) = match kind {
        Some(0x0800) if frame.len() >= at + 20 => {
            let place = half(frame, at + 6).unwrap_or(0);
            let header = usize::from(frame[at] & 0x0f) * 4;
            ([at + 12, at + 16], header, place & 0x1fff != 0)
        }
        Some(0x86dd) if frame.len() >= at + 40 => ([at + 8, at + 24], 40, false),
        _ => return,
    };
    let four = kind == Some(0x0800);
    let protocol = frame[at + if four { 9 } else { 6 }];
    let checksum = match protocol {
        _ if later => None,
        6 => Some(at + header + 16),
        17 => Some(at + header + 6).filter(|at| half(frame, *at) != Some(0)),
        58 if !four => Some(at + header + 2),
        _ => None,
    };
    for address in addresses {
        let first = frame[address];
        let group = if four {
            first == 0 || first >= 224
        } else {
            first == 0xff
        };
        if group {
            continue;
        }
        // IPv4: the second and third octet. IPv6: those of the subnet's beginning.
        let place = address + if four { 1 } else { 4 };
        for (place, with) in [(place, low), (place + 1, high)] {
            let word = place & !1 | address & 1;
            let word = if word > place { word - 2 } else { word };
            let old = half(frame, word).unwrap_or(0);
            frame[place] ^= with;
            let new = half(frame, word).unwrap_or(0);
            if four {
                adjust(frame, at + 10, old, new);
            }
            if let Some(checksum) = checksum {
                adjust(frame, checksum, old, new);
            }
        }
    }
}

fn half(frame: &[u8], at: usize) -> Option<u16> {
    frame.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]]))
}

fn adjust(frame: &mut [u8], at: usize, old: u16, new: u16) {
    let Some(sum) = half(frame, at) else { return };
    let mut next = u32::from(!sum) + u32::from(!old) + u32::from(new);
    next = (next & 0xffff) + (next >> 16);
    next = (next & 0xffff) + (next >> 16);
    frame[at..at + 2].copy_from_slice(&(!(next as u16)).to_be_bytes());
}
