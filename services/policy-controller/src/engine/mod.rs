//! Compares what is there with what is to be there, and writes the difference.
//!
//! Everything is brought up to date by place: one namespace, or the cluster as a whole for targets that order all
//! policies together. What a policy's deny rules take away from another's allow rules makes objects of one place depend
//! on each other, so a place is the least that can be planned.

mod book;
mod observe;
mod places;
mod rollouts;
mod statuses;
mod trust;
mod write;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use garrison_service::ReadinessFlag;
use k8s_openapi::jiff::Timestamp;
use kube::{
    Client,
    api::{ApiResource, DynamicObject},
    runtime::{
        events::{Event, EventType, Recorder, Reporter},
        reflector::Store,
    },
};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    Metrics,
    config::{Config, TargetName},
    domain::{
        plan::Planner,
        source::{GROUP, Kind, PolicyId, VERSION},
    },
    queue::Queue,
};
use book::Book;

/// The name under which the API server records what the controller writes.
pub(crate) const MANAGER: &str = "garrison-policy-controller";
/// Keeps a policy until what was made of it in the cluster as a whole is gone.
pub(crate) const FINALIZER: &str = "garrison.dev/policy-controller";
/// A place is brought up to date this long after the first change, so that those that come together count as one.
const GATHER: Duration = Duration::from_millis(50);
/// A status is written this long after the first change to it.
const STATUS: Duration = Duration::from_millis(200);

/// What is to be looked at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Task {
    /// The new version of a policy.
    Rollout(PolicyId),
    /// The cluster as a whole.
    Cluster,
    /// A namespace.
    Namespace(String),
    /// What a policy's status says.
    Status(PolicyId),
}

/// Where objects are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Place {
    Cluster,
    Namespace(String),
}

/// A kind of objects that the controller writes.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    pub(crate) resource: ApiResource,
    pub(crate) namespaced: bool,
    /// Whether one namespace's are planned together, or the whole cluster's.
    pub(crate) local: bool,
    pub(crate) store: Store<DynamicObject>,
}

/// The controller of one cluster.
pub(crate) struct Engine {
    pub(crate) client: Client,
    pub(crate) config: Config,
    pub(crate) metrics: Metrics,
    planner: Planner,
    /// Whether this replica leads: who does not writes nothing.
    acting: AtomicBool,
    queue: Queue<Task>,
    recorder: Recorder,
    readiness: ReadinessFlag,
    stores: observe::Stores,
    written: RwLock<Vec<Written>>,
    missing: RwLock<BTreeMap<TargetName, String>>,
    trust: RwLock<trust::Known>,
    book: Mutex<Book>,
}

impl Engine {
    pub(crate) fn new(
        client: Client,
        config: Config,
        identity: &str,
        metrics: Metrics,
        readiness: ReadinessFlag,
    ) -> Self {
        let reporter = Reporter {
            controller: "garrison.dev/policy-controller".to_owned(),
            instance: Some(identity.to_owned()),
        };
        Self {
            recorder: Recorder::new(client.clone(), reporter),
            planner: Planner::new(config.controller.lowest_namespaced_tier),
            acting: AtomicBool::new(false),
            client,
            config,
            metrics,
            queue: Queue::default(),
            readiness,
            stores: observe::Stores::default(),
            written: RwLock::default(),
            missing: RwLock::default(),
            trust: RwLock::default(),
            book: Mutex::default(),
        }
    }

    /// Watches always, and acts while `leads` says so, until `stop`.
    pub(crate) async fn run(self: Arc<Self>, mut leads: watch::Receiver<bool>, stop: CancellationToken) {
        let watching = stop.child_token();
        let mut watches = JoinSet::new();
        Arc::clone(&self).observe(&mut watches, &watching).await;
        watches.spawn(Arc::clone(&self).discover(watching.clone()));
        watches.spawn(Arc::clone(&self).follow_trust(watching.clone()));
        loop {
            let leading = tokio::select! {
                () = stop.cancelled() => break,
                leading = leads.wait_for(|leads| *leads) => leading.is_ok(),
            };
            if !leading {
                break;
            }
            self.metrics.leads(true);
            self.acting.store(true, Ordering::Release);
            let term = stop.child_token();
            let mut workers = JoinSet::new();
            // What an earlier term knew may have changed since.
            *self.book() = Book::default();
            self.queue.clear();
            self.everything();
            for _ in 0..self.config.controller.concurrency {
                workers.spawn(Arc::clone(&self).work(term.clone()));
            }
            workers.spawn(Arc::clone(&self).resync(term.clone()));
            let _ = leads.wait_for(|leads| !*leads).await;
            // The call under way ends; another may act from now on.
            self.acting.store(false, Ordering::Release);
            term.cancel();
            while workers.join_next().await.is_some() {}
            self.metrics.leads(false);
        }
        watching.cancel();
        watches.shutdown().await;
    }

    async fn work(self: Arc<Self>, term: CancellationToken) {
        loop {
            let task = tokio::select! {
                biased;
                () = term.cancelled() => return,
                task = self.queue.next() => task,
            };
            let began = Instant::now();
            let outcome = self.perform(&task).await;
            if let Err(error) = &outcome {
                tracing::warn!(?task, error = %error, "not done; trying again");
            }
            self.queue.done(&task, outcome.is_ok());
            let word = if outcome.is_ok() { "done" } else { "failed" };
            self.metrics
                .reconciled(word, began.elapsed().as_secs_f64(), self.queue.len());
        }
    }

    #[tracing::instrument(name = "reconcile", skip(self))]
    async fn perform(&self, task: &Task) -> Result<(), Failure> {
        match task {
            Task::Namespace(namespace) => self.namespace(namespace).await,
            Task::Cluster => self.cluster().await,
            Task::Status(id) => self.status(id).await,
            Task::Rollout(id) => self.rollout(id).await,
        }
    }

    /// Looks at everything now and then, for what no watch told of.
    async fn resync(self: Arc<Self>, term: CancellationToken) {
        loop {
            tokio::select! {
                () = term.cancelled() => return,
                () = tokio::time::sleep(self.config.controller.resync()) => self.everything(),
            }
        }
    }

    /// Everything is due.
    pub(crate) fn everything(&self) {
        for id in self.stores.policy_ids() {
            if self.config.rollout.is_some() {
                self.queue.add(Task::Rollout(id.clone()));
            }
            self.queue.add_after(Task::Status(id), STATUS);
        }
        for namespace in self.stores.namespace_names() {
            self.queue.add_after(Task::Namespace(namespace), GATHER);
        }
        self.queue.add_after(Task::Cluster, GATHER);
    }

    /// A policy changed.
    pub(crate) fn policy_changed(&self, id: &PolicyId) {
        if self.config.rollout.is_some() {
            self.queue.add(Task::Rollout(id.clone()));
        }
        self.places_of(id);
        self.queue.add_after(Task::Status(id.clone()), STATUS);
    }

    /// The places that a policy may have objects in are due.
    pub(crate) fn places_of(&self, id: &PolicyId) {
        match &id.namespace {
            Some(namespace) => self.queue.add_after(Task::Namespace(namespace.clone()), GATHER),
            None => {
                for namespace in self.stores.namespace_names() {
                    self.queue.add_after(Task::Namespace(namespace), GATHER);
                }
            }
        }
        if self.has_global_targets() {
            self.queue.add_after(Task::Cluster, GATHER);
        }
    }

    pub(crate) fn has_global_targets(&self) -> bool {
        let targets = &self.config.controller.targets;
        targets.iter().any(|target| !crate::domain::plan::is_local(*target))
    }

    /// The targets whose kinds the cluster has.
    pub(crate) fn targets(&self) -> Vec<TargetName> {
        let missing = self.missing.read().unwrap_or_else(PoisonError::into_inner);
        let targets = self.config.controller.targets.iter().copied();
        let held = self.held().is_some();
        targets
            .filter(|target| !missing.contains_key(target) && (!held || !target.is_istio()))
            .collect()
    }

    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this replica still leads.
    pub(crate) fn acts(&self) -> bool {
        self.acting.load(Ordering::Acquire)
    }

    /// Tells of something at a policy.
    pub(crate) async fn tell(&self, id: &PolicyId, uid: &str, warning: bool, reason: &str, action: &str, note: String) {
        let reference = k8s_openapi::api::core::v1::ObjectReference {
            api_version: Some(format!("{GROUP}/{VERSION}")),
            kind: Some(id.kind.name().to_owned()),
            name: Some(id.name.clone()),
            namespace: id.namespace.clone(),
            uid: Some(uid.to_owned()),
            ..Default::default()
        };
        let event = Event {
            type_: if warning { EventType::Warning } else { EventType::Normal },
            reason: reason.to_owned(),
            note: Some(note.chars().take(1_000).collect()),
            action: action.to_owned(),
            secondary: None,
        };
        if let Err(error) = self.recorder.publish(&event, &reference).await {
            tracing::debug!(policy = %id, %error, "an event was not recorded");
        }
    }
}

/// Why a task is to be tried again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The API server did not do it.
    #[error("{what}: {}", brief(.source))]
    Api {
        /// What was tried.
        what: String,
        /// Its answer.
        source: Box<kube::Error>,
    },
    /// Some objects of a place were not written.
    #[error("{0} objects were not written")]
    Objects(usize),
    /// What is there is not known yet.
    #[error("the watches have not told everything yet")]
    NotSynced,
}

impl Failure {
    pub(crate) fn api(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        |source| Self::Api {
            what: what.into(),
            source: Box::new(source),
        }
    }
}

/// An error of the API server in a line.
pub(crate) fn brief(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => {
            let mut text = other.to_string();
            let mut next = std::error::Error::source(other);
            while let Some(cause) = next {
                let said = cause.to_string();
                if !text.contains(&said) {
                    text.push_str(": ");
                    text.push_str(&said);
                }
                next = cause.source();
            }
            text
        }
    }
}

/// Now, in seconds since the epoch.
pub(crate) fn seconds() -> i64 {
    Timestamp::now().as_second()
}

/// A time as objects have it.
pub(crate) fn stamp(seconds: i64) -> String {
    Timestamp::from_second(seconds)
        .map(|time| time.to_string())
        .unwrap_or_default()
}

/// The resource of policies.
pub(crate) fn policy_resource(kind: Kind) -> ApiResource {
    ApiResource {
        group: GROUP.to_owned(),
        version: VERSION.to_owned(),
        api_version: format!("{GROUP}/{VERSION}"),
        kind: kind.name().to_owned(),
        plural: kind.plural().to_owned(),
    }
}
