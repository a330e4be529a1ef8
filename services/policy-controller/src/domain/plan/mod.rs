//! What is to be there because of the policies.

mod lowering;
mod objects;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use garrison_ztp::{
    Policy,
    compile::{self, Certificate, Compiled, Gap, IstioOptions, LinkerdOptions, Target},
    document::Mode,
};
use serde_json::Value;

use self::{
    lowering::Lowering,
    objects::{documents, output, sha256},
};
use super::source::{PolicyId, Source};
use crate::config::TargetName;

pub use self::objects::{CONTROLLED_BY, CONTROLLER, ObjectKey, Output, POLICY, POLICY_KIND, POLICY_NAMESPACE, WRITTEN};

/// The most policies of one place for whose gaps the target that closes them is looked for.
const CERTIFIED: usize = 64;

/// A part of a policy that a target cannot say.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GapReport {
    /// The target.
    pub target: TargetName,
    /// The rule; empty for the policy as a whole.
    pub rule: String,
    /// What is missing, and why.
    pub reason: String,
    /// The target that says it without a gap.
    pub closed_by: Option<&'static str>,
}

/// What was made of one policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyPlan {
    /// The generation it is about.
    pub generation: i64,
    /// Whether the document could be read.
    pub valid: bool,
    /// Whether its mode asks for it to be enforced.
    pub enforced: bool,
    /// How many objects were made of it.
    pub objects: usize,
    /// What is missing.
    pub gaps: Vec<GapReport>,
}

/// What is to be there in one place: a namespace, or the cluster as a whole.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The objects.
    pub outputs: BTreeMap<ObjectKey, Output>,
    /// What was made of each policy.
    pub policies: BTreeMap<PolicyId, PolicyPlan>,
    /// Seconds since the epoch at which a rule begins or ends to count.
    pub changes_at: Option<i64>,
}

/// Makes plans, and remembers what it lowered.
#[derive(Debug)]
pub struct Planner {
    lowering: Lowering,
}

/// The targets whose objects are told of one namespace at a time.
pub fn is_local(target: TargetName) -> bool {
    !matches!(target, TargetName::ClusterNetworkPolicy | TargetName::Calico)
}

/// What the meshes are called, and whom they know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meshes {
    /// Istio.
    pub istio: IstioOptions,
    /// Linkerd.
    pub linkerd: LinkerdOptions,
}

/// What is planned, and for when.
#[derive(Clone, Copy, Debug)]
pub struct Setting<'s> {
    /// The targets.
    pub targets: &'s [TargetName],
    /// The meshes.
    pub meshes: &'s Meshes,
    /// Seconds since the epoch.
    pub now: i64,
}

impl Planner {
    /// `lowest_tier` is the lowest that a namespaced policy may name.
    pub fn new(lowest_tier: u16) -> Self {
        Self {
            lowering: Lowering::new(lowest_tier),
        }
    }

    /// What is to be in a namespace. `sources` govern pods of it.
    pub fn namespace(&self, namespace: &str, sources: &[Source], setting: &Setting<'_>) -> Plan {
        self.plan(sources, setting, Some(namespace))
    }

    /// What is to be in the cluster as a whole, for targets that order all policies together.
    pub fn cluster(&self, sources: &[Source], setting: &Setting<'_>) -> Plan {
        self.plan(sources, setting, None)
    }

    fn plan(&self, sources: &[Source], setting: &Setting<'_>, namespace: Option<&str>) -> Plan {
        let now = setting.now;
        let targets = setting.targets.iter().copied();
        let targets = targets.filter(|target| is_local(*target) == namespace.is_some());
        let mut plan = Plan::default();
        let mut policies: Vec<Arc<Policy>> = Vec::new();
        let mut by_name: HashMap<String, &Source> = HashMap::new();
        let mut hashes: HashMap<String, String> = HashMap::new();
        for source in sources {
            let (policy, changes_at) = self.lowering.lower(source, namespace, now);
            plan.changes_at = [plan.changes_at, changes_at].into_iter().flatten().min();
            let entry = plan.policies.entry(source.id.clone()).or_default();
            entry.generation = source.generation;
            let Some(policy) = policy else { continue };
            entry.valid = true;
            entry.enforced = policy.mode == Mode::Enforce;
            hashes.insert(policy.name.clone(), sha256(source.spec.to_string().as_bytes()));
            by_name.insert(policy.name.clone(), source);
            policies.push(policy);
        }
        for target in targets {
            let compiler = compiler(target);
            let compiled = compiled(target, &policies, setting.meshes, |name| hashes.get(name).cloned());
            // That a policy is not enforced is its mode's doing, not the target's.
            let enforced = |gap: &Gap| {
                let name = gap.rule.split('/').next().unwrap_or_default();
                policies
                    .iter()
                    .all(|policy| policy.name != name || policy.mode == Mode::Enforce)
            };
            let told = Compiled {
                files: Vec::new(),
                gaps: compiled.gaps.iter().filter(|gap| enforced(gap)).cloned().collect(),
            };
            // What closes a gap takes a compilation for every other target.
            let certificates = if policies.len() <= CERTIFIED {
                garrison_ztp::compile::certificates(&policies, compiler, &told)
            } else {
                let bare = |gap: Gap| Certificate { gap, closed_by: None };
                told.gaps.into_iter().map(bare).collect()
            };
            for certificate in certificates {
                let (name, rule) = certificate
                    .gap
                    .rule
                    .split_once('/')
                    .unwrap_or((&certificate.gap.rule, ""));
                let gap = GapReport {
                    target,
                    rule: rule.to_owned(),
                    reason: certificate.gap.reason,
                    closed_by: certificate.closed_by.map(Target::name),
                };
                let concerned: Vec<&PolicyId> = match by_name.get(name) {
                    Some(source) => vec![&source.id],
                    None => sources.iter().map(|source| &source.id).collect(),
                };
                for id in concerned {
                    if let Some(entry) = plan.policies.get_mut(id).filter(|entry| entry.enforced) {
                        entry.gaps.push(gap.clone());
                    }
                }
            }
            for file in &compiled.files {
                for manifest in documents(&file.content) {
                    let name = manifest.pointer("/metadata/labels/garrison.dev~1policy");
                    let source = name.and_then(Value::as_str).and_then(|name| by_name.get(name)).copied();
                    let Some((key, output)) = output(manifest, target, source) else {
                        continue;
                    };
                    if let Some(entry) = source.and_then(|source| plan.policies.get_mut(&source.id)) {
                        entry.objects += 1;
                    }
                    plan.outputs.insert(key, output);
                }
            }
        }
        plan
    }
}

fn compiler(target: TargetName) -> Target {
    match target {
        TargetName::Kubernetes => Target::Kubernetes,
        TargetName::ClusterNetworkPolicy => Target::ClusterNetworkPolicy,
        TargetName::Cilium => Target::Cilium,
        TargetName::Calico => Target::Calico,
        TargetName::Istio => Target::Istio,
        TargetName::IstioAmbient => Target::IstioAmbient,
        TargetName::Linkerd => Target::Linkerd,
    }
}

fn compiled(
    target: TargetName,
    policies: &[Arc<Policy>],
    meshes: &Meshes,
    hash: impl Fn(&str) -> Option<String>,
) -> Compiled {
    match target {
        TargetName::Istio => compile::istio_with(policies, hash, &meshes.istio),
        TargetName::IstioAmbient => compile::istio_ambient_with(policies, hash, &meshes.istio),
        TargetName::Linkerd => compile::linkerd_with(policies, hash, &meshes.linkerd),
        _ => compiler(target).compile(policies, hash),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::domain::source::Kind;

    fn source(kind: Kind, namespace: Option<&str>, name: &str, spec: Value) -> Source {
        Source {
            id: PolicyId {
                kind,
                namespace: namespace.map(str::to_owned),
                name: name.to_owned(),
            },
            uid: format!("uid-{kind:?}-{name}"),
            generation: 3,
            spec,
        }
    }

    fn web(rules: Value) -> Source {
        let spec = json!({
            "mode": "enforce", "owner": "a", "reason": "b",
            "subject": {"workloads": {"podSelector": {"matchLabels": {"app": "web"}}}},
            "ingress": rules,
        });
        source(Kind::Namespaced, Some("shop"), "web", spec)
    }

    fn setting(targets: &[TargetName]) -> Setting<'_> {
        static MESHES: std::sync::LazyLock<Meshes> = std::sync::LazyLock::new(Meshes::default);
        Setting {
            targets,
            meshes: &MESHES,
            now: 0,
        }
    }

    fn names(plan: &Plan) -> Vec<String> {
        plan.outputs.keys().map(ToString::to_string).collect()
    }

    #[test]
    fn objects_lead_back_to_their_policy() {
        let rules =
            json!([{"name": "a", "from": [{"cidr": "10.0.0.0/8"}], "ports": [{"protocol": "TCP", "port": 80}]}]);
        let plan = Planner::new(100).namespace("shop", &[web(rules)], &setting(&[TargetName::Kubernetes]));
        assert_eq!(names(&plan), ["NetworkPolicy shop/garrison-web"]);
        let (_, output) = plan.outputs.first_key_value().unwrap();
        let at = |pointer: &str| output.manifest.pointer(pointer).cloned().unwrap_or_default();
        assert_eq!(at("/metadata/labels/garrison.dev~1policy"), json!("web"));
        assert_eq!(at("/metadata/labels/garrison.dev~1policy-namespace"), json!("shop"));
        assert_eq!(at("/metadata/labels/garrison.dev~1controlled-by"), json!(CONTROLLER));
        assert_eq!(at("/metadata/ownerReferences/0/uid"), json!("uid-Namespaced-web"));
        assert_eq!(
            at("/metadata/annotations/garrison.dev~1written-sha256"),
            json!(output.hash)
        );
        assert_eq!(at("/spec/ingress/0/ports/0/port"), json!(80));
        let made = plan.policies.values().next().unwrap();
        assert_eq!((made.objects, made.valid, made.enforced), (1, true, true));
    }

    #[test]
    fn a_cluster_wide_policy_is_told_of_each_namespace() {
        let spec = json!({
            "mode": "enforce", "owner": "a", "reason": "b", "tier": 10,
            "subject": {"workloads": {"namespaceSelector": {"matchLabels": {"team": "shop"}}}},
            "ingress": [{"name": "no-telnet", "action": "deny", "from": [{"any": true}], "ports": [{"protocol": "TCP", "port": 23}]}],
        });
        let cluster = source(Kind::Cluster, None, "web", spec);
        let any = web(json!([{"name": "all", "from": [{"any": true}]}]));
        let plan = Planner::new(100).namespace("shop", &[any, cluster], &setting(&[TargetName::Kubernetes]));
        assert_eq!(
            names(&plan),
            [
                "NetworkPolicy shop/garrison-cluster.web",
                "NetworkPolicy shop/garrison-web"
            ]
        );
        // What the cluster denies is cut out of what the namespace allows.
        let text = plan
            .outputs
            .values()
            .map(|output| output.manifest.to_string())
            .collect::<String>();
        assert!(text.contains("\"endPort\":22"), "{text}");
    }

    #[test]
    fn what_may_not_be_is_left_out_and_said() {
        let mut elsewhere = web(json!([]));
        elsewhere.spec["subject"]["workloads"]["namespace"] = json!("bank");
        let mut first = web(json!([]));
        first.spec["tier"] = json!(1);
        for wrong in [web(json!("all")), elsewhere, first] {
            let plan = Planner::new(100).namespace("shop", &[wrong], &setting(&[TargetName::Kubernetes]));
            assert!(plan.outputs.is_empty());
            assert!(!plan.policies.values().next().unwrap().valid);
        }
    }
}
