//! What is there, as watches tell it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use futures::StreamExt as _;
use kube::{
    Api, ResourceExt as _,
    api::{ApiResource, DynamicObject, GroupVersionKind},
    discovery::{self, Scope},
    runtime::{
        WatchStreamExt as _,
        reflector::{self, Store, store::Writer},
        watcher,
    },
};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Engine, GATHER, Task, Written, policy_resource};
use crate::{
    config::TargetName,
    domain::{
        plan::{CONTROLLED_BY, CONTROLLER, ObjectKey, is_local},
        source::{Kind, PolicyId},
    },
};

/// How often kinds that are missing are looked for.
const DISCOVER: Duration = Duration::from_secs(20);

/// The group of Istio's policies.
pub(crate) const ISTIO: &str = "security.istio.io";

/// The kinds that a target writes: group, version, kind.
fn kinds(target: TargetName) -> &'static [(&'static str, &'static str, &'static str)] {
    const NETWORK_POLICY: (&str, &str, &str) = ("networking.k8s.io", "v1", "NetworkPolicy");
    match target {
        TargetName::Kubernetes => &[NETWORK_POLICY],
        TargetName::ClusterNetworkPolicy => &[
            ("policy.networking.k8s.io", "v1alpha2", "ClusterNetworkPolicy"),
            NETWORK_POLICY,
        ],
        TargetName::Cilium => &[("cilium.io", "v2", "CiliumNetworkPolicy")],
        TargetName::Calico => &[
            ("projectcalico.org", "v3", "Tier"),
            ("projectcalico.org", "v3", "NetworkPolicy"),
            ("projectcalico.org", "v3", "GlobalNetworkPolicy"),
            ("projectcalico.org", "v3", "StagedNetworkPolicy"),
            ("projectcalico.org", "v3", "StagedGlobalNetworkPolicy"),
        ],
        TargetName::Istio | TargetName::IstioAmbient => &[
            (ISTIO, "v1", "AuthorizationPolicy"),
            (ISTIO, "v1", "PeerAuthentication"),
            (ISTIO, "v1", "RequestAuthentication"),
        ],
        TargetName::Linkerd => &[
            ("policy.linkerd.io", "v1beta3", "Server"),
            ("policy.linkerd.io", "v1alpha1", "AuthorizationPolicy"),
            ("policy.linkerd.io", "v1alpha1", "MeshTLSAuthentication"),
            ("policy.linkerd.io", "v1alpha1", "NetworkAuthentication"),
        ],
    }
}

/// The policies and the namespaces.
#[derive(Default)]
pub(crate) struct Stores {
    policies: [OnceLock<Store<DynamicObject>>; 2],
    namespaces: OnceLock<Store<DynamicObject>>,
    told: Mutex<HashSet<String>>,
    failing: Mutex<HashSet<String>>,
}

impl Stores {
    pub(crate) fn policies(&self) -> Vec<(PolicyId, Arc<DynamicObject>)> {
        Kind::ALL
            .into_iter()
            .zip(&self.policies)
            .filter_map(|(kind, store)| Some((kind, store.get()?)))
            .flat_map(|(kind, store)| {
                store
                    .state()
                    .into_iter()
                    .map(move |object| (policy_id(kind, &object), object))
            })
            .collect()
    }

    pub(crate) fn policy_ids(&self) -> Vec<PolicyId> {
        self.policies().into_iter().map(|(id, _)| id).collect()
    }

    pub(crate) fn policy(&self, id: &PolicyId) -> Option<Arc<DynamicObject>> {
        let index = usize::from(id.kind == Kind::Cluster);
        let mut reference = reflector::ObjectRef::new_with(&id.name, policy_resource(id.kind));
        if let Some(namespace) = &id.namespace {
            reference = reference.within(namespace);
        }
        self.policies[index].get()?.get(&reference)
    }

    pub(crate) fn namespace(&self, name: &str) -> Option<Arc<DynamicObject>> {
        self.namespaces
            .get()?
            .get(&reflector::ObjectRef::new_with(name, namespace_resource()))
    }

    pub(crate) fn namespace_names(&self) -> Vec<String> {
        let namespaces = self.namespaces.get().map(Store::state).unwrap_or_default();
        namespaces.iter().map(|namespace| namespace.name_any()).collect()
    }

    /// Whether every watch has told what was there at its beginning.
    fn complete(&self) -> bool {
        let told = locked(&self.told);
        let names = Kind::ALL.map(Kind::plural);
        names.iter().chain(&["namespaces"]).all(|name| told.contains(*name))
    }

    fn is_told(&self, watch: &str) -> bool {
        locked(&self.told).contains(watch)
    }
}

/// Which policy an object is.
pub(crate) fn policy_id(kind: Kind, object: &DynamicObject) -> PolicyId {
    PolicyId {
        kind,
        namespace: object.metadata.namespace.clone(),
        name: object.name_any(),
    }
}

fn namespace_resource() -> ApiResource {
    ApiResource {
        group: String::new(),
        version: "v1".to_owned(),
        api_version: "v1".to_owned(),
        kind: "Namespace".to_owned(),
        plural: "namespaces".to_owned(),
    }
}

/// Which object it is.
pub(crate) fn object_key(resource: &ApiResource, object: &DynamicObject) -> ObjectKey {
    ObjectKey {
        api_version: resource.api_version.clone(),
        kind: resource.kind.clone(),
        namespace: object.metadata.namespace.clone(),
        name: object.name_any(),
    }
}

enum Change<'a> {
    There(&'a DynamicObject),
    Gone(&'a DynamicObject),
    /// Everything was told anew.
    All,
}

impl Engine {
    /// Whether the policies, the namespaces and every kind that is written are known.
    pub(crate) fn synced(&self) -> bool {
        let written = self.written.read().unwrap_or_else(PoisonError::into_inner);
        self.stores.complete()
            && written
                .iter()
                .all(|kind| self.stores.is_told(&watch_name(&kind.resource)))
    }

    /// Starts the watches on policies and namespaces.
    pub(crate) async fn observe(self: Arc<Self>, watches: &mut JoinSet<()>, stop: &CancellationToken) {
        for (index, kind) in Kind::ALL.into_iter().enumerate() {
            let resource = policy_resource(kind);
            let writer = Writer::new(resource.clone());
            let _ = self.stores.policies[index].set(writer.as_reader());
            let engine = Arc::clone(&self);
            let mut seen: HashMap<PolicyId, (Option<i64>, bool, Option<String>)> = HashMap::new();
            let heed = move |change: Change<'_>| match change {
                Change::There(object) => {
                    let id = policy_id(kind, object);
                    let meta = &object.metadata;
                    let now = (meta.generation, meta.deletion_timestamp.is_some(), meta.uid.clone());
                    // A status that was written is no news.
                    if seen.insert(id.clone(), now.clone()) != Some(now) {
                        engine.policy_changed(&id);
                    }
                }
                Change::Gone(object) => {
                    let id = policy_id(kind, object);
                    seen.remove(&id);
                    engine.policy_changed(&id);
                }
                Change::All => engine.everything(),
            };
            watches.spawn(Arc::clone(&self).watch(resource, watcher::Config::default(), writer, heed, stop.clone()));
        }
        let writer = Writer::new(namespace_resource());
        let _ = self.stores.namespaces.set(writer.as_reader());
        let engine = Arc::clone(&self);
        let mut seen: HashMap<String, (Option<BTreeMap<String, String>>, bool)> = HashMap::new();
        let heed = move |change: Change<'_>| match change {
            Change::There(object) => {
                let meta = &object.metadata;
                let now = (meta.labels.clone(), meta.deletion_timestamp.is_some());
                if seen.insert(object.name_any(), now.clone()) != Some(now) {
                    engine.queue.add_after(Task::Namespace(object.name_any()), GATHER);
                }
            }
            Change::Gone(object) => {
                seen.remove(&object.name_any());
                engine.queue.add_after(Task::Namespace(object.name_any()), GATHER);
            }
            Change::All => engine.everything(),
        };
        watches.spawn(Arc::clone(&self).watch(
            namespace_resource(),
            watcher::Config::default(),
            writer,
            heed,
            stop.clone(),
        ));
    }

    /// Finds the kinds of the targets, now and whenever some are missing, and watches what was found.
    pub(crate) async fn discover(self: Arc<Self>, stop: CancellationToken) {
        let mut watches = JoinSet::new();
        let mut known: HashSet<(&str, &str, &str)> = HashSet::new();
        // NetworkPolicies are watched in any case: those of an earlier configuration have to go.
        let mut wanted = vec![(None, kinds(TargetName::Kubernetes)[0])];
        for target in &self.config.controller.targets {
            wanted.extend(kinds(*target).iter().map(|kind| (Some(*target), *kind)));
        }
        loop {
            let mut missing = BTreeMap::new();
            for (target, kind) in &wanted {
                if known.contains(kind) {
                    continue;
                }
                let gvk = GroupVersionKind::gvk(kind.0, kind.1, kind.2);
                match discovery::pinned_kind(&self.client, &gvk).await {
                    Ok((resource, capabilities)) => {
                        known.insert(*kind);
                        let of_all = |other: &Option<TargetName>| other.is_some_and(|other| !is_local(other));
                        let global = wanted.iter().any(|(other, k)| k == kind && of_all(other));
                        let namespaced = capabilities.scope == Scope::Namespaced;
                        self.clone().follow(resource, namespaced, !global, &mut watches, &stop);
                    }
                    Err(error) => {
                        if let Some(target) = target {
                            missing.insert(
                                *target,
                                format!("the cluster has no {} of {}/{}", kind.2, kind.0, kind.1),
                            );
                        }
                        tracing::debug!(kind = kind.2, group = kind.0, %error, "not found");
                    }
                }
            }
            let changed = {
                let mut now = self.missing.write().unwrap_or_else(PoisonError::into_inner);
                let changed = *now != missing;
                *now = missing.clone();
                changed
            };
            if changed {
                for (target, reason) in &missing {
                    tracing::warn!(
                        ?target,
                        reason,
                        code = "GAR-CTL-0006",
                        "a target is left out until its kinds are there"
                    );
                }
                self.everything();
            }
            let pause = if known.is_empty() {
                Duration::from_secs(1)
            } else {
                DISCOVER
            };
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
        watches.shutdown().await;
    }

    fn follow(
        self: Arc<Self>,
        resource: ApiResource,
        namespaced: bool,
        local: bool,
        watches: &mut JoinSet<()>,
        stop: &CancellationToken,
    ) {
        let writer = Writer::new(resource.clone());
        self.written
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Written {
                resource: resource.clone(),
                namespaced,
                local,
                store: writer.as_reader(),
            });
        let engine = Arc::clone(&self);
        let of = resource.clone();
        let heed = move |change: Change<'_>| {
            let (object, gone) = match change {
                Change::There(object) => (object, false),
                Change::Gone(object) => (object, true),
                Change::All => return engine.everything(),
            };
            let key = object_key(&of, object);
            {
                let mut book = engine.book();
                let written = book.written.get(&key);
                if gone {
                    // What was taken away here is not in the book any more.
                    if written.is_none() {
                        return;
                    }
                    book.gone.insert(key.clone());
                } else if written.is_some_and(|mark| Some(&mark.version) == object.metadata.resource_version.as_ref()) {
                    return;
                }
            }
            let task = match key.namespace.filter(|_| local) {
                Some(namespace) => Task::Namespace(namespace),
                None => Task::Cluster,
            };
            engine.queue.add_after(task, GATHER);
        };
        let config = watcher::Config::default().labels(&format!("{CONTROLLED_BY}={CONTROLLER}"));
        watches.spawn(self.watch(resource, config, writer, heed, stop.clone()));
    }

    async fn watch(
        self: Arc<Self>,
        resource: ApiResource,
        config: watcher::Config,
        writer: Writer<DynamicObject>,
        mut heed: impl FnMut(Change<'_>) + Send + 'static,
        stop: CancellationToken,
    ) {
        let name = watch_name(&resource);
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource);
        let stream = watcher(api, config).default_backoff();
        let events = reflector::reflector(writer, stream);
        let mut events = std::pin::pin!(events);
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => return,
                event = events.next() => event,
            };
            let Some(event) = event else { return };
            match event {
                Ok(event) => {
                    if locked(&self.stores.failing).remove(&name) {
                        tracing::info!(watch = name, "the watch works again");
                    }
                    match &event {
                        watcher::Event::Apply(object) => heed(Change::There(object)),
                        watcher::Event::Delete(object) => heed(Change::Gone(object)),
                        watcher::Event::InitDone => {
                            locked(&self.stores.told).insert(name.clone());
                            heed(Change::All);
                        }
                        watcher::Event::Init | watcher::Event::InitApply(_) => {}
                    }
                    if self.synced() && locked(&self.stores.failing).is_empty() {
                        self.readiness.ready();
                    }
                }
                Err(error) => {
                    if locked(&self.stores.failing).insert(name.clone()) {
                        tracing::warn!(watch = name, %error, code = "GAR-CTL-0003", "a watch failed; trying again");
                    }
                    self.readiness.not_ready(format!("the watch on {name} failed: {error}"));
                }
            }
        }
    }
}

fn locked(set: &Mutex<HashSet<String>>) -> MutexGuard<'_, HashSet<String>> {
    set.lock().unwrap_or_else(PoisonError::into_inner)
}

fn watch_name(resource: &ApiResource) -> String {
    if resource.group.is_empty() || resource.group == crate::domain::source::GROUP {
        resource.plural.clone()
    } else {
        format!("{}.{}", resource.plural, resource.group)
    }
}

/// The labels of a namespace.
pub(crate) fn labels_of(object: &DynamicObject) -> BTreeMap<String, String> {
    object.metadata.labels.clone().unwrap_or_default()
}

/// An object as one value, with its managed fields.
pub(crate) fn as_value(object: &DynamicObject) -> Value {
    serde_json::to_value(object).unwrap_or_default()
}
