//! Set elements straight through nfnetlink: adding, deleting and reading back one address takes microseconds,
//! where starting `nft` takes milliseconds.
//!
//! Wire format: `linux/netlink.h`, `linux/netfilter/nfnetlink.h`, `linux/netfilter/nf_tables.h`. Numbers in
//! attributes are big-endian; headers are in the machine's order.

use std::{io, net::IpAddr, os::fd::OwnedFd, time::Duration};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink,
    sockopt::{Timeout, set_socket_timeout},
};

/// `NFNL_SUBSYS_NFTABLES`
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEW_ELEMENT: u16 = (SUBSYSTEM << 8) | 12;
const GET_ELEMENT: u16 = (SUBSYSTEM << 8) | 13;
const DELETE_ELEMENT: u16 = (SUBSYSTEM << 8) | 14;
const NEW_GENERATION: u16 = (SUBSYSTEM << 8) | 15;
const GET_GENERATION: u16 = (SUBSYSTEM << 8) | 16;
const ERROR: u16 = 2;

const REQUEST: u16 = 1;
const ACK: u16 = 4;
const CREATE: u16 = 0x400;

/// `NFPROTO_INET`: the table holds both address families.
const INET: u8 = 1;

const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const LIST_ITEM: u16 = 1;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_TIMEOUT: u16 = 4;
const ELEMENT_EXPIRATION: u16 = 5;
const DATA_VALUE: u16 = 1;
const GENERATION_ID: u16 = 1;

/// How long the kernel may take to answer. It answers within the system call; this guards against a bug.
const PATIENCE: Duration = Duration::from_secs(2);

/// An element as the kernel holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// The address.
    pub key: IpAddr,
    /// The time left, `None` for one that stays.
    pub left: Option<Duration>,
}

/// A change of one set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Adds an element that is not there.
    Add {
        /// The set's name.
        set: String,
        /// The address.
        key: IpAddr,
        /// How long it stays.
        timeout: Option<Duration>,
    },
    /// Deletes an element that is there.
    Delete {
        /// The set's name.
        set: String,
        /// The address.
        key: IpAddr,
    },
}

/// A socket to nf_tables in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    table: String,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens a socket for one table of the `inet` family.
    ///
    /// # Errors
    /// When the kernel has no nfnetlink.
    pub fn open(table: &str) -> io::Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(netlink::NETFILTER),
        )?;
        rustix::net::bind(&socket, &netlink::SocketAddrNetlink::new(0, 0))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
        Ok(Self {
            socket,
            table: table.to_owned(),
            sequence: 0,
            buffer: vec![0; 64 * 1024],
        })
    }

    /// The number of the ruleset's generation, which every change of any table raises by one.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn generation(&mut self) -> io::Result<u32> {
        let mut message = Writer::default();
        let sequence = self.next_sequence();
        message.begin(GET_GENERATION, REQUEST, 0, 0, sequence);
        message.end();
        let answer = self.ask(message, sequence, NEW_GENERATION)?;
        attributes(&answer)
            .find(|(kind, _)| *kind == GENERATION_ID)
            .and_then(|(_, value)| value.try_into().ok())
            .map(u32::from_be_bytes)
            .ok_or_else(|| bad("no generation in the answer"))
    }

    /// Reads an element back. `None` when it, its set or its table is not there.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn element(&mut self, set: &str, key: IpAddr) -> io::Result<Option<Element>> {
        let mut message = Writer::default();
        let sequence = self.next_sequence();
        message.begin(GET_ELEMENT, REQUEST, INET, 0, sequence);
        message.elements(&self.table, set, key, None);
        message.end();
        match self.ask(message, sequence, NEW_ELEMENT) {
            Ok(answer) => read_element(&answer)
                .map(Some)
                .ok_or_else(|| bad("no element in the answer")),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes all changes or none.
    ///
    /// # Errors
    /// What the kernel says about the first change that it refuses: `EEXIST`, `ENOENT`, `EPERM`, `ENFILE`
    /// for a full set.
    pub fn change(&mut self, changes: &[Change]) -> io::Result<()> {
        if changes.is_empty() {
            return Ok(());
        }
        let mut message = Writer::default();
        let first = self.next_sequence();
        // The resource id of a batch is the subsystem, in network order.
        message.begin(BATCH_BEGIN, REQUEST, 0, SUBSYSTEM, first);
        message.end();
        let mut last = first;
        for change in changes {
            last = self.next_sequence();
            match change {
                Change::Add { set, key, timeout } => {
                    message.begin(NEW_ELEMENT, REQUEST | ACK | CREATE, INET, 0, last);
                    message.elements(&self.table, set, *key, *timeout);
                }
                Change::Delete { set, key } => {
                    message.begin(DELETE_ELEMENT, REQUEST | ACK, INET, 0, last);
                    message.elements(&self.table, set, *key, None);
                }
            }
            message.end();
        }
        let end = self.next_sequence();
        message.begin(BATCH_END, REQUEST, 0, SUBSYSTEM, end);
        message.end();
        self.send(&message.bytes)?;
        // Every change is acknowledged, in order; an error of the batch as a whole carries its first number.
        let mut failure = None;
        loop {
            let received = self.receive()?;
            for (kind, sequence, body) in messages(&received) {
                if kind != ERROR || sequence < first || sequence > end {
                    continue;
                }
                let code = error_code(body).ok_or_else(|| bad("a short error message"))?;
                if code != 0 && failure.is_none() {
                    failure = Some(io::Error::from_raw_os_error(code));
                }
                if sequence == last || (sequence == first && code != 0) {
                    return match failure {
                        Some(error) => Err(error),
                        None => Ok(()),
                    };
                }
            }
        }
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        if self.sequence == 0 {
            self.sequence = 1;
        }
        self.sequence
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.drain();
        let sent = rustix::net::send(&self.socket, bytes, SendFlags::empty())?;
        if sent == bytes.len() {
            Ok(())
        } else {
            Err(bad("a message was cut short"))
        }
    }

    /// Throws away answers to earlier questions that nobody waited for.
    fn drain(&mut self) {
        while rustix::net::recv(&self.socket, &mut self.buffer[..], RecvFlags::DONTWAIT).is_ok() {}
    }

    fn receive(&mut self) -> io::Result<Vec<u8>> {
        let (length, _) = rustix::net::recv(&self.socket, &mut self.buffer[..], RecvFlags::empty())?;
        Ok(self.buffer[..length].to_vec())
    }

    /// Sends a question and waits for its answer of the wanted kind. Answers with what follows the headers.
    fn ask(&mut self, message: Writer, sequence: u32, wanted: u16) -> io::Result<Vec<u8>> {
        self.send(&message.bytes)?;
        loop {
            let received = self.receive()?;
            for (kind, number, body) in messages(&received) {
                if number != sequence {
                    continue;
                }
                if kind == ERROR {
                    let code = error_code(body).ok_or_else(|| bad("a short error message"))?;
                    return Err(if code == 0 {
                        bad("an acknowledgement instead of an answer")
                    } else {
                        io::Error::from_raw_os_error(code)
                    });
                }
                if kind == wanted {
                    return Ok(body.get(4..).unwrap_or_default().to_vec());
                }
            }
        }
    }
}

fn bad(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Builds netlink messages one after the other.
#[derive(Default)]
struct Writer {
    bytes: Vec<u8>,
    start: usize,
}

impl Writer {
    fn begin(&mut self, kind: u16, flags: u16, family: u8, resource: u16, sequence: u32) {
        self.start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&[family, 0]);
        self.bytes.extend_from_slice(&resource.to_be_bytes());
    }

    fn end(&mut self) {
        let length = u32::try_from(self.bytes.len() - self.start).unwrap_or(u32::MAX);
        self.bytes[self.start..self.start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }

    fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        fill(self);
        let length = u16::try_from(self.bytes.len() - at).unwrap_or(u16::MAX);
        self.bytes[at..at + 2].copy_from_slice(&length.to_ne_bytes());
    }

    fn elements(&mut self, table: &str, set: &str, key: IpAddr, timeout: Option<Duration>) {
        let text = |text: &str| {
            let mut bytes = text.as_bytes().to_vec();
            bytes.push(0);
            bytes
        };
        self.attribute(LIST_TABLE, &text(table));
        self.attribute(LIST_SET, &text(set));
        self.nested(LIST_ELEMENTS, |w| {
            w.nested(LIST_ITEM, |w| {
                w.nested(ELEMENT_KEY, |w| match key {
                    IpAddr::V4(v4) => w.attribute(DATA_VALUE, &v4.octets()),
                    IpAddr::V6(v6) => w.attribute(DATA_VALUE, &v6.octets()),
                });
                if let Some(timeout) = timeout {
                    let millis = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).max(1);
                    w.attribute(ELEMENT_TIMEOUT, &millis.to_be_bytes());
                }
            });
        });
    }
}

/// The messages in a datagram: type, sequence number, and what follows the netlink header.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, u32, &[u8])> {
    std::iter::from_fn(move || {
        let header: [u8; 16] = bytes.get(..16)?.try_into().ok()?;
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let sequence = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
        let body = bytes.get(16..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, sequence, body))
    })
}

fn error_code(body: &[u8]) -> Option<i32> {
    let code = i32::from_ne_bytes(body.get(..4)?.try_into().ok()?);
    code.checked_neg()
}

/// The attributes in a body, without the flags in their types.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header: [u8; 4] = bytes.get(..4)?.try_into().ok()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn find(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes)
        .find(|(kind, _)| *kind == wanted)
        .map(|(_, value)| value)
}

fn read_element(body: &[u8]) -> Option<Element> {
    let item = find(find(body, LIST_ELEMENTS)?, LIST_ITEM)?;
    let value = find(find(item, ELEMENT_KEY)?, DATA_VALUE)?;
    let key = match value.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(value).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(value).ok()?),
        _ => return None,
    };
    let millis = |kind| find(item, kind).and_then(|v| v.try_into().ok()).map(u64::from_be_bytes);
    let left = match (millis(ELEMENT_EXPIRATION), millis(ELEMENT_TIMEOUT)) {
        (Some(left), _) => Some(Duration::from_millis(left)),
        (None, Some(whole)) if whole > 0 => Some(Duration::from_millis(whole)),
        _ => None,
    };
    Some(Element { key, left })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_is_what_is_read() {
        for (key, timeout) in [("192.0.2.7", None), ("2001:db8::1", Some(Duration::from_secs(90)))] {
            let key: IpAddr = key.parse().unwrap();
            let mut writer = Writer::default();
            writer.begin(NEW_ELEMENT, REQUEST, INET, 0, 7);
            writer.elements("garrison", "block4_32_acme", key, timeout);
            writer.end();
            let read: Vec<_> = messages(&writer.bytes).collect();
            assert_eq!(read.len(), 1);
            assert_eq!((read[0].0, read[0].1), (NEW_ELEMENT, 7));
            let element = read_element(&read[0].2[4..]).unwrap();
            assert_eq!((element.key, element.left), (key, timeout));
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for (_, _, body) in messages(&bytes) {
                let _ = error_code(body);
                let _ = read_element(body);
            }
            let _ = read_element(&bytes);
            prop_assert!(attributes(&bytes).count() <= bytes.len());
        }
    }
}
