//! How much speaks against hosts, services and users.

use clap::{Subcommand, ValueEnum};
use garrison_proto::alert::v1::{
    Entity, EntityKind, EntityRisk, GetEntityRiskRequest, ListEntityRisksRequest, RiskEntry,
    risk_service_client::RiskServiceClient,
};

use crate::{
    Context,
    error::CliError,
    output::{time, word},
};

/// How much speaks against hosts, services and users, from alerts and logins.
#[derive(Subcommand)]
pub enum Risks {
    /// Those with the highest risk first
    List {
        /// Only these
        #[arg(long, value_enum)]
        kind: Vec<Kind>,
        /// Only those with at least this risk, 0 to 100
        #[arg(long, default_value_t = 0.0)]
        least: f64,
        /// At most so many
        #[arg(long, default_value_t = 50)]
        limit: u32,
    },
    /// What speaks against one, latest first
    ///
    /// For example: garrison risks show user:alice, garrison risks show 10.0.0.7
    Show {
        /// An address, `service:10.0.0.7:443/6` or `user:LOGIN`
        #[arg(value_parser = entity)]
        entity: Entity,
        /// At most so many entries
        #[arg(long, default_value_t = 100)]
        limit: u32,
    },
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Kind {
    /// By address
    Host,
    /// By address, port and protocol
    Service,
    /// By login
    User,
}

impl From<Kind> for EntityKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Host => Self::Host,
            Kind::Service => Self::Service,
            Kind::User => Self::User,
        }
    }
}

fn entity(text: &str) -> Result<Entity, String> {
    let (kind, value) = match text.split_once(':') {
        Some(("user", login)) => (EntityKind::User, login.to_owned()),
        Some(("service", service)) => (EntityKind::Service, service.to_owned()),
        _ => {
            let address: std::net::IpAddr = text
                .strip_prefix("host:")
                .unwrap_or(text)
                .parse()
                .map_err(|_| "give an IP address, service:ADDRESS:PORT/PROTOCOL or user:LOGIN".to_owned())?;
            (EntityKind::Host, address.to_canonical().to_string())
        }
    };
    if value.is_empty() {
        return Err("a name is missing after the colon".to_owned());
    }
    Ok(Entity {
        kind: kind.into(),
        value,
    })
}

impl Risks {
    pub async fn run(self, context: &Context) -> Result<(), CliError> {
        let mut client = RiskServiceClient::new(context.remote.service("anomaly").await?);
        match self {
            Self::List { kind, least, limit } => {
                let request = ListEntityRisksRequest {
                    kinds: kind.into_iter().map(|kind| EntityKind::from(kind).into()).collect(),
                    least,
                    page_size: limit,
                };
                let risks = client.list_entity_risks(request).await?.into_inner().risks;
                let headers = ["risk", "kind", "who", "latest", "entries", "most of it"];
                context.printer.list("risks", &headers, &risks, row);
            }
            Self::Show { entity, limit } => {
                let request = GetEntityRiskRequest {
                    entity: Some(entity),
                    page_size: limit,
                };
                let answer = client.get_entity_risk(request).await?.into_inner();
                let risk = answer.risk.clone().ok_or(CliError::Answer("anomaly", "the risk"))?;
                let who = risk.entity.unwrap_or_default();
                let mut fields = vec![
                    ("who", who.value.clone()),
                    ("kind", word(who.kind().as_str_name(), "ENTITY_KIND_")),
                    ("risk", format!("{:.0} of 100", risk.risk)),
                    ("entries", risk.entries.to_string()),
                ];
                fields.extend(answer.entries.iter().map(|entry| ("", line(entry))));
                context.printer.record(&answer, &fields);
            }
        }
        Ok(())
    }
}

fn row(risk: &EntityRisk) -> Vec<String> {
    let who = risk.entity.clone().unwrap_or_default();
    let reasons: Vec<&str> = risk.reasons.iter().map(|reason| reason.summary.as_str()).collect();
    vec![
        format!("{:.0}", risk.risk),
        word(who.kind().as_str_name(), "ENTITY_KIND_"),
        who.value,
        time(risk.latest.as_ref()),
        risk.entries.to_string(),
        reasons.join("; "),
    ]
}

fn line(entry: &RiskEntry) -> String {
    let times = match entry.count {
        0 | 1 => String::new(),
        count => format!(", {count} times"),
    };
    format!(
        "{}  {:>5.1} left of {:>5.1}  {}  {}{times}",
        time(entry.time.as_ref()),
        entry.remaining,
        entry.weight,
        entry.kind,
        entry.summary
    )
}
