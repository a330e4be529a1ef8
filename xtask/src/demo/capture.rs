//! The loop on a capture file, or on a live interface.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use garrison_testkit::{Fleet, bootstrap::Source};
use serde_json::Value;

use super::{
    Options,
    report::{Report, Verification, items, living, number, text},
    story::{TENANT, fleet_options, login, until},
};
use crate::{client::Client, narrate::Narrator, paths};

/// Plays a capture into the fleet and shows what is found in it.
pub async fn from_file(options: &Options, file: &Path) -> Result<()> {
    ensure!(file.is_file(), "{} is no file", file.display());
    let narrator = Narrator::new();
    narrator.chapter(&format!("The loop on {}", file.display()));
    let source = Source::File(file.to_owned());
    let (mut fleet, analyst, out) = start(options, source, false, false).await?;
    narrator.say("the fleet is up; the sensor starts to read");
    fleet.start_service("flow-ingest")?;
    connected(&fleet).await?;

    // A file is done when the sensor says so; its records are out when as many arrived as were published.
    let sensors = until(Duration::from_secs(600), "the end of the capture", || {
        let sensors = analyst.json(&["sensors", "list"])?;
        let done = items(&sensors, "sensors")
            .iter()
            .all(|sensor| sensor["finished"].as_bool() == Some(true));
        Ok((done && !items(&sensors, "sensors").is_empty()).then_some(sensors))
    })
    .await?;
    let mut report = Report {
        source: file.display().to_string(),
        ..Report::default()
    };
    report.note_sensors(&sensors);
    for sensor in items(&sensors, "sensors") {
        let problem = text(&sensor["problem"]);
        ensure!(problem.is_empty() || report.packets > 0, problem);
        if !problem.is_empty() {
            narrator.say(&problem);
        }
    }
    narrator.say(&format!("{} packets, {} flows", report.packets, report.flows));
    narrator.verdict(report.ledger_balances, "every packet is accounted for");
    let stored = settled(&analyst, report.flows).await?;
    report.verifications.push(Verification {
        claim: "every flow is stored and found again".to_owned(),
        holds: stored == report.flows,
    });
    narrator.verdict(
        stored == report.flows,
        &format!("{stored} of {} flows are stored and found again", report.flows),
    );
    conclude(options, &narrator, &analyst, report, &out).await
}

// A file that is cut short keeps the sensor from being wholly ready; what comes before the cut is still worth reading.
async fn connected(fleet: &Fleet) -> Result<()> {
    until(Duration::from_secs(120), "the sensor to reach broker and iam", || {
        let Some((_, body)) = fleet.admin("flow-ingest", "/readyz") else {
            return Ok(None);
        };
        let ready: Value = serde_json::from_str(&body)?;
        let reached = |name: &str| {
            let mut checks = items(&ready, "checks").iter();
            checks.any(|check| text(&check["name"]) == name && check["ready"] == true)
        };
        Ok((reached("bus") && reached("iam")).then_some(()))
    })
    .await
}

// Detection and storage run behind the sensor; they have caught up when what they hold stays the same.
async fn settled(analyst: &Client, flows: u64) -> Result<u64> {
    let (mut before, mut same) = ((u64::MAX, usize::MAX), 0);
    let found = until(Duration::from_secs(180), "detection and storage to catch up", || {
        let output = analyst.run(&["flows", "search", "--limit", "1000000", "-o", "tsv"])?;
        let stored = (String::from_utf8_lossy(&output.stdout).lines().count() as u64).saturating_sub(1);
        let alerts = items(&analyst.json(&["alerts", "list", "--limit", "1000"])?, "alerts").len();
        let now = (stored, alerts);
        same = if std::mem::replace(&mut before, now) == now {
            same + 1
        } else {
            0
        };
        std::thread::sleep(Duration::from_millis(500));
        Ok((same >= 3 && stored >= flows).then_some(stored))
    });
    match found.await {
        Ok(stored) => Ok(stored),
        Err(_) => Ok(before.0),
    }
}

/// Watches a live interface until interrupted.
pub async fn from_interface(options: &Options, interface: &str) -> Result<()> {
    ensure!(
        Path::new("/sys/class/net").join(interface).exists(),
        "there is no interface {interface}: see `ip link`"
    );
    let narrator = Narrator::new();
    narrator.chapter(&format!(
        "The loop on {interface}{}",
        if options.enforce { "" } else { ", observing only" }
    ));
    let source = Source::Interfaces(vec![interface.to_owned()]);
    let (mut fleet, analyst, _) = start(options, source, true, options.enforce).await?;
    let started = fleet
        .start_service("flow-ingest")
        .and_then(|()| fleet.wait_ready(Duration::from_secs(30)));
    started.context("capturing needs CAP_NET_RAW: run as root")?;
    narrator.say("the first minute is learnt as normal; Ctrl-C ends");
    let mut seen = std::collections::HashSet::new();
    loop {
        let alerts = analyst.json(&["alerts", "list", "--limit", "200"])?;
        for alert in items(&alerts, "alerts").iter().rev() {
            if seen.insert(text(&alert["alertId"])) {
                narrator.say(&format!("{}: {}", text(&alert["detector"]), text(&alert["title"])));
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn start(options: &Options, source: Source, learn: bool, enforce: bool) -> Result<(Fleet, Client, PathBuf)> {
    let dir = paths::state().join("demo");
    let out = paths::state().join("demo-results");
    for folder in [&dir, &out] {
        if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
    }
    fs::create_dir_all(&out)?;
    let binaries = paths::binaries(options.profile());
    let mut fleet_options = fleet_options(binaries.clone(), dir, Some(source), !enforce);
    fleet_options.learn_seconds = learn.then_some(60);
    let mut fleet = Fleet::prepare(fleet_options).await?;
    // The sensor last, so that nothing of a file passes before somebody listens.
    for program in fleet.programs().into_iter().filter(|program| program != "flow-ingest") {
        fleet.start_service(&program)?;
    }
    fleet.wait_ready(Duration::from_secs(180))?;
    let analyst = login(&fleet, &binaries, TENANT, "analyst")?;
    Ok((fleet, analyst, out))
}

async fn conclude(
    options: &Options,
    narrator: &Narrator,
    analyst: &Client,
    mut report: Report,
    out: &Path,
) -> Result<()> {
    let alerts = analyst.json(&["alerts", "list", "--limit", "1000"])?;
    let incidents = analyst.json(&["incidents", "list"])?;
    let responses = analyst.json(&["responses", "list"])?;
    report.note_findings(&alerts, &incidents, &responses);
    for (detector, count) in &report.detectors {
        narrator.say(&format!("{count} alerts of {detector}"));
    }
    for incident in living(&incidents) {
        narrator.say(&format!(
            "incident: {} ({} alerts)",
            text(&incident["title"]),
            number(&incident["alertCount"])
        ));
    }
    if let Some(incident) = living(&incidents).first() {
        let name = text(&incident["name"]);
        let bundle = analyst.json(&["evidence", "create", &name, "--wait"])?;
        let archive = out.join("evidence.tar").display().to_string();
        analyst.run(&["evidence", "export", &text(&bundle["name"]), "--file", &archive])?;
        let verified = analyst
            .attempt(&["evidence", "verify", &archive, "--key", &text(&bundle["keyId"])])?
            .status
            .success();
        narrator.verdict(verified, "the evidence bundle of the first incident verifies offline");
        report.verifications.push(Verification {
            claim: "the evidence bundle verifies offline".to_owned(),
            holds: verified,
        });
    }
    if let Some(path) = &options.report {
        report.write(path)?;
        narrator.say(&format!("report: {}", path.display()));
    }
    ensure!(report.holds(), "not everything that the demo claims was proved");
    Ok(())
}
