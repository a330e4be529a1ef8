use std::{collections::BTreeSet, os::unix::fs::PermissionsExt as _, path::Path, process::Command, time::Duration};

use garrison_bus::{Message, subject};
use garrison_proof::verify_bundle;
use garrison_proto::{
    Timestamp,
    alert::v1::{Alert, Entity, EntityKind, FlowReference, Severity},
    audit::v1::AuditRecord,
    event::v1::{IncidentChanged, LoginEvent, PolicyChanged, ResponseChanged},
    forensics::v1::{
        Bundle, BundleState, CreateBundleRequest, DownloadBundleRequest, GetBundleRequest, ListBundlesRequest,
        ListCustodyEventsRequest,
    },
    resource_name,
    response::v1::{Action, Incident, Response, ResponseState, Transition},
};
use prost::Message as _;
use tonic::{Code, Status};
use uuid::Uuid;

use crate::{
    ingest::{Ingest, Manner, pcapng},
    world::{People, World, files, flow_id, host, tenant},
};

fn at(seconds: i64) -> Option<Timestamp> {
    Some(Timestamp { seconds, nanos: 0 })
}

pub(crate) struct Case {
    incident: Uuid,
}

/// Two alerts about flow 5, an incident of them, a response with its decisions, and a policy.
pub(crate) async fn happen(world: &World, name: &str) -> Case {
    let tenant = tenant(name);
    let entity = Entity {
        kind: EntityKind::Host.into(),
        value: host(5),
    };
    let alert = |detector: &str, policy: &str| Alert {
        alert_id: Uuid::now_v7().to_string(),
        detector: detector.into(),
        severity: Severity::High.into(),
        entity: Some(entity.clone()),
        policy: policy.into(),
        count: 1,
        first_seen: at(1_700_000_004),
        last_seen: at(1_700_000_006),
        flows: vec![FlowReference {
            flow_id: flow_id(5).to_string(),
            community_id: "1:5".into(),
            ..FlowReference::default()
        }],
        ..Alert::default()
    };
    let alerts = [
        alert("scan.vertical", ""),
        alert("policy.violation", "database-only version 3 default deny"),
    ];
    let (incident, response) = (Uuid::now_v7(), Uuid::now_v7());
    let mut response = Response {
        name: resource_name("responses", response),
        incident: resource_name("incidents", incident),
        action: Action::Block.into(),
        target: host(5),
        state: ResponseState::Dispatched.into(),
        history: vec![Transition {
            actor: "playbooks/contain".into(),
            detail: "decided".into(),
            ..Default::default()
        }],
        ..Response::default()
    };
    let incident = Incident {
        name: resource_name("incidents", incident),
        title: "Scan and lateral movement".into(),
        severity: Severity::High.into(),
        entities: vec![entity.clone()],
        alert_ids: alerts.iter().map(|alert| alert.alert_id.clone()).collect(),
        responses: vec![response.name.clone()],
        first_seen: at(1_700_000_004),
        last_seen: at(1_700_000_006),
        updated: at(1_700_000_007),
        ..Incident::default()
    };
    for alert in &alerts {
        let detector = if alert.detector == "policy.violation" {
            "policy"
        } else {
            "anomaly"
        };
        let bus = world.bus(&format!("svc/{detector}")).await;
        let subject = subject::alerts(&tenant, Severity::High, &alert.detector);
        let message = Message::proto(subject, detector, alert);
        bus.publisher().publish(&message).await.unwrap();
    }
    let publisher = world.bus("svc/responder").await.publisher();
    let events = |kind: &str| subject::events(&tenant, kind);
    let changed = ResponseChanged {
        response: Some(response.clone()),
    };
    publisher
        .publish(&Message::proto(events("response"), "responder", &changed))
        .await
        .unwrap();
    response.state = ResponseState::Applied.into();
    response.history.push(Transition {
        actor: "enforcers/router".into(),
        detail: "read back".into(),
        ..Default::default()
    });
    let applied = Message::proto(
        events("response"),
        "responder",
        &ResponseChanged {
            response: Some(response),
        },
    );
    // The newer state first, and twice.
    publisher.publish(&applied).await.unwrap();
    publisher
        .publish(&applied.clone().with_id(Uuid::now_v7()))
        .await
        .unwrap();
    publisher
        .publish(&Message::proto(events("response"), "responder", &changed))
        .await
        .unwrap();
    let opened = IncidentChanged {
        incident: Some(incident.clone()),
    };
    publisher
        .publish(&Message::proto(events("incident"), "responder", &opened))
        .await
        .unwrap();
    let policy = PolicyChanged {
        policy: "policies/database-only".into(),
        version: 3,
        ..PolicyChanged::default()
    };
    let other = PolicyChanged {
        policy: "policies/unrelated".into(),
        version: 1,
        ..PolicyChanged::default()
    };
    let policies = world.bus("svc/policy").await.publisher();
    for event in [&policy, &other] {
        policies
            .publish(&Message::proto(events("policy"), "policy", event))
            .await
            .unwrap();
    }
    let counted = async || {
        let mut tx = world.db.begin(&tenant).await.unwrap();
        let counts: (i64, i64, i64) = sqlx::query_as(
            "SELECT (SELECT count(*) FROM alert), (SELECT count(*) FROM event), (SELECT count(*) FROM incident)",
        )
        .fetch_one(&mut *tx)
        .await
        .unwrap();
        counts == (2, 7, 1)
    };
    world.until("events kept", counted).await;
    let incident = garrison_proto::parse_name("incidents", &incident.name).unwrap();
    Case { incident }
}

pub(crate) async fn until_done(world: &World, name: &str, bundle: &str) -> Bundle {
    let mut found = Bundle::default();
    world
        .until("done", async || {
            let request = GetBundleRequest {
                name: bundle.to_owned(),
            };
            let Ok(answer) = world.responder(name).get_bundle(request).await else {
                return false;
            };
            found = answer.into_inner().bundle.unwrap();
            found.state() != BundleState::Gathering
        })
        .await;
    found
}

async fn download(people: &mut People, bundle: &str) -> Result<Vec<u8>, Status> {
    let request = DownloadBundleRequest {
        name: bundle.to_owned(),
    };
    let mut stream = people.download_bundle(request).await?.into_inner();
    let mut bytes = Vec::new();
    while let Some(message) = stream.message().await? {
        bytes.extend_from_slice(&message.chunk);
    }
    Ok(bytes)
}

pub(crate) fn create(case: &Case, request: Uuid) -> CreateBundleRequest {
    CreateBundleRequest {
        incident: resource_name("incidents", case.incident),
        request_id: request.to_string(),
    }
}

/// Unpacks and verifies with tools that are not ours.
fn verify_with_public_tools(archive: &[u8], dir: &Path) {
    std::fs::write(dir.join("b.tar"), archive).unwrap();
    let script = "tar -xf b.tar && cd evidence-* && \
        openssl pkeyutl -verify -pubin -inkey signing-key.pem -rawin -in SHA256SUMS -sigfile SHA256SUMS.sig && \
        openssl pkeyutl -verify -pubin -inkey signing-key.pem -rawin -in manifest.json -sigfile manifest.json.sig && \
        sha256sum --strict -c SHA256SUMS";
    let out = Command::new("sh")
        .arg("-ec")
        .arg(script)
        .current_dir(dir)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(
        !text.contains("openssl: not found"),
        "openssl is missing: apt-get install openssl"
    );
    assert!(
        out.status.success() && text.matches("Signature Verified Successfully").count() == 2,
        "{text}"
    );
}

fn lines(folder: &Path, name: &str) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(folder.join(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_holds_everything_and_verifies_with_public_tools() {
    let mut world = World::new().await;
    let ingest = Ingest::start(&world, Manner::Well).await;
    // One attempt, however slow the machine is.
    world.evidence = format!(
        "lease_ms = 60000\npacket_timeout_ms = 60000\nflow_ingest_endpoints = [\"{}\"]",
        ingest.endpoint
    );
    let service = world.embed().await;
    world.publish("acme", 0, 50).await;
    world.until_found("acme", 50).await;
    let case = happen(&world, "acme").await;

    let request = Uuid::now_v7();
    let mut responder = world.responder("acme");
    let made = responder
        .create_bundle(create(&case, request))
        .await
        .unwrap()
        .into_inner()
        .bundle
        .unwrap();
    let again = responder
        .create_bundle(create(&case, request))
        .await
        .unwrap()
        .into_inner()
        .bundle
        .unwrap();
    assert_eq!(
        (made.name.clone(), made.author.as_str()),
        (again.name, "services/responder")
    );
    let bundle = until_done(&world, "acme", &made.name).await;
    assert_eq!(bundle.state(), BundleState::Sealed, "{}", bundle.error);
    // Flow 5 by its id and, as the only one of its host in the time, by its host.
    assert_eq!(
        (bundle.alerts, bundle.responses, bundle.flows, bundle.packets),
        (2, 1, 1, 2)
    );
    assert!(
        bundle.omissions.iter().any(|o| o.contains("left its ring")),
        "{:?}",
        bundle.omissions
    );
    let asked = ingest.asked.lock().unwrap().clone();
    assert_eq!(asked[0].0, tenant("acme"));
    assert_eq!(asked[0].1.community_ids, ["1:5"]);

    let mut eva = world.person("acme", &["analyst"]);
    let archive = download(&mut eva, &bundle.name).await.unwrap();
    let report = verify_bundle(&archive[..], Some(&bundle.key_id)).unwrap();
    assert_eq!((report.sha256, report.bytes), (bundle.sha256.clone(), bundle.bytes));
    let dir = tempfile::tempdir().unwrap();
    verify_with_public_tools(&archive, dir.path());

    let folder = dir.path().join(garrison_proof::bundle::folder(&bundle.name));
    assert_eq!(lines(&folder, "alerts.jsonl").len(), 2);
    let responses = lines(&folder, "responses.jsonl");
    assert_eq!(responses[0]["state"], "RESPONSE_STATE_APPLIED");
    assert_eq!(responses[0]["history"][1]["actor"], "enforcers/router");
    assert_eq!(lines(&folder, "policies.jsonl").len(), 1);
    assert_eq!(lines(&folder, "flows.jsonl")[0]["communityId"], "1:5");
    assert_eq!(lines(&folder, "custody.jsonl").len(), 2);
    assert!(lines(&folder, "incident-history.jsonl").len() >= 4);
    assert_eq!(std::fs::read(folder.join("packets.pcapng")).unwrap(), pcapng());
    assert_eq!(&std::fs::read(folder.join("flows.parquet")).unwrap()[..4], b"PAR1");

    // Immutable on disk, and every flipped byte is found.
    let stored = files(&world.data)
        .into_iter()
        .find(|f| f.extension().is_some_and(|e| e == "tar"))
        .unwrap();
    assert_eq!(std::fs::metadata(&stored).unwrap().permissions().mode() & 0o777, 0o400);
    assert_eq!(stored.file_stem().unwrap().to_str().unwrap(), bundle.sha256);
    for at in (0..archive.len()).step_by(997) {
        let mut bad = archive.clone();
        bad[at] ^= 0x20;
        assert!(verify_bundle(&bad[..], None).is_err(), "byte {at}");
    }

    let events = eva
        .list_custody_events(ListCustodyEventsRequest {
            name: bundle.name.clone(),
        })
        .await
        .unwrap()
        .into_inner()
        .events;
    let actions: Vec<&str> = events.iter().map(|event| event.action.as_str()).collect();
    assert_eq!(actions, ["created", "gathered", "sealed", "downloaded"]);
    assert!(events[3].actor.starts_with("users/"));

    // A byte that rots on disk ends the download with an error instead of with wrong evidence.
    let mut bad = archive.clone();
    bad[600] ^= 1;
    std::fs::set_permissions(&stored, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(&stored, bad).unwrap();
    let refused = download(&mut eva, &bundle.name).await.unwrap_err();
    assert_eq!(refused.code(), Code::DataLoss);
    audited(&world, &bundle.name).await;
    service.stop().await;
}

/// Sealing and downloading are in the audit stream.
async fn audited(world: &World, bundle: &str) {
    use futures::StreamExt as _;
    let admin = world.bus("svc/bus-admin").await;
    let stream = admin.jetstream().get_stream("AUDIT").await.unwrap();
    let config = async_nats::jetstream::consumer::pull::Config::default();
    let mut messages = stream.create_consumer(config).await.unwrap().messages().await.unwrap();
    let mut missing = BTreeSet::from(["evidence.sealed", "evidence.downloaded"]);
    while !missing.is_empty() {
        let message = tokio::time::timeout(Duration::from_secs(120), messages.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        let record = AuditRecord::decode(message.payload.clone()).unwrap();
        if record.resource == bundle {
            missing.remove(record.action.as_str());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn packets_that_cannot_be_had_are_named_and_the_rest_is_sealed() {
    for (manner, says) in [
        (Some(Manner::BreaksOff), "the disk of the ring is gone"),
        (Some(Manner::Empty), "has none of these flows any more"),
        (None, "did not give its packets"),
    ] {
        let mut world = World::new().await;
        let ingest = match manner {
            Some(manner) => Some(Ingest::start(&world, manner).await),
            None => None,
        };
        let nobody = format!("https://127.0.0.1:{}", garrison_testkit::free_port().unwrap());
        let endpoint = ingest.as_ref().map_or(nobody, |ingest| ingest.endpoint.clone());
        // Who is there may be slow; nobody is not waited for.
        let patience = if manner.is_some() { 60_000 } else { 2_000 };
        world.evidence =
            format!("lease_ms = 1000\npacket_timeout_ms = {patience}\nflow_ingest_endpoints = [\"{endpoint}\"]");
        world.start();
        world.until_ready().await;
        let case = happen(&world, "acme").await;
        let mut responder = world.responder("acme");
        let made = responder
            .create_bundle(create(&case, Uuid::now_v7()))
            .await
            .unwrap()
            .into_inner()
            .bundle
            .unwrap();
        let bundle = until_done(&world, "acme", &made.name).await;
        assert_eq!(bundle.state(), BundleState::Sealed, "{}", bundle.error);
        assert_eq!(bundle.packets, 0);
        assert!(
            bundle.omissions.iter().any(|o| o.contains(says)),
            "{:?}",
            bundle.omissions
        );
        // Nor were the flows ever seen.
        assert!(
            bundle.omissions.iter().any(|o| o.starts_with("flows: 1")),
            "{:?}",
            bundle.omissions
        );
        let stored = files(&world.data)
            .into_iter()
            .find(|f| f.extension().is_some_and(|e| e == "tar"))
            .unwrap();
        let report = verify_bundle(std::fs::File::open(stored).unwrap(), None).unwrap();
        assert!(!report.manifest.files.iter().any(|file| file.path.ends_with("pcapng")));
        assert_eq!(report.manifest.omissions, bundle.omissions);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_gathering_it_seals_after_the_restart() {
    let mut world = World::running().await;
    world.publish("acme", 0, 50).await;
    let case = happen(&world, "acme").await;
    for round in 0..4u64 {
        let request = create(&case, Uuid::now_v7());
        let made = world
            .responder("acme")
            .create_bundle(request.clone())
            .await
            .unwrap()
            .into_inner()
            .bundle
            .unwrap();
        tokio::time::sleep(Duration::from_millis(round * 15)).await;
        world.kill();
        world.start();
        world.until_ready().await;
        let bundle = until_done(&world, "acme", &made.name).await;
        assert_eq!(bundle.state(), BundleState::Sealed, "{}", bundle.error);
        // The same request after the crash: the same bundle.
        let again = world
            .responder("acme")
            .create_bundle(request)
            .await
            .unwrap()
            .into_inner()
            .bundle
            .unwrap();
        assert_eq!(again.name, made.name);
        let request = ListCustodyEventsRequest {
            name: made.name.clone(),
        };
        let events = world
            .responder("acme")
            .list_custody_events(request)
            .await
            .unwrap()
            .into_inner()
            .events;
        assert_eq!(events.iter().filter(|event| event.action == "sealed").count(), 1);
        let id = made.name.split('/').nth(1).unwrap();
        let kept = files(&world.data.join("acme/bundles").join(id));
        assert_eq!(kept.len(), 1, "{kept:?}");
        verify_bundle(std::fs::File::open(&kept[0]).unwrap(), Some(&bundle.key_id)).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_tenant_neither_sees_nor_gets_the_evidence_of_another() {
    let world = World::new().await;
    let service = world.embed().await;
    let case = happen(&world, "acme").await;
    let made = world
        .responder("acme")
        .create_bundle(create(&case, Uuid::now_v7()))
        .await
        .unwrap();
    let name = made.into_inner().bundle.unwrap().name;
    until_done(&world, "acme", &name).await;

    let mut theirs = world.person("other", &["analyst", "auditor", "admin"]);
    let get = theirs.get_bundle(GetBundleRequest { name: name.clone() }).await;
    assert_eq!(get.unwrap_err().code(), Code::NotFound);
    assert_eq!(download(&mut theirs, &name).await.unwrap_err().code(), Code::NotFound);
    let custody = theirs
        .list_custody_events(ListCustodyEventsRequest { name: name.clone() })
        .await;
    assert_eq!(custody.unwrap_err().code(), Code::NotFound);
    let list = theirs
        .list_bundles(ListBundlesRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert!(list.bundles.is_empty());
    let refused = theirs.create_bundle(create(&case, Uuid::now_v7())).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);

    let mut ours = world.person("acme", &["analyst"]);
    assert_eq!(
        ours.list_bundles(ListBundlesRequest::default())
            .await
            .unwrap()
            .into_inner()
            .bundles
            .len(),
        1
    );
    let mut viewer = world.person("acme", &["viewer"]);
    assert_eq!(
        download(&mut viewer, &name).await.unwrap_err().code(),
        Code::PermissionDenied
    );

    let wrong = CreateBundleRequest {
        request_id: "1".into(),
        ..create(&case, Uuid::now_v7())
    };
    assert_eq!(
        ours.create_bundle(wrong).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let unknown = Case {
        incident: Uuid::now_v7(),
    };
    assert_eq!(
        ours.create_bundle(create(&unknown, Uuid::now_v7()))
            .await
            .unwrap_err()
            .code(),
        Code::NotFound
    );
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_alerts_and_events_are_dead_letters() {
    let world = World::running().await;
    let acme = tenant("acme");
    let detector = world.bus("svc/anomaly").await.publisher();
    let nameless = Alert {
        alert_id: "x".into(),
        ..Alert::default()
    };
    let subject = subject::alerts(&acme, Severity::Low, "x");
    detector
        .publish(&Message::proto(subject.clone(), "anomaly", &nameless))
        .await
        .unwrap();
    let mut garbage = Message::proto(subject, "anomaly", &nameless);
    garbage.payload = vec![0xff; 30].into();
    detector.publish(&garbage.with_id(Uuid::now_v7())).await.unwrap();
    let publisher = world.bus("svc/responder").await.publisher();
    let empty = IncidentChanged { incident: None };
    publisher
        .publish(&Message::proto(subject::events(&acme, "incident"), "responder", &empty))
        .await
        .unwrap();
    let iam = world.bus("svc/iam").await.publisher();
    let login = LoginEvent {
        event_id: Uuid::now_v7().to_string(),
        user: "users/1\0".into(),
        ..LoginEvent::default()
    };
    iam.publish(&Message::proto(subject::events(&acme, "login"), "iam", &login))
        .await
        .unwrap();
    let reasons = world.dead_letters(3).await.join("\n");
    assert!(
        reasons.contains("alert_id") && reasons.contains("no incident"),
        "{reasons}"
    );
    world
        .until("the login kept", async || {
            let mut tx = world.db.begin(&acme).await.unwrap();
            let kept: i64 = sqlx::query_scalar("SELECT count(*) FROM event WHERE subject = 'users/1'")
                .fetch_one(&mut *tx)
                .await
                .unwrap();
            kept == 1
        })
        .await;
}
