//! Versions of models, by tenant.

use garrison_proto::TenantId;
use opentelemetry::{KeyValue, global, metrics::Gauge};

use crate::domain::{registry::Candidate, tenant::Tenant};

/// Instruments of the models beside the live one.
#[derive(Debug, Clone)]
pub struct ModelMetrics {
    candidate: Gauge<u64>,
    objected: Gauge<u64>,
    shadow_records: Gauge<u64>,
    shadow_live: Gauge<u64>,
    shadow_candidate: Gauge<u64>,
    drift: Gauge<f64>,
    score_drift: Gauge<f64>,
    recent: Gauge<u64>,
    turned_away: Gauge<u64>,
}

impl Default for ModelMetrics {
    fn default() -> Self {
        let meter = global::meter("garrison.anomaly");
        let number = |name: &'static str, what: &'static str| meter.f64_gauge(name).with_description(what).build();
        let count = |name: &'static str, what: &'static str| meter.u64_gauge(name).with_description(what).build();
        Self {
            candidate: count(
                "garrison_anomaly_candidate_version",
                "Version of the candidate; 0 without one",
            ),
            objected: count(
                "garrison_anomaly_candidate_objected",
                "1 when something speaks against the candidate",
            ),
            shadow_records: count(
                "garrison_anomaly_shadow_records",
                "Records scored by the live model and the candidate",
            ),
            shadow_live: count(
                "garrison_anomaly_shadow_live_above",
                "Of these, above the live threshold",
            ),
            shadow_candidate: count(
                "garrison_anomaly_shadow_candidate_above",
                "Of these, above the candidate's threshold",
            ),
            drift: number(
                "garrison_anomaly_model_drift",
                "Population stability index of the feature that moved most",
            ),
            score_drift: number(
                "garrison_anomaly_model_score_drift",
                "Population stability index of the scores",
            ),
            recent: count(
                "garrison_anomaly_recent_records",
                "Recent normal records that a candidate would be learnt from",
            ),
            turned_away: count(
                "garrison_anomaly_turned_away_records",
                "Records that were kept out of them, by reason",
            ),
        }
    }
}

impl ModelMetrics {
    /// Shows where a tenant stands.
    pub fn stand(&self, id: &TenantId, tenant: &Tenant) {
        let tenant_label = KeyValue::new("tenant", id.to_string());
        let labels = std::slice::from_ref(&tenant_label);
        let roles = &tenant.models.roles;
        let candidate = roles.candidate.as_ref();
        self.candidate.record(candidate.map_or(0, Candidate::version), labels);
        let objected = candidate.is_some_and(|c| !c.profile.objection.is_empty());
        self.objected.record(objected.into(), labels);
        if let Some(candidate) = candidate {
            self.shadow_records.record(candidate.shadow.rows, labels);
            self.shadow_live.record(candidate.shadow.live_above, labels);
            self.shadow_candidate.record(candidate.shadow.candidate_above, labels);
        }
        let indices = roles.reference.as_ref().and_then(|r| roles.drift.indices(r));
        if let Some((score, features)) = indices.as_deref().and_then(<[f64]>::split_last) {
            self.drift.record(features.iter().copied().fold(0.0, f64::max), labels);
            self.score_drift.record(*score, labels);
        }
        let recent = &tenant.models.recent;
        self.recent.record(recent.len() as u64, labels);
        let turned = recent.turned_away;
        for (reason, n) in [
            ("unusual", turned.unusual),
            ("suspect", turned.suspect),
            ("share", turned.share),
        ] {
            let labels = [tenant_label.clone(), KeyValue::new("reason", reason)];
            self.turned_away.record(n, &labels);
        }
    }
}
