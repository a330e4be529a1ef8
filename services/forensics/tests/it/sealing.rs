//! Two workers at the same bundle.

use std::{sync::Arc, time::Duration};

use chrono::{TimeDelta, Utc};
use forensics::{
    app::{bundle::Bundles, gather::Gatherer, search::Searcher},
    config::Config,
    lake::Lake,
    metrics::Metrics,
    store::{
        bundles::{self, Bundle},
        events,
    },
};
use garrison_proof::{SigningKey, verify_bundle};
use garrison_proto::{TenantId, forensics::v1::BundleState, resource_name, response::v1::Incident};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::world::{World, files, tenant};

struct Rivals {
    world: World,
    tenant: TenantId,
    incident: Uuid,
    lake: Lake,
}

impl Rivals {
    async fn new() -> Self {
        let world = World::new().await;
        let config: Config = toml::from_str(&world.text()).unwrap();
        let (tenant, incident) = (tenant("acme"), Uuid::now_v7());
        let known = Incident {
            name: resource_name("incidents", incident),
            title: "Scan".into(),
            ..Incident::default()
        };
        let mut tx = world.db.begin(&tenant).await.unwrap();
        events::upsert_incident(&mut tx, incident, &known, Utc::now())
            .await
            .unwrap();
        tx.commit().await.unwrap();
        Self {
            lake: Lake::open(&config.lake).unwrap(),
            world,
            tenant,
            incident,
        }
    }

    fn worker(&self) -> Arc<Bundles> {
        let mut config: Config = toml::from_str(&self.world.text()).unwrap();
        config.evidence.max_attempts = 1_000;
        let pem = std::fs::read_to_string(&config.evidence.key_file).unwrap();
        let (db, metrics) = (self.world.db.clone(), Metrics::new());
        let searcher = Searcher {
            lake: self.lake.clone(),
            db: db.clone(),
            permits: Arc::new(Semaphore::new(4)),
            metrics: metrics.clone(),
        };
        let gatherer = Gatherer {
            db: db.clone(),
            searcher,
            sources: Vec::new(),
            config: config.evidence,
            max_candidates: 1_000,
        };
        let key = SigningKey::from_pkcs8_pem(&pem).unwrap();
        Arc::new(Bundles::new(db, gatherer, key, forensics::INFO, metrics))
    }

    async fn ask(&self) -> Uuid {
        let mut tx = self.world.db.begin(&self.tenant).await.unwrap();
        let (id, now) = (Uuid::now_v7(), Utc::now());
        bundles::create(&mut tx, id, self.incident, Uuid::now_v7(), "users/eva", now)
            .await
            .unwrap();
        bundles::append_custody(&mut tx, id, now, "users/eva", "created", "")
            .await
            .unwrap();
        tx.commit().await.unwrap();
        id
    }

    /// Every lease runs out.
    async fn expire(&self) {
        let mut tx = self.world.db.begin(&self.tenant).await.unwrap();
        sqlx::query("UPDATE bundle SET lease_until = $1 WHERE lease_until IS NOT NULL")
            .bind(Utc::now() - TimeDelta::seconds(1))
            .execute(&mut *tx)
            .await
            .unwrap();
        tx.commit().await.unwrap();
    }

    async fn claim(&self, worker: &Bundles) -> Bundle {
        let mut claimed = worker.claim(&self.tenant).await;
        assert_eq!(claimed.len(), 1);
        claimed.remove(0)
    }

    async fn row(&self, id: Uuid) -> Bundle {
        let mut tx = self.world.db.begin(&self.tenant).await.unwrap();
        bundles::get(&mut tx, id).await.unwrap().unwrap()
    }

    fn kept(&self, id: Uuid) -> Vec<std::path::PathBuf> {
        files(&self.world.data.join("acme/bundles").join(id.to_string()))
    }

    /// The archive is there, alone, it is the one of the row, and the chain of custody has one sealing.
    async fn assert_sealed(&self, id: Uuid) {
        let row = self.row(id).await;
        assert_eq!(row.state, BundleState::Sealed, "{}", row.error);
        let kept = self.kept(id);
        assert_eq!(kept.len(), 1, "{kept:?}");
        let report = verify_bundle(std::fs::File::open(&kept[0]).unwrap(), Some(&row.key_id)).unwrap();
        assert_eq!((report.sha256, report.bytes), (row.sha256.clone(), row.bytes));
        let mut tx = self.world.db.begin(&self.tenant).await.unwrap();
        let chain = bundles::custody_chain(&mut tx, id).await.unwrap();
        let last = chain.last().unwrap();
        assert_eq!(
            (last.action.as_str(), &last.detail),
            ("sealed", &format!("sha256 {}", row.sha256))
        );
        assert_eq!(chain.iter().filter(|entry| entry.action == "sealed").count(), 1);
        // What is in the archive is all that had happened before it was sealed.
        assert_eq!(report.manifest.custody_head, last.previous);
        let work = self.world.data.join("acme/work").join(id.to_string());
        assert!(!work.exists(), "{:?}", files(&work));
    }
}

/// The first worker loses its lease when its archive is written and not yet sealed.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_lost_its_lease_neither_seals_nor_removes() {
    let rivals = Rivals::new().await;
    let (slow, quick) = (rivals.worker(), rivals.worker());
    let tenant = &rivals.tenant;

    // The second has sealed when the first comes back.
    let id = rivals.ask().await;
    let late = rivals.claim(&slow).await;
    let written = slow.prepare(tenant, &late).await.unwrap().unwrap();
    rivals.expire().await;
    let claimed = rivals.claim(&quick).await;
    let better = quick.prepare(tenant, &claimed).await.unwrap().unwrap();
    assert!(quick.seal(tenant, &claimed, &better).await.unwrap());
    assert!(!slow.seal(tenant, &late, &written).await.unwrap());
    slow.tidy(tenant, id, Some((late.attempts, Some(&written))))
        .await
        .unwrap();
    rivals.assert_sealed(id).await;
    quick
        .tidy(tenant, id, Some((claimed.attempts, Some(&better))))
        .await
        .unwrap();
    rivals.assert_sealed(id).await;

    // The first comes back while the second has written and not yet sealed.
    let id = rivals.ask().await;
    let late = rivals.claim(&slow).await;
    rivals.expire().await;
    let claimed = rivals.claim(&quick).await;
    let better = quick.prepare(tenant, &claimed).await.unwrap().unwrap();
    let before = rivals.kept(id);
    assert_eq!(before.len(), 1);
    assert!(slow.prepare(tenant, &late).await.unwrap().is_none());
    slow.tidy(tenant, id, Some((late.attempts, None))).await.unwrap();
    assert_eq!(rivals.kept(id), before);
    assert!(quick.seal(tenant, &claimed, &better).await.unwrap());
    quick
        .tidy(tenant, id, Some((claimed.attempts, Some(&better))))
        .await
        .unwrap();
    rivals.assert_sealed(id).await;

    // The first died between writing and sealing; only the next start finds what it left.
    let id = rivals.ask().await;
    let dead = rivals.claim(&slow).await;
    slow.prepare(tenant, &dead).await.unwrap().unwrap();
    let left = rivals.kept(id);
    let folder = left[0].parent().unwrap().to_owned();
    rivals.expire().await;
    let claimed = rivals.claim(&quick).await;
    let better = quick.prepare(tenant, &claimed).await.unwrap().unwrap();
    assert!(!left[0].exists(), "a later attempt removes what an earlier one left");
    assert!(quick.seal(tenant, &claimed, &better).await.unwrap());
    std::fs::write(folder.join("left.tar"), "half").unwrap();
    let (stop, worker) = (CancellationToken::new(), rivals.worker());
    let running = tokio::spawn(Arc::clone(&worker).run(stop.clone()));
    rivals.world.until("tidied", async || rivals.kept(id).len() == 1).await;
    stop.cancel();
    running.await.unwrap();
    rivals
        .world
        .until("no work left", async || {
            !rivals.world.data.join("acme/work").join(id.to_string()).exists()
        })
        .await;
    rivals.assert_sealed(id).await;
    // An archive that no row speaks of may be evidence whose row was lost.
    let stray = rivals.world.data.join("acme/bundles").join(Uuid::now_v7().to_string());
    std::fs::create_dir_all(&stray).unwrap();
    std::fs::write(stray.join("1.tar"), "?").unwrap();
    let stray_id = Uuid::parse_str(stray.file_name().unwrap().to_str().unwrap()).unwrap();
    worker.tidy(tenant, stray_id, None).await.unwrap();
    assert!(stray.join("1.tar").exists());
}

/// Leases run out all the time under three workers; nothing that is sealed is lost and nothing else is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn workers_that_take_bundles_from_each_other_leave_only_sealed_ones() {
    let rivals = Rivals::new().await;
    let stop = CancellationToken::new();
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let (worker, stop, tenant) = (rivals.worker(), stop.clone(), rivals.tenant.clone());
        // As `run` does it, without its pauses.
        running.spawn(async move {
            while !stop.is_cancelled() {
                for bundle in worker.claim(&tenant).await {
                    worker.work(&tenant, bundle).await;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
    }
    let (mut asked, mut attempts) = (Vec::new(), 0);
    // Once is enough, unless the machine is so quick that nobody lost a lease.
    while attempts <= asked.len() && asked.len() < 240 {
        for _ in 0..12 {
            asked.push(rivals.ask().await);
        }
        for _ in 0..150 {
            rivals.expire().await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        rivals
            .world
            .until("all sealed", async || {
                let mut sealed = 0;
                for id in &asked {
                    sealed += usize::from(rivals.row(*id).await.state == BundleState::Sealed);
                }
                sealed == asked.len()
            })
            .await;
        attempts = 0;
        for id in &asked {
            attempts += rivals.row(*id).await.attempts as usize;
        }
    }
    stop.cancel();
    while let Some(done) = running.join_next().await {
        done.unwrap();
    }
    for id in &asked {
        rivals.assert_sealed(*id).await;
    }
    assert!(attempts > asked.len(), "nobody lost a lease");
}
