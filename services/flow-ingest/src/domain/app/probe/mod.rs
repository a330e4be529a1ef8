//! Probes: each looks at the first payload octets of one side, allocates nothing, and says whether they surely are its
//! protocol. What is no protocol's stays unknown.

pub mod data;
pub mod media;
pub mod name;
pub mod network;
pub mod remote;
#[cfg(test)]
pub(super) mod tests;
pub mod text;
pub mod vpn;

/// What a probe is shown.
#[derive(Clone, Copy, Debug)]
pub struct Look<'a> {
    /// The first octets of a side's stream, or a datagram, as captured.
    pub data: &'a [u8],
    /// How long the datagram is; for a stream the length of `data`.
    pub claimed: u32,
    /// 0 for what the opener sent.
    pub side: usize,
    /// The opener's and the called port.
    pub ports: (u16, u16),
    /// One of the ports is one of the protocol's.
    pub on_port: bool,
}

/// What a probe says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guess {
    /// It is that protocol.
    Yes,
    /// It could be, once more octets have come.
    Maybe,
    /// These octets do not show it.
    No,
}

impl Guess {
    /// From a condition.
    pub fn sure(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }

    // From what is known of a beginning: `None` while too few octets have come.
    fn begins(known: Option<bool>) -> Self {
        match known {
            Some(true) => Self::Yes,
            Some(false) => Self::No,
            None => Self::Maybe,
        }
    }
}

// Whether octets begin with a mark, as far as they have come.
fn begins_with(data: &[u8], mark: &[u8]) -> Guess {
    match data.len() >= mark.len() {
        true => Guess::sure(data.starts_with(mark)),
        false if mark.starts_with(data) => Guess::Maybe,
        false => Guess::No,
    }
}

fn be16(data: &[u8], at: usize) -> Option<u16> {
    data.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]]))
}

fn be32(data: &[u8], at: usize) -> Option<u32> {
    data.get(at..at + 4)
        .map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
}

// The first line, without its end.
fn line(data: &[u8]) -> Option<&[u8]> {
    let end = memchr::memchr(b'\n', &data[..data.len().min(1024)])?;
    Some(data[..end].strip_suffix(b"\r").unwrap_or(&data[..end]))
}

fn printable(data: &[u8]) -> bool {
    data.iter().all(|&b| matches!(b, 0x20..=0x7e | b'\t' | b'\r' | b'\n'))
}

fn contains(data: &[u8], part: &[u8]) -> bool {
    data.windows(part.len()).any(|window| window == part)
}

// A BER tag and length (X.690): where the content begins, and how long it is.
fn ber(data: &[u8], at: usize) -> Option<(u8, usize, usize)> {
    let tag = *data.get(at)?;
    let first = *data.get(at + 1)?;
    let (length, from) = match first {
        0..=0x7f => (usize::from(first), at + 2),
        0x81..=0x84 => {
            let octets = usize::from(first & 0x7f);
            let bytes = data.get(at + 2..at + 2 + octets)?;
            let length = bytes.iter().fold(0, |sum, &b| sum << 8 | usize::from(b));
            (length, at + 2 + octets)
        }
        _ => return None,
    };
    Some((tag, from, length))
}
