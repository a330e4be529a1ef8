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
    pub cert_file: PathBuf,
    /// The private key, PEM.
    pub key_file: PathBuf,
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

impl WebhookConfig {
    pub(crate) fn linger(&self) -> Duration {
        Duration::from_millis(self.linger_ms)
    }
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
