//! What a demo found, for programs.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::Value;

/// The numbers of a run.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// What was looked at: `lab`, a file or an interface.
    pub source: String,
    /// Packets that the sensors received.
    pub packets: u64,
    /// Flows that the sensors opened.
    pub flows: u64,
    /// Alerts.
    pub alerts: usize,
    /// Alerts by detector.
    pub detectors: std::collections::BTreeMap<String, usize>,
    /// Incidents.
    pub incidents: usize,
    /// Responses by state.
    pub responses: std::collections::BTreeMap<String, usize>,
    /// From the packet that crossed the threshold to the drop rule being live, where something was blocked.
    pub time_to_contain_ms: Option<f64>,
    /// Sums of all sensors' loss ledgers.
    pub ledger: std::collections::BTreeMap<String, u64>,
    /// The sums add up.
    pub ledger_balances: bool,
    /// What was proved or found wanting, in words.
    pub verifications: Vec<Verification>,
}

/// One thing that was checked.
#[derive(Debug, Serialize)]
pub struct Verification {
    /// What.
    pub claim: String,
    /// Whether it holds.
    pub holds: bool,
}

const COUNTS: [&str; 7] = [
    "received",
    "parsed",
    "malformed",
    "shed",
    "droppedByKernel",
    "flowsOpened",
    "recordsPublished",
];

impl Report {
    /// Takes the sensors' numbers from `garrison sensors list -o json`.
    pub fn note_sensors(&mut self, answer: &Value) {
        for sensor in items(answer, "sensors") {
            for name in COUNTS.iter().chain(&["flowsEnded", "recordsLost"]) {
                *self.ledger.entry((*name).to_owned()).or_default() += number(&sensor["ledger"][*name]);
            }
        }
        let get = |name: &str| self.ledger.get(name).copied().unwrap_or_default();
        self.packets = get("received");
        self.flows = get("flowsOpened");
        self.ledger_balances = get("received") == get("parsed") + get("malformed") + get("shed");
    }

    /// Takes alerts, incidents and responses from the lists of the command line.
    pub fn note_findings(&mut self, alerts: &Value, incidents: &Value, responses: &Value) {
        self.alerts = items(alerts, "alerts").len();
        self.detectors.clear();
        for alert in items(alerts, "alerts") {
            *self.detectors.entry(text(&alert["detector"])).or_default() += 1;
        }
        self.incidents = living(incidents).len();
        self.responses.clear();
        for response in items(responses, "responses") {
            *self.responses.entry(text(&response["state"])).or_default() += 1;
        }
    }

    /// Every claim holds.
    pub fn holds(&self) -> bool {
        self.ledger_balances && self.verifications.iter().all(|verification| verification.holds)
    }

    /// Writes it as JSON.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))
    }
}

/// The items of a list.
pub fn items<'a>(answer: &'a Value, name: &str) -> &'a [Value] {
    answer[name].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// The incidents that were not merged into another.
pub fn living(answer: &Value) -> Vec<&Value> {
    let merged = |incident: &&Value| !text(&incident["mergedInto"]).is_empty();
    items(answer, "incidents")
        .iter()
        .filter(|incident| !merged(incident))
        .collect()
}

/// A 64-bit number, which protobuf's JSON writes as text.
pub fn number(value: &Value) -> u64 {
    value
        .as_u64()
        .or_else(|| value.as_str()?.parse().ok())
        .unwrap_or_default()
}

/// A text, or nothing.
pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
