use std::fmt;

use super::IntervalSet;

/// The protocols whose connections have a destination port that rules can name: TCP, UDP, SCTP.
pub const PORT_PROTOCOLS: [u8; 3] = [6, 17, 132];

/// The protocols with a number beside the protocol's: a port, or the type of an ICMP message.
pub const NUMBERED: [u8; 5] = [6, 17, 132, 1, 58];

/// What is spoken: a set of (IP protocol, destination port), and for ICMP of (protocol, type).
///
/// Any other protocol has no ports here: it is wholly in the set or wholly out.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct ServiceSet {
    /// Ports, and types of ICMP, in the order of [`NUMBERED`]. The last type, 255, stands for every number above.
    ports: [IntervalSet<u16>; 5],
    /// One bit for every other protocol.
    portless: [u64; 4],
}

/// The name of a protocol as policies write it, or its number.
pub fn protocol_name(protocol: u8) -> String {
    match protocol {
        1 => "ICMP".to_owned(),
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        58 => "ICMPv6".to_owned(),
        132 => "SCTP".to_owned(),
        other => format!("protocol {other}"),
    }
}

fn slot(protocol: u8) -> Option<usize> {
    NUMBERED.iter().position(|p| *p == protocol)
}

fn all_portless() -> [u64; 4] {
    let mut bits = [u64::MAX; 4];
    for protocol in NUMBERED {
        bits[usize::from(protocol) / 64] &= !(1 << (protocol % 64));
    }
    bits
}

impl ServiceSet {
    /// Nothing.
    pub fn empty() -> Self {
        Self::default()
    }

    /// Every protocol and port.
    pub fn full() -> Self {
        Self {
            ports: std::array::from_fn(|_| IntervalSet::full()),
            portless: all_portless(),
        }
    }

    /// Adds ports `from` to `to` of a protocol; for a protocol without ports, the whole protocol.
    pub fn insert(&mut self, protocol: u8, from: u16, to: u16) {
        match slot(protocol) {
            Some(i) if PORT_PROTOCOLS.contains(&protocol) => {
                self.ports[i] = self.ports[i].union(&IntervalSet::from_ranges([(from, to)]));
            }
            Some(i) => self.ports[i] = IntervalSet::full(),
            None => self.portless[usize::from(protocol) / 64] |= 1 << (protocol % 64),
        }
    }

    /// Adds one type of ICMP (`protocol` 1) or ICMPv6 (58); other protocols have none, and nothing is added.
    pub fn insert_icmp(&mut self, protocol: u8, kind: u8) {
        if let Some(i) = slot(protocol).filter(|_| !PORT_PROTOCOLS.contains(&protocol)) {
            let to = if kind == u8::MAX { u16::MAX } else { kind.into() };
            self.ports[i] = self.ports[i].union(&IntervalSet::from_ranges([(kind.into(), to)]));
        }
    }

    /// Whether a connection of `protocol` to `port` is in the set. Of ICMP, `port` is the type. The port of a protocol
    /// without ports is ignored.
    pub fn contains(&self, protocol: u8, port: u16) -> bool {
        match slot(protocol) {
            Some(i) => self.ports[i].contains(port),
            None => self.portless[usize::from(protocol) / 64] & (1 << (protocol % 64)) != 0,
        }
    }

    /// The ports of TCP, UDP or SCTP; `None` for a protocol without ports.
    pub fn ports(&self, protocol: u8) -> Option<&IntervalSet<u16>> {
        PORT_PROTOCOLS
            .iter()
            .position(|p| *p == protocol)
            .map(|i| &self.ports[i])
    }

    /// The ports, or the types of ICMP; `None` for a protocol that is not one of [`NUMBERED`].
    pub fn numbers(&self, protocol: u8) -> Option<&IntervalSet<u16>> {
        slot(protocol).map(|i| &self.ports[i])
    }

    /// The types of ICMP (1) or ICMPv6 (58) where some are in the set and others are not.
    pub fn icmp_types(&self, protocol: u8) -> Option<&IntervalSet<u16>> {
        let types = slot(protocol).filter(|i| *i >= 3).map(|i| &self.ports[i])?;
        (!types.is_empty() && !types.is_full()).then_some(types)
    }

    /// Whether some types of ICMP are in the set and others are not.
    pub fn has_icmp_types(&self) -> bool {
        self.icmp_types(1).is_some() || self.icmp_types(58).is_some()
    }

    /// The set with ICMP wholly in where some types are (`grow`), or wholly out.
    #[must_use]
    pub fn without_icmp_types(&self, grow: bool) -> Self {
        let mut set = self.clone();
        for i in 3..5 {
            if !set.ports[i].is_full() && !set.ports[i].is_empty() {
                set.ports[i] = if grow {
                    IntervalSet::full()
                } else {
                    IntervalSet::empty()
                };
            }
        }
        set
    }

    /// The protocols without ports that are wholly in the set, ascending.
    pub fn portless(&self) -> impl Iterator<Item = u8> + '_ {
        (0..=u8::MAX).filter(|p| match slot(*p) {
            Some(i) => i >= 3 && self.ports[i].is_full(),
            None => self.contains(*p, 0),
        })
    }

    /// Whether every protocol without ports is wholly in the set.
    pub fn has_all_portless(&self) -> bool {
        self.portless == all_portless() && self.ports[3..].iter().all(IntervalSet::is_full)
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.portless == [0; 4] && self.ports.iter().all(IntervalSet::is_empty)
    }

    /// Whether the set has every protocol and port.
    pub fn is_full(&self) -> bool {
        self.has_all_portless() && self.ports.iter().all(IntervalSet::is_full)
    }

    fn zip(
        &self,
        other: &Self,
        ports: impl Fn(&IntervalSet<u16>, &IntervalSet<u16>) -> IntervalSet<u16>,
        bits: impl Fn(u64, u64) -> u64,
    ) -> Self {
        Self {
            ports: std::array::from_fn(|i| ports(&self.ports[i], &other.ports[i])),
            portless: std::array::from_fn(|i| bits(self.portless[i], other.portless[i])),
        }
    }

    /// Members of either.
    pub fn union(&self, other: &Self) -> Self {
        self.zip(other, IntervalSet::union, |a, b| a | b)
    }

    /// Members of both.
    pub fn intersect(&self, other: &Self) -> Self {
        self.zip(other, IntervalSet::intersect, |a, b| a & b)
    }

    /// Whether anything is a member of both.
    pub fn overlaps(&self, other: &Self) -> bool {
        let bits = self.portless.iter().zip(&other.portless).any(|(a, b)| a & b != 0);
        bits || self.ports.iter().zip(&other.ports).any(|(a, b)| a.overlaps(b))
    }

    /// Members of `self` that are not in `other`.
    pub fn subtract(&self, other: &Self) -> Self {
        self.zip(other, IntervalSet::subtract, |a, b| a & !b)
    }

    /// Whether every member is in `other`.
    pub fn is_subset(&self, other: &Self) -> bool {
        self.subtract(other).is_empty()
    }
}

impl fmt::Display for ServiceSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_full() {
            return f.write_str("every protocol and port");
        }
        let mut parts = Vec::new();
        for (protocol, ports) in PORT_PROTOCOLS.iter().zip(&self.ports) {
            let name = protocol_name(*protocol);
            if ports.is_full() {
                parts.push(name);
                continue;
            }
            for (from, to) in ports.ranges() {
                parts.push(if from == to {
                    format!("{name}/{from}")
                } else {
                    format!("{name}/{from}-{to}")
                });
            }
        }
        for protocol in [1, 58] {
            for (from, to) in self.icmp_types(protocol).map(IntervalSet::ranges).unwrap_or_default() {
                let (name, to) = (protocol_name(protocol), (*to).min(255));
                parts.push(if *from == to {
                    format!("{name} type {from}")
                } else {
                    format!("{name} types {from}-{to}")
                });
            }
        }
        if self.has_all_portless() {
            parts.push("every protocol without ports".to_owned());
        } else {
            parts.extend(self.portless().map(protocol_name));
        }
        f.write_str(&if parts.is_empty() {
            "nothing".to_owned()
        } else {
            parts.join(", ")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_keeps_protocols_apart() {
        let mut ssh = ServiceSet::empty();
        ssh.insert(6, 22, 22);
        let rest = ServiceSet::full().subtract(&ssh);
        assert!(!rest.contains(6, 22) && rest.contains(17, 22) && rest.contains(6, 23) && rest.contains(1, 22));
        assert_eq!(rest.union(&ssh), ServiceSet::full());
        assert!(ssh.overlaps(&ServiceSet::full()) && !ssh.overlaps(&rest) && !rest.overlaps(&ssh));
        assert!(ssh.is_subset(&ServiceSet::full()) && !ServiceSet::full().is_subset(&rest));
        assert_eq!(
            rest.to_string(),
            "TCP/0-21, TCP/23-65535, UDP, SCTP, every protocol without ports"
        );
    }

    #[test]
    fn a_protocol_without_ports_is_in_or_out_as_a_whole() {
        let mut ping = ServiceSet::empty();
        ping.insert(1, 8, 8);
        assert!(ping.contains(1, 0) && ping.contains(1, 9) && !ping.contains(58, 8));
        let mut gre = ServiceSet::empty();
        gre.insert(47, 0, 0);
        assert!(gre.overlaps(&gre) && gre.overlaps(&ServiceSet::full()) && !gre.overlaps(&ping));
        assert_eq!(ping.portless().collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn types_of_icmp_are_told_apart() {
        let mut ping = ServiceSet::empty();
        ping.insert_icmp(1, 8);
        assert!(ping.contains(1, 8) && !ping.contains(1, 0) && !ping.contains(58, 8));
        assert_eq!(ping.portless().count(), 0);
        assert_eq!(ping.to_string(), "ICMP type 8");
        assert!(ping.without_icmp_types(false).is_empty() && ping.without_icmp_types(true).contains(1, 0));
        let rest = ServiceSet::full().subtract(&ping);
        assert!(!rest.has_all_portless() && rest.contains(1, 0) && rest.contains(47, 0) && !rest.contains(1, 8));
        assert_eq!(rest.union(&ping), ServiceSet::full());
    }
}
