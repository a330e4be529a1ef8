use clap::{Subcommand, ValueEnum};
use garrison_proto::{
    Timestamp,
    alert::v1::{
        Alert, Classification, Entity, ListDetectorsRequest, ListRankedAlertsRequest, RecordVerdictRequest, Severity,
        Verdict, detection_service_client::DetectionServiceClient, verdict_service_client::VerdictServiceClient,
    },
    response::v1::{GetAlertRequest, ListAlertsRequest, alert_service_client::AlertServiceClient},
};

use crate::{
    Context,
    commands::{
        budget::{Budget, Held, release},
        intel, pages, parse_time,
    },
    error::CliError,
    output::{time, word},
};

/// A severity as an argument.
#[derive(Clone, Copy, ValueEnum)]
pub enum Level {
    Info,
    Low,
    Medium,
    High,
    Critical,
}

impl From<Level> for Severity {
    fn from(level: Level) -> Self {
        match level {
            Level::Info => Self::Info,
            Level::Low => Self::Low,
            Level::Medium => Self::Medium,
            Level::High => Self::High,
            Level::Critical => Self::Critical,
        }
    }
}

/// Show what detectors found.
#[derive(Subcommand)]
pub enum Alerts {
    /// List alerts, newest first
    ///
    /// For example: garrison alerts list --severity high --since 1h
    List {
        /// Only these severities
        #[arg(long, value_enum)]
        severity: Vec<Level>,
        /// Only detectors that begin with this
        #[arg(long)]
        detector: Vec<String>,
        /// Only alerts about or against this address
        #[arg(long)]
        entity: Option<String>,
        /// Not before this time, or this long ago
        #[arg(long, value_parser = parse_time)]
        since: Option<Timestamp>,
        /// Before this time, or this long ago
        #[arg(long, value_parser = parse_time)]
        until: Option<Timestamp>,
        /// At most so many
        #[arg(long, default_value_t = 50)]
        limit: usize,
    },
    /// Show one alert: who, what, how sure, and why
    Show {
        /// Its id
        alert: String,
    },
    /// List detectors
    Detectors,
    /// List the alerts of anomaly, those to look at first in front
    ///
    /// The order is by severity, confidence and what people said of alerts like them.
    Rank {
        /// Detected within so many hours
        #[arg(long, default_value_t = 24)]
        hours: u32,
        /// At most so many
        #[arg(long, default_value_t = 50)]
        limit: u32,
    },
    /// Say whether an alert was right, which moves it and its like up or down
    ///
    /// For example: garrison alerts verdict 0197... benign --comment "the nightly backup"
    Verdict {
        /// Its id
        alert: String,
        /// What it was
        #[arg(value_enum)]
        verdict: Word,
        /// Why
        #[arg(long, default_value = "")]
        comment: String,
    },
    /// Show how many alerts a day are promised and how the promise is kept, or promise another number
    Budget(Budget),
    /// List alerts that were held back for the promise, latest first, each with the reason
    ///
    /// For example: garrison alerts held --group model
    Held(Held),
    /// Raise an alert that was held back, and its repeats from then on
    Release {
        /// Its id
        alert: String,
        /// Why
        #[arg(long, default_value = "")]
        comment: String,
    },
}

/// A verdict as an argument.
#[derive(Clone, Copy, ValueEnum)]
pub enum Word {
    /// It happened, and is what the detector takes it for
    True,
    /// It is not what the detector takes it for
    False,
    /// It happened, and is meant to
    Benign,
}

impl From<Word> for Verdict {
    fn from(word: Word) -> Self {
        match word {
            Word::True => Self::True,
            Word::False => Self::False,
            Word::Benign => Self::Benign,
        }
    }
}

impl Alerts {
    pub async fn run(self, context: &Context) -> Result<(), CliError> {
        match self {
            Self::List {
                severity,
                detector,
                entity,
                since,
                until,
                limit,
            } => {
                let mut client = AlertServiceClient::new(context.remote.service("responder").await?);
                let severities: Vec<i32> = severity.into_iter().map(|level| Severity::from(level).into()).collect();
                let alerts = pages!(limit, |page_size, page_token| {
                    let request = ListAlertsRequest {
                        page_size,
                        page_token,
                        severities: severities.clone(),
                        detectors: detector.clone(),
                        entity: entity.clone().unwrap_or_default(),
                        since,
                        until,
                    };
                    let answer = client.list_alerts(request).await?.into_inner();
                    (answer.alerts, answer.next_page_token)
                });
                let headers = ["id", "time", "severity", "detector", "who", "to whom", "count", "title"];
                context.printer.list("alerts", &headers, &alerts, |alert| {
                    vec![
                        alert.alert_id.clone(),
                        time(alert.detected_time.as_ref()),
                        word(alert.severity().as_str_name(), "SEVERITY_"),
                        alert.detector.clone(),
                        alert
                            .entity
                            .as_ref()
                            .map(|entity| entity.value.clone())
                            .unwrap_or_default(),
                        entities(&alert.targets, 2),
                        alert.count.to_string(),
                        alert.title.clone(),
                    ]
                });
                Ok(())
            }
            Self::Show { alert } => {
                let mut client = AlertServiceClient::new(context.remote.service("responder").await?);
                let answer = client
                    .get_alert(GetAlertRequest { alert_id: alert })
                    .await?
                    .into_inner();
                let alert = answer.alert.clone().ok_or(CliError::Answer("responder", "the alert"))?;
                context.printer.record(&answer, &show(&alert, &answer.incident));
                Ok(())
            }
            Self::Budget(budget) => budget.run(context).await,
            Self::Held(held) => held.run(context).await,
            Self::Release { alert, comment } => release(context, alert, comment).await,
            Self::Rank { hours, limit } => rank(context, hours, limit).await,
            Self::Verdict {
                alert,
                verdict: said,
                comment,
            } => verdict(context, alert, said.into(), comment).await,
            Self::Detectors => {
                let mut client = DetectionServiceClient::new(context.remote.service("anomaly").await?);
                let detectors = client
                    .list_detectors(ListDetectorsRequest {})
                    .await?
                    .into_inner()
                    .detectors;
                let headers = ["detector", "severity", "techniques", "alerts", "description"];
                context.printer.list("detectors", &headers, &detectors, |detector| {
                    vec![
                        detector.id.clone(),
                        word(detector.severity().as_str_name(), "SEVERITY_"),
                        detector
                            .techniques
                            .iter()
                            .map(|t| t.id.as_str())
                            .collect::<Vec<_>>()
                            .join(" "),
                        detector.alerts.to_string(),
                        detector.description.clone(),
                    ]
                });
                Ok(())
            }
        }
    }
}

async fn rank(context: &Context, hours: u32, limit: u32) -> Result<(), CliError> {
    let mut client = VerdictServiceClient::new(context.remote.service("anomaly").await?);
    let request = ListRankedAlertsRequest {
        within_seconds: hours.saturating_mul(3_600),
        page_size: limit,
    };
    let alerts = client.list_ranked_alerts(request).await?.into_inner().alerts;
    let headers = ["rank", "id", "time", "severity", "detector", "who", "count", "title"];
    context.printer.list("alerts", &headers, &alerts, |ranked| {
        let alert = ranked.alert.clone().unwrap_or_default();
        vec![
            format!("{:.0}", ranked.rank),
            alert.alert_id.clone(),
            time(alert.detected_time.as_ref()),
            word(alert.severity().as_str_name(), "SEVERITY_"),
            alert.detector.clone(),
            alert.entity.map(|entity| entity.value).unwrap_or_default(),
            alert.count.to_string(),
            alert.title,
        ]
    });
    Ok(())
}

async fn verdict(context: &Context, alert: String, verdict: Verdict, comment: String) -> Result<(), CliError> {
    let mut client = VerdictServiceClient::new(context.remote.service("anomaly").await?);
    let request = RecordVerdictRequest {
        alert_id: alert,
        verdict: verdict.into(),
        comment,
    };
    let answer = client.record_verdict(request).await?.into_inner();
    let ranked = answer.alert.clone().ok_or(CliError::Answer("anomaly", "the alert"))?;
    let alert = ranked.alert.unwrap_or_default();
    let fields = [
        ("alert", alert.alert_id),
        ("title", alert.title),
        ("rank", format!("{:.0}", ranked.rank)),
        ("moved by verdicts", format!("times {:.2}", ranked.verdict_factor)),
    ];
    context.printer.record(&answer, &fields);
    Ok(())
}

/// Some entities as text, with the number of those left out.
pub fn entities(entities: &[Entity], most: usize) -> String {
    let mut text: Vec<String> = entities.iter().take(most).map(|entity| entity.value.clone()).collect();
    if entities.len() > most {
        text.push(format!("and {} more", entities.len() - most));
    }
    text.join(", ")
}

fn looks_like(class: &Classification) -> String {
    let percent = 100.0 * class.probability;
    match class.name.as_str() {
        "" => format!("nothing known for sure (the likeliest class has {percent:.0} %)"),
        name => format!("{name} ({percent:.0} %)"),
    }
}

fn show(alert: &Alert, incident: &str) -> Vec<(&'static str, String)> {
    let techniques: Vec<String> = alert
        .techniques
        .iter()
        .map(|t| match t.name.as_str() {
            "" => t.id.clone(),
            name => format!("{} {name} ({})", t.id, t.tactic),
        })
        .collect();
    let features: Vec<String> = alert
        .features
        .iter()
        .map(|f| {
            let share = f.contribution * 100.0;
            let normal = f
                .normal
                .map_or(String::new(), |n| format!("; {n:.4} would have been normal"));
            format!(
                "{} {:.4} {} (usual {:.4}, {share:.0} % of the score{normal})",
                f.name, f.value, f.unit, f.usual
            )
        })
        .collect();
    let flows: Vec<String> = alert
        .flows
        .iter()
        .map(|f| {
            format!(
                "{}:{} → {}:{}  {}",
                f.src_ip, f.src_port, f.dst_ip, f.dst_port, f.flow_id
            )
        })
        .collect();
    vec![
        ("alert", alert.alert_id.clone()),
        ("title", alert.title.clone()),
        ("severity", word(alert.severity().as_str_name(), "SEVERITY_")),
        ("confidence", format!("{:.2}", alert.confidence)),
        ("detector", alert.detector.clone()),
        (
            "score",
            format!("{:.4} over a threshold of {:.4}", alert.score, alert.threshold),
        ),
        (
            "who",
            alert
                .entity
                .as_ref()
                .map(|entity| entity.value.clone())
                .unwrap_or_default(),
        ),
        ("to whom", entities(&alert.targets, 20)),
        ("technique", techniques.join("\n")),
        (
            "looks like",
            alert.classification.as_ref().map(looks_like).unwrap_or_default(),
        ),
        (
            "indicators",
            alert.indicators.iter().map(intel::said).collect::<Vec<_>>().join("\n"),
        ),
        ("policy", alert.policy.clone()),
        ("first seen", time(alert.first_seen.as_ref())),
        ("last seen", time(alert.last_seen.as_ref())),
        ("triggered by packet of", time(alert.trigger_time.as_ref())),
        ("detected", time(alert.detected_time.as_ref())),
        ("count", alert.count.to_string()),
        ("why", features.join("\n")),
        ("flows", flows.join("\n")),
        ("incident", incident.to_owned()),
    ]
}
