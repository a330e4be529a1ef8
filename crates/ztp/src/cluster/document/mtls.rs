//! Istio's PeerAuthentications as documents: where mutual TLS is demanded, whoever shows no certificate is denied.
//!
//! The most special one that says something about a port counts, so those of workloads come in earlier tiers than those of
//! namespaces, and those before the mesh's.

use super::{FIRST, LAST, Names, overlap, ranks, who};
use crate::{
    cluster::istio::Istio,
    document::{Action as Wanted, IngressRule, TrustLevel, ZeroTrustPolicy},
    reach::{Action, Peer, Policy},
    security_group::ports,
    sets::ServiceSet,
};

/// What one says: where mutual TLS is demanded, and where it is not.
fn modes(policy: &Policy) -> [ServiceSet; 2] {
    let mut modes = [ServiceSet::empty(), ServiceSet::empty()];
    let mut strict = false;
    for rule in policy.ingress.iter().flatten() {
        match rule.action {
            // Whoever shows no certificate is denied; what is left passes, in the rule behind it.
            Action::Deny => strict = true,
            _ => {
                let known = modes[0].union(&modes[1]);
                let new = rule.ports.numbers.subtract(&known);
                let mode = &mut modes[usize::from(!strict)];
                *mode = mode.union(&new);
                strict = false;
            }
        }
    }
    modes
}

/// The documents; none where nothing demands mutual TLS.
pub(super) fn documents(istio: &Istio) -> Result<Vec<ZeroTrustPolicy>, String> {
    let all: Vec<&Policy> = istio.authentication.iter().flatten().collect();
    let modes: Vec<[ServiceSet; 2]> = all.iter().map(|policy| modes(policy)).collect();
    if modes.iter().all(|[strict, _]| strict.is_empty()) {
        return Ok(Vec::new());
    }
    // Only those before one that are about some of its ports have to decide before it.
    let each: Vec<(&Policy, ServiceSet)> = all
        .iter()
        .zip(&modes)
        .map(|(policy, [strict, open])| (*policy, strict.union(open)))
        .collect();
    let ranks = ranks(&each, |(a, a_ports), (b, b_ports)| {
        overlap(&a.subject, &b.subject) && a_ports.overlaps(b_ports)
    });
    let mut names = Names::default();
    let mut documents = Vec::new();
    for ((policy, [strict, open]), rank) in all.into_iter().zip(modes).zip(ranks) {
        let Peer::Pods { namespaces, pods, .. } = &policy.subject else {
            continue;
        };
        let tier = FIRST.saturating_add(rank.saturating_mul(2));
        if tier >= LAST - 2 {
            return Err(format!(
                "{policy}: too many PeerAuthentications are for the same ports of the same pods"
            ));
        }
        let rule = |name: &str, action, services: &ServiceSet, requires| {
            (!services.is_empty()).then(|| {
                let mut rule = IngressRule::new(
                    name.to_owned(),
                    action,
                    who::written(&who::Who::Any, None),
                    ports(services).0,
                );
                rule.requires = requires;
                rule
            })
        };
        let proved = [
            rule("mutual-tls", Wanted::Allow, &strict, Some(TrustLevel::Trusted)),
            rule("either", Wanted::Allow, &open, None),
        ];
        let refused = [rule("no-certificate", Wanted::Deny, &strict, None), None];
        let rest = [rule("rest", Wanted::Allow, &ServiceSet::full(), None), None];
        for (what, tier, rules) in [("", tier, proved), ("plain", tier + 1, refused), ("rest", LAST, rest)] {
            let rules: Vec<IngressRule> = rules.into_iter().flatten().collect();
            if rules.is_empty() {
                continue;
            }
            for (kind, subject) in who::subjects(namespaces, pods) {
                let mut document = ZeroTrustPolicy::observing(
                    kind,
                    names.take(&[&policy.namespace, &policy.name, "mtls", what]),
                    tier,
                    format!("imported from {policy} ({}:{})", policy.file, policy.line),
                    subject,
                );
                document.spec.ingress = Some(rules.clone());
                documents.push(document);
            }
        }
    }
    Ok(documents)
}
