//! Policies as the cluster has them.

use std::{collections::BTreeMap, fmt};

use garrison_ztp::Version;
use serde_json::{Map, Value, json};

/// The API group of the policies.
pub const GROUP: &str = "garrison.dev";
/// The version that is stored, and in which the controller reads and writes: it so needs no conversion itself.
pub const VERSION: &str = "v1alpha1";

/// The kinds of policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `ZeroTrustPolicy`: pods of its own namespace.
    Namespaced,
    /// `ClusterZeroTrustPolicy`: pods of every namespace that it selects.
    Cluster,
}

impl Kind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Namespaced, Self::Cluster];

    /// The kind's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Namespaced => "ZeroTrustPolicy",
            Self::Cluster => "ClusterZeroTrustPolicy",
        }
    }

    /// The resource's name in paths.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Namespaced => "zerotrustpolicies",
            Self::Cluster => "clusterzerotrustpolicies",
        }
    }

    /// The kind of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// Which policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyId {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; none of a [`Kind::Cluster`].
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl fmt::Display for PolicyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind.name(), self.name),
            None => write!(f, "{} {}", self.kind.name(), self.name),
        }
    }
}

/// A policy as the cluster has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// Which.
    pub id: PolicyId,
    /// The object's uid.
    pub uid: String,
    /// Counts changes of `spec`.
    pub generation: i64,
    /// What counts: the object's `spec`, or a previous one.
    pub spec: Value,
}

impl Source {
    /// The namespaces' labels that a cluster-wide policy asks for; none asks for nothing.
    pub fn namespace_selector(&self) -> Option<&Value> {
        self.spec.pointer("/subject/workloads/namespaceSelector")
    }

    /// Whether the policy governs pods of a namespace with these labels.
    pub fn governs(&self, namespace: &str, labels: &BTreeMap<String, String>) -> bool {
        match self.id.kind {
            Kind::Namespaced => self.id.namespace.as_deref() == Some(namespace),
            Kind::Cluster => match self.namespace_selector() {
                None => self.spec.pointer("/subject/workloads").is_some(),
                Some(selector) => selects(selector, labels),
            },
        }
    }
}

/// The document of a policy, as the language knows it.
pub fn document(kind: Kind, version: Version, name: &str, labels: &BTreeMap<String, String>, spec: Value) -> Value {
    let mut document = json!({
        "apiVersion": version.api_version(),
        "kind": kind.name(),
        "metadata": { "name": name, "labels": labels },
    });
    document["spec"] = spec;
    document
}

/// A namespaced policy's `spec` with its own namespace where it names none.
pub fn with_own_namespace(spec: &Value, namespace: &str) -> Value {
    let mut spec = spec.clone();
    if let Some(workloads) = spec.pointer_mut("/subject/workloads").and_then(Value::as_object_mut) {
        workloads
            .entry("namespace")
            .or_insert_with(|| Value::String(namespace.to_owned()));
    }
    spec
}

/// A cluster-wide policy's `spec` as that of one namespace.
pub fn within_namespace(spec: &Value, namespace: &str) -> Value {
    let mut spec = spec.clone();
    if let Some(workloads) = spec.pointer_mut("/subject/workloads").and_then(Value::as_object_mut) {
        workloads.remove("namespaceSelector");
        workloads.insert("namespace".to_owned(), Value::String(namespace.to_owned()));
    }
    spec
}

/// Whether a label selector, as Kubernetes writes it, selects these labels. One that cannot be read selects nothing.
fn selects(selector: &Value, labels: &BTreeMap<String, String>) -> bool {
    let empty = Map::new();
    let Some(selector) = selector.as_object() else {
        return false;
    };
    let equal = selector
        .get("matchLabels")
        .and_then(Value::as_object)
        .unwrap_or(&empty)
        .iter()
        .all(|(key, value)| labels.get(key).map(String::as_str) == value.as_str());
    let further = selector.get("matchExpressions").and_then(Value::as_array);
    equal
        && further.into_iter().flatten().all(|requirement| {
            let Some(key) = requirement.get("key").and_then(Value::as_str) else {
                return false;
            };
            let value = labels.get(key);
            let listed = || {
                let values = requirement.get("values").and_then(Value::as_array);
                value.is_some_and(|value| values.into_iter().flatten().any(|v| v.as_str() == Some(value)))
            };
            match requirement.get("operator").and_then(Value::as_str) {
                Some("In") => listed(),
                Some("NotIn") => !listed(),
                Some("Exists") => value.is_some(),
                Some("DoesNotExist") => value.is_none(),
                _ => false,
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> BTreeMap<String, String> {
        let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn selectors_select_as_kubernetes_does() {
        let selector = json!({
            "matchLabels": {"team": "shop"},
            "matchExpressions": [
                {"key": "stage", "operator": "NotIn", "values": ["dev"]},
                {"key": "tier", "operator": "Exists"},
                {"key": "off", "operator": "DoesNotExist"},
                {"key": "zone", "operator": "In", "values": ["a", "b"]},
            ],
        });
        assert!(selects(&selector, &labels("team=shop,tier=1,zone=b")));
        assert!(selects(&selector, &labels("team=shop,tier=1,zone=b,stage=live")));
        for wrong in [
            "tier=1,zone=b",
            "team=bank,tier=1,zone=b",
            "team=shop,zone=b",
            "team=shop,tier=1,zone=c",
            "team=shop,tier=1",
            "team=shop,tier=1,zone=b,stage=dev",
            "team=shop,tier=1,zone=b,off=",
        ] {
            assert!(!selects(&selector, &labels(wrong)), "{wrong}");
        }
        assert!(selects(&json!({}), &labels("")));
        assert!(!selects(&json!([]), &labels("")));
        assert!(!selects(
            &json!({"matchExpressions": [{"key": "a", "operator": "Odd"}]}),
            &labels("a=b")
        ));
    }

    #[test]
    fn a_cluster_wide_policy_becomes_one_of_each_namespace() {
        let spec = json!({"subject": {"workloads": {"namespaceSelector": {}, "podSelector": {}}}});
        let expected = json!({"subject": {"workloads": {"namespace": "shop", "podSelector": {}}}});
        assert_eq!(within_namespace(&spec, "shop"), expected);
        let own = with_own_namespace(&json!({"subject": {"workloads": {}}}), "shop");
        assert_eq!(own.pointer("/subject/workloads/namespace"), Some(&json!("shop")));
    }
}
