//! What is to be there because of the policies.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use garrison_ztp::{
    Policy, Version,
    compile::{self, Certificate, Compiled, Gap, IstioOptions, LinkerdOptions, Target},
    document::Mode,
};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::{
    check::check,
    source::{Kind, PolicyId, Source, document, with_own_namespace, within_namespace},
};
use crate::config::TargetName;

/// The label by which the controller knows what it wrote.
pub const CONTROLLED_BY: &str = "garrison.dev/controlled-by";
/// Its value.
pub const CONTROLLER: &str = "policy-controller";
/// The label with the kind of the policy behind an object.
pub const POLICY_KIND: &str = "garrison.dev/policy-kind";
/// The label with the name of the policy behind an object.
pub const POLICY: &str = "garrison.dev/policy";
/// The label with the namespace of the policy behind an object.
pub const POLICY_NAMESPACE: &str = "garrison.dev/policy-namespace";
/// The annotation with the hash of what was written.
pub const WRITTEN: &str = "garrison.dev/written-sha256";

/// Policies that are kept lowered, per policy and namespace.
const LOWERED: usize = 20_000;
/// The most policies of one place for whose gaps the target that closes them is looked for.
const CERTIFIED: usize = 64;

/// Which object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// `networking.k8s.io/v1` and the like.
    pub api_version: String,
    /// Its kind.
    pub kind: String,
    /// Its namespace.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl std::fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

/// An object that is to be there.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// What it was compiled for.
    pub target: TargetName,
    /// The policy it comes from; none when it serves several.
    pub owner: Option<PolicyId>,
    /// The whole object, ready to be applied.
    pub manifest: Value,
    /// The hash in its annotation.
    pub hash: String,
}

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
    lowest_tier: u16,
    lowered: Mutex<Lowered>,
}

/// By uid, generation and namespace: the meaning, or that there is none.
type Lowered = HashMap<(String, i64, String), Option<Arc<Policy>>>;

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
            lowest_tier,
            lowered: Mutex::default(),
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
            let (policy, changes_at) = self.lower(source, namespace, now);
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

    /// A policy's meaning at a moment, and when that changes.
    fn lower(&self, source: &Source, namespace: Option<&str>, now: i64) -> (Option<Arc<Policy>>, Option<i64>) {
        let key = (
            source.uid.clone(),
            source.generation,
            namespace.unwrap_or_default().to_owned(),
        );
        if let Some(known) = self.lock().get(&key) {
            return (known.clone(), None);
        }
        // Also without a webhook, or from before it, a policy of one namespace governs no other.
        let refused = check(
            &source.id,
            Version::V1Alpha1,
            &BTreeMap::new(),
            &source.spec,
            self.lowest_tier,
        )
        .iter()
        .any(|finding| finding.refused);
        let (spec, changes_at, timed) = at(&source.spec, now);
        let (kind, spec) = match (source.id.kind, namespace, &source.id.namespace) {
            (Kind::Cluster, Some(namespace), _) => (Kind::Namespaced, within_namespace(&spec, namespace)),
            (Kind::Namespaced, _, Some(own)) => (Kind::Namespaced, with_own_namespace(&spec, own)),
            (kind, ..) => (kind, spec),
        };
        let document = document(kind, Version::V1Alpha1, &source.id.name, &BTreeMap::new(), spec);
        let (document, _) = garrison_ztp::check_object(&document);
        let policy = document.filter(|_| !refused).map(|document| {
            let mut policy = garrison_ztp::ir::lower(&document, source.generation.try_into().unwrap_or(0));
            policy.name = internal_name(&source.id, namespace.is_some());
            Arc::new(policy)
        });
        // What depends on the time is another policy tomorrow.
        if !timed {
            let mut lowered = self.lock();
            if lowered.len() >= LOWERED {
                lowered.clear();
            }
            lowered.insert(key, policy.clone());
        }
        (policy, changes_at)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Lowered> {
        self.lowered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a policy is called among those that are compiled together. No name of a policy has a dot in it.
fn internal_name(id: &PolicyId, local: bool) -> String {
    match (&id.namespace, local) {
        (None, true) => format!("cluster.{}", id.name),
        (Some(namespace), false) => format!("{namespace}.{}", id.name),
        _ => id.name.clone(),
    }
}

/// A `spec` as it counts at `now`: without the rules that do not count yet or any more, and without the times of those
/// that do. Enforcement points know no time. Also when that changes, and whether there are times at all.
fn at(spec: &Value, now: i64) -> (Value, Option<i64>, bool) {
    let mut spec = spec.clone();
    let mut changes_at: Option<i64> = None;
    let mut timed = false;
    for direction in ["ingress", "egress"] {
        let Some(rules) = spec.get_mut(direction).and_then(Value::as_array_mut) else {
            continue;
        };
        rules.retain_mut(|rule| {
            let Some(rule) = rule.as_object_mut() else {
                return true;
            };
            let read = |key: &str| {
                let text = rule.get(key)?.as_str()?;
                Some(text.parse::<k8s_openapi::jiff::Timestamp>().ok()?.as_second())
            };
            let (from, until) = (read("validFrom"), read("validUntil"));
            if from.is_none() && until.is_none() {
                return true;
            }
            timed = true;
            let next = [from, until].into_iter().flatten().filter(|time| *time > now);
            changes_at = changes_at.into_iter().chain(next).min();
            rule.remove("validFrom");
            rule.remove("validUntil");
            from.is_none_or(|from| from <= now) && until.is_none_or(|until| now < until)
        });
    }
    (spec, changes_at, timed)
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

fn documents(content: &str) -> Vec<Value> {
    // The compilers wrote it, so it reads.
    serde_saphyr::from_multiple(content).unwrap_or_default()
}

fn output(mut manifest: Value, target: TargetName, source: Option<&Source>) -> Option<(ObjectKey, Output)> {
    let text = |pointer: &str| manifest.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let key = ObjectKey {
        api_version: text("/apiVersion")?,
        kind: text("/kind")?,
        namespace: text("/metadata/namespace"),
        name: text("/metadata/name")?,
    };
    let metadata = manifest.pointer_mut("/metadata")?.as_object_mut()?;
    let labels = object(metadata, "labels");
    labels.insert(CONTROLLED_BY.to_owned(), json!(CONTROLLER));
    labels.remove(POLICY);
    if let Some(source) = source {
        labels.insert(POLICY.to_owned(), json!(source.id.name));
        labels.insert(POLICY_KIND.to_owned(), json!(source.id.kind.name()));
        if let Some(namespace) = &source.id.namespace {
            labels.insert(POLICY_NAMESPACE.to_owned(), json!(namespace));
        }
        // The cluster's collector follows owners of the same namespace, and those of none.
        if key.namespace.is_some() && (source.id.namespace.is_none() || source.id.namespace == key.namespace) {
            metadata.insert(
                "ownerReferences".to_owned(),
                json!([{
                    "apiVersion": format!("{}/{}", super::source::GROUP, super::source::VERSION),
                    "kind": source.id.kind.name(),
                    "name": source.id.name,
                    "uid": source.uid,
                    "controller": true,
                    "blockOwnerDeletion": false,
                }]),
            );
        }
    }
    let hash = sha256(manifest.to_string().as_bytes());
    let metadata = manifest.pointer_mut("/metadata")?.as_object_mut()?;
    object(metadata, "annotations").insert(WRITTEN.to_owned(), json!(hash));
    let owner = source.map(|source| source.id.clone());
    Some((
        key,
        Output {
            target,
            owner,
            manifest,
            hash,
        },
    ))
}

fn object<'m>(metadata: &'m mut Map<String, Value>, key: &str) -> &'m mut Map<String, Value> {
    let entry = metadata.entry(key).or_insert_with(|| json!({}));
    if !entry.is_object() {
        *entry = json!({});
    }
    match entry {
        Value::Object(map) => map,
        _ => unreachable!("it was made an object"),
    }
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn rules_count_in_their_time() {
        let rules = json!([
            {"name": "always", "from": [{"cidr": "10.0.0.0/8"}]},
            {"name": "later", "from": [{"cidr": "11.0.0.0/8"}], "validFrom": "2030-01-01T00:00:00Z", "validUntil": "2030-01-02T00:00:00Z"},
        ]);
        let begin = 1_893_456_000;
        for (now, expected, changes_at) in [
            (begin - 1, 1, Some(begin)),
            (begin, 2, Some(begin + 86_400)),
            (begin + 86_400, 1, None),
        ] {
            let (spec, changes, timed) = at(&json!({"ingress": rules}), now);
            let left = spec["ingress"].as_array().unwrap();
            assert_eq!((left.len(), changes, timed), (expected, changes_at, true));
            assert!(left.iter().all(|rule| rule.get("validFrom").is_none()));
        }
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
