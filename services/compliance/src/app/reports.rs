//! Makes reports from the log.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use garrison_db::Db;
use garrison_proof::merkle::Plan;
use garrison_proto::TenantId;
use uuid::Uuid;

use super::checkpoints::Checkpoints;
use crate::{
    domain::{
        assessment::{Assessment, Fact},
        controls, html,
        oscal::{Input, Proven},
    },
    error::Error,
    store::{self, Report},
};

/// Bytes of entries that a report quotes in full; gRPC messages are bounded, and so are people.
const QUOTED: usize = 1 << 20;
/// Entries read at a time.
const PAGE: usize = 2_000;

/// Assesses the entries of a period and keeps the report.
///
/// # Errors
/// [`Error`].
pub async fn create(
    db: &Db,
    checkpoints: &Checkpoints,
    tenant: &TenantId,
    (since, until): (DateTime<Utc>, DateTime<Utc>),
    evidence_per_observation: usize,
) -> Result<Report, Error> {
    let signed = checkpoints.latest(tenant).await?;
    let verifier_key = checkpoints.verifier_key(tenant)?.to_string();
    let mut tx = db.begin(tenant).await.map_err(Error::database("opening the log"))?;

    let mut assessment = Assessment::new(evidence_per_observation);
    let mut next = 0;
    loop {
        let page = store::entries_of_period(&mut tx, next, signed.size, (since, until), PAGE).await?;
        for entry in &page {
            if let Some(fact) = Fact::read(entry.index, entry.occurred, &entry.body) {
                assessment.observe(&fact);
            }
        }
        match page.last() {
            Some(last) if page.len() == PAGE => next = last.index + 1,
            _ => break,
        }
    }
    let outcome = assessment.finish();

    let quoted: BTreeSet<u64> = outcome
        .findings
        .iter()
        .flat_map(|finding| finding.evidence.iter().chain(&finding.contradictions))
        .map(|fact| fact.index)
        .collect();
    let mut proven = BTreeMap::new();
    let mut bytes = 0;
    for index in quoted {
        let proof = store::prove(&mut tx, &Plan::inclusion(index, signed.size)?).await?;
        let body = store::entries(&mut tx, index, signed.size, 1)
            .await?
            .pop()
            .map(|entry| entry.body);
        let body = body.ok_or_else(|| Error::Damaged {
            tenant: tenant.to_string(),
            reason: format!("entry {index} is missing"),
        })?;
        bytes += body.len() + 32 * proof.len();
        if bytes > QUOTED {
            break;
        }
        proven.insert(index, Proven { index, body, proof });
    }

    let created = Utc::now();
    let id = Uuid::now_v7();
    let input = Input {
        report: id,
        tenant: tenant.as_str(),
        since,
        until,
        created,
        outcome: &outcome,
        proven: &proven,
        checkpoint: &signed.note,
        tree_size: signed.size,
        verifier_key: &verifier_key,
    };
    let report = Report {
        id,
        framework: controls::SOC2.to_owned(),
        since,
        until,
        created,
        oscal_json: format!("{:#}", input.document()),
        html: html::render(&input),
        checkpoint: signed.note.clone(),
        findings: outcome.findings.len() as u64,
    };
    store::insert_report(&mut tx, &report).await?;
    tx.commit().await.map_err(Error::database("keeping a report"))?;
    Ok(report)
}
