//! Fingerprints of hellos: JA3 and JA3S as Salesforce's, JA4 and JA4S as FoxIO specifies them.

use md5::{Digest as _, Md5};
use sha2::{Digest as _, Sha256};

use super::{Carrier, EXT_ALPN, EXT_SNI};

/// RFC 8701: values that mean nothing and are sent to keep servers tolerant.
pub(super) fn is_grease(value: u16) -> bool {
    value & 0x0f0f == 0x0a0a && value >> 8 == value & 0xff
}

fn version_code(version: u16) -> &'static str {
    match version {
        0x0304 => "13",
        0x0303 => "12",
        0x0302 => "11",
        0x0301 => "10",
        0x0300 => "s3",
        0x0002 => "s2",
        0xfeff => "d1",
        0xfefd => "d2",
        0xfefc => "d3",
        _ => "00",
    }
}

// First and last character of the first protocol; of its hexadecimal form where they are not alphanumeric.
pub(super) fn alpn_code(alpn: Option<&[u8]>) -> [u8; 2] {
    let (Some(&first), Some(&last)) = (alpn.and_then(<[u8]>::first), alpn.and_then(<[u8]>::last)) else {
        return [b'0', b'0'];
    };
    if first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric() {
        return [first, last];
    }
    [digits(first)[0], digits(last)[1]]
}

// Fingerprints are of texts of many small numbers, which are written digit by digit: formatting each would take longer
// than everything else about a hello.
const DIGITS: &[u8; 16] = b"0123456789abcdef";

fn digits(octet: u8) -> [u8; 2] {
    [DIGITS[usize::from(octet >> 4)], DIGITS[usize::from(octet & 15)]]
}

// What was written is ASCII.
fn text(octets: Vec<u8>) -> String {
    String::from_utf8(octets).unwrap_or_default()
}

pub(in crate::domain::app) fn hex(octets: &[u8]) -> String {
    text(octets.iter().flat_map(|&octet| digits(octet)).collect())
}

fn push_decimal(text: &mut Vec<u8>, value: u16) {
    let digit = |unit: u16| DIGITS[usize::from(value / unit % 10)];
    match value {
        0..10 => text.push(digit(1)),
        10..100 => text.extend([digit(10), digit(1)]),
        100..1_000 => text.extend([digit(100), digit(10), digit(1)]),
        1_000..10_000 => text.extend([digit(1_000), digit(100), digit(10), digit(1)]),
        _ => text.extend([digit(10_000), digit(1_000), digit(100), digit(10), digit(1)]),
    }
}

fn push_list(text: &mut Vec<u8>, values: &[u16]) {
    for (place, value) in values.iter().enumerate() {
        if place > 0 {
            text.push(b',');
        }
        let [high, low] = value.to_be_bytes();
        let ([a, b], [c, d]) = (digits(high), digits(low));
        text.extend([a, b, c, d]);
    }
}

fn push_short_hash(out: &mut Vec<u8>, text: &[u8]) {
    match text.is_empty() {
        true => out.extend(b"000000000000"),
        false => out.extend(Sha256::digest(text)[..6].iter().flat_map(|&octet| digits(octet))),
    }
}

fn push_decimals(text: &mut Vec<u8>, values: impl Iterator<Item = u16>) {
    for (place, value) in values.enumerate() {
        if place > 0 {
            text.push(b'-');
        }
        push_decimal(text, value);
    }
}

/// A client's lists, without values that mean nothing.
pub(super) struct Offer<'a> {
    pub(super) ciphers: Vec<u16>,
    pub(super) extensions: Vec<u16>,
    pub(super) signatures: Vec<u16>,
    pub(super) groups: Vec<u16>,
    pub(super) formats: &'a [u8],
}

pub(super) fn ja3(legacy: u16, offer: &Offer<'_>) -> String {
    let lists = [&offer.ciphers, &offer.extensions, &offer.groups];
    let values = lists.iter().map(|list| list.len()).sum::<usize>();
    let mut text = Vec::with_capacity(10 + 6 * values + 4 * offer.formats.len());
    push_decimal(&mut text, legacy);
    for values in lists {
        text.push(b',');
        push_decimals(&mut text, values.iter().copied());
    }
    text.push(b',');
    push_decimals(&mut text, offer.formats.iter().map(|&b| u16::from(b)));
    hex(&Md5::digest(text))
}

pub(super) fn ja3s(legacy: u16, cipher: u16, kinds: &[u16]) -> String {
    let mut text = Vec::with_capacity(16 + 6 * kinds.len());
    push_decimal(&mut text, legacy);
    text.push(b',');
    push_decimal(&mut text, cipher);
    text.push(b',');
    push_decimals(&mut text, kinds.iter().copied());
    hex(&Md5::digest(text))
}

pub(in crate::domain::app) fn md5_hex(text: &str) -> String {
    hex(&Md5::digest(text.as_bytes()))
}

fn two_digits(count: usize) -> [u8; 2] {
    let count = count.min(99);
    [DIGITS[count / 10], DIGITS[count % 10]]
}

// Sorts the lists of the offer.
pub(super) fn ja4(carrier: Carrier, version: u16, offer: &mut Offer<'_>, alpn: Option<&[u8]>) -> String {
    let Offer {
        ciphers,
        extensions,
        signatures,
        ..
    } = offer;
    let mut out = Vec::with_capacity(36);
    out.push(carrier.letter());
    out.extend(version_code(version).as_bytes());
    out.push(if extensions.contains(&EXT_SNI) { b'd' } else { b'i' });
    out.extend(two_digits(ciphers.len()));
    out.extend(two_digits(extensions.len()));
    out.extend(alpn_code(alpn));
    ciphers.sort_unstable();
    extensions.retain(|kind| !matches!(*kind, EXT_SNI | EXT_ALPN));
    extensions.sort_unstable();
    let longest = ciphers.len().max(extensions.len() + signatures.len());
    let mut list = Vec::with_capacity(longest * 5);
    push_list(&mut list, ciphers);
    out.push(b'_');
    push_short_hash(&mut out, &list);
    list.clear();
    push_list(&mut list, extensions);
    if !list.is_empty() && !signatures.is_empty() {
        list.push(b'_');
        push_list(&mut list, signatures);
    }
    out.push(b'_');
    push_short_hash(&mut out, &list);
    text(out)
}

pub(super) fn ja4s(carrier: Carrier, version: u16, cipher: u16, extensions: &[u16], alpn: Option<&[u8]>) -> String {
    let kinds: Vec<u16> = extensions.iter().copied().filter(|kind| !is_grease(*kind)).collect();
    let mut out = Vec::with_capacity(25);
    out.push(carrier.letter());
    out.extend(version_code(version).as_bytes());
    out.extend(two_digits(kinds.len()));
    out.extend(alpn_code(alpn));
    out.push(b'_');
    push_list(&mut out, &[cipher]);
    out.push(b'_');
    let mut list = Vec::with_capacity(kinds.len() * 5);
    push_list(&mut list, &kinds);
    push_short_hash(&mut out, &list);
    text(out)
}
