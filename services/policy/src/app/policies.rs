//! Storing, reading, checking, compiling and explaining policies.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use chrono::Utc;
use garrison_auth::Caller;
use garrison_bus::{Message, subject};
use garrison_db::Tx;
use garrison_proto::{TenantId, audit::v1::Decision, event::v1::PolicyChanged};
use garrison_service::audit;
use garrison_ztp::{Checked, Diagnostic, Explanation, Level, compile, document::Mode};
use sha2::{Digest as _, Sha256};

use super::{
    App,
    rules::{Known, build, catch_up},
};
use crate::{
    INFO,
    error::Error,
    store::{self, CountRow, Review, StoredPolicy, Which},
};

/// Rows of verdict counts that one answer holds.
const COUNTS: i64 = 20_000;

/// What applying a document did.
#[derive(Debug)]
pub struct Applied {
    /// The version in force, or the one that waits for approval.
    pub policy: StoredPolicy,
    /// What was found in the document.
    pub diagnostics: Vec<Diagnostic>,
    /// The document is in force, or waits, already; nothing was stored.
    pub unchanged: bool,
}

/// Checks on a thread of its own: a hostile document may take a while.
async fn check(document: String) -> Result<Checked, Error> {
    tokio::task::spawn_blocking(move || garrison_ztp::check(&document))
        .await
        .map_err(|_| Error::Interrupted("checking a document"))
}

/// Refuses a document that would replace one of another Kubernetes namespace: clusters have both, the fleet one of each
/// name.
async fn same_namespace(name: &str, known: String, namespace: Option<&str>) -> Result<(), Error> {
    let known = check(known).await?;
    let before = known
        .documents
        .first()
        .and_then(|d| d.policy.metadata.namespace.as_deref());
    match (before, namespace) {
        (Some(before), Some(now)) if before != now => Err(Error::field(
            "document",
            format!(
                "metadata.namespace: policies/{name} is of namespace {before}, and this one of {now}; names are unique in \
                 the fleet: give this one another, or withdraw that one first"
            ),
        )),
        _ => Ok(()),
    }
}

impl App {
    pub(super) async fn begin(&self, tenant: &TenantId, operation: &'static str) -> Result<Tx<'static>, Error> {
        self.db.begin(tenant).await.map_err(Error::database(operation))
    }

    /// Checks a document and stores nothing.
    ///
    /// # Errors
    /// When the check was interrupted; what is wrong with the document is no error here.
    pub async fn check(&self, document: String) -> Result<Checked, Error> {
        check(document).await
    }

    /// Stores a new version and puts it into force, or lets it wait for approval where the tenant has reviews and it
    /// is enforced. With `expected`, only if that is the newest version (0 for a policy that does not exist, or is
    /// withdrawn).
    ///
    /// # Errors
    /// [`Error::Document`], [`Error::Conflict`], [`Error::TooMany`], [`Error::TooComplex`]; the database.
    #[tracing::instrument(name = "apply policy", skip_all, fields(tenant = %caller.tenant))]
    pub async fn apply(&self, caller: &Caller, document: String, expected: Option<u64>) -> Result<Applied, Error> {
        let operation = "applying a policy";
        let sha256 = hex::encode(Sha256::digest(&document));
        let mut checked = check(document.clone()).await?;
        if !checked.is_valid() {
            checked.diagnostics.retain(|d| d.level == Level::Error);
            return Err(Error::Document(checked.diagnostics));
        }
        let (Some(parsed), true) = (checked.documents.pop(), checked.documents.is_empty()) else {
            let message = "apply one document at a time; split the file at its `---` lines";
            return Err(Error::field("document", message));
        };
        let name = parsed.policy.metadata.name.clone();

        let mut tx = self.begin(&caller.tenant, operation).await?;
        let epoch = store::next_epoch(&mut tx).await.map_err(Error::database(operation))?;
        let failed = Error::database::<garrison_db::DbError>;
        let store::Standing {
            current,
            waiting,
            newest,
        } = store::standing(&mut tx, &name).await.map_err(failed(operation))?;
        expect(&name, expected, newest.as_ref())?;
        let waits = parsed.policy.spec.mode == Mode::Enforce && self.settings.review.required(&caller.tenant);
        let same = current
            .as_ref()
            .filter(|c| !c.withdrawn)
            .into_iter()
            .chain(waiting.as_ref().filter(|_| waits))
            .find(|known| known.sha256 == sha256);
        if let Some(same) = same {
            return Ok(Applied {
                policy: same.clone(),
                diagnostics: checked.diagnostics,
                unchanged: true,
            });
        }
        if let Some(known) = newest.as_ref().filter(|newest| !newest.withdrawn) {
            same_namespace(
                &name,
                known.document.clone(),
                parsed.policy.metadata.namespace.as_deref(),
            )
            .await?;
        }
        let version = newest.as_ref().map_or(0, |newest| newest.version) + 1;
        let policy = StoredPolicy {
            name: name.clone(),
            version,
            mode: parsed.policy.spec.mode,
            document,
            sha256: sha256.clone(),
            author: caller.principal.to_string(),
            // The precision that the database keeps.
            created: chrono::SubsecRound::trunc_subsecs(Utc::now(), 6),
            withdrawn: waits && newest.as_ref().is_some_and(|newest| newest.withdrawn),
            in_force: if waits {
                current.as_ref().map_or(0, |current| current.in_force)
            } else {
                version
            },
            review: if waits { Review::Pending } else { Review::NotNeeded },
            decision: None,
        };
        let tenant = self.tenant(&caller.tenant);
        let (_, mut policies) = catch_up(&mut tx, &tenant.base()).await?;
        let lowered = parsed.lower(policy.version);
        policies.insert(
            name,
            Arc::new(Known {
                policy: lowered,
                sha256,
            }),
        );
        let rules = build(epoch, policies).await?;

        store::insert_version(&mut tx, &policy, epoch)
            .await
            .map_err(Error::database(operation))?;
        let action = if waits { "policy.proposed" } else { "policy.applied" };
        self.announce(&mut tx, caller, &policy, action, "").await?;
        tx.commit().await.map_err(Error::database(operation))?;
        // What waits was held together with the other policies, so that nobody approves what cannot take force.
        if !waits {
            self.install(&tenant, rules);
        }
        tracing::info!(
            policy = policy.name,
            version = policy.version,
            author = policy.author,
            waits,
            "policy applied"
        );
        Ok(Applied {
            policy,
            diagnostics: checked.diagnostics,
            unchanged: false,
        })
    }

    /// Withdraws a policy. Its versions stay readable.
    ///
    /// # Errors
    /// [`Error::NotFound`]; the database.
    #[tracing::instrument(name = "delete policy", skip_all, fields(tenant = %caller.tenant, policy = name))]
    pub async fn delete(&self, caller: &Caller, name: &str) -> Result<(), Error> {
        let operation = "withdrawing a policy";
        let mut tx = self.begin(&caller.tenant, operation).await?;
        let epoch = store::next_epoch(&mut tx).await.map_err(Error::database(operation))?;
        let standing = store::standing(&mut tx, name)
            .await
            .map_err(Error::database(operation))?;
        let found = standing
            .current
            .filter(|current| !current.withdrawn)
            .or_else(|| standing.waiting.filter(|waiting| waiting.review == Review::Pending));
        let Some(mut policy) = found else {
            return Err(Error::NotFound(format!("policy {name}")));
        };
        policy.withdrawn = true;
        let tenant = self.tenant(&caller.tenant);
        let (_, mut policies) = catch_up(&mut tx, &tenant.base()).await?;
        policies.remove(name);
        let rules = build(epoch, policies).await?;
        store::withdraw(&mut tx, name, epoch)
            .await
            .map_err(Error::database(operation))?;
        self.announce(&mut tx, caller, &policy, "policy.withdrawn", "").await?;
        tx.commit().await.map_err(Error::database(operation))?;
        self.install(&tenant, rules);
        Ok(())
    }

    /// The audit record of a step, and the event when it changed what is in force, in its transaction.
    pub(super) async fn announce(
        &self,
        tx: &mut Tx<'_>,
        caller: &Caller,
        policy: &StoredPolicy,
        action: &str,
        note: &str,
    ) -> Result<(), Error> {
        let resource = format!("policies/{}", policy.name);
        let event = PolicyChanged {
            policy: resource.clone(),
            version: policy.version,
            withdrawn: policy.withdrawn,
            author: if policy.withdrawn {
                caller.principal.to_string()
            } else {
                policy.author.clone()
            },
            sha256: policy.sha256.clone(),
        };
        let details = BTreeMap::from([
            ("author".to_owned(), policy.author.clone()),
            ("version".to_owned(), policy.version.to_string()),
            ("sha256".to_owned(), policy.sha256.clone()),
            ("mode".to_owned(), format!("{:?}", policy.mode).to_lowercase()),
        ]);
        let record = audit::record(
            &INFO,
            &caller.tenant,
            audit::caller_actor(caller),
            action,
            &resource,
            Decision::Allow,
            note,
            details,
        );
        let mut messages = Vec::new();
        if !matches!(policy.review, Review::Pending | Review::Rejected) {
            messages.push(Message::proto(
                subject::events(&caller.tenant, "policy"),
                INFO.name,
                &event,
            ));
        }
        messages.push(audit::message(&INFO, &record));
        tx.publish_all(&messages)
            .await
            .map_err(Error::database("announcing a policy change"))
    }

    /// One version of a policy; 0 for the one in force, or the newest when none ever was.
    ///
    /// # Errors
    /// [`Error::NotFound`]; the database.
    pub async fn get(&self, tenant: &TenantId, name: &str, version: u64) -> Result<StoredPolicy, Error> {
        let operation = "reading a policy";
        let mut tx = self.begin(tenant, operation).await?;
        let found = match version {
            0 => match store::find(&mut tx, name, Which::Current).await {
                Ok(None) => store::find(&mut tx, name, Which::Newest).await,
                found => found,
            },
            version => store::find(&mut tx, name, Which::Number(version)).await,
        }
        .map_err(Error::database(operation))?;
        found.ok_or_else(|| {
            Error::NotFound(match version {
                0 => format!("policy {name}"),
                version => format!("version {version} of policy {name}"),
            })
        })
    }

    /// Policies in force with names after `after`.
    ///
    /// # Errors
    /// The database.
    pub async fn list(&self, tenant: &TenantId, after: &str, limit: i64) -> Result<Vec<StoredPolicy>, Error> {
        let operation = "listing policies";
        let mut tx = self.begin(tenant, operation).await?;
        store::list(&mut tx, after, limit)
            .await
            .map_err(Error::database(operation))
    }

    /// Versions of a policy below `before` (0 for all), the newest first.
    ///
    /// # Errors
    /// [`Error::NotFound`]; the database.
    pub async fn versions(
        &self,
        tenant: &TenantId,
        name: &str,
        before: u64,
        limit: i64,
    ) -> Result<Vec<StoredPolicy>, Error> {
        let operation = "listing versions";
        let mut tx = self.begin(tenant, operation).await?;
        let versions = store::list_versions(&mut tx, name, before, limit)
            .await
            .map_err(Error::database(operation))?;
        if versions.is_empty() && before == 0 {
            return Err(Error::NotFound(format!("policy {name}")));
        }
        Ok(versions)
    }

    /// How often each rule decided, this process's latest counts included.
    ///
    /// # Errors
    /// The database.
    pub async fn counts(&self, tenant: &TenantId) -> Result<Vec<CountRow>, Error> {
        self.write_counts(&self.tenant(tenant)).await?;
        let operation = "listing verdict counts";
        let mut tx = self.begin(tenant, operation).await?;
        store::list_counts(&mut tx, COUNTS)
            .await
            .map_err(Error::database(operation))
    }

    /// Compiles the stored policies, or a document.
    ///
    /// # Errors
    /// [`Error::Document`]; the database.
    pub async fn compile(
        &self,
        tenant: &TenantId,
        document: String,
        nftables: bool,
    ) -> Result<compile::Compiled, Error> {
        let work: Box<dyn FnOnce() -> compile::Compiled + Send> = if document.is_empty() {
            let rules = self.rules(tenant).await?;
            Box::new(move || {
                let sha256 = |name: &str| rules.policies.get(name).map(|known| known.sha256.clone());
                if nftables {
                    compile::nftables(&rules.lowered())
                } else {
                    compile::kubernetes(&rules.lowered(), sha256)
                }
            })
        } else {
            let mut checked = check(document).await?;
            if !checked.is_valid() {
                checked.diagnostics.retain(|d| d.level == Level::Error);
                return Err(Error::Document(checked.diagnostics));
            }
            Box::new(move || {
                let lowered: Vec<_> = checked.documents.iter().map(|d| d.lower(0)).collect();
                let sha256 = |name: &str| {
                    let document = checked.documents.iter().find(|d| d.policy.metadata.name == name)?;
                    Some(hex::encode(Sha256::digest(&document.text)))
                };
                if nftables {
                    compile::nftables(&lowered)
                } else {
                    compile::kubernetes(&lowered, sha256)
                }
            })
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|_| Error::Interrupted("compiling policies"))
    }

    /// What the stored policies decide about a connection, and why.
    ///
    /// # Errors
    /// The database.
    pub async fn explain(
        &self,
        tenant: &TenantId,
        src: IpAddr,
        dst: IpAddr,
        protocol: u8,
        port: u16,
    ) -> Result<Explanation, Error> {
        Ok(self.rules(tenant).await?.engine.explain(src, dst, protocol, port))
    }
}

fn expect(name: &str, expected: Option<u64>, newest: Option<&StoredPolicy>) -> Result<(), Error> {
    let version = newest.map_or(0, |newest| newest.version);
    let fits = match (expected, newest) {
        (None, _) => true,
        (Some(0), Some(newest)) => newest.withdrawn && newest.review != Review::Pending,
        (Some(expected), _) => expected == version,
    };
    if fits {
        return Ok(());
    }
    Err(Error::Conflict {
        name: name.to_owned(),
        expected: expected.unwrap_or_default(),
        current: version,
    })
}
