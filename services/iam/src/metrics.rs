//! What iam counts. Names follow `garrison_iam_<what>`; no label carries a login, user or tenant.

use garrison_proto::event::v1::login_event::Outcome;
use opentelemetry::{KeyValue, global, metrics::Counter};

/// Counters of the service.
#[derive(Debug, Clone)]
pub struct Metrics {
    logins: Counter<u64>,
    sessions_ended: Counter<u64>,
}

impl Default for Metrics {
    fn default() -> Self {
        let meter = global::meter("garrison.iam");
        Self {
            logins: meter
                .u64_counter("garrison_iam_logins")
                .with_description("Login attempts by outcome")
                .build(),
            sessions_ended: meter
                .u64_counter("garrison_iam_sessions_ended")
                .with_description("Sessions ended by reason")
                .build(),
        }
    }
}

impl Metrics {
    /// Counts a login attempt.
    pub fn login(&self, outcome: Outcome) {
        let outcome = match outcome {
            Outcome::Unspecified => "unspecified",
            Outcome::Succeeded => "succeeded",
            Outcome::WrongPassword => "wrong_password",
            Outcome::WrongFactor => "wrong_factor",
            Outcome::Locked => "locked",
            Outcome::Disabled => "disabled",
            Outcome::UnknownUser => "unknown_user",
            Outcome::RateLimited => "rate_limited",
        };
        self.logins.add(1, &[KeyValue::new("outcome", outcome)]);
    }

    /// Counts an ended session. Reasons are a fixed set of sentences.
    pub fn session_ended(&self, reason: &'static str) {
        self.sessions_ended.add(1, &[KeyValue::new("reason", reason)]);
    }
}
