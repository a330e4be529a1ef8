use chrono::Utc;
use garrison_proto::{
    response::v1::{
        CloseIncidentRequest, CloseIncidentResponse, GetIncidentRequest, GetIncidentResponse, GetTimelineRequest,
        GetTimelineResponse, IncidentStatus, ListIncidentsRequest, ListIncidentsResponse, TimelineEntry,
        incident_service_server::IncidentService,
    },
    to_timestamp,
};
use tonic::{Request, Response, Status};

use super::{Api, enumeration, name, not_found, page::Page, status};

#[tonic::async_trait]
impl IncidentService for Api {
    async fn list_incidents(
        &self,
        request: Request<ListIncidentsRequest>,
    ) -> Result<Response<ListIncidentsResponse>, Status> {
        let caller = garrison_auth::caller(&request)?;
        let asked = request.into_inner();
        let page = Page::read(asked.page_size, &asked.page_token, &asked.statuses)?;
        let statuses = enumeration::<IncidentStatus>("statuses", &asked.statuses)?;
        let found = self
            .app
            .list_incidents(&caller.tenant, &statuses, page.after, page.limit())
            .await
            .map_err(status)?;
        let (found, next_page_token) = page.cut(found, |i| (i.created, i.id));
        Ok(Response::new(ListIncidentsResponse {
            incidents: found.iter().map(|i| i.to_proto()).collect(),
            next_page_token,
        }))
    }

    async fn get_incident(
        &self,
        request: Request<GetIncidentRequest>,
    ) -> Result<Response<GetIncidentResponse>, Status> {
        let caller = garrison_auth::caller(&request)?;
        let given = &request.get_ref().name;
        let id = name("incidents", "name", given)?;
        let found = self
            .app
            .get_incident(&caller.tenant, id)
            .await
            .map_err(status)?
            .ok_or_else(|| not_found(given))?;
        Ok(Response::new(GetIncidentResponse {
            incident: Some(found.to_proto()),
        }))
    }

    async fn get_timeline(
        &self,
        request: Request<GetTimelineRequest>,
    ) -> Result<Response<GetTimelineResponse>, Status> {
        let caller = garrison_auth::caller(&request)?;
        let given = &request.get_ref().name;
        let id = name("incidents", "name", given)?;
        let entries = self
            .app
            .timeline(&caller.tenant, id)
            .await
            .map_err(status)?
            .ok_or_else(|| not_found(given))?;
        Ok(Response::new(GetTimelineResponse {
            entries: entries
                .into_iter()
                .map(|entry| TimelineEntry {
                    time: Some(to_timestamp(entry.time)),
                    kind: entry.kind.to_owned(),
                    summary: entry.summary,
                    subject: entry.subject,
                    actor: entry.actor,
                })
                .collect(),
        }))
    }

    async fn close_incident(
        &self,
        request: Request<CloseIncidentRequest>,
    ) -> Result<Response<CloseIncidentResponse>, Status> {
        let caller = garrison_auth::caller(&request)?;
        let asked = request.into_inner();
        let id = name("incidents", "name", &asked.name)?;
        let incident = self
            .app
            .close_incident(&caller, id, &asked.reason, Utc::now())
            .await
            .map_err(status)?;
        Ok(Response::new(CloseIncidentResponse {
            incident: Some(incident),
        }))
    }
}
