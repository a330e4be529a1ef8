//! Messages that no consumer can take, on every subject that one reads: each goes to the DLQ with its reason, nothing
//! stops, and the next good message is handled. Repeats and wrong orders double nothing.

use std::{net::Ipv4Addr, time::Duration};

use async_nats::{HeaderMap, jetstream};
use bytes::Bytes;
use garrison_bus::{Bus, Message, subject, topology};
use garrison_proto::{
    alert::v1::Alert,
    audit::v1::{Actor, AuditRecord, Decision},
    compliance::v1::GetInclusionProofRequest,
    event::v1::{IncidentChanged, ResponseChanged},
    flow::v1::FlowFilter,
    response::v1::{
        Action, EnforcementOrder, EnforcementReport, GetAlertRequest, GetIncidentRequest, GetResponseRequest, Incident,
        ListAlertsRequest, ListResponsesRequest, ResponseState, enforcement_report::Outcome,
    },
    to_timestamp,
};
use uuid::Uuid;

use crate::{
    place::{run, until},
    seed::search,
    stimuli::{alert_message, batch, batch_saying, brute_force, tenant},
    traces,
    world::{ACME, GLOBEX, NODE, World},
};

const LIMIT: Duration = Duration::from_secs(120);

/// A message with headers that can be made wrong one by one.
struct Raw {
    subject: String,
    headers: HeaderMap,
    payload: Bytes,
}

impl Raw {
    fn of(message: &Message) -> Self {
        let mut headers = HeaderMap::new();
        let id = message.id.to_string();
        let stream = topology::stream_of(&message.subject).unwrap();
        for (name, value) in [
            ("Nats-Msg-Id", id.as_str()),
            ("ce-id", &id),
            ("ce-type", &message.kind),
            ("ce-source", &message.source),
            ("ce-time", &message.time.to_rfc3339()),
            ("ce-specversion", "1.0"),
            ("content-type", &message.content_type),
            ("Nats-Expected-Stream", stream),
        ] {
            headers.insert(name, value);
        }
        Self {
            subject: message.subject.clone(),
            headers,
            payload: message.payload.clone(),
        }
    }

    /// Stores it and gives its sequence in the stream.
    async fn send(&self, bus: &Bus) -> u64 {
        let ack = bus
            .jetstream()
            .publish_with_headers(self.subject.clone(), self.headers.clone(), self.payload.clone())
            .await
            .unwrap()
            .await
            .unwrap_or_else(|error| panic!("{}: {error}", self.subject));
        ack.sequence
    }
}

fn noise(length: usize) -> Bytes {
    use rand::RngCore as _;
    let mut bytes = vec![0; length];
    rand::rng().fill_bytes(&mut bytes);
    bytes.into()
}

/// What is wrong with a message, and the message.
fn broken(good: impl Fn() -> Message, giant: usize) -> Vec<(&'static str, Raw)> {
    let with = |change: &dyn Fn(&mut Raw)| {
        let mut raw = Raw::of(&good());
        change(&mut raw);
        raw
    };
    let without = |name: &'static str| {
        with(&|raw| {
            let mut kept = HeaderMap::new();
            for (other, values) in raw.headers.iter() {
                if other.to_string() != name {
                    kept.insert(other.clone(), values[0].clone());
                }
            }
            raw.headers = kept;
        })
    };
    vec![
        ("random bytes", with(&|raw| raw.payload = noise(300))),
        // Of protobuf the first bytes; of Arrow the schema without its end.
        (
            "cut short",
            with(&|raw| raw.payload = raw.payload.slice(..raw.payload.len() * 2 / 3 - 1)),
        ),
        ("giant", with(&|raw| raw.payload = noise(giant))),
        (
            "another content type",
            with(&|raw| raw.headers.insert("content-type", "text/plain")),
        ),
        (
            "an id that is none",
            with(&|raw| {
                let id = format!("seven-{}", Uuid::now_v7());
                raw.headers.insert("ce-id", id.as_str());
                raw.headers.insert("Nats-Msg-Id", id.as_str());
            }),
        ),
        ("no type", without("ce-type")),
        ("no time", without("ce-time")),
        ("no headers", with(&|raw| raw.headers = HeaderMap::new())),
    ]
}

/// Every letter in the DLQ: consumer, sequence, reason.
async fn letters(admin: &Bus) -> Vec<(String, u64, String)> {
    let stream: jetstream::stream::Stream = admin.jetstream().get_stream("DLQ").await.unwrap();
    let state = stream.get_info().await.unwrap().state;
    let mut found = Vec::new();
    if state.messages == 0 {
        return found;
    }
    for sequence in state.first_sequence..=state.last_sequence {
        let Ok(letter) = stream.get_raw_message(sequence).await else {
            continue;
        };
        let header = |name: &str| {
            letter
                .headers
                .get(name)
                .map(|value| value.as_str().to_owned())
                .unwrap_or_default()
        };
        let consumer = format!("{}/{}", header("dlq-stream"), header("dlq-consumer"));
        found.push((consumer, header("dlq-sequence").parse().unwrap(), header("dlq-reason")));
    }
    found
}

/// Sends each and waits until every one of these consumers has put it into the DLQ with a reason.
async fn all_rejected(world: &World, sender: &Bus, consumers: &[&str], messages: Vec<(&'static str, Raw)>) {
    let admin = world.bus("svc/bus-admin").await;
    let mut expected = Vec::new();
    for (what, raw) in messages {
        let sequence = raw.send(sender).await;
        expected.extend(consumers.iter().map(|consumer| (what, consumer.to_string(), sequence)));
    }
    let began = std::time::Instant::now();
    loop {
        let letters = letters(&admin).await;
        let missing: Vec<_> = expected
            .iter()
            .filter(|(_, consumer, sequence)| !letters.iter().any(|(c, s, _)| c == consumer && s == sequence))
            .collect();
        if missing.is_empty() {
            for (what, consumer, sequence) in &expected {
                let (_, _, reason) = letters.iter().find(|(c, s, _)| c == consumer && s == sequence).unwrap();
                assert!(
                    reason.contains("GAR-") && reason.len() > 20,
                    "{consumer}, {what}: {reason:?}"
                );
            }
            break;
        }
        assert!(began.elapsed() < LIMIT, "not in the DLQ: {missing:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for consumer in consumers {
        let service = consumer.split('/').nth(1).unwrap();
        let service = if service.starts_with("enforcer") {
            "enforcer"
        } else {
            service
        };
        until(LIMIT, &format!("{service} to be ready"), || {
            let page = world.fleet.admin(service, "/readyz");
            std::future::ready(page.filter(|(status, _)| *status == 200))
        })
        .await;
    }
}

#[test]
fn malformed_flow_batches() {
    run(async {
        let world = World::shared().await;
        let sender = world.bus("svc/flow-ingest").await;
        let (from, to) = (Ipv4Addr::new(10, 1, 30, 1), Ipv4Addr::new(10, 1, 30, 2));
        let good = || batch(ACME, "letters", from, to, 1, 3);
        let mut messages = broken(good, 7 << 20);
        // globex's flows under acme's subject, and the other way round.
        messages.push((
            "another tenant's flows",
            Raw::of(&batch_saying(ACME, GLOBEX, "letters", from, to, 1, 3)),
        ));
        messages.push((
            "flows for another tenant",
            Raw::of(&batch_saying(GLOBEX, ACME, "letters", from, to, 1, 3)),
        ));
        let consumers = ["FLOWS/anomaly", "FLOWS/policy", "FLOWS/forensics"];
        all_rejected(world, &sender, &consumers, messages).await;

        // The next good one is handled, and once.
        let next = batch(ACME, "letters-next", from, to, 100, 7);
        sender.publisher().publish(&next).await.unwrap();
        let filter = FlowFilter {
            hosts: vec![from.to_string()],
            ..FlowFilter::default()
        };
        let count = |filter: FlowFilter| async move {
            let found = search(&world.acme.admin, filter).await;
            (found.len() == 7).then_some(())
        };
        until(LIMIT, "the good batch in the lake", || count(filter.clone())).await;
        // The same rows in other messages are the same flows.
        for _ in 0..3 {
            let mut again = next.clone();
            again.id = Uuid::now_v7();
            sender.publisher().publish(&again).await.unwrap();
        }
        let last = batch(ACME, "letters-last", Ipv4Addr::new(10, 1, 30, 9), to, 1, 1);
        sender.publisher().publish(&last).await.unwrap();
        let later = FlowFilter {
            hosts: vec!["10.1.30.9".to_owned()],
            ..FlowFilter::default()
        };
        until(LIMIT, "the last batch in the lake", || {
            let later = later.clone();
            async move { (!search(&world.acme.admin, later).await.is_empty()).then_some(()) }
        })
        .await;
        assert_eq!(
            search(&world.acme.admin, filter).await.len(),
            7,
            "repeated batches were counted again"
        );
    });
}

#[test]
fn malformed_and_repeated_alerts() {
    run(async {
        let world = World::shared().await;
        let sender = world.bus("svc/anomaly").await;
        let (from, to) = (Ipv4Addr::new(203, 0, 113, 77), Ipv4Addr::new(10, 1, 31, 2));
        let mut messages = broken(|| alert_message(ACME, &brute_force(from, to)), 1_000_000);
        messages.push((
            "another message",
            Raw::of(&Message::proto(
                subject::alerts(&tenant(ACME), garrison_proto::alert::v1::Severity::High, "x"),
                "anomaly",
                &IncidentChanged::default(),
            )),
        ));
        let consumers = ["ALERTS/responder", "ALERTS/forensics"];
        all_rejected(world, &sender, &consumers, messages).await;
        // What only the responder has to understand.
        let wrong = |change: fn(&mut Alert)| {
            let mut alert = brute_force(from, to);
            change(&mut alert);
            let subject = subject::alerts(
                &tenant(ACME),
                garrison_proto::alert::v1::Severity::High,
                "bruteforce.http",
            );
            Raw::of(&Message::proto(subject, "anomaly", &alert))
        };
        let messages = vec![
            ("nobody did it", wrong(|alert| alert.entity = None)),
            (
                "no address",
                wrong(|alert| alert.entity.as_mut().unwrap().value = "'; drop table alert; --".to_owned()),
            ),
            ("no severity", wrong(|alert| alert.severity = 99)),
            ("not a number", wrong(|alert| alert.confidence = f64::NAN)),
        ];
        all_rejected(world, &sender, &["ALERTS/responder"], messages).await;

        // A later version first, an earlier one after it, and each of them twice.
        let mut alert = brute_force(from, to);
        alert.count = 5;
        let mut earlier = alert.clone();
        earlier.count = 2;
        for version in [&alert, &earlier, &alert, &earlier] {
            let message = alert_message(ACME, version).with_id(Uuid::now_v7());
            sender.publisher().publish(&message).await.unwrap();
            // The same message again: the broker stores it once.
            sender.publisher().publish(&message).await.unwrap();
        }
        let after = brute_force(Ipv4Addr::new(203, 0, 113, 78), Ipv4Addr::new(10, 1, 31, 3));
        sender.publisher().publish(&alert_message(ACME, &after)).await.unwrap();
        let admin = &world.acme.admin;
        until(LIMIT, "the alerts behind the broken ones", || {
            let (mut alerts, alert_id) = (admin.alerts.clone(), after.alert_id.clone());
            async move { alerts.get_alert(GetAlertRequest { alert_id }).await.ok().map(drop) }
        })
        .await;
        let request = ListAlertsRequest {
            entity: from.to_string(),
            ..ListAlertsRequest::default()
        };
        let (incident, listed) = until(LIMIT, "the repeated alert", || {
            let (mut alerts, request, alert_id) = (admin.alerts.clone(), request.clone(), alert.alert_id.clone());
            async move {
                let incident = alerts
                    .get_alert(GetAlertRequest { alert_id })
                    .await
                    .ok()?
                    .into_inner()
                    .incident;
                let listed = alerts.list_alerts(request).await.unwrap().into_inner().alerts;
                Some((incident, listed))
            }
        })
        .await;
        assert_eq!(listed.len(), 1, "one alert became {listed:?}");
        let request = GetIncidentRequest { name: incident.clone() };
        let incident = admin
            .incidents
            .clone()
            .get_incident(request)
            .await
            .unwrap()
            .into_inner()
            .incident
            .unwrap();
        assert_eq!((incident.alert_count, incident.alert_ids.len()), (1, 1), "{incident:?}");
        // This fleet's enforcer only observes, so its orders fail; a repeat may ask again after that, and only then.
        let request = ListResponsesRequest {
            incident: incident.name,
            ..ListResponsesRequest::default()
        };
        let responses = admin
            .responses
            .clone()
            .list_responses(request)
            .await
            .unwrap()
            .into_inner()
            .responses;
        let open = |response: &&garrison_proto::response::v1::Response| response.state() != ResponseState::Failed;
        let open = responses.iter().filter(open).count();
        assert!(!responses.is_empty() && open <= 1, "{responses:?}");
    });
}

#[test]
fn malformed_reports_and_orders() {
    run(async {
        let world = World::shared().await;
        let report = |owner: &str, response: &str, node: &str| {
            let report = EnforcementReport {
                response_id: response.rsplit('/').next().unwrap().to_owned(),
                node: node.to_owned(),
                outcome: Outcome::Applied.into(),
                confirmed_time: Some(to_timestamp(chrono::Utc::now())),
                ..EnforcementReport::default()
            };
            Message::proto(
                subject::reports(&tenant(owner), Action::Block, "applied", NODE),
                "enforcer",
                &report,
            )
        };
        let acme = world.acme.response.name.as_str();
        let enforcer = world.bus(&format!("enforcer/{NODE}")).await;
        let mut messages = broken(|| report(ACME, acme, NODE), 1_000_000);
        messages.push((
            "a response that does not exist",
            Raw::of(&report(ACME, &Uuid::now_v7().to_string(), NODE)),
        ));
        messages.push(("another tenant's response", Raw::of(&report(GLOBEX, acme, NODE))));
        messages.push((
            "a report in another node's name",
            Raw::of(&report(ACME, acme, "elsewhere")),
        ));
        let state = |name: String| async move {
            let request = GetResponseRequest { name };
            let answer = world.acme.admin.responses.clone().get_response(request).await.unwrap();
            answer.into_inner().response.unwrap().state()
        };
        // The enforcer only observes: the order was reported as failed, before any of this.
        until(LIMIT, "the order's failure", || async {
            (state(acme.to_owned()).await == ResponseState::Failed).then_some(())
        })
        .await;
        all_rejected(world, &enforcer, &["RESPONSES/responder"], messages).await;
        assert_eq!(
            state(acme.to_owned()).await,
            ResponseState::Failed,
            "a false report was believed"
        );

        let responder = world.bus("svc/responder").await;
        let order = |owner: &str, said: &str| {
            let order = EnforcementOrder {
                response_id: Uuid::now_v7().to_string(),
                action: Action::Block.into(),
                target: "198.51.100.7".to_owned(),
                nodes: vec![NODE.to_owned()],
                tenant: said.to_owned(),
                ..EnforcementOrder::default()
            };
            Message::proto(
                subject::responses(&tenant(owner), Action::Block, "dispatched"),
                "responder",
                &order,
            )
        };
        let mut messages = broken(|| order(ACME, ACME), 1_000_000);
        messages.push(("an order of another tenant", Raw::of(&order(ACME, GLOBEX))));
        let own = crate::world::enforcer(true).on_the_bus().unwrap();
        let consumer = format!("RESPONSES/{}", topology::enforcer_consumer(&own).name);
        all_rejected(world, &responder, &[&consumer], messages).await;
    });
}

#[test]
fn malformed_events() {
    run(async {
        let world = World::shared().await;
        let responder = world.bus("svc/responder").await;
        let event = |id: &str| {
            let incident = Incident {
                name: format!("incidents/{id}"),
                title: "letters".to_owned(),
                ..Incident::default()
            };
            let changed = IncidentChanged {
                incident: Some(incident),
            };
            Message::proto(subject::events(&tenant(ACME), "incident"), "responder", &changed)
        };
        let id = Uuid::now_v7().to_string();
        let mut messages = broken(|| event(&id), 1_000_000);
        messages.push(("an incident without a name", Raw::of(&event("7"))));
        let empty = Message::proto(
            subject::events(&tenant(ACME), "response"),
            "responder",
            &ResponseChanged::default(),
        );
        messages.push(("a response that is none", Raw::of(&empty)));
        // An unknown content type is evidence as it came, not a fault.
        all_rejected(world, &responder, &["EVENTS/forensics"], messages).await;
    });
}

#[test]
fn malformed_and_repeated_audit_records() {
    run(async {
        let world = World::shared().await;
        let policy = world.bus("svc/policy").await;
        let record = |said: &str, service: &str| AuditRecord {
            record_id: Uuid::now_v7().to_string(),
            time: Some(to_timestamp(chrono::Utc::now())),
            tenant: said.to_owned(),
            service: service.to_owned(),
            actor: Some(Actor {
                name: "services/policy".to_owned(),
                ..Actor::default()
            }),
            action: "test.happened".to_owned(),
            decision: Decision::Allow.into(),
            ..AuditRecord::default()
        };
        let message = |record: &AuditRecord| Message::proto(subject::audit(&tenant(ACME), "policy"), "policy", record);
        let mut messages = broken(|| message(&record(ACME, "policy")), 1_000_000);
        messages.push((
            "a record of another tenant",
            Raw::of(&message(&record(GLOBEX, "policy"))),
        ));
        messages.push(("a record of another service", Raw::of(&message(&record(ACME, "iam")))));
        all_rejected(world, &policy, &["AUDIT/compliance"], messages).await;

        // A record twice, in two messages, is one entry; another content under its id is refused.
        let first = record(ACME, "policy");
        for _ in 0..3 {
            policy.publisher().publish(&message(&first)).await.unwrap();
        }
        let mut forged = first.clone();
        forged.reason = "something else".to_owned();
        all_rejected(
            world,
            &policy,
            &["AUDIT/compliance"],
            vec![("another content under a known id", Raw::of(&message(&forged)))],
        )
        .await;
        let request = GetInclusionProofRequest {
            record_id: first.record_id.clone(),
            ..GetInclusionProofRequest::default()
        };
        let proof = until(LIMIT, "the record in the log", || {
            let (mut log, request) = (world.acme.admin.log.clone(), request.clone());
            async move { log.get_inclusion_proof(request).await.ok() }
        })
        .await;
        let body = String::from_utf8(proof.into_inner().entry.unwrap().body).unwrap();
        assert!(!body.contains("something else"), "{body}");
        let (_, _, entries) = crate::tenancy::evidence::export(&world.acme.admin).await;
        let bodies = entries
            .iter()
            .map(|entry| String::from_utf8_lossy(&entry.body).into_owned());
        let copies = bodies.filter(|body| body.contains(&first.record_id)).count();
        assert_eq!(copies, 1);
        traces::assert_no_secrets(&world.fleet, &[&world.acme.admin]);
    });
}
