//! One object: compared, written, taken away; and what others did to it.

use kube::{
    Api, Client,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions},
};
use serde_json::Value;

use super::{
    Engine, MANAGER, STATUS, Task, Written, book::Mark, brief, observe::as_value, places::owner_of, seconds, stamp,
};
use crate::domain::{
    difference::{Change, differences, last_change},
    plan::{CONTROLLED_BY, CONTROLLER, ObjectKey, Output, WRITTEN},
    source::PolicyId,
    status::{Programmed, Restored},
};

/// Fields that a report of a change lists.
const FIELDS: usize = 8;

impl Engine {
    /// Makes an object as it is to be. `there` is what the watch told of it.
    pub(crate) async fn write(
        &self,
        kind: &Written,
        key: &ObjectKey,
        output: &Output,
        there: Option<&DynamicObject>,
    ) -> Result<(), Programmed> {
        let api = api(&self.client, kind, key);
        let failed = |error: kube::Error| {
            let error = brief(&error);
            tracing::warn!(object = %key, error, "not written; trying again");
            Programmed::Failed(format!("{key}: {error}"))
        };
        let mut tampered: Option<(Option<Change>, Vec<String>)> = None;
        match there {
            Some(object) => {
                let found = wrong(output, object);
                if found.is_empty() {
                    return Ok(());
                }
                // What was written here, and is not that any more, another changed.
                let annotations = object.metadata.annotations.as_ref();
                let hash = annotations.and_then(|annotations| annotations.get(WRITTEN));
                // Or was written in this term, should the annotation be changed too.
                let marked = self.book().written.get(key).is_some_and(|mark| {
                    mark.hash == output.hash && Some(&mark.version) != object.metadata.resource_version.as_ref()
                });
                if hash == Some(&output.hash) || marked {
                    tampered = Some((self.who(object), found));
                }
            }
            None => {
                let was_there = self.book().gone.remove(key);
                let there = api.get_opt(&key.name).await.map_err(failed)?;
                match there {
                    // The watch has not told of it yet.
                    Some(object) if wrong(output, &object).is_empty() => {
                        self.remember(key, output, &object);
                        return Ok(());
                    }
                    Some(object) if !is_own(&object) => {
                        return Err(self.conflict(key, output).await);
                    }
                    Some(object) if was_there => {
                        // It lost the label by which it is watched.
                        tampered = Some((self.who(&object), wrong(output, &object)));
                    }
                    None if was_there => tampered = Some((None, vec!["the object was deleted".to_owned()])),
                    _ => {}
                }
            }
        }
        if !self.acts() {
            return Err(Programmed::Failed(format!("{key}: another replica leads")));
        }
        let applied = self.apply(&api, key, output).await;
        self.metrics.wrote(&key.kind, "apply", applied.is_ok());
        let object = applied.map_err(failed)?;
        self.remember(key, output, &object);
        tracing::debug!(object = %key, "written");
        if let Some((change, fields)) = tampered {
            self.restored(key, output.owner.as_ref(), change, &fields).await;
        }
        Ok(())
    }

    /// Server-side apply takes back the fields that are written here. What another added beside them stays through
    /// that, so an object that still differs is replaced.
    async fn apply(
        &self,
        api: &Api<DynamicObject>,
        key: &ObjectKey,
        output: &Output,
    ) -> Result<DynamicObject, kube::Error> {
        let params = PatchParams::apply(MANAGER).force();
        let mut object = api.patch(&key.name, &params, &Patch::Apply(&output.manifest)).await?;
        if wrong(output, &object).is_empty() {
            return Ok(object);
        }
        object.data["spec"] = output.manifest["spec"].clone();
        object.metadata.managed_fields = None;
        let params = PostParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PostParams::default()
        };
        api.replace(&key.name, &params, &object).await
    }

    /// Takes an object away. Answers whether it is gone.
    pub(crate) async fn delete(&self, kind: &Written, key: &ObjectKey, object: &DynamicObject) -> bool {
        if object.metadata.deletion_timestamp.is_some() {
            return true;
        }
        if !self.acts() {
            return false;
        }
        {
            let mut book = self.book();
            book.written.remove(key);
            book.gone.remove(key);
        }
        // Not another of the same name that was made meanwhile.
        let params = DeleteParams::background().preconditions(Preconditions {
            uid: object.metadata.uid.clone(),
            resource_version: None,
        });
        let outcome = api(&self.client, kind, key).delete(&key.name, &params).await;
        let gone = match outcome {
            Ok(_) => true,
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => true,
            Err(error) => {
                tracing::warn!(object = %key, error = brief(&error), "not taken away; trying again");
                false
            }
        };
        self.metrics.wrote(&key.kind, "delete", gone);
        gone
    }

    fn remember(&self, key: &ObjectKey, output: &Output, object: &DynamicObject) {
        let mut book = self.book();
        book.gone.remove(key);
        if let Some(version) = &object.metadata.resource_version {
            let mark = Mark {
                version: version.clone(),
                hash: output.hash.clone(),
            };
            book.written.insert(key.clone(), mark);
        }
    }

    fn who(&self, object: &DynamicObject) -> Option<Change> {
        let value = as_value(object);
        last_change(
            value.pointer("/metadata/managedFields").unwrap_or(&Value::Null),
            MANAGER,
        )
    }

    async fn conflict(&self, key: &ObjectKey, output: &Output) -> Programmed {
        let message = format!(
            "{key} is there and was not made by this controller: it stays as it is. Rename it, or the policy \
             (GAR-CTL-0005)"
        );
        if let Some(owner) = &output.owner
            && let Some(policy) = self.stores.policy(owner)
        {
            let (generation, uid) = (
                policy.metadata.generation.unwrap_or_default(),
                policy.metadata.uid.clone(),
            );
            let news = (generation, "Conflict".to_owned());
            let known = self.book().told.insert(owner.clone(), news.clone());
            if known != Some(news) {
                self.tell(
                    owner,
                    &uid.unwrap_or_default(),
                    true,
                    "Conflict",
                    "Write",
                    message.clone(),
                )
                .await;
            }
        }
        Programmed::Conflict(message)
    }

    /// Reports a change that was undone.
    async fn restored(&self, key: &ObjectKey, owner: Option<&PolicyId>, change: Option<Change>, fields: &[String]) {
        self.metrics.restored(&key.kind);
        let by = match &change {
            Some(change) if change.time.is_empty() => format!("{} ({})", change.manager, change.operation),
            Some(change) => format!("{} ({} at {})", change.manager, change.operation, change.time),
            None => "somebody whom the API server did not record".to_owned(),
        };
        let note = format!(
            "{key} was changed by {by}: {}; it is as before again",
            fields.join(", ")
        );
        tracing::warn!(object = %key, by, fields = fields.join(", "), "a change by another was undone");
        let Some(owner) = owner else { return };
        let Some(policy) = self.stores.policy(owner) else {
            return;
        };
        {
            let mut book = self.book();
            let restored = book
                .restored
                .entry(owner.clone())
                .or_insert_with(|| Restored::read(policy.data.get("status").unwrap_or(&Value::Null)));
            restored.add(&key.to_string(), change.as_ref(), fields, &stamp(seconds()));
        }
        self.queue.add_after(Task::Status(owner.clone()), STATUS);
        let uid = policy.metadata.uid.clone().unwrap_or_default();
        self.tell(owner, &uid, true, "Restored", "Compare", note).await;
    }
}

fn api(client: &Client, kind: &Written, key: &ObjectKey) -> Api<DynamicObject> {
    match &key.namespace {
        Some(namespace) if kind.namespaced => Api::namespaced_with(client.clone(), namespace, &kind.resource),
        _ => Api::all_with(client.clone(), &kind.resource),
    }
}

/// Whether an object is as it is to be.
pub(crate) fn is_as_wanted(output: &Output, object: &DynamicObject) -> bool {
    wrong(output, object).is_empty()
}

/// Where an object is not as it is to be.
fn wrong(output: &Output, object: &DynamicObject) -> Vec<String> {
    let nothing = Value::Null;
    let wanted = &output.manifest;
    let actual_spec = object.data.get("spec").unwrap_or(&nothing);
    let mut found = differences(&wanted["spec"], actual_spec, "spec", FIELDS);
    let pairs = |key: &str| wanted["metadata"][key].as_object().cloned().unwrap_or_default();
    for (name, map) in [
        ("labels", &object.metadata.labels),
        ("annotations", &object.metadata.annotations),
    ] {
        for (key, value) in pairs(name) {
            let there = map.as_ref().and_then(|map| map.get(&key));
            if there.map(String::as_str) != value.as_str() && found.len() < FIELDS {
                found.push(format!("metadata.{name}[{key:?}]"));
            }
        }
    }
    let owners = object.metadata.owner_references.as_deref().unwrap_or_default();
    for owner in wanted["metadata"]["ownerReferences"].as_array().into_iter().flatten() {
        if !owners
            .iter()
            .any(|there| Some(there.uid.as_str()) == owner["uid"].as_str())
            && found.len() < FIELDS
        {
            found.push("metadata.ownerReferences".to_owned());
        }
    }
    found
}

/// Whether the controller made an object: by its label, or, when another took that away, by who wrote its fields.
fn is_own(object: &DynamicObject) -> bool {
    let labelled = object
        .metadata
        .labels
        .as_ref()
        .is_some_and(|labels| labels.get(CONTROLLED_BY).is_some_and(|value| value == CONTROLLER));
    let managed = object.metadata.managed_fields.as_deref().unwrap_or_default();
    labelled || owner_of(object).is_some() || managed.iter().any(|entry| entry.manager.as_deref() == Some(MANAGER))
}
