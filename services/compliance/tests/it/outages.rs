use std::{collections::BTreeSet, process::Command, time::Duration};

use garrison_auth::{SpiffeId, TlsFiles, TlsIdentity, client};
use garrison_proof::{Checkpoint, VerifierKey, merkle::leaf_hash};
use garrison_proto::compliance::v1::{
    GetCheckpointRequest, GetConsistencyProofRequest, ListEntriesRequest,
    transparency_log_service_client::TransparencyLogServiceClient,
    transparency_log_service_server::TransparencyLogService as _,
};
use garrison_testkit::TRUST_DOMAIN;
use tonic::Code;

use crate::world::{World, by, record, tenant};

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_it_loses_nothing_and_doubles_nothing() {
    let mut world = World::running().await;
    let acme = tenant("acme");
    let mut expected = BTreeSet::new();
    let mut earlier: Option<(Checkpoint, VerifierKey)> = None;
    for round in 0..5u64 {
        for _ in 0..40 {
            let record = record(&acme, "response.applied", "responses/1");
            expected.insert(record.record_id.clone());
            world.publish(&record).await;
        }
        tokio::time::sleep(Duration::from_millis(round * 17)).await;
        world.kill();
        let answer = world
            .log
            .get_checkpoint(by(&acme, GetCheckpointRequest {}))
            .await
            .unwrap()
            .into_inner();
        let key = VerifierKey::parse(&answer.verifier_key).unwrap();
        let now = Checkpoint::verify(&answer.checkpoint, &key).unwrap();
        if let Some((before, _)) = &earlier {
            let request = GetConsistencyProofRequest {
                first_size: before.size,
                second_size: now.size,
            };
            if before.size > 0 {
                let proof = world
                    .log
                    .get_consistency_proof(by(&acme, request))
                    .await
                    .unwrap()
                    .into_inner();
                let hashes: Vec<[u8; 32]> = proof.hashes.iter().map(|h| h.as_slice().try_into().unwrap()).collect();
                before.verify_extended_by(&now, &hashes).unwrap();
            }
        }
        earlier = Some((now, key));
        world.start();
    }
    world.until_size(&acme, expected.len() as u64).await;
    let request = ListEntriesRequest {
        page_size: 1_000,
        ..Default::default()
    };
    let entries = world
        .log
        .list_entries(by(&acme, request))
        .await
        .unwrap()
        .into_inner()
        .entries;
    let mut logged = BTreeSet::new();
    for (index, entry) in (0..).zip(&entries) {
        assert_eq!(entry.index, index);
        assert_eq!(entry.leaf_hash, leaf_hash(&entry.body).to_vec());
        let body: serde_json::Value = serde_json::from_slice(&entry.body).unwrap();
        logged.insert(body["recordId"].as_str().unwrap().to_owned());
    }
    assert_eq!(logged, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_waits_for_the_database_and_takes_up_where_it_was() {
    let mut world = World::new().await;
    let acme = tenant("acme");
    world.stack.postgres().stop();
    world.start();
    world.publish_many(&acme, 5).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!world.is_ready().await);
    assert!(world.process.as_mut().unwrap().is_running(), "{}", world.output());
    world.stack.postgres().resume().unwrap();
    world.until_ready().await;
    world.until_size(&acme, 5).await;

    world.stack.postgres().stop();
    world.publish_many(&acme, 20).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    world.stack.postgres().resume().unwrap();
    world.until_size(&acme, 25).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_answers_without_the_broker_and_reads_on_when_it_is_back() {
    let world = World::running().await;
    let acme = tenant("acme");
    world.publish_many(&acme, 5).await;
    world.until_size(&acme, 5).await;
    world.stack.nats().kill();
    tokio::time::sleep(Duration::from_millis(300)).await;
    world.until_size(&acme, 5).await;
    world.stack.nats().resume().unwrap();
    world.publish_many(&acme, 5).await;
    world.until_size(&acme, 10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_and_services_without_the_right_are_refused() {
    let world = World::running().await;
    let id = SpiffeId::service(TRUST_DOMAIN, "compliance").unwrap();
    let endpoint = format!("https://127.0.0.1:{}", world.grpc);
    let anonymous = client::anonymous_channel(&world.stack.pki().ca_file(), &endpoint, &id).unwrap();
    let refused = TransparencyLogServiceClient::new(anonymous)
        .get_checkpoint(GetCheckpointRequest {})
        .await;
    assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);

    let files = world.stack.identity("svc/anomaly");
    let files = TlsFiles {
        cert_file: files.cert_file,
        key_file: files.key_file,
        ca_file: files.ca_file,
    };
    let identity = TlsIdentity::load(files, TRUST_DOMAIN).unwrap();
    let channel = client::channel(&identity, &endpoint, &id).unwrap();
    let mut service = TransparencyLogServiceClient::with_interceptor(channel, client::for_tenant(&tenant("acme")));
    let refused = service.get_checkpoint(GetCheckpointRequest {}).await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_or_wrong_key_ends_it_with_64_and_says_so() {
    let world = World::new().await;
    let key = world.dir.path().join("log.pem");
    for (content, says) in [(None, "log.key_file"), (Some("no key"), "openssl genpkey")] {
        match content {
            None => std::fs::remove_file(&key).unwrap(),
            Some(text) => std::fs::write(&key, text).unwrap(),
        }
        let config = world.config();
        let output = tokio::task::spawn_blocking(move || {
            Command::new(env!("CARGO_BIN_EXE_compliance"))
                .arg("--config")
                .arg(config)
                .output()
                .unwrap()
        });
        let output = output.await.unwrap();
        assert_eq!(output.status.code(), Some(64));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains(says), "{text}");
    }
}
