//! The only SQL. Every function works inside the caller's tenant-scoped transaction.

pub mod incidents;
pub mod intake;
pub mod nodes;
pub mod responses;
pub mod rules;

/// A row that does not hold what the service wrote: a newer version's number, or tampering.
pub(crate) fn corrupt(what: &str) -> sqlx::Error {
    sqlx::Error::Decode(format!("{what} is not a value this version knows").into())
}

/// [`lock_tenant`] for the round trip that begins a transaction.
pub const LOCK_TENANT: &str =
    "UPDATE tenant_state SET revision = revision + 1 WHERE tenant_id = current_setting('garrison.tenant')";

/// Takes the tenant's lock: every change of a tenant's alerts, incidents, responses and rules holds it until
/// commit, so that decisions see each other. Taking it raises the tenant's revision, by which who looked without the lock
/// tells whether anything may have changed since. Answers with the generation of the tenant's rules, `None` for a tenant
/// that the responder has never worked for.
///
/// # Errors
/// When the database cannot be asked.
pub async fn lock_tenant(tx: &mut sqlx::PgConnection, tenant: &str) -> Result<Option<i64>, sqlx::Error> {
    sqlx::query_scalar("UPDATE tenant_state SET revision = revision + 1 WHERE tenant_id = $1 RETURNING generation")
        .bind(tenant)
        .fetch_optional(tx)
        .await
}
