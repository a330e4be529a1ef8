//! Whether a policy may be in the cluster.

use std::collections::BTreeMap;

use garrison_ztp::{Level, Version};
use serde_json::Value;

use super::source::{Kind, PolicyId, document, with_own_namespace};

/// Something wrong with a policy, or worth saying about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Whether the policy is refused for it.
    pub refused: bool,
    /// The stable code.
    pub code: String,
    /// The field, such as `spec.ingress[0].ports[1].port`.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        write!(f, "{}. {} ({})", self.message, self.remedy, self.code)
    }
}

/// Checks a policy as the language does, and what a cluster asks besides. `lowest_tier` is the lowest that a namespaced
/// policy may name, `version` the one that `spec` is written in.
pub fn check(
    id: &PolicyId,
    version: Version,
    labels: &BTreeMap<String, String>,
    spec: &Value,
    lowest_tier: u16,
) -> Vec<Finding> {
    let spec = match (&id.namespace, id.kind) {
        (Some(namespace), Kind::Namespaced) => with_own_namespace(spec, namespace),
        _ => spec.clone(),
    };
    let document = document(id.kind, version, &id.name, labels, spec);
    let spec = &document["spec"];
    let (_, diagnostics) = garrison_ztp::check_object(&document);
    let mut findings: Vec<Finding> = diagnostics
        .into_iter()
        .map(|found| Finding {
            refused: found.level == Level::Error,
            code: found.code.as_str().to_owned(),
            field: found.field,
            message: found.message,
            remedy: found.remedy,
        })
        .collect();
    let mut refuse = |code: &str, field: &str, message: String, remedy: &str| {
        findings.push(Finding {
            refused: true,
            code: code.to_owned(),
            field: field.to_owned(),
            message,
            remedy: remedy.to_owned(),
        });
    };
    if spec.is_object() && spec.pointer("/subject").is_some_and(Value::is_object) {
        if spec.pointer("/subject/workloads").is_none() {
            refuse(
                "GAR-CTL-0001",
                "spec.subject.workloads",
                "a policy of a cluster governs its pods, and this one names none".to_owned(),
                "Say which: `workloads: {podSelector: {matchLabels: {app: web}}}`",
            );
        }
        let named = spec.pointer("/subject/workloads/namespace").and_then(Value::as_str);
        if let (Some(own), Some(named)) = (&id.namespace, named)
            && own != named
        {
            refuse(
                "GAR-CTL-0001",
                "spec.subject.workloads.namespace",
                format!("a ZeroTrustPolicy of namespace {own} governs pods of {named:?}"),
                "Leave the field out, put the policy into that namespace, or make it a ClusterZeroTrustPolicy",
            );
        }
    }
    let tier = spec.get("tier").and_then(Value::as_u64);
    if let Some(tier) = tier.filter(|tier| id.kind == Kind::Namespaced && *tier < u64::from(lowest_tier)) {
        refuse(
            "GAR-CTL-0002",
            "spec.tier",
            format!("tier {tier} is kept for ClusterZeroTrustPolicy"),
            &format!("Use a tier from {lowest_tier} on"),
        );
    }
    findings
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn namespaced() -> PolicyId {
        PolicyId {
            kind: Kind::Namespaced,
            namespace: Some("shop".to_owned()),
            name: "web".to_owned(),
        }
    }

    fn refused(id: &PolicyId, spec: &Value) -> Vec<(String, String)> {
        check(id, Version::V1Alpha1, &BTreeMap::new(), spec, 100)
            .into_iter()
            .filter(|finding| finding.refused)
            .map(|finding| (finding.code, finding.field))
            .collect()
    }

    #[test]
    fn a_policy_governs_its_own_namespace() {
        let good = json!({"subject": {"workloads": {"podSelector": {"matchLabels": {"app": "web"}}}}, "ingress": []});
        assert_eq!(refused(&namespaced(), &good), []);
        let other = json!({"subject": {"workloads": {"namespace": "bank"}}, "ingress": []});
        let expected = |code: &str, field: &str| vec![(code.to_owned(), field.to_owned())];
        assert_eq!(
            refused(&namespaced(), &other),
            expected("GAR-CTL-0001", "spec.subject.workloads.namespace")
        );
        let nobody = json!({"subject": {"cidrs": ["10.0.0.0/8"]}, "ingress": []});
        assert_eq!(
            refused(&namespaced(), &nobody),
            expected("GAR-CTL-0001", "spec.subject.workloads")
        );
        let first = json!({"subject": {"workloads": {}}, "tier": 99, "ingress": []});
        assert_eq!(refused(&namespaced(), &first), expected("GAR-CTL-0002", "spec.tier"));
    }

    #[test]
    fn errors_name_their_field() {
        let wrong = json!({
            "subject": {"workloads": {}},
            "ingress": [{"name": "a", "from": [{"cidr": "10.0.0.0/33"}], "ports": [{"protocol": "TCP", "prt": 1}]}],
        });
        let fields: Vec<String> = refused(&namespaced(), &wrong)
            .into_iter()
            .map(|(_, field)| field)
            .collect();
        assert!(
            fields.contains(&"spec.ingress[0].from[0].cidr".to_owned()),
            "{fields:?}"
        );
        assert!(
            fields.contains(&"spec.ingress[0].ports[0].prt".to_owned()),
            "{fields:?}"
        );
    }

    #[test]
    fn whatever_is_sent_is_answered() {
        for odd in [
            json!(null),
            json!([]),
            json!("x"),
            json!({"subject": 3}),
            json!({"tier": -1}),
        ] {
            assert!(!refused(&namespaced(), &odd).is_empty(), "{odd}");
        }
    }
}
