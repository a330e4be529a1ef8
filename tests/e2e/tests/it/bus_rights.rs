//! Who may publish, read and manage on the broker: for every identity, everything else is refused.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use async_nats::{Client, ConnectOptions, Event, ServerError};
use garrison_bus::topology;
use garrison_testkit::{Fleet, IdentityFiles};

use crate::{
    place::run,
    world::{NODE, World, enforcer},
};

/// How long the broker may take to say what it refuses.
const PATIENCE: Duration = Duration::from_secs(60);

/// Subjects of every kind, in a tenant that no test looks at, and who may publish there. Written down here a second
/// time, from the contract: what the broker grants is compared with it.
fn publishers() -> Vec<(String, Vec<&'static str>)> {
    let services = [
        "flow-ingest",
        "anomaly",
        "policy",
        "responder",
        "forensics",
        "compliance",
        "iam",
    ];
    let mut table: Vec<(String, Vec<&'static str>)> = vec![
        ("flows.v1.probe.3".into(), vec!["svc/flow-ingest"]),
        (
            "alerts.v1.probe.high.scan-vertical".into(),
            vec!["svc/anomaly", "svc/policy"],
        ),
        ("alerts.v1.probe.high.policy-violation".into(), vec!["svc/policy"]),
        ("responses.v1.probe.block.dispatched".into(), vec!["svc/responder"]),
        ("responses.v1.probe.block.reverting".into(), vec!["svc/responder"]),
        // The enforcer reports for its own node and the tenants that it serves, which the probe is not.
        ("responses.v1.acme.block.applied.router".into(), vec!["enforcer/router"]),
        ("responses.v1.acme.block.removed.router".into(), vec!["enforcer/router"]),
        ("responses.v1.acme.block.failed.router".into(), vec!["enforcer/router"]),
        ("responses.v1.acme.block.applied.edge".into(), vec![]),
        ("responses.v1.acme.block.applied".into(), vec![]),
        ("responses.v1.acme.block.dispatched.router".into(), vec![]),
        ("responses.v1.probe.block.applied.router".into(), vec![]),
        ("siem.v1.probe.detection_finding".into(), vec!["svc/responder"]),
        ("audit.v1.acme.enforcer".into(), vec!["enforcer/router"]),
        ("audit.v1.probe.enforcer".into(), vec![]),
    ];
    let kinds = [
        ("login", "svc/iam"),
        ("revocation", "svc/iam"),
        ("keys", "svc/iam"),
        ("model", "svc/anomaly"),
        ("policy", "svc/policy"),
        ("incident", "svc/responder"),
        ("response", "svc/responder"),
        ("evidence", "svc/forensics"),
        ("report", "svc/compliance"),
        ("sensor", "svc/flow-ingest"),
    ];
    for (kind, who) in kinds {
        table.push((format!("events.v1.probe.{kind}"), vec![who]));
    }
    for service in services {
        let who: &'static str = Box::leak(format!("svc/{service}").into_boxed_str());
        table.push((format!("audit.v1.probe.{service}"), vec![who]));
    }
    for consumer in topology::consumers(&[enforcer(true).on_the_bus().unwrap()]) {
        let who: &'static str = Box::leak(consumer.identity.to_string().into_boxed_str());
        let (stream, name) = (consumer.stream, &consumer.name);
        table.push((garrison_bus::subject::dlq(stream, name), vec![who]));
        // Reading and acknowledging are requests too.
        table.push((
            format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}"),
            vec![who, "svc/bus-admin"],
        ));
        table.push((format!("$JS.ACK.{stream}.{name}.1.1.1.1.1"), vec![who]));
        table.push((
            format!("$JS.API.CONSUMER.DELETE.{stream}.{name}"),
            vec!["svc/bus-admin"],
        ));
        table.push((
            format!("$JS.API.CONSUMER.CREATE.{stream}.{name}"),
            vec!["svc/bus-admin"],
        ));
        table.push((
            format!("$JS.API.CONSUMER.DURABLE.CREATE.{stream}.{name}"),
            vec!["svc/bus-admin"],
        ));
    }
    for stream in topology::STREAMS {
        for operation in [
            "CREATE",
            "UPDATE",
            "DELETE",
            "PURGE",
            "MSG.GET",
            "MSG.DELETE",
            "SNAPSHOT",
        ] {
            table.push((
                format!("$JS.API.STREAM.{operation}.{}", stream.name),
                vec!["svc/bus-admin"],
            ));
        }
        let readers = if stream.name == "FLOWS" {
            vec!["svc/bus-admin", "svc/anomaly"]
        } else {
            vec!["svc/bus-admin"]
        };
        table.push((format!("$JS.API.DIRECT.GET.{}", stream.name), readers));
        table.push((
            format!("$JS.API.CONSUMER.CREATE.{}", stream.name),
            vec!["svc/bus-admin"],
        ));
    }
    for nobody in [
        "$SYS.REQ.SERVER.PING",
        "$SYS.REQ.ACCOUNT.PING.CONNZ",
        "elsewhere",
        "flows.v1.probe",
        "a.b.c",
    ] {
        table.push((nobody.to_owned(), Vec::new()));
    }
    table
}

fn identities() -> Vec<String> {
    let services = garrison_testkit::bootstrap::SERVICES;
    services
        .iter()
        .map(|service| format!("svc/{service}"))
        .chain([format!("enforcer/{NODE}"), "svc/bus-admin".to_owned()])
        .collect()
}

/// What the broker refused on a connection.
#[derive(Clone, Default)]
struct Refusals(Arc<Mutex<BTreeSet<String>>>);

impl Refusals {
    fn note(&self, event: &Event) {
        if let Event::ServerError(ServerError::Other(text)) = event
            && let Some((_, rest)) = text.split_once(" to \"")
        {
            let kind = if text.contains("for Publish") {
                "publish "
            } else {
                "subscribe "
            };
            let subject = rest.split('"').next().unwrap_or_default();
            self.0.lock().unwrap().insert(format!("{kind}{subject}"));
        }
    }

    fn has(&self, kind: &str, subject: &str) -> bool {
        self.0.lock().unwrap().contains(&format!("{kind} {subject}"))
    }
}

async fn connect(fleet: &Fleet, files: &IdentityFiles) -> Result<(Client, Refusals), String> {
    let refusals = Refusals::default();
    let heard = refusals.clone();
    let client = ConnectOptions::new()
        .require_tls(true)
        .add_root_certificates(files.ca_file.clone())
        .add_client_certificate(files.cert_file.clone(), files.key_file.clone())
        .event_callback(move |event| {
            heard.note(&event);
            std::future::ready(())
        })
        .connect(fleet.nats().url())
        .await
        .map_err(|error| error.to_string())?;
    Ok((client, refusals))
}

#[test]
fn each_identity_publishes_reads_and_manages_only_what_is_its_own() {
    run(async {
        let world = World::shared().await;
        let table = publishers();
        let mut wrong = Vec::new();
        for identity in identities() {
            let files = world.fleet.pki().unwrap().identity(&identity).unwrap();
            let (client, refusals) = connect(&world.fleet, &files).await.unwrap();
            let mine = |who: &[&str]| who.contains(&identity.as_str());
            let forbidden: Vec<&String> = table
                .iter()
                .filter(|(_, who)| !mine(who))
                .map(|(subject, _)| subject)
                .collect();
            // Of what is permitted, only that which disturbs nobody: nothing that removes or takes messages away.
            let permitted: Vec<&String> = table
                .iter()
                .filter(|(subject, who)| mine(who) && (subject.starts_with("audit.") || subject.contains("MSG.GET")))
                .map(|(subject, _)| subject)
                .collect();
            for subject in &permitted {
                client.publish(subject.to_string(), "".into()).await.unwrap();
            }
            client.flush().await.unwrap();
            // The broker says each refusal, and the client keeps only so many: a few at a time.
            for some in forbidden.chunks(50) {
                for subject in some {
                    client.publish(subject.to_string(), "".into()).await.unwrap();
                }
                client.flush().await.unwrap();
                let began = Instant::now();
                while began.elapsed() < PATIENCE && !some.iter().all(|subject| refusals.has("publish", subject)) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            let open = forbidden.iter().filter(|subject| !refusals.has("publish", subject));
            wrong.extend(open.map(|subject| format!("{identity} may publish to {subject}")));
            let denied = permitted.iter().filter(|subject| refusals.has("publish", subject));
            wrong.extend(denied.map(|subject| format!("{identity} may not publish to {subject}")));
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    });
}

#[test]
fn nobody_listens_to_what_is_not_meant_for_them() {
    run(async {
        let world = World::shared().await;
        // What decides and what carries out also hear directly what they are there for.
        let wanted = [
            (">", ""),
            ("flows.v1.>", ""),
            ("alerts.v1.>", ""),
            ("alerts.v1.*.*.*", "svc/responder"),
            ("responses.v1.>", ""),
            ("responses.v1.acme.*.dispatched", "enforcer/router"),
            ("responses.v1.acme.*.reverting", "enforcer/router"),
            ("responses.v1.probe.*.dispatched", ""),
            ("responses.v1.*.*.dispatched", ""),
            ("audit.v1.>", ""),
            ("events.v1.*.login", ""),
            ("events.v1.>", ""),
            ("siem.v1.>", ""),
            ("dlq.v1.>", ""),
            ("_INBOX.>", ""),
            ("_INBOX.svc-iam.>", "svc/iam"),
            ("$JS.>", ""),
            ("$SYS.>", ""),
        ];
        let mut wrong = Vec::new();
        for identity in identities() {
            let files = world.fleet.pki().unwrap().identity(&identity).unwrap();
            let (client, refusals) = connect(&world.fleet, &files).await.unwrap();
            let mut subscriptions = Vec::new();
            let (own, others): (Vec<_>, Vec<_>) = wanted.iter().partition(|(_, who)| *who == identity);
            let own = own
                .iter()
                .map(|(subject, _)| *subject)
                .chain(["events.v1.*.revocation"]);
            let own: Vec<&str> = own.collect();
            let others: Vec<&str> = others.iter().map(|(subject, _)| *subject).collect();
            for subject in own.iter().chain(&others) {
                subscriptions.push(client.subscribe((*subject).to_owned()).await.unwrap());
            }
            client.flush().await.unwrap();
            let began = Instant::now();
            while began.elapsed() < PATIENCE && !others.iter().all(|subject| refusals.has("subscribe", subject)) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let open = others.iter().filter(|subject| !refusals.has("subscribe", subject));
            wrong.extend(open.map(|subject| format!("{identity} may listen to {subject}")));
            let denied = own.iter().filter(|subject| refusals.has("subscribe", subject));
            wrong.extend(denied.map(|subject| format!("{identity} may not listen to {subject}")));
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    });
}

#[test]
fn strangers_do_not_get_onto_the_bus() {
    run(async {
        let world = World::shared().await;
        let pki = world.fleet.pki().unwrap();
        // Known to the authority, unknown to the broker.
        for identity in ["svc/stranger", "enforcer/stray", "svc/postgres"] {
            let refused = connect(&world.fleet, &pki.identity(identity).unwrap()).await;
            assert!(refused.is_err(), "{identity} was let in");
        }
        // Of another authority, with a known name.
        let dir = tempfile::tempdir().unwrap();
        let other = garrison_testkit::Pki::open_or_create(dir.path(), garrison_testkit::TRUST_DOMAIN).unwrap();
        let mut files = other.identity("svc/iam").unwrap();
        files.ca_file = pki.ca_file();
        assert!(
            connect(&world.fleet, &files).await.is_err(),
            "a foreign authority's certificate was believed"
        );
        // Without a certificate.
        let bare = ConnectOptions::new()
            .require_tls(true)
            .add_root_certificates(pki.ca_file());
        assert!(
            bare.connect(world.fleet.nats().url()).await.is_err(),
            "nobody in particular was let in"
        );
        let plain = ConnectOptions::new()
            .connect(world.fleet.nats().url().replace("tls://", "nats://"))
            .await;
        assert!(plain.is_err(), "a plaintext connection was taken");
    });
}
