//! What a tenant's model is made of, and how the next one takes its place.

use garrison_models::ensemble::Shape;
use garrison_service::ConfigError;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::domain::{network::Kind, registry::CandidateSettings, sample::SampleSettings, shard::seconds};

/// What new models are made of. Models that are stored already stay what they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NetworkKind {
    /// Networks that tell hidden features from the others; their mean speaks.
    Ensemble,
    /// One network that reproduces a record through a narrow middle.
    Autoencoder,
}

/// What new models are made of.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkConfig {
    /// Which kind. The autoencoder finds more at the same rate of false alarms and costs a fraction; the other settings are
    /// the ensemble's.
    pub kind: NetworkKind,
    /// Networks of an ensemble, 1 to 16.
    pub members: usize,
    /// Widths of their hidden layers, 1 to 4 layers of 4 to 512.
    pub hidden: Vec<usize>,
    /// Steps of training for each of them, 100 to 100000, with 128 records each.
    pub steps: usize,
}

/// How a newly learnt model takes the place of the one that is live.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CandidateConfig {
    /// One batch in so many is scored by the candidate beside the live model, and counted for drift, 1 to 1000.
    pub shadow_every: u32,
    /// Records that both have to score before a candidate is promoted by itself.
    pub shadow_flows: u64,
    /// Whether a candidate that nothing speaks against is promoted by itself, or waits for `garrison model promote`.
    pub automatic: bool,
    /// A candidate is learnt from recent records every so many hours. 0: by `garrison model update` only.
    pub update_hours: u32,
    /// Recent normal records that are kept for it.
    pub sample_flows: usize,
    /// Hours within which they are replaced, however much traffic there is.
    pub sample_hours: u32,
    /// Most of them that one source (an IPv6 source is its /64) may have, above 0 and at most 1. Of few sources each may have
    /// an equal part.
    pub source_share: f64,
    /// Share of a kind of reference attack that a candidate may find less than the first model, 0 to 1. One that loses more
    /// is not promoted by itself.
    pub most_lost: f64,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            kind: NetworkKind::Autoencoder,
            members: 2,
            hidden: vec![32],
            steps: 2_000,
        }
    }
}

impl Default for CandidateConfig {
    fn default() -> Self {
        Self {
            shadow_every: 8,
            shadow_flows: 20_000,
            automatic: false,
            update_hours: 0,
            sample_flows: 8_000,
            sample_hours: 24,
            source_share: 0.05,
            most_lost: 0.1,
        }
    }
}

impl NetworkConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        within("model.network.members", self.members as u64, 1, 16)?;
        within("model.network.steps", self.steps as u64, 100, 100_000)?;
        within("model.network.hidden", self.hidden.len() as u64, 1, 4)?;
        let mut widths = self.hidden.iter();
        widths.try_for_each(|width| within("model.network.hidden", *width as u64, 4, 512))
    }

    pub(super) fn kind(&self) -> Kind {
        match self.kind {
            NetworkKind::Autoencoder => Kind::Autoencoder,
            NetworkKind::Ensemble => Kind::Ensemble(Shape {
                hidden: self.hidden.clone(),
                members: self.members,
                masked: 0.5,
                steps: self.steps,
            }),
        }
    }
}

impl CandidateConfig {
    pub(super) fn validate(&self, most_rows: usize) -> Result<(), ConfigError> {
        within("model.candidate.shadow_every", self.shadow_every.into(), 1, 1_000)?;
        within("model.candidate.update_hours", self.update_hours.into(), 0, 24 * 365)?;
        let most = most_rows as u64;
        within("model.candidate.sample_flows", self.sample_flows as u64, 100, most)?;
        within("model.candidate.sample_hours", self.sample_hours.into(), 1, 24 * 365)?;
        share("model.candidate.source_share", self.source_share, f64::MIN_POSITIVE)?;
        share("model.candidate.most_lost", self.most_lost, 0.0)
    }

    pub(super) fn settings(&self) -> CandidateSettings {
        CandidateSettings {
            every: self.shadow_every,
            shadow_rows: self.shadow_flows,
            automatic: self.automatic,
            update_every: seconds(i64::from(self.update_hours) * 3_600),
            sample: SampleSettings {
                rows: self.sample_flows,
                memory: seconds(i64::from(self.sample_hours) * 3_600),
                source_share: self.source_share,
            },
            most_lost: self.most_lost,
            guarded: true,
        }
    }
}

fn within(key: &str, value: u64, least: u64, most: u64) -> Result<(), ConfigError> {
    if (least..=most).contains(&value) {
        Ok(())
    } else {
        Err(ConfigError::invalid(key, format!("{value} is not {least} to {most}")))
    }
}

fn share(key: &str, value: f64, least: f64) -> Result<(), ConfigError> {
    if (least..=1.0).contains(&value) {
        Ok(())
    } else {
        Err(ConfigError::invalid(key, format!("{value} is no share")))
    }
}

#[cfg(test)]
mod tests {
    use crate::config::tests::config;

    #[test]
    fn what_cannot_be_used_is_named() {
        for (text, key) in [
            ("[model.network]\nmembers = 0", "model.network.members"),
            ("[model.network]\nhidden = []", "model.network.hidden"),
            ("[model.network]\nhidden = [1]", "model.network.hidden"),
            ("[model.network]\nkind = \"tree\"", "kind"),
            ("[model.candidate]\nshadow_every = 0", "model.candidate.shadow_every"),
            ("[model.candidate]\nsource_share = 0.0", "model.candidate.source_share"),
            ("[model.candidate]\nmost_lost = 2.0", "model.candidate.most_lost"),
            (
                "[model.candidate]\nsample_flows = 30000",
                "model.candidate.sample_flows",
            ),
        ] {
            let error = config(text).unwrap_err();
            assert!(error.contains(key), "{text}: {error}");
        }
    }
}
