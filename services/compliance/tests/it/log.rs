use std::collections::BTreeSet;

use garrison_bus::{Message, content_type, subject};
use garrison_proof::{
    Checkpoint, ExportOptions, VerifierKey,
    export::ExportWriter,
    merkle::{leaf_hash, verify_consistency},
    verify_export,
};
use garrison_proto::compliance::v1::{
    ExportLogRequest, GetCheckpointRequest, GetCheckpointResponse, GetConsistencyProofRequest,
    GetInclusionProofRequest, ListEntriesRequest, transparency_log_service_server::TransparencyLogService as _,
};
use tokio_stream::StreamExt as _;
use tonic::Code;

use crate::world::{World, by, record, tenant};

fn hashes(hashes: &[Vec<u8>]) -> Vec<[u8; 32]> {
    hashes.iter().map(|hash| hash.as_slice().try_into().unwrap()).collect()
}

async fn checkpoint(world: &World, name: &str) -> (GetCheckpointResponse, Checkpoint) {
    let answer = world
        .log
        .get_checkpoint(by(&tenant(name), GetCheckpointRequest {}))
        .await;
    let answer = answer.unwrap().into_inner();
    let key = VerifierKey::parse(&answer.verifier_key).unwrap();
    let checkpoint = Checkpoint::verify(&answer.checkpoint, &key).unwrap();
    assert_eq!(
        (checkpoint.size, checkpoint.root.to_vec()),
        (answer.tree_size, answer.root_hash.clone())
    );
    (answer, checkpoint)
}

/// Writes the export that the CLI would write.
async fn export(world: &World, name: &str) -> Vec<u8> {
    let mut stream = world
        .log
        .export_log(by(&tenant(name), ExportLogRequest {}))
        .await
        .unwrap()
        .into_inner();
    let first = stream.next().await.unwrap().unwrap();
    let mut writer = ExportWriter::new(Vec::new(), &first.checkpoint, &first.verifier_key).unwrap();
    while let Some(message) = stream.next().await {
        for entry in message.unwrap().entries {
            assert_eq!(leaf_hash(&entry.body).to_vec(), entry.leaf_hash);
            writer.entry(entry.index, &entry.body).unwrap();
        }
    }
    writer.finish().unwrap().0
}

#[tokio::test(flavor = "multi_thread")]
async fn every_record_is_in_the_log_and_every_proof_holds() {
    let world = World::running().await;
    let (acme, other) = (tenant("acme"), tenant("other"));
    let records = world.publish_many(&acme, 10).await;
    world.until_size(&acme, 10).await;
    let (_, before) = checkpoint(&world, "acme").await;
    let more = world.publish_many(&acme, 31).await;
    world.publish_many(&other, 3).await;
    world.until_size(&acme, 41).await;
    world.until_size(&other, 3).await;

    let (answer, after) = checkpoint(&world, "acme").await;
    for record in records.iter().chain(&more) {
        let request = GetInclusionProofRequest {
            record_id: record.record_id.clone(),
            ..Default::default()
        };
        let proof = world
            .log
            .get_inclusion_proof(by(&acme, request))
            .await
            .unwrap()
            .into_inner();
        let entry = proof.entry.unwrap();
        after
            .verify_entry(entry.index, &entry.body, &hashes(&proof.hashes))
            .unwrap();
        assert!(String::from_utf8(entry.body).unwrap().contains(&record.record_id));
    }
    // An entry in an earlier tree, with that tree's checkpoint.
    let request = GetInclusionProofRequest {
        index: 4,
        tree_size: 7,
        ..Default::default()
    };
    let proof = world
        .log
        .get_inclusion_proof(by(&acme, request))
        .await
        .unwrap()
        .into_inner();
    let key = VerifierKey::parse(&answer.verifier_key).unwrap();
    let seven = Checkpoint::verify(&proof.checkpoint, &key).unwrap();
    assert_eq!(seven.size, 7);
    seven
        .verify_entry(4, &proof.entry.unwrap().body, &hashes(&proof.hashes))
        .unwrap();

    for (first, second) in [(10, 41), (7, 41), (1, 40), (0, 41), (41, 41)] {
        let request = GetConsistencyProofRequest {
            first_size: first,
            second_size: second,
        };
        let proof = world
            .log
            .get_consistency_proof(by(&acme, request))
            .await
            .unwrap()
            .into_inner();
        let newer = Checkpoint::verify(&proof.checkpoint, &key).unwrap();
        assert_eq!(newer.size, second);
        if first == 10 {
            before.verify_extended_by(&newer, &hashes(&proof.hashes)).unwrap();
            let mut forged = before.root;
            forged[0] ^= 1;
            assert!(verify_consistency(10, &forged, 41, &newer.root, &hashes(&proof.hashes)).is_err());
        }
    }

    let bytes = export(&world, "acme").await;
    let options = ExportOptions {
        trusted_key: Some(key),
        earlier: Some(before),
    };
    assert_eq!(verify_export(&bytes[..], &options).unwrap().checkpoint, after);
    let text = String::from_utf8(bytes)
        .unwrap()
        .replacen("response.applied", "response.reverted", 1);
    assert!(verify_export(text.as_bytes(), &options).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_tenant_sees_and_proves_nothing_of_another() {
    let world = World::running().await;
    let (acme, other) = (tenant("acme"), tenant("other"));
    let ours = world.publish_many(&acme, 5).await;
    world.publish_many(&other, 2).await;
    world.until_size(&acme, 5).await;
    world.until_size(&other, 2).await;

    let request = GetInclusionProofRequest {
        record_id: ours[0].record_id.clone(),
        ..Default::default()
    };
    let refused = world.log.get_inclusion_proof(by(&other, request)).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    let request = GetInclusionProofRequest {
        index: 3,
        ..Default::default()
    };
    assert_eq!(
        world
            .log
            .get_inclusion_proof(by(&other, request))
            .await
            .unwrap_err()
            .code(),
        Code::OutOfRange
    );
    let request = ListEntriesRequest {
        page_size: 1_000,
        ..Default::default()
    };
    let entries = world
        .log
        .list_entries(by(&other, request))
        .await
        .unwrap()
        .into_inner()
        .entries;
    assert_eq!(entries.len(), 2);
    assert!(
        entries
            .iter()
            .all(|entry| !String::from_utf8_lossy(&entry.body).contains("acme"))
    );
    let text = String::from_utf8(export(&world, "other").await).unwrap();
    assert!(!text.contains("acme"), "{text}");
    let request = GetConsistencyProofRequest {
        first_size: 1,
        second_size: 5,
    };
    let refused = world.log.get_consistency_proof(by(&other, request)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    // A tenant nobody has heard of has an empty log with a checkpoint of its own.
    assert_eq!(checkpoint(&world, "nobody").await.1.size, 0);
    assert_ne!(
        checkpoint(&world, "acme").await.1.origin,
        checkpoint(&world, "other").await.1.origin
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn repeats_are_logged_once_and_what_is_malformed_is_a_dead_letter() {
    let world = World::running().await;
    let acme = tenant("acme");
    let first = record(&acme, "response.applied", "responses/1");
    // Three messages of different ids with the same record: the broker cannot tell that they repeat.
    for _ in 0..3 {
        world.publish(&first).await;
    }
    let mut conflicting = first.clone();
    conflicting.action = "response.reverted".into();
    world.until_size(&acme, 1).await;
    world.publish(&conflicting).await;

    let mut foreign = record(&acme, "x", "");
    foreign.tenant = "other".into();
    let mut impostor = record(&acme, "x", "");
    impostor.service = "iam".into();
    let mut nameless = record(&acme, "x", "");
    nameless.record_id = "1".into();
    for bad in [&foreign, &impostor, &nameless] {
        let message = Message::proto(subject::audit(&acme, "responder"), "responder", bad);
        world.bus.publisher().publish(&message).await.unwrap();
    }
    let garbage = Message::new(
        subject::audit(&acme, "responder"),
        "responder",
        "garrison.audit.v1.AuditRecord",
        content_type::PROTOBUF,
        vec![0xff; 64].into(),
    );
    world.bus.publisher().publish(&garbage).await.unwrap();
    let last = record(&acme, "response.expired", "responses/1");
    world.publish(&last).await;
    world.until_size(&acme, 2).await;

    let reasons: BTreeSet<String> = world.dead_letters(5).await.into_iter().collect();
    let all = reasons.iter().cloned().collect::<Vec<_>>().join("\n");
    for expected in [
        "another content",
        "tenant is not",
        "service is not",
        "record_id is no UUID",
        "AuditRecord",
    ] {
        assert!(all.contains(expected), "{expected} is not in:\n{all}");
    }
    world.until_size(&acme, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_itself_cannot_change_what_is_logged() {
    let world = World::running().await;
    let acme = tenant("acme");
    world.publish_many(&acme, 3).await;
    world.until_size(&acme, 3).await;
    for statement in [
        "UPDATE log_entry SET body = 'x'",
        "DELETE FROM log_entry",
        "UPDATE log_node SET hash = hash",
        "DELETE FROM log_checkpoint",
        "TRUNCATE log_entry",
    ] {
        let mut tx = world.db.begin(&acme).await.unwrap();
        let error = sqlx::query(sqlx::AssertSqlSafe(statement))
            .execute(&mut *tx)
            .await
            .unwrap_err();
        let code = error
            .as_database_error()
            .and_then(|e| e.code())
            .unwrap_or_default()
            .into_owned();
        assert_eq!(code, "42501", "{statement}: {error}");
    }
    // Not even whoever owns the server does so by mistake: the trigger refuses.
    let mut superuser = world
        .stack
        .postgres()
        .superuser(&world.database.database)
        .await
        .unwrap();
    for statement in [
        "UPDATE compliance.log_entry SET body = 'x'",
        "DELETE FROM compliance.log_node",
    ] {
        let error = sqlx::query(sqlx::AssertSqlSafe(statement))
            .execute(&mut superuser)
            .await
            .unwrap_err();
        assert!(error.to_string().contains("append-only"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_table_is_noticed_by_whoever_has_an_export() {
    let world = World::running().await;
    let acme = tenant("acme");
    world.publish_many(&acme, 20).await;
    world.until_size(&acme, 20).await;
    let mut superuser = world
        .stack
        .postgres()
        .superuser(&world.database.database)
        .await
        .unwrap();
    for statement in [
        "ALTER TABLE compliance.log_entry DISABLE TRIGGER append_only",
        "ALTER TABLE compliance.log_entry NO FORCE ROW LEVEL SECURITY",
        "UPDATE compliance.log_entry SET body = '{\"action\":\"nothing\"}' WHERE index = 13",
    ] {
        sqlx::query(sqlx::AssertSqlSafe(statement))
            .execute(&mut superuser)
            .await
            .unwrap();
    }
    let mut stream = world
        .log
        .export_log(by(&acme, ExportLogRequest {}))
        .await
        .unwrap()
        .into_inner();
    let first = stream.next().await.unwrap().unwrap();
    let mut writer = ExportWriter::new(Vec::new(), &first.checkpoint, &first.verifier_key).unwrap();
    while let Some(message) = stream.next().await {
        for entry in message.unwrap().entries {
            writer.entry(entry.index, &entry.body).unwrap();
        }
    }
    assert_eq!(writer.finish().unwrap_err().code(), "GAR-PROOF-0004");
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_are_signed_without_being_asked_for() {
    let world = World::running().await;
    let acme = tenant("acme");
    world.publish_many(&acme, 4).await;
    let limit = tokio::time::Instant::now() + std::time::Duration::from_secs(120);
    loop {
        let mut tx = world.db.begin(&acme).await.unwrap();
        let size: Option<i64> = sqlx::query_scalar("SELECT max(size) FROM log_checkpoint")
            .fetch_one(&mut *tx)
            .await
            .unwrap();
        if size == Some(4) {
            break;
        }
        assert!(tokio::time::Instant::now() < limit, "{size:?}\n{}", world.output());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}
