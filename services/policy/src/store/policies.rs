use chrono::{DateTime, Utc};
use garrison_db::{DbError, Tx};
use garrison_ztp::document::Mode;
use sqlx::{Row as _, postgres::PgRow};

/// One version of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredPolicy {
    /// The policy's name.
    pub name: String,
    /// Counts from 1.
    pub version: u64,
    /// Whether it is enforced.
    pub mode: Mode,
    /// The document as applied.
    pub document: String,
    /// SHA-256 of the document, hexadecimal.
    pub sha256: String,
    /// Who applied it.
    pub author: String,
    /// When.
    pub created: DateTime<Utc>,
    /// Whether the policy is withdrawn.
    pub withdrawn: bool,
    /// The version that is in force; 0 when none is.
    pub in_force: u64,
    /// What became of its review.
    pub review: Review,
    /// What was decided about it, and by whom.
    pub decision: Option<Decision>,
}

/// What became of a version's review.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Review {
    /// It took force without one.
    NotNeeded,
    /// It waits.
    Pending,
    /// Somebody else approved it.
    Approved,
    /// Somebody rejected it.
    Rejected,
    /// Another version came, or the policy was withdrawn, before anybody decided.
    Superseded,
}

/// What somebody decided about a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// SHA-256 of the document that was decided about, hexadecimal.
    pub sha256: String,
    /// Whether it was approved.
    pub approved: bool,
    /// By whom.
    pub reviewer: String,
    /// What they said.
    pub note: String,
    /// When.
    pub decided: DateTime<Utc>,
}

/// A policy that changed after an epoch, as it is now.
#[derive(Debug)]
pub struct Change {
    /// The epoch of the change.
    pub epoch: u64,
    /// The current version.
    pub policy: StoredPolicy,
}

fn number(value: i64) -> u64 {
    u64::try_from(value).unwrap_or_default()
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn mode_number(mode: Mode) -> i16 {
    match mode {
        Mode::Observe => 1,
        Mode::Enforce => 2,
        Mode::Stage => 3,
    }
}

/// A query for versions `v` of policies `p` with what was decided about them; `$from` joins the two.
macro_rules! versions {
    ($from:literal) => {
        concat!(
            "SELECT p.version AS head, p.waiting, p.withdrawn, p.epoch, v.*, r.sha256 AS decided_sha256, r.approved, ",
            "r.reviewer, r.note, r.decided FROM policy p ",
            "JOIN policy_version v ON v.tenant_id = p.tenant_id AND v.name = p.name ",
            "LEFT JOIN policy_review r ON r.tenant_id = v.tenant_id AND r.name = v.name AND r.version = v.version ",
            $from
        )
    };
}

fn read(row: &PgRow) -> Result<StoredPolicy, sqlx::Error> {
    let version = number(row.try_get("version")?);
    let withdrawn: bool = row.try_get("withdrawn")?;
    let head = number(row.try_get("head")?);
    let decision = match row.try_get::<Option<bool>, _>("approved")? {
        Some(approved) => Some(Decision {
            sha256: row.try_get("decided_sha256")?,
            approved,
            reviewer: row.try_get("reviewer")?,
            note: row.try_get("note")?,
            decided: row.try_get("decided")?,
        }),
        None => None,
    };
    let review = match (&decision, row.try_get("reviewed")?) {
        (_, false) => Review::NotNeeded,
        (Some(decision), true) if decision.approved => Review::Approved,
        (Some(_), true) => Review::Rejected,
        (None, true) if number(row.try_get("waiting")?) == version => Review::Pending,
        (None, true) => Review::Superseded,
    };
    Ok(StoredPolicy {
        name: row.try_get("name")?,
        version,
        in_force: if withdrawn { 0 } else { head },
        review,
        decision,
        mode: match row.try_get::<i16, _>("mode")? {
            2 => Mode::Enforce,
            3 => Mode::Stage,
            _ => Mode::Observe,
        },
        document: row.try_get("document")?,
        sha256: row.try_get("sha256")?,
        author: row.try_get("author")?,
        created: row.try_get("created")?,
        withdrawn,
    })
}

fn read_all(rows: &[PgRow]) -> Result<Vec<StoredPolicy>, DbError> {
    rows.iter()
        .map(read)
        .collect::<Result<_, _>>()
        .map_err(DbError::during("read policies"))
}

/// Takes the tenant's turn to change policies and gives the epoch of the change. Others wait until this
/// transaction ends.
///
/// # Errors
/// When the database fails.
pub async fn next_epoch(tx: &mut Tx<'_>) -> Result<u64, DbError> {
    let tenant = tx.tenant().to_string();
    let epoch: i64 = sqlx::query_scalar(
        "INSERT INTO ruleset (tenant_id, epoch) VALUES ($1, 1)
         ON CONFLICT (tenant_id) DO UPDATE SET epoch = ruleset.epoch + 1 RETURNING epoch",
    )
    .bind(tenant)
    .fetch_one(&mut **tx)
    .await
    .map_err(DbError::during("take the turn to change policies"))?;
    Ok(number(epoch))
}

/// Policies that changed after an epoch, withdrawn ones included.
///
/// # Errors
/// When the database fails.
pub async fn changes(tx: &mut Tx<'_>, after: u64) -> Result<Vec<Change>, DbError> {
    let tenant = tx.tenant().to_string();
    let rows = sqlx::query(versions!(
        "WHERE p.tenant_id = $1 AND v.version = p.version AND p.epoch > $2"
    ))
    .bind(tenant)
    .bind(signed(after))
    .fetch_all(&mut **tx)
    .await
    .map_err(DbError::during("look for changed policies"))?;
    let read = |row: &PgRow| {
        Ok(Change {
            epoch: number(row.try_get("epoch")?),
            policy: read(row)?,
        })
    };
    rows.iter()
        .map(read)
        .collect::<Result<_, _>>()
        .map_err(DbError::during("read changed policies"))
}

/// Which of a policy's versions is asked for.
#[derive(Clone, Copy, Debug)]
pub enum Which {
    /// The one in force, or, of a withdrawn policy, the last that was.
    Current,
    /// The one with the highest number.
    Newest,
    /// The one with this number.
    Number(u64),
}

/// One version of a policy, withdrawn or not.
///
/// # Errors
/// When the database fails.
pub async fn find(tx: &mut Tx<'_>, name: &str, which: Which) -> Result<Option<StoredPolicy>, DbError> {
    let tenant = tx.tenant().to_string();
    let (query, number) = match which {
        Which::Current => (
            versions!("WHERE p.tenant_id = $1 AND p.name = $2 AND v.version = p.version AND $3 = 0"),
            0,
        ),
        Which::Newest => (
            versions!("WHERE p.tenant_id = $1 AND p.name = $2 AND $3 = 0 ORDER BY v.version DESC LIMIT 1"),
            0,
        ),
        Which::Number(number) => (
            versions!("WHERE p.tenant_id = $1 AND p.name = $2 AND v.version = $3"),
            number,
        ),
    };
    let row = sqlx::query(query)
        .bind(tenant)
        .bind(name)
        .bind(signed(number))
        .fetch_optional(&mut **tx)
        .await
        .map_err(DbError::during("read a policy"))?;
    row.as_ref()
        .map(read)
        .transpose()
        .map_err(DbError::during("read a policy"))
}

/// The versions of a policy that matter when it is changed.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// The one in force, or, of a withdrawn policy, the last that was.
    pub current: Option<StoredPolicy>,
    /// The one that waits for approval.
    pub waiting: Option<StoredPolicy>,
    /// The one with the highest number.
    pub newest: Option<StoredPolicy>,
}

/// How a policy stands, in one query.
///
/// # Errors
/// When the database fails.
pub async fn standing(tx: &mut Tx<'_>, name: &str) -> Result<Standing, DbError> {
    let tenant = tx.tenant().to_string();
    let rows = sqlx::query(versions!(
        "WHERE p.tenant_id = $1 AND p.name = $2 AND (v.version IN (p.version, p.waiting) OR v.version =
             (SELECT max(n.version) FROM policy_version n WHERE n.tenant_id = $1 AND n.name = $2))
         ORDER BY v.version"
    ))
    .bind(tenant)
    .bind(name)
    .fetch_all(&mut **tx)
    .await
    .map_err(DbError::during("read how a policy stands"))?;
    let mut standing = Standing::default();
    let read = |row: &PgRow, standing: &mut Standing| {
        let policy = read(row)?;
        let is = |column| Ok::<_, sqlx::Error>(number(row.try_get(column)?) == policy.version);
        if is("head")? {
            standing.current = Some(policy.clone());
        }
        if is("waiting")? {
            standing.waiting = Some(policy.clone());
        }
        standing.newest = Some(policy);
        Ok(())
    };
    for row in &rows {
        read(row, &mut standing).map_err(DbError::during("read how a policy stands"))?;
    }
    Ok(standing)
}

/// Policies in force with names after `after`, in order.
///
/// # Errors
/// When the database fails.
pub async fn list(tx: &mut Tx<'_>, after: &str, limit: i64) -> Result<Vec<StoredPolicy>, DbError> {
    let tenant = tx.tenant().to_string();
    let rows = sqlx::query(versions!(
        "WHERE p.tenant_id = $1 AND v.version = p.version AND p.name > $2 AND NOT p.withdrawn ORDER BY p.name LIMIT $3"
    ))
    .bind(tenant)
    .bind(after)
    .bind(limit)
    .fetch_all(&mut **tx)
    .await
    .map_err(DbError::during("list policies"))?;
    read_all(&rows)
}

/// Versions that wait for approval, of policies with names after `after`, in order.
///
/// # Errors
/// When the database fails.
pub async fn list_waiting(tx: &mut Tx<'_>, after: &str, limit: i64) -> Result<Vec<StoredPolicy>, DbError> {
    let tenant = tx.tenant().to_string();
    let rows = sqlx::query(versions!(
        "WHERE p.tenant_id = $1 AND p.waiting > 0 AND v.version = p.waiting AND p.name > $2 ORDER BY p.name LIMIT $3"
    ))
    .bind(tenant)
    .bind(after)
    .bind(limit)
    .fetch_all(&mut **tx)
    .await
    .map_err(DbError::during("list policies that wait for approval"))?;
    read_all(&rows)
}

/// Versions of a policy below `before`, the newest first. 0 for all.
///
/// # Errors
/// When the database fails.
pub async fn list_versions(tx: &mut Tx<'_>, name: &str, before: u64, limit: i64) -> Result<Vec<StoredPolicy>, DbError> {
    let tenant = tx.tenant().to_string();
    let rows = sqlx::query(versions!(
        "WHERE p.tenant_id = $1 AND p.name = $2 AND ($3 = 0 OR v.version < $3) ORDER BY v.version DESC LIMIT $4"
    ))
    .bind(tenant)
    .bind(name)
    .bind(signed(before))
    .bind(limit)
    .fetch_all(&mut **tx)
    .await
    .map_err(DbError::during("list versions of a policy"))?;
    read_all(&rows)
}

/// Stores a version and puts it into force, or lets it wait for approval.
///
/// # Errors
/// When the database fails.
pub async fn insert_version(tx: &mut Tx<'_>, policy: &StoredPolicy, epoch: u64) -> Result<(), DbError> {
    let tenant = tx.tenant().to_string();
    let waits = policy.review == Review::Pending;
    sqlx::query(if waits {
        // What is in force does not change, so neither does the epoch of the policy.
        "WITH head AS (
             INSERT INTO policy (tenant_id, name, version, withdrawn, epoch, waiting) VALUES ($1, $2, 0, false, $4, $3)
             ON CONFLICT (tenant_id, name) DO UPDATE SET waiting = $3
         )
         INSERT INTO policy_version (tenant_id, name, version, mode, document, sha256, author, created, reviewed)
         VALUES ($1, $2, $3, $5, $6, $7, $8, $9, true)"
    } else {
        "WITH head AS (
             INSERT INTO policy (tenant_id, name, version, withdrawn, epoch) VALUES ($1, $2, $3, false, $4)
             ON CONFLICT (tenant_id, name) DO UPDATE SET version = $3, withdrawn = false, epoch = $4, waiting = 0
         )
         INSERT INTO policy_version (tenant_id, name, version, mode, document, sha256, author, created)
         VALUES ($1, $2, $3, $5, $6, $7, $8, $9)"
    })
    .bind(tenant)
    .bind(&policy.name)
    .bind(signed(policy.version))
    .bind(signed(epoch))
    .bind(mode_number(policy.mode))
    .bind(&policy.document)
    .bind(&policy.sha256)
    .bind(&policy.author)
    .bind(policy.created)
    .execute(&mut **tx)
    .await
    .map_err(DbError::during("store a version of a policy"))?;
    Ok(())
}

/// Records what was decided about the waiting version; approved, it takes force.
///
/// # Errors
/// When the database fails.
pub async fn decide(tx: &mut Tx<'_>, policy: &StoredPolicy, decision: &Decision, epoch: u64) -> Result<(), DbError> {
    let tenant = tx.tenant().to_string();
    sqlx::query(
        "WITH head AS (
             UPDATE policy SET waiting = 0,
                 version = CASE WHEN $5 THEN $3 ELSE version END,
                 withdrawn = withdrawn AND NOT $5,
                 epoch = CASE WHEN $5 THEN $9 ELSE epoch END
             WHERE tenant_id = $1 AND name = $2 AND waiting = $3
         )
         INSERT INTO policy_review (tenant_id, name, version, sha256, approved, reviewer, note, decided)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(tenant)
    .bind(&policy.name)
    .bind(signed(policy.version))
    .bind(&decision.sha256)
    .bind(decision.approved)
    .bind(&decision.reviewer)
    .bind(&decision.note)
    .bind(decision.decided)
    .bind(signed(epoch))
    .execute(&mut **tx)
    .await
    .map_err(DbError::during("record what was decided about a policy"))?;
    Ok(())
}

/// Withdraws a policy, and what waits of it. Its versions stay.
///
/// # Errors
/// When the database fails.
pub async fn withdraw(tx: &mut Tx<'_>, name: &str, epoch: u64) -> Result<(), DbError> {
    let tenant = tx.tenant().to_string();
    sqlx::query("UPDATE policy SET withdrawn = true, waiting = 0, epoch = $3 WHERE tenant_id = $1 AND name = $2")
        .bind(tenant)
        .bind(name)
        .bind(signed(epoch))
        .execute(&mut **tx)
        .await
        .map_err(DbError::during("withdraw a policy"))?;
    Ok(())
}
