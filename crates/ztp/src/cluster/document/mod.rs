//! Policies of others as ZeroTrustPolicy documents.
//!
//! What the language cannot say is left out of what is allowed and told; a deny rule then denies everything that it might
//! mean. In a cluster, what packets are told and what a mesh is told must both let a connection pass: each becomes documents
//! by itself, and [`together`] makes of them documents that mean both.

mod apart;
mod linkerd;
mod mtls;
mod packets;
mod together;
mod who;

use std::collections::BTreeSet;

use super::Cluster;
use crate::{document::ZeroTrustPolicy, istio, reach::Peer, security_group::named};

/// The first tier that is used: those below are the cluster's.
const FIRST: u16 = 100;
/// The last tier.
const LAST: u16 = 1_000;

/// Documents, and what they do not say.
#[derive(Clone, Debug, Default)]
pub struct Imported {
    /// The documents. All of them observe.
    pub documents: Vec<ZeroTrustPolicy>,
    /// What was left out, with its place and why.
    pub left_out: Vec<String>,
}

/// The policies that files have (NetworkPolicy, ClusterNetworkPolicy, Cilium, Calico, Istio, Linkerd) as documents. Istio's
/// policies of the `root` namespace are for every namespace.
///
/// # Errors
/// When their order takes more tiers than there are, when they are too many together, or when it cannot be said whom one
/// of them selects.
pub fn documents(cluster: &Cluster, root: &str) -> Result<Imported, String> {
    let mut out = Imported::default();
    let mut all = packets::documents(cluster, &mut out)?;
    let istio = &cluster.meshes.istio;
    for mesh in [
        authorization(&istio.read, root, &mut out)?,
        mtls::documents(istio)?,
        linkerd::documents(&cluster.meshes.linkerd, &cluster.program.endpoints, &mut out)?,
    ] {
        all = together::both(&all, &mesh, &mut out.left_out)?;
    }
    let mut told = BTreeSet::new();
    out.left_out.retain(|text| told.insert(text.clone()));
    out.documents = all;
    Ok(out)
}

/// AuthorizationPolicies. Of a connection that is no HTTP, a denying rule about requests denies what else it says; so what
/// is denied that way has to be said beside what is allowed.
fn authorization(
    policies: &[istio::AuthorizationPolicy],
    root: &str,
    out: &mut Imported,
) -> Result<Vec<ZeroTrustPolicy>, String> {
    let (denying, others): (Vec<_>, Vec<_>) = policies
        .iter()
        .cloned()
        .partition(|p| matches!(p.action, istio::Action::Deny | istio::Action::Custom(_)));
    let mut of = |policies: &[istio::AuthorizationPolicy]| {
        let imported = istio::documents(policies, root);
        out.left_out.extend(imported.left_out);
        imported.documents
    };
    let denied = of(&denying);
    if !istio::deny_requests(&denied) {
        return Ok(of(policies));
    }
    let others = of(&others);
    together::both(&istio::with_other_than_requests(denied), &others, &mut out.left_out)
}

/// Names that no other document has.
#[derive(Default)]
struct Names(BTreeSet<String>);

impl Names {
    /// One that is made of these parts.
    fn take(&mut self, parts: &[&str]) -> String {
        let parts: Vec<&str> = parts.iter().copied().filter(|part| !part.is_empty()).collect();
        let base = named(&parts.join("-"));
        let mut name = base.clone();
        for number in 2.. {
            if self.0.insert(name.clone()) {
                break;
            }
            let number = format!("-{number}");
            let cut: String = base.chars().take(63 - number.len()).collect();
            name = format!("{}{number}", cut.trim_end_matches('-'));
        }
        name
    }
}

/// How many others of those before have to decide before each, of policies about one thing of their pods: where several
/// are about the same, the first counts.
fn ranks<T>(all: &[T], overlap: impl Fn(&T, &T) -> bool) -> Vec<u16> {
    let mut ranks: Vec<u16> = Vec::with_capacity(all.len());
    for (i, one) in all.iter().enumerate() {
        let before = all[..i].iter().zip(&ranks).filter(|(other, _)| overlap(one, other));
        ranks.push(before.map(|(_, rank)| rank.saturating_add(1)).max().unwrap_or(0));
    }
    ranks
}

/// Whether pods may be selected by both.
fn overlap(a: &Peer, b: &Peer) -> bool {
    match (a, b) {
        (
            Peer::Pods { namespaces, pods, .. },
            Peer::Pods {
                namespaces: others,
                pods: theirs,
                ..
            },
        ) => namespaces.overlaps(others) && pods.overlaps(theirs),
        _ => true,
    }
}
