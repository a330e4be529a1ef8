//! The versions of the API, and the way between them.
//!
//! `v1beta1` says the same as `v1alpha1` and groups what belongs together: who answers for a policy and why
//! (`owner`, `reason`, `ticket`) stands in `spec.accountability`, and the time in which a rule counts
//! (`validFrom`, `validUntil`) in the rule's `valid`. `v1alpha1` is what is stored and what a document is read into.
//!
//! Conversion loses nothing. From `v1alpha1` it always succeeds: a field that `v1alpha1` does not have, but `v1beta1`
//! does, is set aside under a name that neither has, and comes back on the way back. From `v1beta1` it refuses the few
//! forms that `v1alpha1` could not give back.

mod text;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value, json};

pub(crate) use text::{as_written, to_hub, write};

use crate::document::{CLUSTER_KIND, KIND};

/// The API group.
pub const GROUP: &str = "garrison.dev";

/// A version of the API.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// `garrison.dev/v1alpha1`: what is stored.
    #[default]
    V1Alpha1,
    /// `garrison.dev/v1beta1`.
    V1Beta1,
}

impl Version {
    /// Every version, the stored one first.
    pub const ALL: [Self; 2] = [Self::V1Alpha1, Self::V1Beta1];

    /// `v1alpha1` or `v1beta1`.
    pub fn name(self) -> &'static str {
        match self {
            Self::V1Alpha1 => "v1alpha1",
            Self::V1Beta1 => "v1beta1",
        }
    }

    /// With the group, as documents have it.
    pub fn api_version(self) -> &'static str {
        match self {
            Self::V1Alpha1 => crate::document::API_VERSION,
            Self::V1Beta1 => "garrison.dev/v1beta1",
        }
    }

    /// From `garrison.dev/v1alpha1` and the like.
    pub fn from_api_version(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.api_version() == text)
    }
}

/// Who answers for a policy, and why it is as it is (`v1beta1`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Accountability {
    /// Who answers for it: a team or a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Why it is as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The change request behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<String>,
}

/// The time in which a rule counts (`v1beta1`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Validity {
    /// The rule counts from then on (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The rule counts until then (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
}

/// Fields that stand by themselves in `v1alpha1`, and in an object of their own in `v1beta1`.
pub(crate) struct Grouped {
    /// The object's name.
    pub(crate) object: &'static str,
    /// The names in `v1alpha1` and in the object.
    pub(crate) fields: &'static [(&'static str, &'static str)],
}

/// Of `spec`.
pub(crate) const ACCOUNTABILITY: Grouped = Grouped {
    object: "accountability",
    fields: &[("owner", "owner"), ("reason", "reason"), ("ticket", "ticket")],
};

/// Of a rule.
pub(crate) const VALID: Grouped = Grouped {
    object: "valid",
    fields: &[("validFrom", "from"), ("validUntil", "until")],
};

/// Before the name of a field that only looks like one of the other version's.
const ASIDE_ALPHA: &str = "x-v1alpha1-";
const ASIDE_BETA: &str = "x-v1beta1-";

/// Why an object has no counterpart in the other version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct NoCounterpart {
    /// The field, such as `spec.accountability`.
    pub field: String,
    /// What is wrong, and what to do.
    pub message: String,
}

impl NoCounterpart {
    fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            message: message.into(),
        }
    }
}

/// Turns an object of the API into one of another version. What is not of the language (metadata, status) stays as it is.
///
/// # Errors
/// When the object is none of these kinds, or of a version that is not known, or has a form in `v1beta1` that `v1alpha1`
/// could not give back. The object is then unchanged.
pub fn convert(object: &mut Value, to: Version) -> Result<(), NoCounterpart> {
    let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default();
    let kind = text("kind");
    if kind != KIND && kind != CLUSTER_KIND {
        return Err(NoCounterpart::new(
            "kind",
            format!(
                "{:?} is not a kind that is converted here: {KIND}, {CLUSTER_KIND}",
                crate::node::shorten(kind)
            ),
        ));
    }
    let from = text("apiVersion");
    let Some(from) = Version::from_api_version(from) else {
        return Err(NoCounterpart::new(
            "apiVersion",
            format!("{:?} is not a version that is known here", crate::node::shorten(from)),
        ));
    };
    if from == to {
        return Ok(());
    }
    if let Some(Value::Object(spec)) = object.get("spec") {
        let spec = convert_spec(spec.clone(), to)?;
        object["spec"] = Value::Object(spec);
    }
    object["apiVersion"] = json!(to.api_version());
    Ok(())
}

/// A `spec` of the other version as one of `to`.
fn convert_spec(mut spec: Map<String, Value>, to: Version) -> Result<Map<String, Value>, NoCounterpart> {
    let step = |map: Map<String, Value>, grouped: &Grouped, path: &str| match to {
        Version::V1Beta1 => Ok(together(map, grouped)),
        Version::V1Alpha1 => apart(map, grouped, path),
    };
    for direction in ["ingress", "egress"] {
        let Some(Value::Array(rules)) = spec.get_mut(direction) else {
            continue;
        };
        for (i, rule) in rules.iter_mut().enumerate() {
            if let Value::Object(map) = rule {
                *map = step(std::mem::take(map), &VALID, &format!("spec.{direction}[{i}]"))?;
            }
        }
    }
    step(spec, &ACCOUNTABILITY, "spec")
}

/// Whether a name is `name` behind any number of `prefix`.
fn is_aside(key: &str, prefix: &str, name: &str) -> bool {
    let mut rest = key;
    while let Some(shorter) = rest.strip_prefix(prefix) {
        rest = shorter;
    }
    rest == name
}

fn together(map: Map<String, Value>, grouped: &Grouped) -> Map<String, Value> {
    let mut out = Map::new();
    let mut object = Map::new();
    for (key, value) in map {
        if let Some((_, inner)) = grouped.fields.iter().find(|(outer, _)| *outer == key) {
            object.insert((*inner).to_owned(), value);
        } else if is_aside(&key, ASIDE_ALPHA, grouped.object) {
            out.insert(format!("{ASIDE_ALPHA}{key}"), value);
        } else {
            let was_beta = grouped
                .fields
                .iter()
                .any(|(outer, _)| is_aside(&key, ASIDE_BETA, outer));
            let key = match key.strip_prefix(ASIDE_BETA).filter(|_| was_beta) {
                Some(own) => own.to_owned(),
                None => key,
            };
            out.insert(key, value);
        }
    }
    if !object.is_empty() {
        out.insert(grouped.object.to_owned(), Value::Object(object));
    }
    out
}

fn apart(map: Map<String, Value>, grouped: &Grouped, path: &str) -> Result<Map<String, Value>, NoCounterpart> {
    let mut out = Map::new();
    for (key, value) in map {
        if key == grouped.object {
            let path = format!("{path}.{key}");
            let Value::Object(object) = value else {
                return Err(NoCounterpart::new(path, "it is not a mapping"));
            };
            if object.is_empty() {
                return Err(NoCounterpart::new(path, "it says nothing; leave it out"));
            }
            for (inner, value) in object {
                let Some((outer, _)) = grouped.fields.iter().find(|(_, name)| *name == inner) else {
                    let known: Vec<&str> = grouped.fields.iter().map(|(_, name)| *name).collect();
                    return Err(NoCounterpart::new(
                        format!("{path}.{}", crate::node::shorten(&inner)),
                        format!("the language has no such field; there are {}", known.join(", ")),
                    ));
                };
                out.insert((*outer).to_owned(), value);
            }
        } else if grouped
            .fields
            .iter()
            .any(|(outer, _)| is_aside(&key, ASIDE_BETA, outer))
        {
            out.insert(format!("{ASIDE_BETA}{key}"), value);
        } else {
            let was_alpha = key.starts_with(ASIDE_ALPHA) && is_aside(&key, ASIDE_ALPHA, grouped.object);
            let key = match key.strip_prefix(ASIDE_ALPHA).filter(|_| was_alpha) {
                Some(own) => own.to_owned(),
                None => key,
            };
            out.insert(key, value);
        }
    }
    Ok(out)
}

/// The JSON Schema of a document of a version (draft 2020-12).
pub fn json_schema(version: Version) -> Value {
    let mut schema = crate::document::json_schema();
    if version == Version::V1Alpha1 {
        return schema;
    }
    schema["properties"]["apiVersion"] = json!({
        "const": version.api_version(),
        "description": format!("`{}`.", version.api_version()),
        "type": "string",
    });
    group(
        &mut schema,
        "/properties/spec",
        &ACCOUNTABILITY,
        inner::<Accountability>(),
    );
    for rule in ["IngressRule", "EgressRule"] {
        group(&mut schema, &format!("/$defs/{rule}"), &VALID, inner::<Validity>());
    }
    schema
}

/// The schema of an object that has to say something.
fn inner<T: JsonSchema>() -> Value {
    let mut schema = schemars::schema_for!(T).to_value();
    if let Some(schema) = schema.as_object_mut() {
        schema.remove("$schema");
        schema.remove("title");
        schema.insert("minProperties".to_owned(), json!(1));
    }
    schema
}

fn group(schema: &mut Value, pointer: &str, grouped: &Grouped, object: Value) {
    // The schema of `spec` stands in place or is referred to.
    let reference = schema
        .pointer(pointer)
        .and_then(|part| part.get("$ref"))
        .and_then(Value::as_str);
    let pointer = reference.map_or_else(
        || pointer.to_owned(),
        |reference| reference.trim_start_matches('#').to_owned(),
    );
    let properties = schema.pointer_mut(&pointer).and_then(|part| part.get_mut("properties"));
    if let Some(properties) = properties.and_then(Value::as_object_mut) {
        for (outer, _) in grouped.fields {
            properties.remove(*outer);
        }
        properties.insert(grouped.object.to_owned(), object);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn object(version: Version, spec: Value) -> Value {
        json!({
            "apiVersion": version.api_version(), "kind": KIND,
            "metadata": {"name": "a", "namespace": "b", "uid": "c"}, "spec": spec, "status": {"objects": 3},
        })
    }

    fn converted(mut object: Value, to: Version) -> Value {
        convert(&mut object, to).unwrap();
        object
    }

    #[test]
    fn what_belongs_together_is_grouped_and_comes_back() {
        let alpha = object(
            Version::V1Alpha1,
            json!({
                "owner": "a", "reason": "b", "ticket": "c", "mode": "enforce", "subject": {"cidrs": []},
                "ingress": [{"name": "x", "validFrom": "1", "validUntil": "2"}, {"name": "y"}],
                "egress": [{"name": "z", "validUntil": "3"}],
            }),
        );
        let beta = converted(alpha.clone(), Version::V1Beta1);
        let expected = object(
            Version::V1Beta1,
            json!({
                "accountability": {"owner": "a", "reason": "b", "ticket": "c"}, "mode": "enforce", "subject": {"cidrs": []},
                "ingress": [{"name": "x", "valid": {"from": "1", "until": "2"}}, {"name": "y"}],
                "egress": [{"name": "z", "valid": {"until": "3"}}],
            }),
        );
        assert_eq!(beta, expected);
        assert_eq!(converted(beta, Version::V1Alpha1), alpha);
        assert_eq!(converted(alpha.clone(), Version::V1Alpha1), alpha);
    }

    #[test]
    fn what_has_no_counterpart_is_refused_at_its_field() {
        let cases = [
            (json!({"accountability": {}}), "spec.accountability"),
            (json!({"accountability": 3}), "spec.accountability"),
            (json!({"accountability": {"boss": "x"}}), "spec.accountability.boss"),
            (
                json!({"egress": [{}, {"valid": {"since": "x"}}]}),
                "spec.egress[1].valid.since",
            ),
        ];
        for (spec, field) in cases {
            let before = object(Version::V1Beta1, spec);
            let mut after = before.clone();
            let error = convert(&mut after, Version::V1Alpha1).unwrap_err();
            assert_eq!(error.field, field);
            assert_eq!(after, before);
        }
        for (key, value) in [
            ("kind", "Pod"),
            ("apiVersion", "garrison.dev/v2"),
            ("apiVersion", "other/v1beta1"),
        ] {
            let mut odd = object(Version::V1Beta1, json!({}));
            odd[key] = json!(value);
            assert_eq!(convert(&mut odd, Version::V1Alpha1).unwrap_err().field, key);
        }
        for mut nothing in [json!(null), json!([]), json!(3)] {
            assert!(convert(&mut nothing, Version::V1Beta1).is_err());
        }
    }

    #[test]
    fn the_schemas_differ_in_what_is_grouped_alone() {
        let (alpha, beta) = (json_schema(Version::V1Alpha1), json_schema(Version::V1Beta1));
        let has = |schema: &Value, text: &str| schema.to_string().contains(&format!("\"{text}\":"));
        for name in ["owner", "ticket", "validFrom", "validUntil"] {
            assert!(has(&alpha, name));
        }
        for name in ["accountability", "valid", "minProperties"] {
            assert!(has(&beta, name) && !has(&alpha, name), "{name}");
        }
        assert!(!has(&beta, "validFrom") && !has(&beta, "validUntil"));
        assert_eq!(beta["properties"]["apiVersion"]["const"], "garrison.dev/v1beta1");
    }

    /// Names that matter, and names that only look like them.
    fn map(grouped: &'static Grouped) -> impl Strategy<Value = Map<String, Value>> {
        let mut names: Vec<String> = vec!["other".to_owned(), grouped.object.to_owned()];
        names.extend(grouped.fields.iter().map(|(outer, _)| (*outer).to_owned()));
        let key = (
            prop::sample::select(names),
            prop::collection::vec(prop::sample::select(vec![ASIDE_ALPHA, ASIDE_BETA]), 0..3),
        )
            .prop_map(|(name, before)| format!("{}{name}", before.concat()));
        let value = prop_oneof![
            Just(json!("x")),
            Just(json!(3)),
            Just(Value::Null),
            Just(json!({})),
            Just(json!({"owner": "y"})),
            Just(json!({"from": "y", "odd": 1}))
        ];
        prop::collection::btree_map(key, value, 0..6).prop_map(|map| map.into_iter().collect())
    }

    fn spec() -> impl Strategy<Value = Value> {
        let rules = || prop::collection::vec(map(&VALID).prop_map(Value::Object), 0..3);
        (map(&ACCOUNTABILITY), rules(), rules()).prop_map(|(mut spec, ingress, egress)| {
            spec.insert("ingress".to_owned(), Value::Array(ingress));
            spec.insert("egress".to_owned(), Value::Array(egress));
            Value::Object(spec)
        })
    }

    proptest! {
        #[test]
        fn nothing_is_lost_on_the_way_and_back(spec in spec()) {
            let alpha = object(Version::V1Alpha1, spec.clone());
            let there = converted(alpha.clone(), Version::V1Beta1);
            prop_assert_eq!(converted(there, Version::V1Alpha1), alpha);
            let beta = object(Version::V1Beta1, spec);
            let mut there = beta.clone();
            if convert(&mut there, Version::V1Alpha1).is_ok() {
                prop_assert_eq!(converted(there, Version::V1Beta1), beta);
            }
        }
    }
}
