use chrono::{Duration, Utc};
use garrison_proto::response::v1::{
    ApproveResponseRequest, ApproveResponseResponse, CreateResponseRequest, CreateResponseResponse, GetResponseRequest,
    GetResponseResponse, ListResponsesRequest, ListResponsesResponse, RejectResponseRequest, RejectResponseResponse,
    ResponseState, RollbackResponseRequest, RollbackResponseResponse, response_service_server::ResponseService,
};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::{Api, enumeration, name, not_found, optional_name, page::Page, status};
use crate::{app::NewResponse, error::AppError};

#[allow(clippy::result_large_err)]
fn new_response(asked: CreateResponseRequest) -> Result<NewResponse, Status> {
    let action = asked.action();
    let ttl = match asked.ttl {
        None => None,
        Some(given) => {
            let whole = Duration::try_seconds(given.seconds)
                .and_then(|whole| whole.checked_add(&Duration::nanoseconds(i64::from(given.nanos))))
                .ok_or_else(|| status(AppError::field("ttl", "outside what can be counted")))?;
            Some(whole)
        }
    };
    let request = match asked.request_id.as_str() {
        "" => None,
        given => Some(Uuid::parse_str(given).map_err(|_| status(AppError::field("request_id", "not a UUID")))?),
    };
    Ok(NewResponse {
        action,
        target: asked.target,
        ttl,
        packets_per_second: asked.packets_per_second,
        incident: optional_name("incidents", "incident", &asked.incident)?,
        reason: asked.reason,
        request,
    })
}

#[tonic::async_trait]
impl ResponseService for Api {
    async fn list_responses(
        &self,
        request: Request<ListResponsesRequest>,
    ) -> Result<Response<ListResponsesResponse>, Status> {
        let caller = garrison_auth::caller(&request)?;
        let asked = request.into_inner();
        let filters = (&asked.states, &asked.incident);
        let page = Page::read(asked.page_size, &asked.page_token, &filters)?;
        let states = enumeration::<ResponseState>("states", &asked.states)?;
        let incident = optional_name("incidents", "incident", &asked.incident)?;
        let found = self
            .app
            .list_responses(&caller.tenant, &states, incident, page.after, page.limit())
            .await
            .map_err(status)?;
        let (found, next_page_token) = page.cut(found, |(created, id, _)| (*created, *id));
        Ok(Response::new(ListResponsesResponse {
            responses: found.into_iter().map(|(_, _, response)| response).collect(),
            next_page_token,
        }))
    }

    async fn get_response(
        &self,
        request: Request<GetResponseRequest>,
    ) -> Result<Response<GetResponseResponse>, Status> {
        let caller = garrison_auth::caller(&request)?;
        let given = &request.get_ref().name;
        let id = name("responses", "name", given)?;
        let found = self
            .app
            .get_response(&caller.tenant, id)
            .await
            .map_err(status)?
            .ok_or_else(|| not_found(given))?;
        Ok(Response::new(GetResponseResponse { response: Some(found) }))
    }

    async fn create_response(
        &self,
        request: Request<CreateResponseRequest>,
    ) -> Result<Response<CreateResponseResponse>, Status> {
        let caller = garrison_auth::caller(&request)?;
        let wanted = new_response(request.into_inner())?;
        let response = self
            .app
            .create_response(&caller, &wanted, Utc::now())
            .await
            .map_err(status)?;
        Ok(Response::new(CreateResponseResponse {
            response: Some(response),
        }))
    }

    async fn approve_response(
        &self,
        request: Request<ApproveResponseRequest>,
    ) -> Result<Response<ApproveResponseResponse>, Status> {
        let caller = garrison_auth::caller(&request)?;
        let asked = request.into_inner();
        let id = name("responses", "name", &asked.name)?;
        let response = self
            .app
            .approve_response(&caller, id, &asked.reason, Utc::now())
            .await
            .map_err(status)?;
        Ok(Response::new(ApproveResponseResponse {
            response: Some(response),
        }))
    }

    async fn reject_response(
        &self,
        request: Request<RejectResponseRequest>,
    ) -> Result<Response<RejectResponseResponse>, Status> {
        let caller = garrison_auth::caller(&request)?;
        let asked = request.into_inner();
        let id = name("responses", "name", &asked.name)?;
        let response = self
            .app
            .reject_response(&caller, id, &asked.reason, Utc::now())
            .await
            .map_err(status)?;
        Ok(Response::new(RejectResponseResponse {
            response: Some(response),
        }))
    }

    async fn rollback_response(
        &self,
        request: Request<RollbackResponseRequest>,
    ) -> Result<Response<RollbackResponseResponse>, Status> {
        let caller = garrison_auth::caller(&request)?;
        let asked = request.into_inner();
        let id = name("responses", "name", &asked.name)?;
        let response = self
            .app
            .roll_back_response(&caller, id, &asked.reason, Utc::now())
            .await
            .map_err(status)?;
        Ok(Response::new(RollbackResponseResponse {
            response: Some(response),
        }))
    }
}
