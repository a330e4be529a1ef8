//! Every target by its name, and what closes a target's gaps.

use std::borrow::Borrow;

use serde::Serialize;

use super::{AwsQuotas, Compiled, Gap, OBSERVED, STAGED};
use crate::Policy;

/// An enforcement point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// Kubernetes NetworkPolicy.
    Kubernetes,
    /// Kubernetes ClusterNetworkPolicy, with NetworkPolicies beside it.
    ClusterNetworkPolicy,
    /// CiliumNetworkPolicy.
    Cilium,
    /// Calico NetworkPolicy in tiers.
    Calico,
    /// An nftables ruleset.
    Nftables,
    /// Security groups of Amazon Web Services.
    Aws,
    /// A network security group of Microsoft Azure.
    Azure,
    /// VPC firewall rules of Google Cloud.
    Gcp,
    /// Istio with sidecars.
    Istio,
    /// Istio in ambient mode, without waypoints.
    IstioAmbient,
    /// Linkerd.
    Linkerd,
    /// Security groups of Amazon Web Services, and network ACLs beside them.
    AwsNetworkAcl,
    /// Firewall policies of Google Cloud, for a network or for a folder or organisation.
    GcpFirewallPolicy,
    /// Application security groups of Microsoft Azure, and the network security group that names them.
    AzureApplicationGroups,
}

impl Target {
    /// Every target: those that select by labels first, those closest to the platform before others.
    pub const ALL: [Self; 14] = [
        Self::Kubernetes,
        Self::ClusterNetworkPolicy,
        Self::Cilium,
        Self::Calico,
        Self::Istio,
        Self::IstioAmbient,
        Self::Linkerd,
        Self::Nftables,
        Self::Gcp,
        Self::GcpFirewallPolicy,
        Self::Azure,
        Self::AzureApplicationGroups,
        Self::Aws,
        Self::AwsNetworkAcl,
    ];

    /// Its name as an argument.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kubernetes => "kubernetes",
            Self::ClusterNetworkPolicy => "cluster-network-policy",
            Self::Cilium => "cilium",
            Self::Calico => "calico",
            Self::Nftables => "nftables",
            Self::Aws => "aws",
            Self::Azure => "azure",
            Self::Gcp => "gcp",
            Self::Istio => "istio",
            Self::IstioAmbient => "istio-ambient",
            Self::Linkerd => "linkerd",
            Self::AwsNetworkAcl => "aws-network-acl",
            Self::GcpFirewallPolicy => "gcp-firewall-policy",
            Self::AzureApplicationGroups => "azure-application-groups",
        }
    }

    /// Compiles policies. `sha256` gives the hash of a policy's document for its provenance, by name.
    pub fn compile<P: Borrow<Policy>>(self, policies: &[P], sha256: impl Fn(&str) -> Option<String>) -> Compiled {
        match self {
            Self::Kubernetes => super::kubernetes(policies, sha256),
            Self::ClusterNetworkPolicy => super::cluster_network_policy(policies, sha256),
            Self::Cilium => super::cilium(policies, sha256),
            Self::Calico => super::calico(policies, sha256),
            Self::Nftables => super::nftables(policies),
            Self::Aws => super::aws(policies, &AwsQuotas::default()),
            Self::Azure => super::azure(policies),
            Self::Gcp => super::gcp(policies),
            Self::Istio => super::istio(policies, sha256),
            Self::IstioAmbient => super::istio_ambient(policies, sha256),
            Self::Linkerd => super::linkerd(policies, sha256),
            Self::AwsNetworkAcl => super::aws_network_acl(policies, &AwsQuotas::default()),
            Self::GcpFirewallPolicy => super::gcp_firewall_policy(policies),
            Self::AzureApplicationGroups => super::azure_application_groups(policies),
        }
    }
}

/// A gap, and what closes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// What the target leaves out.
    pub gap: Gap,
    /// The nearest target that says it without a gap; the policy can be compiled for that one instead. `None` when no
    /// target does, or when the document itself leaves it out.
    pub closed_by: Option<Target>,
}

/// What closes the gaps of a compilation of `policies` for `target`.
pub fn certificates<P: Borrow<Policy>>(policies: &[P], target: Target, compiled: &Compiled) -> Vec<Certificate> {
    if compiled.gaps.is_empty() {
        return Vec::new();
    }
    let others: Vec<(Target, Compiled)> = Target::ALL
        .into_iter()
        .filter(|other| *other != target)
        .map(|other| (other, other.compile(policies, |_| None)))
        .collect();
    // A gap of a whole policy is one of each of its rules.
    let concerns = |gap: &Gap, rule: &str| {
        let policy = |rule: &str| rule.split('/').next().unwrap_or_default().to_owned();
        gap.rule == "*"
            || gap.rule == rule
            || gap.rule == policy(rule)
            || (rule == policy(rule) && policy(&gap.rule) == rule)
    };
    compiled
        .gaps
        .iter()
        .map(|gap| Certificate {
            closed_by: others
                .iter()
                .find(|(_, other)| {
                    gap.reason != OBSERVED && gap.reason != STAGED && !other.gaps.iter().any(|g| concerns(g, &gap.rule))
                })
                .map(|(target, _)| *target),
            gap: gap.clone(),
        })
        .collect()
}
