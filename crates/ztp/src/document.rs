//! The document as people write it: types, defaults and JSON Schema.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

/// The API version of this language.
pub const API_VERSION: &str = "garrison.dev/v1alpha1";

/// The kind of a policy document.
pub const KIND: &str = "ZeroTrustPolicy";

/// Who may talk to whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ZeroTrustPolicy {
    /// `garrison.dev/v1alpha1`.
    #[schemars(extend("const" = API_VERSION))]
    pub api_version: String,
    /// `ZeroTrustPolicy`.
    #[schemars(extend("const" = KIND))]
    pub kind: String,
    /// What the policy is called.
    pub metadata: Metadata,
    /// What the policy says.
    pub spec: Spec,
}

/// What the policy is called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata {
    /// Unique in the tenant: 1 to 63 lower-case letters, digits and inner hyphens.
    #[schemars(regex(pattern = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"))]
    pub name: String,
    /// For people and tools; they change no verdict.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// Whether a policy is enforced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Verdicts are counted; nothing is raised and nothing is compiled.
    #[default]
    Observe,
    /// Forbidden flows raise alerts, and the policy is compiled to enforcement points.
    Enforce,
}

/// What the policy says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// Whether it is enforced. A policy starts as an observer.
    #[serde(default)]
    pub mode: Mode,
    /// Which policies decide first: the lowest tier. Within a tier, deny is stronger than allow.
    #[serde(default = "default_tier")]
    #[schemars(range(min = 0, max = 1000))]
    pub tier: u16,
    /// Who answers for it: a team or a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Why it is as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The change request behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<String>,
    /// Names for sets of endpoints, for use in `subject` and in peers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub groups: BTreeMap<String, Group>,
    /// Who is governed.
    pub subject: Subject,
    /// What may reach the subject. When it is there, even empty, whatever no rule allows is denied; when it is
    /// missing, the policy says nothing about that direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Vec<IngressRule>>,
    /// What the subject may reach; as `ingress`, the other way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Vec<EgressRule>>,
}

/// The tier of a policy that names none.
pub const DEFAULT_TIER: u16 = 100;

fn default_tier() -> u16 {
    DEFAULT_TIER
}

/// A named set of endpoints, told in one or both ways: by address, for everything that sees packets, and by
/// labels, for Kubernetes. The author vouches that both mean the same endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Group {
    /// Networks such as `10.0.0.0/8` or single addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cidrs: Vec<String>,
    /// Pods by their labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
    /// Namespaces of the pods, by their labels. Without it, the namespace of the subject.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
}

/// Who is governed: addresses (`group` or `cidrs`), for everything that sees packets; `workloads`, for
/// Kubernetes; or both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Subject {
    /// The addresses of a group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Networks such as `10.0.0.0/8` or single addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cidrs: Vec<String>,
    /// Pods of one namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workloads: Option<Workloads>,
}

/// Pods of one namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Workloads {
    /// The namespace's name.
    pub namespace: String,
    /// The pods; all of the namespace when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
}

/// Allow or deny.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// The connection may be opened; replies are implied.
    #[default]
    Allow,
    /// The connection is forbidden, whatever rules of the same or a later tier say.
    Deny,
}

/// What may, or must not, reach the subject.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IngressRule {
    /// Unique in the policy; verdicts and alerts carry it.
    #[schemars(regex(pattern = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"))]
    pub name: String,
    /// What to do with what matches.
    #[serde(default)]
    pub action: Action,
    /// Who opens the connection; any one of these.
    #[schemars(length(min = 1))]
    pub from: Vec<Peer>,
    /// The subject's ports; every protocol and port when missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
}

/// What the subject may, or must not, reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EgressRule {
    /// Unique in the policy; verdicts and alerts carry it.
    #[schemars(regex(pattern = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"))]
    pub name: String,
    /// What to do with what matches.
    #[serde(default)]
    pub action: Action,
    /// To whom the connection goes; any one of these.
    #[schemars(length(min = 1))]
    pub to: Vec<Peer>,
    /// The peer's ports; every protocol and port when missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
}

/// The other side of a connection. Exactly one way of saying it: `any: true`, `cidr` (with `except`), `group`,
/// or `podSelector` and `namespaceSelector`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Peer {
    /// Everyone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub any: bool,
    /// A network such as `10.0.0.0/8`, or a single address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cidr: Option<String>,
    /// Parts of `cidr` that are left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<String>,
    /// A group of this document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Pods by their labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
    /// Namespaces of the pods, by their labels. Without it, the namespace of the subject.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
}

/// An IP protocol that rules can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// Protocol 6.
    Tcp,
    /// Protocol 17.
    Udp,
    /// Protocol 132.
    Sctp,
    /// Protocol 1, and 58 (ICMPv6) for IPv6.
    Icmp,
}

impl Protocol {
    /// The IP protocol numbers.
    pub fn numbers(self) -> &'static [u8] {
        match self {
            Self::Tcp => &[6],
            Self::Udp => &[17],
            Self::Sctp => &[132],
            Self::Icmp => &[1, 58],
        }
    }
}

/// A protocol and its destination ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Port {
    /// The protocol.
    pub protocol: Protocol,
    /// The first port; every port of the protocol when missing. ICMP has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// The last port; the first when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub end_port: Option<u16>,
}

/// Labels as Kubernetes selects them: all of both lists must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LabelSelector {
    /// Labels with exactly these values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
    /// Further requirements.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<LabelRequirement>,
}

/// One requirement on a label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LabelRequirement {
    /// The label.
    pub key: String,
    /// How its value is compared.
    pub operator: LabelOperator,
    /// The values, for `In` and `NotIn`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

/// How a label's value is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, JsonSchema)]
pub enum LabelOperator {
    /// There, with one of the values.
    In,
    /// Missing, or with another value.
    NotIn,
    /// There.
    Exists,
    /// Missing.
    DoesNotExist,
}

/// The JSON Schema of a document (draft 2020-12), for editors and documentation.
pub fn json_schema() -> serde_json::Value {
    schemars::schema_for!(ZeroTrustPolicy).to_value()
}
