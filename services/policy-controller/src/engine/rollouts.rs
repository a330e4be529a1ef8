//! New versions: watched by what they deny, kept, or gone back from.

use std::time::Duration;

use k8s_openapi::{
    api::apps::v1::ControllerRevision,
    apimachinery::pkg::{apis::meta::v1::OwnerReference, runtime::RawExtension},
    jiff::Timestamp,
};
use kube::{
    Api,
    api::{DeleteParams, ListParams, ObjectMeta, PostParams},
};
use serde_json::Value;

use super::{Engine, Failure, STATUS, Task, book::Watched, places::source, seconds, statuses::enforces};
use crate::{
    config::RolloutConfig,
    domain::{
        plan::{CONTROLLED_BY, CONTROLLER, POLICY, POLICY_KIND, POLICY_NAMESPACE},
        rollout::{Bound, Phase, Rollout},
        source::{GROUP, Kind, PolicyId, Source, VERSION},
    },
    figures,
};

impl Engine {
    /// What counts of a policy: its newest version, the one before when that denied too much, or nothing when there is
    /// none. `None` while it is not decided.
    pub(crate) fn counting(&self, newest: Source) -> Option<Option<Source>> {
        let book = self.book();
        let watched = book.rollouts.get(&newest.id)?;
        if watched.rollout.generation != newest.generation {
            return None;
        }
        Some(match watched.rollout.phase {
            Phase::Watching | Phase::Kept => Some(newest),
            Phase::Returned => watched.previous.clone(),
        })
    }

    /// Begins with a new version, or has a look at one.
    pub(crate) async fn rollout(&self, id: &PolicyId) -> Result<(), Failure> {
        let Some(config) = &self.config.rollout else {
            return Ok(());
        };
        let Some(object) = self.stores.policy(id) else {
            return Ok(());
        };
        let newest = source(id, &object);
        let known = self.book().rollouts.get(id).cloned();
        let enforce = enforces(&newest.spec);
        let mut watched = match known {
            Some(watched) if watched.rollout.generation == newest.generation => watched,
            _ => {
                let status = object.data.get("status").unwrap_or(&Value::Null);
                self.begin(config, &newest, enforce, status).await?
            }
        };
        let before = watched.rollout.phase;
        if enforce && before == Phase::Watching {
            let denied = self.denied(config, id).await;
            watched.rollout.look(denied, &bound(config), seconds());
        }
        let rollout = watched.rollout.clone();
        let news = {
            let mut book = self.book();
            let old = book.rollouts.insert(id.clone(), watched);
            old.is_none_or(|old| old.rollout.generation != rollout.generation || old.rollout.phase != rollout.phase)
        };
        if news {
            self.places_of(id);
        }
        match rollout.phase {
            Phase::Watching => self
                .queue
                .add_after(Task::Rollout(id.clone()), Duration::from_millis(config.interval_ms)),
            Phase::Kept if before == Phase::Watching => self.forget_before(&newest).await,
            Phase::Returned if before == Phase::Watching => {
                tracing::warn!(policy = %id, generation = rollout.generation, denied = ?rollout.denied, "denied too much; went back");
            }
            _ => {}
        }
        self.queue.add_after(Task::Status(id.clone()), STATUS);
        Ok(())
    }

    async fn begin(
        &self,
        config: &RolloutConfig,
        newest: &Source,
        enforce: bool,
        status: &Value,
    ) -> Result<Watched, Failure> {
        let earlier = Rollout::read(status, |text| {
            text.parse::<Timestamp>().ok().map(|time| time.as_second())
        });
        // What was kept last is what there is to go back to.
        let previous = match &earlier {
            Some(earlier) if earlier.generation == newest.generation => earlier.previous,
            Some(earlier) if earlier.phase == Phase::Kept => Some(earlier.generation),
            Some(earlier) => earlier.previous,
            None => None,
        };
        let previous = match previous {
            Some(generation) => self.recall(newest, generation).await?,
            None => None,
        };
        self.record(newest).await?;
        let rollout = match earlier.filter(|earlier| earlier.generation == newest.generation) {
            Some(earlier) => earlier,
            None => {
                let before = if enforce {
                    self.denied(config, &newest.id).await
                } else {
                    None
                };
                let previous = previous.as_ref().map(|previous| previous.generation);
                let mut rollout = Rollout::begin(newest.generation, previous, before, seconds());
                if !enforce {
                    // Nothing is denied by what is not enforced.
                    rollout.phase = Phase::Kept;
                }
                rollout
            }
        };
        Ok(Watched { rollout, previous })
    }

    async fn denied(&self, config: &RolloutConfig, id: &PolicyId) -> Option<f64> {
        let namespace = id.namespace.as_deref().unwrap_or(".*");
        let query = config
            .query
            .replace("{namespace}", namespace)
            .replace("{policy}", &id.name);
        match figures::ask(&config.prometheus, &query).await {
            Ok(denied) => Some(denied),
            Err(reason) => {
                tracing::warn!(policy = %id, reason, code = "GAR-CTL-0007", "denied traffic is not known");
                None
            }
        }
    }

    fn revisions(&self, id: &PolicyId) -> Api<ControllerRevision> {
        let namespace = id.namespace.as_deref().unwrap_or(&self.config.kubernetes.namespace);
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Keeps a version for later.
    async fn record(&self, version: &Source) -> Result<(), Failure> {
        let id = &version.id;
        let mut labels = vec![
            (CONTROLLED_BY.to_owned(), CONTROLLER.to_owned()),
            (POLICY.to_owned(), id.name.clone()),
            (POLICY_KIND.to_owned(), id.kind.name().to_owned()),
        ];
        labels.extend(
            id.namespace
                .clone()
                .map(|namespace| (POLICY_NAMESPACE.to_owned(), namespace)),
        );
        let revision = ControllerRevision {
            metadata: ObjectMeta {
                name: Some(revision_name(id, version.generation)),
                labels: Some(labels.into_iter().collect()),
                owner_references: Some(vec![OwnerReference {
                    api_version: format!("{GROUP}/{VERSION}"),
                    kind: id.kind.name().to_owned(),
                    name: id.name.clone(),
                    uid: version.uid.clone(),
                    controller: Some(true),
                    block_owner_deletion: Some(false),
                }]),
                ..ObjectMeta::default()
            },
            data: Some(RawExtension(version.spec.clone())),
            revision: version.generation,
        };
        match self.revisions(id).create(&PostParams::default(), &revision).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
            Err(error) => Err(Failure::api(format!("recording a version of {id}"))(error)),
        }
    }

    async fn recall(&self, newest: &Source, generation: i64) -> Result<Option<Source>, Failure> {
        let name = revision_name(&newest.id, generation);
        let found = self.revisions(&newest.id).get_opt(&name).await;
        let found = found.map_err(Failure::api(format!(
            "reading generation {generation} of {}",
            newest.id
        )))?;
        // One of a policy of the same name that is gone is not a version of this one.
        let own = found.filter(|revision| {
            let owners = revision.metadata.owner_references.as_deref().unwrap_or_default();
            owners.iter().any(|owner| owner.uid == newest.uid)
        });
        Ok(own.and_then(|revision| {
            Some(Source {
                generation,
                spec: revision.data?.0,
                ..newest.clone()
            })
        }))
    }

    /// A version is kept: those before it are not needed any more.
    async fn forget_before(&self, kept: &Source) {
        let id = &kept.id;
        let mut labels = format!(
            "{CONTROLLED_BY}={CONTROLLER},{POLICY}={},{POLICY_KIND}={}",
            id.name,
            id.kind.name()
        );
        if let Some(namespace) = &id.namespace {
            labels.push_str(&format!(",{POLICY_NAMESPACE}={namespace}"));
        }
        let api = self.revisions(id);
        let Ok(all) = api.list(&ListParams::default().labels(&labels)).await else {
            return;
        };
        for revision in all.items.iter().filter(|revision| revision.revision < kept.generation) {
            if let Some(name) = &revision.metadata.name
                && let Err(error) = api.delete(name, &DeleteParams::default()).await
            {
                tracing::debug!(revision = name, %error, "an old version stays");
            }
        }
    }
}

fn revision_name(id: &PolicyId, generation: i64) -> String {
    let kind = match id.kind {
        Kind::Namespaced => "ztp",
        Kind::Cluster => "cztp",
    };
    format!("garrison-{kind}-{}-{generation}", id.name)
}

fn bound(config: &RolloutConfig) -> Bound {
    Bound {
        most: config.most_denied_per_second,
        looks: config.looks,
        watch: i64::try_from(config.watch_ms / 1_000).unwrap_or(i64::MAX),
    }
}
