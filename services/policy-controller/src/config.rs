//! The configuration file.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use garrison_service::{ConfigError, StandaloneConfig, StandaloneCore};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The configuration of the policy controller.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What every program outside the fleet's bus has.
    pub core: StandaloneCore,
    /// How the API server is reached.
    pub kubernetes: KubernetesConfig,
    /// What is kept true, and how.
    pub controller: ControllerConfig,
    /// Who has which identity in the cluster's mesh.
    pub mesh: MeshConfig,
    /// Which of several replicas acts.
    pub leader: LeaderConfig,
    /// The validating admission webhook. Without it nothing is refused at the API server; a document with errors is
    /// then left out, and says so in its status.
    pub webhook: Option<WebhookConfig>,
    /// Going back to the previous version when a new one denies too much. Without it every version stays.
    pub rollout: Option<RolloutConfig>,
}

/// How the API server is reached.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KubernetesConfig {
    /// A kubeconfig, whose current context is taken. Without it, the service account of the pod.
    pub kubeconfig: Option<PathBuf>,
    /// The controller's own namespace, for its lease and its records of cluster-wide policies.
    pub namespace: String,
}

/// What policies are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TargetName {
    /// NetworkPolicy, which every cluster has.
    Kubernetes,
    /// ClusterNetworkPolicy (`policy.networking.k8s.io/v1alpha2`), with NetworkPolicies beside it.
    ClusterNetworkPolicy,
    /// CiliumNetworkPolicy (`cilium.io/v2`).
    Cilium,
    /// NetworkPolicy in tiers of Calico (`projectcalico.org/v3`).
    Calico,
    /// AuthorizationPolicy, PeerAuthentication and RequestAuthentication of Istio with sidecars (`security.istio.io/v1`).
    Istio,
    /// The same for Istio's ambient mode without waypoints, which sees connections only.
    IstioAmbient,
    /// Server, AuthorizationPolicy, MeshTLSAuthentication and NetworkAuthentication of Linkerd (`policy.linkerd.io`).
    Linkerd,
}

impl TargetName {
    /// Whether it is one of Istio's.
    pub fn is_istio(self) -> bool {
        matches!(self, Self::Istio | Self::IstioAmbient)
    }
}

/// Who has which identity in the cluster's mesh.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MeshConfig {
    /// The trust domain of the service accounts' SPIFFE ids.
    pub trust_domain: String,
    /// The ConfigMap with Istio's `mesh` configuration, as `namespace/name`. With it, `trustDomain` and
    /// `trustDomainAliases` are taken from there, and followed when they change; nothing is written for Istio before it was
    /// read. It is `istio-system/istio` where Istio is installed as usual.
    pub istio_config: Option<String>,
    /// Trust bundles of other trust domains. As soon as there is one, identities of trust domains without a bundle that
    /// is in force are not allowed by Istio's policies, and the status says so.
    pub bundles: Vec<BundleConfig>,
    /// How often the bundles and Istio's configuration are looked at, in milliseconds.
    pub reload_interval_ms: u64,
    /// The `iss` of people's tokens; without it, groups of iam are a gap of Istio.
    pub issuer: Option<String>,
    /// Where the keys of those tokens are.
    pub jwks_uri: Option<String>,
    /// The claim that has the groups of iam.
    pub groups_claim: String,
    /// The namespace of Linkerd's control plane, which is in the name of every identity there.
    pub linkerd_namespace: String,
}

/// The trust bundle of a trust domain.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BundleConfig {
    /// The trust domain, such as `partner.example`.
    pub trust_domain: String,
    /// A SPIFFE bundle (a JWK set with `x509-svid` keys), or certificates in PEM. It is read again when it changes.
    pub file: PathBuf,
}

/// What is kept true, and how.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ControllerConfig {
    /// What policies are compiled for. A target whose kinds the cluster does not have is named in the policies' status,
    /// and taken up when they appear. `kubernetes` and `cluster-network-policy` exclude each other, as both write
    /// NetworkPolicies.
    pub targets: Vec<TargetName>,
    /// Most namespaces that are brought up to date at a time, and most objects of one that are written at a time.
    pub concurrency: usize,
    /// How often everything is compared though nothing was reported, in milliseconds. At most 60,000: it bounds how long a
    /// change that no watch told of can last.
    pub resync_interval_ms: u64,
    /// The lowest tier that a ZeroTrustPolicy may name. The tiers below it are kept for ClusterZeroTrustPolicy, so that
    /// who may write in one namespace cannot overrule who answers for the cluster.
    pub lowest_namespaced_tier: u16,
}

/// Which of several replicas acts.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LeaderConfig {
    /// The name of the Lease in the controller's namespace.
    pub lease: String,
    /// This replica's name. Without it, the host's name with the process id.
    pub identity: Option<String>,
    /// How long a lease that is not renewed is respected, in milliseconds.
    pub duration_ms: u64,
    /// How often it is renewed or asked for, in milliseconds; at most a third of the duration.
    pub renew_interval_ms: u64,
}

/// The validating admission webhook.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WebhookConfig {
    /// Address and port of `POST /validate`, over TLS.
    pub listen: SocketAddr,
    /// The certificate with its intermediates, PEM. The API server wants the service's DNS name in it.
    #[serde(default)]
    pub cert_file: Option<PathBuf>,
    /// The private key, PEM.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
    /// The authorities that the certificate is of, PEM. With it, the controller writes them into the `caBundle` of its
    /// webhook configuration and its definitions, and again when they change. Leave it out where cert-manager does.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// An authority that the controllers keep themselves, instead of the files.
    #[serde(default)]
    pub authority: Option<AuthorityConfig>,
    /// The name of the ValidatingWebhookConfiguration that gets the `caBundle`.
    #[serde(default = "default_configuration")]
    pub configuration: String,
    /// How often the files are looked at for changes, in milliseconds.
    #[serde(default = "default_reload")]
    pub reload_interval_ms: u64,
    /// Most connections at a time; more wait in the kernel's queue.
    #[serde(default = "default_connections")]
    pub max_connections: usize,
    /// How long reviews are still answered after the signal to stop, in milliseconds, because the API server learns
    /// late that this replica goes. Keep it below `core.lifecycle.drain_timeout_ms`.
    #[serde(default = "default_linger")]
    pub linger_ms: u64,
}

impl MeshConfig {
    /// Namespace and name of Istio's ConfigMap.
    pub(crate) fn istio(&self) -> Option<(&str, &str)> {
        self.istio_config.as_deref()?.split_once('/')
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let invalid = |key: &str, reason: &str| Err(ConfigError::invalid(key, reason));
        let named = |text: &str| {
            text.split_once('/')
                .is_some_and(|(a, b)| [a, b].into_iter().all(garrison_ztp::is_name))
        };
        if !is_trust_domain(&self.trust_domain) {
            return invalid(
                "mesh.trust_domain",
                "use small letters, digits, dots, hyphens and underscores",
            );
        }
        if self.istio_config.as_deref().is_some_and(|text| !named(text)) {
            return invalid(
                "mesh.istio_config",
                "write `namespace/name`, such as `istio-system/istio`",
            );
        }
        if self.issuer.is_some() != self.jwks_uri.is_some() {
            return invalid("mesh.jwks_uri", "`issuer` and `jwks_uri` go together");
        }
        if self.bundles.len() > 256 {
            return invalid("mesh.bundles", "use at most 256");
        }
        let mut seen = std::collections::BTreeSet::new();
        for bundle in &self.bundles {
            if !is_trust_domain(&bundle.trust_domain) || !seen.insert(&bundle.trust_domain) {
                return invalid(
                    "mesh.bundles.trust_domain",
                    "name each trust domain once, in small letters",
                );
            }
        }
        if self.reload_interval_ms < 100 {
            return invalid("mesh.reload_interval_ms", "use at least 100");
        }
        if !garrison_ztp::is_name(&self.linkerd_namespace) {
            return invalid("mesh.linkerd_namespace", "it is not the name of a namespace");
        }
        Ok(())
    }
}

fn is_trust_domain(text: &str) -> bool {
    let right = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
    (1..=255).contains(&text.len()) && text.bytes().all(right)
}

impl WebhookConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        let invalid = |key: &str, reason: &str| Err(ConfigError::invalid(key, reason));
        match (&self.cert_file, &self.key_file, &self.authority) {
            (Some(_), Some(_), None) => {}
            (None, None, Some(authority)) => {
                if self.ca_file.is_some() {
                    return invalid("webhook.ca_file", "the authority that is kept here is written anyway");
                }
                if !garrison_ztp::is_name(&authority.secret) {
                    return invalid("webhook.authority.secret", "it is not the name of a Secret");
                }
                if authority.names.is_empty() || authority.names.len() > 32 {
                    return invalid("webhook.authority.names", "name 1 to 32 DNS names or addresses");
                }
                if !(1..=87_600).contains(&authority.certificate_hours) {
                    return invalid("webhook.authority.certificate_hours", "use 1 to 87600");
                }
            }
            _ => {
                return invalid(
                    "webhook.cert_file",
                    "give `cert_file` and `key_file`, or an `authority` that is kept here, and not both",
                );
            }
        }
        Ok(())
    }

    pub(crate) fn reload(&self) -> Duration {
        Duration::from_millis(self.reload_interval_ms)
    }

    pub(crate) fn linger(&self) -> Duration {
        Duration::from_millis(self.linger_ms)
    }
}

/// An authority that the controllers keep themselves.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AuthorityConfig {
    /// The Secret in the controller's namespace that has the authority and the certificate. The replica that leads makes it.
    #[serde(default = "default_secret")]
    pub secret: String,
    /// The DNS names and addresses of the certificate: `policy-controller.garrison.svc` for the Service of that name.
    pub names: Vec<String>,
    /// How long a certificate is in force, in hours. It is renewed when a third of that is left.
    #[serde(default = "default_hours")]
    pub certificate_hours: u32,
}

/// Going back to the previous version when a new one denies too much.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RolloutConfig {
    /// A server with Prometheus' query API, `http://host:port` or `http://host:port/prefix`.
    pub prometheus: String,
    /// The query for denied connections per second; the sum of its answer counts. `{namespace}` and `{policy}` are
    /// replaced by those of the policy; the namespace of a ClusterZeroTrustPolicy is `.*`.
    pub query: String,
    /// How long a new version is watched, in milliseconds.
    #[serde(default = "default_watch")]
    pub watch_ms: u64,
    /// How often it is looked at meanwhile, in milliseconds.
    #[serde(default = "default_look")]
    pub interval_ms: u64,
    /// Denied connections per second beyond those before the change that are too many.
    pub most_denied_per_second: f64,
    /// How many looks in a row must find too many.
    #[serde(default = "default_looks")]
    pub looks: u32,
}

fn default_configuration() -> String {
    "garrison-policy-controller".to_owned()
}
fn default_secret() -> String {
    "policy-controller-webhook".to_owned()
}
fn default_hours() -> u32 {
    2_160
}
fn default_reload() -> u64 {
    10_000
}
fn default_connections() -> usize {
    256
}
fn default_linger() -> u64 {
    3_000
}
fn default_watch() -> u64 {
    600_000
}
fn default_look() -> u64 {
    15_000
}
fn default_looks() -> u32 {
    2
}

impl Default for KubernetesConfig {
    fn default() -> Self {
        Self {
            kubeconfig: None,
            namespace: "garrison".to_owned(),
        }
    }
}

impl Default for ControllerConfig {
    fn default() -> Self {
        Self {
            targets: vec![TargetName::Kubernetes],
            concurrency: 8,
            resync_interval_ms: 30_000,
            lowest_namespaced_tier: 100,
        }
    }
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local".to_owned(),
            istio_config: None,
            bundles: Vec::new(),
            reload_interval_ms: 10_000,
            issuer: None,
            jwks_uri: None,
            groups_claim: "groups".to_owned(),
            linkerd_namespace: "linkerd".to_owned(),
        }
    }
}

impl Default for LeaderConfig {
    fn default() -> Self {
        Self {
            lease: "policy-controller".to_owned(),
            identity: None,
            duration_ms: 15_000,
            renew_interval_ms: 3_000,
        }
    }
}

impl ControllerConfig {
    pub(crate) fn resync(&self) -> Duration {
        Duration::from_millis(self.resync_interval_ms)
    }
}

impl StandaloneConfig for Config {
    fn core(&self) -> &StandaloneCore {
        &self.core
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let invalid = |key: &str, reason: &str| Err(ConfigError::invalid(key, reason));
        let controller = &self.controller;
        if !garrison_ztp::is_name(&self.kubernetes.namespace) {
            return invalid("kubernetes.namespace", "it is not the name of a namespace");
        }
        if controller.targets.is_empty() {
            return invalid("controller.targets", "name at least one target");
        }
        let has = |target| controller.targets.contains(&target);
        if has(TargetName::Kubernetes) && has(TargetName::ClusterNetworkPolicy) {
            return invalid(
                "controller.targets",
                "`kubernetes` and `cluster-network-policy` exclude each other: both write NetworkPolicies",
            );
        }
        if has(TargetName::Istio) && has(TargetName::IstioAmbient) {
            return invalid(
                "controller.targets",
                "`istio` and `istio-ambient` exclude each other: both write AuthorizationPolicies of the same names",
            );
        }
        self.mesh.validate()?;
        if !(1..=256).contains(&controller.concurrency) {
            return invalid("controller.concurrency", "use 1 to 256");
        }
        if !(1_000..=60_000).contains(&controller.resync_interval_ms) {
            return invalid("controller.resync_interval_ms", "use 1000 to 60000");
        }
        if controller.lowest_namespaced_tier > 1000 {
            return invalid("controller.lowest_namespaced_tier", "tiers end at 1000");
        }
        if !garrison_ztp::is_name(&self.leader.lease) {
            return invalid("leader.lease", "use lower-case letters, digits and inner hyphens");
        }
        if self.leader.identity.as_deref().is_some_and(str::is_empty) {
            return invalid("leader.identity", "it is empty; leave it out for the host's name");
        }
        if self.leader.renew_interval_ms < 100 || self.leader.renew_interval_ms * 3 > self.leader.duration_ms {
            return invalid(
                "leader.renew_interval_ms",
                "use at least 100, and at most a third of leader.duration_ms",
            );
        }
        if !self.leader.duration_ms.is_multiple_of(1_000) || self.leader.duration_ms > 600_000 {
            return invalid("leader.duration_ms", "use whole seconds, at most 600000");
        }
        if let Some(webhook) = &self.webhook {
            webhook.validate()?;
            if webhook.max_connections == 0 {
                return invalid("webhook.max_connections", "use at least 1");
            }
            if webhook.linger_ms >= self.core.lifecycle.drain_timeout_ms {
                return invalid("webhook.linger_ms", "use less than core.lifecycle.drain_timeout_ms");
            }
            if webhook.reload_interval_ms < 100 {
                return invalid("webhook.reload_interval_ms", "use at least 100");
            }
        }
        if let Some(rollout) = &self.rollout {
            crate::figures::endpoint(&rollout.prometheus)
                .map_err(|reason| ConfigError::invalid("rollout.prometheus", reason))?;
            if rollout.query.trim().is_empty() {
                return invalid("rollout.query", "it is empty");
            }
            if !(rollout.most_denied_per_second >= 0.0 && rollout.most_denied_per_second.is_finite()) {
                return invalid("rollout.most_denied_per_second", "use a number from 0 on");
            }
            if rollout.interval_ms < 100 || rollout.watch_ms < rollout.interval_ms || rollout.looks == 0 {
                return invalid(
                    "rollout.interval_ms",
                    "use at least 100, at most rollout.watch_ms, and at least one look",
                );
            }
        }
        Ok(())
    }
}
