//! TLS hellos (RFC 8446, RFC 5246): server name, ALPN, versions, cipher, and the JA4 and JA4S fingerprints as FoxIO
//! specifies them (github.com/FoxIO-LLC/ja4, technical details of JA4 and JA4S).

mod fingerprint;
mod wire;

pub(super) use self::fingerprint::{hex, md5_hex};
use self::{
    fingerprint::{Offer, is_grease, ja3, ja3s, ja4, ja4s},
    wire::{Flight, Reader, extensions, join, message, printable, server_name, u16s},
};
use super::{certificate::Certificate, stream::Step};

/// What is told about a flow's TLS.
#[derive(Debug, Default)]
pub struct TlsFacts {
    /// Version that was agreed, or offered while none is.
    pub version: Option<u16>,
    /// Cipher suite that was agreed.
    pub cipher: Option<u16>,
    /// Server name the client asked for.
    pub sni: Option<String>,
    /// First protocol of the client's list, or the agreed one.
    pub alpn: Option<String>,
    /// Fingerprint of the client, as Salesforce's JA3.
    pub ja3: Option<String>,
    /// Fingerprint of the server, as Salesforce's JA3S.
    pub ja3s: Option<String>,
    /// Fingerprint of the client.
    pub ja4: Option<String>,
    /// Fingerprint of the server.
    pub ja4s: Option<String>,
    /// The server's certificate, where it is not encrypted (up to TLS 1.2).
    pub certificate: Option<Certificate>,
}

/// What carries the hellos: the first letter of JA4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// TLS over TCP.
    Tcp,
    /// QUIC.
    Quic,
    /// DTLS.
    Dtls,
}

impl Carrier {
    fn letter(self) -> u8 {
        match self {
            Self::Tcp => b't',
            Self::Quic => b'q',
            Self::Dtls => b'd',
        }
    }
}

const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;
const CERTIFICATE: u8 = 11;

const EXT_SNI: u16 = 0;
const EXT_GROUPS: u16 = 10;
const EXT_FORMATS: u16 = 11;
const EXT_SIGNATURES: u16 = 13;
const EXT_ALPN: u16 = 16;
const EXT_VERSIONS: u16 = 43;

// A longer record is against RFC 5246 §6.2.3.
const LONGEST_RECORD: usize = (1 << 14) + 2048;

/// Whether octets begin a TLS connection: `None` while too few have come.
pub fn begins(data: &[u8]) -> Option<bool> {
    let fits = |at: usize, accept: &dyn Fn(u8) -> bool| data.get(at).is_none_or(|&b| accept(b));
    let ok = fits(0, &|b| b == HANDSHAKE)
        && fits(1, &|b| b == 3)
        && fits(2, &|b| b <= 4)
        && fits(5, &|b| b == CLIENT_HELLO || b == SERVER_HELLO);
    match (ok, data.len()) {
        (false, _) => Some(false),
        (true, 6..) => Some(true),
        (true, _) => None,
    }
}

/// Whether octets are of a TLS connection that began before: records behind each other, exactly one record of
/// application data, or on a port of TLS one whole record or more than a segment of one.
pub fn goes_on(data: &[u8], on_port: bool) -> bool {
    let record = |data: &[u8]| {
        let header = data.first_chunk::<5>()?;
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        let ok = (20..=23).contains(&header[0]) && header[1] == 3 && header[2] <= 4;
        (ok && (1..=LONGEST_RECORD).contains(&length)).then_some(length + 5)
    };
    let Some(first) = record(data) else { return false };
    // An alert in the open is two octets: level and description.
    if data[0] == ALERT && first == 7 && matches!(data.get(5), Some(1 | 2)) && data.len() == 7 {
        return true;
    }
    match data.get(first..) {
        Some([]) => on_port || (data[0] == 23 && data[2] >= 1 && first >= 5 + 17),
        Some(rest) => record(rest).is_some(),
        None => on_port && data.len() >= 1000,
    }
}

/// Whether a datagram is DTLS: records whose lengths fill it, of a version of DTLS (RFC 6347 §4.1).
pub fn is_dtls(data: &[u8], claimed: usize) -> bool {
    let Some(header) = data.first_chunk::<13>() else {
        return false;
    };
    let length = 13 + usize::from(u16::from_be_bytes([header[11], header[12]]));
    let version = matches!(header[1..3], [0xfe, 0xff | 0xfd] | [1, 0]);
    (20..=23).contains(&header[0]) && version && header[3] == 0 && length > 13 && length <= claimed
}

impl TlsFacts {
    /// Looks at the octets at the front of either side's stream; `full` when no more than these will come. `facts` is
    /// set when something became known.
    pub fn step(&mut self, data: &[u8], full: bool, facts: &mut bool) -> Step {
        if begins(data) == Some(false) {
            return Step::Stop;
        }
        let joined;
        let Some(flight) = Flight::at(data) else {
            return Step::More;
        };
        let messages = match &flight {
            // The usual case: the hello lies in one record and need not be copied.
            Flight { first, records: 1, .. } => *first,
            _ => {
                joined = join(data);
                &joined
            }
        };
        let mut at = 0;
        loop {
            let rest = &messages[at..];
            let Some(whole) = message(rest) else {
                let certificate =
                    rest.first() == Some(&CERTIFICATE) && self.chain(rest.get(4..).unwrap_or_default(), facts);
                return match certificate || full || flight.over {
                    true => Step::Stop,
                    false => Step::More,
                };
            };
            let body = &whole[4..];
            match whole[0] {
                CLIENT_HELLO => {
                    *facts |= self.client(body, Carrier::Tcp).is_some();
                    return Step::Stop;
                }
                SERVER_HELLO => {
                    if self.ja4s.is_none() {
                        *facts |= self.server(body, Carrier::Tcp).is_some();
                    }
                    // From TLS 1.3 on the rest is encrypted.
                    if self.version.is_none_or(|version| version >= 0x0304) {
                        return Step::Stop;
                    }
                }
                CERTIFICATE => {
                    self.chain(body, facts);
                    return Step::Stop;
                }
                _ => return Step::Stop,
            }
            at += whole.len();
        }
    }

    // The first certificate of a chain that may not have come to its end (RFC 5246 §7.4.2).
    fn chain(&mut self, body: &[u8], facts: &mut bool) -> bool {
        let Some(length) = body.get(3..6) else { return false };
        let length = usize::from(length[0]) << 16 | usize::from(length[1]) << 8 | usize::from(length[2]);
        let Some(der) = body.get(6..6 + length) else {
            return false;
        };
        if self.certificate.is_none() {
            self.certificate = Certificate::read(der);
            *facts |= self.certificate.is_some();
        }
        true
    }

    /// Reads a client's hello without its header.
    pub fn client(&mut self, body: &[u8], carrier: Carrier) -> Option<()> {
        let mut hello = Reader(body);
        let legacy = hello.u16()?;
        hello.take(32)?;
        hello.vec8()?;
        if carrier == Carrier::Dtls {
            hello.vec8()?;
        }
        let real = |list: &[u8]| -> Vec<u16> {
            let mut values = u16s(list);
            values.retain(|value| !is_grease(*value));
            values
        };
        let ciphers = real(hello.vec16()?);
        hello.vec8()?;
        let extensions = extensions(&mut hello)?;
        let mut version = legacy;
        let mut sni = None;
        let mut alpn: Option<&[u8]> = None;
        let mut offer = Offer {
            ciphers,
            extensions: extensions.iter().map(|&(kind, _)| kind).collect(),
            signatures: Vec::new(),
            groups: Vec::new(),
            formats: &[],
        };
        offer.extensions.retain(|kind| !is_grease(*kind));
        for &(kind, content) in &extensions {
            match kind {
                EXT_SNI => sni = server_name(content),
                EXT_ALPN => alpn = Reader(Reader(content).vec16().unwrap_or_default()).vec8(),
                EXT_VERSIONS => {
                    let offered = real(Reader(content).vec8().unwrap_or_default());
                    // DTLS counts downwards.
                    version = match carrier {
                        Carrier::Dtls => offered.into_iter().min(),
                        _ => offered.into_iter().max(),
                    }
                    .unwrap_or(legacy);
                }
                EXT_SIGNATURES => offer.signatures = real(Reader(content).vec16().unwrap_or_default()),
                EXT_GROUPS => offer.groups = real(Reader(content).vec16().unwrap_or_default()),
                EXT_FORMATS => offer.formats = Reader(content).vec8().unwrap_or_default(),
                _ => {}
            }
        }
        self.ja3 = Some(ja3(legacy, &offer));
        self.ja4 = Some(ja4(carrier, version, &mut offer, alpn));
        self.version.get_or_insert(version);
        self.sni = sni.and_then(|name| printable(name, 255));
        if self.alpn.is_none() {
            self.alpn = alpn.and_then(|name| printable(name, 64));
        }
        Some(())
    }

    /// Reads a server's hello without its header.
    pub fn server(&mut self, body: &[u8], carrier: Carrier) -> Option<()> {
        let mut hello = Reader(body);
        let legacy = hello.u16()?;
        hello.take(32)?;
        hello.vec8()?;
        let cipher = hello.u16()?;
        hello.take(1)?;
        let extensions = extensions(&mut hello)?;
        let mut version = legacy;
        let mut alpn: Option<&[u8]> = None;
        for &(kind, content) in &extensions {
            match kind {
                EXT_VERSIONS => version = Reader(content).u16().unwrap_or(legacy),
                EXT_ALPN => alpn = Reader(Reader(content).vec16().unwrap_or_default()).vec8(),
                _ => {}
            }
        }
        let kinds: Vec<u16> = extensions.iter().map(|&(kind, _)| kind).collect();
        self.ja4s = Some(ja4s(carrier, version, cipher, &kinds, alpn));
        self.ja3s = Some(ja3s(legacy, cipher, &kinds));
        self.version = Some(version);
        self.cipher = Some(cipher);
        if let Some(agreed) = alpn.and_then(|name| printable(name, 64)) {
            self.alpn = Some(agreed);
        }
        Some(())
    }

    /// Looks at a datagram of DTLS. Gives whether a hello was read.
    pub fn datagram(&mut self, mut data: &[u8]) -> bool {
        let mut known = false;
        // A flight is a few records.
        for _ in 0..8 {
            let Some(header) = data.first_chunk::<13>() else { break };
            let length = usize::from(u16::from_be_bytes([header[11], header[12]]));
            let Some(body) = data.get(13..13 + length) else { break };
            data = &data[13 + length..];
            // Type, length, message number, offset and length of the part (RFC 6347 §4.2.2): only whole ones are read.
            let (Some(head), HANDSHAKE) = (body.first_chunk::<12>(), header[0]) else {
                break;
            };
            let whole = head[1..4] == head[9..12] && head[6..9] == [0; 3];
            let message = &body[12..];
            known |= match head[0] {
                // The first one: a second repeats it with the server's cookie.
                CLIENT_HELLO if whole && self.ja4.is_none() => self.client(message, Carrier::Dtls).is_some(),
                SERVER_HELLO if whole => self.server(message, Carrier::Dtls).is_some(),
                CERTIFICATE => {
                    let mut facts = false;
                    self.chain(message, &mut facts);
                    facts
                }
                _ => false,
            };
        }
        known
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::{fingerprint::alpn_code, *};

    fn vec16(body: &[u8]) -> Vec<u8> {
        [&(body.len() as u16).to_be_bytes(), body].concat()
    }

    fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
        [kind.to_be_bytes().to_vec(), vec16(content)].concat()
    }

    fn record(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut message = vec![kind, 0];
        message.extend((body.len() as u16).to_be_bytes());
        message.extend(body);
        [&[HANDSHAKE, 3, 1][..], &vec16(&message)].concat()
    }

    // The example of FoxIO's JA4 specification.
    pub(crate) fn example_client_hello() -> Vec<u8> {
        let ciphers: [u16; 16] = [
            0x0a0a, 0x1301, 0x1302, 0x1303, 0xc02b, 0xc02f, 0xc02c, 0xc030, 0xcca9, 0xcca8, 0xc013, 0xc014, 0x009c,
            0x009d, 0x002f, 0x0035,
        ];
        let signatures: [u16; 8] = [0x0403, 0x0804, 0x0401, 0x0503, 0x0805, 0x0501, 0x0806, 0x0601];
        let bytes = |values: &[u16]| -> Vec<u8> { values.iter().flat_map(|v| v.to_be_bytes()).collect() };
        let name = b"example.com";
        let sni = vec16(&[&[0][..], &vec16(name)].concat());
        let mut extensions = extension(0x1a1a, &[]);
        extensions.extend(extension(0x001b, &[]));
        extensions.extend(extension(EXT_SNI, &sni));
        for kind in [0x0033, 0x4469, 0x0017] {
            extensions.extend(extension(kind, &[]));
        }
        extensions.extend(extension(EXT_ALPN, &vec16(b"\x02h2\x08http/1.1")));
        extensions.extend(extension(EXT_VERSIONS, &[6, 0x7a, 0x7a, 3, 4, 3, 3]));
        extensions.extend(extension(EXT_SIGNATURES, &vec16(&bytes(&signatures))));
        for kind in [0x0005, 0x000a, 0x002d, 0x000b, 0x0012, 0x0023, 0xff01, 0x0015, 0x3a3a] {
            extensions.extend(extension(kind, &[]));
        }
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.push(0);
        body.extend(vec16(&bytes(&ciphers)));
        body.extend([1, 0]);
        body.extend(vec16(&extensions));
        record(CLIENT_HELLO, &body)
    }

    fn server_hello() -> Vec<u8> {
        let mut extensions = extension(0x0033, &[0; 4]);
        extensions.extend(extension(EXT_VERSIONS, &[3, 4]));
        let mut body = vec![3, 3];
        body.extend([9; 32]);
        body.extend([0, 0x13, 0x01, 0]);
        body.extend(vec16(&extensions));
        record(SERVER_HELLO, &body)
    }

    #[test]
    fn the_specifications_example_gives_its_fingerprint() {
        let (mut tls, mut facts) = (TlsFacts::default(), false);
        assert_eq!(tls.step(&example_client_hello(), false, &mut facts), Step::Stop);
        assert!(facts);
        assert_eq!(tls.ja4.as_deref(), Some("t13d1516h2_8daaf6152771_e5627efa2ab1"));
        assert_eq!(tls.sni.as_deref(), Some("example.com"));
        assert_eq!(tls.alpn.as_deref(), Some("h2"));
        assert_eq!(tls.version, Some(0x0304));
    }

    #[test]
    fn a_servers_answer_is_what_was_agreed() {
        let (mut tls, mut facts) = (TlsFacts::default(), false);
        tls.step(&server_hello(), false, &mut facts);
        assert_eq!((tls.version, tls.cipher), (Some(0x0304), Some(0x1301)));
        // The example of FoxIO's JA4S specification has these two extensions in this order.
        assert_eq!(tls.ja4s.as_deref(), Some("t130200_1301_234ea6891581"));
    }

    #[test]
    fn alpn_codes_follow_the_specification() {
        assert_eq!(alpn_code(None), *b"00");
        assert_eq!(alpn_code(Some(b"http/1.1")), *b"h1");
        assert_eq!(alpn_code(Some(b"h")), *b"hh");
        assert_eq!(alpn_code(Some(&[0xab])), *b"ab");
        assert_eq!(alpn_code(Some(&[0xab, 0xcd])), *b"ad");
        assert_eq!(alpn_code(Some(&[0x30, 0xab])), *b"3b");
    }

    #[test]
    fn a_hello_over_several_records_is_joined() {
        let whole = example_client_hello();
        let message = &whole[5..];
        let mut split = Vec::new();
        for part in message.chunks(100) {
            split.extend([HANDSHAKE, 3, 1]);
            split.extend(vec16(part));
        }
        let (mut tls, mut facts) = (TlsFacts::default(), false);
        assert_eq!(tls.step(&split[..split.len() - 1], false, &mut facts), Step::More);
        assert_eq!(tls.step(&split, false, &mut facts), Step::Stop);
        assert_eq!(tls.sni.as_deref(), Some("example.com"));
    }

    proptest! {
        #[test]
        fn a_hello_with_any_octet_changed_or_cut_never_panics(
            at in any::<prop::sample::Index>(), value in any::<u8>(), cut in any::<prop::sample::Index>(),
            server in any::<bool>(),
        ) {
            let mut data = if server { server_hello() } else { example_client_hello() };
            let place = at.index(data.len());
            data[place] = value;
            TlsFacts::default().step(&data, false, &mut false);
            let kept = cut.index(data.len());
            TlsFacts::default().step(&data[..kept], false, &mut false);
        }

        #[test]
        fn garbage_never_panics(data in prop::collection::vec(any::<u8>(), 0..300)) {
            TlsFacts::default().step(&data, false, &mut false);
            let hello = [&[HANDSHAKE, 3, 1, 1, 0, CLIENT_HELLO][..], &data].concat();
            TlsFacts::default().step(&hello, false, &mut false);
        }
    }
}
