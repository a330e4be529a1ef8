//! DNS messages (RFC 1035) over UDP, TCP and multicast: the question, the response code, the answers.

use std::{fmt::Write as _, net::Ipv6Addr};

/// What is told about a flow's DNS.
#[derive(Debug, Default)]
pub struct DnsFacts {
    /// Name in the first question, lower case, without the root's dot.
    pub query: Option<String>,
    /// Type in the first question.
    pub qtype: Option<u16>,
    /// Response code of the latest answer.
    pub rcode: Option<u8>,
    /// Questions.
    pub queries: u32,
    /// Answers of the latest response, separated by commas, cut at 512 octets.
    pub answers: Option<String>,
    /// The shortest time to live among them, seconds.
    pub ttl: Option<u32>,
}

const HEADER: usize = 12;
const MAX_ANSWERS: usize = 512;

/// Whether octets could be a DNS message: what is expected on its ports.
pub fn is_plausible(data: &[u8]) -> bool {
    let Some(header) = data.first_chunk::<HEADER>() else {
        return false;
    };
    let count = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    if !has_header(data) || count(4) > 64 || count(4) | count(6) | count(8) | count(10) == 0 {
        return false;
    }
    let mut at = HEADER;
    for _ in 0..count(4).min(4) {
        if skip_name(data, &mut at).is_none() {
            return false;
        }
        at += 4;
    }
    at <= data.len()
}

/// Whether octets begin with a header of DNS: a known operation and few questions.
pub fn has_header(data: &[u8]) -> bool {
    data.first_chunk::<HEADER>()
        .is_some_and(|header| header[2] >> 3 & 0x0f <= 6 && header[4] == 0)
}

/// Whether octets are a message of the NetBIOS name service: its operations, and few records.
pub fn is_netbios(data: &[u8]) -> bool {
    let Some(header) = data.first_chunk::<HEADER>() else {
        return false;
    };
    let count = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let operation = matches!(header[2] >> 3 & 0x0f, 0 | 5..=8 | 15);
    let counts = [4, 6, 8, 10].map(count);
    operation && counts.iter().all(|&n| n <= 16) && counts.iter().any(|&n| n > 0)
}

// Leaves `at` behind a name, without reading it.
fn skip_name(data: &[u8], at: &mut usize) -> Option<()> {
    loop {
        let octet = *data.get(*at)?;
        match octet >> 6 {
            0 if octet == 0 => {
                *at += 1;
                return Some(());
            }
            0 => *at += 1 + usize::from(octet),
            3 => {
                *at += 2;
                return (*at <= data.len()).then_some(());
            }
            _ => return None,
        }
    }
}

/// Whether octets are surely a DNS message, though not on a port of DNS: one question of a known class that
/// the message ends with or that is followed by records.
pub fn is_message(data: &[u8]) -> bool {
    let Some(header) = data.first_chunk::<HEADER>() else {
        return false;
    };
    let count = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let response = header[2] & 0x80 != 0;
    let opcode = header[2] >> 3 & 0x0f;
    let plain = opcode == 0 && header[3] & 0x40 == 0 && count(4) == 1 && count(8) <= 16;
    if !plain || (!response && (count(6) != 0 || count(10) > 2)) || count(6) > 64 {
        return false;
    }
    let mut at = HEADER;
    let mut labels = 0;
    if walk_name(data, &mut at, |_| labels += 1).is_none() || labels == 0 {
        return false;
    }
    let known = data
        .get(at..at + 4)
        .is_some_and(|b| u16::from_be_bytes([b[0], b[1]]) <= 260 && matches!(b[2..], [0 | 0x80, 1] | [0, 255]));
    known && (response || count(10) > 0 || at + 4 == data.len())
}

impl DnsFacts {
    /// Takes a message. Gives whether a fact is known for the first time, or `None` if it is no DNS.
    pub fn message(&mut self, data: &[u8]) -> Option<bool> {
        let header = data.first_chunk::<HEADER>()?;
        let count = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let response = header[2] & 0x80 != 0;
        if header[2] >> 3 & 0x0f > 6 || count(4) > 64 {
            return None;
        }
        let mut at = HEADER;
        let mut news = false;
        for question in 0..count(4) {
            let wanted = question == 0 && self.query.is_none();
            let mut name = String::new();
            match wanted {
                true => read_name(data, &mut at, &mut name)?,
                false => walk_name(data, &mut at, |_| ())?,
            }
            let kind = be16(data, at)?;
            at += 4;
            if wanted {
                self.query = Some(netbios_name(&name).unwrap_or(name));
                self.qtype = Some(kind);
                news = true;
            }
        }
        if !response {
            self.queries = self.queries.saturating_add(1);
            return Some(news);
        }
        news |= self.rcode.is_none();
        self.rcode = Some(header[3] & 0x0f);
        let mut answers = self.answers.take().unwrap_or_default();
        answers.clear();
        self.ttl = None;
        for _ in 0..count(6) {
            // Answers that end early are told as far as they came.
            let Some(ttl) = answer(data, &mut at, &mut answers) else {
                break;
            };
            self.ttl = Some(self.ttl.map_or(ttl, |least| least.min(ttl)));
            if answers.len() > MAX_ANSWERS {
                break;
            }
        }
        let mut end = answers.len().min(MAX_ANSWERS);
        if answers.len() > MAX_ANSWERS {
            end = answers[..end].rfind(',').unwrap_or(0);
        }
        answers.truncate(end);
        self.answers = (!answers.is_empty()).then_some(answers);
        Some(news)
    }
}

fn be16(data: &[u8], at: usize) -> Option<u16> {
    data.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]]))
}

// A NetBIOS name in the form that RFC 1001 §14.1 gives it for DNS: sixteen octets as thirty-two letters from a to p, the
// last octet being the kind.
fn netbios_name(name: &str) -> Option<String> {
    let label = name.split('.').next()?.as_bytes();
    if label.len() != 32 || !label.iter().all(|b| (b'a'..=b'p').contains(b)) {
        return None;
    }
    let octets: Vec<u8> = label
        .chunks_exact(2)
        .map(|c| (c[0] - b'a') << 4 | (c[1] - b'a'))
        .collect();
    let (kind, text) = octets.split_last()?;
    let text: String = text
        .iter()
        .filter(|&&b| b != 0)
        .map(|&b| {
            if b.is_ascii_graphic() || b == b' ' {
                char::from(b)
            } else {
                '?'
            }
        })
        .collect();
    Some(format!("{}<{kind:02x}>", text.trim_end()))
}

// Gives the answer's time to live.
fn answer(data: &[u8], at: &mut usize, out: &mut String) -> Option<u32> {
    walk_name(data, at, |_| ())?;
    let kind = be16(data, *at)?;
    let ttl = u32::from(be16(data, *at + 4)?) << 16 | u32::from(be16(data, *at + 6)?);
    let length = usize::from(be16(data, *at + 8)?);
    let start = *at + 10;
    let content = data.get(start..start + length)?;
    *at = start + length;
    if !out.is_empty() {
        out.push(',');
    }
    let mut inside = start;
    // Writing into a string cannot fail.
    let _ = match (kind, length) {
        (1, 4) => {
            for (place, octet) in content.iter().enumerate() {
                if place > 0 {
                    out.push('.');
                }
                push_number(*octet, out);
            }
            Ok(())
        }
        (28, 16) => {
            let mut octets = [0; 16];
            octets.copy_from_slice(content);
            write!(out, "{}", Ipv6Addr::from(octets))
        }
        // NS, CNAME, PTR; MX behind its preference.
        (2 | 5 | 12, _) => {
            read_name(data, &mut inside, out)?;
            Ok(())
        }
        (15, 3..) => {
            inside += 2;
            read_name(data, &mut inside, out)?;
            Ok(())
        }
        _ => write!(out, "TYPE{kind}"),
    };
    Some(ttl)
}

fn push_number(number: u8, out: &mut String) {
    let digit = |value: u8| char::from(b'0' + value % 10);
    if number >= 100 {
        out.push(digit(number / 100));
    }
    if number >= 10 {
        out.push(digit(number / 10));
    }
    out.push(digit(number));
}

// Reads a name and leaves `at` behind it.
fn read_name(data: &[u8], at: &mut usize, out: &mut String) -> Option<()> {
    let start = out.len();
    // Most names fit at once.
    if out.capacity() == 0 {
        out.reserve(64);
    }
    walk_name(data, at, |label| {
        if out.len() > start {
            out.push('.');
        }
        push_label(label, out);
    })
}

fn push_label(label: &[u8], out: &mut String) {
    // Names are nearly always of letters, digits and hyphens.
    if label
        .iter()
        .all(|b| b.is_ascii_alphanumeric() || *b == b'-' || *b == b'_')
        && let Ok(text) = std::str::from_utf8(label)
    {
        let from = out.len();
        out.push_str(text);
        out[from..].make_ascii_lowercase();
        return;
    }
    for &b in label {
        match b {
            b'.' | b'\\' | b',' => {
                out.push('\\');
                out.push(char::from(b));
            }
            0x21..=0x7e => out.push(char::from(b.to_ascii_lowercase())),
            _ => {
                // Writing into a string cannot fail.
                let _ = write!(out, "\\{b:03}");
            }
        }
    }
}

// Gives each label of a name and leaves `at` behind it. Pointers must go backwards, so following them ends.
fn walk_name(data: &[u8], at: &mut usize, mut label: impl FnMut(&[u8])) -> Option<()> {
    let mut place = *at;
    let mut behind = None;
    let mut length = 0;
    loop {
        let octet = *data.get(place)?;
        match octet >> 6 {
            0 => {
                if octet == 0 {
                    place += 1;
                    break;
                }
                let text = data.get(place + 1..place + 1 + usize::from(octet))?;
                length += text.len() + 1;
                // RFC 1035 §3.1.
                if length > 255 {
                    return None;
                }
                label(text);
                place += 1 + usize::from(octet);
            }
            3 => {
                let target = usize::from(be16(data, place)? & 0x3fff);
                behind.get_or_insert(place + 2);
                if target >= place {
                    return None;
                }
                place = target;
            }
            _ => return None,
        }
    }
    *at = behind.unwrap_or(place);
    Some(())
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut data = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            data.push(label.len() as u8);
            data.extend(label.as_bytes());
        }
        data.push(0);
        data.extend(kind.to_be_bytes());
        data.extend([0, 1]);
        data
    }

    pub(crate) fn answer_to(query: &[u8], rcode: u8) -> Vec<u8> {
        let mut data = query.to_vec();
        (data[2], data[3]) = (0x81, 0x80 | rcode);
        if rcode == 0 {
            data[7] = 2;
            data.extend([0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 9, 0, 6, 3, b'C', b'D', b'N', 0xc0, 12]);
            data.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 7]);
        }
        data
    }

    #[test]
    fn question_and_answers_are_told() {
        let mut dns = DnsFacts::default();
        let ask = query("Www.Example.com", 1);
        assert_eq!(dns.message(&ask), Some(true));
        assert_eq!(dns.query.as_deref(), Some("www.example.com"));
        assert_eq!((dns.qtype, dns.rcode, dns.queries), (Some(1), None, 1));
        assert_eq!(dns.message(&answer_to(&ask, 0)), Some(true));
        assert_eq!(dns.rcode, Some(0));
        assert_eq!(dns.answers.as_deref(), Some("cdn.www.example.com,192.0.2.7"));
        assert_eq!(dns.message(&answer_to(&ask, 3)), Some(false));
        assert_eq!(dns.rcode, Some(3));
    }

    #[test]
    fn pointers_that_go_round_are_refused() {
        let mut data = query("a", 1);
        data[12..14].copy_from_slice(&[0xc0, 12]);
        assert_eq!(DnsFacts::default().message(&data), None);
    }

    #[test]
    fn only_sure_messages_are_taken_on_any_port() {
        let ask = query("www.example.com", 1);
        assert!(is_message(&ask));
        assert!(is_message(&answer_to(&ask, 0)));
        assert!(!is_message(&[ask.clone(), vec![0]].concat()));
        assert!(!is_message(&[0; 40]));
        assert!(!is_message(&ask[..20]));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2048))]

        #[test]
        fn no_message_panics_and_text_stays_bounded(
            at in any::<prop::sample::Index>(), value in any::<u8>(), cut in any::<prop::sample::Index>(),
            tail in prop::collection::vec(any::<u8>(), 0..600), answers in any::<u8>(),
        ) {
            let mut data = answer_to(&query("www.example.com", 1), 0);
            data[7] = answers;
            let place = at.index(data.len());
            data[place] = value;
            data.truncate(cut.index(data.len()).max(20));
            data.extend(tail);
            let mut dns = DnsFacts::default();
            dns.message(&data);
            is_message(&data);
            prop_assert!(dns.answers.is_none_or(|a| a.len() <= MAX_ANSWERS));
            prop_assert!(dns.query.is_none_or(|q| q.len() <= 255 * 4));
        }
    }
}
