use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};
use garrison_proto::{
    alert::v1::Alert,
    response::v1::{
        CloseIncidentRequest, GetAlertRequest, GetIncidentRequest, GetResponseRequest, GetTimelineRequest, Incident,
        IncidentStatus, ListIncidentsRequest, Response, alert_service_client::AlertServiceClient,
        incident_service_client::IncidentServiceClient, response_service_client::ResponseServiceClient,
    },
};

use crate::{
    Context,
    commands::{alerts::entities, create, incident_page, named, pages},
    error::CliError,
    output::{time, word},
};

/// A status as an argument.
#[derive(Clone, Copy, ValueEnum)]
pub enum Status {
    Open,
    Contained,
    Closed,
}

/// Show and close incidents.
#[derive(Subcommand)]
pub enum Incidents {
    /// List incidents, newest first
    List {
        /// Only these
        #[arg(long, value_enum)]
        status: Vec<Status>,
        /// At most so many
        #[arg(long, default_value_t = 50)]
        limit: usize,
    },
    /// Show one incident
    Show {
        /// Its name or id
        incident: String,
    },
    /// Everything that happened in an incident, oldest first
    Timeline {
        /// Its name or id
        incident: String,
    },
    /// Write an incident on one self-contained HTML page
    ///
    /// For example: garrison incidents report 0192… --html incident.html
    Report {
        /// Its name or id
        incident: String,
        /// Where to; must not exist yet; - for standard output
        #[arg(long, value_name = "FILE")]
        html: PathBuf,
    },
    /// Close an incident
    Close {
        /// Its name or id
        incident: String,
        /// Why, for the record
        #[arg(long)]
        reason: String,
    },
}

impl Incidents {
    pub async fn run(self, context: &Context) -> Result<(), CliError> {
        let mut client = IncidentServiceClient::new(context.remote.service("responder").await?);
        match self {
            Self::List { status, limit } => {
                let statuses: Vec<i32> = status
                    .into_iter()
                    .map(|status| match status {
                        Status::Open => IncidentStatus::Open.into(),
                        Status::Contained => IncidentStatus::Contained.into(),
                        Status::Closed => IncidentStatus::Closed.into(),
                    })
                    .collect();
                let incidents = pages!(limit, |page_size, page_token| {
                    let request = ListIncidentsRequest {
                        page_size,
                        page_token,
                        statuses: statuses.clone(),
                    };
                    let answer = client.list_incidents(request).await?.into_inner();
                    (answer.incidents, answer.next_page_token)
                });
                let headers = [
                    "incident",
                    "status",
                    "severity",
                    "score",
                    "alerts",
                    "last seen",
                    "entities",
                    "title",
                ];
                context.printer.list("incidents", &headers, &incidents, |incident| {
                    vec![
                        incident.name.clone(),
                        word(incident.status().as_str_name(), "INCIDENT_STATUS_"),
                        word(incident.severity().as_str_name(), "SEVERITY_"),
                        format!("{:.1}", incident.score),
                        incident.alert_count.to_string(),
                        time(incident.last_seen.as_ref()),
                        entities(&incident.entities, 3),
                        incident.title.clone(),
                    ]
                });
            }
            Self::Show { incident } => {
                let request = GetIncidentRequest {
                    name: named("incidents", &incident),
                };
                show(context, client.get_incident(request).await?.into_inner().incident)?;
            }
            Self::Timeline { incident } => {
                let request = GetTimelineRequest {
                    name: named("incidents", &incident),
                };
                let entries = client.get_timeline(request).await?.into_inner().entries;
                context.printer.list(
                    "entries",
                    &["time", "kind", "who", "what", "subject"],
                    &entries,
                    |entry| {
                        vec![
                            time(entry.time.as_ref()),
                            entry.kind.clone(),
                            entry.actor.clone(),
                            entry.summary.clone(),
                            entry.subject.clone(),
                        ]
                    },
                );
            }
            Self::Report { incident, html } => {
                let name = named("incidents", &incident);
                let request = GetIncidentRequest { name: name.clone() };
                let incident = client.get_incident(request).await?.into_inner().incident;
                let incident = incident.ok_or(CliError::Answer("responder", "the incident"))?;
                let timeline = client
                    .get_timeline(GetTimelineRequest { name })
                    .await?
                    .into_inner()
                    .entries;
                let alerts = alerts(context, &incident).await?;
                let responses = responses(context, &incident).await?;
                let page = incident_page::page(&incident, &alerts, &responses, &timeline);
                let mut out = create(&html)?;
                out.write_all(page.as_bytes())
                    .and_then(|()| out.flush())
                    .map_err(|source| CliError::file("writing", &html, source))?;
                eprintln!("wrote {}", html.display());
            }
            Self::Close { incident, reason } => {
                let request = CloseIncidentRequest {
                    name: named("incidents", &incident),
                    reason,
                };
                show(context, client.close_incident(request).await?.into_inner().incident)?;
            }
        }
        Ok(())
    }
}

/// Most alerts that a page shows; an incident of thousands is told by its first ones.
const PAGE_ALERTS: usize = 200;

async fn alerts(context: &Context, incident: &Incident) -> Result<Vec<Alert>, CliError> {
    let mut client = AlertServiceClient::new(context.remote.service("responder").await?);
    let mut alerts = Vec::new();
    for alert_id in incident.alert_ids.iter().take(PAGE_ALERTS).cloned() {
        alerts.extend(client.get_alert(GetAlertRequest { alert_id }).await?.into_inner().alert);
    }
    Ok(alerts)
}

async fn responses(context: &Context, incident: &Incident) -> Result<Vec<Response>, CliError> {
    let mut client = ResponseServiceClient::new(context.remote.service("responder").await?);
    let mut responses = Vec::new();
    for name in incident.responses.iter().cloned() {
        responses.extend(
            client
                .get_response(GetResponseRequest { name })
                .await?
                .into_inner()
                .response,
        );
    }
    Ok(responses)
}

fn show(context: &Context, incident: Option<Incident>) -> Result<(), CliError> {
    let incident = incident.ok_or(CliError::Answer("responder", "the incident"))?;
    let techniques: Vec<String> = incident
        .techniques
        .iter()
        .map(|t| format!("{} {} ({})", t.id, t.name, t.tactic))
        .collect();
    let fields = [
        ("incident", incident.name.clone()),
        ("title", incident.title.clone()),
        ("status", word(incident.status().as_str_name(), "INCIDENT_STATUS_")),
        ("severity", word(incident.severity().as_str_name(), "SEVERITY_")),
        ("score", format!("{:.1}", incident.score)),
        ("entities", entities(&incident.entities, 20)),
        ("techniques", techniques.join("\n")),
        ("first seen", time(incident.first_seen.as_ref())),
        ("last seen", time(incident.last_seen.as_ref())),
        (
            "alerts",
            format!("{}\n{}", incident.alert_count, incident.alert_ids.join("\n")),
        ),
        ("responses", incident.responses.join("\n")),
    ];
    context.printer.record(&incident, &fields);
    Ok(())
}
