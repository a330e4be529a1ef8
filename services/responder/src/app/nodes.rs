//! Enforcer nodes: who is alive, and what each should have in force.

use chrono::{DateTime, Utc};
use garrison_auth::{Caller, Principal};
use garrison_proto::{TenantId, response::v1::EnforcementOrder};

use super::App;
use crate::{
    digest::digest,
    error::{AppError, During as _},
    store::{nodes, responses},
};

/// Most tenants that one node may serve.
const MAX_TENANTS: usize = 1000;

impl App {
    /// Checks that a node speaks for itself and may serve these tenants.
    fn tenants_of(&self, caller: &Caller, node: &str, tenants: &[String]) -> Result<Vec<TenantId>, AppError> {
        match &caller.principal {
            Principal::Enforcer { node: own } if own == node => {}
            Principal::Enforcer { node: own } => {
                return Err(AppError::Enforcer(format!(
                    "the certificate is of the node {own:?} and does not speak for {node:?}"
                )));
            }
            other => {
                return Err(AppError::Enforcer(format!("{other} is no enforcer")));
            }
        }
        if tenants.is_empty() || tenants.len() > MAX_TENANTS {
            return Err(AppError::field("tenants", format!("name 1 to {MAX_TENANTS} tenants")));
        }
        tenants
            .iter()
            .map(|text| {
                let tenant: TenantId = text.parse().map_err(|e| AppError::field("tenants", format!("{e}")))?;
                if self.may_serve(node, tenant.as_str()) {
                    Ok(tenant)
                } else {
                    Err(AppError::Enforcer(format!(
                        "the node {node:?} may not serve the tenant {tenant}; add it to enforcement.nodes"
                    )))
                }
            })
            .collect()
    }

    /// Notes that a node is alive. Answers with the digest of what it should have in force.
    ///
    /// # Errors
    /// [`AppError::Enforcer`] when the node is not who it says or may not serve a tenant; database errors.
    pub async fn heartbeat(
        &self,
        caller: &Caller,
        node: &str,
        applied: &str,
        tenants: &[String],
        now: DateTime<Utc>,
    ) -> Result<String, AppError> {
        if applied.len() > 64 || !applied.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(AppError::field("applied_digest", "not a SHA-256 in hexadecimal"));
        }
        let mut desired = Vec::new();
        for tenant in self.tenants_of(caller, node, tenants)? {
            let mut tx = self.begin(&tenant).await?;
            desired.extend(
                nodes::desired_ids(&mut tx, tenant.as_str(), now)
                    .await
                    .during("look up what should be in force")?,
            );
            nodes::beat(&mut tx, tenant.as_str(), node, applied, now)
                .await
                .during("note a heartbeat")?;
            tx.commit().await.during("note a heartbeat")?;
        }
        Ok(digest(desired))
    }

    /// Everything that should be in force on a node.
    ///
    /// # Errors
    /// As [`App::heartbeat`].
    pub async fn desired_actions(
        &self,
        caller: &Caller,
        node: &str,
        tenants: &[String],
        now: DateTime<Utc>,
    ) -> Result<Vec<EnforcementOrder>, AppError> {
        let mut orders = Vec::new();
        for tenant in self.tenants_of(caller, node, tenants)? {
            let mut tx = self.begin(&tenant).await?;
            let ids = nodes::desired_ids(&mut tx, tenant.as_str(), now)
                .await
                .during("look up what should be in force")?;
            let found = responses::load(&mut tx, tenant.as_str(), &ids)
                .await
                .during("load what should be in force")?;
            orders.extend(
                found
                    .iter()
                    .filter(|r| r.is_desired(now))
                    .map(|r| r.order(tenant.as_str(), false)),
            );
        }
        Ok(orders)
    }
}
