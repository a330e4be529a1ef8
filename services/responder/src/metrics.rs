//! What the responder counts.

use std::time::Duration;

use garrison_proto::response::v1::ResponseState;
use opentelemetry::{
    KeyValue, global,
    metrics::{Counter, Histogram},
};

use crate::domain::{
    alert::AlertFacts,
    response::{Action, Response, action_word, state_word},
};

/// The instruments of this service.
pub struct Metrics {
    alerts: Counter<u64>,
    intake: Histogram<f64>,
    incidents: Counter<u64>,
    responses: Counter<u64>,
    containment: Histogram<f64>,
    reports_refused: Counter<u64>,
}

impl Metrics {
    /// Registers the instruments with the global meter.
    pub fn new() -> Self {
        let meter = global::meter("garrison.responder");
        let fast = vec![
            0.0005, 0.001, 0.002, 0.003, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 1.0, 5.0,
        ];
        Self {
            alerts: meter
                .u64_counter("garrison_responder_alerts")
                .with_description("Alerts taken in")
                .build(),
            intake: meter
                .f64_histogram("garrison_responder_intake_seconds")
                .with_description("From an alert's receipt to the commit of everything that follows from it")
                .with_unit("s")
                .with_boundaries(fast.clone())
                .build(),
            incidents: meter
                .u64_counter("garrison_responder_incidents")
                .with_description("Incidents opened, merged and closed")
                .build(),
            responses: meter
                .u64_counter("garrison_responder_responses")
                .with_description("Responses that reached a state")
                .build(),
            containment: meter
                .f64_histogram("garrison_responder_containment_seconds")
                .with_description("From the capture of the offending packet to the last enforcer's confirmation")
                .with_unit("s")
                .with_boundaries(fast)
                .build(),
            reports_refused: meter
                .u64_counter("garrison_responder_reports_refused")
                .with_description(
                    "Enforcers' reports that were not believed, by what was wrong: subject, node, outcome, tenant",
                )
                .build(),
        }
    }

    pub(crate) fn alert(&self, alert: &AlertFacts, took: Duration) {
        self.alerts
            .add(1, &[KeyValue::new("severity", alert.severity.as_str_name())]);
        self.intake.record(took.as_secs_f64(), &[]);
    }

    pub(crate) fn report_refused(&self, wrong: &'static str) {
        self.reports_refused.add(1, &[KeyValue::new("wrong", wrong)]);
    }

    pub(crate) fn incident(&self, change: &'static str) {
        self.incidents.add(1, &[KeyValue::new("change", change)]);
    }

    pub(crate) fn response(&self, action: Action, state: ResponseState) {
        self.responses.add(
            1,
            &[
                KeyValue::new("action", action_word(action)),
                KeyValue::new("state", state_word(state)),
            ],
        );
    }

    pub(crate) fn contained(&self, response: &Response) {
        let Some((trigger, applied)) = response.trigger_time.zip(response.applied) else {
            return;
        };
        let Ok(took) = (applied - trigger).to_std() else {
            // The clocks of sensor and enforcer disagree.
            return;
        };
        self.containment.record(
            took.as_secs_f64(),
            &[KeyValue::new("action", action_word(response.action))],
        );
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
