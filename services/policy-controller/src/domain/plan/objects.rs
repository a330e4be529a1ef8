//! Objects that are to be there: how they are known, and what is written on them.

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::{
    config::TargetName,
    domain::source::{GROUP, PolicyId, Source, VERSION},
};

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

/// The objects of a compiled file.
pub(super) fn documents(content: &str) -> Vec<Value> {
    // The compilers wrote it, so it reads.
    serde_saphyr::from_multiple(content).unwrap_or_default()
}

/// An object as it is to be written, with its key. `source` is the policy that it comes from; none when it serves several.
pub(super) fn output(mut manifest: Value, target: TargetName, source: Option<&Source>) -> Option<(ObjectKey, Output)> {
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
                    "apiVersion": format!("{}/{}", GROUP, VERSION),
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

/// A hash in hexadecimal digits.
pub(super) fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}
