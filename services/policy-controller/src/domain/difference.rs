//! How what is there differs from what should be, and who made it so.

use serde_json::Value;

/// The places at which `actual` differs from `wanted`, such as `spec.ingress`, at most `most`. Fields that are missing,
/// null or an empty list are the same, as the API server leaves them out.
pub fn differences(wanted: &Value, actual: &Value, path: &str, most: usize) -> Vec<String> {
    let mut found = Vec::new();
    compare(wanted, actual, path, most, &mut found);
    found
}

fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

fn compare(wanted: &Value, actual: &Value, path: &str, most: usize, found: &mut Vec<String>) {
    if found.len() >= most || wanted == actual || (says_nothing(wanted) && says_nothing(actual)) {
        return;
    }
    match (wanted, actual) {
        (Value::Object(wanted), Value::Object(actual)) => {
            for (key, value) in wanted {
                let other = actual.get(key).unwrap_or(&Value::Null);
                compare(value, other, &join(path, key), most, found);
            }
            for (key, value) in actual.iter().filter(|(key, _)| !wanted.contains_key(*key)) {
                compare(&Value::Null, value, &join(path, key), most, found);
            }
        }
        (Value::Array(wanted), Value::Array(actual)) if wanted.len() == actual.len() => {
            for (i, (wanted, actual)) in wanted.iter().zip(actual).enumerate() {
                compare(wanted, actual, &format!("{path}[{i}]"), most, found);
            }
        }
        _ => found.push(path.to_owned()),
    }
}

fn join(path: &str, key: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if key.chars().all(plain) {
        format!("{path}.{key}")
    } else {
        format!("{path}[{key:?}]")
    }
}

/// Who changed an object, as its `managedFields` have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The field manager, such as `kubectl-edit`.
    pub manager: String,
    /// `Apply` or `Update`.
    pub operation: String,
    /// When, RFC 3339; empty when it was not recorded.
    pub time: String,
}

/// The last manager but `own` that has fields of the object's `spec`, labels or annotations.
pub fn last_change(managed_fields: &Value, own: &str) -> Option<Change> {
    let text = |entry: &Value, key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    managed_fields
        .as_array()?
        .iter()
        .filter(|entry| {
            let fields = entry.get("fieldsV1");
            let has = |pointer: &str| fields.and_then(|fields| fields.pointer(pointer)).is_some();
            text(entry, "manager") != own
                && (has("/f:spec") || has("/f:metadata/f:labels") || has("/f:metadata/f:annotations"))
        })
        .map(|entry| Change {
            manager: text(entry, "manager"),
            operation: text(entry, "operation"),
            time: text(entry, "time"),
        })
        .max_by(|a, b| a.time.cmp(&b.time))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_server_leaves_out_is_no_difference() {
        let wanted = json!({"podSelector": {}, "ingress": [], "policyTypes": ["Ingress"], "x": null});
        let actual = json!({"podSelector": {}, "policyTypes": ["Ingress"], "egress": []});
        assert_eq!(differences(&wanted, &actual, "spec", 8), Vec::<String>::new());
        // A peer that is everyone is not a peer that is nobody.
        let everyone = json!({"ingress": [{}]});
        let nobody = json!({"ingress": []});
        assert_eq!(differences(&nobody, &everyone, "spec", 8), ["spec.ingress"]);
        let pods = json!({"from": [{"podSelector": {}}]});
        let namespaces = json!({"from": [{"namespaceSelector": {}}]});
        assert_eq!(
            differences(&pods, &namespaces, "spec", 8),
            ["spec.from[0].podSelector", "spec.from[0].namespaceSelector"]
        );
    }

    #[test]
    fn places_are_named_and_bounded() {
        let wanted = json!({"a": {"b": [1, 2]}, "labels": {"x/y": "1"}});
        let actual = json!({"a": {"b": [1, 3]}, "labels": {"x/y": "2"}, "more": 1});
        assert_eq!(
            differences(&wanted, &actual, "spec", 8),
            ["spec.a.b[1]", "spec.labels[\"x/y\"]", "spec.more"]
        );
        assert_eq!(differences(&wanted, &actual, "spec", 1).len(), 1);
    }

    #[test]
    fn the_last_other_manager_is_who_changed_it() {
        let fields = json!([
            {"manager": "own", "operation": "Apply", "time": "2030-01-01T00:00:09Z", "fieldsV1": {"f:spec": {}}},
            {"manager": "kubectl-edit", "operation": "Update", "time": "2030-01-01T00:00:02Z", "fieldsV1": {"f:spec": {"f:ingress": {}}}},
            {"manager": "old", "operation": "Update", "time": "2030-01-01T00:00:01Z", "fieldsV1": {"f:spec": {}}},
            {"manager": "status", "operation": "Update", "time": "2030-01-01T00:00:08Z", "fieldsV1": {"f:status": {}}},
        ]);
        let change = last_change(&fields, "own").unwrap();
        assert_eq!(
            (change.manager.as_str(), change.operation.as_str()),
            ("kubectl-edit", "Update")
        );
        assert_eq!(last_change(&json!([]), "own"), None);
        assert_eq!(last_change(&Value::Null, "own"), None);
    }
}
