//! The document as people write it: types, defaults and JSON Schema.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

/// The API version of this language.
pub const API_VERSION: &str = "garrison.dev/v1alpha1";

/// The kind of a policy document.
pub const KIND: &str = "ZeroTrustPolicy";

/// The kind of a policy document whose workloads are of any number of namespaces.
pub const CLUSTER_KIND: &str = "ClusterZeroTrustPolicy";

/// Who may talk to whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ZeroTrustPolicy {
    /// `garrison.dev/v1alpha1`.
    #[schemars(extend("const" = API_VERSION))]
    pub api_version: String,
    /// `ZeroTrustPolicy`, or `ClusterZeroTrustPolicy` for workloads of several namespaces.
    #[schemars(extend("enum" = [KIND, CLUSTER_KIND]))]
    pub kind: String,
    /// What the policy is called.
    pub metadata: Metadata,
    /// What the policy says.
    pub spec: Spec,
}

impl ZeroTrustPolicy {
    /// The document as text, in the one form: the namespace is written once, where the document has it for itself.
    pub fn text(&self) -> String {
        let own = self.metadata.namespace.as_ref();
        let workloads = self.spec.subject.workloads.as_ref();
        let shorter = workloads.filter(|w| Some(&w.namespace) == own).map(|_| {
            let mut shorter = self.clone();
            if let Some(workloads) = &mut shorter.spec.subject.workloads {
                workloads.namespace = String::new();
            }
            shorter
        });
        // Texts, numbers and lists alone: this cannot fail.
        serde_saphyr::to_string(shorter.as_ref().unwrap_or(self)).unwrap_or_default()
    }
}

/// What the policy is called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata {
    /// Unique in the tenant: 1 to 63 lower-case letters, digits and inner hyphens.
    #[schemars(regex(pattern = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"))]
    pub name: String,
    /// The Kubernetes namespace whose pods a `ZeroTrustPolicy` governs, and the one that it lies in when a cluster has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"))]
    pub namespace: Option<String>,
    /// For people and tools; they change no verdict.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl Metadata {
    /// `namespace/name`, or the bare name of what is in no namespace: no two policies of a cluster share it.
    pub fn full_name(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("{namespace}/{}", self.name),
            None => self.name.clone(),
        }
    }
}

/// Whether a policy is enforced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Verdicts are counted; nothing is raised and nothing is compiled.
    #[default]
    Observe,
    /// As `observe`, and enforcement points that can try a policy without enforcing it are given it to try.
    Stage,
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
    #[serde(default = "default_tier", skip_serializing_if = "is_default_tier")]
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
    /// What the levels of trust need, where it is not what they need by default.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub trust_levels: BTreeMap<TrustLevel, TrustNeeds>,
    /// The level that whoever opens a connection to the subject must have, whichever rule allows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requires: Option<TrustLevel>,
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

fn is_default_tier(tier: &u16) -> bool {
    *tier == DEFAULT_TIER
}

/// How far whoever opens a connection is trusted. Each level needs what the one below it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TrustLevel {
    /// Needs nothing.
    Untrusted,
    /// Needs an identity.
    Restricted,
    /// Needs an identity, proved by mutual TLS.
    Trusted,
    /// Needs, besides, a posture that was checked, a session that is young, and an approval.
    Privileged,
}

impl TrustLevel {
    /// Every level, the lowest first.
    pub const ALL: [Self; 4] = [Self::Untrusted, Self::Restricted, Self::Trusted, Self::Privileged];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Untrusted => "untrusted",
            Self::Restricted => "restricted",
            Self::Trusted => "trusted",
            Self::Privileged => "privileged",
        }
    }

    /// What it needs where a document does not say otherwise.
    pub fn needs(self) -> &'static [Need] {
        match self {
            Self::Untrusted => &[],
            Self::Restricted => &[Need::Identity],
            Self::Trusted => &[Need::Identity, Need::Mtls],
            Self::Privileged => &[Need::Identity, Need::Mtls, Need::Posture, Need::Time, Need::Approval],
        }
    }
}

/// Something that a level of trust needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Need {
    /// The opener's identity is known, by a certificate or a token.
    Identity,
    /// The connection is mutual TLS.
    Mtls,
    /// The opener's device or workload passed its checks.
    Posture,
    /// The opener's session or grant is within its time.
    Time,
    /// Somebody approved the access.
    Approval,
}

impl Need {
    /// Every need.
    pub const ALL: [Self; 5] = [Self::Identity, Self::Mtls, Self::Posture, Self::Time, Self::Approval];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Mtls => "mtls",
            Self::Posture => "posture",
            Self::Time => "time",
            Self::Approval => "approval",
        }
    }
}

/// What a level of trust needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrustNeeds {
    /// All of these.
    pub needs: Vec<Need>,
}

/// A named set of endpoints, told in one or several ways: by address, for everything that sees packets, and by
/// labels or identity, for what knows them. The author vouches that all mean the same endpoints.
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
    /// Service accounts of the pods, any one of which they run as.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub service_accounts: Vec<String>,
    /// SPIFFE ids, with a `*` at the end for everything that starts so.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spiffe_ids: Vec<String>,
    /// Names in DNS, or `*.` and a name for everything below it. Only for whom a connection goes to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fqdns: Vec<String>,
    /// Hosts by the name that the inventory has for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// Tags (labels, in Google's words) of cloud instances, all of which they carry.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// Groups of people in iam, any one of which they belong to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub iam_groups: Vec<String>,
    /// Other groups whose members belong to this one too. With this, the group says nothing else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
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
    /// Pods of one namespace; in a `ClusterZeroTrustPolicy` of every namespace that a selector selects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workloads: Option<Workloads>,
    /// SPIFFE ids, with a `*` at the end for everything that starts so.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spiffe_ids: Vec<String>,
    /// Hosts by the name that the inventory has for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// Tags (labels, in Google's words) of cloud instances, all of which they carry.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
}

/// Pods of one namespace, or of several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Workloads {
    /// The namespace's name; only of a `ZeroTrustPolicy`, which may leave it out where `metadata.namespace` says it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// The namespaces, by their labels; every namespace when missing. Only of a `ClusterZeroTrustPolicy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// The pods; all of the namespace when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
    /// Service accounts of the pods, any one of which they run as; any account when missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub service_accounts: Vec<String>,
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

impl Action {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What may, or must not, reach the subject.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IngressRule {
    /// Unique in the policy; verdicts and alerts carry it.
    #[schemars(regex(pattern = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"))]
    pub name: String,
    /// What to do with what matches.
    #[serde(default, skip_serializing_if = "Action::is_default")]
    pub action: Action,
    /// Who opens the connection; any one of these.
    #[schemars(length(min = 1))]
    pub from: Vec<Peer>,
    /// The subject's ports; every protocol and port when missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
    /// HTTP requests, any one of which must match. Only TCP carries them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub http: Vec<HttpMatch>,
    /// Calls of gRPC, any one of which must match, or else one of `http`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grpc: Vec<GrpcMatch>,
    /// The level of trust that whoever opens the connection must have. Only of an allow rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requires: Option<TrustLevel>,
    /// The rule counts from then on (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_from: Option<String>,
    /// The rule counts until then (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_until: Option<String>,
}

/// What the subject may, or must not, reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EgressRule {
    /// Unique in the policy; verdicts and alerts carry it.
    #[schemars(regex(pattern = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"))]
    pub name: String,
    /// What to do with what matches.
    #[serde(default, skip_serializing_if = "Action::is_default")]
    pub action: Action,
    /// To whom the connection goes; any one of these.
    #[schemars(length(min = 1))]
    pub to: Vec<Peer>,
    /// The peer's ports; every protocol and port when missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
    /// HTTP requests, any one of which must match. Only TCP carries them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub http: Vec<HttpMatch>,
    /// Calls of gRPC, any one of which must match, or else one of `http`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grpc: Vec<GrpcMatch>,
    /// The level of trust that whoever opens the connection must have. Only of an allow rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requires: Option<TrustLevel>,
    /// The rule counts from then on (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_from: Option<String>,
    /// The rule counts until then (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_until: Option<String>,
}

impl ZeroTrustPolicy {
    /// One that observes and has no rules yet: what is imported or learnt begins so. `kind` is [`KIND`] or
    /// [`CLUSTER_KIND`]; `reason` says where it comes from.
    pub(crate) fn observing(kind: &str, name: String, tier: u16, reason: String, subject: Subject) -> Self {
        Self {
            api_version: API_VERSION.to_owned(),
            kind: kind.to_owned(),
            metadata: Metadata {
                name,
                namespace: None,
                labels: BTreeMap::new(),
            },
            spec: Spec {
                mode: Mode::Observe,
                tier,
                owner: None,
                reason: Some(reason),
                ticket: None,
                trust_levels: BTreeMap::new(),
                requires: None,
                groups: BTreeMap::new(),
                subject,
                ingress: None,
                egress: None,
            },
        }
    }
}

impl IngressRule {
    /// A rule about peers and ports alone.
    pub(crate) fn new(name: String, action: Action, from: Vec<Peer>, ports: Vec<Port>) -> Self {
        Self {
            name,
            action,
            from,
            ports,
            http: Vec::new(),
            grpc: Vec::new(),
            requires: None,
            valid_from: None,
            valid_until: None,
        }
    }
}

impl EgressRule {
    /// A rule about peers and ports alone.
    pub(crate) fn new(name: String, action: Action, to: Vec<Peer>, ports: Vec<Port>) -> Self {
        Self {
            name,
            action,
            to,
            ports,
            http: Vec::new(),
            grpc: Vec::new(),
            requires: None,
            valid_from: None,
            valid_until: None,
        }
    }
}

/// HTTP requests. Every field that is there must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpMatch {
    /// Methods, in capitals; every method when missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// Hosts without a port, or `*.` and a name for everything below it; every host when missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// Paths without a query, with a `*` at the end (or the start) for everything that starts (ends) so; every path
    /// when missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
}

/// Calls of gRPC: `POST /service/method`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcMatch {
    /// The service with its package, for example `shop.v1.Cart`.
    pub service: String,
    /// Its methods; every method when missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
}

/// The other side of a connection. Exactly one way of saying it: `any: true`, `cidr` (with `except`), `group`,
/// `podSelector`, `namespaceSelector` and `serviceAccounts` together, `spiffeIds`, `fqdns`, `hosts`, `tags` or
/// `iamGroups`.
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
    /// Service accounts of the pods, any one of which they run as.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub service_accounts: Vec<String>,
    /// SPIFFE ids, with a `*` at the end for everything that starts so.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spiffe_ids: Vec<String>,
    /// Names in DNS, or `*.` and a name for everything below it. Only in `to`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fqdns: Vec<String>,
    /// Hosts by the name that the inventory has for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// Tags (labels, in Google's words) of cloud instances, all of which they carry.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// Groups of people in iam, any one of which they belong to. Only in `from`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub iam_groups: Vec<String>,
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
    /// The type of an ICMP message; every type when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<u8>,
    /// The type of an ICMPv6 message; with `icmpType` alone, ICMPv6 is left out.
    #[serde(default, rename = "icmpv6Type", skip_serializing_if = "Option::is_none")]
    pub icmpv6_type: Option<u8>,
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
