//! How many alerts people are promised, and what was held back for it.

use clap::{Args, Subcommand, ValueEnum};
use garrison_proto::alert::v1::{
    AlarmBudget, BudgetCount, GetAlarmBudgetRequest, HeldAlert, ListHeldAlertsRequest, ReleaseHeldAlertRequest,
    SetAlarmBudgetRequest, Severity, budget_service_client::BudgetServiceClient,
};

use crate::{
    Context,
    commands::pages,
    error::CliError,
    output::{time, word},
};

/// Show how many alerts a day are promised, and how the promise is kept.
#[derive(Args)]
pub struct Budget {
    #[command(subcommand)]
    change: Option<Change>,
}

#[derive(Subcommand)]
enum Change {
    /// Promise another number of alerts a day from now on
    ///
    /// For example: garrison alerts budget set model 20
    Set {
        /// Whose alerts
        #[arg(value_enum)]
        group: Group,
        /// Alerts a day, 0.1 to 1,000,000; `default` for what the configuration says
        #[arg(value_parser = per_day)]
        alerts_per_day: PerDay,
    },
}

/// Detectors that share a budget.
#[derive(Clone, Copy, ValueEnum)]
pub enum Group {
    /// What is unusual for a model
    Model,
    /// What is suspicious without one
    Behaviour,
}

impl Group {
    fn id(self) -> String {
        match self {
            Self::Model => "model",
            Self::Behaviour => "behaviour",
        }
        .to_owned()
    }
}

#[derive(Clone, Copy)]
struct PerDay(Option<f64>);

fn per_day(text: &str) -> Result<PerDay, String> {
    if text == "default" {
        return Ok(PerDay(None));
    }
    let number = text.parse().ok().filter(|n: &f64| n.is_finite());
    number
        .map(|n| PerDay(Some(n)))
        .ok_or_else(|| "give a number of alerts a day, or default".to_owned())
}

/// What was held back.
#[derive(Args)]
pub struct Held {
    /// Only of this group
    #[arg(long, value_enum)]
    group: Option<Group>,
    /// Only of this detector
    #[arg(long, default_value = "")]
    detector: String,
    /// Those that were told after all, too
    #[arg(long)]
    told: bool,
    /// At most so many
    #[arg(long, default_value_t = 50)]
    limit: usize,
}

impl Budget {
    pub async fn run(self, context: &Context) -> Result<(), CliError> {
        let mut client = BudgetServiceClient::new(context.remote.service("anomaly").await?);
        let Some(Change::Set { group, alerts_per_day }) = self.change else {
            let answer = client.get_alarm_budget(GetAlarmBudgetRequest {}).await?.into_inner();
            show(context, &answer.budgets);
            return Ok(());
        };
        let request = SetAlarmBudgetRequest {
            group: group.id(),
            alerts_per_day: alerts_per_day.0,
        };
        let budget = client.set_alarm_budget(request).await?.into_inner().budget;
        show(context, &[budget.ok_or(CliError::Answer("anomaly", "the budget"))?]);
        Ok(())
    }
}

fn show(context: &Context, budgets: &[AlarmBudget]) {
    let headers = [
        "group",
        "a day",
        "last day",
        "last week",
        "in all",
        "exempt",
        "held back",
        "ahead",
        "never held back",
    ];
    context.printer.list("budgets", &headers, budgets, |budget| {
        let total = budget.total.unwrap_or_default();
        let promised = budget.alerts_per_day.is_some();
        let number = |n: f64| if promised { format!("{n:.1}") } else { String::new() };
        let share = |count: Option<BudgetCount>| if promised { kept(count) } else { String::new() };
        let set = if budget.set { " (set)" } else { "" };
        vec![
            budget.group.clone(),
            budget
                .alerts_per_day
                .map_or("no budget".to_owned(), |n| format!("{n}{set}")),
            share(budget.last_day),
            share(budget.last_week),
            share(budget.total),
            total.exempt.to_string(),
            total.held.to_string(),
            number(budget.ahead),
            never(budget),
        ]
    });
}

// Told of promised.
fn kept(count: Option<BudgetCount>) -> String {
    let count = count.unwrap_or_default();
    let share = count
        .realised
        .map_or(String::new(), |r| format!(" ({:.0} %)", 100.0 * r));
    format!("{} of {:.1}{share}", count.issued, count.promised)
}

fn never(budget: &AlarmBudget) -> String {
    let severity = match budget.never_held_severity() {
        Severity::Unspecified => String::new(),
        severity => format!("{} and above", word(severity.as_str_name(), "SEVERITY_")),
    };
    let named = budget.never_held.join(" ");
    [severity, named]
        .into_iter()
        .filter(|text| !text.is_empty())
        .collect::<Vec<_>>()
        .join("; ")
}

impl Held {
    pub async fn run(self, context: &Context) -> Result<(), CliError> {
        let mut client = BudgetServiceClient::new(context.remote.service("anomaly").await?);
        let group = self.group.map(Group::id).unwrap_or_default();
        let alerts = pages!(self.limit, |page_size, page_token| {
            let request = ListHeldAlertsRequest {
                page_size,
                page_token,
                group: group.clone(),
                detector: self.detector.clone(),
                told: self.told,
            };
            let answer = client.list_held_alerts(request).await?.into_inner();
            (answer.alerts, answer.next_page_token)
        });
        let headers = [
            "id",
            "time",
            "severity",
            "detector",
            "who",
            "count",
            "why held back",
            "told by",
            "title",
        ];
        context.printer.list("alerts", &headers, &alerts, |held: &HeldAlert| {
            let alert = held.alert.clone().unwrap_or_default();
            vec![
                alert.alert_id.clone(),
                time(held.held_time.as_ref()),
                word(alert.severity().as_str_name(), "SEVERITY_"),
                alert.detector.clone(),
                alert.entity.map(|entity| entity.value).unwrap_or_default(),
                alert.count.to_string(),
                held.explanation.clone(),
                held.told_by.clone(),
                alert.title,
            ]
        });
        Ok(())
    }
}

/// Raises an alert that was held back.
pub async fn release(context: &Context, alert: String, comment: String) -> Result<(), CliError> {
    let mut client = BudgetServiceClient::new(context.remote.service("anomaly").await?);
    let request = ReleaseHeldAlertRequest {
        alert_id: alert,
        comment,
    };
    let answer = client.release_held_alert(request).await?.into_inner();
    let held = answer.alert.clone().ok_or(CliError::Answer("anomaly", "the alert"))?;
    let alert = held.alert.unwrap_or_default();
    let fields = [
        ("alert", alert.alert_id),
        ("title", alert.title),
        ("detector", alert.detector),
        ("held back", time(held.held_time.as_ref())),
        ("told", time(held.told_time.as_ref())),
        ("by", held.told_by),
    ];
    context.printer.record(&answer, &fields);
    Ok(())
}
