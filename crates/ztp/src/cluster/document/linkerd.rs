//! Linkerd's Servers and what authorises whom for them, as documents.
//!
//! A Server is a port that only what is authorised reaches: what is allowed in one tier, and the rest of the port denied in
//! the next. Its pods' other ports are open. Whoever has to show an identity has to be `trusted`.

use super::{FIRST, Imported, LAST, Names, overlap, ranks, who};
use crate::{
    cluster::{
        linkerd::{Authentication, Authorization, KIND, Linkerd, Open, Server, Who as Told},
        only,
    },
    document::{Action as Wanted, IngressRule, TrustLevel, ZeroTrustPolicy},
    ir::SERVICE_ACCOUNT_LABEL,
    reach::{Endpoint, Peer, Ports},
    security_group::ports,
    sets::{LabelValues, Selector, ServiceSet},
};

/// Somebody, and whether they have to show who they are.
type Shown = (who::Who, bool);

/// The documents of every Server.
pub(super) fn documents(
    linkerd: &Linkerd,
    endpoints: &[Endpoint],
    out: &mut Imported,
) -> Result<Vec<ZeroTrustPolicy>, String> {
    let numbers: Vec<Option<ServiceSet>> = linkerd
        .servers
        .iter()
        .map(|server| numbers(server, endpoints, out))
        .collect();
    let each: Vec<(&Server, ServiceSet)> = linkerd
        .servers
        .iter()
        .zip(&numbers)
        .map(|(server, numbers)| (server, numbers.clone().unwrap_or_else(tcp)))
        .collect();
    let ranks = ranks(&each, |(a, a_ports), (b, b_ports)| {
        overlap(&a.policy.subject, &b.policy.subject) && a_ports.overlaps(b_ports)
    });
    let mut names = Names::default();
    let mut documents = Vec::new();
    for (((server, all), rank), numbers) in each.into_iter().zip(ranks).zip(numbers) {
        let Peer::Pods { namespaces, pods, .. } = &server.policy.subject else {
            continue;
        };
        let tier = FIRST.saturating_add(rank.saturating_mul(2));
        if tier >= LAST - 2 {
            return Err(format!(
                "{}: too many Servers are for the same port of the same pods",
                server.policy
            ));
        }
        let mut allowed = Vec::new();
        // Without its number, nothing of the port can be allowed.
        if let Some(number) = &numbers {
            for (who, shows) in let_in(server, linkerd, out) {
                let name = format!("in-{}", allowed.len());
                let mut rule = IngressRule::new(name, Wanted::Allow, who::written(&who, None), ports(number).0);
                rule.requires = shows.then_some(TrustLevel::Trusted);
                if !rule.from.is_empty() {
                    allowed.push(rule);
                }
            }
        }
        let anyone = |name: &str, action, services: &ServiceSet| {
            let everyone = who::written(&who::Who::Any, None);
            vec![IngressRule::new(name.to_owned(), action, everyone, ports(services).0)]
        };
        let refused = anyone("others", Wanted::Deny, &all);
        let rest = anyone("other-ports", Wanted::Allow, &ServiceSet::full());
        for (what, tier, rules) in [("", tier, allowed), ("closed", tier + 1, refused), ("rest", LAST, rest)] {
            for (kind, subject) in who::subjects(namespaces, pods) {
                let mut document = ZeroTrustPolicy::observing(
                    kind,
                    names.take(&[&server.namespace, &server.name, what]),
                    tier,
                    format!(
                        "imported from {} ({}:{})",
                        server.policy, server.policy.file, server.policy.line
                    ),
                    subject,
                );
                document.spec.ingress = Some(rules.clone());
                documents.push(document);
            }
        }
    }
    Ok(documents)
}

fn tcp() -> ServiceSet {
    let mut set = ServiceSet::empty();
    set.insert(6, 0, u16::MAX);
    set
}

fn place(server: &Server) -> String {
    format!("{}:{}: {}", server.policy.file, server.policy.line, server.policy)
}

/// The number of a Server's port; `None` where only its name is known.
fn numbers(server: &Server, endpoints: &[Endpoint], out: &mut Imported) -> Option<ServiceSet> {
    let Ports { numbers, named } = &server.ports;
    let [(_, name)] = named.as_slice() else {
        return Some(numbers.clone());
    };
    let of_its_pods = endpoints.iter().filter(|e| server.policy.subject.matches(e));
    let mut found = of_its_pods.flat_map(|e| e.ports.iter().filter(|p| p.name == *name && p.protocol == 6));
    let first = found.next().map(|port| port.number);
    match first.filter(|number| found.all(|port| port.number == *number)) {
        Some(number) => {
            out.left_out.push(format!(
                "{}: port {name} is taken for {number}, as in the pods that are given",
                place(server)
            ));
            let mut set = ServiceSet::empty();
            set.insert(6, number, number);
            Some(set)
        }
        None => {
            out.left_out.push(format!(
                "{}: port {name} by name is the pods' to say, which are not given or do not agree; every port of TCP is denied",
                place(server)
            ));
            None
        }
    }
}

/// Whom a Server lets in.
fn let_in(server: &Server, linkerd: &Linkerd, out: &mut Imported) -> Vec<Shown> {
    let pods = || who::Who::Pods(Selector::full(), Selector::full());
    let mut all = match server.open {
        None => Vec::new(),
        Some(Open::Everyone) => vec![(who::Who::Any, false)],
        Some(Open::Members) => vec![(who::Who::Any, true)],
        Some(Open::OwnMembers) => vec![(pods(), true)],
        Some(Open::Inside) => {
            out.left_out.push(format!(
                "{}: whoever is in the cluster and no pod has no name in the language; it is not allowed",
                place(server)
            ));
            vec![(pods(), false)]
        }
    };
    let for_it = linkerd
        .authorizations
        .iter()
        .filter(|a| a.namespace == server.namespace && a.server.as_ref().is_none_or(|name| *name == server.name));
    for authorization in for_it {
        if let Some(kind) = &authorization.narrower {
            out.left_out.push(format!(
                "AuthorizationPolicy {}/{}: it is for a part of a Server ({kind}), which documents have no word for; it is not allowed",
                authorization.namespace, authorization.name
            ));
            continue;
        }
        match held(authorization, &linkerd.authentications) {
            Ok(who) => all.extend(who),
            Err(why) => out.left_out.push(format!(
                "AuthorizationPolicy {}/{}: {why}; it is not allowed",
                authorization.namespace, authorization.name
            )),
        }
    }
    all
}

/// Who holds everything that is required.
fn held(authorization: &Authorization, all: &[Authentication]) -> Result<Vec<Shown>, String> {
    let mut held: Vec<Shown> = vec![(who::Who::Any, false)];
    for (kind, namespace, name) in &authorization.required {
        let one = if kind == "ServiceAccount" {
            vec![(account(Some(namespace), Some(name)), true)]
        } else {
            let found = all
                .iter()
                .find(|a| a.kind == kind && a.namespace == *namespace && a.name == *name)
                .ok_or_else(|| format!("{kind} {namespace}/{name} is not in the files"))?;
            told(&found.who)?
        };
        let mut next = Vec::new();
        for (a, a_shows) in &held {
            for (b, b_shows) in &one {
                next.extend(who::meet(a, b)?.map(|who| (who, *a_shows || *b_shows)));
            }
        }
        held = next;
    }
    Ok(held)
}

fn told(who: &Told) -> Result<Vec<Shown>, String> {
    let (names, accounts) = match who {
        Told::Networks(set) => return Ok(vec![(who::Who::Addresses(set.clone()), false)]),
        Told::Identities { everyone: true, .. } => return Ok(vec![(who::Who::Any, true)]),
        Told::Identities { names, accounts, .. } => (names, accounts),
    };
    let mut all = Vec::new();
    for name in names {
        all.push((
            identity(name).ok_or_else(|| format!("identity {name:?} is not one of service accounts"))?,
            true,
        ));
    }
    all.extend(
        accounts
            .iter()
            .map(|(namespace, name)| (account(Some(namespace), name.as_deref()), true)),
    );
    Ok(all)
}

/// The pods with an identity such as `web.shop.serviceaccount.identity.linkerd.cluster.local`, or with all that end in
/// what stands behind a `*`.
fn identity(name: &str) -> Option<who::Who> {
    let (own, starred) = match name.strip_prefix('*') {
        Some(rest) => (rest, true),
        None => (name, false),
    };
    let at = own.find(KIND)?;
    let before = own[..at].strip_suffix('.')?;
    match (starred, before.rsplit_once('.')) {
        (true, None) if before.is_empty() => Some(account(None, None)),
        (true, Some(("", namespace))) => Some(account(Some(namespace), None)),
        // What a service account's name ends with.
        (true, _) => None,
        (false, Some((name, namespace))) => Some(account(Some(namespace), Some(name))),
        (false, None) => None,
    }
}

fn account(namespace: Option<&str>, name: Option<&str>) -> who::Who {
    who::Who::Pods(
        namespace.map_or_else(Selector::full, only),
        name.map_or_else(Selector::full, |name| {
            Selector::full().and(SERVICE_ACCOUNT_LABEL, LabelValues::within([name.to_owned()]))
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_name_service_accounts() {
        let end = "serviceaccount.identity.linkerd.cluster.local";
        for (name, meant) in [
            (format!("web.shop.{end}"), Some(account(Some("shop"), Some("web")))),
            (format!("a.b.shop.{end}"), Some(account(Some("shop"), Some("a.b")))),
            (format!("*.shop.{end}"), Some(account(Some("shop"), None))),
            (format!("*.{end}"), Some(account(None, None))),
            (format!("*b.shop.{end}"), None),
            (format!("shop.{end}"), None),
            ("somebody.example".to_owned(), None),
            ("*.local".to_owned(), None),
        ] {
            assert_eq!(identity(&name), meant, "{name}");
        }
    }
}
