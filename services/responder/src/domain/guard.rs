//! What no action may touch, and how much one tenant may touch at once.

use std::{fmt, net::IpAddr, str::FromStr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// An address or block that an action is aimed at, in canonical form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target(IpNet);

/// The text is no possible target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTarget {
    /// Neither an address nor a CIDR block.
    #[error("{0:?} is not an IP address or CIDR block, for example 192.0.2.7 or 2001:db8::/64")]
    Malformed(String),
    /// Acting on it would hit the node itself or everybody.
    #[error("{0} is {1}, which no action can be aimed at")]
    Special(IpNet, &'static str),
}

impl Target {
    /// The network; a single address is a block of full prefix length.
    pub fn network(self) -> IpNet {
        self.0
    }

    /// Whether it is a single address.
    pub fn is_host(self) -> bool {
        self.0.prefix_len() == self.0.max_prefix_len()
    }

    /// How many hosts it holds, for the blast radius: IPv4 addresses, or IPv6 networks of /64 and longer
    /// prefixes as one.
    pub fn hosts(self) -> u64 {
        match self.0 {
            IpNet::V4(net) => 1 << (32 - net.prefix_len()),
            IpNet::V6(net) => 1u64
                .checked_shl(u32::from(64u8.saturating_sub(net.prefix_len())))
                .unwrap_or(u64::MAX),
        }
    }
}

impl TryFrom<IpAddr> for Target {
    type Error = InvalidTarget;

    // Under the same check as text: what is stored is read back as text.
    fn try_from(address: IpAddr) -> Result<Self, Self::Error> {
        let net = IpNet::from(address.to_canonical());
        match special(net) {
            Some(what) => Err(InvalidTarget::Special(net, what)),
            None => Ok(Self(net)),
        }
    }
}

impl FromStr for Target {
    type Err = InvalidTarget;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || InvalidTarget::Malformed(text.chars().take(80).collect());
        let net = match text.parse::<IpAddr>() {
            Ok(address) => IpNet::from(address.to_canonical()),
            Err(_) => text.parse::<IpNet>().map_err(|_| malformed())?.trunc(),
        };
        // An IPv4-mapped block means the IPv4 block.
        let net = match net {
            IpNet::V6(v6) if v6.prefix_len() >= 96 => match v6.addr().to_ipv4_mapped() {
                Some(v4) => IpNet::V4(Ipv4Net::new(v4, v6.prefix_len() - 96).map_err(|_| malformed())?.trunc()),
                None => IpNet::V6(v6),
            },
            other => other,
        };
        match special(net) {
            Some(what) => Err(InvalidTarget::Special(net, what)),
            None => Ok(Self(net)),
        }
    }
}

fn special(net: IpNet) -> Option<&'static str> {
    match net {
        _ if net.prefix_len() == 0 => Some("everybody"),
        _ if net.addr().is_unspecified() => Some("the unspecified address"),
        _ if net.addr().is_loopback() => Some("the node itself"),
        _ if net.addr().is_multicast() => Some("a multicast group"),
        IpNet::V4(v4) if v4.addr().is_broadcast() => Some("the broadcast address"),
        IpNet::V6(v6) if v6.contains(&Ipv6Net::new_assert(std::net::Ipv6Addr::LOCALHOST, 128)) => {
            Some("a block with the node itself in it")
        }
        IpNet::V4(v4) if overlaps(net, IpNet::V4(Ipv4Net::new_assert([127, 0, 0, 0].into(), 8))) => {
            let _ = v4;
            Some("a block with the node itself in it")
        }
        _ => None,
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_host() {
            self.0.addr().fmt(f)
        } else {
            self.0.fmt(f)
        }
    }
}

/// Whether two blocks share an address.
pub fn overlaps(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

/// A host or network that no action may touch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Protected {
    /// The block.
    pub network: IpNet,
    /// Why.
    pub reason: String,
}

/// How much of a network one tenant's actions may take out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Addresses under any action at once.
    pub max_addresses: u64,
    /// The shortest IPv4 prefix that may be a target.
    pub widest_ipv4_prefix: u8,
    /// The shortest IPv6 prefix that may be a target.
    pub widest_ipv6_prefix: u8,
    /// Actions sent within one hour.
    pub max_per_hour: u64,
}

/// What a tenant's actions take up now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Sum of [`Target::hosts`] over all actions that are sent or in force.
    pub addresses: u64,
    /// Actions sent within the last hour.
    pub last_hour: u64,
}

/// Why an action was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// On the allow-list.
    #[error("{target} is protected by {network} ({reason})")]
    Protected {
        /// What was to be acted on.
        target: Target,
        /// The entry.
        network: IpNet,
        /// The entry's reason.
        reason: String,
    },
    /// Too wide a block.
    #[error("{target} is wider than /{widest}, the widest block an action of this tenant may touch")]
    TooWide {
        /// What was to be acted on.
        target: Target,
        /// The limit.
        widest: u8,
    },
    /// Too many addresses at once.
    #[error("{now} addresses are under actions and {wanted} more would exceed this tenant's limit of {max}")]
    TooMany {
        /// Taken up.
        now: u64,
        /// Asked for.
        wanted: u64,
        /// The limit.
        max: u64,
    },
    /// Too many actions in a short time.
    #[error("{now} actions were sent within the last hour, this tenant's limit is {max}")]
    TooFast {
        /// Sent.
        now: u64,
        /// The limit.
        max: u64,
    },
}

/// Decides whether a target may be acted on.
///
/// # Errors
/// The [`Refusal`] that a person should read.
pub fn check(target: Target, protected: &[Protected], limits: &Limits, usage: &Usage) -> Result<(), Refusal> {
    if let Some(entry) = protected.iter().find(|p| overlaps(p.network, target.network())) {
        return Err(Refusal::Protected {
            target,
            network: entry.network,
            reason: entry.reason.clone(),
        });
    }
    let widest = match target.network() {
        IpNet::V4(_) => limits.widest_ipv4_prefix,
        IpNet::V6(_) => limits.widest_ipv6_prefix,
    };
    if target.network().prefix_len() < widest {
        return Err(Refusal::TooWide { target, widest });
    }
    if usage.addresses.saturating_add(target.hosts()) > limits.max_addresses {
        return Err(Refusal::TooMany {
            now: usage.addresses,
            wanted: target.hosts(),
            max: limits.max_addresses,
        });
    }
    if usage.last_hour >= limits.max_per_hour {
        return Err(Refusal::TooFast {
            now: usage.last_hour,
            max: limits.max_per_hour,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits {
        max_addresses: 300,
        widest_ipv4_prefix: 24,
        widest_ipv6_prefix: 64,
        max_per_hour: 10,
    };

    fn target(text: &str) -> Target {
        text.parse().unwrap()
    }

    #[test]
    fn targets_are_canonical() {
        for (given, shown) in [
            ("10.0.0.7", "10.0.0.7"),
            ("10.0.0.7/32", "10.0.0.7"),
            ("10.0.0.7/24", "10.0.0.0/24"),
            ("::ffff:10.0.0.7", "10.0.0.7"),
            ("::ffff:10.0.0.0/120", "10.0.0.0/24"),
            ("2001:DB8::1", "2001:db8::1"),
            ("2001:db8::1/64", "2001:db8::/64"),
        ] {
            assert_eq!(target(given).to_string(), shown);
        }
        for bad in [
            "",
            "x",
            "10.0.0",
            "0.0.0.0/0",
            "::/0",
            "0.0.0.0",
            "::",
            "127.0.0.1",
            "127.0.0.0/8",
            "126.0.0.0/7",
            "::1",
            "::/64",
            "224.0.0.1",
            "ff02::1",
            "255.255.255.255",
            "10.0.0.1/33",
        ] {
            assert!(bad.parse::<Target>().is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn the_allow_list_holds_in_both_directions() {
        let protected = [Protected {
            network: "10.0.0.0/28".parse().unwrap(),
            reason: "core switches".into(),
        }];
        let usage = Usage::default();
        for touched in ["10.0.0.1", "10.0.0.0/24", "10.0.0.0/30"] {
            assert!(
                matches!(
                    check(target(touched), &protected, &LIMITS, &usage),
                    Err(Refusal::Protected { .. })
                ),
                "{touched}"
            );
        }
        assert_eq!(check(target("10.0.0.16"), &protected, &LIMITS, &usage), Ok(()));
    }

    #[test]
    fn the_blast_radius_is_bounded_in_width_number_and_rate() {
        let usage = |addresses, last_hour| Usage { addresses, last_hour };
        assert!(matches!(
            check(target("10.0.0.0/23"), &[], &LIMITS, &usage(0, 0)),
            Err(Refusal::TooWide { .. })
        ));
        assert!(matches!(
            check(target("2001:db8::/63"), &[], &LIMITS, &usage(0, 0)),
            Err(Refusal::TooWide { .. })
        ));
        assert_eq!(check(target("10.0.0.0/24"), &[], &LIMITS, &usage(44, 9)), Ok(()));
        assert!(matches!(
            check(target("10.0.0.0/24"), &[], &LIMITS, &usage(45, 0)),
            Err(Refusal::TooMany { .. })
        ));
        assert!(matches!(
            check(target("10.0.0.1"), &[], &LIMITS, &usage(0, 10)),
            Err(Refusal::TooFast { .. })
        ));
    }

    proptest! {
        #[test]
        fn reading_never_panics_and_reads_back_its_own_text(text in "[0-9a-f.:/]{0,24}") {
            if let Ok(target) = text.parse::<Target>() {
                prop_assert_eq!(target.to_string().parse::<Target>(), Ok(target));
                prop_assert!(target.hosts() >= 1);
            }
        }
    }
}
