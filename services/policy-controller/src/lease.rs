//! Which of several replicas acts: the one that holds a Lease (`coordination.k8s.io/v1`).
//!
//! No clock is compared with another's: a holder is respected until its lease has not changed for its duration, as
//! seen from here. A write carries the version that was read, so that of two who take it at once one fails.

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::config::LeaderConfig;

/// Takes part in an election.
pub(crate) struct Candidate {
    api: Api<Lease>,
    config: LeaderConfig,
    identity: String,
    /// What was read last, and since when it has not changed.
    seen: Option<(Option<String>, Instant)>,
}

impl Candidate {
    /// A candidate of this name.
    pub(crate) fn new(client: Client, namespace: &str, config: &LeaderConfig, identity: String) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            config: config.clone(),
            identity,
            seen: None,
        }
    }

    /// Stands until `stop`, telling whether it leads. Gives the lease back at the end, so that another need not wait.
    pub(crate) async fn run(mut self, leads: watch::Sender<bool>, stop: CancellationToken) {
        let interval = Duration::from_millis(self.config.renew_interval_ms);
        let duration = Duration::from_millis(self.config.duration_ms);
        // Others wait the whole duration; who leads has to be sure well before.
        let deadline = duration * 2 / 3;
        let mut renewed = Instant::now();
        while !stop.is_cancelled() {
            let asked = Instant::now();
            // An answer that comes too late is none.
            let outcome = tokio::time::timeout(interval, self.ask()).await;
            match outcome {
                Ok(Ok(true)) => {
                    renewed = asked;
                    if !*leads.borrow() {
                        tracing::info!(identity = self.identity, lease = self.config.lease, "leads");
                    }
                    leads.send_if_modified(|now| !std::mem::replace(now, true));
                }
                Ok(Ok(false)) => self.lost(&leads, "another holds the lease"),
                failed => {
                    let reason = match failed {
                        Ok(Err(error)) => error.to_string(),
                        _ => "the API server does not answer".to_owned(),
                    };
                    if *leads.borrow() && renewed.elapsed() < deadline {
                        tracing::warn!(reason, "the lease was not renewed; trying again");
                    } else {
                        self.lost(&leads, &reason);
                    }
                }
            }
            let pause = if *leads.borrow() {
                interval
            } else {
                interval.min(duration / 4)
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => {}
            }
        }
        if *leads.borrow() {
            leads.send_replace(false);
            // Who waits takes it at once; without this, after the duration.
            if let Err(error) = self.give_back().await {
                tracing::debug!(%error, "the lease was not given back");
            }
        }
    }

    fn lost(&self, leads: &watch::Sender<bool>, reason: &str) {
        if leads.send_if_modified(|now| std::mem::replace(now, false)) {
            tracing::warn!(identity = self.identity, reason, "leads no more");
        }
    }

    async fn ask(&mut self) -> Result<bool, kube::Error> {
        let Some(lease) = self.api.get_opt(&self.config.lease).await? else {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(self.config.lease.clone()),
                    ..ObjectMeta::default()
                },
                spec: Some(self.held(0, None)),
            };
            return won(self.api.create(&PostParams::default(), &lease).await);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let version = lease.metadata.resource_version.clone();
        let changed = self.seen.as_ref().is_none_or(|(seen, _)| *seen != version);
        if changed {
            self.seen = Some((version, Instant::now()));
        }
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        let mine = holder == self.identity;
        let respected = Duration::from_secs(
            spec.lease_duration_seconds
                .unwrap_or_default()
                .max(1)
                .unsigned_abs()
                .into(),
        );
        let since = self.seen.as_ref().map(|(_, since)| since.elapsed()).unwrap_or_default();
        if !mine && !holder.is_empty() && since < respected {
            return Ok(false);
        }
        let transitions = spec.lease_transitions.unwrap_or_default();
        let next = if mine {
            self.held(transitions, spec.acquire_time.clone())
        } else {
            self.held(transitions + 1, None)
        };
        self.write(lease, next).await
    }

    async fn give_back(&mut self) -> Result<(), kube::Error> {
        let lease = self.api.get(&self.config.lease).await?;
        let spec = lease.spec.clone().unwrap_or_default();
        if spec.holder_identity.as_deref() == Some(&self.identity) {
            let mut free = self.held(spec.lease_transitions.unwrap_or_default(), spec.acquire_time.clone());
            free.holder_identity = Some(String::new());
            free.lease_duration_seconds = Some(1);
            self.write(lease, free).await?;
        }
        Ok(())
    }

    async fn write(&self, mut lease: Lease, spec: LeaseSpec) -> Result<bool, kube::Error> {
        lease.spec = Some(spec);
        won(self
            .api
            .replace(&self.config.lease, &PostParams::default(), &lease)
            .await)
    }

    fn held(&self, transitions: i32, acquired: Option<MicroTime>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(self.config.duration_ms / 1_000).ok(),
            lease_transitions: Some(transitions),
            acquire_time: acquired.or_else(|| Some(now.clone())),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }
    }
}

fn won(written: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
    match written {
        Ok(_) => Ok(true),
        // Another was faster.
        Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => Ok(false),
        Err(error) => Err(error),
    }
}
