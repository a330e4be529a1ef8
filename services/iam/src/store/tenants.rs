use chrono::{DateTime, Utc};
use garrison_db::Tx;

use super::{Result, is_duplicate, tenant_of};
use crate::{domain::Tenant, error::Error};

#[derive(sqlx::FromRow)]
struct Row {
    tenant_id: String,
    display_name: String,
    disabled: bool,
    created_at: DateTime<Utc>,
}

impl Row {
    fn read(self) -> Result<Tenant> {
        Ok(Tenant {
            id: self.tenant_id.parse().map_err(|error| Error::Stored {
                operation: "reading a tenant",
                detail: format!("{error}"),
            })?,
            display_name: self.display_name,
            disabled: self.disabled,
            created: self.created_at,
        })
    }
}

/// The tenant with this id, if the transaction may see it: its own, or any from the tenant `system`.
pub async fn find_tenant(tx: &mut Tx<'_>, id: &str) -> Result<Option<Tenant>> {
    sqlx::query_as::<_, Row>("SELECT tenant_id, display_name, disabled, created_at FROM tenants WHERE tenant_id = $1")
        .bind(id)
        .fetch_optional(&mut **tx)
        .await
        .map_err(Error::query("reading a tenant"))?
        .map(Row::read)
        .transpose()
}

/// Whether the transaction's own tenant is enabled, which then holds until its end: who disables the tenant waits, and
/// so sees the sessions that were opened. To be asked before an account is locked, as `lock_tenant` is.
pub async fn hold_enabled(tx: &mut Tx<'_>) -> Result<bool> {
    let id = tenant_of(tx);
    let disabled: Option<bool> = sqlx::query_scalar("SELECT disabled FROM tenants WHERE tenant_id = $1 FOR SHARE")
        .bind(id)
        .fetch_optional(&mut **tx)
        .await
        .map_err(Error::query("holding a tenant"))?;
    Ok(disabled == Some(false))
}

/// Tenants after an id, in order.
pub async fn list_tenants(tx: &mut Tx<'_>, after: &str, limit: i64) -> Result<Vec<Tenant>> {
    sqlx::query_as::<_, Row>(
        "SELECT tenant_id, display_name, disabled, created_at FROM tenants
         WHERE tenant_id > $1 ORDER BY tenant_id LIMIT $2",
    )
    .bind(after)
    .bind(limit)
    .fetch_all(&mut **tx)
    .await
    .map_err(Error::query("listing tenants"))?
    .into_iter()
    .map(Row::read)
    .collect()
}

/// Creates the transaction's own tenant.
pub async fn insert_tenant(tx: &mut Tx<'_>, display_name: &str, now: DateTime<Utc>) -> Result<()> {
    let id = tenant_of(tx);
    sqlx::query("INSERT INTO tenants (tenant_id, display_name, created_at) VALUES ($1, $2, $3)")
        .bind(&id)
        .bind(display_name)
        .bind(now)
        .execute(&mut **tx)
        .await
        .map(drop)
        .map_err(|error| {
            if is_duplicate(&error) {
                Error::Exists(format!("tenants/{id}"))
            } else {
                Error::query("creating a tenant")(error)
            }
        })
}

/// Disables or enables the transaction's own tenant; false when it does not exist.
pub async fn set_tenant_disabled(tx: &mut Tx<'_>, disabled: bool) -> Result<bool> {
    let id = tenant_of(tx);
    sqlx::query("UPDATE tenants SET disabled = $2 WHERE tenant_id = $1")
        .bind(id)
        .bind(disabled)
        .execute(&mut **tx)
        .await
        .map(|done| done.rows_affected() == 1)
        .map_err(Error::query("changing a tenant"))
}
