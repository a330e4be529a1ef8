//! Who talks to whom: hashing that is the same for both directions, Community ID, flow ids.

use super::packet::{ICMP, ICMPV6, SCTP, TCP, UDP, icmp_answer};

/// The five facts that name a flow, from the opener's side. IPv4 addresses are mapped into IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct FlowKey {
    /// The opener's address.
    pub src: [u8; 16],
    /// The called side's address.
    pub dst: [u8; 16],
    /// The opener's port; for ICMP the type.
    pub src_port: u16,
    /// The called side's port; for ICMP the answering type or the code.
    pub dst_port: u16,
    /// IP protocol number.
    pub protocol: u8,
}

impl FlowKey {
    /// Nobody to nobody.
    pub const EMPTY: Self = Self {
        src: [0; 16],
        dst: [0; 16],
        src_port: 0,
        dst_port: 0,
        protocol: 0,
    };

    /// The other is this flow seen from the other side.
    #[inline]
    pub fn is_reverse_of(&self, other: &Self) -> bool {
        self.src_port == other.dst_port
            && self.dst_port == other.src_port
            && self.src == other.dst
            && self.dst == other.src
            && self.protocol == other.protocol
    }

    /// The same flow seen from the other side.
    pub fn reversed(&self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            src_port: self.dst_port,
            dst_port: self.src_port,
            protocol: self.protocol,
        }
    }
}

/// Keys of the hash, drawn once a process so that nobody outside can choose colliding flows.
#[derive(Clone, Copy, Debug)]
pub struct HashSeed([u64; 4]);

impl HashSeed {
    /// Makes a seed from random bits.
    pub fn new(random: u128) -> Self {
        let (high, low) = ((random >> 64) as u64, random as u64);
        // Distinct odd constants, so that few random bits still make four unrelated words.
        let word = |a: u64, b: u64| mix(low ^ a, high ^ b).rotate_left(17) | 1;
        Self([
            word(0x9e37_79b9_7f4a_7c15, 0xd1b5_4a32_d192_ed03),
            word(0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb),
            word(0xa076_1d64_78bd_642f, 0xe703_7ed1_a0b4_28db),
            word(0x8ebc_6af0_9c88_c6e3, 0x5899_65cc_7537_4cc3),
        ])
    }

    /// Hash of a flow, equal for both directions.
    pub fn hash(&self, key: &FlowKey) -> u64 {
        self.hash_in(key, 0)
    }

    /// Hash of a flow in a network, equal for both directions.
    #[inline(always)]
    pub fn hash_in(&self, key: &FlowKey, network: u32) -> u64 {
        let sum = self
            .endpoint(&key.src, key.src_port)
            .wrapping_add(self.endpoint(&key.dst, key.dst_port));
        mix(sum ^ u64::from(key.protocol) ^ u64::from(network) << 8, self.0[3])
    }

    /// Hash of a number.
    pub(super) fn word(&self, number: u64) -> u64 {
        mix(number ^ self.0[1], self.0[2])
    }

    fn endpoint(&self, address: &[u8; 16], port: u16) -> u64 {
        let (high, low) = halves(address);
        mix(mix(high ^ self.0[0], low ^ self.0[1]) ^ u64::from(port), self.0[2])
    }
}

// The folded 128-bit product: every bit of the result depends on every bit of both factors.
pub(super) fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product >> 64) as u64 ^ product as u64
}

fn halves(address: &[u8; 16]) -> (u64, u64) {
    let bits = u128::from_le_bytes(*address);
    (bits as u64, (bits >> 64) as u64)
}

/// A flow's id: a UUID of version 7 whose time is the first packet's and whose random part is derived from the
/// flow and the seed, so that one run of a meter names a flow the same way in each of its records.
pub fn flow_id(seed: &HashSeed, key: &FlowKey, first_seen: i64, serial: u16) -> [u8; 16] {
    let src = seed.endpoint(&key.src, key.src_port);
    let dst = seed.endpoint(&key.dst, key.dst_port) ^ u64::from(key.protocol);
    // Hashed once more than the other, so that the two directions have different ids.
    let directed = mix(src, seed.0[3]) ^ dst;
    let when = first_seen as u64 ^ (u64::from(serial) << 48);
    let a = mix(directed ^ when, seed.0[2]);
    let b = mix(when ^ seed.0[3], directed | 1) ^ a.rotate_left(32);
    let mut id = [0; 16];
    let milliseconds = (first_seen / 1_000_000) as u64;
    id[..6].copy_from_slice(&milliseconds.to_be_bytes()[2..]);
    id[6..8].copy_from_slice(&(a as u16).to_be_bytes());
    id[8..].copy_from_slice(&b.to_be_bytes());
    id[6] = id[6] & 0x0f | 0x70;
    id[8] = id[8] & 0x3f | 0x80;
    id
}

/// Length of a Community ID of version 1, octets.
pub const COMMUNITY_ID_LEN: usize = 30;

/// Writes the Community ID of version 1 with seed 0 (Corelight, "Community ID Flow Hashing").
pub fn community_id(key: &FlowKey, ip_version: u8, text: &mut [u8; COMMUNITY_ID_LEN]) {
    let with_ports = matches!(key.protocol, TCP | UDP | SCTP | ICMP | ICMPV6);
    // ICMP types without an answer are one-way: the sender stays first.
    let one_way = matches!(key.protocol, ICMP | ICMPV6) && icmp_answer(key.protocol, key.src_port as u8).is_none();
    let ordered = one_way || (key.src, key.src_port) <= (key.dst, key.dst_port);
    let key = if ordered { *key } else { key.reversed() };
    // One block of SHA-1 (FIPS 180-4): at most 40 octets, a one bit, zeros, and the length in bits.
    let mut input = [0; 64];
    // A seed of zero comes first.
    let mut len = 2;
    let mut push = |bytes: &[u8]| {
        input[len..len + bytes.len()].copy_from_slice(bytes);
        len += bytes.len();
    };
    let skip = if ip_version == 4 { 12 } else { 0 };
    push(&key.src[skip..]);
    push(&key.dst[skip..]);
    push(&[key.protocol, 0]);
    if with_ports {
        push(&key.src_port.to_be_bytes());
        push(&key.dst_port.to_be_bytes());
    }
    input[len] = 0x80;
    input[62..].copy_from_slice(&(len as u16 * 8).to_be_bytes());
    let mut state = SHA1_START;
    sha1::block_api::compress(&mut state, &[input]);
    text[..2].copy_from_slice(b"1:");
    base64_of(&state, &mut text[2..]);
}

// FIPS 180-4 §5.3.1.
const SHA1_START: [u32; 5] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];

// The digest's 20 octets as 28 characters (RFC 4648 §4).
fn base64_of(digest: &[u32; 5], text: &mut [u8]) {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut octets = [0; 21];
    for (place, word) in octets.chunks_exact_mut(4).zip(digest) {
        place.copy_from_slice(&word.to_be_bytes());
    }
    for (place, three) in text.chunks_exact_mut(4).zip(octets.chunks_exact(3)) {
        let bits = usize::from(three[0]) << 16 | usize::from(three[1]) << 8 | usize::from(three[2]);
        place.copy_from_slice(&[18, 12, 6, 0].map(|shift| LETTERS[bits >> shift & 63]));
    }
    if let Some(last) = text.get_mut(27) {
        *last = b'=';
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    fn key(src: &str, dst: &str, src_port: u16, dst_port: u16, protocol: u8) -> (FlowKey, u8) {
        let bytes = |text: &str| match text.parse().unwrap() {
            IpAddr::V4(v4) => (v4.to_ipv6_mapped().octets(), 4),
            IpAddr::V6(v6) => (v6.octets(), 6),
        };
        let ((src, version), (dst, _)) = (bytes(src), bytes(dst));
        let key = FlowKey {
            src,
            dst,
            src_port,
            dst_port,
            protocol,
        };
        (key, version)
    }

    fn id(key: (FlowKey, u8)) -> String {
        let mut text = [0; COMMUNITY_ID_LEN];
        community_id(&key.0, key.1, &mut text);
        String::from_utf8(text.to_vec()).unwrap()
    }

    #[test]
    fn community_ids_equal_the_published_ones() {
        // From the baseline of the reference implementation (corelight/community-id-spec).
        let known = [
            (
                key("128.232.110.120", "66.35.250.204", 34855, 80, 6),
                "1:LQU9qZlK+B5F3KDmev6m5PMibrg=",
            ),
            (
                key("192.168.1.52", "8.8.8.8", 54585, 53, 17),
                "1:d/FP5EW3wiY1vCndhwleRRKHowQ=",
            ),
            (
                key("192.168.0.89", "192.168.0.1", 8, 0, 1),
                "1:X0snYXpgwiv9TZtqg64sgzUn6Dk=",
            ),
        ];
        for (flow, want) in known {
            assert_eq!(id(flow), want);
            assert_eq!(id((flow.0.reversed(), flow.1)), want, "reversed");
        }
    }

    #[test]
    fn digests_are_written_as_everybody_writes_them() {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        for start in 0..64_u32 {
            // Every value of six bits comes up.
            let digest =
                [1, 2, 3, 4, 5].map(|n: u32| start.wrapping_mul(0x0410_4104 ^ n) ^ n.wrapping_mul(0x9e37_79b1));
            let octets: Vec<u8> = digest.iter().flat_map(|word| word.to_be_bytes()).collect();
            let mut text = [0; 28];
            base64_of(&digest, &mut text);
            assert_eq!(text, STANDARD.encode(octets).as_bytes());
        }
    }

    #[test]
    fn icmp_without_an_answer_keeps_its_direction() {
        let there = key("192.168.0.89", "192.168.0.1", 3, 1, 1);
        let back = key("192.168.0.1", "192.168.0.89", 3, 1, 1);
        assert_ne!(id(there), id(back));
    }

    #[test]
    fn flow_ids_are_uuids_of_version_7_with_the_first_packets_time() {
        let seed = HashSeed::new(42);
        let (key, _) = key("10.0.0.1", "10.0.0.2", 1, 2, 6);
        let first = 1_700_000_000_123_456_789;
        let id = uuid::Uuid::from_bytes(flow_id(&seed, &key, first, 0));
        assert_eq!(id.get_version_num(), 7);
        let (seconds, nanos) = id.get_timestamp().unwrap().to_unix();
        assert_eq!((seconds, nanos / 1_000_000), (1_700_000_000, 123));
        let others = [
            flow_id(&seed, &key, first, 1),
            flow_id(&seed, &key, first + 1, 0),
            flow_id(&seed, &key.reversed(), first, 0),
            flow_id(&HashSeed::new(43), &key, first, 0),
        ];
        assert!(others.iter().all(|other| other != id.as_bytes()));
    }

    proptest! {
        #[test]
        fn both_directions_hash_alike_and_flows_apart(
            src in any::<[u8; 16]>(), dst in any::<[u8; 16]>(),
            src_port in any::<u16>(), dst_port in any::<u16>(), random in any::<u128>(),
        ) {
            let seed = HashSeed::new(random);
            let key = FlowKey { src, dst, src_port, dst_port, protocol: 6 };
            prop_assert_eq!(seed.hash(&key), seed.hash(&key.reversed()));
            let other = FlowKey { src_port: src_port.wrapping_add(1), ..key };
            prop_assert_ne!(seed.hash(&key), seed.hash(&other));
        }
    }
}
