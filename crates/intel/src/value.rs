//! What an indicator is about: its kind and its value in the one form in which it is compared.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::canonical;

/// Longest value, octets.
pub(crate) const LONGEST: usize = 2_048;

/// The kinds of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// An IPv4 or IPv6 address.
    Address = 1,
    /// A network; matches every address in it.
    Network = 2,
    /// A domain name; matches itself only.
    Domain = 3,
    /// A domain name; matches itself and every name below it.
    DomainTree = 4,
    /// A URL without its scheme: host, port where it is not the usual one, path and query.
    Url = 5,
    /// JA3 fingerprint of a TLS client: an MD5.
    Ja3 = 6,
    /// JA3S fingerprint of a TLS server: an MD5.
    Ja3s = 7,
    /// JA4 fingerprint of a TLS client.
    Ja4 = 8,
    /// JA4S fingerprint of a TLS server.
    Ja4s = 9,
    /// SHA-1 or SHA-256 of a certificate, DER.
    Certificate = 10,
    /// MD5, SHA-1, SHA-256 or SHA-512 of a file.
    File = 11,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 11] = [
        Self::Address,
        Self::Network,
        Self::Domain,
        Self::DomainTree,
        Self::Url,
        Self::Ja3,
        Self::Ja3s,
        Self::Ja4,
        Self::Ja4s,
        Self::Certificate,
        Self::File,
    ];

    /// As configuration and output name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Network => "network",
            Self::Domain => "domain",
            Self::DomainTree => "domain-tree",
            Self::Url => "url",
            Self::Ja3 => "ja3",
            Self::Ja3s => "ja3s",
            Self::Ja4 => "ja4",
            Self::Ja4s => "ja4s",
            Self::Certificate => "certificate",
            Self::File => "file",
        }
    }

    /// The kind of this name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    pub(crate) fn of_octet(octet: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == octet)
    }
}

/// A value that can be looked up.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value {
    kind: Kind,
    key: Box<[u8]>,
}

/// A text is no value of the kind it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no {what}")]
pub struct ValueError {
    /// The beginning of the text.
    pub text: String,
    /// What it should have been.
    pub what: &'static str,
}

impl ValueError {
    pub(crate) fn new(text: &str, what: &'static str) -> Self {
        Self {
            text: text.chars().take(80).collect(),
            what,
        }
    }
}

impl Value {
    pub(crate) fn new(kind: Kind, key: impl Into<Box<[u8]>>) -> Self {
        Self { kind, key: key.into() }
    }

    /// An address. An IPv4 address in IPv6 is the IPv4 address.
    pub fn address(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self::new(Kind::Address, v4.octets()),
            IpAddr::V6(v6) => Self::new(Kind::Address, v6.octets()),
        }
    }

    /// A network: the bits beyond the prefix are cleared. `None` when the prefix is longer than the address.
    pub fn network(address: IpAddr, prefix: u8) -> Option<Self> {
        let key = match address {
            IpAddr::V4(v4) => {
                let host = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
                let mut key = (u32::from(v4) & !host).to_be_bytes().to_vec();
                key.push(prefix);
                (prefix <= 32).then_some(key)
            }
            IpAddr::V6(v6) => {
                let host = u128::MAX.checked_shr(prefix.into()).unwrap_or(0);
                let mut key = (u128::from(v6) & !host).to_be_bytes().to_vec();
                key.push(prefix);
                (prefix <= 128).then_some(key)
            }
        }?;
        // A network of one address is that address.
        match key.split_last() {
            Some((32, v4)) if v4.len() == 4 => Some(Self::new(Kind::Address, v4)),
            Some((128, v6)) if v6.len() == 16 => Some(Self::new(Kind::Address, v6)),
            _ => Some(Self::new(Kind::Network, key)),
        }
    }

    /// Reads a value of a known kind. Takes the spellings that reports use: `hxxp`, `[.]`, upper case, a final dot,
    /// names in Unicode, colons between the octets of a hash.
    ///
    /// # Errors
    /// [`ValueError`] when it is none.
    pub fn parse(kind: Kind, text: &str) -> Result<Self, ValueError> {
        canonical::parse(kind, text)
    }

    /// Reads a value whose kind its form shows. A name becomes a [`Kind::DomainTree`] when `subdomains`, else a
    /// [`Kind::Domain`]; a hash is taken for one of a file.
    ///
    /// # Errors
    /// [`ValueError`] when it has no form that is known.
    pub fn guess(text: &str, subdomains: bool) -> Result<Self, ValueError> {
        canonical::guess(text, subdomains)
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The octets that are compared.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// The address, of an address.
    pub fn as_address(&self) -> Option<IpAddr> {
        match self.kind {
            Kind::Address => address_of(&self.key),
            _ => None,
        }
    }

    /// First address and prefix length, of a network.
    pub fn as_network(&self) -> Option<(IpAddr, u8)> {
        let (prefix, address) = self.key.split_last()?;
        (self.kind == Kind::Network).then_some((address_of(address)?, *prefix))
    }

    /// The text, of a domain or URL.
    pub fn as_text(&self) -> Option<&str> {
        match self.kind {
            Kind::Domain | Kind::DomainTree | Kind::Url | Kind::Ja4 | Kind::Ja4s => std::str::from_utf8(&self.key).ok(),
            _ => None,
        }
    }
}

pub(crate) fn address_of(key: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(key) {
        return Some(Ipv4Addr::from(v4).into());
    }
    <[u8; 16]>::try_from(key).ok().map(|v6| Ipv6Addr::from(v6).into())
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(self.kind, &self.key, f)
    }
}

/// Writes a value as people know it.
pub(crate) fn show(kind: Kind, key: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match kind {
        Kind::Address => match address_of(key) {
            Some(address) => write!(f, "{address}"),
            None => f.write_str(&hex::encode(key)),
        },
        Kind::Network => match key.split_last().map(|(p, a)| (p, address_of(a))) {
            Some((prefix, Some(address))) => write!(f, "{address}/{prefix}"),
            _ => f.write_str(&hex::encode(key)),
        },
        Kind::Domain | Kind::Url | Kind::Ja4 | Kind::Ja4s => f.write_str(&String::from_utf8_lossy(key)),
        Kind::DomainTree => write!(f, "*.{}", String::from_utf8_lossy(key)),
        Kind::Ja3 | Kind::Ja3s | Kind::Certificate | Kind::File => f.write_str(&hex::encode(key)),
    }
}
