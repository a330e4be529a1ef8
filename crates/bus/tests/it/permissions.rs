use std::time::Duration;

use async_nats::Message;
use futures::StreamExt;
use garrison_bus::{Bus, Dispatch, Disposition, PublishError, subject, topology};
use garrison_proto::{alert::v1::Severity, response::v1::Action};

use crate::broker::{Broker, Recorder, Running, acme, event, eventually, nodes, options};

/// Asks the broker for something that is permitted.
async fn ask(bus: &Bus, subject: &str, body: &str) -> Option<Message> {
    ask_for(Duration::from_secs(60), bus, subject, body).await
}

/// No answer is how the broker treats what is not permitted.
async fn is_unanswered(bus: &Bus, subject: &str, body: &str) -> bool {
    ask_for(Duration::from_millis(600), bus, subject, body).await.is_none()
}

async fn ask_for(patience: Duration, bus: &Bus, subject: &str, body: &str) -> Option<Message> {
    // Not a request: a pulled message arrives with its own subject, by which a request would not know it.
    let inbox = bus.client().new_inbox();
    let mut answers = bus.client().subscribe(inbox.clone()).await.unwrap();
    bus.client()
        .publish_with_reply(subject.to_owned(), inbox, body.to_owned().into())
        .await
        .unwrap();
    tokio::time::timeout(patience, answers.next()).await.ok()?
}

#[tokio::test(flavor = "multi_thread")]
async fn no_identity_reads_acknowledges_or_manages_what_is_another_s() {
    let broker = Broker::start().await;
    let publisher = broker.bus("svc/policy").await.publisher();
    let subject = subject::alerts(&acme(), Severity::High, "scan");
    let alert = garrison_bus::Message { subject, ..event(1) };
    publisher.publish(&alert).await.unwrap();
    let responder = broker.bus("svc/responder").await;
    responder.connected().await;
    let one = r#"{"batch":1,"expires":300000000}"#;
    let own_one = r#"{"batch":1,"expires":60000000000}"#;

    let own = ask(&responder, "$JS.API.CONSUMER.MSG.NEXT.ALERTS.responder", own_one)
        .await
        .expect("its own is permitted");
    assert_eq!(own.subject.as_str(), alert.subject);
    for forbidden in [
        "$JS.API.CONSUMER.MSG.NEXT.ALERTS.forensics",
        "$JS.API.CONSUMER.MSG.NEXT.RESPONSES.enforcer-router",
        "$JS.API.CONSUMER.INFO.ALERTS.forensics",
        "$JS.API.CONSUMER.CREATE.ALERTS",
        "$JS.API.CONSUMER.CREATE.ALERTS.mine",
        "$JS.API.CONSUMER.DURABLE.CREATE.ALERTS.mine",
        "$JS.API.CONSUMER.DELETE.ALERTS.forensics",
        "$JS.API.STREAM.INFO.ALERTS",
        "$JS.API.STREAM.MSG.GET.ALERTS",
        "$JS.API.DIRECT.GET.ALERTS",
        "$JS.API.STREAM.PURGE.ALERTS",
        "$JS.API.STREAM.DELETE.ALERTS",
        "$JS.API.STREAM.CREATE.MINE",
    ] {
        assert!(
            is_unanswered(&responder, forbidden, one).await,
            "{forbidden} was answered"
        );
    }

    // Acknowledging another's delivery: forensics pulls, responder answers in its place, forensics sees it again.
    let forensics = broker.bus("svc/forensics").await;
    forensics.connected().await;
    let held = ask(&forensics, "$JS.API.CONSUMER.MSG.NEXT.ALERTS.forensics", own_one)
        .await
        .unwrap();
    let reply = held.reply.unwrap();
    responder.client().publish(reply.clone(), "+TERM".into()).await.unwrap();
    let in_new_form = format!("$JS.ACK._.HASH.{}", reply.strip_prefix("$JS.ACK.").unwrap());
    responder.client().publish(in_new_form, "+TERM".into()).await.unwrap();
    responder.client().flush().await.unwrap();
    let info = ask(&forensics, "$JS.API.CONSUMER.INFO.ALERTS.forensics", "")
        .await
        .unwrap();
    let info: serde_json::Value = serde_json::from_slice(&info.payload).unwrap();
    assert_eq!(info["num_ack_pending"], 1, "{info}");
    assert_eq!(broker.stored("ALERTS").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_identity_publishes_only_what_is_its_own() {
    let broker = Broker::start().await;
    let acme = acme();
    let globex = "globex".parse().unwrap();
    let all = [
        subject::flows(&acme, 1),
        subject::alerts(&acme, Severity::High, "scan"),
        subject::responses(&acme, Action::Block, "dispatched"),
        subject::reports(&acme, Action::Block, "applied", "router"),
        subject::reports(&acme, Action::Block, "applied", "edge"),
        subject::reports(&globex, Action::Block, "removed", "edge"),
        subject::events(&acme, "policy"),
        subject::events(&acme, "revocation"),
        subject::audit(&acme, "anomaly"),
        subject::audit(&acme, "iam"),
        subject::siem(&acme, "2004"),
        subject::alerts(&acme, Severity::High, "policy.violation"),
    ];
    for (identity, own) in [
        ("svc/flow-ingest", vec![0]),
        ("svc/anomaly", vec![1, 8]),
        ("svc/policy", vec![1, 6, 11]),
        ("svc/responder", vec![2, 10]),
        ("svc/forensics", vec![]),
        ("svc/compliance", vec![]),
        ("svc/iam", vec![7, 9]),
        ("enforcer/router", vec![3]),
        // Serves acme alone.
        ("enforcer/edge", vec![4]),
    ] {
        let bus = broker.bus(identity).await;
        for (index, subject) in all.iter().enumerate() {
            let message = garrison_bus::Message {
                subject: subject.clone(),
                ..event(index)
            };
            match bus.publisher().publish(&message).await {
                Ok(()) => assert!(own.contains(&index), "{identity} may publish on {subject}"),
                Err(PublishError::Refused { .. }) => {
                    assert!(!own.contains(&index), "{identity} may not publish on {subject}");
                }
                Err(other) => panic!("{identity} on {subject}: {other}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_listens_to_another_s_traffic() {
    let broker = Broker::start().await;
    let anomaly = broker.bus("svc/anomaly").await;
    let mut ears = Vec::new();
    for subject in [
        ">",
        "events.v1.acme.policy",
        "events.>",
        "_INBOX.>",
        "_INBOX.svc-policy.>",
        "audit.v1.*.*",
    ] {
        ears.push((subject, anomaly.client().subscribe(subject).await.unwrap()));
    }
    anomaly.client().flush().await.unwrap();
    // The acknowledgement goes to the publisher's inbox, so both an event and an inbox message pass by.
    broker
        .bus("svc/policy")
        .await
        .publisher()
        .publish(&event(1))
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    for (subject, mut ear) in ears {
        let heard = tokio::time::timeout(Duration::from_millis(20), ear.next()).await;
        assert!(!matches!(heard, Ok(Some(_))), "{subject}: {heard:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enforcer_gets_the_orders_of_its_tenants_and_only_through_its_own_consumer() {
    let broker = Broker::start().await;
    let publisher = broker.bus("svc/responder").await.publisher();
    let globex = "globex".parse().unwrap();
    let orders = [
        subject::responses(&acme(), Action::Block, "dispatched"),
        subject::responses(&globex, Action::Block, "dispatched"),
        subject::responses(&globex, Action::Isolate, "reverting"),
        subject::responses(&acme(), Action::RateLimit, "reverting"),
    ];
    for (number, subject) in orders.into_iter().enumerate() {
        let order = garrison_bus::Message {
            subject,
            ..event(number)
        };
        publisher.publish(&order).await.unwrap();
    }
    let edge = broker.bus("enforcer/edge").await;
    let report = garrison_bus::Message {
        subject: subject::reports(&acme(), Action::Block, "applied", "edge"),
        ..event(9)
    };
    edge.publisher().publish(&report).await.unwrap();
    // `router` serves everybody, `edge` acme alone.
    for (node, expected) in nodes().iter().zip([vec![0, 1, 2, 3], vec![0, 3]]) {
        let bus = broker.bus(&format!("enforcer/{}", node.name())).await;
        let recorder = Recorder::new(|_| Disposition::Ack);
        let running = Running::start(&bus, &topology::enforcer_consumer(node), Dispatch::Ordered, &recorder);
        eventually("the orders arrive", async || recorder.seen().len() == expected.len()).await;
        let consumer = format!("$JS.API.CONSUMER.INFO.RESPONSES.enforcer-{}", node.name());
        let info = ask(&bus, &consumer, "").await.unwrap();
        let info: serde_json::Value = serde_json::from_slice(&info.payload).unwrap();
        assert_eq!(info["num_pending"], 0, "{info}");
        running.stop().await;
        assert_eq!(recorder.numbers(), expected, "{}", node.name());
    }
}

/// A node that served everybody is told to serve one tenant: from the next `bus apply` on.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_s_tenants_can_be_taken_away() {
    let broker = Broker::start().await;
    let admin = broker.bus("svc/bus-admin").await;
    let one: topology::EnforcerNode = "router=acme".parse().unwrap();
    let mut narrower = options();
    narrower.enforcers[0] = one.clone();
    let report = topology::apply(&admin, &narrower).await.unwrap();
    let change = report.iter().find(|change| change.object.ends_with("enforcer-router"));
    let detail = &change.unwrap().detail;
    assert!(detail.contains("responses.v1.acme.*.dispatched added"), "{detail}");
    assert!(detail.contains("responses.v1.*.*.dispatched removed"), "{detail}");
    let publisher = broker.bus("svc/responder").await.publisher();
    for (number, tenant) in ["globex", "acme"].into_iter().enumerate() {
        let subject = subject::responses(&tenant.parse().unwrap(), Action::Block, "dispatched");
        let order = garrison_bus::Message {
            subject,
            ..event(number)
        };
        publisher.publish(&order).await.unwrap();
    }
    let router = broker.bus("enforcer/router").await;
    let recorder = Recorder::new(|_| Disposition::Ack);
    let running = Running::start(
        &router,
        &topology::enforcer_consumer(&one),
        Dispatch::Ordered,
        &recorder,
    );
    eventually("its tenant's order arrives", async || !recorder.seen().is_empty()).await;
    running.stop().await;
    assert_eq!(recorder.numbers(), [1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_without_a_user_is_not_let_in() {
    let broker = Broker::start().await;
    let stranger = broker.bus("svc/stranger").await;
    let connected = tokio::time::timeout(Duration::from_secs(2), stranger.connected()).await;
    assert!(connected.is_err() && !stranger.is_connected());
    // Another authority's certificate is refused by TLS already.
    let dir = tempfile::tempdir().unwrap();
    let foreign = garrison_testkit::Pki::open_or_create(dir.path(), garrison_testkit::TRUST_DOMAIN).unwrap();
    let files = foreign.identity("svc/anomaly").unwrap();
    let mut config = broker.config("svc/anomaly");
    (config.cert_file, config.key_file) = (files.cert_file, files.key_file);
    let forged = Bus::connect(&config, "anomaly").await.unwrap();
    let connected = tokio::time::timeout(Duration::from_secs(2), forged.connected()).await;
    assert!(connected.is_err() && !forged.is_connected());
}

/// The broker does not check the reply subject of a pull request against permissions, so an identity can have it copy
/// a message of its consumer anywhere. The copy must not be believed.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_copied_by_way_of_a_pull_request_is_not_believed() {
    let broker = Broker::start().await;
    let policy = broker.bus("svc/policy").await;
    let honest = event(1);
    policy.publisher().publish(&honest).await.unwrap();
    // An accomplice leaves out what would bind the message to its stream.
    let mut headers = async_nats::HeaderMap::new();
    for (name, value) in [
        ("ce-id", honest.id.to_string()),
        ("ce-type", honest.kind.clone()),
        ("ce-source", "responder".to_owned()),
        ("ce-time", "2026-01-01T00:00:00Z".to_owned()),
        ("ce-specversion", "1.0".to_owned()),
        ("content-type", "application/protobuf".to_owned()),
    ] {
        headers.insert(name, value.as_str());
    }
    let unbound = event(2);
    policy
        .client()
        .publish_with_headers(unbound.subject, headers.clone(), unbound.payload)
        .await
        .unwrap();
    // Binding it to the other stream is refused by the broker at once.
    headers.insert("Nats-Expected-Stream", "RESPONSES");
    let bound = event(3);
    policy
        .client()
        .publish_with_headers(bound.subject, headers, bound.payload)
        .await
        .unwrap();
    policy.client().flush().await.unwrap();
    eventually("two are stored", async || broker.stored("EVENTS").await == 2).await;

    let mut listener = broker
        .bus("svc/anomaly")
        .await
        .subscribe_core("events.v1.*.revocation")
        .await
        .unwrap();
    let forensics = broker.bus("svc/forensics").await;
    forensics.connected().await;
    let pull = "$JS.API.CONSUMER.MSG.NEXT.EVENTS.forensics";
    let copy_to = async |target: &str| {
        let body = r#"{"batch":2,"no_wait":true}"#;
        forensics
            .client()
            .publish_with_reply(pull, target.to_owned(), body.into())
            .await
            .unwrap();
        forensics.client().flush().await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
    };
    copy_to(&subject::flows(&acme(), 3)).await;
    // The honest message, which was copied before it, is bound to its stream.
    eventually("one copy is stored", async || broker.stored("FLOWS").await > 0).await;
    assert_eq!(broker.stored("FLOWS").await, 1);

    let anomaly = broker.bus("svc/anomaly").await;
    let recorder = Recorder::new(|_| Disposition::Ack);
    let running = Running::start(&anomaly, &topology::FLOWS_ANOMALY, Dispatch::Ordered, &recorder);
    eventually("the copy is rejected", async || broker.dead_letters().await.len() == 1).await;
    running.stop().await;
    assert!(recorder.seen().is_empty(), "anomaly was given a copy");

    // The two are delivered again after the acknowledgement time. Copies keep their subject, which no consumer of
    // this stream takes.
    tokio::time::sleep(topology::EVENTS_FORENSICS.ack_wait).await;
    copy_to(&subject::alerts(&acme(), Severity::Critical, "scan")).await;
    assert_eq!(broker.stored("ALERTS").await, 0);

    // Now aimed at those who listen for revocations.
    tokio::time::sleep(topology::EVENTS_FORENSICS.ack_wait).await;
    copy_to(&subject::events(&acme(), "revocation")).await;
    let heard = tokio::time::timeout(Duration::from_millis(300), listener.next()).await;
    assert!(heard.is_err(), "{heard:?}");
}

/// Newer brokers can put domain and account into the subject of acknowledgements (ADR-15).
#[tokio::test(flavor = "multi_thread")]
async fn acknowledgements_of_the_newer_form_are_permitted_and_understood() {
    let broker = Broker::start().await;
    broker.nats.stop();
    let path = broker.nats.dir().join("nats.conf");
    let config = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{config}\nfeature_flags {{ js_ack_fc_v2: true }}\n")).unwrap();
    broker.nats.resume().unwrap();
    let policy = broker.bus("svc/policy").await;
    policy.publisher().publish(&event(1)).await.unwrap();
    let forensics = broker.bus("svc/forensics").await;
    forensics.connected().await;
    let one = r#"{"batch":1,"expires":60000000000}"#;
    let held = ask(&forensics, "$JS.API.CONSUMER.MSG.NEXT.EVENTS.forensics", one)
        .await
        .unwrap();
    let reply = held.reply.unwrap();
    assert!(
        reply.starts_with("$JS.ACK._."),
        "the broker does not use the newer form: {reply}"
    );

    let anomaly = broker.bus("svc/anomaly").await;
    anomaly.connected().await;
    anomaly.client().publish(reply, "+TERM".into()).await.unwrap();
    anomaly.client().flush().await.unwrap();
    let pending = async || {
        let info = ask(&forensics, "$JS.API.CONSUMER.INFO.EVENTS.forensics", "")
            .await
            .unwrap();
        let info: serde_json::Value = serde_json::from_slice(&info.payload).unwrap();
        info["num_ack_pending"].as_u64().unwrap()
    };
    assert_eq!(pending().await, 1, "another identity ended a delivery");
    let recorder = Recorder::new(|_| Disposition::Ack);
    let running = Running::start(&forensics, &topology::EVENTS_FORENSICS, Dispatch::Ordered, &recorder);
    eventually("it is delivered again", async || recorder.seen() == [(1, 2)]).await;
    running.stop().await;
    assert_eq!(pending().await, 0, "the acknowledgement did not count");
}
