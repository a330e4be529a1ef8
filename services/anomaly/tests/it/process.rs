//! The process: what it publishes, and that neither SIGKILL nor absent servers lose or double an alert.

use std::time::Duration;

use anomaly::{domain::network::Network, store::models};
use garrison_bus::{Message, subject};
use garrison_db::Db;
use garrison_proto::{
    alert::v1::{Alert, EntityKind, Severity},
    audit::v1::AuditRecord,
    event::v1::ModelChanged,
    from_timestamp,
};
use prost::Message as _;
use uuid::Uuid;

use crate::{
    traffic::{Flow, batch, office},
    world::{World, tenant},
};

const ATTACKER: &str = "10.0.9.9";
const VICTIM: &str = "10.0.0.2";

fn probes(ports: std::ops::RangeInclusive<u16>) -> Vec<Flow> {
    ports.map(|port| Flow::refused(ATTACKER, VICTIM, port)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn flows_become_alerts_per_tenant_and_what_is_malformed_becomes_a_dead_letter() {
    let mut world = World::new().await;
    // Nobody listens there: traces are made and go nowhere.
    world
        .start("[core.telemetry]\notlp_endpoint = \"http://127.0.0.1:1\"")
        .await;
    let (acme, other) = (tenant("acme"), tenant("other"));

    // The same addresses in two tenants do not add up to a scan.
    for (n, probe) in probes(1..=28).iter().enumerate() {
        world
            .publish(if n % 2 == 0 { &acme } else { &other }, std::slice::from_ref(probe))
            .await;
    }
    world.settle().await;
    assert!(world.kept("ALERTS").await.is_empty());

    // Malformed in every way there is.
    let good = batch(&acme, &probes(100..=100));
    let shard = subject::flows(&acme, 0);
    let flows =
        |subject: &str, payload: &[u8]| Message::flows(subject.to_owned(), "flow-ingest", payload.to_vec().into());
    let cases = [
        (flows(&shard, b""), "GAR-FLOW-0104"),
        (flows(&shard, b"garbage"), "GAR-FLOW-0104"),
        (flows(&shard, &good[..good.len() / 2]), "GAR-FLOW-0104"),
        (flows(&subject::flows(&other, 0), &good), "says tenant acme"),
        (flows("flows.v1.acme.99", &good), "names no shard"),
        (
            Message::new(shard.clone(), "flow-ingest", "x", "text/plain", good.clone()),
            "content type",
        ),
    ];
    for (message, _) in &cases {
        world.publish_raw(message.clone()).await;
    }
    world
        .until("six dead letters", async || {
            world.kept("DLQ").await.len() == cases.len()
        })
        .await;
    for (letter, (_, reason)) in world.kept("DLQ").await.iter().zip(&cases) {
        let said = letter.headers.get("dlq-reason").unwrap().as_str();
        assert!(said.contains("GAR-ANOM-0001") && said.contains(reason), "{said}");
    }

    // One more probe crosses acme's threshold, on the very batch.
    let last = Flow::refused(ATTACKER, VICTIM, 99);
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let payload = batch(&acme, std::slice::from_ref(&last));
    let mut message = Message::flows(
        subject::flows(&acme, subject::shard_of(last.src)),
        "flow-ingest",
        payload,
    );
    message.traceparent = Some(format!("00-{trace}-00f067aa0ba902b7-01"));
    world.publish_raw(message).await;
    world
        .until("an alert", async || !world.alerts(&acme).await.is_empty())
        .await;
    let kept = world.kept("ALERTS").await;
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0].subject, "alerts.v1.acme.medium.scan-vertical");
    let alert = Alert::decode(kept[0].payload.as_slice()).unwrap();
    assert_eq!(kept[0].headers.get("ce-id").unwrap().as_str(), alert.alert_id);
    assert_eq!(alert.alert_id.parse::<Uuid>().unwrap().get_version_num(), 7);
    assert_eq!(alert.detector, "scan.vertical");
    assert_eq!(alert.severity(), Severity::Medium);
    let entity = alert.entity.as_ref().unwrap();
    assert_eq!((entity.kind(), entity.value.as_str()), (EntityKind::Host, ATTACKER));
    assert_eq!(alert.targets[0].value, VICTIM);
    assert_eq!(alert.techniques[0].id, "T1046");
    assert_eq!((alert.score, alert.threshold, alert.count), (15.0, 15.0, 1));
    assert_eq!(alert.flows.len(), 15);
    assert!(!alert.features.is_empty() && !alert.fingerprint.is_empty());
    let trigger = from_timestamp(&alert.trigger_time.unwrap()).unwrap();
    assert_eq!(trigger.timestamp_nanos_opt(), Some(last.ended()));
    let detected = from_timestamp(&alert.detected_time.unwrap()).unwrap();
    assert!(detected > trigger);
    assert!(world.alerts(&other).await.is_empty());

    // The alert continues the trace of the batch that made it.
    let continued = kept[0].headers.get("traceparent").unwrap().as_str();
    assert!(
        continued.contains(trace) && !continued.contains("00f067aa0ba902b7"),
        "{continued}"
    );

    // Records that come again in another message add nothing.
    for _ in 0..3 {
        world.publish(&acme, std::slice::from_ref(&last)).await;
    }
    world.settle().await;
    assert_eq!(world.kept("ALERTS").await.len(), 1);
    let repeated = world
        .metric("garrison_anomaly_left_out_records", "reason=\"repeated\"")
        .await;
    assert_eq!(repeated, Some(6.0));
    assert_eq!(world.metric("garrison_anomaly_rejected_batches", "").await, Some(6.0));
    assert_eq!(
        world.metric("garrison_anomaly_alerts", "scan.vertical").await,
        Some(1.0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_step_it_neither_loses_nor_doubles_an_alert() {
    // No checkpoint comes in between: everything is read back from the stream.
    const NEVER: &str = "[checkpoint]\ninterval_ms = 60000";
    const OFTEN: &str = "[checkpoint]\ninterval_ms = 50";
    let acme = tenant("acme");
    for checkpoints in [NEVER, OFTEN] {
        let mut world = World::new().await;
        world.start(checkpoints).await;
        let scan = probes(1..=15);
        for probe in &scan[..10] {
            world.publish(&acme, std::slice::from_ref(probe)).await;
        }
        world.settle().await;
        world.kill();
        // What was published meanwhile is taken after what was taken before.
        for probe in &scan[10..] {
            world.publish(&acme, std::slice::from_ref(probe)).await;
        }
        world.start(checkpoints).await;
        world
            .until("the alert", async || !world.alerts(&acme).await.is_empty())
            .await;
        world.settle().await;
        let first = world.alerts(&acme).await;
        assert_eq!(first.len(), 1);
        assert_eq!(first[0].flows.len(), 15);

        // Killed after publishing: the batches are judged again, and the alert is not published again. The fold
        // survives: what comes now is a repeat.
        for _ in 0..2 {
            world.kill();
            world.start(checkpoints).await;
        }
        for probe in probes(101..=115) {
            world.publish(&acme, &[probe]).await;
        }
        world.settle().await;
        world
            .until("the repeat", async || world.alerts(&acme).await.len() > 1)
            .await;
        let all = world.alerts(&acme).await;
        assert_eq!(all.len(), 2);
        assert_eq!(all[0], first[0]);
        // The same alert, told anew by another message.
        assert_eq!((all[1].count, &all[1].alert_id), (2, &first[0].alert_id));
        let messages = world.kept("ALERTS").await;
        let ids: std::collections::BTreeSet<_> = messages
            .iter()
            .map(|m| m.headers.get("ce-id").unwrap().as_str().to_owned())
            .collect();
        assert!(ids.contains(&all[0].alert_id) && ids.len() == messages.len());

        // Killed in the middle of a stream of batches, again and again.
        let sources: Vec<String> = (1..=12).map(|n| format!("10.0.8.{n}")).collect();
        let publish = async {
            for port in 1..=15 {
                for source in &sources {
                    world.publish(&acme, &[Flow::refused(source, VICTIM, port)]).await;
                }
            }
        };
        publish.await;
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(15)).await;
            world.kill();
            world.start(checkpoints).await;
        }
        world.settle().await;
        world
            .until("twelve more alerts", async || world.alerts(&acme).await.len() >= 14)
            .await;
        world.settle().await;
        let all = world.alerts(&acme).await;
        let mut entities: Vec<String> = all[2..].iter().map(|a| a.entity.clone().unwrap().value).collect();
        entities.sort();
        entities.dedup();
        assert_eq!((all.len(), entities.len()), (14, 12));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn absent_servers_delay_alerts_and_lose_none() {
    let mut world = World::new().await;
    let acme = tenant("acme");
    // Flows are there before the service, and neither server when it starts.
    for probe in probes(1..=14) {
        world.publish(&acme, &[probe]).await;
    }
    world.stack.postgres().stop();
    world.stack.nats().stop();
    world.launch("[checkpoint]\ninterval_ms = 100");
    world
        .until("alive", async || world.page("/livez").await.starts_with("HTTP/1.1 200"))
        .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!world.is_ready().await);
    world.stack.nats().resume().unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!world.is_ready().await);
    world.stack.postgres().resume().unwrap();
    world.until("ready", async || world.is_ready().await).await;
    world.settle().await;
    world.stack.postgres().stop();
    world.publish(&acme, &probes(15..=15)).await;
    // Batches behind the one that waits for the database wait, too.
    let second: Vec<Flow> = (1..=15).map(|port| Flow::refused("10.0.9.8", VICTIM, port)).collect();
    for probe in &second {
        world.publish(&acme, std::slice::from_ref(probe)).await;
    }
    // A new alert leaves before it is kept, and its batch and those behind it wait until it is.
    world
        .until("the first alert", async || !world.alerts(&acme).await.is_empty())
        .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(world.alerts(&acme).await.len(), 1);
    world.stack.postgres().resume().unwrap();
    world
        .until("both alerts", async || world.alerts(&acme).await.len() >= 2)
        .await;
    world.settle().await;
    assert_eq!(world.alerts(&acme).await.len(), 2);
    assert!(world.kept("DLQ").await.is_empty());

    // The broker goes while alerts are on their way, and takes nothing with it.
    let third: Vec<Flow> = (1..=15).map(|port| Flow::refused("10.0.9.7", VICTIM, port)).collect();
    world.publish(&acme, &third).await;
    world.stack.nats().kill();
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.stack.nats().resume().unwrap();
    world
        .until("the broker again", async || world.sensor.is_connected())
        .await;
    // FLOWS is written asynchronously: its last moments may be gone with the broker, and the sensor's repeat of what
    // was not acknowledged is harmless.
    world.publish(&acme, &third).await;
    world
        .until("the third alert", async || world.alerts(&acme).await.len() >= 3)
        .await;
    world.settle().await;
    assert_eq!(world.alerts(&acme).await.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn positions_that_other_messages_had_before_are_judged_all_the_same() {
    const OFTEN: &str = "[checkpoint]\ninterval_ms = 50";
    let mut world = World::new().await;
    let acme = tenant("acme");
    world.start(OFTEN).await;
    for probe in probes(1..=12) {
        world.publish(&acme, &[probe]).await;
    }
    world.settle().await;

    // While it runs.
    world.make_flows_anew().await;
    for port in 1..=15 {
        world.publish(&acme, &[Flow::refused("10.0.9.8", VICTIM, port)]).await;
    }
    world
        .until("an alert of the new stream", async || {
            !world.alerts(&acme).await.is_empty()
        })
        .await;
    world.settle().await;

    // While it does not, and what is there when it starts is more than there was.
    let db = Db::connect(&world.database, "anomaly").unwrap();
    let saved = async || -> i64 {
        let mut tx = db.begin(&acme).await.unwrap();
        let applied = sqlx::query_scalar("SELECT applied FROM tenant_state WHERE tenant_id = 'acme'");
        applied.fetch_one(&mut *tx).await.unwrap()
    };
    world.until("saved", async || saved().await == 15).await;
    world.kill();
    world.make_flows_anew().await;
    for port in 1..=20 {
        world.publish(&acme, &[Flow::refused("10.0.9.7", VICTIM, port)]).await;
    }
    world.start(OFTEN).await;
    world
        .until("another alert", async || world.alerts(&acme).await.len() >= 2)
        .await;
    world.settle().await;
    let alerts = world.alerts(&acme).await;
    let told: Vec<(&str, usize)> = alerts
        .iter()
        .map(|alert| (alert.entity.as_ref().unwrap().value.as_str(), alert.flows.len()))
        .collect();
    assert_eq!(told, [("10.0.9.8", 15), ("10.0.9.7", 15)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_learns_by_itself_and_what_it_learnt_survives_a_kill() {
    const LEARN: &str = "[learning]\nauto_seconds = 2\nmin_flows = 400\n[checkpoint]\ninterval_ms = 100";
    let mut world = World::new().await;
    world.start(LEARN).await;
    let acme = tenant("acme");
    let learnt = office(400);
    for part in learnt[..380].chunks(20) {
        world.publish(&acme, part).await;
    }
    world.settle().await;
    // The learnt period goes on after a kill, from where it was: there are not enough flows yet.
    world.kill();
    world.start(LEARN).await;
    world.publish(&acme, &learnt[380..]).await;
    let scores =
        async |world: &World| world.metric("garrison_anomaly_model_phase", "tenant=\"acme\"").await == Some(4.0);
    world.until("a model at work", async || scores(&world).await).await;
    assert_eq!(world.metric("garrison_anomaly_model_version", "acme").await, Some(1.0));

    // Everybody is told, and it is on record.
    world
        .until("the event", async || !world.kept("EVENTS").await.is_empty())
        .await;
    let events = world.kept("EVENTS").await;
    assert_eq!((events.len(), events[0].subject.as_str()), (1, "events.v1.acme.model"));
    let event = ModelChanged::decode(events[0].payload.as_slice()).unwrap();
    assert_eq!((event.version, event.learnt_flows), (1, 400));
    // Each stream is published for itself.
    world
        .until("the records", async || world.kept("AUDIT").await.len() >= 2)
        .await;
    let audit = world.kept("AUDIT").await;
    let actions: Vec<String> = audit
        .iter()
        .map(|m| AuditRecord::decode(m.payload.as_slice()).unwrap().action)
        .collect();
    assert_eq!(actions, ["learning.finished", "model.trained"]);

    // The weights are what the manifest says, in the database.
    let db = Db::connect(&world.database, "anomaly").unwrap();
    let (stored, profile, _) = models::load(&db, &acme, 1).await.unwrap().unwrap();
    assert_eq!(stored.manifest.weights_sha256(), event.weights_sha256);
    Network::load(&stored, anomaly::domain::features::names()).unwrap();
    assert!(profile.reference.is_usable() && profile.objection.is_empty());
    let others = models::load(&db, &tenant("other"), 1).await.unwrap();
    assert!(others.is_none());

    let threshold = world.metric("garrison_anomaly_model_threshold", "acme").await.unwrap();
    world.kill();
    world.start(LEARN).await;
    world.until("the model again", async || scores(&world).await).await;
    assert_eq!(
        world.metric("garrison_anomaly_model_threshold", "acme").await,
        Some(threshold)
    );
    assert_eq!(world.kept("EVENTS").await.len(), 1);

    // Learnt contacts are no news; a new one is.
    world.publish(&acme, &office(20)).await;
    world.settle().await;
    let contacts = async || {
        let alerts = world.alerts(&acme).await;
        alerts
            .into_iter()
            .filter(|a| a.detector == "contact.new_internal")
            .collect::<Vec<_>>()
    };
    assert!(contacts().await.is_empty());
    world.publish(&acme, &[Flow::new("10.1.0.1", "10.0.0.77", 5_432)]).await;
    world
        .until("a new contact", async || !contacts().await.is_empty())
        .await;
    assert_eq!(contacts().await[0].targets[0].value, "10.0.0.77:5432/tcp");

    // A flow unlike any learnt is scored, and told with the features that mattered.
    let strange = Flow {
        bytes: (900_000_000, 10),
        ..Flow::new("10.1.0.2", "10.0.0.1", 80)
    };
    world.publish(&acme, &[strange]).await;
    let by_model = async || {
        let alerts = world.alerts(&acme).await;
        alerts
            .into_iter()
            .find(|a| a.detector == "model.autoencoder" && a.entity.as_ref().unwrap().value == "10.1.0.2")
    };
    world
        .until("an unusual flow", async || by_model().await.is_some())
        .await;
    let alert = by_model().await.unwrap();
    assert!(alert.score >= alert.threshold, "{} {}", alert.score, alert.threshold);
    let bytes = alert.features.iter().find(|f| f.name == "src_bytes");
    let bytes = bytes.unwrap_or_else(|| panic!("{:#?}", alert.features));
    assert!((bytes.value / 9e8 - 1.0).abs() < 0.01, "{bytes:?}");
    assert!(bytes.usual > 200.0 && bytes.usual < 700.0, "{bytes:?}");
}
