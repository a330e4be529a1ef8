//! nftables: a ruleset of its own table, loaded atomically with `nft -f`.
//!
//! Every packet is decided by the connection it belongs to: the address that opened it (`ct original saddr`,
//! before source translation), and the address and port that answer (`ct reply saddr`, after destination
//! translation). Replies so follow their connection, and a changed policy takes effect on connections that are
//! already open. ICMP errors about a connection that was let through pass. Verdict maps send a governed address to the chain of the policies that
//! govern it together; the chain holds only their rules, in the order in which they decide.

use std::{borrow::Borrow, collections::BTreeMap, fmt::Write as _};

use ipnet::IpNet;

use super::{
    Compiled, CompiledFile, ordered,
    project::{Says, project},
};
use crate::{
    document::Action,
    ir::{DEFAULT_DENY, Direction, Policy, Rule},
    sets::{AddressSet, PORT_PROTOCOLS, ServiceSet},
};

/// The table that holds the compiled policies.
pub const TABLE: &str = "garrison_policy";

/// Bytes of a rule's comment; nft takes 128.
const COMMENT: usize = 120;

#[derive(Clone, Copy)]
enum Family {
    V4,
    V6,
}

impl Family {
    const BOTH: [Self; 2] = [Self::V4, Self::V6];

    fn suffix(self) -> &'static str {
        match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Self::V4 => "ipv4_addr",
            Self::V6 => "ipv6_addr",
        }
    }

    fn nets(self, set: &AddressSet) -> Vec<String> {
        let nets = set.to_nets().into_iter();
        nets.filter(|net| matches!((self, net), (Self::V4, IpNet::V4(_)) | (Self::V6, IpNet::V6(_))))
            .map(|net| {
                if net.prefix_len() == net.max_prefix_len() {
                    net.addr().to_string()
                } else {
                    net.to_string()
                }
            })
            .collect()
    }

    fn is_full(self, set: &AddressSet) -> bool {
        match self {
            Self::V4 => set.v4.is_full(),
            Self::V6 => set.v6.is_full(),
        }
    }
}

/// An address of the connection, as nft writes it.
fn address(direction: Direction, governed: bool, family: Family) -> String {
    let opener = matches!(direction, Direction::Egress) == governed;
    let side = if opener { "original" } else { "reply" };
    format!("ct {side} {} saddr", family.word())
}

/// Compiles the enforced policies to one nftables ruleset.
pub fn nftables<P: Borrow<Policy>>(policies: &[P]) -> Compiled {
    let mut out = Compiled::default();
    let says = Says {
        target: "nftables",
        by_address: true,
        ..Says::default()
    };
    let policies = project(policies, &says, &mut out);
    let enforced = ordered::by_address(&policies, "nftables", None, &mut out);
    let mut ruleset = Ruleset::default();
    for direction in Direction::BOTH {
        ruleset.direction(&enforced, direction);
    }
    out.files.push(CompiledFile {
        path: "garrison-policy.nft".to_owned(),
        content: ruleset.write(&enforced),
    });
    out
}

#[derive(Default)]
struct Ruleset {
    /// Named sets by type and elements, so that equal sets are written once.
    sets: BTreeMap<(&'static str, Vec<String>), String>,
    set_text: String,
    maps: String,
    chains: String,
    /// Chains that governed addresses may be sent to.
    chain_count: usize,
    governed: [bool; 4],
}

impl Ruleset {
    fn direction(&mut self, policies: &[&Policy], direction: Direction) {
        let members: Vec<&Policy> = policies
            .iter()
            .copied()
            .filter(|p| p.rules(direction).is_some())
            .collect();
        let by_policies = ordered::together(&members);
        let mut elements: [Vec<String>; 2] = Default::default();
        for (together, addresses) in by_policies {
            self.chain_count += 1;
            let chain = format!("{}_{}", direction.as_str(), self.chain_count);
            let together: Vec<&Policy> = together.iter().map(|i| members[*i]).collect();
            self.chain(&chain, &together, direction);
            for (family, elements) in Family::BOTH.into_iter().zip(&mut elements) {
                let nets = family.nets(&addresses).into_iter();
                elements.extend(nets.map(|net| format!("{net} : jump {chain}")));
            }
        }
        for (f, (family, elements)) in Family::BOTH.into_iter().zip(elements).enumerate() {
            if elements.is_empty() {
                continue;
            }
            self.governed[direction as usize * 2 + f] = true;
            let _ = write!(
                self.maps,
                "    map {}_{} {{\n        type {} : verdict\n        flags interval\n        elements = {{\n            {}\n        }}\n    }}\n\n",
                direction.as_str(),
                family.suffix(),
                family.kind(),
                elements.join(",\n            "),
            );
        }
    }

    fn chain(&mut self, name: &str, together: &[&Policy], direction: Direction) {
        let names: Vec<String> = together.iter().map(|p| p.reference()).collect();
        let _ = writeln!(
            self.chains,
            "    # {} decided by {}\n    chain {name} {{",
            direction.as_str(),
            names.join(", ")
        );
        let mut rules: Vec<(&Policy, &Rule)> = together
            .iter()
            .flat_map(|p| p.rules(direction).unwrap_or_default().iter().map(|r| (*p, r)))
            .collect();
        rules.sort_by_key(|(policy, rule)| (policy.tier, rule.action == Action::Allow));
        for (policy, rule) in rules {
            self.rule(policy, rule, direction);
        }
        if let Some(first) = together.iter().min_by_key(|p| p.tier) {
            let comment = comment(first, DEFAULT_DENY);
            let _ = writeln!(self.chains, "        counter drop comment \"{comment}\"");
        }
        self.chains.push_str("    }\n\n");
    }

    fn rule(&mut self, policy: &Policy, rule: &Rule, direction: Direction) {
        let verdict = match rule.action {
            Action::Allow => "return",
            Action::Deny => "drop",
        };
        let comment = comment(policy, &rule.name);
        let peers = if rule.peers.addresses.is_full() {
            vec![String::new()]
        } else {
            let mut peers = Vec::new();
            for family in Family::BOTH {
                let address = address(direction, false, family);
                if family.is_full(&rule.peers.addresses) {
                    let word = match family {
                        Family::V4 => "ipv4",
                        Family::V6 => "ipv6",
                    };
                    peers.push(format!("meta nfproto {word} "));
                    continue;
                }
                let nets = family.nets(&rule.peers.addresses);
                if !nets.is_empty() {
                    let set = self.set(family.kind(), &format!("peers_{}", family.suffix()), nets);
                    peers.push(format!("{address} @{set} "));
                }
            }
            peers
        };
        for peer in &peers {
            for service in self.services(&rule.services) {
                let _ = writeln!(
                    self.chains,
                    "        {peer}{service}counter {verdict} comment \"{comment}\""
                );
            }
        }
    }

    /// A named set with these elements, written once.
    fn set(&mut self, kind: &'static str, what: &str, elements: Vec<String>) -> String {
        let name = format!("{what}_{}", self.sets.len() + 1);
        let key = (kind, elements);
        if let Some(known) = self.sets.get(&key) {
            return known.clone();
        }
        write_set(&mut self.set_text, &name, kind, &key.1);
        self.sets.insert(key, name.clone());
        name
    }

    /// What a rule says about protocol and port: one match each, with a space behind.
    fn services(&mut self, set: &ServiceSet) -> Vec<String> {
        if set.is_full() {
            return vec![String::new()];
        }
        let mut whole: Vec<String> = set.portless().map(|p| p.to_string()).collect();
        let mut matches = Vec::new();
        for (protocol, word) in PORT_PROTOCOLS.into_iter().zip(["tcp", "udp", "sctp"]) {
            let Some(ports) = set.ports(protocol) else {
                continue;
            };
            if ports.is_full() {
                whole.push(protocol.to_string());
                continue;
            }
            let mut ranges: Vec<String> = ports
                .ranges()
                .iter()
                .map(|(from, to)| {
                    if from == to {
                        from.to_string()
                    } else {
                        format!("{from}-{to}")
                    }
                })
                .collect();
            let ports = match ranges.len() {
                0 => continue,
                1 => ranges.remove(0),
                _ => format!("@{}", self.set("inet_service", "ports", ranges)),
            };
            matches.push(format!("meta l4proto {word} ct reply proto-src {ports} "));
        }
        if !whole.is_empty() {
            matches.push(format!("meta l4proto {{ {} }} ", whole.join(", ")));
        }
        matches
    }

    fn write(&self, policies: &[&Policy]) -> String {
        let mut text = String::from(
            "#!/usr/sbin/nft -f\n# Generated by Garrison. Changes here are lost.\n# Policies, the first tier first:\n",
        );
        let mut ordered = policies.to_vec();
        ordered.sort_by_key(|p| p.tier);
        for policy in ordered {
            let _ = writeln!(text, "#   {} (tier {})", policy.reference(), policy.tier);
        }
        // The empty declaration makes the deletion succeed the first time too; all of it is one transaction.
        let _ = write!(
            text,
            "\ntable inet {TABLE}\ndelete table inet {TABLE}\n\ntable inet {TABLE} {{\n"
        );
        let (governed, unconnected) = Self::unconnected(policies);
        text.push_str(&self.set_text);
        text.push_str(&governed);
        // Chains come before the maps that jump to them.
        text.push_str(&self.chains);
        text.push_str(&self.maps);
        text.push_str(&unconnected);
        text.push_str("    chain decide {\n");
        text.push_str("        icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert } return comment \"neighbour discovery\"\n");
        text.push_str("        ct state invalid,untracked goto unconnected\n");
        text.push_str("        ct state related meta l4proto { icmp, ipv6-icmp } return comment \"errors about connections that were let through\"\n");
        for direction in Direction::BOTH {
            for (f, family) in Family::BOTH.into_iter().enumerate() {
                if self.governed[direction as usize * 2 + f] {
                    let _ = writeln!(
                        text,
                        "        {} vmap @{}_{}",
                        address(direction, true, family),
                        direction.as_str(),
                        family.suffix()
                    );
                }
            }
        }
        text.push_str("    }\n\n");
        for (hook, local) in [
            ("forward", ""),
            ("input", "iif lo accept\n        "),
            ("output", "oif lo accept\n        "),
        ] {
            let _ = write!(
                text,
                "    chain {hook} {{\n        type filter hook {hook} priority filter + 10; policy accept;\n        {local}jump decide\n    }}\n\n"
            );
        }
        text.truncate(text.trim_end().len());
        text.push_str("\n}\n");
        text
    }

    /// Packets that belong to no connection cannot be decided; those of governed hosts are dropped.
    fn unconnected(policies: &[&Policy]) -> (String, String) {
        let governed = policies
            .iter()
            .fold(AddressSet::empty(), |all, p| all.union(&p.subject.addresses));
        let mut sets = String::new();
        let mut chain = String::from("    chain unconnected {\n");
        for family in Family::BOTH {
            let nets = family.nets(&governed);
            if nets.is_empty() {
                continue;
            }
            let name = format!("governed_{}", family.suffix());
            write_set(&mut sets, &name, family.kind(), &nets);
            for side in ["saddr", "daddr"] {
                let _ = writeln!(
                    chain,
                    "        {} {side} @{name} counter drop comment \"part of no connection\"",
                    family.word(),
                );
            }
        }
        chain.push_str("    }\n\n");
        (sets, chain)
    }
}

fn write_set(text: &mut String, name: &str, kind: &str, elements: &[String]) {
    let _ = write!(
        text,
        "    set {name} {{\n        type {}\n        flags interval\n        elements = {{\n            {}\n        }}\n    }}\n\n",
        kind,
        elements.join(",\n            "),
    );
}

/// `name@version rule`, short enough for nft.
fn comment(policy: &Policy, rule: &str) -> String {
    let mut comment = format!("{} {rule}", policy.reference());
    comment.truncate(COMMENT); // names are ASCII
    comment
}
