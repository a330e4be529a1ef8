use garrison_proto::{TenantId, resource_name};

use super::{
    Iam, Result,
    record::{Entry, itself, tenant_name},
};
use crate::{
    crypto::TotpSecret,
    domain::{LoginName, Role, SecretText},
    error::Error,
    store,
};

/// A tenant that is to exist, with its files read and everything checked.
#[derive(Debug)]
pub struct PreparedTenant {
    /// Its id.
    pub id: TenantId,
    /// How it is shown.
    pub display_name: String,
    /// Its first people.
    pub users: Vec<PreparedUser>,
}

/// A person of a [`PreparedTenant`].
#[derive(Debug)]
pub struct PreparedUser {
    /// Unique in the tenant.
    pub login: LoginName,
    /// How the person is shown; empty for the login.
    pub display_name: String,
    /// Sorted.
    pub roles: Vec<Role>,
    /// The first password.
    pub password: SecretText,
    /// An authenticator that is enrolled from the start.
    pub totp: Option<TotpSecret>,
}

impl Iam {
    /// Creates a configured tenant and its people, unless the tenant exists: what was changed since stays as it is.
    /// Answers whether it was created.
    ///
    /// # Errors
    /// Database errors.
    pub async fn bootstrap(&self, tenant: &PreparedTenant) -> Result<bool> {
        let operation = "creating a configured tenant";
        let mut tx = self.begin(&TenantId::system(), operation).await?;
        let found = store::find_tenant(&mut tx, tenant.id.as_str()).await?;
        self.commit(tx, operation, Vec::new()).await?;
        if found.is_some() {
            return Ok(false);
        }
        let mut hashes = Vec::with_capacity(tenant.users.len());
        for user in &tenant.users {
            hashes.push(self.hasher.hash(user.password.clone()).await?);
        }
        let mut tx = self.begin(&tenant.id, operation).await?;
        match store::insert_tenant(&mut tx, &tenant.display_name, self.now()).await {
            // Another process was faster.
            Err(Error::Exists(_)) => return Ok(false),
            other => other?,
        }
        self.audit(
            &mut tx,
            Entry::done(itself(), "tenant.created", tenant_name(&tenant.id)),
        )
        .await?;
        for (user, hash) in tenant.users.iter().zip(&hashes) {
            let added = self
                .add_user(&mut tx, &itself(), &user.login, &user.display_name, &user.roles, hash)
                .await?;
            if let Some(secret) = &user.totp {
                let sealed = self.seal_totp(&tx, added.id, secret);
                store::store_totp(&mut tx, added.id, Some(&sealed), 0).await?;
                self.audit(
                    &mut tx,
                    Entry::done(itself(), "user.totp_enrolled", resource_name("users", added.id)),
                )
                .await?;
            }
        }
        self.commit(tx, operation, Vec::new()).await?;
        Ok(true)
    }
}
