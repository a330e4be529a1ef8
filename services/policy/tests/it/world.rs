//! The service's parts in this process, on servers of their own.

use std::{net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use garrison_auth::{Caller, Principal};
use garrison_bus::{Bus, Dispatch, Message, run_consumer, subject, topology};
use garrison_db::{Db, DbConfig};
use garrison_flow::{BatchMeta, FlowBatchBuilder, FlowRow, FlowState, LossLedger, encode};
use garrison_proto::{TenantId, policy::v1 as proto, policy::v1::policy_service_server::PolicyService as _};
use garrison_testkit::Stack;
use policy::{
    app::{App, ReviewRule, Settings},
    bus::FlowHandler,
    config::{AlertsConfig, FlowsConfig},
    grpc::PolicyApi,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};
use uuid::Uuid;

/// 2026-01-02 03:04:05 UTC, in nanoseconds.
pub(crate) const CAPTURED: i64 = 1_767_323_045_000_000_000;

pub(crate) struct World {
    pub(crate) stack: Stack,
    pub(crate) database: DbConfig,
    pub(crate) sensor: Bus,
    admin: Bus,
}

/// One replica of the service: its consumer, relay and followers run until it is dropped.
pub(crate) struct Replica {
    pub(crate) app: Arc<App>,
    pub(crate) api: PolicyApi,
    stop: CancellationToken,
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub(crate) fn settings() -> Settings {
    let (flows, alerts) = (FlowsConfig::default(), AlertsConfig::default());
    Settings {
        remembered: 10_000,
        refresh_interval: Duration::from_millis(flows.refresh_interval_ms),
        count_interval: Duration::from_millis(100),
        fold: Duration::from_secs(60),
        spread: 16,
        keep: Duration::from_secs(86_400),
        internal: alerts.internal_networks,
        review: ReviewRule::default(),
    }
}

pub(crate) fn tenant(id: &str) -> TenantId {
    id.parse().unwrap()
}

/// Somebody who writes policies.
pub(crate) fn author(id: &str) -> Caller {
    Caller {
        tenant: tenant(id),
        principal: Principal::User {
            id: Uuid::from_u128(7),
            login: "paula".to_owned(),
        },
        roles: vec!["policy-author".to_owned()],
        session: None,
        second_factor: true,
        address: None,
    }
}

/// What the authorisation layer hands to the handler.
pub(crate) fn request<T>(id: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(author(id));
    request
}

/// The documents of the demo lab.
pub(crate) const LAB: &str = include_str!("shop.yaml");

/// One of the documents of the demo lab.
pub(crate) fn lab(name: &str) -> String {
    let checked = garrison_ztp::check(LAB);
    let mut documents = checked.documents.into_iter();
    documents.find(|d| d.policy.metadata.name == name).unwrap().text
}

impl World {
    pub(crate) async fn start() -> Self {
        let stack = Stack::start().await;
        let database = stack.database("policy", &policy::MIGRATOR).await;
        let sensor = Bus::connect(&stack.bus_config("svc/flow-ingest"), "flow-ingest")
            .await
            .unwrap();
        let admin = Bus::connect(&stack.bus_config("svc/bus-admin"), "bus-admin")
            .await
            .unwrap();
        Self {
            stack,
            database,
            sensor,
            admin,
        }
    }

    pub(crate) async fn replica(&self) -> Replica {
        self.replica_with(settings()).await
    }

    pub(crate) async fn replica_with(&self, settings: Settings) -> Replica {
        let bus = Bus::connect(&self.stack.bus_config("svc/policy"), "policy")
            .await
            .unwrap();
        let db = Db::connect(&self.database, "policy").unwrap();
        let app = Arc::new(App::new(db.clone(), settings));
        let stop = CancellationToken::new();
        let (publisher, relay) = (bus.publisher(), stop.clone());
        tokio::spawn(async move { garrison_db::run_outbox_relay(db, publisher, relay).await.unwrap() });
        let (follower, until) = (Arc::clone(&app), stop.clone());
        tokio::spawn(async move { follower.follow_changes(until, |_| {}).await });
        let (counter, until) = (Arc::clone(&app), stop.clone());
        tokio::spawn(async move { counter.keep_counts(until).await });
        let (handler, until) = (Arc::new(FlowHandler { app: Arc::clone(&app) }), stop.clone());
        tokio::spawn(async move {
            let dispatch = Dispatch::Concurrent(4);
            run_consumer(&bus, &topology::FLOWS_POLICY, dispatch, handler, until)
                .await
                .unwrap();
        });
        Replica {
            api: PolicyApi { app: Arc::clone(&app) },
            app,
            stop,
        }
    }

    /// Publishes a batch as a sensor does.
    pub(crate) async fn flows(&self, id: &str, rows: &[FlowRow<'_>]) {
        self.send(Message::flows(
            subject::flows(&tenant(id), 0),
            "flow-ingest",
            batch(id, rows),
        ))
        .await;
    }

    pub(crate) async fn send(&self, message: Message) {
        self.sensor.publisher().publish(&message).await.unwrap();
    }

    /// Everything on a stream: subject and payload.
    pub(crate) async fn messages(&self, stream: &str) -> Vec<(String, Bytes)> {
        let mut stream = self.admin.jetstream().get_stream(stream).await.unwrap();
        let state = stream.info().await.unwrap().state.clone();
        let mut messages = Vec::new();
        for sequence in state.first_sequence.max(1)..=state.last_sequence {
            let message = stream.get_raw_message(sequence).await.unwrap();
            messages.push((message.subject.to_string(), message.payload));
        }
        messages
    }

    /// Waits until a stream holds so many messages, and no more a moment later.
    pub(crate) async fn exactly(&self, stream: &str, count: usize) -> Vec<(String, Bytes)> {
        until(&format!("{count} messages on {stream}"), async || {
            self.messages(stream).await.len() >= count
        })
        .await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let messages = self.messages(stream).await;
        let subjects: Vec<_> = messages.iter().map(|(subject, _)| subject).collect();
        assert_eq!(messages.len(), count, "{stream}: {subjects:?}");
        messages
    }

    pub(crate) async fn alerts(&self, count: usize) -> Vec<garrison_proto::alert::v1::Alert> {
        use prost::Message as _;
        let messages = self.exactly("ALERTS", count).await;
        messages
            .into_iter()
            .map(|(_, payload)| garrison_proto::alert::v1::Alert::decode(payload).unwrap())
            .collect()
    }

    /// Waits until the consumer has acknowledged everything on FLOWS.
    pub(crate) async fn flows_are_done(&self) {
        until("flows are acknowledged", async || {
            let mut stream = self.admin.jetstream().get_stream("FLOWS").await.unwrap();
            let last = stream.info().await.unwrap().state.last_sequence;
            let info = stream.consumer_info("policy").await.unwrap();
            info.ack_floor.stream_sequence >= last
        })
        .await;
    }
}

impl Replica {
    pub(crate) async fn apply(&self, id: &str, document: &str) -> proto::ApplyPolicyResponse {
        self.try_apply(id, document, None).await.unwrap()
    }

    pub(crate) async fn try_apply(
        &self,
        id: &str,
        document: &str,
        expected_version: Option<u64>,
    ) -> Result<proto::ApplyPolicyResponse, Status> {
        let message = proto::ApplyPolicyRequest {
            document: document.to_owned(),
            expected_version,
        };
        Ok(self.api.apply_policy(request(id, message)).await?.into_inner())
    }

    /// Policy, rule, verdict and flows of every count.
    pub(crate) async fn counts(&self, id: &str) -> Vec<(String, String, proto::Verdict, u64)> {
        let message = proto::ListVerdictCountsRequest {};
        let answer = self
            .api
            .list_verdict_counts(request(id, message))
            .await
            .unwrap()
            .into_inner();
        let counts = answer.counts.into_iter();
        counts
            .map(|c| (c.policy.clone(), c.rule.clone(), c.verdict(), c.flows))
            .collect()
    }
}

pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let limit = tokio::time::Instant::now() + Duration::from_secs(120);
    while !condition().await {
        assert!(tokio::time::Instant::now() < limit, "{what}: not within 120 s");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A TCP flow's first record.
pub(crate) fn flow(number: u8, src: &str, dst: &str, port: u16) -> FlowRow<'static> {
    FlowRow {
        flow_id: [number; 16],
        state: FlowState::New as u8,
        sensor: "edge",
        first_seen: CAPTURED + i64::from(number),
        last_seen: CAPTURED + i64::from(number),
        protocol: 6,
        src_ip: src.parse::<IpAddr>().unwrap(),
        dst_ip: dst.parse::<IpAddr>().unwrap(),
        src_port: 40_000,
        dst_port: port,
        community_id: "1:x",
        ..FlowRow::default()
    }
}

pub(crate) fn batch(id: &str, rows: &[FlowRow<'_>]) -> Bytes {
    let meta = BatchMeta {
        tenant: tenant(id),
        sensor: "edge".to_owned(),
        batch_seq: 0,
        ledger: LossLedger::default(),
    };
    let mut builder = FlowBatchBuilder::new(rows.len());
    rows.iter().for_each(|row| builder.push(row));
    encode(&builder.finish(), &meta).unwrap()
}
