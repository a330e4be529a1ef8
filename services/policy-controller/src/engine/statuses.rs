//! What the policies' statuses say, and what keeps a policy until its objects are gone.

use garrison_ztp::Version;
use kube::{
    Api, Client,
    api::{DynamicObject, Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{
    Engine, FINALIZER, Failure, MANAGER, Place,
    book::Part,
    observe::labels_of,
    places::{has_finalizer, is_going},
    policy_resource, seconds, stamp,
};
use crate::domain::{
    check::check,
    rollout::Phase,
    source::{Kind, PolicyId},
    status::{Facts, Programmed, Restored, says, status},
};

impl Engine {
    /// Writes a policy's status when it says something else, and its finalizer.
    pub(crate) async fn status(&self, id: &PolicyId) -> Result<(), Failure> {
        let Some(object) = self.stores.policy(id) else {
            // It is gone, and so is what was made of it.
            let mut book = self.book();
            book.parts.remove(id);
            book.restored.remove(id);
            book.rollouts.remove(id);
            book.released.remove(id);
            book.told.remove(id);
            return Ok(());
        };
        let api = api(&self.client, id);
        if is_going(&object) {
            return self.release(&api, id, &object).await;
        }
        let parts: Vec<(Place, Part)> = {
            let book = self.book();
            let parts = book.parts.get(id);
            parts
                .into_iter()
                .flatten()
                .map(|(place, part)| (place.clone(), part.clone()))
                .collect()
        };
        self.keep(&api, id, &object, &parts).await?;
        let nothing = Value::Null;
        let before = object.data.get("status").unwrap_or(&nothing);
        let spec = object.data.get("spec").unwrap_or(&nothing);
        let generation = object.metadata.generation.unwrap_or_default();
        let findings = check(
            id,
            Version::V1Alpha1,
            &labels_of(&object),
            spec,
            self.config.controller.lowest_namespaced_tier,
        );
        let watched = self.book().rollouts.get(id).cloned();
        let enforced = parts
            .iter()
            .find(|(_, part)| part.plan.enforced)
            .map(|(_, part)| part.plan.generation);
        let returned = watched
            .as_ref()
            .filter(|watched| watched.rollout.phase == Phase::Returned && watched.rollout.generation == generation);
        let problem = parts.iter().find_map(|(_, part)| part.problem.clone());
        let missing = {
            let missing = self.missing.read().unwrap_or_else(std::sync::PoisonError::into_inner);
            missing.values().next().cloned().or_else(|| self.held())
        };
        let enforce = enforces(spec);
        let programmed = if findings.iter().any(|finding| finding.refused) {
            Programmed::Invalid
        } else if let Some(problem) = problem {
            problem
        } else if let Some(watched) = returned
            && id.kind == Kind::Namespaced
            && enforced
                != watched
                    .previous
                    .as_ref()
                    .filter(|previous| enforces(&previous.spec))
                    .map(|previous| previous.generation)
        {
            Programmed::Failed("The version before is being written again".to_owned())
        } else if let Some(watched) = returned {
            let denied = watched.rollout.denied.unwrap_or_default();
            Programmed::Returned(match &watched.previous {
                Some(previous) => format!(
                    "Generation {generation} denied {denied} connections a second: generation {} is enforced again",
                    previous.generation
                ),
                None => format!("Generation {generation} denied {denied} connections a second: nothing is enforced"),
            })
        } else if !enforce {
            Programmed::NotEnforced
        } else if let Some(missing) = missing {
            Programmed::TargetMissing(missing)
        } else if id.kind == Kind::Namespaced && enforced != Some(generation) {
            Programmed::Failed("It is being written".to_owned())
        } else {
            Programmed::Yes
        };
        let mut gaps: Vec<_> = parts
            .iter()
            .flat_map(|(_, part)| part.plan.gaps.iter().cloned())
            .collect();
        gaps.sort();
        gaps.dedup();
        let restored = {
            let mut book = self.book();
            let entry = book.restored.entry(id.clone());
            entry.or_insert_with(|| Restored::read(before)).clone()
        };
        let now = stamp(seconds());
        let wanted = status(
            &Facts {
                generation,
                enforced_generation: enforced,
                findings: &findings,
                programmed: &programmed,
                objects: parts.iter().map(|(_, part)| part.plan.objects).sum(),
                gaps: &gaps,
                restored: &restored,
                rollout: watched.map(|watched| watched.rollout.to_status(stamp)),
            },
            before,
            &now,
        );
        if says(before, &wanted) {
            return Ok(());
        }
        let params = PatchParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let patched = api
            .patch_status(&id.name, &params, &Patch::Merge(json!({"status": wanted})))
            .await;
        match patched {
            Ok(_) => {}
            Err(kube::Error::Api(answer)) if answer.is_not_found() => return Ok(()),
            Err(error) => return Err(Failure::api(format!("writing the status of {id}"))(error)),
        }
        self.announce(id, &object, generation, &programmed, &wanted).await;
        Ok(())
    }

    /// Tells once a generation what became of it.
    async fn announce(
        &self,
        id: &PolicyId,
        object: &DynamicObject,
        generation: i64,
        programmed: &Programmed,
        status: &Value,
    ) {
        let condition = |type_: &str, key: &str| {
            let conditions = status["conditions"].as_array().into_iter().flatten();
            let found = conditions.into_iter().find(|condition| condition["type"] == type_);
            found
                .and_then(|condition| condition[key].as_str())
                .unwrap_or_default()
                .to_owned()
        };
        let (warning, reason, message) = match programmed {
            Programmed::Yes => (false, "Programmed", condition("Programmed", "message")),
            Programmed::Invalid => (true, "Invalid", condition("Accepted", "message")),
            Programmed::Returned(message) => (true, "Returned", message.clone()),
            Programmed::TargetMissing(message) => (true, "TargetMissing", message.clone()),
            // A conflict is told where it is found; the others pass.
            Programmed::Conflict(_) | Programmed::Failed(_) | Programmed::NotEnforced => return,
        };
        let news = (generation, reason.to_owned());
        if self.book().told.insert(id.clone(), news.clone()) == Some(news) {
            return;
        }
        let uid = object.metadata.uid.clone().unwrap_or_default();
        self.tell(id, &uid, warning, reason, "Write", message).await;
    }

    /// A policy that has objects which no owner reference can follow is kept until they are gone.
    async fn keep(
        &self,
        api: &Api<DynamicObject>,
        id: &PolicyId,
        object: &DynamicObject,
        parts: &[(Place, Part)],
    ) -> Result<(), Failure> {
        let needed = id.kind == Kind::Namespaced
            && parts
                .iter()
                .any(|(place, part)| *place == Place::Cluster && part.plan.objects > 0);
        if needed == has_finalizer(object) {
            return Ok(());
        }
        if !needed && self.has_global_targets() {
            // It may be needed again in a moment; it goes with the policy.
            return Ok(());
        }
        self.finalizer(api, id, object, needed).await
    }

    /// Lets a policy go once nothing of it is left.
    async fn release(&self, api: &Api<DynamicObject>, id: &PolicyId, object: &DynamicObject) -> Result<(), Failure> {
        if !has_finalizer(object) || !self.book().released.contains(id) {
            return Ok(());
        }
        self.finalizer(api, id, object, false).await
    }

    async fn finalizer(
        &self,
        api: &Api<DynamicObject>,
        id: &PolicyId,
        object: &DynamicObject,
        wanted: bool,
    ) -> Result<(), Failure> {
        let mut finalizers = object.metadata.finalizers.clone().unwrap_or_default();
        finalizers.retain(|finalizer| finalizer != FINALIZER);
        if wanted {
            finalizers.push(FINALIZER.to_owned());
        }
        // With the version that was read, so that another's finalizer is not lost.
        let patch = json!({"metadata": {
            "finalizers": finalizers,
            "resourceVersion": object.metadata.resource_version,
        }});
        match api.patch(&id.name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(answer)) if answer.is_not_found() => Ok(()),
            Err(error) => Err(Failure::api(format!("the finalizer of {id}"))(error)),
        }
    }
}

pub(super) fn enforces(spec: &Value) -> bool {
    spec.get("mode").and_then(Value::as_str) == Some("enforce")
}

fn api(client: &Client, id: &PolicyId) -> Api<DynamicObject> {
    let resource = policy_resource(id.kind);
    match &id.namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}
