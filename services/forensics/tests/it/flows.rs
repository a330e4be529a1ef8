use garrison_bus::{Message, content_type, subject};
use garrison_proto::{
    flow::v1::FlowFilter,
    forensics::v1::{SearchFlowsRequest, flow_search_service_client::FlowSearchServiceClient},
};
use tonic::Code;

use crate::world::{World, batch, files, flow_id, host, tenant};

#[tokio::test(flavor = "multi_thread")]
async fn flows_are_found_at_once_and_again_as_parquet() {
    let mut world = World::new().await;
    world.lake = "roll_interval_ms = 2000\nreserve_bytes = 0".into();
    world.start();
    world.until_ready().await;
    let began = std::time::Instant::now();
    world.publish("acme", 0, 1_000).await;
    world.publish("acme", 1_000, 1_500).await;
    let fresh = world.until_found("acme", 1_500).await;
    println!("found after {:?}", began.elapsed());
    assert!(
        fresh
            .windows(2)
            .all(|w| w[0].first_seen.unwrap().seconds < w[1].first_seen.unwrap().seconds)
    );
    world
        .until("in Parquet", async || world.catalogue("acme").await.1 == 1_500)
        .await;
    assert_eq!(world.until_found("acme", 1_500).await, fresh);

    let parquet: Vec<_> = files(&world.data)
        .into_iter()
        .filter(|f| f.extension().is_some_and(|e| e == "parquet"))
        .collect();
    let relative = parquet[0]
        .strip_prefix(world.data.join("acme"))
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned();
    let parts: Vec<&str> = relative.split('/').collect();
    assert!(
        parts.len() == 3 && parts[0].len() == 10 && parts[1].len() == 2,
        "{relative}"
    );
    // It goes after its rows have come into the catalogue.
    world
        .until("the segment gone", async || {
            !files(&world.data)
                .iter()
                .any(|f| f.extension().is_some_and(|e| e == "wal"))
        })
        .await;

    let one = FlowFilter {
        flow_ids: vec![flow_id(777).to_string()],
        ..FlowFilter::default()
    };
    let (found, stats) = world.search("acme", one).await.unwrap();
    assert_eq!((found.len(), found[0].src_ip.as_str()), (1, host(777).as_str()));
    assert!(stats.files_read >= 1 && !stats.truncated);
    let nobody = FlowFilter {
        hosts: vec!["203.0.113.9".into()],
        ..FlowFilter::default()
    };
    let (found, stats) = world.search("acme", nobody).await.unwrap();
    assert!(
        found.is_empty() && stats.files_read == 0 && stats.files_skipped >= 1,
        "{stats:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_tenant_finds_nothing_of_another() {
    let world = World::running().await;
    world.publish("acme", 0, 20).await;
    world.publish("other", 20, 25).await;
    world.until_found("acme", 20).await;
    let theirs = world.until_found("other", 5).await;
    assert!(theirs.iter().all(|flow| flow.flow_id >= flow_id(20).to_string()));
    world
        .until("in Parquet", async || world.catalogue("other").await.1 == 5)
        .await;
    let ours = FlowFilter {
        flow_ids: vec![flow_id(3).to_string()],
        ..FlowFilter::default()
    };
    assert!(world.search("other", ours.clone()).await.unwrap().0.is_empty());
    assert_eq!(world.search("acme", ours).await.unwrap().0.len(), 1);
    assert!(world.search("third", FlowFilter::default()).await.unwrap().0.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_batches_are_dead_letters_and_do_not_stop_the_rest() {
    let world = World::running().await;
    let publisher = world.ingest.publisher();
    let good = batch("acme", 0, 10);
    let of_another = batch("other", 10, 20);
    let bad = [
        Message::flows(
            subject::flows(&tenant("acme"), 1),
            "flow-ingest",
            b"garbage".to_vec().into(),
        ),
        Message::flows(
            subject::flows(&tenant("acme"), 1),
            "flow-ingest",
            good.payload.slice(..good.payload.len() / 2),
        ),
        Message::flows(
            subject::flows(&tenant("acme"), 1),
            "flow-ingest",
            of_another.payload.clone(),
        ),
        Message::new(
            subject::flows(&tenant("acme"), 1),
            "flow-ingest",
            "garrison.flow.v1.FlowBatch",
            content_type::JSON,
            good.payload.clone(),
        ),
    ];
    for message in &bad {
        publisher.publish(message).await.unwrap();
    }
    publisher.publish(&good).await.unwrap();
    world.until_found("acme", 10).await;
    let reasons = world.dead_letters(4).await.join("\n");
    assert_eq!(reasons.matches("GAR-FOR-0003").count(), 4, "{reasons}");
    assert!(
        reasons.contains("the batch is of other") && reasons.contains("application/json"),
        "{reasons}"
    );
    world.until_found("acme", 10).await;
    assert!(world.search("other", FlowFilter::default()).await.unwrap().0.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_filters_name_their_field_and_strangers_are_refused() {
    let world = World::running().await;
    let cases = [
        (
            FlowFilter {
                hosts: vec!["example".into()],
                ..FlowFilter::default()
            },
            "filter.hosts[0]",
        ),
        (
            FlowFilter {
                ports: vec![70_000],
                ..FlowFilter::default()
            },
            "filter.ports[0]",
        ),
        (
            FlowFilter {
                flow_ids: vec!["x".into(); 2_000],
                ..FlowFilter::default()
            },
            "filter.flow_ids",
        ),
    ];
    for (filter, field) in cases {
        let refused = world.search("acme", filter).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        let details = tonic_types::StatusExt::get_error_details(&refused);
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, field);
        assert_eq!(details.error_info().unwrap().reason, "GAR-FOR-0008");
    }
    let mut enforcer_like = FlowSearchServiceClient::new(world.channel_of("anomaly"));
    let refused = enforcer_like
        .search_flows(SearchFlowsRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_more_than_is_kept_goes_oldest_first() {
    let mut world = World::running().await;
    for part in 0..3 {
        world.publish("acme", part * 100, (part + 1) * 100).await;
        let rows = i64::from((part + 1) * 100);
        world
            .until("in Parquet", async || world.catalogue("acme").await.1 == rows)
            .await;
    }
    let mut tx = world.db.begin(&tenant("acme")).await.unwrap();
    let newest: i64 = sqlx::query_scalar("SELECT bytes FROM flow_file ORDER BY stored DESC LIMIT 1")
        .fetch_one(&mut *tx)
        .await
        .unwrap();
    drop(tx);
    world.kill();
    world.lake = format!("roll_interval_ms = 300\nreserve_bytes = 0\nretention_bytes = {newest}");
    world.start();
    world.until_ready().await;
    world
        .until("deleted", async || world.catalogue("acme").await == (1, 100))
        .await;
    let kept = world.until_found("acme", 100).await;
    assert_eq!(kept[0].flow_id, flow_id(200).to_string());
    let parquet = files(&world.data)
        .into_iter()
        .filter(|f| f.extension().is_some_and(|e| e == "parquet"));
    assert_eq!(parquet.count(), 1);
}
