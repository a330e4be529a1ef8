use garrison_db::Tx;
use uuid::Uuid;

use super::{Result, tenant_of};
use crate::error::Error;

/// Replaces a person's recovery codes; with none, removes them.
pub async fn replace_recovery_codes(tx: &mut Tx<'_>, user: Uuid, macs: &[Vec<u8>]) -> Result<()> {
    let tenant = tenant_of(tx);
    sqlx::query("DELETE FROM recovery_codes WHERE user_id = $1")
        .bind(user)
        .execute(&mut **tx)
        .await
        .map_err(Error::query("removing recovery codes"))?;
    sqlx::query("INSERT INTO recovery_codes (tenant_id, user_id, code_mac) SELECT $1, $2, unnest($3)")
        .bind(tenant)
        .bind(user)
        .bind(macs)
        .execute(&mut **tx)
        .await
        .map(drop)
        .map_err(Error::query("storing recovery codes"))
}

/// Uses a recovery code up; false when the person has no such code (any more).
pub async fn spend_recovery_code(tx: &mut Tx<'_>, user: Uuid, macs: &[Vec<u8>]) -> Result<bool> {
    sqlx::query("DELETE FROM recovery_codes WHERE user_id = $1 AND code_mac = ANY ($2)")
        .bind(user)
        .bind(macs)
        .execute(&mut **tx)
        .await
        .map(|done| done.rows_affected() > 0)
        .map_err(Error::query("using a recovery code"))
}
