//! How many alerts people are promised.

use garrison_proto::alert::v1::Severity;
use garrison_service::ConfigError;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::domain::{budget::BudgetSettings, detector::Detector};

/// Fewest and most alerts a day that can be promised.
pub const ALERTS_PER_DAY: (f64, f64) = (0.1, 1_000_000.0);

/// How many alerts people are promised.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BudgetConfig {
    /// Alerts of the model: `model.*`.
    pub model: ModelBudgetConfig,
    /// Alerts of behaviours: everything else but `intel.match`, which is never held back.
    pub behaviour: BehaviourBudgetConfig,
    /// Detectors whose alerts are never held back, whatever their severity; a `*` is allowed at the end. Name those that
    /// your playbooks answer: by default, those of the default playbooks.
    pub never_held: Vec<String>,
    /// Days for which alerts that were held back are kept.
    pub held_days: u32,
    /// How many of a tenant are kept at most, and of one day. What is beyond is counted only.
    pub held_alerts: u64,
}

/// Alerts of the model.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ModelBudgetConfig {
    /// Alerts promised a day, 0.1 to 1,000,000, for each tenant that nothing else was set for.
    pub alerts_per_day: f64,
    /// From this severity on nothing is held back, and nothing counts against the promise.
    pub never_held_severity: SeverityConfig,
}

/// Alerts of behaviours.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BehaviourBudgetConfig {
    /// Alerts promised a day, 0.1 to 1,000,000, for each tenant that nothing else was set for.
    pub alerts_per_day: f64,
    /// From this severity on nothing is held back, and nothing counts against the promise.
    pub never_held_severity: SeverityConfig,
}

/// How grave an alert is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SeverityConfig {
    /// To be known.
    Info,
    /// To be looked at some day.
    Low,
    /// To be looked at.
    Medium,
    /// To be looked at now.
    High,
    /// Somebody has to do something now.
    Critical,
}

impl From<SeverityConfig> for Severity {
    fn from(severity: SeverityConfig) -> Self {
        match severity {
            SeverityConfig::Info => Self::Info,
            SeverityConfig::Low => Self::Low,
            SeverityConfig::Medium => Self::Medium,
            SeverityConfig::High => Self::High,
            SeverityConfig::Critical => Self::Critical,
        }
    }
}

impl Default for ModelBudgetConfig {
    fn default() -> Self {
        Self {
            alerts_per_day: 50.0,
            never_held_severity: SeverityConfig::Critical,
        }
    }
}

impl Default for BehaviourBudgetConfig {
    fn default() -> Self {
        Self {
            alerts_per_day: 200.0,
            never_held_severity: SeverityConfig::High,
        }
    }
}

impl Default for BudgetConfig {
    fn default() -> Self {
        Self {
            model: ModelBudgetConfig::default(),
            behaviour: BehaviourBudgetConfig::default(),
            never_held: vec!["bruteforce.*".to_owned(), "scan.*".to_owned()],
            held_days: 14,
            held_alerts: 10_000,
        }
    }
}

/// The pattern stands for the detector.
fn fits(pattern: &str, detector: Detector) -> bool {
    match pattern.strip_suffix('*') {
        Some(stem) => detector.id().starts_with(stem),
        None => detector.id() == pattern,
    }
}

impl BudgetConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        for (key, value) in [
            ("budget.model.alerts_per_day", self.model.alerts_per_day),
            ("budget.behaviour.alerts_per_day", self.behaviour.alerts_per_day),
        ] {
            let (least, most) = ALERTS_PER_DAY;
            if !(least..=most).contains(&value) {
                return Err(ConfigError::invalid(key, format!("{value} is not {least} to {most}")));
            }
        }
        for (i, pattern) in self.never_held.iter().enumerate() {
            if !Detector::ALL.iter().any(|detector| fits(pattern, *detector)) {
                let key = format!("budget.never_held[{i}]");
                return Err(ConfigError::invalid(&key, format!("{pattern:?} is no detector")));
            }
        }
        for (key, value, most) in [
            ("budget.held_days", u64::from(self.held_days), 3_650),
            ("budget.held_alerts", self.held_alerts, 1_000_000),
        ] {
            if !(1..=most).contains(&value) {
                return Err(ConfigError::invalid(key, format!("{value} is not 1 to {most}")));
            }
        }
        Ok(())
    }

    pub(super) fn settings(&self) -> BudgetSettings {
        BudgetSettings {
            alerts_a_day: [self.model.alerts_per_day, self.behaviour.alerts_per_day],
            never_held_severity: [
                self.model.never_held_severity.into(),
                self.behaviour.never_held_severity.into(),
            ],
            never_held: Detector::ALL.map(|d| self.never_held.iter().any(|pattern| fits(pattern, d))),
            kept: self.held_alerts,
        }
    }
}
