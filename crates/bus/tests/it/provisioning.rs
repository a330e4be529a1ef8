use async_nats::jetstream::{consumer, stream};
use garrison_bus::{
    BusError,
    topology::{self, ChangeKind, STREAMS, consumers},
};

use crate::broker::{Broker, nodes, options};

#[tokio::test(flavor = "multi_thread")]
async fn applying_twice_changes_nothing_the_second_time() {
    let broker = Broker::bare();
    let admin = broker.bus("svc/bus-admin").await;
    let first = topology::apply(&admin, &options()).await.unwrap();
    assert_eq!(first.len(), STREAMS.len() + consumers(&nodes()).len());
    assert!(
        first.iter().all(|change| change.kind == ChangeKind::Created),
        "{first:?}"
    );
    let second = topology::apply(&admin, &options()).await.unwrap();
    assert!(
        second.iter().all(|change| change.kind == ChangeKind::Unchanged),
        "{second:?}"
    );

    let mut fewer = options();
    fewer.enforcers.retain(|node| node.name() != "edge");
    let third = topology::apply(&admin, &fewer).await.unwrap();
    let foreign: Vec<_> = third
        .iter()
        .filter(|change| change.kind == ChangeKind::Foreign)
        .collect();
    assert_eq!(foreign.len(), 1);
    assert!(foreign[0].object.ends_with("enforcer-edge"), "{}", foreign[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_as_durable_as_designed() {
    let broker = Broker::start().await;
    let admin = broker.bus("svc/bus-admin").await;
    for spec in STREAMS {
        let info = admin.jetstream().get_stream(spec.name).await.unwrap();
        let config = info.cached_info().config.clone();
        assert_eq!(config.storage, stream::StorageType::File, "{}", spec.name);
        let lazy = config.persist_mode == Some(stream::PersistenceMode::Async);
        assert_eq!(lazy, spec.name == "FLOWS", "{}", spec.name);
        assert_eq!(
            config.deny_delete && config.deny_purge,
            spec.name == "AUDIT",
            "{}",
            spec.name
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drifted_topology_is_brought_back_where_that_is_safe() {
    let broker = Broker::start().await;
    let admin = broker.bus("svc/bus-admin").await;
    let alerts = admin.jetstream().get_stream("ALERTS").await.unwrap();
    let mut config = alerts.cached_info().config.clone();
    config.max_bytes = 1024 * 1024;
    config.duplicate_window = std::time::Duration::from_secs(60);
    admin.jetstream().update_stream(config).await.unwrap();
    let reports = consumer::pull::Config {
        durable_name: Some("responder".to_owned()),
        filter_subjects: vec!["responses.v1.*.*.applied.*".to_owned()],
        max_deliver: 5,
        ..Default::default()
    };
    admin
        .jetstream()
        .update_consumer_on_stream(reports, "RESPONSES")
        .await
        .unwrap();

    let report = topology::apply(&admin, &options()).await.unwrap();
    let updated: Vec<String> = report
        .iter()
        .filter(|change| change.kind == ChangeKind::Updated)
        .map(ToString::to_string)
        .collect();
    assert_eq!(updated.len(), 2, "{updated:?}");
    assert!(
        updated[0].contains("max_bytes") && updated[0].contains("duplicate_window"),
        "{updated:?}"
    );
    assert!(
        updated[1].contains("filter responses.v1.*.*.failed.* added"),
        "{updated:?}"
    );
    let again = topology::apply(&admin, &options()).await.unwrap();
    assert!(again.iter().all(|change| change.kind == ChangeKind::Unchanged));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destructive_change_is_refused_and_nothing_else_is_done() {
    let broker = Broker::bare();
    let admin = broker.bus("svc/bus-admin").await;
    let foreign = stream::Config {
        name: "EVENTS".to_owned(),
        subjects: vec!["events.v1.*.*".to_owned(), "legacy.>".to_owned()],
        storage: stream::StorageType::Memory,
        ..Default::default()
    };
    admin.jetstream().create_stream(foreign).await.unwrap();
    let error = topology::apply(&admin, &options()).await.unwrap_err();
    let BusError::Destructive(reasons) = &error else {
        panic!("{error}")
    };
    assert!(reasons.iter().any(|r| r.contains("legacy.>")), "{reasons:?}");
    assert!(reasons.iter().any(|r| r.contains("file storage")), "{reasons:?}");
    assert!(
        admin.jetstream().get_stream("FLOWS").await.is_err(),
        "something was created nevertheless"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_administrator_may_apply() {
    let broker = Broker::bare();
    let mut config = broker.config("svc/anomaly");
    config.ack_timeout_ms = 500;
    let anomaly = garrison_bus::Bus::connect(&config, "anomaly").await.unwrap();
    assert!(topology::apply(&anomaly, &options()).await.is_err());
    let admin = broker.bus("svc/bus-admin").await;
    assert!(admin.jetstream().get_stream("FLOWS").await.is_err());
}
