//! gRPC: convert, ask the use case, convert. The layer in front has authenticated and authorised the caller.

pub mod budget;
pub mod models;
pub mod risk;
pub mod verdicts;

use std::sync::Arc;

use garrison_auth::caller;
use garrison_intel::{Kind, Value};
use garrison_proto::alert::v1::{
    Detector as DetectorMessage, FinishLearningRequest, FinishLearningResponse, GetModelRequest, GetModelResponse,
    ListDetectorsRequest, ListDetectorsResponse, ListIndicatorFeedsRequest, ListIndicatorFeedsResponse,
    LookupIndicatorRequest, LookupIndicatorResponse, StartLearningRequest, StartLearningResponse,
    budget_service_server::BudgetServiceServer,
    detection_service_server::{DetectionService, DetectionServiceServer},
    model_service_server::ModelServiceServer,
    risk_service_server::RiskServiceServer,
    verdict_service_server::VerdictServiceServer,
};
use garrison_service::audit::caller_actor;
use tonic::{Request, Response, Status, service::Routes};

use crate::{
    app::{Engine, Risks},
    domain::{detector::Detector, tenant::Origin},
    error::Error,
};

/// Serves `garrison.alert.v1.DetectionService`.
pub struct Api(pub Arc<Engine>);

/// The gRPC services of anomaly.
pub fn routes(engine: Arc<Engine>, risks: Risks) -> Routes {
    Routes::new(DetectionServiceServer::new(Api(Arc::clone(&engine))))
        .add_service(ModelServiceServer::new(models::Models(Arc::clone(&engine))))
        .add_service(BudgetServiceServer::new(budget::Budgets(Arc::clone(&engine))))
        .add_service(RiskServiceServer::new(risk::RiskApi(risks)))
        .add_service(VerdictServiceServer::new(verdicts::Verdicts(engine)))
}

#[tonic::async_trait]
impl DetectionService for Api {
    async fn list_detectors(
        &self,
        request: Request<ListDetectorsRequest>,
    ) -> Result<Response<ListDetectorsResponse>, Status> {
        let caller = caller(&request)?;
        let (_, alerts) = self.0.model(&caller.tenant).await?;
        let settings = self.0.settings();
        let detectors = Detector::ALL.iter().map(|detector| DetectorMessage {
            id: detector.id().to_owned(),
            description: detector.description().to_owned(),
            severity: detector.severity().into(),
            techniques: detector.techniques(),
            enabled: settings.runs(*detector),
            alerts: alerts[detector.index()],
        });
        Ok(Response::new(ListDetectorsResponse {
            detectors: detectors.collect(),
        }))
    }

    async fn get_model(&self, request: Request<GetModelRequest>) -> Result<Response<GetModelResponse>, Status> {
        let caller = caller(&request)?;
        let (model, _) = self.0.model(&caller.tenant).await?;
        Ok(Response::new(GetModelResponse { model: Some(model) }))
    }

    async fn start_learning(
        &self,
        request: Request<StartLearningRequest>,
    ) -> Result<Response<StartLearningResponse>, Status> {
        let caller = caller(&request)?;
        let origin = if request.get_ref().include_unusual {
            Origin::WholePeriod
        } else {
            Origin::Period
        };
        let actor = caller_actor(&caller);
        let model = self.0.start_learning(&caller.tenant, actor, origin).await?;
        Ok(Response::new(StartLearningResponse { model: Some(model) }))
    }

    async fn finish_learning(
        &self,
        request: Request<FinishLearningRequest>,
    ) -> Result<Response<FinishLearningResponse>, Status> {
        let caller = caller(&request)?;
        let model = self.0.finish_learning(&caller.tenant, caller_actor(&caller)).await?;
        Ok(Response::new(FinishLearningResponse { model: Some(model) }))
    }

    async fn list_indicator_feeds(
        &self,
        request: Request<ListIndicatorFeedsRequest>,
    ) -> Result<Response<ListIndicatorFeedsResponse>, Status> {
        caller(&request)?;
        Ok(Response::new(self.0.intel().feeds()))
    }

    async fn lookup_indicator(
        &self,
        request: Request<LookupIndicatorRequest>,
    ) -> Result<Response<LookupIndicatorResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.get_ref();
        let value = match request.kind.as_str() {
            "" => Value::guess(&request.value, false).map_err(|e| Error::argument("value", e.to_string()))?,
            name => {
                let kind = Kind::of_name(name).ok_or_else(|| {
                    let kinds = Kind::ALL.map(Kind::name).join(", ");
                    Error::argument("kind", format!("{name:?} is none of {kinds}"))
                })?;
                Value::parse(kind, &request.value).map_err(|e| Error::argument("value", e.to_string()))?
            }
        };
        Ok(Response::new(self.0.intel().lookup(&caller.tenant, &value)))
    }
}
