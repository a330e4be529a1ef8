//! What policies mean at a moment, remembered.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use garrison_ztp::{Policy, Version};
use serde_json::Value;

use crate::domain::{
    check::check,
    source::{Kind, PolicyId, Source, document, with_own_namespace, within_namespace},
};

/// Policies that are kept lowered, per policy and namespace.
const LOWERED: usize = 20_000;

/// By uid, generation and namespace: the meaning, or that there is none.
type Lowered = HashMap<(String, i64, String), Option<Arc<Policy>>>;

/// Lowers policies, and remembers what they mean.
#[derive(Debug)]
pub(super) struct Lowering {
    lowest_tier: u16,
    lowered: Mutex<Lowered>,
}

impl Lowering {
    /// `lowest_tier` is the lowest that a namespaced policy may name.
    pub(super) fn new(lowest_tier: u16) -> Self {
        Self {
            lowest_tier,
            lowered: Mutex::default(),
        }
    }

    /// A policy's meaning at a moment, and when that changes.
    pub(super) fn lower(
        &self,
        source: &Source,
        namespace: Option<&str>,
        now: i64,
    ) -> (Option<Arc<Policy>>, Option<i64>) {
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::at;

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
}
