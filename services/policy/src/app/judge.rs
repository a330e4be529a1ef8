//! A verdict on every flow, and alerts for those that enforced policies forbid.

use std::time::Instant;

use chrono::Utc;
use garrison_bus::{Message, subject};
use garrison_flow::{FlowBatch, FlowState, address};
use garrison_proto::{
    TenantId,
    alert::v1::{Alert, Severity},
};
use garrison_ztp::Verdict;
use uuid::Uuid;

use super::{App, Tenant, lock, rules::RuleSet};
use crate::{
    INFO,
    domain::{BatchTally, DETECTOR, Findings, Sight, Violation, update},
    error::Error,
    store,
};

/// The name of the flow consumer in the inbox.
const INBOX: &str = "flows";

/// What one batch came to.
struct Judged {
    tally: BatchTally,
    findings: Findings,
    /// Rows whose flows were noted as judged, to take back when the alerts cannot be stored.
    noted: Vec<usize>,
}

impl App {
    /// Judges the flows of a batch that were not judged before. Alerts are stored and queued for publishing in one
    /// transaction; a batch without violations needs none.
    ///
    /// # Errors
    /// When the policies were never read, or alerts cannot be stored: the batch must come again.
    pub async fn judge(&self, tenant: &TenantId, delivery: Uuid, batch: &FlowBatch) -> Result<(), Error> {
        let started = Instant::now();
        let rules = self.rules(tenant).await?;
        let tenant = self.tenant(tenant);
        let judged = self.decide(&tenant, &rules, batch);
        let Judged { tally, findings, noted } = judged;
        let repeated = if findings.is_empty() {
            false
        } else {
            match self.raise(&tenant, delivery, findings).await {
                Ok(first) => !first,
                Err(error) => {
                    let mut seen = lock(&tenant.seen);
                    let ids = batch.columns().flow_id;
                    for row in noted {
                        seen.forget(&id(ids.value(row)));
                    }
                    return Err(error);
                }
            }
        };
        if !repeated {
            for verdict in [Verdict::Allow, Verdict::Deny, Verdict::Ungoverned] {
                self.metrics.judged(verdict, tally.flows(verdict));
            }
            lock(&tenant.tally).add(&rules.engine, &tally);
        }
        self.metrics.batch(started.elapsed());
        Ok(())
    }

    fn decide(&self, tenant: &Tenant, rules: &RuleSet, batch: &FlowBatch) -> Judged {
        let now = Utc::now();
        let columns = batch.columns();
        let mut judged = Judged {
            tally: BatchTally::default(),
            findings: Findings::default(),
            noted: Vec::new(),
        };
        let mut seen = lock(&tenant.seen);
        let mut folder = lock(&tenant.folder);
        for row in 0..batch.len() {
            let ended = columns.state.value(row) == FlowState::Ended as u8;
            let sight = seen.note(&id(columns.flow_id.value(row)), rules.epoch, ended);
            if sight == Sight::Known {
                continue;
            }
            judged.noted.push(row);
            let src = address::from_bytes(id(columns.src_ip.value(row)));
            let dst = address::from_bytes(id(columns.dst_ip.value(row)));
            let (protocol, port) = (columns.protocol.value(row), columns.dst_port.value(row));
            let last_seen = columns.last_seen.value(row);
            // Of ICMP, the type stands where others have the source port, and the code where they have the destination's.
            let number = match protocol {
                1 | 58 => columns.src_port.value(row),
                _ => port,
            };
            let judgement = rules.engine.decide(src, dst, protocol, number);
            judged.tally.add(&rules.engine, &judgement, last_seen);
            if judgement.enforced.verdict() != Verdict::Deny {
                continue;
            }
            let Some(entry) = rules.engine.entry(judgement.enforced.deciding().1) else {
                continue;
            };
            let violation = Violation {
                src,
                dst,
                protocol,
                port,
                entry,
                // The first packet shows a new flow; a changed policy meets a flow at its latest packet.
                trigger: match sight {
                    Sight::Again => last_seen,
                    _ => columns.first_seen.value(row),
                },
                last_seen,
                flow: batch.row(row).reference(),
            };
            judged
                .findings
                .add(&tenant.id, violation, &mut folder, &self.settings.internal, now);
        }
        judged
    }

    /// Stores alerts and queues those that are new, or have doubled, for publishing. False when the message was
    /// handled before.
    #[tracing::instrument(name = "raise violations", skip_all, fields(tenant = %tenant.id))]
    async fn raise(&self, tenant: &Tenant, delivery: Uuid, findings: Findings) -> Result<bool, Error> {
        let operation = "storing alerts";
        let mut alerts: Vec<(Uuid, Alert)> = findings.into_alerts().collect();
        let mut tx = self.db.begin(&tenant.id).await.map_err(Error::database(operation))?;
        let first = tx
            .first_delivery(INBOX, delivery)
            .await
            .map_err(Error::database(operation))?;
        if !first {
            return Ok(false);
        }
        let mut messages = Vec::new();
        let (mut raised, mut updated, mut folded) = (0, 0, 0);
        // Another replica may raise one of them between the look and the insertion; then look again.
        while !alerts.is_empty() {
            let ids: Vec<Uuid> = alerts.iter().map(|(id, _)| *id).collect();
            let mut known = store::raised(&mut tx, &ids).await.map_err(Error::database(operation))?;
            for known in &mut known {
                let Ok(place) = alerts.binary_search_by_key(&known.id, |(id, _)| *id) else {
                    continue;
                };
                let (_, found) = alerts.remove(place);
                update(&mut known.alert, &found);
                if known.alert.count >= known.announced.saturating_mul(2) {
                    known.announced = known.alert.count;
                    updated += 1;
                    let id = Uuid::new_v5(&known.id, &known.alert.count.to_be_bytes());
                    messages.push(message(&tenant.id, &known.alert).with_id(id));
                } else {
                    folded += 1;
                }
            }
            if !known.is_empty() {
                store::grow(&mut tx, &known).await.map_err(Error::database(operation))?;
            }
            if alerts.is_empty() {
                break;
            }
            let new = store::raise(&mut tx, &alerts)
                .await
                .map_err(Error::database(operation))?;
            raised += new.len() as u64;
            let (stored, rest) = alerts.into_iter().partition(|(id, _)| new.contains(id));
            alerts = rest;
            let stored: Vec<(Uuid, Alert)> = stored;
            messages.extend(stored.iter().map(|(id, alert)| message(&tenant.id, alert).with_id(*id)));
        }
        tx.publish_all(&messages).await.map_err(Error::database(operation))?;
        tx.commit().await.map_err(Error::database(operation))?;
        self.metrics.alerts("raised", raised);
        self.metrics.alerts("updated", updated);
        self.metrics.alerts("folded", folded);
        Ok(true)
    }
}

fn message(tenant: &TenantId, alert: &Alert) -> Message {
    Message::proto(subject::alerts(tenant, Severity::High, DETECTOR), INFO.name, alert)
}

/// A fixed-size binary value of 16 bytes; the schema was checked when the batch was read.
fn id(bytes: &[u8]) -> [u8; 16] {
    let mut id = [0; 16];
    id.copy_from_slice(bytes);
    id
}
