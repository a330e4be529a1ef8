//! Plain lists.

use super::Sink;
use crate::{
    indicator::Indicator,
    value::{Kind, Value},
};

/// A list with one value a line. `#`, `;` and `//` begin comments; what follows the value is ignored, and hosts files
/// (`0.0.0.0 name`) are read for their names.
#[derive(Clone, Debug, Default)]
pub struct List {
    /// What its values are; `None`: what their form shows.
    pub kind: Option<Kind>,
    /// Names stand for all below them too.
    pub subdomains: bool,
}

impl List {
    pub(super) fn read(&self, feed: &[u8], sink: &mut Sink<'_>) {
        let feed = feed.strip_prefix(b"\xef\xbb\xbf").unwrap_or(feed);
        for (number, line) in feed.split(|b| *b == b'\n').enumerate() {
            let line = String::from_utf8_lossy(line);
            let line = line.trim();
            if line.is_empty() || line.starts_with(['#', ';', '!']) || line.starts_with("//") {
                continue;
            }
            let mut words = line.split([' ', '\t', ',', ';']).filter(|w| !w.is_empty());
            let Some(mut word) = words.next() else { continue };
            if matches!(word, "0.0.0.0" | "127.0.0.1" | "::" | "::1")
                && let Some(name) = words.next().filter(|w| !w.starts_with('#'))
            {
                word = name;
            }
            let word = word.split('#').next().unwrap_or_default();
            let value = match self.kind {
                Some(Kind::Address | Kind::Network) if word.contains('/') => Value::parse(Kind::Network, word),
                Some(Kind::Network) => Value::parse(Kind::Address, word),
                Some(Kind::Domain) if self.subdomains => Value::parse(Kind::DomainTree, word),
                Some(kind) => Value::parse(kind, word),
                None => Value::guess(word, self.subdomains),
            };
            match value {
                Ok(value) => sink.take(Indicator::of(value)),
                Err(error) => sink.bad(|| format!("line {}", number + 1), error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feed::{Format, tests::shown};

    #[test]
    fn lists_of_many_kinds() {
        let feed = "# a comment\r\n192.0.2.1\t4\r\n198.51.100.0/24 ; SBL1\n\n0.0.0.0 evil.example # hosts\n\
                    http://evil.example/a#b\nnonsense\n!x\n; y\n// z\nhxxp://bad[.]example/\n203.0.113.9,443";
        let (taken, report) = shown(&Format::List(List::default()), feed);
        assert_eq!(
            taken,
            [
                "address 192.0.2.1",
                "network 198.51.100.0/24",
                "domain evil.example",
                "url evil.example/a",
                "url bad.example/",
                "address 203.0.113.9"
            ]
        );
        assert_eq!((report.taken, report.bad), (6, 1));
        assert_eq!(
            report.problems[0].to_string(),
            "line 7: \"nonsense\" is no address, network, domain, URL, hash or JA4 fingerprint"
        );
    }

    #[test]
    fn a_list_of_a_kind_is_read_as_such() {
        let ja3 = Format::List(List {
            kind: Some(Kind::Ja3),
            subdomains: false,
        });
        let (taken, report) = shown(&ja3, "0123456789abcdef0123456789abcdef\n192.0.2.1\n");
        assert_eq!(taken, ["ja3 0123456789abcdef0123456789abcdef"]);
        assert_eq!(report.bad, 1);
        let tree = Format::List(List {
            kind: Some(Kind::Domain),
            subdomains: true,
        });
        assert_eq!(shown(&tree, "Evil.example.").0, ["domain-tree *.evil.example"]);
    }
}
