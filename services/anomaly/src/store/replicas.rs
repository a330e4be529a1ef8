//! Who is there, and who judges which tenant.

use std::time::Duration;

use garrison_db::{Db, DbError, Tx};
use garrison_proto::TenantId;
use sqlx::{Postgres, Transaction, postgres::types::PgInterval};
use uuid::Uuid;

use crate::domain::replicas::Holding;

/// The right to judge a tenant, as long as the database says the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The replica.
    pub owner: Uuid,
    /// Which of the tenant's leases it is.
    pub epoch: i64,
    /// Position in the stream from which the tenant is judged, where nothing was ever saved of it.
    pub since: u64,
}

/// A replica, as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Its id, another for each process.
    pub id: Uuid,
    /// What it is called.
    pub name: String,
}

/// What became of taking a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is this replica's now.
    Own(Lease),
    /// Another one judges it.
    Elsewhere,
    /// Nobody ever judged it, and it is not known from where on it is to be.
    Unknown,
    /// This replica was taken for dead.
    Buried,
}

/// Enters a replica. Those of the same name are removed first when `heir` says that this process has taken their place; what
/// they held is free then. Returns how many there were.
///
/// # Errors
/// When the database is away or fails.
pub async fn enrol(db: &Db, replica: &Replica, lasts: Duration, heir: bool) -> Result<u64, DbError> {
    let operation = "enrol a replica";
    let mut tx = db.begin_across_tenants().await?;
    let mut removed = 0;
    if heir {
        let dead: Vec<(Uuid, String)> = sqlx::query_as("DELETE FROM replica WHERE name = $1 RETURNING id, name")
            .bind(&replica.name)
            .fetch_all(&mut *tx)
            .await
            .map_err(DbError::during(operation))?;
        removed = dead.len() as u64;
        release_all(&mut tx, dead.iter().map(|(id, _)| *id).collect()).await?;
    }
    sqlx::query("INSERT INTO replica (id, name, expires) VALUES ($1, $2, now() + $3)")
        .bind(replica.id)
        .bind(&replica.name)
        .bind(interval(lasts))
        .execute(&mut *tx)
        .await
        .map_err(DbError::during(operation))?;
    tx.commit().await.map_err(DbError::during(operation))?;
    Ok(removed)
}

/// Says that a replica is still there. False when it was taken for dead.
///
/// # Errors
/// When the database is away or fails.
pub async fn renew(db: &Db, replica: Uuid, lasts: Duration) -> Result<bool, DbError> {
    let operation = "renew a replica's lease";
    let mut tx = db.begin_across_tenants().await?;
    let done = sqlx::query("UPDATE replica SET expires = now() + $2 WHERE id = $1")
        .bind(replica)
        .bind(interval(lasts))
        .execute(&mut *tx)
        .await
        .map_err(DbError::during(operation))?;
    tx.commit().await.map_err(DbError::during(operation))?;
    Ok(done.rows_affected() == 1)
}

/// Removes every other replica that has given no sign of life in time, and frees what it held in the same transaction: from
/// its commit on nothing of it can be written any more. Waits for what is being written just now. Returns who they were.
///
/// # Errors
/// When the database is away or fails.
pub async fn bury(db: &Db, me: Uuid) -> Result<Vec<Replica>, DbError> {
    let operation = "remove replicas that are dead";
    let mut tx = db.begin_across_tenants().await?;
    // Two that do the same at once do not wait for each other.
    let dead: Vec<(Uuid, String)> = sqlx::query_as(
        "DELETE FROM replica WHERE id IN \
             (SELECT id FROM replica WHERE id <> $1 AND expires < now() FOR UPDATE SKIP LOCKED) RETURNING id, name",
    )
    .bind(me)
    .fetch_all(&mut *tx)
    .await
    .map_err(DbError::during(operation))?;
    if !dead.is_empty() {
        release_all(&mut tx, dead.iter().map(|(id, _)| *id).collect()).await?;
    }
    tx.commit().await.map_err(DbError::during(operation))?;
    Ok(dead.into_iter().map(|(id, name)| Replica { id, name }).collect())
}

/// Removes a replica that goes. What it should hold still is free then.
///
/// # Errors
/// When the database is away or fails.
pub async fn leave(db: &Db, me: Uuid) -> Result<(), DbError> {
    let operation = "remove this replica";
    let mut tx = db.begin_across_tenants().await?;
    sqlx::query("DELETE FROM replica WHERE id = $1")
        .bind(me)
        .execute(&mut *tx)
        .await
        .map_err(DbError::during(operation))?;
    release_all(&mut tx, vec![me]).await?;
    tx.commit().await.map_err(DbError::during(operation))
}

async fn release_all(tx: &mut Transaction<'static, Postgres>, owners: Vec<Uuid>) -> Result<(), DbError> {
    // Always in the same order, as others may free leases too.
    sqlx::query(
        "UPDATE tenant_lease SET owner = NULL, wanted = NULL, epoch = epoch + 1, changed = now() \
         WHERE tenant_id IN (SELECT tenant_id FROM tenant_lease WHERE owner = ANY($1) ORDER BY tenant_id FOR UPDATE)",
    )
    .bind(owners)
    .execute(&mut **tx)
    .await
    .map_err(DbError::during("free what a replica held"))?;
    Ok(())
}

/// Who is there, who holds what, and the tenants of which nobody has said yet from where on they are judged.
///
/// # Errors
/// When the database is away or fails.
pub async fn look(db: &Db) -> Result<(Vec<Replica>, Vec<Holding>, Vec<TenantId>), DbError> {
    let operation = "look at the replicas";
    let mut tx = db.begin_across_tenants().await?;
    let replicas: Vec<(Uuid, String)> = sqlx::query_as("SELECT id, name FROM replica ORDER BY id")
        .fetch_all(&mut *tx)
        .await
        .map_err(DbError::during(operation))?;
    let leases: Vec<(String, Option<Uuid>, Option<Uuid>, i64)> =
        sqlx::query_as("SELECT tenant_id, owner, wanted, epoch FROM tenant_lease ORDER BY tenant_id")
            .fetch_all(&mut *tx)
            .await
            .map_err(DbError::during(operation))?;
    let unknown: Vec<String> = sqlx::query_scalar(
        "SELECT t.tenant_id FROM tenant t \
         WHERE NOT EXISTS (SELECT FROM tenant_lease l WHERE l.tenant_id = t.tenant_id) ORDER BY t.tenant_id",
    )
    .fetch_all(&mut *tx)
    .await
    .map_err(DbError::during(operation))?;
    tx.rollback().await.map_err(DbError::during(operation))?;
    // Only parsed ids are ever written.
    let holdings = leases.into_iter().filter_map(|(tenant, owner, wanted, epoch)| {
        Some(Holding {
            tenant: tenant.parse().ok()?,
            owner,
            wanted,
            epoch,
        })
    });
    Ok((
        replicas.into_iter().map(|(id, name)| Replica { id, name }).collect(),
        holdings.collect(),
        unknown.into_iter().filter_map(|id| id.parse().ok()).collect(),
    ))
}

/// Takes a tenant that nobody holds, or that was handed to this replica. `since` is from where on it is judged if it was
/// never held before.
///
/// # Errors
/// When the database is away or fails.
pub async fn take(db: &Db, tenant: &TenantId, me: Uuid, since: Option<u64>) -> Result<Taken, DbError> {
    let operation = "take a tenant";
    let mut tx = db.begin_across_tenants().await?;
    // Held until the commit: who buries this replica sees what it took.
    let there: Option<i32> = sqlx::query_scalar("SELECT 1 FROM replica WHERE id = $1 FOR SHARE")
        .bind(me)
        .fetch_optional(&mut *tx)
        .await
        .map_err(DbError::during(operation))?;
    if there.is_none() {
        return Ok(Taken::Buried);
    }
    if let Some(since) = since {
        sqlx::query("INSERT INTO tenant_lease (tenant_id, epoch, since) VALUES ($1, 0, $2) ON CONFLICT DO NOTHING")
            .bind(tenant.as_str())
            .bind(i64::try_from(since).unwrap_or(i64::MAX))
            .execute(&mut *tx)
            .await
            .map_err(DbError::during(operation))?;
    }
    let own: Option<(i64, i64)> = sqlx::query_as(
        "UPDATE tenant_lease l SET owner = $2, wanted = NULL, epoch = epoch + 1, changed = now() \
         WHERE tenant_id = $1 AND (owner IS NULL OR owner = $2 \
             OR NOT EXISTS (SELECT FROM replica r WHERE r.id = l.owner)) \
         RETURNING epoch, since",
    )
    .bind(tenant.as_str())
    .bind(me)
    .fetch_optional(&mut *tx)
    .await
    .map_err(DbError::during(operation))?;
    let taken = match own {
        Some((epoch, since)) => Taken::Own(Lease {
            owner: me,
            epoch,
            since: u64::try_from(since).unwrap_or(0),
        }),
        None => {
            let known: Option<i32> = sqlx::query_scalar("SELECT 1 FROM tenant_lease WHERE tenant_id = $1")
                .bind(tenant.as_str())
                .fetch_optional(&mut *tx)
                .await
                .map_err(DbError::during(operation))?;
            known.map_or(Taken::Unknown, |_| Taken::Elsewhere)
        }
    };
    tx.commit().await.map_err(DbError::during(operation))?;
    Ok(taken)
}

/// Asks the owner of a tenant to hand it over to this replica, unless somebody has asked before.
///
/// # Errors
/// When the database is away or fails.
pub async fn want(db: &Db, tenant: &TenantId, me: Uuid) -> Result<(), DbError> {
    let operation = "ask for a tenant";
    let mut tx = db.begin_across_tenants().await?;
    sqlx::query(
        "UPDATE tenant_lease l SET wanted = $2 WHERE tenant_id = $1 AND owner <> $2 AND (wanted IS NULL \
             OR NOT EXISTS (SELECT FROM replica r WHERE r.id = l.wanted))",
    )
    .bind(tenant.as_str())
    .bind(me)
    .execute(&mut *tx)
    .await
    .map_err(DbError::during(operation))?;
    tx.commit().await.map_err(DbError::during(operation))
}

/// Whether the tenant of a transaction is still held under a lease. If so, it is until the transaction ends.
///
/// # Errors
/// When the database is away or fails.
pub async fn confirm(tx: &mut Tx<'_>, lease: &Lease) -> Result<bool, DbError> {
    let tenant = tx.tenant().clone();
    let found: Option<i32> =
        sqlx::query_scalar("SELECT 1 FROM tenant_lease WHERE tenant_id = $1 AND owner = $2 AND epoch = $3 FOR SHARE")
            .bind(tenant.as_str())
            .bind(lease.owner)
            .bind(lease.epoch)
            .fetch_optional(&mut **tx)
            .await
            .map_err(DbError::during("confirm a lease"))?;
    Ok(found.is_some())
}

/// Hands the tenant of a transaction over, to somebody or to whoever takes it. False when it was not held any more.
///
/// # Errors
/// When the database is away or fails.
pub async fn hand_over(tx: &mut Tx<'_>, lease: &Lease, to: Option<Uuid>) -> Result<bool, DbError> {
    let tenant = tx.tenant().clone();
    let done = sqlx::query(
        "UPDATE tenant_lease SET owner = $4, wanted = NULL, epoch = epoch + 1, changed = now() \
         WHERE tenant_id = $1 AND owner = $2 AND epoch = $3",
    )
    .bind(tenant.as_str())
    .bind(lease.owner)
    .bind(lease.epoch)
    .bind(to)
    .execute(&mut **tx)
    .await
    .map_err(DbError::during("hand a tenant over"))?;
    Ok(done.rows_affected() == 1)
}

fn interval(length: Duration) -> PgInterval {
    PgInterval {
        months: 0,
        days: 0,
        microseconds: i64::try_from(length.as_micros()).unwrap_or(i64::MAX),
    }
}
