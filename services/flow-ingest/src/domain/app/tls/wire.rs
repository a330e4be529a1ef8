//! Records and messages of TLS as they lie in a stream, and the lists in a hello.

use super::HANDSHAKE;

pub(super) struct Record<'a> {
    body: &'a [u8],
    whole: bool,
}

impl<'a> Record<'a> {
    // The record at the front, as far as it has come. `None` while its header has not.
    fn at(data: &'a [u8]) -> Option<Self> {
        let length = usize::from(u16::from_be_bytes([*data.get(3)?, *data.get(4)?]));
        let body = &data[5..data.len().min(5 + length)];
        Some(Self {
            body,
            whole: body.len() == length,
        })
    }
}

// The handshake message at the front, if all of it is here.
pub(super) fn message(data: &[u8]) -> Option<&[u8]> {
    let header = data.get(1..4)?;
    let length = usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]);
    data.get(..4 + length)
}

// The handshake records at the front of a stream.
pub(super) struct Flight<'a> {
    pub(super) first: &'a [u8],
    pub(super) records: usize,
    // Something else follows.
    pub(super) over: bool,
}

impl<'a> Flight<'a> {
    // `None` while the first record's header has not come.
    pub(super) fn at(data: &'a [u8]) -> Option<Self> {
        let first = Record::at(data)?;
        let mut flight = Self {
            first: first.body,
            records: 1,
            over: false,
        };
        let mut at = 5 + first.body.len();
        let mut whole = first.whole;
        while whole && let Some(&kind) = data.get(at) {
            if kind != HANDSHAKE {
                flight.over = true;
                break;
            }
            let Some(record) = Record::at(&data[at..]) else { break };
            if record.body.is_empty() && record.whole {
                flight.over = true;
                break;
            }
            flight.records += 1;
            at += 5 + record.body.len();
            whole = record.whole;
        }
        Some(flight)
    }
}

// A handshake message may be spread over several records (RFC 8446 §5.1).
pub(super) fn join(data: &[u8]) -> Vec<u8> {
    let mut joined = Vec::with_capacity(data.len());
    let mut rest = data;
    while rest.first() == Some(&HANDSHAKE)
        && let Some(record) = Record::at(rest)
    {
        joined.extend_from_slice(record.body);
        rest = &rest[5 + record.body.len()..];
        if !record.whole || record.body.is_empty() {
            break;
        }
    }
    joined
}

pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|b| u16::from_be_bytes([b[0], b[1]]))
    }

    pub(super) fn vec8(&mut self) -> Option<&'a [u8]> {
        let length = self.take(1)?[0];
        self.take(usize::from(length))
    }

    pub(super) fn vec16(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }
}

pub(super) fn u16s(data: &[u8]) -> Vec<u16> {
    data.chunks_exact(2).map(|b| u16::from_be_bytes([b[0], b[1]])).collect()
}

// Extensions may be left out altogether.
pub(super) fn extensions<'a>(hello: &mut Reader<'a>) -> Option<Vec<(u16, &'a [u8])>> {
    if hello.0.is_empty() {
        return Some(Vec::new());
    }
    let mut list = Reader(hello.vec16()?);
    // A browser's hello has up to eighteen.
    let mut found = Vec::with_capacity(20);
    while !list.0.is_empty() {
        found.push((list.u16()?, list.vec16()?));
    }
    Some(found)
}

// RFC 6066 §3: only names of type 0 exist.
pub(super) fn server_name(content: &[u8]) -> Option<&[u8]> {
    let mut names = Reader(Reader(content).vec16()?);
    let kind = names.take(1)?[0];
    let name = names.vec16()?;
    (kind == 0).then_some(name)
}

pub(super) fn printable(name: &[u8], limit: usize) -> Option<String> {
    let name = &name[..name.len().min(limit)];
    if let Ok(text) = std::str::from_utf8(name)
        && name.iter().all(|b| (0x21..=0x7e).contains(b))
    {
        return (!text.is_empty()).then(|| text.to_owned());
    }
    let text: String = name
        .iter()
        .map(|&b| match b {
            0x21..=0x7e => char::from(b),
            _ => '\u{fffd}',
        })
        .collect();
    (!text.is_empty()).then_some(text)
}
