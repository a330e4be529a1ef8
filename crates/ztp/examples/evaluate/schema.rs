//! Compiler output against the schemas that the projects publish, and against what their documentation says.

use std::{collections::BTreeMap, path::Path};

use garrison_ztp::{
    Policy,
    compile::{Issuer, IstioOptions, Target, istio_with},
};
use serde_json::Value;

use crate::Score;

/// Policies that reach every part of the output: tiers, denials, both directions, addresses, labels, every protocol.
const POLICIES: &str = include_str!("policies.yaml");

pub(crate) fn evaluate(folder: &Path, score: &mut Score) -> std::io::Result<()> {
    let mut schemas: BTreeMap<(String, String), Value> = BTreeMap::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mut parts = name.splitn(2, '_');
        if let (Some(group), Some(rest)) = (parts.next(), parts.next()) {
            let kind = rest.split('_').next().unwrap_or_default().to_owned();
            let schema = serde_json::from_str(&std::fs::read_to_string(&path)?)?;
            schemas.insert((group.to_owned(), kind), schema);
        }
    }
    let crd = folder.join("../network-policy-api/crd/standard/policy.networking.k8s.io_clusternetworkpolicies.yaml");
    if crd.is_file() {
        let crd: Value = serde_saphyr::from_str(&std::fs::read_to_string(crd)?).map_err(std::io::Error::other)?;
        schemas.insert(
            ("policy.networking.k8s.io".to_owned(), "clusternetworkpolicy".to_owned()),
            crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone(),
        );
    }
    // Every custom resource has these, whether its schema says so or not.
    for schema in schemas.values_mut() {
        if let Some(Value::Object(properties)) = schema.get_mut("properties") {
            for (name, kind) in [("apiVersion", "string"), ("kind", "string"), ("metadata", "object")] {
                properties
                    .entry(name)
                    .or_insert_with(|| serde_json::json!({ "type": kind }));
            }
        }
    }
    let checked = garrison_ztp::check(POLICIES);
    if let Some(error) = checked.errors().next() {
        score.note("the policies", Some(error.to_string()));
        return Ok(());
    }
    let policies: Vec<Policy> = checked.documents.iter().map(|d| d.lower(1)).collect();
    let targets = [
        Target::Cilium,
        Target::Calico,
        Target::ClusterNetworkPolicy,
        Target::Istio,
        Target::IstioAmbient,
        Target::Linkerd,
    ];
    for target in targets {
        let compiled = if target == Target::Istio {
            // With an issuer, so that people are known and RequestAuthentication is written.
            let options = IstioOptions {
                issuer: Some(Issuer {
                    issuer: "https://iam.example".to_owned(),
                    jwks_uri: "https://iam.example/keys".to_owned(),
                }),
                ..IstioOptions::default()
            };
            istio_with(&policies, |_| None, &options)
        } else {
            target.compile(&policies, |_| None)
        };
        for file in compiled.files.iter().filter(|f| !f.path.starts_with("networkpolicy/")) {
            for (i, text) in file.content.split("---\n").enumerate() {
                let manifest: Value = serde_saphyr::from_str(text).map_err(std::io::Error::other)?;
                let group = manifest["apiVersion"].as_str().unwrap_or_default();
                let group = group.split('/').next().unwrap_or_default();
                let kind = manifest["kind"].as_str().unwrap_or_default().to_lowercase();
                if kind == "networkauthentication" {
                    // The corpora have no schema of it.
                    println!("  no schema {} {i} ({kind})", file.path);
                    continue;
                }
                let wrong = match schemas.get(&(group.to_owned(), kind.clone())) {
                    None => Some(format!("there is no schema of {kind}")),
                    Some(schema) => {
                        let mut errors = Vec::new();
                        validate(schema, &manifest, "", &mut errors);
                        // A check that takes everything would show nothing.
                        let mut broken = manifest.clone();
                        broken["spec"]["surprise"] = Value::Bool(true);
                        let mut found = Vec::new();
                        validate(schema, &broken, "", &mut found);
                        if found.is_empty() {
                            errors.push("a field that the schema does not have went unnoticed".to_owned());
                        }
                        errors.into_iter().next()
                    }
                };
                score.note(&format!("{} {i} ({kind})", file.path), wrong);
            }
        }
    }
    Ok(())
}

/// The part of JSON Schema that the CRDs use. An unknown keyword is an error, so that none is passed over.
fn validate(schema: &Value, value: &Value, at: &str, errors: &mut Vec<String>) {
    let Some(schema) = schema.as_object() else { return };
    let fail = |what: String, errors: &mut Vec<String>| errors.push(format!("{at}: {what}"));
    for (keyword, wanted) in schema {
        match keyword.as_str() {
            "type" => {
                let right = match wanted.as_str().unwrap_or_default() {
                    "object" => value.is_object(),
                    "array" => value.is_array(),
                    "string" => value.is_string(),
                    "integer" => value.is_i64() || value.is_u64(),
                    "number" => value.is_number(),
                    "boolean" => value.is_boolean(),
                    _ => false,
                };
                if !right {
                    fail(format!("{value} is no {wanted}"), errors);
                }
            }
            "properties" => {
                let (Some(properties), Some(object)) = (wanted.as_object(), value.as_object()) else {
                    continue;
                };
                for (name, value) in object {
                    match properties.get(name) {
                        Some(schema) => validate(schema, value, &format!("{at}.{name}"), errors),
                        // Beside additionalProperties, which says more, unknown fields would be pruned.
                        None if !schema.contains_key("additionalProperties")
                            && !schema.contains_key("x-kubernetes-preserve-unknown-fields") =>
                        {
                            fail(format!("there is no field {name}"), errors);
                        }
                        None => {}
                    }
                }
            }
            "additionalProperties" => {
                let Some(object) = value.as_object() else { continue };
                let known = schema.get("properties").and_then(Value::as_object);
                for (name, value) in object
                    .iter()
                    .filter(|(name, _)| known.is_none_or(|k| !k.contains_key(*name)))
                {
                    match wanted {
                        Value::Bool(false) => fail(format!("there is no field {name}"), errors),
                        Value::Bool(true) => {}
                        schema => validate(schema, value, &format!("{at}.{name}"), errors),
                    }
                }
            }
            "required" => {
                for name in wanted.as_array().into_iter().flatten().filter_map(Value::as_str) {
                    if value.is_object() && value.get(name).is_none() {
                        fail(format!("{name} is missing"), errors);
                    }
                }
            }
            "items" => {
                for (i, item) in value.as_array().into_iter().flatten().enumerate() {
                    validate(wanted, item, &format!("{at}[{i}]"), errors);
                }
            }
            "enum" => {
                if !wanted.as_array().is_some_and(|list| list.contains(value)) {
                    fail(format!("{value} is not one of {wanted}"), errors);
                }
            }
            "minItems" | "maxItems" | "minLength" | "maxLength" | "minProperties" | "maxProperties" => {
                let length = match (keyword.as_str(), value) {
                    ("minItems" | "maxItems", Value::Array(list)) => list.len(),
                    ("minLength" | "maxLength", Value::String(text)) => text.chars().count(),
                    ("minProperties" | "maxProperties", Value::Object(object)) => object.len(),
                    _ => continue,
                } as u64;
                let bound = wanted.as_u64().unwrap_or_default();
                if keyword.starts_with("min") && length < bound || keyword.starts_with("max") && length > bound {
                    fail(format!("its length {length} is against {keyword} {bound}"), errors);
                }
            }
            "minimum" | "maximum" => {
                let (Some(number), Some(bound)) = (value.as_f64(), wanted.as_f64()) else {
                    continue;
                };
                if keyword == "minimum" && number < bound || keyword == "maximum" && number > bound {
                    fail(format!("{number} is against {keyword} {bound}"), errors);
                }
            }
            "anyOf" | "oneOf" => {
                let matching = wanted
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter(|schema| {
                        let mut inner = Vec::new();
                        // Alternatives name fields of the whole without being the whole.
                        validate_alternative(schema, value, at, &mut inner);
                        inner.is_empty()
                    })
                    .count();
                if matching == 0 || keyword == "oneOf" && matching != 1 {
                    fail(format!("{matching} alternatives of {keyword} match"), errors);
                }
            }
            "not" => {
                let mut inner = Vec::new();
                validate_alternative(wanted, value, at, &mut inner);
                if inner.is_empty() {
                    fail("what must not match does".to_owned(), errors);
                }
            }
            "allOf" => {
                for schema in wanted.as_array().into_iter().flatten() {
                    validate(schema, value, at, errors);
                }
            }
            // Patterns here are of addresses, ports and label values, which are written from values that were parsed.
            "pattern" | "format" | "default" | "description" | "title" => {}
            other if other.starts_with("x-kubernetes-") => {}
            other => fail(format!("the schema has the unknown keyword {other}"), errors),
        }
    }
}

fn validate_alternative(schema: &Value, value: &Value, at: &str, errors: &mut Vec<String>) {
    let Some(object) = schema.as_object() else { return };
    let mut open = object.clone();
    open.entry("x-kubernetes-preserve-unknown-fields".to_owned())
        .or_insert(Value::Bool(true));
    validate(&Value::Object(open), value, at, errors);
}
