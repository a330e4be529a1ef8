//! What must not be believed unless it was meant: values that match everything, or what everybody uses.

use std::fmt;

use crate::{
    build::Builder,
    index::Index,
    indicator::Indicator,
    value::{Kind, Value},
};

/// Networks with a shorter prefix match too much, for IPv4 and IPv6.
const NARROWEST: (u8, u8) = (8, 19);

/// Most values of a list.
const MOST: usize = 1_000_000;

/// The list that is built in.
const BUILT_IN: &str = include_str!("../data/warnings.txt");

/// Why an indicator is held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Held {
    /// A network or domain so wide that it matches everything.
    TooWide,
    /// A warning list has it.
    Listed,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooWide => "too wide",
            Self::Listed => "on a warning list",
        })
    }
}

/// Warning lists, or the list of what is allowed.
#[derive(Clone, Debug, Default)]
pub struct Warnings {
    index: Index,
}

impl Warnings {
    /// Private, reserved and documentation networks, public resolvers, the names that everybody asks for, and hashes of
    /// nothing; from `data/warnings.txt`.
    pub fn built_in() -> Self {
        Self::parse([BUILT_IN]).0
    }

    /// Reads lists: one value a line, `#` begins a comment; `*.name` stands for a name and all below it, a name for itself.
    /// Answers the lines that are none.
    pub fn parse<'a>(lists: impl IntoIterator<Item = &'a str>) -> (Self, Vec<String>) {
        let mut builder = Builder::new(MOST, 0);
        let mut wrong = Vec::new();
        for (number, line) in lists.into_iter().flat_map(|list| list.lines().enumerate()) {
            let value = line.split('#').next().unwrap_or_default().trim();
            if value.is_empty() {
                continue;
            }
            // Of top-level domains, whole trees are listed.
            let read = Value::guess(value, false).or_else(|error| match value.strip_prefix("*.") {
                Some(tree) => Value::parse(Kind::DomainTree, tree),
                None => Err(error),
            });
            let problem = match read {
                Ok(value) => builder
                    .add("warning list", &Indicator::of(value), 100, false)
                    .err()
                    .map(|e| e.to_string()),
                Err(error) => Some(error.to_string()),
            };
            wrong.extend(problem.map(|p| format!("line {}: {p}", number + 1)));
        }
        let warnings = Self { index: builder.build() };
        (warnings, wrong)
    }

    /// The lists that are built in, and these.
    pub fn with_built_in<'a>(lists: impl IntoIterator<Item = &'a str>) -> (Self, Vec<String>) {
        Self::parse(std::iter::once(BUILT_IN).chain(lists))
    }

    /// The list itself has the value, or a network or tree around it.
    pub fn lists(&self, value: &Value) -> bool {
        let mut listed = false;
        self.index.about(value, |_| listed = true);
        if let (Kind::Url, Some(url)) = (value.kind(), value.as_text())
            && let Some((host, target)) = url.split_once('/')
            && let Ok(host) = Value::guess(without_port(host), false)
        {
            // A page of a site that everybody uses may well be bad; its front page is not.
            self.index.about(&host, |entry| {
                listed |= target.is_empty() || entry.kind() != Kind::Domain
            });
        }
        listed
    }

    /// Whether, and why, an indicator of this value is held back.
    pub fn held(&self, value: &Value) -> Option<Held> {
        let too_wide = match value.kind() {
            Kind::Network => value.as_network().is_some_and(|(first, prefix)| {
                let narrowest = if first.is_ipv4() { NARROWEST.0 } else { NARROWEST.1 };
                prefix < narrowest
            }),
            Kind::Domain | Kind::DomainTree => !value.key().contains(&b'.'),
            _ => false,
        };
        if too_wide {
            return Some(Held::TooWide);
        }
        self.lists(value).then_some(Held::Listed)
    }

    /// Values listed.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Nothing is listed.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(text: &str, subdomains: bool) -> Option<Held> {
        Warnings::built_in().held(&Value::guess(text, subdomains).unwrap())
    }

    #[test]
    fn the_built_in_list_is_whole() {
        let (warnings, wrong) = Warnings::parse([BUILT_IN]);
        assert_eq!(wrong, [""; 0]);
        assert!(warnings.len() > 80, "{}", warnings.len());
    }

    #[test]
    fn what_everybody_uses_is_held_back() {
        for text in [
            "10.1.2.3",
            "192.168.0.0/24",
            "127.0.0.1",
            "8.8.8.8",
            "2001:4860:4860::8888",
            "fe80::1",
            "::1",
            "224.0.0.251",
            "google.com",
            "router.local",
            "1.0.0.127.in-addr.arpa",
            "http://192.168.1.1/admin",
            "http://[fe80::1]:8080/admin",
            "https://google.com/",
            "d41d8cd98f00b204e9800998ecf8427e",
            "co.uk",
        ] {
            assert_eq!(held(text, true), Some(Held::Listed), "{text}");
        }
        for text in ["0.0.0.0/0", "64.0.0.0/7", "2000::/3"] {
            assert_eq!(held(text, true), Some(Held::TooWide), "{text}");
        }
        for text in [
            "203.0.114.7",
            "45.0.0.0/8",
            "evil.sites.google.com",
            "https://google.com/amp/evil",
            "evil.co.uk",
        ] {
            assert_eq!(held(text, true), None, "{text}");
        }
        let (own, wrong) = Warnings::with_built_in(["partner.example.org # ours\nnonsense/value/ x\n"]);
        assert_eq!(wrong.len(), 1);
        let partner = Value::guess("partner.example.org", true).unwrap();
        assert_eq!(own.held(&partner), Some(Held::Listed));
    }
}
