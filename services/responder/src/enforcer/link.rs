//! The enforcer's side of the conversation with the responder: heartbeats, reconciliation, news.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use garrison_bus::{Message, Publisher, subject};
use garrison_proto::{
    TenantId,
    audit::v1::{Actor, Decision},
    response::v1::{
        Action, EnforcementReport, HeartbeatRequest, ListDesiredActionsRequest, enforcement_report::Outcome,
        enforcer_service_client::EnforcerServiceClient,
    },
    to_timestamp,
};
use garrison_service::{ReadinessFlag, audit};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status, transport::Channel};
use uuid::Uuid;

use super::{
    EnforcerError, INFO,
    agent::Agent,
    ledger::{Order, Outgoing, Said, What},
};
use crate::digest::digest;

/// How long the responder may take to answer.
const DEADLINE: Duration = Duration::from_secs(5);
/// The longest pause between two reconciliations that leave something undone.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// News published at a time.
const BATCH: usize = 64;

/// What the enforcer's tasks share.
pub struct Link {
    node: String,
    tenants: Vec<TenantId>,
    agent: Option<Agent>,
    channel: Channel,
    publisher: Publisher,
    interval: Duration,
    reconcile_every: Duration,
    wanted: AtomicBool,
    wake: Notify,
}

impl Link {
    /// `agent` is `None` in observe-only mode.
    pub fn new(
        node: String,
        tenants: Vec<TenantId>,
        agent: Option<Agent>,
        channel: Channel,
        publisher: Publisher,
        interval: Duration,
        reconcile_every: Duration,
    ) -> Self {
        Self {
            node,
            tenants,
            agent,
            channel,
            publisher,
            interval,
            reconcile_every,
            wanted: AtomicBool::new(true),
            wake: Notify::new(),
        }
    }

    /// This node's name.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Whether this node takes a tenant's orders.
    pub fn serves(&self, tenant: &TenantId) -> bool {
        self.tenants.contains(tenant)
    }

    /// Asks for a reconciliation at the next opportunity.
    pub fn reconcile_soon(&self) {
        self.wanted.store(true, Ordering::SeqCst);
        self.wake.notify_one();
    }

    fn tenant_ids(&self) -> Vec<String> {
        self.tenants.iter().map(TenantId::to_string).collect()
    }

    /// A report as a message for the bus.
    #[allow(clippy::too_many_arguments)] // the fields of a report
    pub fn report(
        &self,
        tenant: &TenantId,
        response: Uuid,
        action: Action,
        said: Said,
        kernel: Option<DateTime<Utc>>,
        confirmed: Option<DateTime<Utc>>,
        error: &str,
    ) -> Message {
        let (state, outcome) = match said {
            Said::Applied => ("applied", Outcome::Applied),
            Said::Removed | Said::Expired => ("removed", Outcome::Removed),
            Said::Failed => ("failed", Outcome::Failed),
        };
        let report = EnforcementReport {
            response_id: response.to_string(),
            node: self.node.clone(),
            outcome: outcome as i32,
            kernel_time: kernel.map(to_timestamp),
            confirmed_time: confirmed.map(to_timestamp),
            error: error.to_owned(),
            expired: said == Said::Expired,
        };
        Message::proto(subject::reports(tenant, action, state, &self.node), INFO.name, &report)
    }

    fn message(&self, news: &Outgoing) -> Message {
        let message = match &news.what {
            What::Report {
                response,
                action,
                said,
                kernel,
                confirmed,
                error,
            } => self.report(
                &news.tenant,
                *response,
                Action::try_from(*action).unwrap_or_default(),
                *said,
                *kernel,
                *confirmed,
                error,
            ),
            What::Audit {
                action,
                resource,
                reason,
            } => {
                let actor = Actor {
                    name: format!("enforcers/{}", self.node),
                    ..Actor::default()
                };
                let mut record = audit::record(
                    &INFO,
                    &news.tenant,
                    actor,
                    action,
                    resource,
                    Decision::Allow,
                    reason,
                    std::iter::once(("node".to_owned(), self.node.clone())).collect(),
                );
                record.record_id = news.id.to_string();
                record.time = Some(to_timestamp(news.time));
                audit::message(&INFO, &record)
            }
        };
        message.with_id(news.id).with_time(news.time)
    }

    /// Publishes what the agent has to say until shutdown. What the broker has not stored stays on disk.
    ///
    /// # Errors
    /// [`EnforcerError::Ended`] when the agent's thread has ended.
    pub async fn publish_news(self: Arc<Self>, shutdown: CancellationToken) -> Result<(), EnforcerError> {
        let Some(agent) = self.agent.clone() else {
            return Ok(());
        };
        while !shutdown.is_cancelled() {
            // A full queue passes; a dead thread does not, and its own task says so.
            let Ok(batch) = agent.news(BATCH).await else {
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            };
            if batch.is_empty() {
                let wait = async {
                    tokio::select! {
                        () = agent.wait_for_news() => {}
                        () = tokio::time::sleep(Duration::from_secs(5)) => {}
                    }
                };
                let _ = shutdown.run_until_cancelled(wait).await;
                continue;
            }
            let mut said = BTreeSet::new();
            for news in &batch {
                match self.publisher.publish(&self.message(news)).await {
                    Ok(()) => {
                        said.insert(news.id);
                    }
                    Err(error) if error.is_transient() => break,
                    Err(error) => {
                        tracing::error!(%error, id = %news.id, "a report or audit record can never be published and is dropped");
                        said.insert(news.id);
                    }
                }
            }
            let stuck = said.is_empty();
            if !stuck {
                let _ = agent.said(said);
            }
            if stuck {
                let pause = tokio::time::sleep(Duration::from_millis(500));
                let _ = shutdown.run_until_cancelled(pause).await;
            }
        }
        Ok(())
    }

    /// Keeps the responder informed, and the node in step with it, until shutdown.
    ///
    /// # Errors
    /// Never; the signature is that of a supervised task.
    pub async fn beat(self: Arc<Self>, flag: ReadinessFlag, shutdown: CancellationToken) -> Result<(), EnforcerError> {
        flag.not_ready("the responder has not answered yet");
        let mut last_full: Option<Instant> = None;
        let mut disagreed = false;
        let mut pause = Duration::ZERO;
        let mut not_before = Instant::now();
        while !shutdown.is_cancelled() {
            match self.heartbeat().await {
                Err(error) => flag.not_ready(describe(&error)),
                Ok(agrees) => {
                    // Two looks in a row: an order may be on its way.
                    let drifted = !agrees && disagreed;
                    disagreed = !agrees;
                    let due = last_full.is_none_or(|at| at.elapsed() >= self.reconcile_every);
                    let asked_for = self.wanted.load(Ordering::SeqCst);
                    if (drifted || due || asked_for) && Instant::now() >= not_before {
                        match self.reconcile().await {
                            Ok(failed) => {
                                self.wanted.store(false, Ordering::SeqCst);
                                last_full = Some(Instant::now());
                                pause = if failed {
                                    (pause * 2).clamp(self.interval, LONGEST_PAUSE)
                                } else {
                                    Duration::ZERO
                                };
                                not_before = Instant::now() + pause;
                                flag.ready();
                            }
                            Err(error) => flag.not_ready(describe(&error)),
                        }
                    } else {
                        flag.ready();
                    }
                }
            }
            let wait = async {
                tokio::select! {
                    () = tokio::time::sleep(self.interval) => {}
                    () = self.wake.notified() => {}
                }
            };
            let _ = shutdown.run_until_cancelled(wait).await;
        }
        Ok(())
    }

    fn client(&self) -> EnforcerServiceClient<Channel> {
        EnforcerServiceClient::new(self.channel.clone())
    }

    /// True when responder and node agree on what is in force. In observe-only mode there is nothing to agree on.
    async fn heartbeat(&self) -> Result<bool, Status> {
        let applied_digest = match &self.agent {
            Some(agent) => agent.digest().await.map_err(|e| Status::unavailable(e.to_string()))?,
            None => digest([]),
        };
        let mut request = Request::new(HeartbeatRequest {
            node: self.node.clone(),
            applied_digest: applied_digest.clone(),
            tenants: self.tenant_ids(),
        });
        request.set_timeout(DEADLINE);
        let answer = self.client().heartbeat(request).await?;
        Ok(self.agent.is_none() || answer.get_ref().desired_digest == applied_digest)
    }

    /// Asks what should be in force and brings the node there. True when something could not be done.
    async fn reconcile(&self) -> Result<bool, Status> {
        let Some(agent) = &self.agent else {
            return Ok(false);
        };
        let asked = Utc::now();
        let mut request = Request::new(ListDesiredActionsRequest {
            node: self.node.clone(),
            tenants: self.tenant_ids(),
        });
        request.set_timeout(DEADLINE);
        let answer = self.client().list_desired_actions(request).await?.into_inner();
        let mut desired = Vec::with_capacity(answer.orders.len());
        for wire in &answer.orders {
            match Order::read(wire) {
                Ok(order) if !order.revert && self.serves(&order.tenant) => desired.push(order),
                Ok(_) => {}
                // Leaving it out would remove it; better to change nothing at all.
                Err(reason) => {
                    return Err(Status::internal(format!(
                        "GAR-ENF-0009: the responder wants something that is not understood: {reason}"
                    )));
                }
            }
        }
        let summary = agent
            .reconcile(desired, asked)
            .await
            .map_err(|e| Status::unavailable(e.to_string()))?;
        Ok(summary.failed > 0)
    }
}

fn describe(status: &Status) -> String {
    match status.code() {
        Code::PermissionDenied => format!(
            "GAR-ENF-0010: the responder does not accept this node: {}",
            status.message()
        ),
        _ => format!("GAR-ENF-0010: the responder does not answer: {}", status.message()),
    }
}
