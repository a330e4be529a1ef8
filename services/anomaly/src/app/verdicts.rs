//! What people say of alerts, and the order that follows from it.

use std::{collections::BTreeMap, time::Duration};

use chrono::DateTime;
use garrison_proto::{
    TenantId,
    alert::v1::{RankedAlert, Verdict},
    audit::v1::Actor,
};
use uuid::Uuid;

use super::{Engine, recorded};
use crate::{domain::ranking::Ranking, error::Error, store::verdicts};

/// Alerts that are ranked at most.
const RANKED: i64 = 5_000;

impl Engine {
    /// Keeps what a person says of an alert, with a record for the audit. A second word of the same person replaces the
    /// first.
    ///
    /// # Errors
    /// [`Error::NoAlert`]; otherwise when it cannot be kept.
    pub async fn record_verdict(
        &self,
        id: &TenantId,
        actor: Actor,
        alert: Uuid,
        (verdict, comment): (Verdict, &str),
    ) -> Result<RankedAlert, Error> {
        let mut tx = self.db.begin(id).await?;
        let Some(found) = verdicts::alert(&mut tx, alert).await? else {
            return Err(Error::NoAlert { alert });
        };
        let now = DateTime::from_timestamp_nanos((self.clock)());
        let who = actor.name.clone();
        verdicts::insert(&mut tx, (alert, &found), (verdict, comment), (&who, now)).await?;
        let details = BTreeMap::from([
            ("verdict".to_owned(), verdict.as_str_name().to_owned()),
            ("detector".to_owned(), found.detector.clone()),
            ("comment".to_owned(), comment.to_owned()),
        ]);
        let resource = format!("alerts/{alert}");
        let record = recorded(id, actor, "verdict.recorded", &resource, details);
        tx.publish_all(&[record]).await?;
        tx.commit().await?;
        let (said, _) = verdicts::latest(&self.db, id, now, 0).await?;
        let (rank, factor) = Ranking::new(said.into_iter()).rank(&found);
        Ok(RankedAlert {
            alert: Some(found),
            rank,
            verdict_factor: factor,
        })
    }

    /// The alerts of the last time, those to look at first in front.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn ranked_alerts(&self, id: &TenantId, back: Duration, most: usize) -> Result<Vec<RankedAlert>, Error> {
        let back = i64::try_from(back.as_nanos()).unwrap_or(i64::MAX);
        let since = DateTime::from_timestamp_nanos((self.clock)().saturating_sub(back));
        let (said, alerts) = verdicts::latest(&self.db, id, since, RANKED).await?;
        let ranking = Ranking::new(said.into_iter());
        let mut ranked: Vec<RankedAlert> = alerts
            .into_iter()
            .map(|alert| {
                let (rank, factor) = ranking.rank(&alert);
                RankedAlert {
                    alert: Some(alert),
                    rank,
                    verdict_factor: factor,
                }
            })
            .collect();
        // Equal ones stay newest first.
        ranked.sort_by(|a, b| b.rank.total_cmp(&a.rank));
        ranked.truncate(most);
        Ok(ranked)
    }
}
