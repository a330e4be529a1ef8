use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use garrison_bus::{
    Bus, BusConfig,
    topology::{self, EnforcerNode, InvalidNode},
};
use garrison_db::DbConfig;
use sqlx::migrate::Migrator;
use tokio::sync::{Mutex, OnceCell};

use crate::{IdentityFiles, Nats, NatsOptions, Pki, Postgres, TRUST_DOMAIN};

/// A real PostgreSQL and a real nats-server with the fleet's topology, certificates and permissions.
///
/// Its processes end with the test binary. Failures to start panic with the reason and the remedy, as a test
/// has nobody to return them to.
#[derive(Debug)]
pub struct Stack {
    // Dropped in this order: servers before the folder they write to.
    nats: Nats,
    postgres: Postgres,
    pki: Pki,
    _dir: tempfile::TempDir,
}

/// The enforcers that a stack's broker knows; they serve everybody.
const NODES: [&str; 2] = ["router", "edge"];

fn enforcers() -> Result<Vec<EnforcerNode>, InvalidNode> {
    NODES.iter().map(|node| EnforcerNode::new(node, ["*"])).collect()
}

static SHARED: OnceCell<Stack> = OnceCell::const_new();
static DATABASES: AtomicU32 = AtomicU32::new(0);
/// Tests ask for databases in parallel, and PostgreSQL refuses to make or alter one role twice at once.
static ROLES: Mutex<()> = Mutex::const_new(());

impl Stack {
    /// The stack that all tests of this binary share. Tests that stop a server, or that run a consumer which
    /// another test also runs, take one of their own with [`start`](Self::start).
    pub async fn shared() -> &'static Self {
        SHARED.get_or_init(Self::start).await
    }

    /// Starts a stack of one's own, in about a second.
    pub async fn start() -> Self {
        let base = base_folder();
        let dir = tempfile::Builder::new()
            .prefix(&format!("{}-", std::process::id()))
            .tempdir_in(&base)
            .unwrap_or_else(|error| panic!("making a folder in {} failed: {error}", base.display()));
        let started = || -> Result<(Pki, Postgres, Nats), crate::ProcessError> {
            let pki = Pki::open_or_create(&dir.path().join("pki"), TRUST_DOMAIN)?;
            let postgres = Postgres::start(&dir.path().join("postgres"), &pki)?;
            let options = NatsOptions {
                enforcers: enforcers()?,
            };
            let nats = Nats::start(&dir.path().join("nats"), &pki, &options)?;
            Ok((pki, postgres, nats))
        };
        let (pki, postgres, nats) = started().unwrap_or_else(|error| panic!("{error}"));
        let stack = Self {
            nats,
            postgres,
            pki,
            _dir: dir,
        };
        stack.apply_topology().await;
        stack
    }

    async fn apply_topology(&self) {
        let admin = Bus::connect(&self.bus_config("svc/bus-admin"), "bus-admin")
            .await
            .unwrap_or_else(|error| panic!("connecting as bus-admin failed: {error:?}"));
        let options = topology::ApplyOptions {
            enforcers: enforcers().unwrap_or_else(|error| panic!("{error}")),
            ..Default::default()
        };
        topology::apply(&admin, &options)
            .await
            .unwrap_or_else(|error| panic!("applying the topology failed: {error:?}"));
    }

    /// The certificate authority.
    pub fn pki(&self) -> &Pki {
        &self.pki
    }

    /// The database server, to stop and start.
    pub fn postgres(&self) -> &Postgres {
        &self.postgres
    }

    /// The broker, to stop and start.
    pub fn nats(&self) -> &Nats {
        &self.nats
    }

    /// The certificate files of an identity such as `svc/anomaly`.
    pub fn identity(&self, name: &str) -> IdentityFiles {
        // Two tests that ask for the same one at once must not both make it.
        static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());
        let _one_at_a_time = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.pki.identity(name).unwrap_or_else(|error| panic!("{error}"))
    }

    /// How an identity such as `svc/anomaly` reaches the broker.
    pub fn bus_config(&self, identity: &str) -> BusConfig {
        let files = self.identity(identity);
        let mut config = BusConfig::new(vec![self.nats.url()], files.ca_file, files.cert_file, files.key_file);
        // A broker that is slow for some seconds is not away.
        config.ack_timeout_ms = 20_000;
        config
    }

    /// Makes a fresh database, migrates it as its owner and returns how the service's unprivileged role
    /// reaches it.
    pub async fn database(&self, schema: &'static str, migrator: &Migrator) -> DbConfig {
        let number = DATABASES.fetch_add(1, Ordering::Relaxed);
        let name = format!("{schema}_{number}");
        let one_at_a_time = ROLES.lock().await;
        let (owner, role) = self
            .create_database(&name, schema)
            .await
            .unwrap_or_else(|error| panic!("making database {name} failed: {error}"));
        drop(one_at_a_time);
        garrison_db::migrate(&owner, schema, &role.user, migrator)
            .await
            .unwrap_or_else(|error| panic!("migrating {name} failed: {error:?}"));
        role
    }

    async fn create_database(
        &self,
        name: &str,
        schema: &str,
    ) -> Result<(DbConfig, DbConfig), Box<dyn std::error::Error + Send + Sync>> {
        let config = |user: &str, password_file: PathBuf| DbConfig {
            host: "127.0.0.1".to_owned(),
            port: self.postgres.port(),
            database: name.to_owned(),
            user: user.to_owned(),
            password_file,
            ca_file: self.postgres.ca_file().to_owned(),
            ..DbConfig::default()
        };
        let owner = format!("{schema}_owner");
        let role = format!("{schema}_service");
        let owner_config = config(&owner, self.postgres.create_role(&owner).await?);
        let role_config = config(&role, self.postgres.create_role(&role).await?);
        self.postgres.create_database(name, &owner, &[&role]).await?;
        Ok((owner_config, role_config))
    }
}

// Folders of test binaries that are gone are removed by the next one: a binary's statics are never dropped.
fn base_folder() -> PathBuf {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/testkit");
    fs::create_dir_all(&target).unwrap_or_else(|error| panic!("making {} failed: {error}", target.display()));
    for entry in fs::read_dir(&target).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    target.canonicalize().unwrap_or(target)
}
