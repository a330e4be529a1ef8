//! What the importers of meshes share: who has an identity, and what a mesh leaves alone.
//!
//! Pods are taken to be in the mesh unless they are on their node's network; nothing else has an identity. A mesh decides
//! about TCP that reaches a pod of its own.

use std::collections::{BTreeMap, BTreeSet};

use super::only;
use crate::{
    ir::{NAMESPACE_NAME_LABEL, SERVICE_ACCOUNT_LABEL},
    reach::{Action, Endpoint, Identity, Peer, Ports, Rule},
    sets::{LabelValues, Selector, ServiceSet},
};

/// The service accounts of a cluster's pods, by namespace.
pub(super) struct Accounts(BTreeMap<String, BTreeSet<String>>);

impl Accounts {
    pub(super) fn of(endpoints: &[Endpoint]) -> Self {
        let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for endpoint in endpoints {
            if let Identity::Workload {
                namespace,
                host_network: false,
                ..
            } = &endpoint.identity
            {
                let account = endpoint.labels.get(SERVICE_ACCOUNT_LABEL);
                all.entry(namespace.clone()).or_default().extend(account.cloned());
            }
        }
        Self(all)
    }

    /// The pods whose namespace and account are wanted.
    pub(super) fn pods(&self, wanted: impl Fn(&str, &str) -> bool) -> Peer {
        // Namespaces with the same answer are told together.
        let mut alike: BTreeMap<Option<BTreeSet<&str>>, Vec<String>> = BTreeMap::new();
        for (namespace, accounts) in &self.0 {
            let found: BTreeSet<&str> = accounts
                .iter()
                .map(String::as_str)
                .filter(|account| wanted(namespace, account))
                .collect();
            if found.is_empty() {
                continue;
            }
            let all = found.len() == accounts.len();
            alike
                .entry((!all).then_some(found))
                .or_default()
                .push(namespace.clone());
        }
        if let (1, Some(namespaces)) = (alike.len(), alike.get(&None))
            && namespaces.len() == self.0.len()
        {
            return members();
        }
        let parts = alike.into_iter().map(|(accounts, namespaces)| Peer::Pods {
            namespaces: Selector::full().and(NAMESPACE_NAME_LABEL, LabelValues::within(namespaces)),
            pods: match accounts {
                None => Selector::full(),
                Some(accounts) => Selector::full().and(
                    SERVICE_ACCOUNT_LABEL,
                    LabelValues::within(accounts.into_iter().map(str::to_owned)),
                ),
            },
            hosts: false,
        });
        Peer::Some(parts.collect())
    }
}

/// Everyone who has an identity.
pub(super) fn members() -> Peer {
    Peer::Pods {
        namespaces: Selector::full(),
        pods: Selector::full(),
        hosts: false,
    }
}

/// Pods of a namespace, or of all.
pub(super) fn pods(namespace: Option<&str>, pods: Selector) -> Peer {
    Peer::Pods {
        namespaces: namespace.map_or_else(Selector::full, only),
        pods,
        hosts: false,
    }
}

/// Every port of TCP.
pub(super) fn tcp() -> ServiceSet {
    let mut set = ServiceSet::empty();
    set.insert(6, 0, u16::MAX);
    set
}

/// A rule without a name.
pub(super) fn rule(field: &str, action: Action, peer: Peer, numbers: ServiceSet) -> Rule {
    Rule {
        name: String::new(),
        field: field.to_owned(),
        action,
        peers: vec![peer],
        ports: Ports {
            numbers,
            named: Vec::new(),
        },
    }
}

/// What a mesh leaves alone.
pub(super) fn others() -> Rule {
    rule("spec", Action::Accept, Peer::Any, ServiceSet::full().subtract(&tcp()))
}
