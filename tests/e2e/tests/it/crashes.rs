//! kill -9 of every program between any two steps of the loop, with real nftables.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    process::Command,
    time::{Duration, Instant},
};

use futures::TryStreamExt as _;
use garrison_bus::Bus;
use garrison_proof::{Checkpoint, ExportOptions, VerifierKey, export::ExportWriter, verify_export};
use garrison_proto::{
    compliance::v1::GetCheckpointRequest,
    forensics::v1::{BundleState, CreateBundleRequest, DownloadBundleRequest, ListBundlesRequest},
    response::v1::{
        Action, GetAlertRequest, Incident, ListIncidentsRequest, ListResponsesRequest, Response, ResponseState,
        RollbackResponseRequest,
    },
};
use garrison_testkit::Fleet;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use serde_json::Value;
use uuid::Uuid;

use crate::{
    calls::{Desk, Doors, log_in},
    outages::column,
    place::{alone, folder, in_namespaces, run, until},
    program::{Program, prepare, programs, wait_ready},
    stimuli::{alert_message, brute_force, forbidden_contact},
    tenancy::evidence::export,
    traces,
    world::{ACME, bus, options, sensors},
};

/// Rounds of alerts and kills. Each program and server is killed twice, responder and enforcer four times.
const ROUNDS: usize = 24;
/// Alerts in a round.
const ALERTS: usize = 4;
/// How long anything may take that is waited for.
const LIMIT: Duration = Duration::from_secs(180);
/// Whom everybody attacks, and whom nobody may reach.
const BUSY: Ipv4Addr = Ipv4Addr::new(10, 1, 51, 1);
const DATABASE: Ipv4Addr = Ipv4Addr::new(10, 1, 51, 2);

#[test]
fn killed_anywhere_the_loop_does_everything_once() {
    let _alone = alone();
    if !in_namespaces("crashes::killed_anywhere_the_loop_does_everything_once") {
        return;
    }
    run(async {
        let seed = match std::env::var("GARRISON_SEED") {
            Ok(text) => text.parse().expect("GARRISON_SEED is a number"),
            Err(_) => rand::random::<u64>() % 1_000_000,
        };
        eprintln!("GARRISON_SEED={seed}");
        let dir = folder("crashes");
        let mut options = options(&dir, false);
        options.extra.insert("flow-ingest".to_owned(), sensors(&dir));
        let fleet = prepare(options).await;
        let mut services: Vec<Program> = programs()
            .into_iter()
            .map(|name| Program::start(&fleet, name))
            .collect();
        wait_ready(&mut services, LIMIT);
        let doors = Doors::of(&fleet);
        let desk = log_in(&fleet, &doors, ACME, "admin").await;
        let early = desk
            .log
            .clone()
            .get_checkpoint(GetCheckpointRequest {})
            .await
            .unwrap()
            .into_inner();

        let mut chaos = Chaos {
            dice: StdRng::seed_from_u64(seed),
            anomaly: bus(&fleet, "svc/anomaly").await,
            policy: bus(&fleet, "svc/policy").await,
            fleet,
            services,
            desk,
            alerts: BTreeMap::new(),
            deck: Vec::new(),
        };
        for round in 0..ROUNDS {
            chaos.round(round).await;
        }
        wait_ready(&mut chaos.services, LIMIT);
        chaos.settles().await;
        chaos.incidents_are_consistent().await;
        chaos.rules_are_in_the_kernel_once().await;
        chaos
            .log_has_everything_once(&early.checkpoint, &early.verifier_key)
            .await;
        chaos.bundles_are_whole().await;
        chaos.undone_once().await;
        traces::assert_no_secrets(&chaos.fleet, &[&chaos.desk]);
    });
}

struct Chaos {
    dice: StdRng,
    anomaly: Bus,
    policy: Bus,
    fleet: Fleet,
    services: Vec<Program>,
    desk: Desk,
    /// Alert id, and on whom what is to be done for it.
    alerts: BTreeMap<String, (Ipv4Addr, Action)>,
    /// Who is to be killed yet, so that everybody has their turn.
    deck: Vec<String>,
}

impl Chaos {
    /// Stimuli, a kill somewhere among what follows from them, and a restart.
    async fn round(&mut self, round: usize) {
        let fallen = Ipv4Addr::new(10, 1, 50, round as u8 + 2);
        for n in 0..ALERTS {
            let source = Ipv4Addr::new(198, 51, 100, (round * ALERTS + n + 1) as u8);
            let (alert, order) = match n {
                0 => (brute_force(source, fallen), (source, Action::Block)),
                // Whom the first fell victim to goes on: one incident.
                1 => (forbidden_contact(fallen, DATABASE), (fallen, Action::Isolate)),
                _ => (brute_force(source, BUSY), (source, Action::Block)),
            };
            let message = alert_message(ACME, &alert);
            let detector = if n == 1 { &self.policy } else { &self.anomaly };
            let began = Instant::now();
            while let Err(error) = detector.publisher().publish(&message).await {
                assert!(began.elapsed() < LIMIT, "{error}");
            }
            if n == 2 {
                // The detector says the same again: nothing is done twice for it.
                let again = alert_message(ACME, &alert).with_id(Uuid::now_v7());
                let _ = self.anomaly.publisher().publish(&again).await;
            }
            self.alerts.insert(alert.alert_id, order);
        }
        if round % 4 == 1 {
            self.ask_for_evidence().await;
        }
        if self.deck.is_empty() {
            self.deck = self.services.iter().map(|service| service.name().to_owned()).collect();
            self.deck
                .extend(["responder", "enforcer", "nats", "postgres"].map(str::to_owned));
            self.deck.shuffle(&mut self.dice);
        }
        let victim = self.deck.pop().unwrap();
        // From an alert to its rule in the kernel it takes some ten milliseconds.
        let pause = Duration::from_micros(self.dice.random_range(0..120_000));
        let down = Duration::from_millis(self.dice.random_range(0..700));
        tokio::time::sleep(pause).await;
        eprintln!("round {round}: {victim} is killed after {pause:?} and down for {down:?}");
        match victim.as_str() {
            "nats" => {
                self.fleet.nats().kill();
                tokio::time::sleep(down).await;
                self.fleet.nats().resume().unwrap();
            }
            "postgres" => {
                self.fleet.postgres().kill();
                tokio::time::sleep(down).await;
                self.fleet.postgres().resume().unwrap();
            }
            name => {
                let at = self.services.iter().position(|service| service.name() == name).unwrap();
                self.services[at].kill();
                tokio::time::sleep(down).await;
                self.services[at] = Program::start(&self.fleet, name);
            }
        }
        for service in &mut self.services {
            service.assert_running();
        }
        let calm = Duration::from_millis(self.dice.random_range(0..500));
        tokio::time::sleep(calm).await;
    }

    async fn ask_for_evidence(&mut self) {
        let list = self
            .desk
            .incidents
            .clone()
            .list_incidents(ListIncidentsRequest::default())
            .await;
        let Ok(list) = list else { return };
        if let Some(incident) = list.into_inner().incidents.first() {
            let request = CreateBundleRequest {
                incident: incident.name.clone(),
                request_id: Uuid::now_v7().to_string(),
            };
            // Whoever was killed a moment ago may not be there yet; then this round has no bundle.
            let _ = self.desk.evidence.clone().create_bundle(request).await;
        }
    }

    /// Every alert is known everywhere, and every response has reached its end.
    async fn settles(&self) {
        let limit = LIMIT;
        for schema in ["responder", "forensics"] {
            until(limit, &format!("every alert in {schema}"), || async {
                let mut stored = column(&self.fleet, &format!("select alert_id::text from {schema}.alert")).await;
                stored.sort();
                let wanted: Vec<String> = self.alerts.keys().cloned().collect();
                (stored == wanted).then_some(())
            })
            .await;
        }
        let began = Instant::now();
        loop {
            let left: Vec<Response> = self
                .responses()
                .await
                .into_iter()
                .filter(|response| response.state() != settled(response.action()))
                .collect();
            if left.is_empty() {
                break;
            }
            assert!(began.elapsed() < limit, "not applied: {left:#?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        until(limit, "empty outboxes", || async {
            let mut left = 0;
            for schema in ["anomaly", "policy", "responder", "forensics", "compliance", "iam"] {
                left += column(&self.fleet, &format!("select id::text from {schema}.outbox"))
                    .await
                    .len();
            }
            (left == 0).then_some(())
        })
        .await;
    }

    async fn responses(&self) -> Vec<Response> {
        let request = ListResponsesRequest {
            page_size: 500,
            ..ListResponsesRequest::default()
        };
        let answer = self.desk.responses.clone().list_responses(request).await.unwrap();
        answer.into_inner().responses
    }

    async fn incidents(&self) -> Vec<Incident> {
        let request = ListIncidentsRequest {
            page_size: 500,
            ..ListIncidentsRequest::default()
        };
        let answer = self.desk.incidents.clone().list_incidents(request).await.unwrap();
        answer.into_inner().incidents
    }

    async fn incidents_are_consistent(&self) {
        let incidents = self.incidents().await;
        let living: Vec<&Incident> = incidents
            .iter()
            .filter(|incident| incident.merged_into.is_empty())
            .collect();
        let mut homes = BTreeMap::new();
        for incident in &living {
            let ids: BTreeSet<&String> = incident.alert_ids.iter().collect();
            assert_eq!(
                ids.len(),
                incident.alert_ids.len(),
                "an alert is twice in {}",
                incident.name
            );
            assert_eq!(ids.len() as u64, incident.alert_count, "{incident:?}");
            for id in ids {
                let other = homes.insert(id.clone(), incident.name.clone());
                assert_eq!(other, None, "alert {id} is in two incidents");
            }
        }
        assert_eq!(homes.keys().collect::<Vec<_>>(), self.alerts.keys().collect::<Vec<_>>());
        for (alert_id, home) in &homes {
            let request = GetAlertRequest {
                alert_id: alert_id.clone(),
            };
            let answer = self.desk.alerts.clone().get_alert(request).await.unwrap().into_inner();
            assert_eq!(&answer.incident, home);
        }
        let responses = self.responses().await;
        let mut targets: Vec<&str> = responses.iter().map(|response| plain(&response.target)).collect();
        targets.sort_unstable();
        let mut wanted: Vec<String> = self.alerts.values().map(|(target, _)| target.to_string()).collect();
        wanted.sort_unstable();
        assert_eq!(targets, wanted, "not exactly one response for each source");
        // One for each fallen host, with its attacker's; the others stand alone.
        let both = living.iter().filter(|incident| incident.alert_count == 2).count();
        assert_eq!(
            both, ROUNDS,
            "victims that went on are not in their attackers' incidents"
        );
        for response in &responses {
            let target: Ipv4Addr = plain(&response.target).parse().unwrap();
            assert!(
                self.alerts.values().any(|order| *order == (target, response.action())),
                "{response:?}"
            );
            assert!(
                living
                    .iter()
                    .any(|incident| incident.responses.contains(&response.name)),
                "{} belongs to no incident",
                response.name
            );
            let reached = |state: ResponseState| response.history.iter().filter(|step| step.state() == state).count();
            let steps = [
                ResponseState::PendingApproval,
                ResponseState::Dispatched,
                ResponseState::Applied,
            ];
            let wanted = if response.action() == Action::Block {
                [0, 1, 1]
            } else {
                [1, 0, 0]
            };
            assert_eq!(steps.map(reached), wanted, "{:#?}", response.history);
        }
        eprintln!(
            "{} alerts, {} incidents, {} responses",
            homes.len(),
            living.len(),
            responses.len()
        );
    }

    fn blocks(&self) -> Vec<Ipv4Addr> {
        let blocks = self.alerts.values().filter(|(_, action)| *action == Action::Block);
        blocks.map(|(target, _)| *target).collect()
    }

    async fn rules_are_in_the_kernel_once(&self) {
        let mut blocked = blocked();
        blocked.sort();
        let mut wanted = self.blocks();
        wanted.sort();
        assert_eq!(blocked, wanted, "what nft lists is not what was ordered");
    }

    async fn log_has_everything_once(&self, early: &str, key: &str) {
        let limit = LIMIT;
        let responses = self.responses().await;
        // The last records may still be on their way.
        until(limit, "the last records in the log", || async {
            let applied = self
                .actions()
                .await
                .into_iter()
                .filter(|(action, _)| action == "response.applied");
            (applied.count() >= self.blocks().len()).then_some(())
        })
        .await;
        let actions = self.actions().await;
        let count = |action: &str, resource: &str| actions.iter().filter(|(a, r)| a == action && r == resource).count();
        for response in &responses {
            let steps: &[&str] = match response.action() {
                Action::Block => &["response.dispatched", "response.applied"],
                _ => &["response.pending_approval"],
            };
            for action in steps {
                assert_eq!(
                    count(action, &response.name),
                    1,
                    "{action} of {} in the log",
                    response.name
                );
            }
        }
        for incident in self.incidents().await {
            assert_eq!(count("incident.opened", &incident.name), 1, "{}", incident.name);
        }
        // An outsider's view: the export verifies, and extends what was signed before all this.
        let (checkpoint, verifier_key, entries) = export(&self.desk).await;
        let mut writer = ExportWriter::new(Vec::new(), &checkpoint, &verifier_key).unwrap();
        for entry in &entries {
            writer.entry(entry.index, &entry.body).unwrap();
        }
        let (file, _) = writer.finish().unwrap();
        let trusted = VerifierKey::parse(key).unwrap();
        let options = ExportOptions {
            earlier: Some(Checkpoint::verify(early, &trusted).unwrap()),
            trusted_key: Some(trusted),
        };
        let report = verify_export(file.as_slice(), &options).unwrap();
        assert!(report.key_trusted && report.extends_earlier);
        assert_eq!(report.checkpoint.size, entries.len() as u64);
        let mut ids = BTreeSet::new();
        for entry in &entries {
            let body: Value = serde_json::from_slice(&entry.body).unwrap();
            let id = body["recordId"].as_str().unwrap().to_owned();
            assert!(ids.insert(id), "a record is twice in the log: {body}");
        }
        eprintln!("{} entries in the log", entries.len());
    }

    /// Action and resource of every entry.
    async fn actions(&self) -> Vec<(String, String)> {
        let (_, _, entries) = export(&self.desk).await;
        entries
            .iter()
            .map(|entry| {
                let body: Value = serde_json::from_slice(&entry.body).unwrap();
                let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
                (text("action"), text("resource"))
            })
            .collect()
    }

    async fn bundles_are_whole(&self) {
        let bundles = until(LIMIT, "every bundle's seal", || async {
            let answer = self
                .desk
                .evidence
                .clone()
                .list_bundles(ListBundlesRequest::default())
                .await
                .unwrap();
            let bundles = answer.into_inner().bundles;
            let waiting = bundles.iter().any(|bundle| bundle.state() == BundleState::Gathering);
            (!waiting).then_some(bundles)
        })
        .await;
        for bundle in &bundles {
            assert_eq!(bundle.state(), BundleState::Sealed, "{bundle:?}");
            let request = DownloadBundleRequest {
                name: bundle.name.clone(),
            };
            let parts = self
                .desk
                .evidence
                .clone()
                .download_bundle(request)
                .await
                .unwrap()
                .into_inner();
            let parts: Vec<_> = parts.try_collect().await.unwrap();
            let archive: Vec<u8> = parts.into_iter().flat_map(|part| part.chunk).collect();
            garrison_proof::verify_bundle(archive.as_slice(), Some(&bundle.key_id)).unwrap();
        }
        eprintln!("{} bundles", bundles.len());
    }

    /// A roll-back with the enforcer killed in the middle of it.
    async fn undone_once(&mut self) {
        let applied = |response: &Response| response.state() == ResponseState::Applied;
        let response = self.responses().await.into_iter().find(applied).unwrap();
        let request = RollbackResponseRequest {
            name: response.name.clone(),
            reason: "a mistake".to_owned(),
        };
        self.desk.responses.clone().rollback_response(request).await.unwrap();
        let at = self
            .services
            .iter()
            .position(|service| service.name() == "enforcer")
            .unwrap();
        self.services[at].kill();
        self.services[at] = Program::start(&self.fleet, "enforcer");
        let target: Ipv4Addr = plain(&response.target).parse().unwrap();
        until(LIMIT, "the roll-back", || async {
            let found = self
                .responses()
                .await
                .into_iter()
                .find(|other| other.name == response.name)
                .unwrap();
            (found.state() == ResponseState::Reverted).then_some(())
        })
        .await;
        let blocked = blocked();
        assert!(!blocked.contains(&target), "{target} is rolled back and still blocked");
        assert_eq!(
            blocked.len(),
            self.blocks().len() - 1,
            "more than {target} was unblocked"
        );
    }
}

/// Where a playbook's response comes to rest.
fn settled(action: Action) -> ResponseState {
    match action {
        Action::Block => ResponseState::Applied,
        _ => ResponseState::PendingApproval,
    }
}

fn plain(target: &str) -> &str {
    target.split('/').next().unwrap()
}

/// The addresses in the block sets of the kernel, as nft lists them.
fn blocked() -> Vec<Ipv4Addr> {
    let output = Command::new("nft")
        .args(["-j", "list", "table", "inet", "garrison"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let listing: Value = serde_json::from_slice(&output.stdout).unwrap();
    let sets = listing["nftables"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|item| item.get("set"));
    let blocks = sets.filter(|set| set["name"].as_str().is_some_and(|name| name.starts_with("block4_")));
    blocks
        .flat_map(|set| set["elem"].as_array().cloned().unwrap_or_default())
        .map(|element| {
            let value = element.get("elem").map_or(&element, |inner| &inner["val"]);
            value.as_str().unwrap_or_else(|| panic!("{element}")).parse().unwrap()
        })
        .collect()
}
