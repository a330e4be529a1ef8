use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv4Subnets, Ipv6Net, Ipv6Subnets};

use super::IntervalSet;

/// A set of IPv4 and IPv6 addresses.
///
/// An IPv4 address written inside IPv6 (`::ffff:a.b.c.d`) is the IPv4 address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct AddressSet {
    /// IPv4 addresses, as their big-endian number.
    pub v4: IntervalSet<u32>,
    /// IPv6 addresses, as their big-endian number.
    pub v6: IntervalSet<u128>,
}

impl AddressSet {
    /// No address.
    pub fn empty() -> Self {
        Self::default()
    }

    /// Every address of both families.
    pub fn full() -> Self {
        Self {
            v4: IntervalSet::full(),
            v6: IntervalSet::full(),
        }
    }

    /// The union of networks.
    pub fn from_nets(nets: impl IntoIterator<Item = IpNet>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for net in nets {
            match net {
                IpNet::V4(net) => v4.push((u32::from(net.network()), u32::from(net.broadcast()))),
                IpNet::V6(net) => v6.push((u128::from(net.network()), u128::from(net.broadcast()))),
            }
        }
        Self {
            v4: IntervalSet::from_ranges(v4),
            v6: IntervalSet::from_ranges(v6),
        }
    }

    /// Whether the address is a member.
    pub fn contains(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(v4) => self.v4.contains(u32::from(v4)),
            IpAddr::V6(v6) => self.v6.contains(u128::from(v6)),
        }
    }

    /// Whether there is no member.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// Whether every address of both families is a member.
    pub fn is_full(&self) -> bool {
        self.v4.is_full() && self.v6.is_full()
    }

    /// Members of either.
    pub fn union(&self, other: &Self) -> Self {
        Self {
            v4: self.v4.union(&other.v4),
            v6: self.v6.union(&other.v6),
        }
    }

    /// Members of both.
    pub fn intersect(&self, other: &Self) -> Self {
        Self {
            v4: self.v4.intersect(&other.v4),
            v6: self.v6.intersect(&other.v6),
        }
    }

    /// Whether anything is a member of both.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.v4.overlaps(&other.v4) || self.v6.overlaps(&other.v6)
    }

    /// Members of `self` that are not in `other`.
    pub fn subtract(&self, other: &Self) -> Self {
        Self {
            v4: self.v4.subtract(&other.v4),
            v6: self.v6.subtract(&other.v6),
        }
    }

    /// Whether every member is in `other`.
    pub fn is_subset(&self, other: &Self) -> bool {
        self.v4.is_subset(&other.v4) && self.v6.is_subset(&other.v6)
    }

    /// The fewest networks whose union is the set, IPv4 first, ascending.
    pub fn to_nets(&self) -> Vec<IpNet> {
        let v4 = self.v4.ranges().iter().flat_map(|(start, end)| {
            Ipv4Subnets::new(Ipv4Addr::from(*start), Ipv4Addr::from(*end), 0)
                .map(IpNet::V4)
                .collect::<Vec<_>>()
        });
        let v6 = self.v6.ranges().iter().flat_map(|(start, end)| {
            Ipv6Subnets::new(Ipv6Addr::from(*start), Ipv6Addr::from(*end), 0)
                .map(IpNet::V6)
                .collect::<Vec<_>>()
        });
        v4.chain(v6).collect()
    }
}

impl From<Ipv4Net> for AddressSet {
    fn from(net: Ipv4Net) -> Self {
        Self::from_nets([IpNet::V4(net)])
    }
}

impl From<Ipv6Net> for AddressSet {
    fn from(net: Ipv6Net) -> Self {
        Self::from_nets([IpNet::V6(net)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_come_back_as_the_fewest_networks() {
        let nets = |texts: &[&str]| texts.iter().map(|t| t.parse::<IpNet>().unwrap()).collect::<Vec<_>>();
        let set = AddressSet::from_nets(nets(&["10.0.0.0/25", "10.0.0.128/25", "::/0", "10.0.2.0/24"]));
        assert_eq!(set.to_nets(), nets(&["10.0.0.0/24", "10.0.2.0/24", "::/0"]));
        let hole = set.subtract(&AddressSet::from_nets(nets(&["10.0.0.0/26"])));
        assert_eq!(
            hole.to_nets(),
            nets(&["10.0.0.64/26", "10.0.0.128/25", "10.0.2.0/24", "::/0"])
        );
        assert_eq!(AddressSet::full().to_nets(), nets(&["0.0.0.0/0", "::/0"]));
    }

    #[test]
    fn an_ipv4_address_inside_ipv6_is_the_ipv4_address() {
        let set = AddressSet::from_nets(["10.0.0.0/8".parse().unwrap()]);
        assert!(set.contains("::ffff:10.1.2.3".parse().unwrap()));
        assert!(!set.contains("::10.1.2.3".parse().unwrap()));
    }
}
