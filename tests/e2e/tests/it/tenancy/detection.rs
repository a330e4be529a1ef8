//! `alert.v1`: models and detectors.

use garrison_proto::alert::v1::{
    FinishLearningRequest, GetModelRequest, GetModelVersionRequest, ListDetectorsRequest, ListIndicatorFeedsRequest,
    ListModelVersionsRequest, ListRankedAlertsRequest, LookupIndicatorRequest, ModelPhase, PromoteModelRequest,
    RecordVerdictRequest, RollBackModelRequest, StartLearningRequest, UpdateModelRequest, Verdict,
};

use garrison_proto::alert::v1::{
    GetAlarmBudgetRequest, GetEntityRiskRequest, ListEntityRisksRequest, ListHeldAlertsRequest,
    ReleaseHeldAlertRequest, SetAlarmBudgetRequest,
};

use std::time::Duration;

use super::cases;
use crate::{place::until, seed::Side};

cases! {
    "alert.v1.DetectionService/ListDetectors" => |world| {
        // The detectors are the program's; how often they spoke is the tenant's. Nobody's spoke yet: the alerts of
        // these tests do not come from anomaly.
        let answer = world.globex.admin.detection.clone().list_detectors(ListDetectorsRequest {}).await.unwrap();
        assert!(!answer.into_inner().detectors.is_empty());
    };
    "alert.v1.DetectionService/GetModel" => |world| {
        assert_eq!(phase(&world.acme).await, ModelPhase::Learning);
        assert_eq!(phase(&world.globex).await, ModelPhase::Idle);
    };
    "alert.v1.DetectionService/ListIndicatorFeeds" => |world| {
        // Feeds are the installation's: every tenant sees how they fare, and nothing of another tenant is in the answer.
        for side in [&world.acme, &world.globex] {
            let answer = side.admin.detection.clone().list_indicator_feeds(ListIndicatorFeedsRequest {}).await.unwrap();
            assert!(answer.into_inner().feeds.is_empty());
        }
    };
    "alert.v1.DetectionService/LookupIndicator" => |world| {
        let request = LookupIndicatorRequest { value: "192.0.2.1".to_owned(), kind: String::new() };
        let answer = world.globex.admin.detection.clone().lookup_indicator(request).await.unwrap().into_inner();
        // What a tenant allows is its own; nobody's list has it.
        assert!(!answer.allowed && answer.matches.is_empty());
    };
    "alert.v1.VerdictService/ListRankedAlerts" => |world| {
        // The alerts of these tests do not come from anomaly: nobody has any.
        let answer = world.globex.admin.verdicts.clone().list_ranked_alerts(ListRankedAlertsRequest::default()).await;
        assert!(answer.unwrap().into_inner().alerts.is_empty());
    };
    "alert.v1.VerdictService/RecordVerdict" => |world| {
        // An id that another tenant has and one that nobody has are answered the same way.
        let request = RecordVerdictRequest {
            alert_id: "01970000-0000-7000-8000-000000000001".to_owned(),
            verdict: Verdict::False.into(),
            comment: String::new(),
        };
        let outcome = world.globex.admin.verdicts.clone().record_verdict(request).await;
        assert_eq!(outcome.unwrap_err().code(), tonic::Code::NotFound);
    };
    "alert.v1.ModelService/ListModelVersions" => |world| {
        let answer = world.globex.admin.models.clone().list_model_versions(ListModelVersionsRequest {}).await;
        let answer = answer.unwrap().into_inner();
        assert!(answer.versions.is_empty() && answer.shadow.is_none() && answer.drift.is_none());
        assert_eq!(answer.recent.unwrap().records, 0);
    };
    "alert.v1.ModelService/GetModelVersion" => |world| {
        let outcome = world.globex.admin.models.clone().get_model_version(GetModelVersionRequest { version: 1 }).await;
        assert_eq!(outcome.unwrap_err().code(), tonic::Code::NotFound);
    };
    "alert.v1.ModelService/UpdateModel" => |world| {
        // globex has no model; that acme is learning one must neither help nor hurt.
        let outcome = world.globex.admin.models.clone().update_model(UpdateModelRequest {}).await;
        assert_eq!(outcome.unwrap_err().code(), tonic::Code::FailedPrecondition);
        assert_eq!(phase(&world.acme).await, ModelPhase::Learning);
    };
    "alert.v1.ModelService/PromoteModel" => |world| {
        let request = PromoteModelRequest { version: 1, despite_objection: true };
        let outcome = world.globex.admin.models.clone().promote_model(request).await;
        assert_eq!(outcome.unwrap_err().code(), tonic::Code::NotFound);
    };
    "alert.v1.ModelService/RollBackModel" => |world| {
        let outcome = world.globex.admin.models.clone().roll_back_model(RollBackModelRequest { version: 0 }).await;
        assert_eq!(outcome.unwrap_err().code(), tonic::Code::FailedPrecondition);
        assert_eq!(phase(&world.acme).await, ModelPhase::Learning);
    };
    "alert.v1.BudgetService/SetAlarmBudget" => |world| {
        let before = promised(&world.acme).await;
        let request = SetAlarmBudgetRequest { group: "model".to_owned(), alerts_per_day: Some(7.0) };
        world.globex.admin.budgets.clone().set_alarm_budget(request).await.unwrap();
        assert_eq!(promised(&world.globex).await, Some(7.0));
        assert_eq!(promised(&world.acme).await, before, "acme's budget is what globex set");
    };
    "alert.v1.BudgetService/GetAlarmBudget" => |world| {
        let answer = world.globex.admin.budgets.clone().get_alarm_budget(GetAlarmBudgetRequest {}).await.unwrap();
        // What was counted is the tenant's own, and nothing of globex was ever judged.
        for budget in answer.into_inner().budgets {
            let total = budget.total.unwrap();
            assert_eq!((total.issued, total.exempt, total.held), (0, 0, 0), "{}", budget.group);
        }
    };
    "alert.v1.BudgetService/ListHeldAlerts" => |world| {
        let request = ListHeldAlertsRequest { told: true, ..ListHeldAlertsRequest::default() };
        let answer = world.globex.admin.budgets.clone().list_held_alerts(request).await.unwrap();
        assert!(answer.into_inner().alerts.is_empty());
    };
    "alert.v1.RiskService/ListEntityRisks" => |world| {
        // acme's alerts count for acme's hosts; globex knows of none of them.
        let list = async |side: &Side| {
            let request = ListEntityRisksRequest::default();
            let answer = side.admin.risks.clone().list_entity_risks(request).await.unwrap().into_inner();
            answer.risks.into_iter().filter_map(|risk| risk.entity).collect::<Vec<_>>()
        };
        let of_acme = until(Duration::from_secs(60), "acme's risks", || async {
            Some(list(&world.acme).await).filter(|risks| !risks.is_empty())
        })
        .await;
        let of_globex = list(&world.globex).await;
        assert!(of_acme.iter().all(|entity| !of_globex.contains(entity)), "{of_acme:?} {of_globex:?}");
    };
    "alert.v1.RiskService/GetEntityRisk" => |world| {
        let of_acme = until(Duration::from_secs(60), "acme's risks", || async {
            let request = ListEntityRisksRequest::default();
            let answer = world.acme.admin.risks.clone().list_entity_risks(request).await.unwrap().into_inner();
            answer.risks.into_iter().next()
        })
        .await;
        let request = GetEntityRiskRequest { entity: of_acme.entity, page_size: 0 };
        let own = world.acme.admin.risks.clone().get_entity_risk(request.clone()).await.unwrap().into_inner();
        assert!(!own.entries.is_empty());
        let foreign = world.globex.admin.risks.clone().get_entity_risk(request).await.unwrap().into_inner();
        assert!(foreign.entries.is_empty(), "{foreign:?}");
        assert_eq!(foreign.risk.unwrap_or_default().risk, 0.0);
    };
    "alert.v1.BudgetService/ReleaseHeldAlert" => |world| {
        // An id that another tenant has and one that nobody has are answered the same way.
        let request = ReleaseHeldAlertRequest {
            alert_id: "01970000-0000-7000-8000-000000000001".to_owned(),
            comment: String::new(),
        };
        let outcome = world.globex.admin.budgets.clone().release_held_alert(request).await;
        assert_eq!(outcome.unwrap_err().code(), tonic::Code::NotFound);
    };
    "alert.v1.DetectionService/FinishLearning" => |world| {
        // globex is not learning; that acme is must neither help nor hurt.
        let outcome = world.globex.admin.detection.clone().finish_learning(FinishLearningRequest {}).await;
        assert!(outcome.is_err(), "{outcome:?}");
        assert_eq!(phase(&world.acme).await, ModelPhase::Learning);
    };
    "alert.v1.DetectionService/StartLearning" => |world| {
        let before = learnt(&world.acme).await;
        world.globex.admin.detection.clone().start_learning(StartLearningRequest::default()).await.unwrap();
        assert_eq!(phase(&world.globex).await, ModelPhase::Learning);
        assert!(learnt(&world.acme).await >= before, "acme's learning began anew");
    };
}

async fn phase(side: &Side) -> ModelPhase {
    let answer = side
        .admin
        .detection
        .clone()
        .get_model(GetModelRequest {})
        .await
        .unwrap();
    answer.into_inner().model.unwrap().phase()
}

async fn learnt(side: &Side) -> u64 {
    let answer = side
        .admin
        .detection
        .clone()
        .get_model(GetModelRequest {})
        .await
        .unwrap();
    answer.into_inner().model.unwrap().learnt_flows
}

async fn promised(side: &Side) -> Option<f64> {
    let answer = side
        .admin
        .budgets
        .clone()
        .get_alarm_budget(GetAlarmBudgetRequest {})
        .await
        .unwrap();
    let budgets = answer.into_inner().budgets;
    budgets.into_iter().find(|b| b.group == "model").unwrap().alerts_per_day
}
