use garrison_proto::{
    alert::v1::Severity,
    from_timestamp, resource_name,
    response::v1::{
        GetAlertRequest, GetAlertResponse, ListAlertsRequest, ListAlertsResponse, alert_service_server::AlertService,
    },
};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::{Api, enumeration, not_found, page::Page, status};
use crate::{error::AppError, store::intake::AlertQuery};

/// Most values of one filter.
const MAX_FILTERS: usize = 100;

#[tonic::async_trait]
impl AlertService for Api {
    async fn list_alerts(&self, request: Request<ListAlertsRequest>) -> Result<Response<ListAlertsResponse>, Status> {
        let caller = garrison_auth::caller(&request)?;
        let asked = request.into_inner();
        let filters = (
            &asked.severities,
            &asked.detectors,
            &asked.entity,
            &asked.since,
            &asked.until,
        );
        let page = Page::read(asked.page_size, &asked.page_token, &filters)?;
        if asked.detectors.len() > MAX_FILTERS || asked.severities.len() > MAX_FILTERS {
            return Err(status(AppError::field(
                "detectors",
                format!("more than {MAX_FILTERS} values"),
            )));
        }
        let time = |field: &str, given: &Option<prost_types::Timestamp>| match given {
            None => Ok(None),
            Some(given) => from_timestamp(given)
                .map(Some)
                .ok_or_else(|| status(AppError::field(field, "outside what a calendar can hold"))),
        };
        // Addresses are stored in canonical text.
        let entity = match asked.entity.parse::<std::net::IpAddr>() {
            Ok(address) => address.to_canonical().to_string(),
            Err(_) => asked.entity.clone(),
        };
        let query = AlertQuery {
            severities: enumeration::<Severity>("severities", &asked.severities)?,
            detectors: asked.detectors.clone(),
            entity: Some(entity).filter(|e| !e.is_empty()),
            since: time("since", &asked.since)?,
            until: time("until", &asked.until)?,
            after: page.after,
            limit: page.limit(),
        };
        let found = self.app.list_alerts(&caller.tenant, &query).await.map_err(status)?;
        let (found, next_page_token) = page.cut(found, |a| (a.received, a.id));
        Ok(Response::new(ListAlertsResponse {
            alerts: found.into_iter().map(|a| a.alert).collect(),
            next_page_token,
        }))
    }

    async fn get_alert(&self, request: Request<GetAlertRequest>) -> Result<Response<GetAlertResponse>, Status> {
        let caller = garrison_auth::caller(&request)?;
        let given = &request.get_ref().alert_id;
        let id = Uuid::parse_str(given).map_err(|_| status(AppError::field("alert_id", "not a UUID")))?;
        let found = self
            .app
            .get_alert(&caller.tenant, id)
            .await
            .map_err(status)?
            .ok_or_else(|| not_found(&format!("alert {id}")))?;
        Ok(Response::new(GetAlertResponse {
            incident: resource_name("incidents", found.incident),
            alert: Some(found.alert),
        }))
    }
}
