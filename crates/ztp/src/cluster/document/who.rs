//! Whom policies are about, in words of the language.

use crate::{
    document::{
        CLUSTER_KIND, KIND, LabelOperator, LabelRequirement, LabelSelector, Peer as Written, Subject, Workloads,
    },
    ir::{NAMESPACE_NAME_LABEL, SERVICE_ACCOUNT_LABEL},
    reach::Peer,
    sets::{AddressSet, LabelValues, Selector},
};

/// The most selectors that one predicate becomes.
const SELECTORS: usize = 64;
/// What ids of the mesh's own trust domain begin with.
const OWN: &str = "spiffe://cluster.local/";

/// A predicate as the language has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Who {
    Any,
    Pods(Selector, Selector),
    Addresses(AddressSet),
    /// Addresses that no pod has.
    Outside(AddressSet),
    Domains(Vec<String>),
    /// SPIFFE ids, with a `*` at the end for everything that starts so.
    Identities(Vec<String>),
}

/// A predicate as alternatives, any one of which holds and can be written.
pub(super) fn alternatives(peer: &Peer) -> Result<Vec<Who>, &'static str> {
    let all = choices(peer)?;
    all.iter().try_for_each(writable)?;
    Ok(all)
}

/// Whether a document can say it.
pub(super) fn writable(who: &Who) -> Result<(), &'static str> {
    let Who::Pods(namespaces, pods) = who else {
        return Ok(());
    };
    if namespaces.writable().len() * pods.writable().len() > SELECTORS {
        return Err("it takes too many selectors");
    }
    let accounts = pods.labels().get(SERVICE_ACCOUNT_LABEL);
    if accounts.is_some_and(|values| values.inverted || values.absent) {
        return Err("every service account but some");
    }
    Ok(())
}

fn choices(peer: &Peer) -> Result<Vec<Who>, &'static str> {
    Ok(match peer {
        Peer::Any => vec![Who::Any],
        Peer::Pods { namespaces, pods, .. } => vec![Who::Pods(namespaces.clone(), pods.clone())],
        Peer::Addresses(nets) => vec![Who::Addresses(AddressSet::from_nets(nets.iter().copied()))],
        Peer::Outside => return Err("everyone outside the cluster cannot be told by address"),
        Peer::Nodes(_) => return Err("nodes have no name in the language"),
        Peer::Domains(names) => vec![Who::Domains(names.clone())],
        Peer::Some(peers) => {
            let mut all = Vec::new();
            for peer in peers {
                all.extend(choices(peer)?);
            }
            all
        }
        Peer::All(peers) => {
            let mut all = vec![Who::Any];
            let outside = peers.contains(&Peer::Outside);
            for peer in peers.iter().filter(|peer| **peer != Peer::Outside) {
                all = match peer {
                    Peer::Not(other) => without(all, &choices(other)?)?,
                    peer => together(&all, &choices(peer)?)?,
                };
            }
            if outside {
                let narrow = |who| match who {
                    Who::Addresses(set) => Ok(Who::Outside(set)),
                    Who::Any => Err("everyone outside the cluster cannot be told by address"),
                    _ => Err("pods are not outside the cluster"),
                };
                all = all.into_iter().map(narrow).collect::<Result<_, _>>()?;
            }
            all
        }
        Peer::Not(other) => without(vec![Who::Any], &choices(other)?)?,
    })
}

fn together(all: &[Who], more: &[Who]) -> Result<Vec<Who>, &'static str> {
    let mut out = Vec::new();
    for a in all {
        for b in more {
            out.extend(meet(a, b)?);
        }
    }
    Ok(out)
}

/// Who is in both; `None` when nobody is.
pub(super) fn meet(a: &Who, b: &Who) -> Result<Option<Who>, &'static str> {
    Ok(match (a, b) {
        (Who::Any, other) | (other, Who::Any) => Some(other.clone()),
        (Who::Pods(an, ap), Who::Pods(bn, bp)) => {
            let (namespaces, pods) = (an.intersect(bn), ap.intersect(bp));
            (!namespaces.is_empty() && !pods.is_empty()).then_some(Who::Pods(namespaces, pods))
        }
        (Who::Addresses(a), Who::Addresses(b)) => {
            let set = a.intersect(b);
            (!set.is_empty()).then_some(Who::Addresses(set))
        }
        (Who::Identities(a), Who::Identities(b)) => {
            let mut all: Vec<String> = Vec::new();
            for a in a {
                all.extend(b.iter().filter_map(|b| narrower(a, b)).map(str::to_owned));
            }
            (!all.is_empty()).then_some(Who::Identities(all))
        }
        (Who::Identities(ids), pods @ Who::Pods(..)) | (pods @ Who::Pods(..), Who::Identities(ids)) => {
            // One id stands for one account; several are told one by one.
            let [id] = ids.as_slice() else {
                return Err("several SPIFFE ids and pods by label at once");
            };
            meet(&account(id)?, pods)?
        }
        (Who::Domains(a), Who::Domains(b)) if a == b => Some(Who::Domains(a.clone())),
        (Who::Identities(_), _) | (_, Who::Identities(_)) => return Err("a SPIFFE id and addresses at once"),
        (Who::Domains(_), _) | (_, Who::Domains(_)) => return Err("names in DNS and something else at once"),
        _ => return Err("pods by label and by address at once"),
    })
}

/// Of two ids, either of which may end with a `*`, the one that is within the other.
fn narrower<'a>(a: &'a str, b: &'a str) -> Option<&'a str> {
    let within = |one: &str, other: &str| match other.strip_suffix('*') {
        Some(start) => one.starts_with(start),
        None => one == other,
    };
    if within(a, b) {
        Some(a)
    } else {
        within(b, a).then_some(b)
    }
}

/// The pods that show a SPIFFE id of the mesh's own trust domain.
fn account(id: &str) -> Result<Who, &'static str> {
    let unknown = "a SPIFFE id that is not of a namespace or a service account of trust domain cluster.local, and pods by label, at once";
    let path = id.strip_prefix(OWN).ok_or(unknown)?;
    let parts: Vec<&str> = path.split('/').collect();
    let (namespace, account) = match parts.as_slice() {
        ["*"] | ["ns", "*"] => (None, None),
        ["ns", namespace, "*"] | ["ns", namespace, "sa", "*"] => (Some(*namespace), None),
        ["ns", namespace, "sa", account] => (Some(*namespace), Some(*account)),
        _ => return Err(unknown),
    };
    if [namespace, account]
        .into_iter()
        .flatten()
        .any(|name| name.contains('*'))
    {
        return Err(unknown);
    }
    let one = |key: &str, name: Option<&str>| match name {
        Some(name) => Selector::full().and(key, LabelValues::within([name.to_owned()])),
        None => Selector::full(),
    };
    Ok(Who::Pods(
        one(NAMESPACE_NAME_LABEL, namespace),
        one(SERVICE_ACCOUNT_LABEL, account),
    ))
}

fn without(all: Vec<Who>, not: &[Who]) -> Result<Vec<Who>, &'static str> {
    let mut left = all;
    for not in not {
        let mut next = Vec::new();
        for who in left {
            match (who, not) {
                (_, Who::Any) => {}
                (Who::Any, Who::Addresses(set)) => next.push(Who::Addresses(AddressSet::full().subtract(set))),
                (Who::Addresses(all), Who::Addresses(set)) => next.push(Who::Addresses(all.subtract(set))),
                (Who::Pods(namespaces, pods), Who::Pods(other, theirs)) => {
                    next.extend(
                        namespaces
                            .subtract(other)
                            .into_iter()
                            .map(|n| Who::Pods(n, pods.clone())),
                    );
                    let same = namespaces.intersect(other);
                    if !same.is_empty() {
                        next.extend(pods.subtract(theirs).into_iter().map(|p| Who::Pods(same.clone(), p)));
                    }
                }
                _ => return Err("everyone but certain pods cannot be said"),
            }
        }
        left = next;
    }
    Ok(left)
}

/// A peer in words of the language. `own` is the subject's namespace.
pub(super) fn written(who: &Who, own: Option<&str>) -> Vec<Written> {
    match who {
        Who::Any => vec![Written {
            any: true,
            ..Written::default()
        }],
        Who::Addresses(set) | Who::Outside(set) => cidrs(set),
        Who::Domains(names) => vec![Written {
            fqdns: names.clone(),
            ..Written::default()
        }],
        Who::Identities(ids) => vec![Written {
            spiffe_ids: ids.clone(),
            ..Written::default()
        }],
        Who::Pods(namespaces, pods) => {
            let here = own.is_some() && name_of(namespaces).as_deref() == own;
            both(namespaces, pods)
                .into_iter()
                .map(|(namespaces, (pods, accounts))| {
                    let said = !here || !accounts.is_empty();
                    Written {
                        pod_selector: (!pods.is_full() || !said).then(|| labels(&pods)),
                        namespace_selector: (!here).then(|| labels(&namespaces)),
                        service_accounts: accounts,
                        ..Written::default()
                    }
                })
                .collect()
        }
    }
}

pub(super) fn cidrs(set: &AddressSet) -> Vec<Written> {
    let nets = set.to_nets().into_iter();
    nets.map(|net| Written {
        cidr: Some(net.to_string()),
        ..Written::default()
    })
    .collect()
}

/// The one namespace that a selector names.
pub(super) fn name_of(namespaces: &Selector) -> Option<String> {
    let values = namespaces.labels().get(NAMESPACE_NAME_LABEL)?;
    let one = namespaces.labels().len() == 1 && !values.absent && !values.inverted && values.values.len() == 1;
    values.values.first().filter(|_| one).cloned()
}

/// The subjects that are these pods together, each with the kind of its document.
pub(super) fn subjects(namespaces: &Selector, pods: &Selector) -> Vec<(&'static str, Subject)> {
    let one = name_of(namespaces);
    let all = both(namespaces, pods).into_iter();
    all.map(|(namespaces, (pods, accounts))| {
        let cluster = one.is_none();
        let subject = Subject {
            workloads: Some(Workloads {
                namespace: one.clone().unwrap_or_default(),
                namespace_selector: cluster.then(|| labels(&namespaces)),
                pod_selector: (!pods.is_full()).then(|| labels(&pods)),
                service_accounts: accounts,
            }),
            ..Subject::default()
        };
        (if cluster { CLUSTER_KIND } else { KIND }, subject)
    })
    .collect()
}

/// Namespaces, and pods with their service accounts, as selectors that can be written.
fn both(namespaces: &Selector, pods: &Selector) -> Vec<(Selector, (Selector, Vec<String>))> {
    let accounts: Vec<String> = match pods.labels().get(SERVICE_ACCOUNT_LABEL) {
        Some(values) if !values.inverted && !values.absent => values.values.iter().cloned().collect(),
        _ => Vec::new(),
    };
    let plain = pods.labels().iter().filter(|(key, _)| *key != SERVICE_ACCOUNT_LABEL);
    let plain = plain.fold(Selector::full(), |all, (key, values)| {
        all.and(key.clone(), values.clone())
    });
    let pods = plain.writable();
    let all = namespaces.writable().into_iter().flat_map(|namespaces| {
        let accounts = &accounts;
        pods.iter()
            .map(move |pods| (namespaces.clone(), (pods.clone(), accounts.clone())))
            .collect::<Vec<_>>()
    });
    all.collect()
}

fn labels(selector: &Selector) -> LabelSelector {
    let mut written = LabelSelector::default();
    for (key, values) in selector.labels() {
        let list: Vec<String> = values.values.iter().cloned().collect();
        let mut require = |operator, values| {
            written.match_expressions.push(LabelRequirement {
                key: key.clone(),
                operator,
                values,
            });
        };
        match (values.absent, values.inverted, list.len()) {
            (false, false, 1) => written
                .match_labels
                .extend(list.into_iter().map(|value| (key.clone(), value))),
            (false, false, _) => require(LabelOperator::In, list),
            (true, false, _) => require(LabelOperator::DoesNotExist, Vec::new()),
            (true, true, _) => require(LabelOperator::NotIn, list),
            (false, true, 0) => require(LabelOperator::Exists, Vec::new()),
            (false, true, _) => {
                require(LabelOperator::Exists, Vec::new());
                require(LabelOperator::NotIn, list);
            }
        }
    }
    written
}
