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
pub(super) fn alpn_code(alpn: Option<&[u8]>) -> [char; 2] {
    let (Some(&first), Some(&last)) = (alpn.and_then(<[u8]>::first), alpn.and_then(<[u8]>::last)) else {
        return ['0', '0'];
    };
    if first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric() {
        return [char::from(first), char::from(last)];
    }
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble & 0x0f)]);
    [digit(first >> 4), digit(last)]
}

// Fingerprints are of texts of many small numbers, which are written digit by digit: formatting each would take longer
// than everything else about a hello.
const DIGITS: &[u8; 16] = b"0123456789abcdef";

fn push_hex(text: &mut String, octets: &[u8]) {
    for octet in octets {
        text.push(char::from(DIGITS[usize::from(octet >> 4)]));
        text.push(char::from(DIGITS[usize::from(octet & 15)]));
    }
}

pub(in crate::domain::app) fn hex(octets: &[u8]) -> String {
    let mut text = String::with_capacity(octets.len() * 2);
    push_hex(&mut text, octets);
    text
}

fn push_decimal(text: &mut String, value: u16) {
    let mut begun = false;
    for unit in [10_000, 1_000, 100, 10, 1] {
        let digit = value / unit % 10;
        begun |= digit != 0 || unit == 1;
        if begun {
            text.push(char::from(DIGITS[usize::from(digit)]));
        }
    }
}

fn push_list(text: &mut String, values: &[u16]) {
    for (place, value) in values.iter().enumerate() {
        if place > 0 {
            text.push(',');
        }
        push_hex(text, &value.to_be_bytes());
    }
}

fn list(values: &[u16]) -> String {
    let mut text = String::with_capacity(values.len() * 5);
    push_list(&mut text, values);
    text
}

fn push_short_hash(out: &mut String, text: &str) {
    match text.is_empty() {
        true => out.push_str("000000000000"),
        false => push_hex(out, &Sha256::digest(text.as_bytes())[..6]),
    }
}

fn push_decimals(text: &mut String, values: impl Iterator<Item = u16>) {
    for (place, value) in values.enumerate() {
        if place > 0 {
            text.push('-');
        }
        push_decimal(text, value);
    }
}

pub(super) fn ja3(legacy: u16, ciphers: &[u16], kinds: &[u16], groups: &[u16], formats: &[u8]) -> String {
    let real = |values: &'_ [u16]| -> Vec<u16> { values.iter().copied().filter(|v| !is_grease(*v)).collect() };
    let mut text = String::with_capacity(8 + 6 * (ciphers.len() + kinds.len() + groups.len()) + 4 * formats.len());
    push_decimal(&mut text, legacy);
    for values in [ciphers, kinds, groups] {
        text.push(',');
        push_decimals(&mut text, real(values).into_iter());
    }
    text.push(',');
    push_decimals(&mut text, formats.iter().map(|&b| u16::from(b)));
    md5_hex(&text)
}

pub(super) fn ja3s(legacy: u16, cipher: u16, kinds: &[u16]) -> String {
    let mut text = String::with_capacity(16 + 6 * kinds.len());
    push_decimal(&mut text, legacy);
    text.push(',');
    push_decimal(&mut text, cipher);
    text.push(',');
    push_decimals(&mut text, kinds.iter().copied());
    md5_hex(&text)
}

pub(in crate::domain::app) fn md5_hex(text: &str) -> String {
    hex(&Md5::digest(text.as_bytes()))
}

fn push_two_digits(text: &mut String, count: usize) {
    let count = count.min(99);
    text.push(char::from(DIGITS[count / 10]));
    text.push(char::from(DIGITS[count % 10]));
}

pub(super) fn ja4(
    carrier: Carrier,
    version: u16,
    ciphers: &[u16],
    extensions: &[u16],
    alpn: Option<&[u8]>,
    signatures: &[u16],
) -> String {
    let without_grease = |values: &[u16]| -> Vec<u16> { values.iter().copied().filter(|v| !is_grease(*v)).collect() };
    let mut ciphers = without_grease(ciphers);
    let mut kinds = without_grease(extensions);
    let signatures = without_grease(signatures);
    let named = if kinds.contains(&EXT_SNI) { 'd' } else { 'i' };
    let mut text = String::with_capacity(36);
    text.push(carrier.letter());
    text.push_str(version_code(version));
    text.push(named);
    push_two_digits(&mut text, ciphers.len());
    push_two_digits(&mut text, kinds.len());
    text.extend(alpn_code(alpn));
    ciphers.sort_unstable();
    kinds.retain(|kind| !matches!(*kind, EXT_SNI | EXT_ALPN));
    kinds.sort_unstable();
    let mut tail = String::with_capacity((kinds.len() + signatures.len()) * 5);
    push_list(&mut tail, &kinds);
    if !tail.is_empty() && !signatures.is_empty() {
        tail.push('_');
        push_list(&mut tail, &signatures);
    }
    text.push('_');
    push_short_hash(&mut text, &list(&ciphers));
    text.push('_');
    push_short_hash(&mut text, &tail);
    text
}

pub(super) fn ja4s(carrier: Carrier, version: u16, cipher: u16, extensions: &[u16], alpn: Option<&[u8]>) -> String {
    let kinds: Vec<u16> = extensions.iter().copied().filter(|kind| !is_grease(*kind)).collect();
    let mut text = String::with_capacity(25);
    text.push(carrier.letter());
    text.push_str(version_code(version));
    push_two_digits(&mut text, kinds.len());
    text.extend(alpn_code(alpn));
    text.push('_');
    push_hex(&mut text, &cipher.to_be_bytes());
    text.push('_');
    push_short_hash(&mut text, &list(&kinds));
    text
}
