//! The only SQL. Every function runs in a transaction that is bound to a tenant; row-level security does the rest.

mod attempts;
mod challenges;
mod factors;
mod keys;
mod sessions;
mod tenants;
mod users;

pub use attempts::{
    AttemptStanding, RefusedByLock, begin_attempt, count_refused, forget_failures, forget_old_attempts,
    forgive_attempt, locked_until, note_lock_recorded, take_refused,
};
pub use challenges::{
    Challenge, count_challenge_attempt, delete_challenge, delete_old_challenges, find_challenge, insert_challenge,
};
pub use factors::{replace_recovery_codes, spend_recovery_code};
pub use keys::{delete_expired_keys, insert_key, list_keys, lock_keys, retire_keys};
pub use sessions::{
    EndedSession, RevocationRow, StoredSession, delete_old_sessions, end_session, end_sessions_of_user, find_session,
    find_session_owner, forget_revocations, insert_session, list_open_sessions, list_revocations, record_revocation,
    rotate_session,
};
pub use tenants::{find_tenant, hold_enabled, insert_tenant, list_tenants, set_tenant_disabled};
pub use users::{
    Account, NewUser, count_active_admins, find_account, find_account_by_login, insert_user, list_accounts,
    lock_tenant, record_login, set_disabled, set_password, set_roles, set_totp_pending, set_totp_step, store_totp,
};

use garrison_db::Tx;

use crate::error::Error;

type Result<T> = std::result::Result<T, Error>;

/// Whether a failed statement broke the uniqueness of a table's key.
fn is_duplicate(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .is_some_and(sqlx::error::DatabaseError::is_unique_violation)
}

fn tenant_of(tx: &Tx<'_>) -> String {
    tx.tenant().to_string()
}
