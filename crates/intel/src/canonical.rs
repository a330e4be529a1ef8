//! From the many spellings of a value to one.

use std::{borrow::Cow, net::IpAddr};

use crate::value::{Kind, LONGEST, Value, ValueError};

/// Octets of a URL's path and query that are compared: flow records cut targets there.
pub(crate) const URL_TARGET: usize = 512;

/// Longest domain name in text (RFC 1035 §2.3.4).
pub(crate) const LONGEST_NAME: usize = 253;

pub(crate) fn parse(kind: Kind, text: &str) -> Result<Value, ValueError> {
    let text = refang(text.trim());
    let text = text.as_ref();
    match kind {
        Kind::Address => address(text)
            .map(Value::address)
            .ok_or_else(|| ValueError::new(text, "IP address")),
        Kind::Network => network(text).ok_or_else(|| ValueError::new(text, "network in CIDR notation")),
        Kind::Domain | Kind::DomainTree => {
            let name = text
                .strip_prefix("*.")
                .or_else(|| text.strip_prefix('.'))
                .unwrap_or(text);
            let name = domain(name).ok_or_else(|| ValueError::new(text, "domain name"))?;
            Ok(Value::new(kind, name.into_bytes()))
        }
        Kind::Url => url(text)
            .map(|url| Value::new(Kind::Url, url.into_bytes()))
            .ok_or_else(|| ValueError::new(text, "URL")),
        Kind::Ja3 | Kind::Ja3s => hash(kind, text, &[16], "JA3 fingerprint (an MD5)"),
        Kind::Ja4 | Kind::Ja4s => {
            let lower = text.to_ascii_lowercase();
            let parts: Vec<&str> = lower.split('_').collect();
            let fits = match kind {
                Kind::Ja4 => matches!(parts[..], [a, b, c] if a.len() == 10 && b.len() == 12 && c.len() == 12),
                _ => matches!(parts[..], [a, b, c] if a.len() == 7 && b.len() == 4 && c.len() == 12),
            };
            if fits && lower.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                Ok(Value::new(kind, lower.into_bytes()))
            } else {
                Err(ValueError::new(text, "JA4 fingerprint"))
            }
        }
        Kind::Certificate => hash(kind, text, &[20, 32], "SHA-1 or SHA-256 of a certificate"),
        Kind::File => hash(
            kind,
            text,
            &[16, 20, 32, 64],
            "MD5, SHA-1, SHA-256 or SHA-512 of a file",
        ),
    }
}

pub(crate) fn guess(text: &str, subdomains: bool) -> Result<Value, ValueError> {
    const WHAT: &str = "address, network, domain, URL, hash or JA4 fingerprint";
    let trimmed = refang(text.trim());
    let trimmed = trimmed.as_ref();
    if let Some(address) = address(trimmed) {
        return Ok(Value::address(address));
    }
    if let Some(network) = network(trimmed) {
        return Ok(network);
    }
    if let Some((host, rest)) = trimmed.split_once('/') {
        // An address with a number behind it was meant to be a network.
        return if address(host).is_some() && !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()) {
            parse(Kind::Network, trimmed)
        } else {
            parse(Kind::Url, trimmed)
        };
    }
    if trimmed.contains('_')
        && let Ok(ja4) = parse(Kind::Ja4, trimmed)
    {
        return Ok(ja4);
    }
    if let Ok(file) = parse(Kind::File, trimmed) {
        return Ok(file);
    }
    let below = subdomains || trimmed.starts_with("*.") || trimmed.starts_with('.');
    let kind = if below { Kind::DomainTree } else { Kind::Domain };
    match parse(kind, trimmed) {
        // A single label is a word, not a name.
        Ok(name) if name.key().contains(&b'.') => Ok(name),
        _ => Err(ValueError::new(text.trim(), WHAT)),
    }
}

/// Reports write values so that nobody clicks on them. What follows the host is left as it is.
fn refang(text: &str) -> Cow<'_, str> {
    let after = |n: usize| text.get(n..).unwrap_or_default();
    let hxxp = text.get(..4).is_some_and(|p| p.eq_ignore_ascii_case("hxxp"))
        && ["://", "s://", "[:]", "s[:]", "[://]", "s[://]"]
            .iter()
            .any(|s| after(4).starts_with(s));
    if !hxxp && !text.contains(['[', '(', '{']) {
        return Cow::Borrowed(text);
    }
    let mut text = text.to_owned();
    if hxxp {
        text.replace_range(..4, "http");
    }
    // A scheme stands before everything else: what looks like one in a path is part of the path.
    let leads = |text: &str, mark: &str| text.find(mark).filter(|at| !text[..*at].contains(['/', '?', '#']));
    for odd in ["[:]//", "[://]"] {
        if let Some(at) = leads(&text, odd) {
            text.replace_range(at..at + odd.len(), "://");
        }
    }
    let begin = leads(&text, "://").map_or(0, |at| at + 3);
    let end = text[begin..].find(['/', '?', '#']).map_or(text.len(), |at| begin + at);
    let mut host = text[begin..end].to_owned();
    for dot in ["[.]", "(.)", "{.}", "[dot]", "(dot)"] {
        if host.contains(dot) {
            host = host.replace(dot, ".");
        }
    }
    text.replace_range(begin..end, &host);
    Cow::Owned(text)
}

fn address(text: &str) -> Option<IpAddr> {
    let inner = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    inner.parse().ok()
}

fn network(text: &str) -> Option<Value> {
    let (address, prefix) = text.split_once('/')?;
    if prefix.len() > 3 || !prefix.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Value::network(address.parse().ok()?, prefix.parse().ok()?)
}

fn hash(kind: Kind, text: &str, lengths: &[usize], what: &'static str) -> Result<Value, ValueError> {
    let plain: Cow<'_, str> = if text.contains(':') {
        Cow::Owned(text.replace(':', ""))
    } else {
        Cow::Borrowed(text)
    };
    match hex::decode(plain.as_ref()) {
        Ok(octets) if lengths.contains(&octets.len()) => Ok(Value::new(kind, octets)),
        _ => Err(ValueError::new(text, what)),
    }
}

/// A domain name in lower case, as A-labels (RFC 5890), without the root's dot.
pub(crate) fn domain(text: &str) -> Option<String> {
    let text = text.strip_suffix('.').unwrap_or(text);
    if text.is_empty() || text.len() > LONGEST {
        return None;
    }
    let name = if text.is_ascii() {
        text.to_ascii_lowercase()
    } else {
        idna::domain_to_ascii(text).ok()?
    };
    let label =
        |l: &str| (1..=63).contains(&l.len()) && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    (name.len() <= LONGEST_NAME && name.split('.').all(label)).then_some(name)
}

/// A URL as it is compared: host, port unless usual, target; no scheme, user or fragment. The host may be an address.
pub(crate) fn url(text: &str) -> Option<String> {
    if text.len() > LONGEST || text.bytes().any(|b| b.is_ascii_control() || b == b' ') {
        return None;
    }
    let is_scheme = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) if is_scheme(scheme) => (scheme.to_ascii_lowercase(), rest),
        _ => ("http".to_owned(), text),
    };
    let rest = rest.split('#').next().unwrap_or_default();
    let at = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, target) = rest.split_at(at);
    let authority = authority.rsplit('@').next().unwrap_or_default();
    let usual = match scheme.as_str() {
        "http" | "ws" => "80",
        "https" | "wss" => "443",
        "ftp" => "21",
        _ => "",
    };
    let (host, port) = split_port(authority);
    let host = match address(host) {
        Some(IpAddr::V6(v6)) => format!("[{v6}]"),
        Some(IpAddr::V4(v4)) => v4.to_string(),
        None => domain(host)?,
    };
    let mut url = host;
    if let Some(port) = port.filter(|p| *p != usual) {
        let port: u16 = port.parse().ok()?;
        url.push(':');
        url.push_str(&port.to_string());
    }
    if !target.starts_with('/') {
        url.push('/');
    }
    url.push_str(cut(target, URL_TARGET));
    Some(url)
}

/// Writes what a request asked for as [`url`] would, without allocating. False when it is none.
pub(crate) fn requested(host: &str, target: &str, url: &mut Vec<u8>) -> bool {
    url.clear();
    // A request to a proxy names the whole.
    let target_is_whole = target.get(..7).is_some_and(|p| p.eq_ignore_ascii_case("http://"));
    let (host, target) = if target_is_whole {
        let rest = &target[7..];
        rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()))
    } else {
        (host, target)
    };
    let (name, port) = split_port(host);
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() || name.len() > LONGEST_NAME {
        return false;
    }
    url.extend(name.bytes().map(|b| b.to_ascii_lowercase()));
    if let Some(port) = port.filter(|p| *p != "80") {
        url.push(b':');
        url.extend(port.bytes());
    }
    let target = target.split('#').next().unwrap_or_default();
    if !target.starts_with('/') {
        url.push(b'/');
    }
    url.extend(cut(target, URL_TARGET).bytes());
    true
}

fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() && port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit()) => {
            // The last group of a bare IPv6 address is no port.
            if host.contains(':') && !host.starts_with('[') {
                (authority, None)
            } else {
                (host, Some(port))
            }
        }
        _ => (authority, None),
    }
}

/// The beginning of a text, not more than so many octets.
pub(crate) fn cut(text: &str, most: usize) -> &str {
    if text.len() <= most {
        return text;
    }
    let end = (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    &text[..end]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn guessed(text: &str) -> String {
        match guess(text, false) {
            Ok(value) => format!("{} {value}", value.kind().name()),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn forms_show_kinds() {
        for (text, want) in [
            ("192.0.2.7", "address 192.0.2.7"),
            ("192[.]0[.]2[.]7", "address 192.0.2.7"),
            ("::ffff:192.0.2.7", "address 192.0.2.7"),
            ("[2001:DB8::1]", "address 2001:db8::1"),
            ("192.0.2.77/24", "network 192.0.2.0/24"),
            ("192.0.2.77/32", "address 192.0.2.77"),
            ("2001:db8:1::/48", "network 2001:db8:1::/48"),
            ("0.0.0.0/0", "network 0.0.0.0/0"),
            ("Evil.Example.", "domain evil.example"),
            ("*.evil.example", "domain-tree *.evil.example"),
            ("münchen.example", "domain xn--mnchen-3ya.example"),
            ("hxxp://Evil[.]example:80/a?b#c", "url evil.example/a?b"),
            ("https://u:p@evil.example:8443", "url evil.example:8443/"),
            ("https://[2001:DB8::1]:443/x", "url [2001:db8::1]/x"),
            ("evil.example/login.php", "url evil.example/login.php"),
            ("http://evil.example?x=1", "url evil.example/?x=1"),
            ("hxxps[:]//evil.example/a[.]b", "url evil.example/a[.]b"),
            (
                "evil.example/x://bad[.]example/[:]//b",
                "url evil.example/x://bad[.]example/[:]//b",
            ),
            (
                "evil.example/to?u=http://a.example/",
                "url evil.example/to?u=http://a.example/",
            ),
            ("hxxpress.example", "domain hxxpress.example"),
            (
                "D41D8CD98F00B204E9800998ECF8427E",
                "file d41d8cd98f00b204e9800998ecf8427e",
            ),
            (
                "t13d1516h2_8daaf6152771_b186095e22b6",
                "ja4 t13d1516h2_8daaf6152771_b186095e22b6",
            ),
        ] {
            assert_eq!(guessed(text), want, "{text}");
        }
        for bad in [
            "",
            "word",
            "192.0.2.0/33",
            "a..b",
            "-",
            "http://",
            "http://a..b/",
            "evil example.org",
        ] {
            assert!(guess(bad, true).is_err(), "{bad}: {}", guessed(bad));
        }
        assert!(Value::parse(Kind::Ja3, "d41d8cd9").is_err());
        assert!(Value::parse(Kind::Certificate, "AB:".repeat(19).trim_end_matches(':')).is_err());
        let sha1 = vec!["AB"; 20].join(":");
        assert_eq!(Value::parse(Kind::Certificate, &sha1).unwrap().key(), [0xab; 20]);
    }

    #[test]
    fn a_request_is_written_like_the_url_it_asked_for() {
        let mut written = Vec::new();
        for (host, target, as_url) in [
            ("Evil.example", "/a?b", "http://evil.example/a?b"),
            ("evil.example:80", "/", "evil.example/"),
            ("evil.example.:8080", "/x", "http://evil.example:8080/x"),
            ("proxy", "http://evil.example/x", "http://evil.example/x"),
            ("[2001:db8::1]", "/x", "http://[2001:db8::1]/x"),
        ] {
            assert!(requested(host, target, &mut written));
            assert_eq!(String::from_utf8(written.clone()).unwrap(), url(as_url).unwrap());
        }
        assert!(!requested("", "/", &mut written));
    }

    proptest! {
        #[test]
        fn what_is_read_reads_back_as_itself(text in "\\PC{0,60}|[a-z0-9.:/\\[\\]_-]{0,60}") {
            for below in [false, true] {
                if let Ok(value) = guess(&text, below) {
                    prop_assert_eq!(&Value::parse(value.kind(), &value.to_string()).unwrap(), &value);
                }
            }
        }

        #[test]
        fn networks_contain_their_first_address(bits: u128, prefix in 0_u8..128) {
            let value = Value::network(std::net::Ipv6Addr::from(bits).into(), prefix).unwrap();
            let (first, length) = value.as_network().unwrap();
            prop_assert_eq!(length, prefix);
            prop_assert_eq!(Value::network(first, length).unwrap(), value);
        }
    }
}
