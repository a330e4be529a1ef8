//! The parts of Kubernetes manifests that are written.

use std::collections::BTreeMap;

use serde::Serialize;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NetworkPolicy {
    pub(super) api_version: &'static str,
    pub(super) kind: &'static str,
    pub(super) metadata: Metadata,
    pub(super) spec: Spec,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Metadata {
    pub(super) name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) namespace: Option<String>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Spec {
    pub(super) pod_selector: LabelSelector,
    pub(super) policy_types: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ingress: Option<Vec<IngressRule>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) egress: Option<Vec<EgressRule>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct IngressRule {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) from: Vec<NetworkPolicyPeer>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) ports: Vec<Port>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EgressRule {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) to: Vec<NetworkPolicyPeer>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) ports: Vec<Port>,
}

#[derive(Clone, Serialize, Default)]
#[serde(rename_all = "camelCase")]
pub(super) struct NetworkPolicyPeer {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ip_block: Option<IpBlock>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) namespace_selector: Option<LabelSelector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pod_selector: Option<LabelSelector>,
}

#[derive(Clone, Serialize)]
pub(super) struct IpBlock {
    pub(super) cidr: String,
}

#[derive(Clone, Serialize, Default)]
#[serde(rename_all = "camelCase")]
pub(super) struct LabelSelector {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) match_labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) match_expressions: Vec<Requirement>,
}

#[derive(Clone, Serialize)]
pub(super) struct Requirement {
    pub(super) key: String,
    pub(super) operator: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) values: Vec<String>,
}

#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Port {
    pub(super) protocol: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) end_port: Option<u16>,
}
