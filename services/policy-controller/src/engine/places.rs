//! One place: what is to be there, what is there, and the difference written.

use std::{
    collections::{BTreeMap, HashMap},
    pin::Pin,
    sync::{Arc, PoisonError},
};

use futures::StreamExt as _;
use kube::api::DynamicObject;
use serde_json::Value;

use super::{
    Engine, FINALIZER, Failure, Place, STATUS, Task, Written,
    book::Part,
    observe::{ISTIO, labels_of, object_key, policy_id},
    seconds,
    write::is_as_wanted,
};
use crate::domain::{
    plan::{ObjectKey, Output, Plan, Setting},
    source::{PolicyId, Source},
    status::Programmed,
};

impl Engine {
    /// Brings a namespace up to date.
    pub(crate) async fn namespace(&self, namespace: &str) -> Result<(), Failure> {
        if !self.synced() {
            return Err(Failure::NotSynced);
        }
        let place = Place::Namespace(namespace.to_owned());
        let there = self.stores.namespace(namespace);
        let Some(there) = there.filter(|object| object.metadata.deletion_timestamp.is_none()) else {
            // What was in it goes with it.
            self.forget(&place);
            return Ok(());
        };
        let labels = labels_of(&there);
        let Some(sources) = self.sources(|source| source.governs(namespace, &labels)) else {
            // A version is still to be decided about, and asks for the place when it is.
            return Ok(());
        };
        let now = seconds();
        // Cutting thousands of rules is work that must not hold the executor.
        let held = self.held().is_some();
        let (targets, meshes) = (self.targets(), self.meshes());
        let setting = Setting {
            targets: &targets,
            meshes: &meshes,
            now,
        };
        let plan = tokio::task::block_in_place(|| self.planner.namespace(namespace, &sources, &setting));
        if let Some(at) = plan.changes_at {
            self.later(Task::Namespace(namespace.to_owned()), at - now);
        }
        self.realise(place, plan, held).await
    }

    /// Brings up to date what is of the cluster as a whole.
    pub(crate) async fn cluster(&self) -> Result<(), Failure> {
        if !self.synced() {
            return Err(Failure::NotSynced);
        }
        let Some(sources) = self.sources(|_| true) else {
            return Ok(());
        };
        let now = seconds();
        let plan = if self.has_global_targets() {
            let (targets, meshes) = (self.targets(), self.meshes());
            let setting = Setting {
                targets: &targets,
                meshes: &meshes,
                now,
            };
            tokio::task::block_in_place(|| self.planner.cluster(&sources, &setting))
        } else {
            Plan::default()
        };
        if let Some(at) = plan.changes_at {
            self.later(Task::Cluster, at - now);
        }
        let going: Vec<PolicyId> = self
            .stores
            .policies()
            .into_iter()
            .filter(|(_, object)| is_going(object) && has_finalizer(object))
            .map(|(id, _)| id)
            .collect();
        self.realise(Place::Cluster, plan, false).await?;
        for id in going {
            self.book().released.insert(id.clone());
            self.queue.add(Task::Status(id));
        }
        Ok(())
    }

    fn later(&self, task: Task, seconds: i64) {
        let pause = std::time::Duration::from_secs(u64::try_from(seconds).unwrap_or_default().min(86_400));
        self.queue.add_after(task, pause);
    }

    /// The policies that count, as they count; `None` while one is still to be decided about.
    fn sources(&self, wanted: impl Fn(&Source) -> bool) -> Option<Vec<Source>> {
        let mut sources = Vec::new();
        for (id, object) in self.stores.policies() {
            if is_going(&object) {
                continue;
            }
            let source = source(&id, &object);
            if self.config.rollout.is_some() {
                match self.counting(source)? {
                    Some(source) if wanted(&source) => sources.push(source),
                    _ => {}
                }
            } else if wanted(&source) {
                sources.push(source);
            }
        }
        sources.sort_by(|a, b| a.id.cmp(&b.id));
        Some(sources)
    }

    fn forget(&self, place: &Place) {
        let mut book = self.book();
        let mut changed = Vec::new();
        for (id, parts) in &mut book.parts {
            if parts.remove(place).is_some() {
                changed.push(id.clone());
            }
        }
        let gone = |key: &ObjectKey| match place {
            Place::Namespace(namespace) => key.namespace.as_ref() == Some(namespace),
            Place::Cluster => false,
        };
        book.written.retain(|key, _| !gone(key));
        book.gone.retain(|key| !gone(key));
        drop(book);
        for id in changed {
            self.queue.add_after(Task::Status(id), STATUS);
        }
    }

    /// The kinds whose objects are planned in a place.
    fn kinds_of(&self, place: &Place) -> Vec<Written> {
        let local = matches!(place, Place::Namespace(_));
        let written = self.written.read().unwrap_or_else(PoisonError::into_inner);
        written.iter().filter(|kind| kind.local == local).cloned().collect()
    }

    /// `held` says that nothing was planned for Istio, because it is not known what its mesh is called.
    async fn realise(&self, place: Place, plan: Plan, held: bool) -> Result<(), Failure> {
        let kinds = self.kinds_of(&place);
        let mut actual: HashMap<ObjectKey, (Written, Arc<DynamicObject>)> = HashMap::new();
        for kind in &kinds {
            for object in kind.store.state() {
                let here = match &place {
                    Place::Namespace(namespace) => object.metadata.namespace.as_ref() == Some(namespace),
                    Place::Cluster => true,
                };
                if here {
                    actual.insert(object_key(&kind.resource, &object), (kind.clone(), object));
                }
            }
        }
        let mut problems: BTreeMap<PolicyId, Programmed> = BTreeMap::new();
        let mut failed = 0;
        let mut note = |output: &Output, problem: Programmed, failed: &mut usize| {
            if !matches!(problem, Programmed::Conflict(_)) {
                *failed += 1;
            }
            let owners: Vec<PolicyId> = match &output.owner {
                Some(owner) => vec![owner.clone()],
                None => plan.policies.keys().cloned().collect(),
            };
            for owner in owners {
                problems.entry(owner).or_insert_with(|| problem.clone());
            }
        };
        // What others refer to comes first, and goes last.
        for step in 0..RANKS {
            let mut writes: Vec<Job<'_, (Output, Result<(), Programmed>)>> = Vec::new();
            for (key, output) in plan.outputs.iter().filter(|(key, _)| rank(key) == step) {
                let there = actual.get(key).map(|(_, object)| Arc::clone(object));
                if there.as_ref().is_some_and(|object| is_as_wanted(output, object)) {
                    continue;
                }
                let of =
                    |kind: &&Written| kind.resource.kind == key.kind && kind.resource.api_version == key.api_version;
                let (kind, key, output) = (kinds.iter().find(of).cloned(), key.clone(), output.clone());
                writes.push(Box::pin(async move {
                    let outcome = match kind {
                        Some(kind) => self.write(&kind, &key, &output, there.as_deref()).await,
                        None => Err(Programmed::TargetMissing(format!("the cluster has no {}", key.kind))),
                    };
                    (output, outcome)
                }));
            }
            let mut outcomes = futures::stream::iter(writes).buffer_unordered(self.config.controller.concurrency);
            while let Some((output, outcome)) = outcomes.next().await {
                if let Err(problem) = outcome {
                    note(&output, problem, &mut failed);
                }
            }
        }
        // Nothing is taken away before what replaces it is there.
        for step in (0..RANKS).rev() {
            if failed > 0 {
                break;
            }
            let mut deletes: Vec<Job<'_, bool>> = Vec::new();
            for (key, (kind, object)) in &actual {
                // What nothing can be said about at present is not taken away.
                if held && kind.resource.group == ISTIO {
                    continue;
                }
                // Without what a policy with errors had written before, all that it protects would be open.
                let kept =
                    owner_of(object).is_some_and(|owner| plan.policies.get(&owner).is_some_and(|made| !made.valid));
                if rank(key) == step && !kept && !plan.outputs.contains_key(key) {
                    let (kind, key, object) = (kind.clone(), key.clone(), Arc::clone(object));
                    deletes.push(Box::pin(async move { self.delete(&kind, &key, &object).await }));
                }
            }
            let mut outcomes = futures::stream::iter(deletes).buffer_unordered(self.config.controller.concurrency);
            while let Some(gone) = outcomes.next().await {
                failed += usize::from(!gone);
            }
        }
        self.enter(&place, &plan, &problems);
        if failed > 0 {
            return Err(Failure::Objects(failed));
        }
        Ok(())
    }

    /// Enters what became of the policies.
    fn enter(&self, place: &Place, plan: &Plan, problems: &BTreeMap<PolicyId, Programmed>) {
        let mut changed = Vec::new();
        let mut book = self.book();
        for (id, made) in &plan.policies {
            let part = Part {
                plan: made.clone(),
                problem: problems.get(id).cloned(),
            };
            let parts = book.parts.entry(id.clone()).or_default();
            if parts.get(place) != Some(&part) {
                parts.insert(place.clone(), part);
                changed.push(id.clone());
            }
        }
        for (id, parts) in &mut book.parts {
            if !plan.policies.contains_key(id) && parts.remove(place).is_some() {
                changed.push(id.clone());
            }
        }
        drop(book);
        for id in changed {
            self.queue.add_after(Task::Status(id), STATUS);
        }
    }
}

type Job<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

const RANKS: u8 = 3;

// Calico refuses a policy of a tier that is not there; a port of Linkerd's is closed from when it has a Server, and so
// what opens it comes before; a token that nobody checks is nobody's.
fn rank(key: &ObjectKey) -> u8 {
    match (key.kind.as_str(), &key.namespace) {
        ("Tier" | "MeshTLSAuthentication" | "NetworkAuthentication" | "RequestAuthentication", _) => 0,
        ("AuthorizationPolicy", _) if key.api_version.starts_with("policy.linkerd.io/") => 1,
        (_, None) => 1,
        _ => 2,
    }
}

/// A policy as its object has it.
pub(crate) fn source(id: &PolicyId, object: &DynamicObject) -> Source {
    Source {
        id: id.clone(),
        uid: object.metadata.uid.clone().unwrap_or_default(),
        generation: object.metadata.generation.unwrap_or_default(),
        spec: object.data.get("spec").cloned().unwrap_or(Value::Null),
    }
}

pub(crate) fn is_going(object: &DynamicObject) -> bool {
    object.metadata.deletion_timestamp.is_some()
}

pub(crate) fn has_finalizer(object: &DynamicObject) -> bool {
    let finalizers = object.metadata.finalizers.as_deref().unwrap_or_default();
    finalizers.iter().any(|finalizer| finalizer == FINALIZER)
}

/// The policy that an object was made of, as its labels tell.
pub(crate) fn owner_of(object: &DynamicObject) -> Option<PolicyId> {
    use crate::domain::{
        plan::{POLICY, POLICY_KIND, POLICY_NAMESPACE},
        source::Kind,
    };
    let labels = object.metadata.labels.as_ref()?;
    let kind = Kind::from_name(labels.get(POLICY_KIND)?)?;
    let mut id = policy_id(kind, object);
    id.name.clone_from(labels.get(POLICY)?);
    id.namespace = labels.get(POLICY_NAMESPACE).cloned();
    Some(id)
}
