use chrono::{DateTime, Utc};
use garrison_db::{DbError, Tx};
use garrison_ztp::Verdict;
use sqlx::Row as _;

use crate::domain::Tally;

/// How often a rule decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CountRow {
    /// The policy; empty for flows that nothing governs.
    pub policy: String,
    /// The rule, or `default-deny`.
    pub rule: String,
    /// What it decided.
    pub verdict: Verdict,
    /// Flows.
    pub flows: u64,
    /// When the last of them was seen.
    pub last_seen: DateTime<Utc>,
}

fn verdict_number(verdict: Verdict) -> i16 {
    match verdict {
        Verdict::Allow => 1,
        Verdict::Deny => 2,
        Verdict::Ungoverned => 3,
    }
}

/// Adds counts to those that are stored.
///
/// # Errors
/// When the database fails.
pub async fn add_counts(tx: &mut Tx<'_>, tally: &Tally) -> Result<(), DbError> {
    let tenant = tx.tenant().to_string();
    let mut rows: Vec<_> = tally.iter().collect();
    // One order for everybody, or two replicas wait for each other.
    rows.sort_unstable_by_key(|(key, ..)| *key);
    let policies: Vec<&str> = rows.iter().map(|((policy, ..), ..)| policy.as_str()).collect();
    let rules: Vec<&str> = rows.iter().map(|((_, rule, _), ..)| rule.as_str()).collect();
    let verdicts: Vec<i16> = rows
        .iter()
        .map(|((.., verdict), ..)| verdict_number(*verdict))
        .collect();
    let flows: Vec<i64> = rows
        .iter()
        .map(|(_, flows, _)| i64::try_from(*flows).unwrap_or(i64::MAX))
        .collect();
    let seen: Vec<DateTime<Utc>> = rows
        .iter()
        .map(|(.., last)| DateTime::from_timestamp_nanos(*last))
        .collect();
    sqlx::query(
        "INSERT INTO verdict_count AS known (tenant_id, policy, rule, verdict, flows, last_seen)
         SELECT $1, new.* FROM unnest($2::text[], $3::text[], $4::smallint[], $5::bigint[], $6::timestamptz[]) AS new
         ON CONFLICT (tenant_id, policy, rule, verdict) DO UPDATE
         SET flows = known.flows + excluded.flows, last_seen = greatest(known.last_seen, excluded.last_seen)",
    )
    .bind(tenant)
    .bind(policies)
    .bind(rules)
    .bind(verdicts)
    .bind(flows)
    .bind(seen)
    .execute(&mut **tx)
    .await
    .map_err(DbError::during("add verdict counts"))?;
    Ok(())
}

/// Verdict counts, by policy and rule.
///
/// # Errors
/// When the database fails.
pub async fn list_counts(tx: &mut Tx<'_>, limit: i64) -> Result<Vec<CountRow>, DbError> {
    let tenant = tx.tenant().to_string();
    let rows = sqlx::query(
        "SELECT policy, rule, verdict, flows, last_seen FROM verdict_count
         WHERE tenant_id = $1 ORDER BY policy, rule, verdict LIMIT $2",
    )
    .bind(tenant)
    .bind(limit)
    .fetch_all(&mut **tx)
    .await
    .map_err(DbError::during("list verdict counts"))?;
    rows.iter()
        .map(|row| {
            Ok(CountRow {
                policy: row.try_get("policy")?,
                rule: row.try_get("rule")?,
                verdict: match row.try_get::<i16, _>("verdict")? {
                    1 => Verdict::Allow,
                    2 => Verdict::Deny,
                    _ => Verdict::Ungoverned,
                },
                flows: u64::try_from(row.try_get::<i64, _>("flows")?).unwrap_or_default(),
                last_seen: row.try_get("last_seen")?,
            })
        })
        .collect::<Result<_, _>>()
        .map_err(DbError::during("read verdict counts"))
}
