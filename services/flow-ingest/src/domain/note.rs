//! What is noted of a flow's first packets besides its counters.

use std::sync::LazyLock;

use super::{
    flow::Extra,
    packet::{Decoded, Fragment},
};

/// Notes the link addresses of both sides.
pub(super) fn note_macs(extra: &mut Extra, packet: &Decoded<'_>, side: usize) {
    if let Some((from, to)) = packet.macs {
        extra.macs = if side == 0 { [from, to] } else { [to, from] };
    }
}

/// Notes a payload's length, and what its octets are like.
pub(super) fn note_payload(extra: &mut Extra, side: usize, packet: &Decoded<'_>) {
    let length = packet.payload_len.min(i16::MAX as u32) as i16;
    if let Some(place) = extra.first_lengths.get_mut(usize::from(extra.lengths)) {
        *place = if side == 0 { length } else { -length };
    }
    extra.lengths = extra.lengths.saturating_add(1);
    if packet.fragment == Fragment::Whole {
        note_entropy(extra, side, packet);
    }
}

/// Notes the entropy of a side's first payload.
pub(super) fn note_entropy(extra: &mut Extra, side: usize, packet: &Decoded<'_>) {
    if extra.entropy[side] == u16::MAX && !packet.payload.is_empty() {
        let head = &packet.payload[..packet.payload.len().min(ENTROPY_OCTETS)];
        extra.entropy[side] = (entropy(head) * 8192.0).round().min(65_534.0) as u16;
    }
}

// How many octets of a side's first payload its entropy is of.
const ENTROPY_OCTETS: usize = 256;

const SCALE: f64 = (1_u64 << 32) as f64;

// By how often an octet has come up: n log2 n in whole numbers, so that the order of the octets does not matter, and what
// one more adds to it.
struct Terms {
    whole: [u64; ENTROPY_OCTETS + 1],
    steps: [u64; ENTROPY_OCTETS],
}

static TERMS: LazyLock<Terms> = LazyLock::new(|| {
    let term = |n: usize| match n {
        0 => 0,
        _ => (n as f64 * (n as f64).log2() * SCALE).round() as u64,
    };
    Terms {
        whole: std::array::from_fn(term),
        steps: std::array::from_fn(|n| term(n + 1) - term(n)),
    }
});

// Shannon entropy, bits an octet, of at most `ENTROPY_OCTETS` octets.
fn entropy(data: &[u8]) -> f32 {
    let terms = &*TERMS;
    let data = &data[..data.len().min(ENTROPY_OCTETS)];
    let mut counts = [0_u8; 256];
    let mut sum = 0;
    for &octet in data {
        let count = &mut counts[usize::from(octet)];
        sum += terms.steps[usize::from(*count)];
        // Of all octets alike the last one's count is not read any more.
        *count = count.wrapping_add(1);
    }
    let all = terms.whole[data.len()];
    (all.saturating_sub(sum) as f64 / SCALE / data.len() as f64) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropy_is_shannons() {
        assert_eq!(entropy(b"aaaa"), 0.0);
        assert_eq!(entropy(b"ab"), 1.0);
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(entropy(&all), 8.0);
        assert!((entropy(b"aab") - 0.918_296).abs() < 1e-5);
    }
}
