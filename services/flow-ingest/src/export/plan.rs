//! Templates, compiled: for each field of a record where it is and where its value goes.

use serde::{Deserialize, Serialize};

use super::{
    Malformed,
    field::{Action, Kind, SLOTS, Slot, TEXTS, Text, action},
};

/// Most fields of a template.
pub const MAX_FIELDS: usize = 512;
/// Field length that says "its length stands before each value" (RFC 7011 §7).
pub const VARIABLE: u16 = 0xffff;

/// A field as the template gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldSpec {
    /// Private enterprise number; 0 for the registry's own fields.
    pub enterprise: u32,
    /// Number of the information element.
    pub id: u16,
    /// Octets, or [`VARIABLE`].
    pub length: u16,
}

struct Step {
    offset: u32,
    length: u16,
    action: Action,
    // Index of the name in `names`, for what goes beside the columns.
    name: u16,
}

// A number of a record of fixed length, read without asking what it is: eight octets that end with it, or with the eighth
// octet of the record.
struct Direct {
    load: u32,
    shift: u8,
    slot: u8,
    mask: u64,
}

/// A compiled template.
pub struct Plan {
    fields: Vec<FieldSpec>,
    /// The first this many fields are scopes of an options template.
    scopes: u16,
    steps: Vec<Step>,
    // Numbers that have no step, and their slots as bits.
    direct: Vec<Direct>,
    have: u64,
    // `"name":` of each extra.
    names: Vec<String>,
    // Octets of a record; with variable fields the least there can be.
    length: usize,
    variable: bool,
}

/// The values of one record. Text stays in the datagram.
pub struct Values<'a> {
    have: u64,
    numbers: [u64; SLOTS],
    /// The sender's address, IPv4 mapped into IPv6.
    pub src: [u8; 16],
    /// The receiver's.
    pub dst: [u8; 16],
    /// Octets that `src` had in the record: 4, 16, or 0 when it was not there.
    pub src_len: u8,
    /// The same for `dst`.
    pub dst_len: u8,
    /// The sender's link address.
    pub src_mac: Option<[u8; 6]>,
    /// The receiver's.
    pub dst_mac: Option<[u8; 6]>,
    texts: [&'a [u8]; TEXTS],
}

impl<'a> Values<'a> {
    pub(super) fn new() -> Self {
        Self {
            have: 0,
            numbers: [0; SLOTS],
            src: [0; 16],
            dst: [0; 16],
            src_len: 0,
            dst_len: 0,
            src_mac: None,
            dst_mac: None,
            texts: [&[]; TEXTS],
        }
    }

    // Numbers are left as they are: `have` says which count.
    fn clear(&mut self) {
        self.have = 0;
        self.src_len = 0;
        self.dst_len = 0;
        self.src_mac = None;
        self.dst_mac = None;
        self.texts = [&[]; TEXTS];
    }

    /// The number in a slot, if the record has it.
    #[inline]
    pub fn get(&self, slot: Slot) -> Option<u64> {
        (self.have & 1 << slot as u8 != 0).then(|| self.numbers[slot as usize])
    }

    #[inline]
    pub(super) fn set(&mut self, slot: Slot, value: u64) {
        self.have |= 1 << slot as u8;
        self.numbers[slot as usize] = value;
    }

    /// A text, without the padding behind it; `None` when it is empty or no UTF-8.
    pub fn text(&self, which: Text) -> Option<&'a str> {
        plain_text(self.texts[which as usize])
    }
}

fn plain_text(bytes: &[u8]) -> Option<&str> {
    if bytes.is_empty() {
        return None;
    }
    let end = bytes.iter().rposition(|&b| b != 0).map_or(0, |last| last + 1);
    std::str::from_utf8(&bytes[..end]).ok().filter(|text| !text.is_empty())
}

impl Plan {
    /// Compiles a template.
    ///
    /// # Errors
    /// What contradicts the format: no fields, too many, or records without an octet.
    pub fn compile(fields: Vec<FieldSpec>, scopes: u16) -> Result<Self, &'static str> {
        if fields.is_empty() {
            return Err("a template has no fields");
        }
        if fields.len() > MAX_FIELDS {
            return Err("a template has more than 512 fields");
        }
        if usize::from(scopes) > fields.len() {
            return Err("a template has more scopes than fields");
        }
        let variable = fields.iter().any(|field| field.length == VARIABLE);
        let total: usize = fields.iter().map(|field| usize::from(field.length)).sum();
        let (mut steps, mut direct, mut have) = (Vec::new(), Vec::new(), 0);
        let mut names = Vec::new();
        let mut offset = 0;
        for (i, field) in fields.iter().enumerate() {
            let length = match field.length {
                VARIABLE => 1,
                fixed => usize::from(fixed),
            };
            let mut wanted = match i < usize::from(scopes) && !is_element(field, scopes) {
                true => Action::Skip,
                false => action(field.enterprise, field.id),
            };
            if !fits(wanted, field.length) {
                wanted = Action::Numbered;
            }
            if let Action::Number(slot) = wanted
                && !variable
                && length > 0
                && total >= 8
            {
                let load = (offset + length).max(8) - 8;
                direct.push(Direct {
                    load: load as u32,
                    shift: (load + 8 - offset - length) as u8 * 8,
                    slot: slot as u8,
                    mask: u64::MAX >> (64 - 8 * length),
                });
                have |= 1 << slot as u8;
                offset += length;
                continue;
            }
            // A variable record is walked from its front, so every field has its step.
            if variable || (field.length > 0 && wanted != Action::Skip) {
                let name = u16::try_from(names.len()).unwrap_or(u16::MAX);
                match wanted {
                    Action::Extra(text, _) => names.push(format!("\"{text}\":")),
                    Action::Numbered if field.enterprise == 0 => names.push(format!("\"{}\":", field.id)),
                    Action::Numbered => names.push(format!("\"{}.{}\":", field.enterprise, field.id)),
                    _ => {}
                }
                steps.push(Step {
                    offset: offset as u32,
                    length: field.length,
                    action: wanted,
                    name,
                });
            }
            offset += length;
        }
        if offset == 0 {
            return Err("a template's records have no octets");
        }
        Ok(Self {
            fields,
            scopes,
            steps,
            direct,
            have,
            names,
            length: offset,
            variable,
        })
    }

    /// The template as it was given.
    pub fn fields(&self) -> &[FieldSpec] {
        &self.fields
    }

    /// How many of the fields are scopes; 0 for a template of flows.
    pub fn scopes(&self) -> u16 {
        self.scopes
    }

    /// Octets of a record, or the least there can be.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Octets of its records differ.
    pub fn is_variable(&self) -> bool {
        self.variable
    }

    /// Reads the record at the front of `data`; gives its length. `extra` takes the inside of a JSON object of what has
    /// no place in `values`, when `keep` asks for it.
    ///
    /// # Errors
    /// When the record is longer than `data`.
    #[inline]
    pub fn read<'a>(
        &self,
        data: &'a [u8],
        values: &mut Values<'a>,
        extra: &mut Vec<u8>,
        keep: bool,
    ) -> Result<usize, Malformed> {
        values.clear();
        extra.clear();
        if self.variable {
            return self.walk(data, values, extra, keep);
        }
        let Some(record) = data.get(..self.length) else {
            return Err(Malformed::new(0, "a record is cut short"));
        };
        values.have = self.have;
        for number in &self.direct {
            let at = number.load as usize;
            // The places were added up to `length` when the plan was made.
            if let (Some(octets), Some(place)) = (
                record.get(at..at + 8).and_then(|octets| octets.first_chunk()),
                values.numbers.get_mut(usize::from(number.slot)),
            ) {
                *place = u64::from_be_bytes(*octets) >> number.shift & number.mask;
            }
        }
        for step in &self.steps {
            let at = step.offset as usize;
            // The offsets were added up to `length` when the plan was made.
            if let Some(bytes) = record.get(at..at + usize::from(step.length)) {
                self.apply(step, bytes, values, extra, keep);
            }
        }
        Ok(self.length)
    }

    #[cold]
    fn walk<'a>(
        &self,
        data: &'a [u8],
        values: &mut Values<'a>,
        extra: &mut Vec<u8>,
        keep: bool,
    ) -> Result<usize, Malformed> {
        let mut at = 0;
        let cut = |at| Malformed::new(at, "a record is cut short");
        for step in &self.steps {
            let mut length = usize::from(step.length);
            if step.length == VARIABLE {
                length = usize::from(*data.get(at).ok_or_else(|| cut(at))?);
                at += 1;
                if length == 255 {
                    let long = data.get(at..at + 2).ok_or_else(|| cut(at))?;
                    length = usize::from(u16::from_be_bytes([long[0], long[1]]));
                    at += 2;
                }
            }
            let bytes = data.get(at..at + length).ok_or_else(|| cut(at))?;
            at += length;
            if length > 0 {
                self.apply(step, bytes, values, extra, keep);
            }
        }
        Ok(at)
    }

    #[inline]
    fn apply<'a>(&self, step: &Step, bytes: &'a [u8], values: &mut Values<'a>, extra: &mut Vec<u8>, keep: bool) {
        match step.action {
            Action::Number(slot) => {
                if bytes.len() <= 8 {
                    values.set(slot, number(bytes));
                }
            }
            // Templates with both families leave one of them zero.
            Action::Src if values.src_len == 0 || bytes.iter().any(|&b| b != 0) => {
                values.src_len = bytes.len() as u8;
                values.src = mapped(bytes);
            }
            Action::Dst if values.dst_len == 0 || bytes.iter().any(|&b| b != 0) => {
                values.dst_len = bytes.len() as u8;
                values.dst = mapped(bytes);
            }
            Action::SrcMac => values.src_mac = bytes.try_into().ok(),
            Action::DstMac => values.dst_mac = bytes.try_into().ok(),
            Action::Text(which) => values.texts[which as usize] = bytes,
            Action::Extra(_, kind) if keep => self.put(step, kind, bytes, extra),
            Action::Numbered if keep => self.put(step, Kind::Unknown, bytes, extra),
            Action::Src | Action::Dst | Action::Extra(..) | Action::Numbered | Action::Skip => {}
        }
    }

    fn put(&self, step: &Step, kind: Kind, bytes: &[u8], extra: &mut Vec<u8>) {
        if let Some(name) = self.names.get(usize::from(step.name)) {
            put(extra, name, kind, bytes);
        }
    }
}

// NetFlow version 9 numbers scopes apart from fields: 1 system, 2 interface, 3 line card, 4 cache, 5 template.
fn is_element(field: &FieldSpec, scopes: u16) -> bool {
    scopes > 0 && (field.enterprise != 0 || field.id > 5)
}

// A field whose length is none that its element may have is kept beside the columns.
fn fits(action: Action, length: u16) -> bool {
    match action {
        Action::Number(_) => length <= 8 || length == VARIABLE,
        Action::Src | Action::Dst => matches!(length, 4 | 16),
        Action::SrcMac | Action::DstMac => length == 6,
        _ => true,
    }
}

/// Reads an unsigned number of at most eight octets, most significant first: also how reduced-size encoding
/// (RFC 7011 §6.2) is undone.
#[inline]
pub fn number(bytes: &[u8]) -> u64 {
    match *bytes {
        [a] => a.into(),
        [a, b] => u16::from_be_bytes([a, b]).into(),
        [a, b, c, d] => u32::from_be_bytes([a, b, c, d]).into(),
        [a, b, c, d, e, f, g, h] => u64::from_be_bytes([a, b, c, d, e, f, g, h]),
        _ => bytes.iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte)),
    }
}

#[inline]
fn mapped(bytes: &[u8]) -> [u8; 16] {
    match *bytes {
        [a, b, c, d] => [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d],
        _ => bytes.try_into().unwrap_or_default(),
    }
}

/// Longest value that is kept beside the columns, octets.
const MAX_EXTRA: usize = 256;

pub(super) fn put(extra: &mut Vec<u8>, name: &str, kind: Kind, bytes: &[u8]) {
    use std::io::Write as _;
    let none = bytes.iter().all(|&b| b == 0);
    if bytes.len() > MAX_EXTRA || (none && matches!(kind, Kind::Positive | Kind::Address | Kind::Mac)) {
        return;
    }
    let before = extra.len();
    if before > 0 {
        extra.push(b',');
    }
    extra.extend_from_slice(name.as_bytes());
    // Writing to a vector cannot fail.
    let _ = match kind {
        Kind::Number | Kind::Positive | Kind::Unknown if bytes.len() <= 8 => {
            put_decimal(extra, number(bytes));
            Ok(())
        }
        Kind::Address if bytes.len() == 4 => {
            write!(extra, "\"{}.{}.{}.{}\"", bytes[0], bytes[1], bytes[2], bytes[3])
        }
        Kind::Address if bytes.len() == 16 => write!(extra, "\"{}\"", std::net::Ipv6Addr::from(mapped(bytes))),
        Kind::Mac if bytes.len() == 6 => write!(
            extra,
            "\"{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}\"",
            bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5]
        ),
        Kind::Text | Kind::Unknown => match plain_text(bytes) {
            Some(text) if kind == Kind::Text || !text.chars().any(char::is_control) => {
                serde_json::to_writer(&mut *extra, text).map_err(std::io::Error::from)
            }
            None if kind == Kind::Text => {
                extra.truncate(before);
                return;
            }
            _ => write!(extra, "\"{}\"", hex::encode(bytes)),
        },
        _ => write!(extra, "\"{}\"", hex::encode(bytes)),
    };
}

// Formatting costs three times as much, and most of what is beside the columns is numbers.
fn put_decimal(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(enterprise: u32, id: u16, length: u16) -> FieldSpec {
        FieldSpec { enterprise, id, length }
    }

    #[test]
    fn numbers_of_a_fixed_record_read_as_those_of_a_variable_one() {
        // Octets delta count in every length, behind and before other fields.
        for length in 1..=8_u16 {
            for before in [0, 1, 5, 20] {
                let fields = vec![
                    spec(9, 1, before.max(1)),
                    spec(0, 1, length),
                    spec(0, 4, 1),
                    spec(9, 2, 3),
                ];
                let plan = Plan::compile(fields, 0).unwrap();
                let data: Vec<u8> = (0..plan.length() as u8).map(|i| 0xf0 ^ i.wrapping_mul(37)).collect();
                let (mut values, mut extra) = (Values::new(), Vec::new());
                assert_eq!(plan.read(&data, &mut values, &mut extra, false).unwrap(), data.len());
                let at = usize::from(before.max(1));
                let octets = &data[at..at + usize::from(length)];
                assert_eq!(values.get(Slot::SrcIpBytes), Some(number(octets)), "{length} {before}");
                let protocol = data[at + usize::from(length)];
                assert_eq!(values.get(Slot::Protocol), Some(protocol.into()));
                assert_eq!(values.get(Slot::SrcPort), None);
            }
        }
    }

    #[test]
    fn reduced_sizes_read_as_the_same_number() {
        for length in 1..=8 {
            assert_eq!(number(&[&[0; 8][..length - 1], &[7]].concat()), 7);
        }
        assert_eq!(number(&[1, 2, 3]), 0x010203);
    }

    #[test]
    fn decimals_are_those_of_the_library() {
        for value in [0, 7, 10, 99, 65_535, 1_000_000, u64::MAX] {
            let mut text = Vec::new();
            put_decimal(&mut text, value);
            assert_eq!(text, value.to_string().as_bytes());
        }
    }

    #[test]
    fn variable_fields_take_one_or_three_octets_of_length() {
        let plan = Plan::compile(vec![spec(0, 460, VARIABLE), spec(9, 7, VARIABLE), spec(0, 4, 1)], 0).unwrap();
        assert!(plan.is_variable());
        let (mut values, mut extra) = (Values::new(), Vec::new());
        let data = [&[4][..], b"host", &[255, 0, 2], &[1, 2], &[17], &[9; 3]].concat();
        assert_eq!(plan.read(&data, &mut values, &mut extra, true).unwrap(), data.len() - 3);
        assert_eq!(values.text(Text::HttpHost), Some("host"));
        assert_eq!(values.get(Slot::Protocol), Some(17));
        assert_eq!(extra, b"\"9.7\":258");
        assert!(plan.read(&data[..6], &mut values, &mut extra, true).is_err());
    }

    #[test]
    fn what_has_no_column_is_json_by_name_or_number() {
        let fields = vec![
            spec(0, 10, 2),
            spec(0, 15, 4),
            spec(0, 82, 4),
            spec(0, 499, 3),
            spec(0, 4, 1),
            spec(0, 57, 6),
            spec(5951, 129, 12),
        ];
        let plan = Plan::compile(fields, 0).unwrap();
        let mut data = vec![0, 3, 192, 0, 2, 1];
        data.extend(b"a\"b\0");
        data.extend([0, 1, 0, 6, 2, 0, 0, 0, 0, 1]);
        data.extend([0xff; 12]);
        let (mut values, mut extra) = (Values::new(), Vec::new());
        plan.read(&data, &mut values, &mut extra, true).unwrap();
        let text = format!("{{{}}}", String::from_utf8(extra.clone()).unwrap());
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["ingressInterface"], 3);
        assert_eq!(json["ipNextHopIPv4Address"], "192.0.2.1");
        assert_eq!(json["interfaceName"], "a\"b");
        assert_eq!(json["499"], 256);
        assert_eq!(json["postDestinationMacAddress"], "02:00:00:00:00:01");
        assert_eq!(json["5951.129"], "ff".repeat(12));
        plan.read(&data, &mut values, &mut extra, false).unwrap();
        assert!(extra.is_empty());
    }

    #[test]
    fn templates_without_records_are_refused() {
        assert!(Plan::compile(vec![], 0).is_err());
        assert!(Plan::compile(vec![spec(0, 1, 0)], 0).is_err());
        assert!(Plan::compile(vec![spec(0, 1, 4); MAX_FIELDS + 1], 0).is_err());
        assert!(Plan::compile(vec![spec(0, 1, 4)], 2).is_err());
    }
}
