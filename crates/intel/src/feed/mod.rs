//! Formats in which indicators are exchanged.
//!
//! A reader hands on each indicator as it meets it, and reports what it could not take with its place. What is wrong with
//! a line or an object costs that line or object; only what cannot be read at all is an error.

mod csv;
mod json;
mod list;
mod misp;
mod pattern;
mod stix;
pub mod stored;
pub mod taxii;

use std::fmt;

use chrono::{DateTime, NaiveDate, NaiveDateTime};

pub use csv::{Column, Columns, Csv};
pub use list::List;
pub use misp::Misp;
pub use stix::Stix;

use crate::{
    indicator::Indicator,
    value::{Kind, Value, ValueError},
};

/// How a feed is written.
#[derive(Clone, Debug)]
pub enum Format {
    /// One value a line.
    List(List),
    /// Comma-separated values.
    Csv(Box<Csv>),
    /// A STIX 2.1 bundle, or what a TAXII 2.1 server answers.
    Stix(Stix),
    /// Events or attributes of MISP, JSON.
    Misp(Misp),
}

/// What reading is bounded by.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest feed, octets.
    pub octets: usize,
    /// Most indicators of a feed; what comes later is left out and counted.
    pub indicators: u64,
    /// Most problems that are listed; all are counted.
    pub problems: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            octets: 256 << 20,
            indicators: 2_000_000,
            problems: 20,
        }
    }
}

/// Something that was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where: a line, or an object with its id.
    pub place: String,
    /// What is wrong with it.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

/// What became of a feed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Indicators handed on.
    pub taken: u64,
    /// Lines, objects or values that could not be read.
    pub bad: u64,
    /// Indicators that say more than can be looked up in a flow.
    pub not_understood: u64,
    /// Indicators that their source has withdrawn, or does not mean for detection.
    pub left_out: u64,
    /// Indicators beyond the limit.
    pub too_many: u64,
    /// The first problems.
    pub problems: Vec<Problem>,
}

/// A feed cannot be read at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FeedError {
    /// It is too long.
    #[error("it has {octets} octets and at most {most} are read; raise the limit or split the feed")]
    TooLong {
        /// Its length.
        octets: usize,
        /// The limit.
        most: usize,
    },
    /// It is not what its format says.
    #[error("it is not {format}: {what}")]
    Format {
        /// The format.
        format: &'static str,
        /// What is wrong, with line and column where they are known.
        what: String,
    },
    /// A column does not exist.
    #[error("it has no column {column}; its first line has: {found}")]
    Column {
        /// The column.
        column: String,
        /// The columns there are.
        found: String,
    },
}

/// Reads a feed.
///
/// # Errors
/// [`FeedError`] when it cannot be read at all. Indicators that were handed on before are then not to be used.
pub fn read(
    format: &Format,
    feed: &[u8],
    limits: &Limits,
    take: &mut dyn FnMut(Indicator),
) -> Result<Report, FeedError> {
    let mut sink = Sink::new(limits, take);
    sink.fits(feed.len())?;
    match format {
        Format::List(list) => list.read(feed, &mut sink),
        Format::Csv(csv) => csv.read(feed, &mut sink)?,
        Format::Stix(stix) => stix.read(&[feed], &mut sink)?,
        Format::Misp(misp) => misp.read(feed, &mut sink)?,
    }
    Ok(sink.report)
}

/// Where readers put what they find.
pub(crate) struct Sink<'a> {
    limits: &'a Limits,
    take: &'a mut dyn FnMut(Indicator),
    pub(crate) report: Report,
}

impl<'a> Sink<'a> {
    pub(crate) fn new(limits: &'a Limits, take: &'a mut dyn FnMut(Indicator)) -> Self {
        Self {
            limits,
            take,
            report: Report::default(),
        }
    }

    pub(crate) fn fits(&self, octets: usize) -> Result<(), FeedError> {
        let most = self.limits.octets;
        if octets > most {
            return Err(FeedError::TooLong { octets, most });
        }
        Ok(())
    }

    pub(crate) fn take(&mut self, indicator: Indicator) {
        if self.report.taken >= self.limits.indicators {
            self.report.too_many += 1;
        } else {
            self.report.taken += 1;
            (self.take)(indicator);
        }
    }

    pub(crate) fn bad(&mut self, place: impl FnOnce() -> String, what: impl fmt::Display) {
        self.report.bad += 1;
        self.problem(place, what);
    }

    pub(crate) fn not_understood(&mut self, place: impl FnOnce() -> String, what: impl fmt::Display) {
        self.report.not_understood += 1;
        self.problem(place, what);
    }

    fn problem(&mut self, place: impl FnOnce() -> String, what: impl fmt::Display) {
        if self.report.problems.len() < self.limits.problems {
            self.report.problems.push(Problem {
                place: place(),
                what: crate::canonical::cut(&what.to_string(), 300).to_owned(),
            });
        }
    }
}

/// A value of the type that feeds call so: `ip`, `domain`, `sha256_hash`, `ip-dst|port`, ….
///
/// `None` when the type is none that flows can be asked about.
pub(crate) fn typed(word: &str, text: &str, subdomains: bool) -> Option<Result<Value, ValueError>> {
    let name = if subdomains { Kind::DomainTree } else { Kind::Domain };
    let word = word.trim().to_ascii_lowercase();
    let kind = match word.as_str() {
        "ip" | "ipv4" | "ipv6" | "address" | "ip-src" | "ip-dst" | "ipv4-addr" | "ipv6-addr" | "ip address"
        | "ip_address" | "network" | "cidr" | "netblock" => {
            let network = text.contains('/');
            return Some(Value::parse(if network { Kind::Network } else { Kind::Address }, text));
        }
        "ip:port" | "ip-src|port" | "ip-dst|port" => {
            let address = text.rsplit_once(['|', ':']).map_or(text, |(address, _)| address);
            return Some(Value::parse(Kind::Address, address));
        }
        "domain" | "domain-name" | "domain_name" | "domain-tree" => name,
        "hostname" | "host" | "fqdn" => Kind::Domain,
        "hostname|port" => {
            let host = text.split('|').next().unwrap_or_default();
            return Some(Value::parse(Kind::Domain, host));
        }
        "url" => Kind::Url,
        "ja3" | "ja3-fingerprint-md5" | "ja3_fingerprint" => Kind::Ja3,
        "ja3s" => Kind::Ja3s,
        "ja4" | "ja4-fingerprint" => Kind::Ja4,
        "ja4s" => Kind::Ja4s,
        "certificate" | "x509-fingerprint-sha1" | "x509-fingerprint-sha256" | "cert-sha1" | "cert-sha256" => {
            Kind::Certificate
        }
        "file" | "hash" | "md5" | "sha1" | "sha256" | "sha512" | "md5_hash" | "sha1_hash" | "sha256_hash"
        | "filehash-md5" | "filehash-sha1" | "filehash-sha256" => Kind::File,
        "filename|md5" | "filename|sha1" | "filename|sha256" | "filename|sha512" => {
            let hash = text.rsplit('|').next().unwrap_or_default();
            return Some(Value::parse(Kind::File, hash));
        }
        "" | "auto" => return Some(Value::guess(text, subdomains)),
        _ => return None,
    };
    Some(Value::parse(kind, text))
}

/// A time as feeds write it: RFC 3339, a date with or without time of day (taken as UTC), or seconds since the epoch.
pub(crate) fn time(text: &str) -> Option<i64> {
    let text = text.trim();
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Some(time.timestamp());
    }
    if let Ok(seconds) = text.parse::<i64>() {
        return Some(seconds);
    }
    let plain = text.trim_end_matches("UTC").trim_end_matches('Z').trim_end();
    for form in [
        "%Y-%m-%d %H:%M:%S",
        "%Y-%m-%dT%H:%M:%S",
        "%Y-%m-%d %H:%M",
        "%Y-%m-%dT%H:%M:%S%.f",
    ] {
        if let Ok(time) = NaiveDateTime::parse_from_str(plain, form) {
            return Some(time.and_utc().timestamp());
        }
    }
    let date = NaiveDate::parse_from_str(plain, "%Y-%m-%d").ok()?;
    Some(date.and_hms_opt(0, 0, 0)?.and_utc().timestamp())
}

/// A confidence as feeds write it: 0 to 100, or a word of STIX's scale (appendix A of the specification).
pub(crate) fn confidence(text: &str) -> Option<u8> {
    let text = text.trim().trim_end_matches('%').trim_end();
    if let Ok(number) = text.parse::<u8>() {
        return (number <= 100).then_some(number);
    }
    match text.to_ascii_lowercase().as_str() {
        "none" => Some(0),
        "low" => Some(15),
        "medium" | "med" | "moderate" => Some(50),
        "high" => Some(85),
        _ => None,
    }
}

/// The id of a MITRE ATT&CK technique somewhere in a text: `T` and four digits, with `.` and three more for a
/// sub-technique.
pub(crate) fn technique(text: &str) -> Option<String> {
    let octets = text.as_bytes();
    let digits = |at: usize, n: usize| octets.get(at..at + n).is_some_and(|d| d.iter().all(u8::is_ascii_digit));
    let at = (0..octets.len()).find(|&at| {
        let begins = at == 0 || !octets[at - 1].is_ascii_alphanumeric();
        begins && octets[at] == b'T' && digits(at + 1, 4) && !digits(at + 5, 1)
    })?;
    let sub = octets.get(at + 5) == Some(&b'.') && digits(at + 6, 3);
    text.get(at..at + if sub { 9 } else { 5 }).map(str::to_owned)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Reads a feed and shows what came: kind, value, confidence, labels, techniques, reference.
    pub(crate) fn shown(format: &Format, feed: &str) -> (Vec<String>, Report) {
        let mut taken = Vec::new();
        let report = read(format, feed.as_bytes(), &Limits::default(), &mut |i| {
            let mut line = format!("{} {}", i.value.kind().name(), i.value);
            if let Some(confidence) = i.confidence {
                line += &format!(" {confidence}%");
            }
            for word in i.labels.iter().chain(&i.techniques) {
                line += &format!(" {word}");
            }
            if !i.reference.is_empty() {
                line += &format!(" <{}>", i.reference);
            }
            taken.push(line);
        });
        (taken, report.unwrap())
    }

    #[test]
    fn techniques_are_found_in_words() {
        for (text, want) in [
            ("T1071", Some("T1071")),
            (
                "misp-galaxy:mitre-attack-pattern=\"DNS - T1071.004\"",
                Some("T1071.004"),
            ),
            ("AT1071", None),
            ("T10711", None),
            ("T107", None),
            ("é T1071.00", Some("T1071")),
            ("", None),
        ] {
            assert_eq!(technique(text).as_deref(), want, "{text}");
        }
    }

    #[test]
    fn times_and_confidences_have_many_forms() {
        for text in [
            "2026-01-02T03:04:05Z",
            "2026-01-02T03:04:05.000Z",
            "2026-01-02 03:04:05 UTC",
            "2026-01-02 03:04:05",
            "1767323045",
        ] {
            assert_eq!(time(text), Some(1_767_323_045), "{text}");
        }
        assert_eq!(time("2026-01-02"), Some(1_767_312_000));
        assert_eq!(time("yesterday"), None);
        assert_eq!(
            ["75", "75 %", "High", "101", "-1", ""].map(confidence),
            [Some(75), Some(75), Some(85), None, None, None]
        );
    }

    #[test]
    fn a_feed_beyond_its_bounds_is_cut_and_counted() {
        let limits = Limits {
            octets: 64,
            indicators: 2,
            problems: 1,
        };
        let list = Format::List(List::default());
        let mut taken = 0;
        let feed = b"192.0.2.1\nx\ny\n192.0.2.2\n192.0.2.3\n192.0.2.4\n";
        let report = read(&list, feed, &limits, &mut |_| taken += 1).unwrap();
        assert_eq!((taken, report.taken, report.too_many, report.bad), (2, 2, 2, 2));
        assert_eq!(report.problems.len(), 1);
        assert_eq!(report.problems[0].place, "line 2");
        let error = read(&list, &[b'#'; 65], &limits, &mut |_| {}).unwrap_err();
        assert_eq!(error, FeedError::TooLong { octets: 65, most: 64 });
    }
}
