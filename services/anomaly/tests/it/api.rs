//! The gRPC service, as the layer in front leaves requests: with a caller.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use anomaly::{
    app::Engine,
    config::Config,
    grpc::{Api, verdicts::Verdicts},
};
use chrono::Utc;
use garrison_auth::{Caller, Principal};
use garrison_bus::{Bus, Delivery, Disposition, subject};
use garrison_db::{Db, DbConfig};
use garrison_proto::{
    TenantId,
    alert::v1::{
        FinishLearningRequest, GetModelRequest, ListDetectorsRequest, ListRankedAlertsRequest, Model, ModelPhase,
        RankedAlert, RecordVerdictRequest, StartLearningRequest, Verdict,
        detection_service_server::DetectionService as _, verdict_service_server::VerdictService as _,
    },
};
use garrison_testkit::Stack;
use tonic::{Code, Request};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::{
    traffic::{Flow, batch, office},
    world::tenant,
};

pub(crate) struct Bench {
    pub(crate) engine: Arc<Engine>,
    pub(crate) api: Api,
    position: AtomicI64,
}

impl Bench {
    async fn new() -> Self {
        let database = Stack::shared().await.database("anomaly", &anomaly::MIGRATOR).await;
        Self::on(&database, "").await
    }

    /// On a database that may have been used before.
    pub(crate) async fn on(database: &DbConfig, extra: &str) -> Self {
        let stack = Stack::shared().await;
        let db = Db::connect(database, "anomaly").unwrap();
        let bus = Bus::connect(&stack.bus_config("svc/anomaly"), "anomaly").await.unwrap();
        let text = r#"
            core.identity = { trust_domain = "t", cert_file = "c", key_file = "k", ca_file = "a" }
            core.bus = { urls = ["tls://localhost:1"], cert_file = "c", key_file = "k", ca_file = "a" }
        "#;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("anomaly.toml");
        std::fs::write(&path, format!("{text}\n{extra}")).unwrap();
        let config: Config = garrison_service::read_config(&path).unwrap();
        let clock = Arc::new(|| Utc::now().timestamp_nanos_opt().unwrap());
        let engine = Arc::new(Engine::new(db, bus, &config, clock));
        Self {
            api: Api(Arc::clone(&engine)),
            engine,
            position: AtomicI64::new(1),
        }
    }

    pub(crate) async fn take(&self, tenant: &TenantId, flows: &[Flow]) {
        let position = self.position.fetch_add(1, Ordering::Relaxed) as u64;
        let delivery = Delivery {
            id: Uuid::now_v7(),
            subject: subject::flows(tenant, subject::shard_of(flows[0].src)),
            tenant: tenant.clone(),
            kind: "garrison.flow.v1.FlowBatch".to_owned(),
            source: "flow-ingest".to_owned(),
            time: Utc::now(),
            content_type: "application/vnd.apache.arrow.stream".to_owned(),
            payload: batch(tenant, flows),
            traceparent: None,
            attempt: 1,
            stream_sequence: position,
            consumer_sequence: position,
            stored: Utc::now(),
        };
        assert_eq!(self.engine.take(&delivery).await, Disposition::Ack);
    }

    pub(crate) async fn model(&self, tenant: &TenantId) -> Model {
        let answer = self.api.get_model(by(tenant, GetModelRequest {})).await.unwrap();
        answer.into_inner().model.unwrap()
    }
}

pub(crate) fn by<T>(tenant: &TenantId, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(Caller {
        tenant: tenant.clone(),
        principal: Principal::User {
            id: Uuid::from_u128(7),
            login: "ada".into(),
        },
        ..Caller::anonymous(None)
    });
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn learning_is_commanded_per_tenant_and_never_touches_another() {
    let bench = Bench::new().await;
    let (acme, other) = (tenant("acme"), tenant("other"));
    assert_eq!(bench.model(&acme).await.phase(), ModelPhase::Idle);

    let early = bench
        .api
        .finish_learning(by(&acme, FinishLearningRequest {}))
        .await
        .unwrap_err();
    assert_eq!(early.code(), Code::FailedPrecondition);
    assert_eq!(early.get_error_details().error_info().unwrap().reason, "GAR-ANOM-0002");

    bench
        .api
        .start_learning(by(&acme, StartLearningRequest::default()))
        .await
        .unwrap();
    bench.take(&acme, &office(50)).await;
    bench.take(&other, &office(60)).await;
    let short = bench
        .api
        .finish_learning(by(&acme, FinishLearningRequest {}))
        .await
        .unwrap_err();
    assert_eq!(short.get_error_details().error_info().unwrap().reason, "GAR-ANOM-0003");
    assert!(short.message().contains("50 flows were learnt"), "{}", short.message());
    let model = bench.model(&acme).await;
    assert_eq!((model.phase(), model.learnt_flows), (ModelPhase::Learning, 50));

    for part in office(400).chunks(40) {
        bench.take(&acme, part).await;
    }
    let answer = bench
        .api
        .finish_learning(by(&acme, FinishLearningRequest {}))
        .await
        .unwrap();
    assert_eq!(answer.into_inner().model.unwrap().phase(), ModelPhase::Training);
    let busy = bench
        .api
        .start_learning(by(&acme, StartLearningRequest::default()))
        .await
        .unwrap_err();
    assert_eq!(busy.code(), Code::FailedPrecondition);
    while bench.model(&acme).await.phase() != ModelPhase::Scoring {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    bench.take(&acme, &office(30)).await;
    let model = bench.model(&acme).await;
    assert_eq!((model.version, model.learnt_flows, model.scored_flows), (1, 450, 30));
    assert!(model.threshold > 0.0 && model.validation_loss >= 0.0);
    assert_eq!(model.weights_sha256.len(), 64);

    // The other tenant has neither model nor contacts.
    let model = bench.model(&other).await;
    assert_eq!(
        (model.phase(), model.version, model.scored_flows),
        (ModelPhase::Idle, 0, 0)
    );
    let scan: Vec<Flow> = (1..=15)
        .map(|port| Flow::refused("10.0.9.9", "10.0.0.1", port))
        .collect();
    bench.take(&other, &scan).await;
    let count = async |tenant| {
        let answer = bench
            .api
            .list_detectors(by(tenant, ListDetectorsRequest {}))
            .await
            .unwrap();
        let detectors = answer.into_inner().detectors;
        assert_eq!(detectors.len(), anomaly::domain::detector::Detector::ALL.len());
        assert!(detectors.iter().all(|d| d.enabled && !d.description.is_empty()));
        detectors.iter().find(|d| d.id == "scan.vertical").unwrap().alerts
    };
    assert_eq!((count(&acme).await, count(&other).await), (0, 1));
}

#[tokio::test]
async fn a_request_without_a_verified_caller_is_refused() {
    let bench = Bench::new().await;
    let api = &bench.api;
    for status in [
        api.list_detectors(Request::new(ListDetectorsRequest {})).await.err(),
        api.get_model(Request::new(GetModelRequest {})).await.err(),
        api.start_learning(Request::new(StartLearningRequest::default()))
            .await
            .err(),
        api.finish_learning(Request::new(FinishLearningRequest {})).await.err(),
    ] {
        assert!(matches!(status.unwrap().code(), Code::Unauthenticated | Code::Internal));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verdict_changes_the_order_at_once_and_is_nobody_elses() {
    let bench = Bench::new().await;
    let (acme, other) = (tenant("acme"), tenant("other"));
    let verdicts = Verdicts(Arc::clone(&bench.engine));
    for source in ["10.0.9.8", "10.0.9.9"] {
        let scan: Vec<Flow> = (1..=15).map(|port| Flow::refused(source, "10.0.0.1", port)).collect();
        bench.take(&acme, &scan).await;
    }
    let ranked = async |tenant: &TenantId| -> Vec<RankedAlert> {
        let request = by(tenant, ListRankedAlertsRequest::default());
        verdicts.list_ranked_alerts(request).await.unwrap().into_inner().alerts
    };
    let id = |ranked: &RankedAlert| ranked.alert.as_ref().unwrap().alert_id.clone();
    let before = ranked(&acme).await;
    assert_eq!(before.len(), 2);
    assert!(before.iter().all(|a| a.verdict_factor == 1.0));
    assert!(ranked(&other).await.is_empty());

    let say = |alert_id: String, verdict: Verdict| RecordVerdictRequest {
        alert_id,
        verdict: verdict.into(),
        comment: "a monitoring system".to_owned(),
    };
    let first = id(&before[0]);
    let foreign = verdicts
        .record_verdict(by(&other, say(first.clone(), Verdict::False)))
        .await;
    assert_eq!(foreign.unwrap_err().code(), Code::NotFound);
    let nothing = verdicts
        .record_verdict(by(&acme, say(first.clone(), Verdict::Unspecified)))
        .await;
    assert_eq!(nothing.unwrap_err().code(), Code::InvalidArgument);
    let moved = verdicts
        .record_verdict(by(&acme, say(first.clone(), Verdict::False)))
        .await
        .unwrap();
    assert!(moved.into_inner().alert.unwrap().verdict_factor < 0.5);
    let after = ranked(&acme).await;
    assert_eq!((after.len(), id(&after[1])), (2, first.clone()));
    // A second thought replaces the first.
    verdicts
        .record_verdict(by(&acme, say(first.clone(), Verdict::True)))
        .await
        .unwrap();
    let again = ranked(&acme).await;
    assert_eq!(id(&again[0]), first);
    assert!(again[0].verdict_factor > 1.0);
}
