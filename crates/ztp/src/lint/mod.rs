//! What a document means that its author may not have meant.

mod overlap;
mod space;

pub use overlap::{Overlap, Overlaps, overlaps};

use crate::{
    decode::Findings,
    diagnostic::Code,
    document::{Action, Mode, ZeroTrustPolicy},
    ir::{Direction, PeerSet, Policy, Rule},
    sets::AddressSet,
};

/// Policies with more rules than this are not searched for rules that cover each other when they are checked: the
/// search compares every pair.
const PAIRWISE: usize = 1_000;

pub(crate) fn lint(document: &ZeroTrustPolicy, policy: &Policy, f: &mut Findings<'_>) {
    ownership(document, f);
    groups(document, f);
    let judged = !policy.subject.addresses.is_empty();
    if !judged {
        f.warn_at(
            Code::NoAddresses,
            "spec.subject",
            "the subject has no addresses, so that flows are not held against this policy and only Kubernetes can enforce it",
            "Add `cidrs` or a `group` with `cidrs` that means the same endpoints",
        );
    }
    one_family(&policy.subject.addresses, "spec.subject", f);
    for direction in Direction::BOTH {
        let rules = policy.rules(direction).unwrap_or_default();
        for rule in rules {
            without_addresses(rule, direction, judged, f);
            one_family(&rule.peers.addresses, &rule.field, f);
            if over_wide(rule) {
                let everyone = rule.peers.workloads.contains(&PeerSet::Any);
                f.warn_at(
                    Code::OverWide,
                    &rule.field,
                    format!(
                        "rule {} allows everything {} {}",
                        rule.name,
                        from_or_to(direction),
                        if everyone {
                            "everyone"
                        } else {
                            "more endpoints than anybody knows"
                        }
                    ),
                    "Name the ports, the peers, or both",
                );
            }
        }
    }
    for found in overlap::within(policy).found {
        f.warn_at(found.code, &found.field, found.message, found.remedy);
    }
}

fn from_or_to(direction: Direction) -> &'static str {
    match direction {
        Direction::Egress => "to",
        Direction::Ingress => "from",
    }
}

fn ownership(document: &ZeroTrustPolicy, f: &mut Findings<'_>) {
    let spec = &document.spec;
    if spec.mode != Mode::Enforce {
        return;
    }
    for (name, value) in [("owner", &spec.owner), ("reason", &spec.reason)] {
        if value.is_none() {
            f.warn_at(
                Code::Unowned,
                "spec",
                format!("an enforced policy has no `{name}`"),
                "Say who answers for it and why, for the person who is blocked by it at night",
            );
        }
    }
}

fn groups(document: &ZeroTrustPolicy, f: &mut Findings<'_>) {
    let spec = &document.spec;
    let ingress = spec.ingress.iter().flatten().flat_map(|rule| &rule.from);
    let egress = spec.egress.iter().flatten().flat_map(|rule| &rule.to);
    let used: std::collections::BTreeSet<&String> = ingress
        .chain(egress)
        .filter_map(|peer| peer.group.as_ref())
        .chain(&spec.subject.group)
        .collect();
    for name in spec.groups.keys().filter(|name| !used.contains(name)) {
        f.warn_at(
            Code::UnusedGroup,
            &format!("spec.groups.{name}"),
            format!("nothing uses group {name}"),
            "Remove it, or use it",
        );
    }
}

fn without_addresses(rule: &Rule, direction: Direction, judged: bool, f: &mut Findings<'_>) {
    if !judged {
        return;
    }
    let side = from_or_to(direction);
    for i in &rule.peers.without_addresses {
        let field = format!("{}.{side}[{i}]", rule.field);
        match rule.action {
            Action::Allow => f.warn_at(
                Code::NoAddresses,
                &field,
                "the peer has no addresses, so that flows of it count as not allowed by this rule",
                "Name a `group` that has `cidrs` as well as labels",
            ),
            Action::Deny => f.error_at(
                Code::Undecidable,
                &field,
                "the peer of a deny rule has no addresses, so that flows cannot be held against it",
                "Name a `group` that has `cidrs` as well as labels",
            ),
        }
    }
}

fn one_family(set: &AddressSet, field: &str, f: &mut Findings<'_>) {
    let (all, other) = match (set.v4.is_full(), set.v6.is_full()) {
        (true, false) if set.v6.is_empty() => ("IPv4", "IPv6"),
        (false, true) if set.v4.is_empty() => ("IPv6", "IPv4"),
        _ => return,
    };
    f.warn_at(
        Code::OneFamily,
        field,
        format!("this is all of {all} and nothing of {other}"),
        "Write `any: true` for everyone, or name both 0.0.0.0/0 and ::/0",
    );
}

/// The widest networks that an allow rule for everything may name: 16 million IPv4 addresses, or an IPv6 /32.
const WIDE: [u8; 2] = [8, 32];

/// Whether a rule for every protocol and port is for more than anybody knows.
fn over_wide(rule: &Rule) -> bool {
    let wide = |set: &AddressSet| {
        set.to_nets().iter().any(|net| {
            let widest = if net.addr().is_ipv4() { WIDE[0] } else { WIDE[1] };
            net.prefix_len() < widest
        })
    };
    rule.action == Action::Allow
        && rule.services.is_full()
        && rule.condition.is_none()
        && rule.peers.workloads.iter().any(|peer| match peer {
            PeerSet::Any => true,
            PeerSet::Addresses(set) => wide(set),
            PeerSet::Pods { namespaces, pods } => namespaces.is_full() && pods.is_full(),
            _ => false,
        })
}
