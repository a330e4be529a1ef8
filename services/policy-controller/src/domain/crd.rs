//! The custom resource definitions, from the language's own schema.
//!
//! A structural schema is less than a JSON Schema: references are put in place, choices of words become enumerations,
//! and closed objects cannot be said. Where a document's object is closed the definition keeps unknown fields, so that
//! the webhook sees and refuses them: an API server that prunes would drop a misspelt restriction without a word.

use garrison_ztp::Version;
use serde_json::{Map, Value, json};

use super::source::{GROUP, Kind};

/// Both definitions.
pub fn definitions() -> Vec<Value> {
    Kind::ALL.into_iter().map(definition).collect()
}

fn definition(kind: Kind) -> Value {
    let (singular, scope, short) = match kind {
        Kind::Namespaced => ("zerotrustpolicy", "Namespaced", "ztp"),
        Kind::Cluster => ("clusterzerotrustpolicy", "Cluster", "cztp"),
    };
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{}.{GROUP}", kind.plural()),
            "labels": {"app.kubernetes.io/part-of": "garrison"},
            // cert-manager fills in caBundle; where it is not there, the controller does, or an administrator.
            "annotations": {"cert-manager.io/inject-ca-from": "garrison/policy-controller-webhook"},
        },
        "spec": {
            "group": GROUP,
            "scope": scope,
            "names": {
                "kind": kind.name(),
                "listKind": format!("{}List", kind.name()),
                "plural": kind.plural(),
                "singular": singular,
                "shortNames": [short],
                "categories": ["garrison"],
            },
            "conversion": {
                "strategy": "Webhook",
                "webhook": {
                    "conversionReviewVersions": ["v1"],
                    "clientConfig": {
                        "service": {"name": "policy-controller", "namespace": "garrison", "path": "/convert", "port": 443},
                    },
                },
            },
            "versions": Version::ALL.map(|version| served(kind, version)),
        },
    })
}

fn served(kind: Kind, version: Version) -> Value {
    let column = |name: &str, path: &str, meaning: &str, type_: &str| json!({"name": name, "jsonPath": path, "description": meaning, "type": type_});
    let schema = garrison_ztp::version::json_schema(version);
    let spec = structural(&schema, schema.pointer("/properties/spec").unwrap_or(&Value::Null));
    json!({
        "name": version.name(),
        "served": true,
        "storage": version == Version::default(),
        "subresources": {"status": {}},
        "additionalPrinterColumns": [
            column("Mode", ".spec.mode", "Whether the policy is enforced.", "string"),
            column("Programmed", ".status.conditions[?(@.type==\"Programmed\")].status", "Whether enforcement points have it.", "string"),
            column("Objects", ".status.objects", "How many objects were made of it.", "integer"),
            column("Gaps", ".status.gapCount", "What enforcement points cannot say of it.", "integer"),
            column("Reason", ".status.conditions[?(@.type==\"Programmed\")].reason", "Why it is as it is.", "string"),
            column("Age", ".metadata.creationTimestamp", "Since when it is there.", "date"),
        ],
        "schema": {"openAPIV3Schema": {
            "type": "object",
            "description": match kind {
                Kind::Namespaced => "Who may talk to whom, for pods of one namespace.",
                Kind::Cluster => "Who may talk to whom, for pods of every namespace that is selected.",
            },
            "required": ["spec"],
            "properties": {
                "apiVersion": {"type": "string"},
                "kind": {"type": "string"},
                "metadata": {"type": "object"},
                "spec": spec,
                "status": status(),
            },
        }},
    })
}

fn status() -> Value {
    let text = |meaning: &str| json!({"type": "string", "description": meaning});
    let number = |meaning: &str| json!({"type": "integer", "format": "int64", "description": meaning});
    json!({
        "type": "object",
        "description": "What became of it; written by the policy controller.",
        "properties": {
            "observedGeneration": number("The generation of `spec` that the rest is about."),
            "enforcedGeneration": number("The generation of `spec` that enforcement points have."),
            "objects": number("How many objects were made of it."),
            "gapCount": number("How many parts of it enforcement points cannot say."),
            "gaps": {
                "type": "array",
                "description": "The first of them. None is more permissive than the policy.",
                "items": {
                    "type": "object",
                    "required": ["target", "reason"],
                    "properties": {
                        "target": text("What it was compiled for."),
                        "rule": text("The rule; missing for the policy as a whole."),
                        "reason": text("What is missing, and why."),
                        "closedBy": text("The nearest target that says it without a gap."),
                    },
                },
            },
            "restored": number("How often objects of it were found changed, and put back."),
            "lastRestored": {
                "type": "object",
                "description": "The last time.",
                "properties": {
                    "object": text("What was changed."),
                    "manager": text("Who changed it, as the API server recorded it; missing when it did not."),
                    "operation": text("How."),
                    "fields": {"type": "array", "items": {"type": "string"}, "description": "Which fields."},
                    "time": {"type": "string", "format": "date-time", "description": "When it was put back."},
                },
            },
            "rollout": {
                "type": "object",
                "description": "How the newest version does.",
                "properties": {
                    "generation": number("The version."),
                    "phase": text("Watching, Kept or Returned."),
                    "since": {"type": "string", "format": "date-time", "description": "Since when."},
                    "deniedBefore": {"type": "number", "description": "Denied connections per second before it."},
                    "denied": {"type": "number", "description": "Denied connections per second at the last look."},
                    "previous": number("The version that was enforced before."),
                },
            },
            "conditions": {
                "type": "array",
                "description": "Accepted, Programmed and Complete.",
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
                "items": {
                    "type": "object",
                    "required": ["type", "status", "reason", "message", "lastTransitionTime"],
                    "properties": {
                        "type": text("Accepted, Programmed or Complete."),
                        "status": {"type": "string", "enum": ["True", "False", "Unknown"], "description": "Whether it holds."},
                        "reason": text("Why, in one word."),
                        "message": text("Why."),
                        "observedGeneration": number("The generation of `spec` that it is about."),
                        "lastTransitionTime": {"type": "string", "format": "date-time", "description": "Since when."},
                    },
                },
            },
        },
    })
}

/// The keywords that a structural schema takes over as they are.
const KEPT: [&str; 13] = [
    "type",
    "description",
    "pattern",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "enum",
    "required",
    "default",
];

fn structural(root: &Value, schema: &Value) -> Value {
    let mut out = Map::new();
    let Some(schema) = schema.as_object() else {
        return json!({"x-kubernetes-preserve-unknown-fields": true});
    };
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        let target = root.pointer(reference.trim_start_matches('#')).unwrap_or(&Value::Null);
        if let Value::Object(inner) = structural(root, target) {
            out = inner;
        }
    }
    // Something or nothing: a field that may be left out.
    let choices = schema
        .get("anyOf")
        .or_else(|| schema.get("oneOf"))
        .and_then(Value::as_array);
    let choices: Vec<&Value> = choices
        .into_iter()
        .flatten()
        .filter(|choice| choice.get("type").and_then(Value::as_str) != Some("null"))
        .collect();
    if let [one] = choices.as_slice()
        && one.get("const").is_none()
    {
        if let Value::Object(inner) = structural(root, one) {
            out = inner;
        }
    } else if !choices.is_empty() {
        // Words, each with its meaning.
        let words = choices.iter().flat_map(|choice| {
            let listed = choice.get("enum").and_then(Value::as_array).into_iter().flatten();
            choice.get("const").into_iter().chain(listed).cloned()
        });
        let words: Vec<Value> = words.collect();
        if !words.is_empty() && words.iter().all(Value::is_string) {
            out.insert("type".to_owned(), json!("string"));
            out.insert("enum".to_owned(), Value::Array(words));
        } else {
            out.insert("x-kubernetes-preserve-unknown-fields".to_owned(), json!(true));
        }
    }
    for key in KEPT {
        let Some(value) = schema.get(key) else { continue };
        let value = match (key, value) {
            ("type", Value::Array(types)) => match types.iter().find(|t| t.as_str() != Some("null")) {
                Some(one) => one.clone(),
                None => continue,
            },
            ("enum", Value::Array(words)) => {
                Value::Array(words.iter().filter(|word| !word.is_null()).cloned().collect())
            }
            // Defaults of lists and objects say no more than their absence.
            ("default", Value::Null | Value::Array(_) | Value::Object(_)) => continue,
            _ => value.clone(),
        };
        out.insert(key.to_owned(), value);
    }
    if let Some(word) = schema.get("const") {
        out.insert("enum".to_owned(), json!([word]));
        out.entry("type").or_insert_with(|| json!("string"));
    }
    if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
        let properties: Map<String, Value> = properties
            .iter()
            .map(|(name, property)| (name.clone(), structural(root, property)))
            .collect();
        out.insert("properties".to_owned(), Value::Object(properties));
    }
    match schema.get("additionalProperties") {
        Some(Value::Bool(false)) => {
            out.insert("x-kubernetes-preserve-unknown-fields".to_owned(), json!(true));
        }
        Some(values @ Value::Object(_)) if !out.contains_key("properties") => {
            out.insert("additionalProperties".to_owned(), structural(root, values));
        }
        _ => {}
    }
    if let Some(items) = schema.get("items") {
        out.insert("items".to_owned(), structural(root, items));
    }
    // A namespaced policy's namespace is its own where it names none.
    if let Some(required) = out.get_mut("required").and_then(Value::as_array_mut) {
        let has = |name: &str| {
            schema
                .get("properties")
                .is_some_and(|properties| properties.get(name).is_some())
        };
        if has("namespace") && has("podSelector") {
            required.retain(|name| name != "namespace");
        }
        if required.is_empty() {
            out.remove("required");
        }
    }
    Value::Object(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn each(schema: &Value, path: &str, visit: &mut impl FnMut(&str, &Map<String, Value>)) {
        let Some(object) = schema.as_object() else {
            panic!("{path} is no schema");
        };
        visit(path, object);
        for (name, property) in object
            .get("properties")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            each(property, &format!("{path}.{name}"), visit);
        }
        for key in ["items", "additionalProperties"] {
            if let Some(inner) = object.get(key) {
                each(inner, &format!("{path}.{key}"), visit);
            }
        }
    }

    #[test]
    fn the_schema_is_structural() {
        for definition in definitions() {
            let versions = definition.pointer("/spec/versions").and_then(Value::as_array).unwrap();
            let stored: Vec<&Value> = versions.iter().filter(|version| version["storage"] == true).collect();
            assert_eq!((versions.len(), stored.len()), (2, 1));
            assert_eq!(stored[0]["name"], super::super::source::VERSION);
            for schema in versions.iter().map(|version| &version["schema"]["openAPIV3Schema"]) {
                let mut fields = 0;
                each(schema, "", &mut |path, object| {
                    fields += 1;
                    for key in ["$ref", "anyOf", "oneOf", "allOf", "const", "$defs"] {
                        assert!(!object.contains_key(key), "{path} has {key}");
                    }
                    assert!(
                        object.get("type").is_some_and(Value::is_string),
                        "{path} has no type: {object:?}"
                    );
                    assert!(
                        !(object.contains_key("properties") && object.contains_key("additionalProperties")),
                        "{path} has both"
                    );
                    if path.starts_with(".spec.") || path.starts_with(".status.") {
                        let described = object.contains_key("description") || path.ends_with("items");
                        assert!(
                            described || path.ends_with("additionalProperties"),
                            "{path} has no description"
                        );
                    }
                });
                assert!(fields > 60, "{fields}");
                let mode = schema.pointer("/properties/spec/properties/mode/enum").unwrap();
                assert!(mode.as_array().unwrap().contains(&json!("enforce")), "{mode}");
            }
        }
    }
}
