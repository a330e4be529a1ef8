//! Comma-separated values (RFC 4180), with a mapping of their columns.

use std::borrow::Cow;

use super::{FeedError, Sink, confidence, technique, time, typed};
use crate::indicator::{Indicator, Span};

/// Longest record, octets: a quote that is never closed does not swallow the feed.
const LONGEST_RECORD: usize = 64 << 10;
/// Most ends of lines within a field, so that quotes that are never closed cost little each.
const MOST_LINES: usize = 16;
/// Most fields of a record.
const MOST_FIELDS: usize = 256;

/// A column: by its name in the first line, or by its number from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Column {
    /// By name.
    Named(String),
    /// By number.
    Numbered(usize),
}

/// Which column says what. Only the value is needed.
#[derive(Clone, Debug)]
pub struct Columns {
    /// The value.
    pub value: Column,
    /// Its type, in words such as `ip`, `domain`, `url`, `md5_hash`.
    pub kind: Option<Column>,
    /// 0 to 100, or low, medium, high.
    pub confidence: Option<Column>,
    /// From when on it holds.
    pub from: Option<Column>,
    /// Until when it holds.
    pub until: Option<Column>,
    /// Labels, separated by commas, semicolons or bars.
    pub labels: Option<Column>,
    /// Techniques, somewhere in the text.
    pub techniques: Option<Column>,
    /// The source's id of it.
    pub reference: Option<Column>,
    /// Where it comes from.
    pub context: Option<Column>,
}

/// A feed of comma-separated values. Lines that begin with `#` are comments.
#[derive(Clone, Debug)]
pub struct Csv {
    /// Between two fields.
    pub delimiter: u8,
    /// The first line has names. Needed when columns are named.
    pub header: bool,
    /// Which column says what.
    pub columns: Columns,
    /// The type of every value when no column says it; empty: what its form shows.
    pub kind: String,
    /// Names stand for all below them too.
    pub subdomains: bool,
}

impl Csv {
    pub(super) fn read(&self, feed: &[u8], sink: &mut Sink<'_>) -> Result<(), FeedError> {
        let mut records = Records {
            rest: feed.strip_prefix(b"\xef\xbb\xbf").unwrap_or(feed),
            delimiter: self.delimiter,
            line: 1,
        };
        let mut places = None;
        while let Some((line, record)) = records.next() {
            let fields = match record {
                Ok(fields) => fields,
                Err(what) => {
                    sink.bad(|| format!("line {line}"), what);
                    continue;
                }
            };
            let places = match &places {
                Some(places) => places,
                None => {
                    let found = Places::find(&self.columns, self.header.then_some(&fields))?;
                    let found = places.insert(found);
                    if self.header {
                        continue;
                    }
                    found
                }
            };
            self.record(places, line, &fields, sink);
        }
        Ok(())
    }

    fn record(&self, places: &Places, line: u64, fields: &[Cow<'_, str>], sink: &mut Sink<'_>) {
        let field = |at: Option<usize>| at.and_then(|at| fields.get(at)).map_or("", |f| f.trim());
        let text = field(Some(places.value));
        let place = || format!("line {line}");
        if text.is_empty() {
            sink.bad(place, format_args!("there is no value in column {}", places.value + 1));
            return;
        }
        let word = match places.kind {
            Some(_) => field(places.kind),
            None => &self.kind,
        };
        let value = match typed(word, text, self.subdomains) {
            Some(Ok(value)) => value,
            Some(Err(error)) => return sink.bad(place, error),
            None => {
                return sink.not_understood(
                    place,
                    format_args!("values of type {word:?} are not looked up in flows"),
                );
            }
        };
        let split = |text: &str| -> Vec<String> {
            let words = text.split([',', ';', '|']).map(str::trim).filter(|w| !w.is_empty());
            words.map(str::to_owned).collect()
        };
        sink.take(Indicator {
            value,
            confidence: confidence(field(places.confidence)),
            span: Span::of(time(field(places.from)), time(field(places.until))),
            labels: split(field(places.labels)),
            techniques: split(field(places.techniques))
                .iter()
                .filter_map(|t| technique(t))
                .collect(),
            reference: field(places.reference).to_owned(),
            context: field(places.context).to_owned(),
        });
    }
}

/// The columns' places.
struct Places {
    value: usize,
    kind: Option<usize>,
    confidence: Option<usize>,
    from: Option<usize>,
    until: Option<usize>,
    labels: Option<usize>,
    techniques: Option<usize>,
    reference: Option<usize>,
    context: Option<usize>,
}

impl Places {
    fn find(columns: &Columns, header: Option<&Vec<Cow<'_, str>>>) -> Result<Self, FeedError> {
        let place = |column: &Column| {
            let missing = |column: String| FeedError::Column {
                column,
                found: header.map_or_else(
                    || "no names, as the feed is configured without a header".to_owned(),
                    |h| crate::canonical::cut(&h.join(", "), 300).to_owned(),
                ),
            };
            match column {
                Column::Numbered(number) => number
                    .checked_sub(1)
                    .ok_or_else(|| missing("0 (they are counted from 1)".to_owned())),
                Column::Named(name) => header
                    .and_then(|h| h.iter().position(|c| c.trim().eq_ignore_ascii_case(name)))
                    .ok_or_else(|| missing(format!("{name:?}"))),
            }
        };
        let maybe = |column: &Option<Column>| column.as_ref().map(place).transpose();
        Ok(Self {
            value: place(&columns.value)?,
            kind: maybe(&columns.kind)?,
            confidence: maybe(&columns.confidence)?,
            from: maybe(&columns.from)?,
            until: maybe(&columns.until)?,
            labels: maybe(&columns.labels)?,
            techniques: maybe(&columns.techniques)?,
            reference: maybe(&columns.reference)?,
            context: maybe(&columns.context)?,
        })
    }
}

type Fields<'a> = Vec<Cow<'a, str>>;

/// The records of a text, with the lines they begin in.
struct Records<'a> {
    rest: &'a [u8],
    delimiter: u8,
    line: u64,
}

impl<'a> Records<'a> {
    fn next(&mut self) -> Option<(u64, Result<Fields<'a>, &'static str>)> {
        loop {
            let end = self.rest.iter().position(|b| *b == b'\n');
            let first = &self.rest[..end.unwrap_or(self.rest.len())];
            let trimmed = first.trim_ascii();
            if !(trimmed.is_empty() || trimmed.starts_with(b"#")) {
                break;
            }
            self.rest = &self.rest[end? + 1..];
            self.line += 1;
        }
        let line = self.line;
        match self.fields() {
            Ok((fields, length)) => {
                self.skip(length);
                Some((line, Ok(fields)))
            }
            Err(what) => {
                // Go on with the next line.
                let length = self
                    .rest
                    .iter()
                    .position(|b| *b == b'\n')
                    .map_or(self.rest.len(), |e| e + 1);
                self.skip(length);
                Some((line, Err(what)))
            }
        }
    }

    fn skip(&mut self, length: usize) {
        self.line += self.rest[..length].iter().filter(|b| **b == b'\n').count() as u64;
        self.rest = &self.rest[length..];
    }

    // The fields of the first record, and how long it is with its line's end.
    fn fields(&self) -> Result<(Fields<'a>, usize), &'static str> {
        let all = self.rest;
        let mut fields = Vec::new();
        let mut at = 0;
        loop {
            if fields.len() >= MOST_FIELDS {
                return Err("it has more than 256 fields");
            }
            // Blanks may stand before a quote.
            let blank = all[at..].iter().take_while(|b| **b == b' ').count();
            if all.get(at + blank) == Some(&b'"') {
                let (field, length) = quoted(&all[at + blank + 1..])?;
                fields.push(field);
                at += blank + 1 + length;
                at += all[at..].iter().take_while(|b| matches!(b, b' ' | b'\r')).count();
            } else {
                let ends = |b: &u8| *b == self.delimiter || *b == b'\n';
                let length = all[at..].iter().position(ends).unwrap_or(all.len() - at);
                fields.push(String::from_utf8_lossy(&all[at..at + length]));
                at += length;
            }
            match all.get(at) {
                None => return Ok((fields, at)),
                Some(b'\n') => return Ok((fields, at + 1)),
                Some(b) if *b == self.delimiter => at += 1,
                Some(_) => return Err("something follows a closing quote"),
            }
            if at > LONGEST_RECORD {
                return Err("it is longer than 64 KiB; is a quote not closed?");
            }
        }
    }
}

// A field after its opening quote, and how long it is with its closing one.
fn quoted(text: &[u8]) -> Result<(Cow<'_, str>, usize), &'static str> {
    let (mut at, mut lines) = (0, 0);
    let mut doubled = false;
    loop {
        let within = text.get(at..text.len().min(LONGEST_RECORD)).unwrap_or_default();
        let quote = within.iter().position(|b| {
            lines += usize::from(*b == b'\n');
            *b == b'"' || lines > MOST_LINES
        });
        let Some(quote) = quote.filter(|_| lines <= MOST_LINES) else {
            return Err("a quote is not closed");
        };
        at += quote + 1;
        if text.get(at) == Some(&b'"') {
            doubled = true;
            at += 1;
            continue;
        }
        let field = String::from_utf8_lossy(&text[..at - 1]);
        let field = if doubled {
            field.replace("\"\"", "\"").into()
        } else {
            field
        };
        return Ok((field, at));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feed::{Format, Limits, read, tests::shown};

    fn columns(value: Column) -> Columns {
        Columns {
            value,
            kind: None,
            confidence: None,
            from: None,
            until: None,
            labels: None,
            techniques: None,
            reference: None,
            context: None,
        }
    }

    fn named(name: &str) -> Option<Column> {
        Some(Column::Named(name.to_owned()))
    }

    #[test]
    fn columns_are_found_by_name() {
        let csv = Csv {
            delimiter: b',',
            header: true,
            columns: Columns {
                kind: named("ioc_type"),
                confidence: named("confidence_level"),
                from: named("first_seen"),
                until: named("until"),
                labels: named("tags"),
                techniques: named("tags"),
                reference: named("id"),
                ..columns(Column::Named("IOC".to_owned()))
            },
            kind: String::new(),
            subdomains: false,
        };
        let feed = "# exported\r\nid,ioc_type,ioc,tags,confidence_level,first_seen,until\r\n\
                    7,ip:port,\"192.0.2.1:443\",\"c2, T1071.001\",90,2026-01-02 03:04:05,\r\n\
                    8,domain,evil.example,\"a \"\"b\"\"\",low,,2030-01-01\n\
                    \n9,mutex,x,y,50,,\n10,domain,,x,50,,\n11,sha256_hash,zz,,,,\n12,url,\"open,,,\n\
                    13,url,\"http://e.example/?a,\nb\",,,,\n14,md5_hash,0123456789abcdef0123456789abcdef,,,,";
        let (taken, report) = shown(&Format::Csv(Box::new(csv)), feed);
        assert_eq!(
            taken,
            [
                "address 192.0.2.1 90% c2 T1071.001 T1071.001 <7>",
                "domain evil.example 15% a \"b\" <8>",
                "file 0123456789abcdef0123456789abcdef <14>"
            ]
        );
        let problems: Vec<String> = report.problems.iter().map(ToString::to_string).collect();
        assert_eq!((report.bad, report.not_understood), (4, 1), "{problems:?}");
        assert_eq!(
            problems[0],
            "line 6: values of type \"mutex\" are not looked up in flows"
        );
        assert_eq!(problems[1], "line 7: there is no value in column 3");
        assert!(problems[3].starts_with("line 9: "), "{problems:?}");
    }

    #[test]
    fn columns_are_found_by_number_and_what_is_missing_is_named() {
        let csv = |value, header| {
            Format::Csv(Box::new(Csv {
                delimiter: b';',
                header,
                columns: columns(value),
                kind: "domain".to_owned(),
                subdomains: true,
            }))
        };
        let (taken, report) = shown(&csv(Column::Numbered(2), false), "1;evil.example\n2\n");
        assert_eq!(taken, ["domain-tree *.evil.example"]);
        assert_eq!(report.bad, 1);
        let error = |format: &Format| read(format, b"a;b\nx;y", &Limits::default(), &mut |_| {}).unwrap_err();
        let missing = error(&csv(Column::Named("c".to_owned()), true));
        assert_eq!(missing.to_string(), "it has no column \"c\"; its first line has: a, b");
        assert!(
            error(&csv(Column::Named("c".to_owned()), false))
                .to_string()
                .contains("without a header")
        );
        assert!(
            error(&csv(Column::Numbered(0), false))
                .to_string()
                .contains("counted from 1")
        );
    }
}
