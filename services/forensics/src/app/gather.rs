//! Gathers everything about an incident into files.

use std::{
    collections::{BTreeSet, HashSet},
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use garrison_db::{Db, Tx};
use garrison_flow::Filter;
use garrison_proof::bundle::{Counts, ManifestFile};
use garrison_proto::{TenantId, resource_name, response::v1::Incident};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{
    packets::{self, Source},
    search::{Part, Searcher},
};
use crate::{
    config::EvidenceConfig,
    domain::{json, scope::Scope},
    error::Error,
    lake::{FlowFileWriter, search::Query},
    store::events,
};

/// Snapshots of an incident, and policy versions, that are looked at.
const MAX_HISTORY: i64 = 10_000;

/// Gathers.
#[derive(Clone)]
pub struct Gatherer {
    /// Events.
    pub db: Db,
    /// Flows.
    pub searcher: Searcher,
    /// Packets.
    pub sources: Vec<Source>,
    /// Limits.
    pub config: EvidenceConfig,
    /// Flows that one search may remember.
    pub max_candidates: usize,
}

/// What was gathered.
#[derive(Debug, Default)]
pub struct Gathered {
    /// The files, in the order of the bundle.
    pub files: Vec<ManifestFile>,
    /// How much there is.
    pub counts: Counts,
    /// What is missing.
    pub omissions: Vec<String>,
}

/// Adds files of a folder to a list.
pub struct Files {
    folder: PathBuf,
    /// The list.
    pub list: Vec<ManifestFile>,
}

impl Files {
    /// Files of this folder.
    pub fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            list: Vec::new(),
        }
    }

    /// Writes a file and lists it.
    ///
    /// # Errors
    /// [`Error::Gather`].
    pub fn put(&mut self, path: &str, media_type: &str, description: &str, content: &[u8]) -> Result<(), Error> {
        std::fs::write(self.folder.join(path), content).map_err(Error::gather("writing a file of a bundle"))?;
        self.add(path, media_type, description)
    }

    /// Lists a file that is there.
    ///
    /// # Errors
    /// [`Error::Gather`].
    pub fn add(&mut self, path: &str, media_type: &str, description: &str) -> Result<(), Error> {
        let digest = || -> std::io::Result<(u64, String)> {
            let mut file = std::fs::File::open(self.folder.join(path))?;
            let mut hash = Sha256::new();
            let bytes = std::io::copy(&mut file, &mut hash)?;
            Ok((bytes, hex::encode(hash.finalize())))
        };
        let (bytes, sha256) = digest().map_err(Error::gather("reading a file of a bundle"))?;
        self.list.push(ManifestFile {
            path: path.to_owned(),
            bytes,
            sha256,
            media_type: media_type.to_owned(),
            description: description.to_owned(),
        });
        Ok(())
    }
}

const JSON_LINES: &str = "application/jsonl";

fn lines(values: impl IntoIterator<Item = serde_json::Value>) -> (Vec<u8>, u64) {
    let mut text = Vec::new();
    let mut count = 0;
    for value in values {
        text.extend_from_slice(value.to_string().as_bytes());
        text.push(b'\n');
        count += 1;
    }
    (text, count)
}

impl Gatherer {
    /// Writes everything about an incident into a folder.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the incident is not known; [`Error`] when something fails that may go better later.
    pub async fn gather(&self, tenant: &TenantId, incident: Uuid, folder: &Path) -> Result<Gathered, Error> {
        let mut gathered = Gathered::default();
        let mut files = Files::new(folder);
        let scope = self.write_events(tenant, incident, &mut files, &mut gathered).await?;
        let community_ids = self
            .write_flows(tenant, &scope, folder, &mut files, &mut gathered)
            .await?;
        self.write_packets(tenant, &scope, &community_ids, folder, &mut files, &mut gathered)
            .await?;
        gathered.files = files.list;
        Ok(gathered)
    }

    async fn write_events(
        &self,
        tenant: &TenantId,
        id: Uuid,
        files: &mut Files,
        gathered: &mut Gathered,
    ) -> Result<Scope, Error> {
        let operation = "reading what is known about an incident";
        let name = resource_name("incidents", id);
        let mut tx = self.db.begin(tenant).await.map_err(Error::database(operation))?;
        let incident = events::incident(&mut tx, id)
            .await?
            .ok_or_else(|| Error::NotFound { what: name.clone() })?;
        let ids: Vec<Uuid> = incident
            .alert_ids
            .iter()
            .filter_map(|id| Uuid::parse_str(id).ok())
            .collect();
        let alerts = events::alerts(&mut tx, &ids).await?;
        let responses = events::responses(&mut tx, &name).await?;
        let history = self.history(&mut tx, &incident, &name).await?;
        let policies = events::policy_changes(&mut tx, MAX_HISTORY).await?;
        tx.commit().await.map_err(Error::database(operation))?;

        let unknown = incident.alert_ids.len().saturating_sub(alerts.len());
        if unknown > 0 {
            gathered.omissions.push(format!(
                "alerts: {unknown} of {} are not in the event store",
                incident.alert_ids.len()
            ));
        }
        let missing: Vec<&String> = incident
            .responses
            .iter()
            .filter(|name| !responses.iter().any(|r| r.name == **name))
            .collect();
        if !missing.is_empty() {
            gathered
                .omissions
                .push(format!("responses: {} are not in the event store", missing.len()));
        }
        let mut text = serde_json::to_vec_pretty(&json::of(&incident)).unwrap_or_default();
        text.push(b'\n');
        files.put(
            "incident.json",
            "application/json",
            "The incident in its latest state",
            &text,
        )?;
        let (text, _) = lines(history);
        files.put(
            "incident-history.jsonl",
            JSON_LINES,
            "Every state of the incident, oldest first",
            &text,
        )?;
        let (text, count) = lines(alerts.iter().filter_map(json::of));
        gathered.counts.alerts = count;
        files.put(
            "alerts.jsonl",
            JSON_LINES,
            "The alerts that the incident is made of",
            &text,
        )?;
        let (text, count) = lines(responses.iter().filter_map(json::of));
        gathered.counts.responses = count;
        files.put(
            "responses.jsonl",
            JSON_LINES,
            "What was done: each response with every decision and its actor",
            &text,
        )?;
        let named = |event: &events::Event| {
            let policy = event.subject.strip_prefix("policies/").unwrap_or(&event.subject);
            !policy.is_empty() && alerts.iter().any(|alert| alert.policy.contains(policy))
        };
        let changes = policies.iter().filter(|event| named(event));
        let (text, count) = lines(changes.filter_map(|event| json::of_bytes(&event.kind, &event.message)));
        if count > 0 {
            files.put(
                "policies.jsonl",
                JSON_LINES,
                "Versions of the policies that alerts refer to",
                &text,
            )?;
        }
        Ok(Scope::of(
            &incident,
            &alerts,
            Duration::from_millis(self.config.margin_ms),
        ))
    }

    async fn history(&self, tx: &mut Tx<'_>, incident: &Incident, name: &str) -> Result<Vec<serde_json::Value>, Error> {
        let mut values = Vec::new();
        for subject in std::iter::once(name).chain(incident.responses.iter().map(String::as_str)) {
            for event in events::about(tx, subject, MAX_HISTORY).await? {
                if let Some(message) = json::of_bytes(&event.kind, &event.message) {
                    let value = serde_json::json!({
                        "eventId": event.id, "time": event.time, "kind": event.kind, "event": message,
                    });
                    values.push((event.time, value));
                }
            }
        }
        values.sort_by_key(|(time, _)| *time);
        Ok(values.into_iter().map(|(_, value)| value).collect())
    }

    /// Answers with the Community IDs of what was found.
    async fn write_flows(
        &self,
        tenant: &TenantId,
        scope: &Scope,
        folder: &Path,
        files: &mut Files,
        gathered: &mut Gathered,
    ) -> Result<BTreeSet<String>, Error> {
        let failed = "writing the flows of a bundle";
        let mut parquet = FlowFileWriter::create(&folder.join("flows.parquet")).map_err(Error::gather(failed))?;
        let lines = std::fs::File::create(folder.join("flows.jsonl")).map_err(Error::gather(failed))?;
        let mut lines = std::io::BufWriter::new(lines);
        let mut written: HashSet<[u8; 16]> = HashSet::new();
        let mut community_ids = scope.community_ids.clone();
        let mut truncated = false;
        for filter in scope.flow_filters() {
            let room = self.config.max_flows.saturating_sub(written.len());
            if room == 0 {
                truncated = true;
                break;
            }
            let query = Query {
                filter: Filter::compile(&filter)?,
                // What was found before may be found again.
                limit: room + written.len(),
                max_candidates: self.max_candidates,
            };
            let (sender, mut parts) = mpsc::channel(2);
            let search = self.searcher.search(tenant, query, sender);
            let mut take = async || -> Result<(), Error> {
                while let Some(part) = parts.recv().await {
                    match part {
                        Part::Done(stats) => truncated |= stats.truncated,
                        Part::Flows(batch) => {
                            let mut fresh = garrison_flow::FlowBatchBuilder::new(batch.len());
                            for row in batch.rows() {
                                if written.len() >= self.config.max_flows {
                                    truncated = true;
                                    break;
                                }
                                if !written.insert(row.flow_id) {
                                    continue;
                                }
                                fresh.push(&row);
                                community_ids.insert(row.community_id.to_owned());
                                if let Some(value) = json::of(&row.to_proto()) {
                                    writeln!(lines, "{value}").map_err(Error::gather(failed))?;
                                }
                            }
                            parquet.write(&fresh.finish()).map_err(Error::gather(failed))?;
                        }
                    }
                }
                Ok(())
            };
            let (found, taken) = tokio::join!(search, take());
            taken?;
            found?;
        }
        let lines = lines
            .into_inner()
            .map_err(|error| Error::gather(failed)(error.into_error()))?;
        lines.sync_all().map_err(Error::gather(failed))?;
        parquet.finish().map_err(Error::gather(failed))?;
        gathered.counts.flows = written.len() as u64;
        if truncated {
            gathered.omissions.push(format!(
                "flows: more than {} matched; the others were left out",
                written.len()
            ));
        }
        let lost = scope
            .flow_ids
            .iter()
            .filter(|id| !written.contains(id.as_bytes()))
            .count();
        if lost > 0 {
            gathered
                .omissions
                .push(format!("flows: {lost} that alerts name are not in the flow lake"));
        }
        files.add(
            "flows.parquet",
            "application/vnd.apache.parquet",
            "The flows involved, each in its last record, with every column",
        )?;
        files.add("flows.jsonl", JSON_LINES, "The same flows for people")?;
        Ok(community_ids)
    }

    async fn write_packets(
        &self,
        tenant: &TenantId,
        scope: &Scope,
        community_ids: &BTreeSet<String>,
        folder: &Path,
        files: &mut Files,
        gathered: &mut Gathered,
    ) -> Result<(), Error> {
        let Some(filter) = scope.packet_filter(community_ids) else {
            gathered
                .omissions
                .push("packets: the incident names no flows, hosts or times to look for".to_owned());
            return Ok(());
        };
        if self.sources.is_empty() {
            gathered
                .omissions
                .push("packets: no flow-ingest is configured".to_owned());
        }
        let patience = Duration::from_millis(self.config.packet_timeout_ms);
        for (number, source) in (1..).zip(&self.sources) {
            let name = if number == 1 {
                "packets.pcapng".to_owned()
            } else {
                format!("packets-{number}.pcapng")
            };
            let path = folder.join(&name);
            let fetched =
                packets::fetch(source, tenant, &filter, self.config.max_packet_bytes, patience, &path).await?;
            gathered.counts.packets += fetched.packets;
            gathered.omissions.extend(fetched.omissions);
            if fetched.packets > 0 {
                let description = format!("Packets from {}", source.endpoint);
                files.add(&name, "application/x-pcapng", &description)?;
            }
        }
        Ok(())
    }
}
