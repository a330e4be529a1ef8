//! QUIC (RFC 9000, RFC 9001, RFC 9369): the hellos in Initial packets, whose keys follow from what is in the open.

use ring::{
    aead::{
        AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey,
        quic::{AES_128, HeaderProtectionKey},
    },
    hkdf::{HKDF_SHA256, KeyType, Prk, Salt},
};

use super::tls::{Carrier, TlsFacts};

/// What is told about a flow's QUIC.
#[derive(Debug, Default)]
pub struct QuicFacts {
    /// Its hellos.
    pub tls: TlsFacts,
    // The side that opened, and the connection id its first packet chose.
    client: Option<usize>,
    id: Vec<u8>,
    crypto: [Crypto; 2],
    datagrams: u8,
}

// A side's handshake, as far as it has come.
#[derive(Debug, Default)]
struct Crypto {
    octets: Vec<u8>,
    // Sorted and apart.
    pieces: Vec<(usize, usize)>,
}

// A hello with post-quantum keys is about 2,000 octets.
const LONGEST: usize = 8 << 10;
const PIECES: usize = 32;
const LONGEST_ID: usize = 20;
/// Datagrams after which a flow's hellos are not waited for any more.
const DATAGRAMS: u8 = 16;

const SALT_1: [u8; 20] = [
    0x38, 0x76, 0x2c, 0xf7, 0xf5, 0x59, 0x34, 0xb3, 0x4d, 0x17, 0x9a, 0xe6, 0xa4, 0xc8, 0x0c, 0xad, 0xcc, 0xbb, 0x7f,
    0x0a,
];
const SALT_2: [u8; 20] = [
    0x0d, 0xed, 0xe3, 0xde, 0xf7, 0x00, 0xa6, 0xdb, 0x81, 0x93, 0x81, 0xbe, 0x6e, 0x26, 0x9d, 0xcb, 0xf9, 0xbd, 0x2e,
    0xd9,
];
const SALT_DRAFT_29: [u8; 20] = [
    0xaf, 0xbf, 0xec, 0x28, 0x99, 0x93, 0xd2, 0x4c, 0x9e, 0x97, 0x86, 0xf1, 0x9c, 0x61, 0x11, 0xe0, 0x43, 0x90, 0xa8,
    0x99,
];
const SALT_DRAFT_23: [u8; 20] = [
    0xc3, 0xee, 0xf7, 0x12, 0xc7, 0x2e, 0xbb, 0x5a, 0x11, 0xa7, 0xd2, 0x43, 0x2b, 0xb4, 0x63, 0x65, 0xbe, 0xf9, 0xf5,
    0x02,
];
const VERSION_2: u32 = 0x6b33_43cf;

// The salt of a version, and whether its labels are those of version 2.
fn salt(version: u32) -> Option<(&'static [u8; 20], bool)> {
    match version {
        1 | 0xff00_0021 | 0xff00_0022 => Some((&SALT_1, false)),
        VERSION_2 => Some((&SALT_2, true)),
        0xff00_001d..=0xff00_0020 => Some((&SALT_DRAFT_29, false)),
        0xff00_0017..=0xff00_001c | 0xface_b001 | 0xface_b002 => Some((&SALT_DRAFT_23, false)),
        _ => None,
    }
}

fn is_google(version: u32) -> bool {
    let [letter, a, b, c] = version.to_be_bytes();
    matches!(letter, b'Q' | b'T') && a == b'0' && b.is_ascii_digit() && c.is_ascii_digit()
}

fn is_known(version: u32) -> bool {
    salt(version).is_some()
        || is_google(version)
        || matches!(version, 0xff00_0001..=0xff00_00ff | 0xface_b000..=0xface_b00f)
}

/// Whether a datagram is QUIC's: a long header of a known version, version negotiation, or Google's first format.
pub fn is_quic(data: &[u8]) -> bool {
    let Some(&[first, a, b, c, d, length]) = data.first_chunk::<6>() else {
        return false;
    };
    let version = u32::from_be_bytes([a, b, c, d]);
    if first & 0x80 == 0 {
        // Public flags of Google's first format: a version and a connection id of eight octets.
        let old = first & 0x09 == 0x09 && first & 0xc0 == 0;
        return old
            && data
                .get(9..13)
                .is_some_and(|v| v[0] == b'Q' && is_google(u32::from_be_bytes([v[0], v[1], v[2], v[3]])));
    }
    if is_google(version) {
        return data.len() >= 20;
    }
    let ids = usize::from(length) <= LONGEST_ID
        && data
            .get(6 + usize::from(length))
            .is_some_and(|&other| usize::from(other) <= LONGEST_ID);
    // Versions that are reserved to force a negotiation (RFC 9000 §15).
    let reserved = version & 0x0f0f_0f0f == 0x0a0a_0a0a && data.len() >= 1200;
    if version == 0 {
        let listed = || {
            let scid = data.get(6 + usize::from(length)).map_or(0, |&l| usize::from(l));
            let list = data.get(7 + usize::from(length) + scid..).unwrap_or_default();
            list.len().is_multiple_of(4)
                && list
                    .chunks_exact(4)
                    .any(|v| is_known(u32::from_be_bytes([v[0], v[1], v[2], v[3]])))
        };
        return ids && listed();
    }
    ids && data.len() >= 21 && (is_known(version) || reserved)
}

struct Cursor<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let taken = self.data.get(self.at..self.at.checked_add(n)?)?;
        self.at += n;
        Some(taken)
    }

    fn octet(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }

    // RFC 9000 §16.
    fn number(&mut self) -> Option<u64> {
        let first = self.octet()?;
        let rest = self.take((1 << (first >> 6)) - 1)?;
        Some(
            rest.iter()
                .fold(u64::from(first & 0x3f), |sum, &b| sum << 8 | u64::from(b)),
        )
    }

    fn length(&mut self) -> Option<usize> {
        usize::try_from(self.number()?).ok()
    }
}

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

// HKDF-Expand-Label of RFC 8446 §7.1 without a context.
fn expand<const N: usize>(secret: &Prk, label: &str) -> Option<[u8; N]> {
    let mut out = [0; N];
    let info: [&[u8]; 4] = [&[0, N as u8, 6 + label.len() as u8], b"tls13 ", label.as_bytes(), &[0]];
    secret.expand(&info, Length(N)).ok()?.fill(&mut out).ok()?;
    Some(out)
}

impl QuicFacts {
    /// Looks at a datagram from `side`. `facts` is set when a hello was read. Gives whether nothing more is wanted.
    pub fn datagram(&mut self, side: usize, data: &[u8], facts: &mut bool) -> bool {
        self.datagrams = self.datagrams.saturating_add(1);
        let mut at = 0;
        // Several packets share a datagram; more than a few do not fit into one.
        for _ in 0..8 {
            match self.packet(side, data.get(at..).unwrap_or_default(), facts) {
                Some(used) => at += used,
                None => break,
            }
        }
        let both = self.tls.ja4.is_some() && self.tls.ja4s.is_some();
        both || self.datagrams >= DATAGRAMS
    }

    // Reads a packet with a long header. Gives its length.
    fn packet(&mut self, side: usize, data: &[u8], facts: &mut bool) -> Option<usize> {
        let mut cursor = Cursor { data, at: 0 };
        let first = cursor.octet()?;
        if first & 0xc0 != 0xc0 {
            return None;
        }
        let version = u32::from_be_bytes(cursor.take(4)?.try_into().ok()?);
        let (salt, second) = salt(version)?;
        let length = usize::from(cursor.octet()?);
        let id = cursor.take(length)?;
        let length = usize::from(cursor.octet()?);
        cursor.take(length)?;
        let kind = first >> 4 & 3;
        let initial = kind == u8::from(second);
        // A Retry has no length and fills its datagram.
        if kind == if second { 0 } else { 3 } {
            return None;
        }
        if initial {
            let token = cursor.length()?;
            cursor.take(token)?;
        }
        let length = cursor.length()?;
        let body = cursor.at;
        cursor.take(length)?;
        if initial && id.len() <= LONGEST_ID {
            let client = *self.client.get_or_insert(side);
            if self.id.is_empty() && client == side {
                self.id = id.to_vec();
            }
            let label = if client == side { "client in" } else { "server in" };
            let packet = &data[..cursor.at];
            let opened = open(salt, second, &self.id, label, packet, body).or_else(|| {
                // Behind a Retry the client chooses another connection id.
                let again = open(salt, second, id, label, packet, body)?;
                self.id = id.to_vec();
                Some(again)
            });
            if let Some(frames) = opened {
                self.frames(usize::from(client != side), &frames, facts);
            }
        }
        Some(cursor.at)
    }

    // `role` is 0 for the client.
    fn frames(&mut self, role: usize, frames: &[u8], facts: &mut bool) {
        let mut cursor = Cursor { data: frames, at: 0 };
        while self.frame(role, &mut cursor).is_some() {}
        let crypto = &self.crypto[role];
        let ready = match crypto.pieces.first() {
            Some(&(0, end)) => &crypto.octets[..end],
            _ => return,
        };
        let Some(header) = ready.first_chunk::<4>() else { return };
        let length = usize::from(header[1]) << 16 | usize::from(header[2]) << 8 | usize::from(header[3]);
        let Some(body) = ready.get(4..4 + length) else { return };
        *facts |= match (role, header[0]) {
            (0, 1) if self.tls.ja4.is_none() => self.tls.client(body, Carrier::Quic).is_some(),
            (1, 2) if self.tls.ja4s.is_none() => self.tls.server(body, Carrier::Quic).is_some(),
            _ => false,
        };
    }

    fn frame(&mut self, role: usize, cursor: &mut Cursor<'_>) -> Option<()> {
        match cursor.octet()? {
            // Padding, ping.
            0 | 1 => {}
            kind @ (2 | 3) => {
                cursor.number()?;
                cursor.number()?;
                let ranges = cursor.number()?.min(1 << 12);
                for _ in 0..1 + 2 * ranges {
                    cursor.number()?;
                }
                for _ in 0..if kind == 3 { 3 } else { 0 } {
                    cursor.number()?;
                }
            }
            6 => {
                let offset = cursor.length()?;
                let length = cursor.length()?;
                let data = cursor.take(length)?;
                self.crypto[role].put(offset, data);
            }
            _ => return None,
        }
        Some(())
    }
}

impl Crypto {
    fn put(&mut self, start: usize, data: &[u8]) {
        let Some(end) = start.checked_add(data.len()).filter(|&end| end <= LONGEST) else {
            return;
        };
        if data.is_empty() || self.pieces.len() >= PIECES {
            return;
        }
        if self.octets.len() < end {
            self.octets.resize(end, 0);
        }
        self.octets[start..end].copy_from_slice(data);
        let (mut low, mut high) = (start, end);
        self.pieces.retain(|&(s, e)| {
            let apart = e < low || s > high;
            if !apart {
                (low, high) = (low.min(s), high.max(e));
            }
            apart
        });
        let at = self.pieces.partition_point(|&(s, _)| s < low);
        self.pieces.insert(at, (low, high));
    }
}

// Takes the protection off an Initial packet (RFC 9001 §5): `body` is where its packet number begins.
fn open(salt: &[u8; 20], second: bool, id: &[u8], label: &str, packet: &[u8], body: usize) -> Option<Vec<u8>> {
    let initial = Salt::new(HKDF_SHA256, salt).extract(id);
    let secret: [u8; 32] = expand(&initial, label)?;
    let secret = Prk::new_less_safe(HKDF_SHA256, &secret);
    let prefix = if second {
        ["quicv2 key", "quicv2 iv", "quicv2 hp"]
    } else {
        ["quic key", "quic iv", "quic hp"]
    };
    let key: [u8; 16] = expand(&secret, prefix[0])?;
    let mut nonce: [u8; 12] = expand(&secret, prefix[1])?;
    let protection: [u8; 16] = expand(&secret, prefix[2])?;

    let sample = packet.get(body + 4..body + 20)?;
    let mask = HeaderProtectionKey::new(&AES_128, &protection)
        .ok()?
        .new_mask(sample)
        .ok()?;
    let first = packet[0] ^ mask[0] & 0x0f;
    let length = usize::from(first & 3) + 1;
    let mut header = packet.get(..body + length)?.to_vec();
    header[0] = first;
    for i in 0..length {
        header[body + i] ^= mask[1 + i];
        // The packet number, right-aligned, over the nonce.
        nonce[12 - length + i] ^= header[body + i];
    }
    let mut text = packet.get(body + length..)?.to_vec();
    let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &key).ok()?);
    let nonce = Nonce::assume_unique_for_key(nonce);
    let opened = key.open_in_place(nonce, Aad::from(&header[..]), &mut text).ok()?.len();
    text.truncate(opened);
    Some(text)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use ring::aead::Tag;

    use super::*;
    use crate::domain::app::tls::tests::example_client_hello;

    fn number(value: usize) -> [u8; 2] {
        (0x4000 | value as u16).to_be_bytes()
    }

    fn crypto(offset: usize, data: &[u8]) -> Vec<u8> {
        [&[6][..], &number(offset), &number(data.len()), data].concat()
    }

    // Protects frames as RFC 9001 §5 says.
    pub(crate) fn initial(version: u32, id: &[u8], label: &str, counter: u8, frames: &[u8]) -> Vec<u8> {
        let (salt, second) = salt(version).unwrap();
        let mut text = frames.to_vec();
        text.resize(text.len().max(1100), 0);
        let kind = if second { 0xd0 } else { 0xc0 };
        let mut header = vec![kind];
        header.extend(version.to_be_bytes());
        header.push(id.len() as u8);
        header.extend(id);
        header.extend([0, 0]);
        header.extend(number(1 + text.len() + 16));
        let body = header.len();
        header.push(counter);
        let secret: [u8; 32] = expand(&Salt::new(HKDF_SHA256, salt).extract(id), label).unwrap();
        let secret = Prk::new_less_safe(HKDF_SHA256, &secret);
        let name = |what: &str| format!("{} {what}", if second { "quicv2" } else { "quic" });
        let key: [u8; 16] = expand(&secret, &name("key")).unwrap();
        let mut nonce: [u8; 12] = expand(&secret, &name("iv")).unwrap();
        let protection: [u8; 16] = expand(&secret, &name("hp")).unwrap();
        nonce[11] ^= counter;
        let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &key).unwrap());
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag: Tag = key
            .seal_in_place_separate_tag(nonce, Aad::from(&header[..]), &mut text)
            .unwrap();
        let mut packet = [&header[..], &text, tag.as_ref()].concat();
        let sample: Vec<u8> = packet[body + 4..body + 20].to_vec();
        let mask = HeaderProtectionKey::new(&AES_128, &protection)
            .unwrap()
            .new_mask(&sample)
            .unwrap();
        packet[0] ^= mask[0] & 0x0f;
        packet[body] ^= mask[1];
        packet
    }

    pub(crate) fn client_initial(version: u32) -> Vec<u8> {
        initial(
            version,
            &[7; 8],
            "client in",
            0,
            &crypto(0, &example_client_hello()[5..]),
        )
    }

    #[test]
    fn keys_are_those_of_the_specifications_example() {
        // RFC 9001 appendix A.1.
        let id = hex::decode("8394c8f03e515708").unwrap();
        let initial = Salt::new(HKDF_SHA256, &SALT_1).extract(&id);
        let secret: [u8; 32] = expand(&initial, "client in").unwrap();
        assert_eq!(
            hex::encode(secret),
            "c00cf151ca5be075ed0ebfb5c80323c42d6b7db67881289af4008f1f6c357aea"
        );
        let key: [u8; 16] = expand(&Prk::new_less_safe(HKDF_SHA256, &secret), "quic key").unwrap();
        assert_eq!(hex::encode(key), "1f369613dd76d5467730efcbe3b1a22d");
    }

    #[test]
    fn hellos_are_read_in_every_version_whose_salt_is_known() {
        for version in [1, VERSION_2, 0xff00_001d, 0xff00_001b] {
            let packet = client_initial(version);
            assert!(is_quic(&packet), "{version:x}");
            let (mut quic, mut facts) = (QuicFacts::default(), false);
            quic.datagram(0, &packet, &mut facts);
            assert!(facts, "{version:x}");
            assert_eq!(quic.tls.sni.as_deref(), Some("example.com"));
            assert_eq!(quic.tls.ja4.as_deref(), Some("q13d1516h2_8daaf6152771_e5627efa2ab1"));
        }
    }

    #[test]
    fn a_hello_in_parts_and_in_any_order_is_put_together() {
        let hello = &example_client_hello()[5..];
        let frames = [crypto(200, &hello[200..]), crypto(0, &hello[..100])].concat();
        let (mut quic, mut facts) = (QuicFacts::default(), false);
        quic.datagram(0, &initial(1, &[7; 8], "client in", 0, &frames), &mut facts);
        assert!(!facts);
        let frames = [vec![1], crypto(100, &hello[100..200])].concat();
        quic.datagram(0, &initial(1, &[7; 8], "client in", 1, &frames), &mut facts);
        assert_eq!(quic.tls.sni.as_deref(), Some("example.com"));
    }

    #[test]
    fn other_versions_and_negotiation_are_quic_too() {
        let google = [&[0x0d][..], &[9; 8], b"Q043", &[0; 20]].concat();
        assert!(is_quic(&google));
        let negotiation = [&[0x80, 0, 0, 0, 0, 4][..], &[1; 4], &[4], &[2; 4], &1_u32.to_be_bytes()].concat();
        assert!(is_quic(&negotiation));
        assert!(!is_quic(&[
            0xc0, 0, 0, 0, 9, 4, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
        ]));
    }

    proptest! {
        #[test]
        fn any_change_is_refused_without_harm(
            at in any::<prop::sample::Index>(), value in 1_u8.., cut in any::<prop::sample::Index>(), side in 0_usize..2,
        ) {
            let mut packet = client_initial(1);
            let place = at.index(packet.len());
            packet[place] ^= value;
            let mut quic = QuicFacts::default();
            quic.datagram(side, &packet, &mut false);
            let kept = cut.index(packet.len());
            quic.datagram(side, &packet[..kept], &mut false);
        }

        #[test]
        fn any_frames_are_taken(frames in prop::collection::vec(any::<u8>(), 0..400), role in 0_usize..2) {
            let mut quic = QuicFacts::default();
            quic.frames(role, &frames, &mut false);
            prop_assert!(quic.crypto[role].octets.len() <= LONGEST);
            is_quic(&frames);
        }
    }
}
