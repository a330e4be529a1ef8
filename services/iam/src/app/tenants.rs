use garrison_auth::Caller;
use garrison_proto::TenantId;

use super::{
    Iam, Result,
    record::{Entry, tenant_name},
    users::{Page, check_display_name, page_rows},
};
use crate::{
    domain::{LoginName, Role, SecretText, Tenant},
    error::Error,
    store,
};

impl Iam {
    /// Creates a tenant with its first administrator.
    ///
    /// # Errors
    /// [`Error::NotPermitted`] outside the tenant `system`, [`Error::Exists`], [`Error::Password`] and database errors.
    pub async fn create_tenant(
        &self,
        caller: &Caller,
        tenant: &TenantId,
        display_name: &str,
        admin: &LoginName,
        password: SecretText,
    ) -> Result<Tenant> {
        let operation = "creating a tenant";
        of_the_installation(caller)?;
        check_display_name(display_name)?;
        self.check_password("admin_password", &password, admin)?;
        // Looked up first, so that a tenant that exists costs no hash.
        let mut tx = self.begin(&TenantId::system(), operation).await?;
        if store::find_tenant(&mut tx, tenant.as_str()).await?.is_some() {
            return Err(Error::Exists(tenant_name(tenant)));
        }
        self.commit(tx, operation, Vec::new()).await?;
        let hash = self.hasher.hash(password).await?;

        let now = self.now();
        let display_name = if display_name.is_empty() {
            tenant.as_str()
        } else {
            display_name
        };
        // The new tenant's own transaction: everything in it, its audit record included, belongs to it.
        let mut tx = self.begin(tenant, operation).await?;
        store::insert_tenant(&mut tx, display_name, now).await?;
        let actor = caller.actor();
        self.audit(
            &mut tx,
            Entry::done(actor.clone(), "tenant.created", tenant_name(tenant)),
        )
        .await?;
        self.add_user(&mut tx, &actor, admin, "", &[Role::Admin], &hash).await?;
        self.commit(tx, operation, Vec::new()).await?;
        Ok(Tenant {
            id: tenant.clone(),
            display_name: display_name.to_owned(),
            disabled: false,
            created: now,
        })
    }

    /// Every tenant, in the order of their ids.
    ///
    /// # Errors
    /// [`Error::NotPermitted`] outside the tenant `system`, and database errors.
    pub async fn list_tenants(&self, caller: &Caller, page_size: i32, page_token: &str) -> Result<Page<Tenant>> {
        let operation = "listing tenants";
        of_the_installation(caller)?;
        let (size, rows) = page_rows(page_size)?;
        if !page_token.is_empty() && page_token.parse::<TenantId>().is_err() {
            return Err(Error::field("page_token", "it is not one that this method returned"));
        }
        let mut tx = self.begin(&TenantId::system(), operation).await?;
        let mut tenants = store::list_tenants(&mut tx, page_token, rows).await?;
        self.commit(tx, operation, Vec::new()).await?;
        let more = tenants.len() > size;
        tenants.truncate(size);
        let last = tenants.last().filter(|_| more).map(|tenant| tenant.id.to_string());
        Ok(Page {
            items: tenants,
            next_page_token: last.unwrap_or_default(),
        })
    }

    /// Disables or enables a tenant. Disabling ends every session in it.
    ///
    /// # Errors
    /// [`Error::NotPermitted`] outside the tenant `system`, [`Error::LockOut`] for that tenant itself,
    /// [`Error::NotFound`] and database errors.
    pub async fn update_tenant(&self, caller: &Caller, tenant: &TenantId, disabled: Option<bool>) -> Result<Tenant> {
        let operation = "changing a tenant";
        of_the_installation(caller)?;
        if disabled == Some(true) && tenant.as_str() == TenantId::SYSTEM {
            return Err(Error::LockOut(
                "the tenant system administers the installation and stays enabled",
            ));
        }
        let missing = || Error::NotFound(tenant_name(tenant));
        // Looked up first: beginning a transaction of a tenant that does not exist must not make it known.
        let mut tx = self.begin(&TenantId::system(), operation).await?;
        let found = store::find_tenant(&mut tx, tenant.as_str()).await?;
        self.commit(tx, operation, Vec::new()).await?;
        let found = found.ok_or_else(missing)?;
        let Some(disabled) = disabled.filter(|disabled| *disabled != found.disabled) else {
            return Ok(found);
        };

        let now = self.now();
        let mut tx = self.begin(tenant, operation).await?;
        if !store::set_tenant_disabled(&mut tx, disabled).await? {
            return Err(missing());
        }
        let mut revoked = Vec::new();
        if disabled {
            let reason = "the tenant was disabled";
            let ended = store::end_sessions_of_user(&mut tx, None, None, reason, now).await?;
            revoked = self
                .announce_ends(&mut tx, &ended, &caller.actor(), reason, now)
                .await?;
        }
        self.audit(
            &mut tx,
            Entry {
                details: vec![("disabled", disabled.to_string())],
                ..Entry::done(caller.actor(), "tenant.updated", tenant_name(tenant))
            },
        )
        .await?;
        self.commit(tx, operation, revoked).await?;
        Ok(Tenant { disabled, ..found })
    }
}

/// Tenants are managed from the tenant `system`. The authorisation layer says so too; this does not rely on it, because
/// a mistake there would open every tenant.
pub(super) fn of_the_installation(caller: &Caller) -> Result<()> {
    if caller.tenant.as_str() == TenantId::SYSTEM && caller.has_role(Role::Admin.name()) {
        Ok(())
    } else {
        Err(Error::NotPermitted(
            "only administrators of the tenant system manage tenants and keys",
        ))
    }
}
