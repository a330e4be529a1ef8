//! The lab's story: normal days, an attack, containment, undoing it, and proof.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use garrison_testkit::{
    Fleet, FleetOptions,
    bootstrap::{Enforcer, Person, Sensor, Source, Tenant},
};
use serde_json::Value;

use super::{
    Options,
    report::{Report, Verification, items, living, text},
};
use crate::{
    actor,
    client::Client,
    narrate::Narrator,
    network::{ATTACKER, DATABASE, Lab, OFFICE, WWW},
    paths, totp,
};

/// The tenant of the lab.
pub const TENANT: &str = "acme";
/// The router's name as an enforcer node.
pub const NODE: &str = "router";

/// Tenants and people of demos and development fleets.
pub fn cast() -> Vec<Tenant> {
    let person = |login: &str, roles: &[&str]| Person {
        login: login.to_owned(),
        roles: roles.iter().map(|role| (*role).to_owned()).collect(),
        second_factor: true,
    };
    vec![
        Tenant {
            id: TENANT.to_owned(),
            people: vec![
                person("analyst", &["analyst", "responder"]),
                person("engineer", &["policy-author", "viewer"]),
                person("auditor", &["auditor"]),
                person("admin", &["admin"]),
            ],
        },
        Tenant {
            id: "globex".to_owned(),
            people: vec![
                person("analyst", &["analyst", "responder"]),
                person("admin", &["admin"]),
            ],
        },
        Tenant {
            id: "system".to_owned(),
            people: vec![person("admin", &["admin"])],
        },
    ]
}

/// A fleet with the cast, a sensor for the given source and an enforcer on this machine.
pub fn fleet_options(binaries: PathBuf, dir: PathBuf, source: Option<Source>, observe_only: bool) -> FleetOptions {
    let sensors = source.into_iter().map(|source| Sensor {
        id: NODE.to_owned(),
        tenant: TENANT.to_owned(),
        source,
    });
    FleetOptions {
        binaries,
        dir,
        tenants: cast(),
        sensors: sensors.collect(),
        enforcer: Some(Enforcer {
            node: NODE.to_owned(),
            tenants: vec![TENANT.to_owned()],
            observe_only,
            management_networks: vec!["10.77.0.0/24".to_owned()],
        }),
        otlp_endpoint: None,
        log: "info".to_owned(),
        learn_seconds: None,
        extra: BTreeMap::new(),
    }
}

/// Logs somebody of the cast in, with password and code from the fleet's secrets.
pub fn login(fleet: &Fleet, binaries: &Path, tenant: &str, login: &str) -> Result<Client> {
    let name = format!("{tenant}-{login}");
    let client = Client::new(&binaries.join("garrison"), &fleet.written().cli, &name);
    let secrets = &fleet.written().secrets;
    let password = secrets.password(&name)?;
    let code_file = fleet.dir().join(format!("{name}.code"));
    fs::write(&code_file, totp::code(&secrets.totp(&name)?)?)?;
    let outcome = client.run(&[
        "login",
        login,
        "--tenant",
        tenant,
        "--password-file",
        &password.display().to_string(),
        "--code-file",
        &code_file.display().to_string(),
    ]);
    fs::remove_file(&code_file)?;
    outcome.map(|_| client)
}

/// Waits until `look` finds something.
pub async fn until<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let began = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if began.elapsed() > limit {
            bail!("waited {} s in vain for {what}", limit.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

struct Story {
    narrator: Narrator,
    report: Report,
    lab: Lab,
    fleet: Fleet,
    analyst: Client,
    out: PathBuf,
}

/// Runs the demo on the lab network.
pub async fn tell(options: &Options) -> Result<()> {
    let narrator = Narrator::new();
    let dir = paths::state().join("demo");
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    let out = paths::state().join("demo-results");
    if out.exists() {
        fs::remove_dir_all(&out)?;
    }
    fs::create_dir_all(&out)?;
    narrator.chapter("A small company's network");
    let lab = Lab::build(&dir.join("lab"))?;
    narrator.say(&format!(
        "office machine {OFFICE}, web server {WWW}, database {DATABASE}, attacker {ATTACKER}, a router between them"
    ));
    let source = Source::Interfaces(lab.interfaces());
    let binaries = paths::binaries(options.profile());
    let fleet = Fleet::start(fleet_options(binaries.clone(), dir, Some(source), false)).await?;
    narrator.say("seven services and the router's enforcer are up and ready, each with its own certificate");
    let analyst = login(&fleet, &binaries, TENANT, "analyst")?;
    narrator.say("the analyst has logged in with password and authenticator");

    let mut story = Story {
        narrator,
        report: Report {
            source: "lab".to_owned(),
            ..Report::default()
        },
        lab,
        fleet,
        analyst,
        out,
    };
    let told = story.run(&binaries, options).await;
    if let Err(error) = &told {
        story.narrator.verdict(false, &format!("{error:#}"));
    }
    if options.keep {
        look_around(&story.fleet);
        std::future::pending::<()>().await;
    }
    told?;
    ensure!(story.report.holds(), "not everything that the demo claims was proved");
    Ok(())
}

impl Story {
    async fn run(&mut self, binaries: &Path, options: &Options) -> Result<()> {
        self.learn(binaries).await?;
        let incident = self.attack().await?;
        self.contain(&incident).await?;
        self.prove(binaries, &incident).await?;
        self.close(options)
    }

    fn claim(&mut self, holds: bool, claim: &str) {
        self.narrator.verdict(holds, claim);
        self.report.verifications.push(Verification {
            claim: claim.to_owned(),
            holds,
        });
    }

    async fn learn(&mut self, binaries: &Path) -> Result<()> {
        self.narrator.chapter("What is normal");
        let engineer = login(&self.fleet, binaries, TENANT, "engineer")?;
        let policy = paths::root().join("docs/examples/lab-policy.yaml");
        engineer.run(&["policy", "apply", &policy.display().to_string()])?;
        self.narrator
            .say("policy: everybody may use the web server; the database is for the web server alone");
        let admin = login(&self.fleet, binaries, TENANT, "admin")?;
        admin.run(&["model", "learn"])?;
        let pages = actor::deeds(&self.lab.browse(120)?)?;
        ensure!(pages.unanswered == 0, "{} of 120 pages did not come", pages.unanswered);
        self.narrator.say(&format!(
            "the office machine read {} pages over HTTP and TLS, each backed by the database",
            pages.answered
        ));
        admin.run(&["model", "finish"])?;
        let model = until(Duration::from_secs(300), "the trained model", || {
            let model = admin.json(&["model", "status"])?;
            Ok((text(&model["phase"]) == "MODEL_PHASE_SCORING").then_some(model))
        });
        let model = model.await?;
        self.narrator.say(&format!(
            "learnt from {} flows; model version {} scores from now on",
            text(&model["learntFlows"]),
            text(&model["version"])
        ));
        Ok(())
    }

    async fn attack(&mut self) -> Result<String> {
        self.narrator.chapter("The attack");
        let office = OFFICE.to_string();
        let scan = actor::deeds(&self.lab.act(&self.lab.attacker, &["scan", "--target", &office])?)?;
        self.narrator.say(&format!(
            "the attacker tried {} ports of the office machine",
            scan.answered + scan.unanswered
        ));
        let target = format!("{OFFICE}:8080");
        let force = actor::deeds(
            &self
                .lab
                .act(&self.lab.attacker, &["brute-force", "--target", &target])?,
        )?;
        self.narrator.say(&format!(
            "the attacker guessed passwords: {} answers, {}, then silence",
            force.answered,
            if force.succeeded {
                "one guess right"
            } else {
                "no guess right"
            }
        ));
        self.claim(
            force.succeeded,
            "the office machine was really compromised before the attacker was cut off",
        );
        let block = self
            .response("ACTION_BLOCK", ATTACKER.to_string(), &["RESPONSE_STATE_APPLIED"])
            .await?;
        let incident = text(&block["incident"]);
        let contained = between(&block["triggerTime"], &block["applied"])?;
        self.report.time_to_contain_ms = Some(contained);
        self.narrator.say(&format!(
            "blocked: the drop rule was live {contained:.1} ms after the packet that crossed the threshold"
        ));
        Ok(incident)
    }

    async fn response(&self, action: &str, target: String, states: &[&str]) -> Result<Value> {
        let wanted = |response: &&Value| {
            text(&response["action"]) == action
                && text(&response["target"]).split('/').next() == Some(target.as_str())
                && states.contains(&text(&response["state"]).as_str())
        };
        until(
            Duration::from_secs(120),
            &format!("{action} of {target} to be {}", states.join(" or ")),
            || {
                let responses = self.analyst.json(&["responses", "list"])?;
                Ok(items(&responses, "responses").iter().find(wanted).cloned())
            },
        )
        .await
    }

    async fn contain(&mut self, incident: &str) -> Result<()> {
        self.narrator.chapter("Containment");
        let ruleset = Command::new(crate::setup::which("nft").context("nft is missing")?)
            .args(["list", "ruleset"])
            .output()?;
        let ruleset = String::from_utf8_lossy(&ruleset.stdout).into_owned();
        self.claim(
            ruleset.contains(&ATTACKER.to_string()),
            "the attacker is in the kernel's ruleset, read with nft",
        );
        let reached = self.reaches_from_attacker()?;
        self.claim(!reached, "the attacker's packets no longer arrive");
        let normal = actor::deeds(&self.lab.browse(4)?)?;
        self.claim(normal.unanswered == 0, "the office machine's normal traffic still does");

        let isolation = self
            .response(
                "ACTION_ISOLATE",
                OFFICE.to_string(),
                &["RESPONSE_STATE_PENDING_APPROVAL"],
            )
            .await?;
        self.claim(
            text(&isolation["incident"]) == incident,
            "the lateral movement to the database joined the same incident",
        );
        self.narrator.say(&format!("isolating {OFFICE} waits for a person"));
        let name = text(&isolation["name"]);
        self.analyst.run(&[
            "responses",
            "approve",
            &name,
            "--reason",
            "seen reaching for the database",
        ])?;
        self.response("ACTION_ISOLATE", OFFICE.to_string(), &["RESPONSE_STATE_APPLIED"])
            .await?;
        self.narrator
            .say("the analyst approved; the office machine is isolated");
        let isolated = actor::deeds(&self.lab.browse_in_vain(2)?)?;
        self.claim(isolated.answered == 0, "nothing of the office machine gets through");

        self.analyst
            .run(&["responses", "rollback", &name, "--reason", "cleaned and checked"])?;
        self.response("ACTION_ISOLATE", OFFICE.to_string(), &["RESPONSE_STATE_REVERTED"])
            .await?;
        let back = actor::deeds(&self.lab.browse(4)?)?;
        self.claim(back.unanswered == 0, "after the roll-back its traffic flows again");
        let reached = self.reaches_from_attacker()?;
        self.claim(!reached, "and the attacker is still blocked");
        Ok(())
    }

    fn reaches_from_attacker(&self) -> Result<bool> {
        for (host, port) in [(OFFICE, 8080), (WWW, 80), (DATABASE, 5432)] {
            let target = format!("{host}:{port}");
            if actor::deeds(&self.lab.act(&self.lab.attacker, &["probe", "--target", &target])?)?.answered > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn prove(&mut self, binaries: &Path, incident: &str) -> Result<()> {
        self.narrator.chapter("Proof");
        let incidents = self.analyst.json(&["incidents", "list"])?;
        self.claim(
            living(&incidents).len() == 1,
            "scan, password guessing and lateral movement are one incident",
        );

        let bundle = self.analyst.json(&["evidence", "create", incident, "--wait"])?;
        let archive = self.out.join("evidence.tar");
        self.analyst.run(&[
            "evidence",
            "export",
            &text(&bundle["name"]),
            "--file",
            &archive.display().to_string(),
        ])?;
        let verified = self.analyst.attempt(&[
            "evidence",
            "verify",
            &archive.display().to_string(),
            "--key",
            &text(&bundle["keyId"]),
        ])?;
        self.claim(verified.status.success(), "the evidence bundle verifies offline");
        self.claim(public_tools_agree(&archive, &self.out)?, "sha256sum and openssl agree");

        let auditor = login(&self.fleet, binaries, TENANT, "auditor")?;
        let log = self.out.join("audit-log.jsonl");
        auditor.run(&["audit", "export", "--file", &log.display().to_string()])?;
        let verified = auditor.attempt(&["audit", "verify", &log.display().to_string()])?;
        self.claim(verified.status.success(), "the audit log verifies offline");
        let forged = self.out.join("forged.jsonl");
        let whole = fs::read_to_string(&log)?;
        fs::write(&forged, whole.replacen("analyst", "attacker", 1))?;
        let refused = auditor.attempt(&["audit", "verify", &forged.display().to_string()])?;
        self.claim(refused.status.code() == Some(6), "a log with one word changed does not");
        fs::remove_file(&forged)?;

        let page = self.out.join("incident.html");
        self.analyst
            .run(&["incidents", "report", incident, "--html", &page.display().to_string()])?;
        let soc2 = self.out.join("soc2.html");
        let oscal = self.out.join("soc2-oscal.json");
        auditor.run(&[
            "reports",
            "create",
            "--since",
            "1h",
            "--html",
            &soc2.display().to_string(),
            "--oscal",
            &oscal.display().to_string(),
        ])?;
        self.narrator
            .say("the incident report and the SOC 2 report are written");
        Ok(())
    }

    fn close(&mut self, options: &Options) -> Result<()> {
        self.narrator.chapter("The account");
        let sensors = self.analyst.json(&["sensors", "list"])?;
        self.report.note_sensors(&sensors);
        let alerts = self.analyst.json(&["alerts", "list", "--limit", "1000"])?;
        let incidents = self.analyst.json(&["incidents", "list"])?;
        let responses = self.analyst.json(&["responses", "list"])?;
        self.report.note_findings(&alerts, &incidents, &responses);
        let (packets, flows) = (self.report.packets, self.report.flows);
        self.narrator.say(&format!(
            "{packets} packets, {flows} flows, {} alerts, {} incident",
            self.report.alerts, self.report.incidents
        ));
        self.narrator
            .verdict(self.report.ledger_balances, "every packet is accounted for");
        if let Some(path) = &options.report {
            self.report.write(path)?;
            self.narrator.say(&format!("report: {}", path.display()));
        }
        let mut files: Vec<String> = fs::read_dir(&self.out)?
            .flatten()
            .map(|entry| entry.path().display().to_string())
            .collect();
        files.sort();
        for file in files {
            self.narrator.say(&format!("left for you: {file}"));
        }
        if let Some(contained) = self.report.time_to_contain_ms {
            println!("\nFrom the packet that crossed the threshold to the live drop rule: {contained:.1} ms");
        }
        Ok(())
    }
}

fn between(from: &Value, to: &Value) -> Result<f64> {
    let time = |value: &Value| -> Result<chrono::DateTime<chrono::Utc>> {
        text(value).parse().with_context(|| format!("{value} is no time"))
    };
    let length = time(to)? - time(from)?;
    let nanoseconds = length.num_nanoseconds().context("the times are too far apart")?;
    Ok(nanoseconds as f64 / 1e6)
}

// The commands of the bundle's own README.
fn public_tools_agree(archive: &Path, out: &Path) -> Result<bool> {
    let unpacked = out.join("evidence");
    fs::create_dir_all(&unpacked)?;
    let script = "tar -xf \"$0\" -C \"$1\" --strip-components=1 && cd \"$1\" && sha256sum --quiet -c SHA256SUMS && \
        openssl pkeyutl -verify -pubin -inkey signing-key.pem -rawin -in manifest.json -sigfile manifest.json.sig";
    let output = Command::new("sh")
        .args(["-c", script])
        .arg(archive)
        .arg(&unpacked)
        .output()?;
    if !output.status.success() {
        eprintln!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output.status.success())
}

fn look_around(fleet: &Fleet) {
    let pid = fleet.process_id("responder").unwrap_or_default();
    let enter = format!("nsenter --target {pid} --user --net --preserve-credentials");
    println!("\nThe fleet stays up until Ctrl-C. In another terminal:");
    println!("  {enter} nft list ruleset");
    println!(
        "  {enter} env GARRISON_CONFIG={} GARRISON_PROFILE={TENANT}-analyst garrison incidents list",
        fleet.written().cli.display()
    );
    println!("  logs are in {}", fleet.dir().join("logs").display());
}
