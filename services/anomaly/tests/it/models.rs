//! Versions of models: learnt, tried in the shadow, promoted, rolled back, and all of it again after a restart.

use std::{sync::Arc, time::Duration};

use anomaly::grpc::models::Models;
use garrison_db::{Db, DbConfig};
use garrison_proto::{
    TenantId,
    alert::v1::{
        FinishLearningRequest, GetModelVersionRequest, ListModelVersionsRequest, ListModelVersionsResponse, ModelPhase,
        ModelRole, PromoteModelRequest, RollBackModelRequest, StartLearningRequest, UpdateModelRequest,
        detection_service_server::DetectionService as _, model_service_server::ModelService as _,
    },
};
use garrison_testkit::Stack;
use tonic::{Code, Request};

use crate::{
    api::{Bench, by},
    traffic::{Flow, office},
    world::tenant,
};

// Small models: what they find is asked elsewhere.
const SMALL: &str =
    "[model.network]\nkind = \"ensemble\"\nhidden = [8]\nsteps = 100\n[model.candidate]\nshadow_every = 1";
const OLD: &str = "[model.network]\nkind = \"autoencoder\"";

async fn database() -> DbConfig {
    Stack::shared().await.database("anomaly", &anomaly::MIGRATOR).await
}

fn models(bench: &Bench) -> Models {
    Models(Arc::clone(&bench.engine))
}

async fn versions(bench: &Bench, tenant: &TenantId) -> ListModelVersionsResponse {
    let answer = models(bench)
        .list_model_versions(by(tenant, ListModelVersionsRequest {}))
        .await;
    answer.unwrap().into_inner()
}

fn roles(answer: &ListModelVersionsResponse) -> Vec<(u64, ModelRole)> {
    answer.versions.iter().map(|v| (v.version, v.role())).collect()
}

// Learns and waits for the model.
async fn learn(bench: &Bench, tenant: &TenantId) {
    let start = bench.api.start_learning(by(tenant, StartLearningRequest::default()));
    start.await.unwrap();
    bench.take(tenant, &office(450)).await;
    bench
        .api
        .finish_learning(by(tenant, FinishLearningRequest {}))
        .await
        .unwrap();
    trained(bench, tenant).await;
}

async fn trained(bench: &Bench, tenant: &TenantId) {
    while bench.model(tenant).await.phase() != ModelPhase::Scoring {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn update(bench: &Bench, tenant: &TenantId) {
    let answer = models(bench)
        .update_model(by(tenant, UpdateModelRequest {}))
        .await
        .unwrap();
    assert_eq!(answer.into_inner().model.unwrap().phase(), ModelPhase::Training);
    trained(bench, tenant).await;
}

async fn promote(bench: &Bench, tenant: &TenantId, version: u64, despite_objection: bool) -> Result<u64, Code> {
    let request = PromoteModelRequest {
        version,
        despite_objection,
    };
    let answer = models(bench).promote_model(by(tenant, request)).await;
    answer
        .map(|a| a.into_inner().model.unwrap().version)
        .map_err(|e| e.code())
}

async fn roll_back(bench: &Bench, tenant: &TenantId, version: u64) -> Result<u64, Code> {
    let answer = models(bench)
        .roll_back_model(by(tenant, RollBackModelRequest { version }))
        .await;
    answer
        .map(|a| a.into_inner().model.unwrap().version)
        .map_err(|e| e.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_is_tried_promoted_and_rolled_back_and_a_restart_changes_nothing() {
    let database = database().await;
    let bench = Bench::on(&database, SMALL).await;
    let (acme, other) = (tenant("acme"), tenant("other"));

    // Nothing to do anything with.
    assert!(versions(&bench, &acme).await.versions.is_empty());
    let early = models(&bench)
        .update_model(by(&acme, UpdateModelRequest {}))
        .await
        .unwrap_err();
    assert_eq!(early.code(), Code::FailedPrecondition);
    assert_eq!(promote(&bench, &acme, 1, true).await, Err(Code::NotFound));
    assert_eq!(promote(&bench, &acme, 0, true).await, Err(Code::InvalidArgument));
    assert_eq!(roll_back(&bench, &acme, 0).await, Err(Code::FailedPrecondition));

    // A first model goes live at once.
    learn(&bench, &acme).await;
    let answer = versions(&bench, &acme).await;
    assert_eq!(roles(&answer), [(1, ModelRole::Live)]);
    let first = &answer.versions[0];
    assert_eq!(
        (first.kind.as_str(), first.learnt_flows, first.seed),
        ("ensemble", 450, 1)
    );
    assert!(first.is_reference && first.objection.is_empty() && first.reference_attacks.len() == 6);
    assert_eq!(first.training_rows + first.held_rows, 450);
    assert!(answer.shadow.is_none() && !answer.drift.unwrap().is_known);
    let sha = first.weights_sha256.clone();

    // A later one is tried beside it.
    for part in office(1_200).chunks(100) {
        bench.take(&acme, part).await;
    }
    update(&bench, &acme).await;
    bench.take(&acme, &office(50)).await;
    let answer = versions(&bench, &acme).await;
    assert_eq!(roles(&answer), [(2, ModelRole::Candidate), (1, ModelRole::Live)]);
    let shadow = answer.shadow.unwrap();
    assert_eq!((shadow.version, shadow.batches, shadow.records), (2, 1, 50));
    assert_eq!(shadow.quantiles.len(), 4);
    assert!(!shadow.hindrance.is_empty());
    let drift = answer.drift.unwrap();
    assert!(
        drift.is_known && drift.features.len() == 33 && drift.records >= 1_200,
        "{drift:?}"
    );
    assert!(answer.recent.unwrap().records >= 200);
    assert_eq!(bench.model(&acme).await.weights_sha256, sha);

    // It is nobody else's.
    assert!(versions(&bench, &other).await.versions.is_empty());
    assert_eq!(promote(&bench, &other, 2, true).await, Err(Code::NotFound));
    let asked = models(&bench)
        .get_model_version(by(&other, GetModelVersionRequest { version: 1 }))
        .await;
    assert_eq!(asked.unwrap_err().code(), Code::NotFound);
    let shown = models(&bench)
        .get_model_version(by(&acme, GetModelVersionRequest { version: 2 }))
        .await;
    let manifest: serde_json::Value = serde_json::from_str(&shown.unwrap().into_inner().manifest_json).unwrap();
    assert_eq!(manifest["version"], 2);

    // As after a kill: what was decided is there, without a last checkpoint.
    drop(bench);
    let bench = Bench::on(&database, SMALL).await;
    assert_eq!(
        roles(&versions(&bench, &acme).await),
        [(2, ModelRole::Candidate), (1, ModelRole::Live)]
    );
    assert_eq!(bench.model(&acme).await.weights_sha256, sha);
    assert_eq!(promote(&bench, &acme, 1, false).await, Err(Code::NotFound));
    assert_eq!(promote(&bench, &acme, 2, true).await, Ok(2));
    let second = bench.model(&acme).await;
    assert_ne!(second.weights_sha256, sha);

    drop(bench);
    let bench = Bench::on(&database, SMALL).await;
    let answer = versions(&bench, &acme).await;
    assert_eq!(roles(&answer), [(2, ModelRole::Live), (1, ModelRole::Retired)]);
    assert!(answer.shadow.is_none());
    assert_eq!(bench.model(&acme).await.weights_sha256, second.weights_sha256);
    bench.take(&acme, &office(20)).await;

    // Back to the first, which scores again.
    assert_eq!(roll_back(&bench, &acme, 2).await, Err(Code::FailedPrecondition));
    assert_eq!(roll_back(&bench, &acme, 9).await, Err(Code::NotFound));
    assert_eq!(roll_back(&bench, &acme, 0).await, Ok(1));
    drop(bench);
    let bench = Bench::on(&database, SMALL).await;
    assert_eq!(
        roles(&versions(&bench, &acme).await),
        [(2, ModelRole::Retired), (1, ModelRole::Live)]
    );
    let model = bench.model(&acme).await;
    assert_eq!((model.weights_sha256, model.scored_flows), (sha, 0));
    bench.take(&acme, &office(20)).await;
    assert_eq!(bench.model(&acme).await.scored_flows, 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn recent_rows_and_what_is_known_of_a_candidate_survive_a_checkpoint() {
    let database = database().await;
    let bench = Bench::on(&database, SMALL).await;
    let acme = tenant("acme");
    learn(&bench, &acme).await;
    for part in office(400).chunks(100) {
        bench.take(&acme, part).await;
    }
    let scan: Vec<Flow> = (1..=20)
        .map(|port| Flow::refused("10.1.0.3", "10.0.0.2", port))
        .collect();
    bench.take(&acme, &scan).await;
    update(&bench, &acme).await;
    bench.take(&acme, &office(60)).await;
    bench.engine.checkpoint().await.unwrap();
    let before = versions(&bench, &acme).await;
    assert!(before.recent.unwrap().suspects >= 1 && before.shadow.as_ref().unwrap().records == 60);
    drop(bench);
    let bench = Bench::on(&database, SMALL).await;
    let after = versions(&bench, &acme).await;
    assert_eq!((&after.shadow, &after.drift), (&before.shadow, &before.drift));
    // Of the recent rows the latest few may be missing.
    let (then, now) = (before.recent.unwrap(), after.recent.unwrap());
    assert_eq!(now.suspects, then.suspects);
    assert!(
        now.records + 64 >= then.records && now.records >= 200,
        "{now:?} {then:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn old_versions_are_forgotten_and_those_in_use_are_not() {
    let database = database().await;
    let bench = Bench::on(&database, SMALL).await;
    let acme = tenant("acme");
    learn(&bench, &acme).await;
    for part in office(300).chunks(100) {
        bench.take(&acme, part).await;
    }
    for _ in 2..=13 {
        update(&bench, &acme).await;
    }
    let known = roles(&versions(&bench, &acme).await);
    // Ten, and the first, which is live.
    assert_eq!(known.first(), Some(&(13, ModelRole::Candidate)));
    assert_eq!(known.last(), Some(&(1, ModelRole::Live)));
    assert_eq!(known.len(), 11);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_of_an_earlier_release_goes_on_and_is_followed_by_an_ensemble() {
    let database = database().await;
    let bench = Bench::on(&database, OLD).await;
    let acme = tenant("acme");
    learn(&bench, &acme).await;
    drop(bench);
    // Earlier releases kept nothing of a training but weights and manifest.
    let db = Db::connect(&database, "anomaly").unwrap();
    let mut tx = db.begin(&acme).await.unwrap();
    sqlx::query("UPDATE model SET profile = NULL")
        .execute(&mut *tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();

    let bench = Bench::on(&database, SMALL).await;
    for part in office(900).chunks(100) {
        bench.take(&acme, part).await;
    }
    assert_eq!(bench.model(&acme).await.scored_flows, 900);
    let answer = versions(&bench, &acme).await;
    assert_eq!(answer.versions[0].kind, "autoencoder");
    assert!(answer.drift.is_none() && answer.versions[0].reference_attacks.is_empty());
    update(&bench, &acme).await;
    let answer = versions(&bench, &acme).await;
    let kinds: Vec<&str> = answer.versions.iter().map(|v| v.kind.as_str()).collect();
    assert_eq!(kinds, ["ensemble", "autoencoder"]);
    assert_eq!(promote(&bench, &acme, 2, true).await, Ok(2));
    // Back to it: its threshold comes from the recent records.
    assert_eq!(roll_back(&bench, &acme, 1).await, Ok(1));
    assert!(bench.model(&acme).await.threshold > 0.0);
}

#[tokio::test]
async fn a_request_without_a_verified_caller_is_refused() {
    let bench = Bench::on(&database().await, SMALL).await;
    let api = models(&bench);
    for status in [
        api.list_model_versions(Request::new(ListModelVersionsRequest {}))
            .await
            .err(),
        api.get_model_version(Request::new(GetModelVersionRequest { version: 1 }))
            .await
            .err(),
        api.update_model(Request::new(UpdateModelRequest {})).await.err(),
        api.promote_model(Request::new(PromoteModelRequest::default()))
            .await
            .err(),
        api.roll_back_model(Request::new(RollBackModelRequest::default()))
            .await
            .err(),
    ] {
        assert!(matches!(status.unwrap().code(), Code::Unauthenticated | Code::Internal));
    }
}
