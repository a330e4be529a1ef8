//! `ReportService`.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use garrison_auth::caller;
use garrison_db::Db;
use garrison_proto::{
    Timestamp,
    compliance::v1::{
        Control, CreateReportRequest, CreateReportResponse, GetReportRequest, GetReportResponse, ListControlsRequest,
        ListControlsResponse, ListReportsRequest, ListReportsResponse, Report, report_service_server::ReportService,
    },
    from_timestamp, parse_name, resource_name, to_timestamp,
};

use tonic::{Request, Response, Status};

use super::{page_size, uuid};
use crate::{
    app::{checkpoints::Checkpoints, reports},
    domain::controls,
    error::Error,
    store,
};

/// The period of a report when the caller names none.
const DEFAULT_PERIOD: TimeDelta = TimeDelta::days(90);

/// Reports over gRPC.
pub struct Reports {
    /// The database.
    pub db: Db,
    /// Signs.
    pub checkpoints: Arc<Checkpoints>,
    /// Entries quoted for each objective.
    pub evidence_per_observation: usize,
}

fn report(report: store::Report) -> Report {
    Report {
        name: resource_name("reports", report.id),
        framework: report.framework,
        since: Some(to_timestamp(report.since)),
        until: Some(to_timestamp(report.until)),
        created: Some(to_timestamp(report.created)),
        oscal_json: report.oscal_json,
        html: report.html,
        checkpoint: report.checkpoint,
        findings: report.findings,
    }
}

fn time(field: &'static str, value: Option<&Timestamp>) -> Result<Option<DateTime<Utc>>, Error> {
    let Some(value) = value else { return Ok(None) };
    let time = from_timestamp(value).filter(|time| (1..=9_999).contains(&chrono::Datelike::year(time)));
    time.map(Some).ok_or(Error::Field {
        field,
        message: "is not a time between the years 1 and 9999".to_owned(),
    })
}

#[tonic::async_trait]
impl ReportService for Reports {
    async fn list_controls(
        &self,
        request: Request<ListControlsRequest>,
    ) -> Result<Response<ListControlsResponse>, Status> {
        caller(&request)?;
        let controls = controls::CONTROLS.iter().map(|control| Control {
            id: control.id.to_owned(),
            framework: controls::SOC2.to_owned(),
            title: control.title.to_owned(),
        });
        Ok(Response::new(ListControlsResponse {
            controls: controls.collect(),
        }))
    }

    async fn create_report(
        &self,
        request: Request<CreateReportRequest>,
    ) -> Result<Response<CreateReportResponse>, Status> {
        let tenant = caller(&request)?.tenant;
        let request = request.into_inner();
        if request.framework != controls::SOC2 {
            let shown: String = request.framework.chars().take(80).collect();
            let message = format!("{shown:?} is not known; use {:?}", controls::SOC2);
            return Err(Error::Field {
                field: "framework",
                message,
            }
            .into());
        }
        let until = time("until", request.until.as_ref())?.unwrap_or_else(Utc::now);
        let since = time("since", request.since.as_ref())?.unwrap_or(until - DEFAULT_PERIOD);
        if since >= until {
            let message = format!("{since} is not before `until`, {until}");
            return Err(Error::Field {
                field: "since",
                message,
            }
            .into());
        }
        let made = reports::create(
            &self.db,
            &self.checkpoints,
            &tenant,
            (since, until),
            self.evidence_per_observation,
        )
        .await?;
        Ok(Response::new(CreateReportResponse {
            report: Some(report(made)),
        }))
    }

    async fn get_report(&self, request: Request<GetReportRequest>) -> Result<Response<GetReportResponse>, Status> {
        let tenant = caller(&request)?.tenant;
        let name = request.into_inner().name;
        let id = parse_name("reports", &name).map_err(|error| Error::Field {
            field: "name",
            message: error.to_string(),
        })?;
        let mut tx = self
            .db
            .begin(&tenant)
            .await
            .map_err(Error::database("reading a report"))?;
        let found = store::get_report(&mut tx, id).await?;
        let found = found.ok_or_else(|| Error::NotFound {
            what: resource_name("reports", id),
        })?;
        Ok(Response::new(GetReportResponse {
            report: Some(report(found)),
        }))
    }

    async fn list_reports(
        &self,
        request: Request<ListReportsRequest>,
    ) -> Result<Response<ListReportsResponse>, Status> {
        let tenant = caller(&request)?.tenant;
        let request = request.into_inner();
        let limit = page_size(request.page_size, 50, 500)?;
        let after = match request.page_token.as_str() {
            "" => None,
            token => Some(uuid("page_token", token)?),
        };
        let mut tx = self
            .db
            .begin(&tenant)
            .await
            .map_err(Error::database("reading reports"))?;
        let mut found = store::list_reports(&mut tx, after, limit + 1).await?;
        let more = found.len() > limit;
        found.truncate(limit);
        let next_page_token = found
            .last()
            .filter(|_| more)
            .map(|last| last.id.to_string())
            .unwrap_or_default();
        Ok(Response::new(ListReportsResponse {
            reports: found.into_iter().map(report).collect(),
            next_page_token,
        }))
    }
}
