//! A tenant's playbooks and protected hosts.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use garrison_auth::Caller;
use garrison_db::Tx;
use garrison_proto::{TenantId, audit::v1::Decision};
use ipnet::IpNet;

use super::{App, Rules, effects::Effects};
use crate::{
    domain::{guard::Protected, playbook::Playbook, response::SELF},
    error::{AppError, During as _},
    store::{
        self,
        rules::{self as rows, StoredPlaybook, StoredProtection},
    },
};

/// Most playbooks of one tenant.
const MAX_PLAYBOOKS: usize = 500;
/// Most protected hosts of one tenant.
const MAX_PROTECTED: usize = 10_000;

/// A playbook in its current version.
pub type PlaybookVersion = StoredPlaybook;

impl App {
    /// Takes the tenant's lock and answers with its rules, from memory when they have not changed. A tenant
    /// without rules gets the default playbooks.
    pub(super) async fn lock_rules(
        &self,
        tx: &mut Tx<'static>,
        tenant: &TenantId,
        now: DateTime<Utc>,
    ) -> Result<Arc<Rules>, AppError> {
        let mut generation = store::lock_tenant(tx, tenant.as_str()).await.during("lock a tenant")?;
        if generation.is_none() {
            self.load_defaults(tx, tenant, now).await?;
            generation = store::lock_tenant(tx, tenant.as_str()).await.during("lock a tenant")?;
        }
        self.rules(tx, tenant, generation.unwrap_or_default()).await
    }

    /// The tenant's rules at a generation, from memory when they have not changed.
    pub(super) async fn rules(
        &self,
        tx: &mut Tx<'static>,
        tenant: &TenantId,
        generation: i64,
    ) -> Result<Arc<Rules>, AppError> {
        if let Some(rules) = self.cached_rules(tenant, generation) {
            return Ok(rules);
        }
        let rules = Arc::new(self.read_rules(tx, tenant, generation).await?);
        self.cache_rules(tenant, &rules);
        Ok(rules)
    }

    /// Gives a tenant without rules the default playbooks.
    pub(super) async fn start_tenant(&self, tenant: &TenantId, now: DateTime<Utc>) -> Result<(), AppError> {
        let mut tx = self.begin(tenant).await?;
        self.lock_rules(&mut tx, tenant, now).await?;
        tx.commit().await.during("commit")
    }

    async fn load_defaults(&self, tx: &mut Tx<'static>, tenant: &TenantId, now: DateTime<Utc>) -> Result<(), AppError> {
        let mine = rows::initialise(tx, tenant.as_str())
            .await
            .during("start a tenant's rules")?;
        if !mine {
            return Ok(());
        }
        for document in &self.settings().default_playbooks {
            let playbook = Playbook::parse(document).map_err(AppError::Playbook)?;
            let stored = StoredPlaybook {
                name: playbook.name,
                version: 1,
                document: document.clone(),
                enabled: playbook.enabled,
            };
            rows::insert_playbook(tx, tenant.as_str(), &stored, SELF, now)
                .await
                .during("store a default playbook")?;
        }
        tracing::info!(%tenant, "the default playbooks were loaded");
        Ok(())
    }

    async fn read_rules(&self, tx: &mut Tx<'static>, tenant: &TenantId, generation: i64) -> Result<Rules, AppError> {
        let stored = rows::playbooks(tx, tenant.as_str()).await.during("read playbooks")?;
        let mut playbooks = Vec::with_capacity(stored.len());
        for playbook in stored.iter().filter(|p| p.enabled) {
            match Playbook::parse(&playbook.document) {
                Ok(parsed) => playbooks.push(parsed),
                // It was valid for the version that stored it. The others must go on working.
                Err(violations) => tracing::error!(
                    %tenant,
                    playbook = playbook.name,
                    ?violations,
                    "GAR-RESP-0006: a stored playbook is no longer understood and is passed over"
                ),
            }
        }
        let protected = rows::protections(tx, tenant.as_str())
            .await
            .during("read protected hosts")?
            .into_iter()
            .filter_map(|row| {
                Some(Protected {
                    network: row.network.parse().ok()?,
                    reason: row.reason,
                })
            })
            .collect();
        Ok(Rules {
            generation,
            playbooks,
            protected,
        })
    }

    /// The current version of every playbook.
    ///
    /// # Errors
    /// Database errors.
    pub async fn list_playbooks(
        &self,
        tenant: &TenantId,
        now: DateTime<Utc>,
    ) -> Result<Vec<PlaybookVersion>, AppError> {
        let mut tx = self.begin(tenant).await?;
        self.lock_rules(&mut tx, tenant, now).await?;
        let playbooks = rows::playbooks(&mut tx, tenant.as_str())
            .await
            .during("read playbooks")?;
        tx.commit().await.during("commit")?;
        Ok(playbooks)
    }

    /// Stores a document as the new version of its playbook. The same text again changes nothing.
    ///
    /// # Errors
    /// [`AppError::Playbook`] with everything that is wrong in the document; database errors.
    pub async fn apply_playbook(
        &self,
        caller: &Caller,
        document: &str,
        now: DateTime<Utc>,
    ) -> Result<PlaybookVersion, AppError> {
        let playbook = Playbook::parse(document).map_err(AppError::Playbook)?;
        let tenant = &caller.tenant;
        let mut tx = self.begin(tenant).await?;
        self.lock_rules(&mut tx, tenant, now).await?;
        let known = rows::playbooks(&mut tx, tenant.as_str())
            .await
            .during("read playbooks")?;
        let current = known.iter().find(|k| k.name == playbook.name);
        if let Some(same) = current.filter(|k| k.document == document) {
            return Ok(same.clone());
        }
        if current.is_none() && known.len() >= MAX_PLAYBOOKS {
            return Err(AppError::field(
                "document",
                format!("the tenant has {MAX_PLAYBOOKS} playbooks, which is the most"),
            ));
        }
        let stored = StoredPlaybook {
            name: playbook.name,
            version: current.map_or(0, |k| k.version) + 1,
            document: document.to_owned(),
            enabled: playbook.enabled,
        };
        rows::insert_playbook(&mut tx, tenant.as_str(), &stored, &caller.principal.to_string(), now)
            .await
            .during("store a playbook")?;
        rows::raise_generation(&mut tx, tenant.as_str())
            .await
            .during("change a tenant's rules")?;
        let mut effects = Effects::new(&self.inner.info, tenant);
        effects.audit(
            caller.actor(),
            "playbook.applied",
            &format!("playbooks/{}", stored.name),
            Decision::Allow,
            "",
            [
                ("version", stored.version.to_string()),
                ("enabled", stored.enabled.to_string()),
            ],
        );
        let orders = effects.append(&mut tx).await?;
        self.commit(tx, orders, "commit a playbook").await?;
        Ok(stored)
    }

    /// Every protected host or network.
    ///
    /// # Errors
    /// Database errors.
    pub async fn list_protections(&self, tenant: &TenantId) -> Result<Vec<StoredProtection>, AppError> {
        let mut tx = self.begin(tenant).await?;
        rows::protections(&mut tx, tenant.as_str())
            .await
            .during("read protected hosts")
    }

    /// Protects a host or network from every action. What is in force already stays until it is rolled back.
    ///
    /// # Errors
    /// [`AppError::Invalid`] for what is no network; database errors.
    pub async fn add_protection(
        &self,
        caller: &Caller,
        network: &str,
        reason: &str,
        now: DateTime<Utc>,
    ) -> Result<StoredProtection, AppError> {
        let network = read_network(network)?;
        if reason.is_empty() || reason.len() > 500 {
            return Err(AppError::field("reason", "give a reason of 1 to 500 bytes"));
        }
        let tenant = &caller.tenant;
        let mut tx = self.begin(tenant).await?;
        let rules = self.lock_rules(&mut tx, tenant, now).await?;
        if rules.protected.len() >= MAX_PROTECTED {
            return Err(AppError::field(
                "network",
                format!("the tenant has {MAX_PROTECTED} protected hosts, which is the most"),
            ));
        }
        let protection = StoredProtection {
            network: network.to_string(),
            reason: reason.to_owned(),
            author: caller.principal.to_string(),
        };
        rows::put_protection(&mut tx, tenant.as_str(), &protection)
            .await
            .during("protect a host")?;
        self.finish_protection(tx, caller, "protection.added", &protection.network, reason)
            .await?;
        Ok(protection)
    }

    /// Takes the protection of a network away.
    ///
    /// # Errors
    /// [`AppError::NotFound`] when exactly this network is not protected; database errors.
    pub async fn remove_protection(&self, caller: &Caller, network: &str, now: DateTime<Utc>) -> Result<(), AppError> {
        let network = read_network(network)?.to_string();
        let tenant = &caller.tenant;
        let mut tx = self.begin(tenant).await?;
        self.lock_rules(&mut tx, tenant, now).await?;
        let was = rows::delete_protection(&mut tx, tenant.as_str(), &network)
            .await
            .during("remove a protection")?;
        if !was {
            return Err(AppError::NotFound(format!("a protected host {network}")));
        }
        self.finish_protection(tx, caller, "protection.removed", &network, "")
            .await
    }

    async fn finish_protection(
        &self,
        mut tx: Tx<'static>,
        caller: &Caller,
        action: &str,
        network: &str,
        reason: &str,
    ) -> Result<(), AppError> {
        rows::raise_generation(&mut tx, caller.tenant.as_str())
            .await
            .during("change a tenant's rules")?;
        let mut effects = Effects::new(&self.inner.info, &caller.tenant);
        effects.audit(caller.actor(), action, network, Decision::Allow, reason, []);
        let orders = effects.append(&mut tx).await?;
        self.commit(tx, orders, "commit a protection").await
    }
}

fn read_network(text: &str) -> Result<IpNet, AppError> {
    text.parse::<std::net::IpAddr>()
        .map(|address| IpNet::from(address.to_canonical()))
        .or_else(|_| text.parse::<IpNet>().map(|net| net.trunc()))
        .map_err(|_| {
            AppError::field(
                "network",
                format!(
                    "{:?} is not an IP address or CIDR block",
                    text.chars().take(80).collect::<String>()
                ),
            )
        })
}
