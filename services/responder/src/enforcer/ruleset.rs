//! What belongs in the kernel, as data and as an nftables script.
//!
//! The table `inet garrison` holds, for every tenant, one chain and one set for each kind of action, address
//! family and prefix length. Sets are plain hash sets whose key is the masked address: an element is exact,
//! two of them never overlap, and looking one up costs the same however many there are. Base chains stand in
//! forward, input and output just before the usual filter chains, and their drop is final: it does not matter
//! whether a connection is established.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::IpAddr,
};

use chrono::{DateTime, Utc};
use garrison_proto::{TenantId, response::v1::Action};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The table's name.
pub const TABLE: &str = "garrison";
/// Before the chains that people make (`filter` is 0), after connection tracking.
const PRIORITY: i32 = -10;
/// Most elements in one set.
const SET_SIZE: u32 = 65_536;

/// What a set is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Everything is dropped.
    Block,
    /// Everything but management is dropped.
    Isolate,
    /// So many packets a second pass from each address.
    Rate(u32),
}

/// A set in the table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetKey {
    /// Whose.
    pub tenant: TenantId,
    /// What for.
    pub kind: Kind,
    /// IPv6 or IPv4.
    pub v6: bool,
    /// The prefix length of every element.
    pub prefix: u8,
}

impl SetKey {
    /// The set in which an action on a network belongs, `None` for no action.
    pub fn of(tenant: &TenantId, action: Action, packets_per_second: u32, net: IpNet) -> Option<Self> {
        let kind = match action {
            Action::Block => Kind::Block,
            Action::Isolate => Kind::Isolate,
            Action::RateLimit => Kind::Rate(packets_per_second.max(1)),
            Action::Unspecified => return None,
        };
        Some(Self {
            tenant: tenant.clone(),
            kind,
            v6: matches!(net, IpNet::V6(_)),
            prefix: net.prefix_len(),
        })
    }

    /// Its name. A tenant's id has no underscore, so that names cannot collide.
    pub fn name(&self) -> String {
        let family = if self.v6 { 6 } else { 4 };
        match self.kind {
            Kind::Block => format!("block{family}_{}_{}", self.prefix, self.tenant),
            Kind::Isolate => format!("isolate{family}_{}_{}", self.prefix, self.tenant),
            Kind::Rate(rate) => format!("rate{family}_{}_{rate}_{}", self.prefix, self.tenant),
        }
    }

    /// Reads a name that [`SetKey::name`] made. `None` for other sets of the table.
    pub fn parse(name: &str) -> Option<Self> {
        let (kind, rest) = name.split_once('_')?;
        let (prefix, rest) = rest.split_once('_')?;
        let (kind, v6, tenant) = match kind {
            "block4" => (Kind::Block, false, rest),
            "block6" => (Kind::Block, true, rest),
            "isolate4" => (Kind::Isolate, false, rest),
            "isolate6" => (Kind::Isolate, true, rest),
            "rate4" | "rate6" => {
                let (rate, tenant) = rest.split_once('_')?;
                (Kind::Rate(rate.parse().ok()?), kind == "rate6", tenant)
            }
            _ => return None,
        };
        let key = Self {
            tenant: tenant.parse().ok()?,
            kind,
            v6,
            prefix: prefix.parse().ok().filter(|p| *p <= if v6 { 128 } else { 32 })?,
        };
        (key.name() == name).then_some(key)
    }

    fn address(&self, side: &str) -> String {
        let field = format!("{} {side}", if self.v6 { "ip6" } else { "ip" });
        let widest = if self.v6 { 128 } else { 32 };
        if self.prefix >= widest {
            return field;
        }
        let mask = if self.v6 {
            Ipv6Net::new_assert([0; 16].into(), self.prefix).netmask().to_string()
        } else {
            Ipv4Net::new_assert([0; 4].into(), self.prefix).netmask().to_string()
        };
        format!("{field} & {mask}")
    }
}

/// Elements that should be in the kernel, each with when it ends.
pub type Elements = BTreeMap<(SetKey, IpAddr), Option<DateTime<Utc>>>;

/// A tenant on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantScope {
    /// Which.
    pub id: TenantId,
    /// Only packets on these interfaces are the tenant's; empty for all packets.
    pub interfaces: Vec<String>,
}

/// The fixed part of a ruleset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Tenants on this node.
    pub tenants: Vec<TenantScope>,
    /// Networks that an isolated host can still reach and be reached from.
    pub management: Vec<IpNet>,
}

impl Layout {
    /// The sets that are always there, so that the usual actions need no new rule: single addresses.
    pub fn standing_sets(&self) -> BTreeSet<SetKey> {
        let mut sets = BTreeSet::new();
        for tenant in &self.tenants {
            for kind in [Kind::Block, Kind::Isolate] {
                for (v6, prefix) in [(false, 32), (true, 128)] {
                    sets.insert(SetKey {
                        tenant: tenant.id.clone(),
                        kind,
                        v6,
                        prefix,
                    });
                }
            }
        }
        sets
    }

    /// A script that replaces the table with one that has these sets and elements, in one transaction: there
    /// is no moment at which less is in force.
    pub fn script(&self, sets: &BTreeSet<SetKey>, elements: &Elements, now: DateTime<Utc>) -> String {
        let mut out = String::with_capacity(4096);
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "add table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{"
        );
        for (name, v6) in [("management4", false), ("management6", true)] {
            let nets: Vec<String> = self
                .management
                .iter()
                .filter(|n| matches!(n, IpNet::V6(_)) == v6)
                .map(IpNet::to_string)
                .collect();
            let kind = if v6 { "ipv6_addr" } else { "ipv4_addr" };
            let _ = write!(out, "  set {name} {{ type {kind}; flags interval; auto-merge;");
            if !nets.is_empty() {
                let _ = write!(out, " elements = {{ {} }};", nets.join(", "));
            }
            let _ = writeln!(out, " }}");
        }
        for set in sets {
            write_set(&mut out, set, elements, now);
        }
        for tenant in &self.tenants {
            let _ = writeln!(out, "  chain tenant_{} {{", tenant.id);
            // Isolation and blocking first: what they drop needs no counting against a rate.
            for set in sets.iter().filter(|s| s.tenant == tenant.id) {
                write_rules(&mut out, set);
            }
            let _ = writeln!(out, "  }}");
        }
        let _ = writeln!(out, "  chain judge {{");
        for tenant in &self.tenants {
            if tenant.interfaces.is_empty() {
                let _ = writeln!(out, "    jump tenant_{}", tenant.id);
            } else {
                let names: Vec<String> = tenant.interfaces.iter().map(|i| format!("\"{i}\"")).collect();
                let names = names.join(", ");
                let _ = writeln!(out, "    iifname {{ {names} }} jump tenant_{}", tenant.id);
                let _ = writeln!(
                    out,
                    "    iifname != {{ {names} }} oifname {{ {names} }} jump tenant_{}",
                    tenant.id
                );
            }
        }
        let _ = writeln!(out, "  }}");
        for hook in ["forward", "input", "output"] {
            let _ = writeln!(
                out,
                "  chain {hook} {{ type filter hook {hook} priority {PRIORITY}; policy accept; jump judge; }}"
            );
        }
        out.push_str("}\n");
        out
    }
}

fn write_set(out: &mut String, set: &SetKey, elements: &Elements, now: DateTime<Utc>) {
    let kind = if set.v6 { "ipv6_addr" } else { "ipv4_addr" };
    let _ = write!(
        out,
        "  set {} {{ type {kind}; size {SET_SIZE}; flags timeout;",
        set.name()
    );
    let held: Vec<String> = elements
        .iter()
        .filter(|((key, _), _)| key == set)
        .filter_map(|((_, address), ends)| match ends {
            None => Some(address.to_string()),
            Some(ends) => {
                let millis = (*ends - now).num_milliseconds();
                (millis > 0).then(|| format!("{address} timeout {}s", millis.div_euclid(1000) + 1))
            }
        })
        .collect();
    if !held.is_empty() {
        let _ = write!(out, " elements = {{ {} }};", held.join(", "));
    }
    let _ = writeln!(out, " }}");
    if let Kind::Rate(_) = set.kind {
        let _ = writeln!(
            out,
            "  set meter_{} {{ type {kind}; size {SET_SIZE}; flags dynamic,timeout; timeout 1m; }}",
            set.name()
        );
    }
}

fn write_rules(out: &mut String, set: &SetKey) {
    let name = set.name();
    let family = if set.v6 { "ip6" } else { "ip" };
    let management = if set.v6 { "management6" } else { "management4" };
    let (from, to) = (set.address("saddr"), set.address("daddr"));
    let _ = match set.kind {
        Kind::Block => writeln!(out, "    {from} @{name} counter drop\n    {to} @{name} counter drop"),
        Kind::Isolate => writeln!(
            out,
            "    {from} @{name} {family} daddr != @{management} counter drop\n    {to} @{name} {family} saddr != @{management} counter drop"
        ),
        Kind::Rate(rate) => writeln!(
            out,
            "    {from} @{name} update @meter_{name} {{ {family} saddr limit rate over {rate}/second burst {rate} packets }} counter drop"
        ),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(id: &str) -> TenantId {
        id.parse().unwrap()
    }

    #[test]
    fn an_action_finds_its_set() {
        let net: IpNet = "10.0.0.0/24".parse().unwrap();
        let set = SetKey::of(&tenant("acme-eu"), Action::Block, 0, net).unwrap();
        assert_eq!(set.name(), "block4_24_acme-eu");
        assert_eq!(set.address("saddr"), "ip saddr & 255.255.255.0");
        let v6: IpNet = "2001:db8::1/128".parse().unwrap();
        let set = SetKey::of(&tenant("acme"), Action::RateLimit, 50, v6).unwrap();
        assert_eq!(set.name(), "rate6_128_50_acme");
        assert_eq!(SetKey::parse("rate6_128_50_acme"), Some(set.clone()));
        assert_eq!(SetKey::parse("block4_24_acme-eu").unwrap().prefix, 24);
        for other in [
            "management4",
            "meter_rate4_32_50_acme",
            "block4_33_acme",
            "block4_024_acme",
            "block4_24_A",
            "x",
        ] {
            assert_eq!(SetKey::parse(other), None, "{other}");
        }
        assert_eq!(set.address("daddr"), "ip6 daddr");
        assert_eq!(SetKey::of(&tenant("acme"), Action::Unspecified, 0, v6), None);
    }

    #[test]
    fn what_has_run_out_is_left_out_of_the_script() {
        let now = Utc::now();
        let layout = Layout {
            tenants: vec![TenantScope {
                id: tenant("acme"),
                interfaces: vec!["eth1".into()],
            }],
            management: vec![],
        };
        let set = SetKey::of(&tenant("acme"), Action::Block, 0, "10.0.0.1/32".parse().unwrap()).unwrap();
        let mut elements = Elements::new();
        for (address, ends) in [
            ("10.0.0.1", None),
            ("10.0.0.2", Some(now + chrono::Duration::milliseconds(1500))),
            ("10.0.0.3", Some(now - chrono::Duration::seconds(1))),
        ] {
            elements.insert((set.clone(), address.parse().unwrap()), ends);
        }
        let script = layout.script(&layout.standing_sets(), &elements, now);
        assert!(
            script.contains("elements = { 10.0.0.1, 10.0.0.2 timeout 2s };"),
            "{script}"
        );
        assert!(script.contains("iifname { \"eth1\" } jump tenant_acme"));
    }
}
