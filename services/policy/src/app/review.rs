//! Approving and rejecting versions that wait.

use std::{collections::BTreeMap, sync::Arc};

use chrono::Utc;
use garrison_auth::Caller;
use garrison_proto::TenantId;

use super::{
    App,
    rules::{Known, build, catch_up, read_stored},
};
use crate::{
    error::Error,
    store::{self, Decision, Review, StoredPolicy, Which},
};

/// Bytes of a reviewer's note.
const NOTE: usize = 2_000;

/// Which tenants have their enforced policies approved by somebody else than their author.
#[derive(Clone, Debug, Default)]
pub struct ReviewRule {
    /// Whether a tenant that is not named has.
    pub required: bool,
    /// By tenant.
    pub tenants: BTreeMap<String, bool>,
}

impl ReviewRule {
    pub(super) fn required(&self, tenant: &TenantId) -> bool {
        *self.tenants.get(tenant.as_str()).unwrap_or(&self.required)
    }
}

/// What somebody says about a version.
#[derive(Debug)]
pub struct Verdict<'r> {
    /// The policy.
    pub name: &'r str,
    /// The version.
    pub version: u64,
    /// SHA-256 of the document that was looked at, hexadecimal.
    pub sha256: &'r str,
    /// Why.
    pub note: &'r str,
    /// Whether it may take force.
    pub approved: bool,
}

impl App {
    /// Versions that wait for approval, of policies with names after `after`.
    ///
    /// # Errors
    /// The database.
    pub async fn reviews(&self, tenant: &TenantId, after: &str, limit: i64) -> Result<Vec<StoredPolicy>, Error> {
        let operation = "listing policies that wait for approval";
        let mut tx = self.begin(tenant, operation).await?;
        store::list_waiting(&mut tx, after, limit)
            .await
            .map_err(Error::database(operation))
    }

    /// Approves or rejects a version that waits. Approved, it takes force at once. Its author may take it back, by
    /// rejecting it, and not approve it.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotWaiting`], [`Error::OtherDocument`], [`Error::OwnReview`], what applying it may
    /// end in; the database.
    #[tracing::instrument(name = "review policy", skip_all, fields(tenant = %caller.tenant, policy = verdict.name))]
    pub async fn review(&self, caller: &Caller, verdict: &Verdict<'_>) -> Result<StoredPolicy, Error> {
        let operation = "reviewing a policy";
        let note = verdict.note;
        if note.len() > NOTE || note.chars().any(|c| c.is_control() && c != '\n') {
            let message = format!("write at most {NOTE} bytes of text, without control characters");
            return Err(Error::field("note", message));
        }
        let failed = Error::database::<garrison_db::DbError>;
        let mut tx = self.begin(&caller.tenant, operation).await?;
        let epoch = store::next_epoch(&mut tx).await.map_err(failed(operation))?;
        let found = store::find(&mut tx, verdict.name, Which::Number(verdict.version))
            .await
            .map_err(failed(operation))?;
        let Some(mut policy) = found else {
            let what = format!("version {} of policy {}", verdict.version, verdict.name);
            return Err(Error::NotFound(what));
        };
        if policy.review != Review::Pending {
            return Err(Error::NotWaiting {
                policy: format!("{}@{}", policy.name, policy.version),
                review: policy.review,
            });
        }
        if !verdict.sha256.eq_ignore_ascii_case(&policy.sha256) {
            return Err(Error::OtherDocument {
                policy: format!("{}@{}", policy.name, policy.version),
                sha256: policy.sha256,
            });
        }
        let reviewer = caller.principal.to_string();
        if verdict.approved && reviewer == policy.author {
            return Err(Error::OwnReview(policy.name));
        }
        let decision = Decision {
            sha256: policy.sha256.clone(),
            approved: verdict.approved,
            reviewer,
            note: note.to_owned(),
            decided: chrono::SubsecRound::trunc_subsecs(Utc::now(), 6),
        };
        policy.decision = Some(decision.clone());
        let tenant = self.tenant(&caller.tenant);
        let mut rules = None;
        if verdict.approved {
            policy.review = Review::Approved;
            policy.withdrawn = false;
            policy.in_force = policy.version;
            // Others may have changed since it was proposed: it is held together with them again.
            let (_, mut policies) = catch_up(&mut tx, &tenant.base()).await?;
            let known: Known = read_stored(&policy)?;
            policies.insert(policy.name.clone(), Arc::new(known));
            rules = Some(build(epoch, policies).await?);
        } else {
            policy.review = Review::Rejected;
        }
        store::decide(&mut tx, &policy, &decision, epoch)
            .await
            .map_err(failed(operation))?;
        let action = if verdict.approved {
            "policy.approved"
        } else {
            "policy.rejected"
        };
        self.announce(&mut tx, caller, &policy, action, note).await?;
        tx.commit().await.map_err(failed(operation))?;
        if let Some(rules) = rules {
            self.install(&tenant, rules);
        }
        tracing::info!(
            version = policy.version,
            approved = verdict.approved,
            reviewer = decision.reviewer,
            "policy reviewed"
        );
        Ok(policy)
    }
}
