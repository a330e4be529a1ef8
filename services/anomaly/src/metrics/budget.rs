//! How the alarm budget is kept, by tenant and group.

use garrison_proto::TenantId;
use opentelemetry::{
    KeyValue, global,
    metrics::{Gauge, Meter},
};

use crate::domain::{budget::Group, tenant::Tenant};

/// Instruments of the budget. What is counted survives a restart with the state, so it is told as it stands.
#[derive(Debug, Clone)]
pub struct BudgetMetrics {
    a_day: Gauge<f64>,
    promised: Gauge<f64>,
    issued: Gauge<u64>,
    exempt: Gauge<u64>,
    held: Gauge<u64>,
    ahead: Gauge<f64>,
    bound: Gauge<f64>,
}

impl Default for BudgetMetrics {
    fn default() -> Self {
        let meter: Meter = global::meter("garrison.anomaly");
        let number = |name: &'static str, what: &'static str| meter.f64_gauge(name).with_description(what).build();
        let count = |name: &'static str, what: &'static str| meter.u64_gauge(name).with_description(what).build();
        Self {
            a_day: number(
                "garrison_anomaly_budget_alerts_per_day",
                "Alerts promised a day, by group",
            ),
            promised: number(
                "garrison_anomaly_budget_promised_alerts",
                "Alerts promised since counting began, by group",
            ),
            issued: count(
                "garrison_anomaly_budget_issued_alerts",
                "Alerts told on the budget since counting began, by group",
            ),
            exempt: count(
                "garrison_anomaly_budget_exempt_alerts",
                "Alerts told that are never held back, since counting began, by group",
            ),
            held: count(
                "garrison_anomaly_budget_held_alerts",
                "Alerts held back since counting began, by group",
            ),
            ahead: number(
                "garrison_anomaly_budget_ahead_alerts",
                "Alerts told beyond those promised, by group",
            ),
            bound: number(
                "garrison_anomaly_budget_bound",
                "How rare something must be now to be told, by group",
            ),
        }
    }
}

impl BudgetMetrics {
    /// Shows where a tenant stands.
    pub fn stand(&self, id: &TenantId, tenant: &Tenant) {
        for group in Group::ALL {
            let labels = [
                KeyValue::new("tenant", id.to_string()),
                KeyValue::new("group", group.id()),
            ];
            let own = tenant.budgets.group(group);
            let total = own.ledger.total();
            self.exempt.record(total.exempt, &labels);
            if group == Group::Intelligence {
                continue;
            }
            self.a_day.record(own.budget.alerts_a_day(), &labels);
            self.promised.record(total.promised, &labels);
            self.issued.record(total.issued, &labels);
            self.held.record(total.held, &labels);
            self.ahead.record(own.budget.state().ahead, &labels);
            self.bound.record(own.budget.bound(), &labels);
        }
    }
}
