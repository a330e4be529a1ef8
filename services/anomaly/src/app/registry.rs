//! The versions of a tenant's model: listed, learnt anew from recent traffic, promoted, rolled back.

use std::{collections::BTreeMap, sync::Arc};

use chrono::{DateTime, Utc};
use garrison_proto::{
    TenantId,
    alert::v1::{
        FeatureDrift, GetModelVersionResponse, ListModelVersionsResponse, Model, ModelDrift, ModelRole, ModelVersion,
        RecentSample, ReferenceAttack, ScoreQuantile, ShadowComparison,
    },
    audit::v1::Actor,
    to_timestamp,
};

use super::{
    Engine,
    learning::{changed, missing},
};
use crate::{
    domain::{
        anchor::{self, Anchor},
        features,
        network::{Network, StoredModel},
        registry::{Candidate, Models, Profile, RegistryError},
        spot::Spot,
        tenant::Tenant,
        window::timestamp,
    },
    error::Error,
    store::{
        models::{self, Kept},
        roles::Pending,
        snapshot,
    },
};

/// Quantiles of the scores that are compared.
const QUANTILES: [f64; 4] = [0.5, 0.9, 0.99, 0.999];

/// A trained model on its way to the database.
pub(super) struct NewModel<'a> {
    /// Manifest and weights.
    pub(super) stored: &'a StoredModel,
    /// What is kept of its training.
    pub(super) profile: &'a Profile,
    /// When it was trained.
    pub(super) trained: DateTime<Utc>,
}

impl Engine {
    /// Puts the models that a checkpoint names back to work.
    pub(super) async fn attach_models(
        &self,
        id: &TenantId,
        tenant: &mut Tenant,
        threshold: Option<snapshot::Threshold>,
        pending: Pending,
    ) -> Result<(), Error> {
        if let Some(threshold) = threshold {
            // A release without candidates knew one model: the last.
            let version = if pending.live == 0 {
                tenant.version
            } else {
                pending.live
            };
            match self.read_model(id, version).await? {
                Some((model, profile, _)) => {
                    snapshot::attach_model(tenant, model, threshold);
                    tenant.models.roles.live = version;
                    if profile.reference.is_usable() {
                        tenant.models.roles.reference = Some(Arc::new(profile.reference));
                    }
                }
                // Behaviours go on; the operator learns anew.
                None => tenant.without_model(),
            }
        }
        if let Some(candidate) = pending.candidate
            && let Some((model, profile, _)) = self.read_model(id, candidate.version).await?
        {
            tenant.models.roles.candidate = Some(Candidate {
                model: Arc::new(model),
                spot: Spot::restore(tenant.settings.spot, candidate.threshold),
                trained: candidate.trained,
                profile: Arc::new(profile),
                shadow: candidate.shadow,
            });
        }
        if pending.anchor != 0
            && let Some(kept) = models::list(&self.db, id, Some(pending.anchor)).await?.pop()
        {
            let anchor = Anchor::restore(pending.anchor, kept.profile.normal, kept.profile.found);
            tenant.models.roles.anchor = anchor.map(Arc::new);
        }
        Ok(())
    }

    // A stored model that can be used; says in the log why one cannot.
    async fn read_model(
        &self,
        id: &TenantId,
        version: u64,
    ) -> Result<Option<(Network, Profile, DateTime<Utc>)>, Error> {
        let Some((stored, profile, trained)) = models::load(&self.db, id, version).await? else {
            tracing::error!(tenant = %id, version, "the model is not stored; learn again");
            return Ok(None);
        };
        match Network::load(&stored, features::names()) {
            Ok(model) => Ok(Some((model, profile, trained))),
            Err(error) => {
                tracing::error!(%error, tenant = %id, version, "the stored model cannot be used; learn again");
                Ok(None)
            }
        }
    }

    /// The versions of a tenant's model, how the candidate compares, and how far the traffic has drifted.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn model_versions(&self, id: &TenantId) -> Result<ListModelVersionsResponse, Error> {
        let kept = models::list(&self.db, id, None).await?;
        let seen = self.see(id).await?;
        let tenant = seen.tenant().ok_or_else(|| missing(id))?;
        let roles = &tenant.models.roles;
        let settings = &tenant.settings.candidate;
        let recent = &tenant.models.recent;
        let turned = recent.turned_away;
        Ok(ListModelVersionsResponse {
            versions: kept.iter().map(|k| version(k, &tenant.models)).collect(),
            shadow: roles.candidate.as_ref().map(|candidate| ShadowComparison {
                version: candidate.version(),
                hindrance: candidate.hindrance(settings, tenant.settings.spot.rate),
                batches: candidate.shadow.batches,
                records: candidate.shadow.rows,
                live_above: candidate.shadow.live_above,
                candidate_above: candidate.shadow.candidate_above,
                both_above: candidate.shadow.both_above,
                correlation: candidate.shadow.correlation(),
                quantiles: QUANTILES
                    .iter()
                    .map(|share| {
                        let (live, candidate) = candidate.shadow.quantile(*share);
                        ScoreQuantile {
                            share: *share,
                            live,
                            candidate,
                        }
                    })
                    .collect(),
            }),
            drift: drift(&tenant.models),
            recent: Some(RecentSample {
                records: recent.len() as u64,
                sources: recent.sources() as u64,
                turned_away_unusual: turned.unusual,
                turned_away_suspect: turned.suspect,
                turned_away_share: turned.share,
                suspects: tenant.models.suspects.len() as u64,
            }),
        })
    }

    /// One version with its manifest.
    ///
    /// # Errors
    /// [`RegistryError::NoVersion`]; otherwise when it cannot be read.
    pub async fn model_version(&self, id: &TenantId, number: u64) -> Result<GetModelVersionResponse, Error> {
        let kept = models::list(&self.db, id, Some(number)).await?.pop();
        let kept = kept.ok_or(RegistryError::NoVersion { version: number })?;
        let seen = self.see(id).await?;
        let tenant = seen.tenant().ok_or_else(|| missing(id))?;
        let manifest = serde_json::to_string_pretty(&kept.manifest);
        Ok(GetModelVersionResponse {
            version: Some(version(&kept, &tenant.models)),
            manifest_json: manifest.unwrap_or_default(),
        })
    }

    /// Starts learning a candidate from the recent rows.
    ///
    /// # Errors
    /// [`RegistryError::NotNow`]; otherwise when it cannot be saved, and then nothing has changed.
    pub async fn update_model(self: &Arc<Self>, id: &TenantId, actor: Actor) -> Result<Model, Error> {
        let cell = self.own(id).await?;
        let (now, least) = ((self.clock)(), self.options.min_flows);
        let update = |tenant: &mut Tenant| {
            tenant.update(now, least)?;
            let details = BTreeMap::from([("recent_flows".to_owned(), tenant.models.recent.len().to_string())]);
            let record = changed(id, actor, "model.update_started", tenant.version, details);
            Ok((tenant.model(), vec![record]))
        };
        let model = self.change(id, &cell, update, None).await?;
        self.train(id);
        Ok(model)
    }

    /// Puts the candidate in the live model's place.
    ///
    /// # Errors
    /// [`RegistryError::NoVersion`], [`RegistryError::Objection`]; otherwise when it cannot be saved, and then nothing has
    /// changed.
    pub async fn promote_model(
        &self,
        id: &TenantId,
        actor: Actor,
        version: u64,
        despite_objection: bool,
    ) -> Result<Model, Error> {
        let cell = self.own(id).await?;
        let promote = |tenant: &mut Tenant| {
            let before = tenant.models.roles.live;
            let candidate = tenant.models.roles.candidate.as_ref();
            let objection = candidate.map_or(String::new(), |c| c.profile.objection.clone());
            tenant.promote(version, despite_objection)?;
            let details = BTreeMap::from([
                ("instead_of".to_owned(), before.to_string()),
                ("objection".to_owned(), objection),
            ]);
            let record = changed(id, actor, "model.promoted", version, details);
            let event = self.model_changed(tenant);
            Ok((tenant.model(), vec![record, event]))
        };
        let model = self.change(id, &cell, promote, None).await?;
        tracing::info!(tenant = %id, version, "a candidate is live");
        Ok(model)
    }

    /// Puts an earlier version in the live model's place; without a number, the one that was live before.
    ///
    /// # Errors
    /// [`RegistryError`]; otherwise when it cannot be saved, and then nothing has changed.
    pub async fn roll_back_model(&self, id: &TenantId, actor: Actor, asked: Option<u64>) -> Result<Model, Error> {
        let cell = self.own(id).await?;
        let (live, candidate, previous) = {
            let held = self.hold(id, &cell).await?;
            let tenant = held.tenant.as_ref().ok_or_else(|| missing(id))?;
            let roles = &tenant.models.roles;
            let candidate = roles.candidate.as_ref().map(Candidate::version);
            (roles.live, candidate, roles.previous.last().copied())
        };
        let no = |why: String| Err(Error::Registry(RegistryError::NotNow(why)));
        let Some(version) = asked.or(previous) else {
            return no("no model was live before the present one".to_owned());
        };
        if version == live {
            return no(format!("version {version} is live already"));
        }
        if Some(version) == candidate {
            return no(format!("version {version} is the candidate; promote it"));
        }
        let Some((stored, profile, trained)) = models::load(&self.db, id, version).await? else {
            return Err(RegistryError::NoVersion { version }.into());
        };
        let model = Network::load(&stored, features::names())?;
        let trained = trained.timestamp_nanos_opt().unwrap_or(0);
        let roll_back = |tenant: &mut Tenant| {
            let before = tenant.models.roles.live;
            tenant.roll_back(model, &profile, trained)?;
            let details = BTreeMap::from([("instead_of".to_owned(), before.to_string())]);
            let record = changed(id, actor, "model.rolled_back", version, details);
            let event = self.model_changed(tenant);
            Ok((tenant.model(), vec![record, event]))
        };
        let model = self.change(id, &cell, roll_back, None).await?;
        tracing::info!(tenant = %id, version, "an earlier model is live again");
        Ok(model)
    }
}

fn version(kept: &Kept, models: &Models) -> ModelVersion {
    let manifest = &kept.manifest;
    let roles = &models.roles;
    let number = manifest.version();
    let role = match () {
        () if number == roles.live => ModelRole::Live,
        () if roles.candidate.as_ref().is_some_and(|c| c.version() == number) => ModelRole::Candidate,
        () => ModelRole::Retired,
    };
    let (training_rows, held_rows) = manifest.rows();
    let (from, until) = manifest.window();
    let attacks = anchor::names().zip(kept.profile.found.iter().zip(&kept.profile.measured));
    ModelVersion {
        version: number,
        role: role.into(),
        kind: manifest.kind().to_owned(),
        trained: Some(to_timestamp(kept.trained)),
        learnt_from: Some(timestamp(from)),
        learnt_until: Some(timestamp(until)),
        learnt_flows: manifest.learnt_flows(),
        training_rows: training_rows as u64,
        held_rows: held_rows as u64,
        validation_loss: manifest.validation_loss(),
        seed: manifest.seed(),
        weights_sha256: manifest.weights_sha256().to_owned(),
        weights_bytes: kept.weights_bytes,
        features: manifest.features().to_vec(),
        objection: kept.profile.objection.clone(),
        reference_attacks: attacks
            .map(|(name, (found, measured))| ReferenceAttack {
                name: name.to_owned(),
                found: *found,
                found_of_first: *measured,
            })
            .collect(),
        is_reference: roles.anchor.as_ref().is_some_and(|a| a.version == number),
    }
}

fn drift(models: &Models) -> Option<ModelDrift> {
    let roles = &models.roles;
    let reference = roles.reference.as_ref()?;
    let indices = roles.drift.indices(reference).unwrap_or_default();
    let (features, score) = match indices.split_last() {
        Some((score, features)) => (features, *score),
        None => (&[][..], 0.0),
    };
    let features = features::names().zip(features).map(|(name, index)| FeatureDrift {
        name: name.to_owned(),
        index: *index,
    });
    let mut features: Vec<FeatureDrift> = features.collect();
    features.sort_by(|a, b| b.index.total_cmp(&a.index));
    Some(ModelDrift {
        records: roles.drift.rows,
        is_known: !features.is_empty(),
        score_index: score,
        features,
    })
}
