use garrison_auth::Caller;
use garrison_proto::resource_name;
use uuid::Uuid;

use super::{Iam, Result, person};
use crate::{
    domain::{Role, Session, Standing},
    error::Error,
    store,
};

/// Which sessions to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionSelection {
    /// One.
    Session(Uuid),
    /// All of one person.
    User(Uuid),
}

impl Iam {
    /// The live sessions of a person; of the caller when nobody is named. Other people's are for administrators and
    /// auditors.
    ///
    /// # Errors
    /// [`Error::NotPermitted`], [`Error::NotFound`] and database errors.
    pub async fn list_sessions(&self, caller: &Caller, user: Option<Uuid>) -> Result<Vec<Session>> {
        let operation = "listing sessions";
        let own = caller.user();
        let user = match user {
            Some(user) => user,
            None => person(caller)?.id,
        };
        let may_read = [Role::Admin, Role::Auditor]
            .iter()
            .any(|role| caller.has_role(role.name()));
        if own.is_some() && own != Some(user) && !may_read {
            return Err(Error::NotPermitted(
                "only administrators and auditors see other people's sessions",
            ));
        }
        let now = self.now();
        let mut tx = self.begin(&caller.tenant, operation).await?;
        if store::find_account(&mut tx, user).await?.is_none() {
            return Err(Error::NotFound(resource_name("users", user)));
        }
        let mut sessions = store::list_open_sessions(&mut tx, user, now).await?;
        self.commit(tx, operation, Vec::new()).await?;
        sessions.retain(|session| session.standing(&self.settings.sessions, now) == Standing::Live);
        Ok(sessions)
    }

    /// Ends sessions and answers how many. Other people's are for administrators.
    ///
    /// # Errors
    /// [`Error::NotPermitted`], [`Error::NotFound`] and database errors.
    pub async fn revoke_sessions(&self, caller: &Caller, selection: SessionSelection) -> Result<usize> {
        let operation = "revoking sessions";
        let admin = caller.has_role(Role::Admin.name());
        let now = self.now();
        let mut tx = self.begin(&caller.tenant, operation).await?;
        let (owner, missing) = match selection {
            SessionSelection::Session(id) => {
                let found = store::find_session(&mut tx, id).await?;
                (found.map(|stored| stored.session.user), resource_name("sessions", id))
            }
            SessionSelection::User(id) => {
                let found = store::find_account(&mut tx, id).await?;
                (found.map(|account| account.user.id), resource_name("users", id))
            }
        };
        // To those who may not see it, another's session does not exist.
        let owner = owner
            .filter(|owner| admin || caller.user() == Some(*owner))
            .ok_or(Error::NotFound(missing))?;
        let reason = if caller.user() == Some(owner) {
            "its owner ended it"
        } else {
            "an administrator ended it"
        };
        let ended = match selection {
            SessionSelection::Session(id) => store::end_session(&mut tx, id, reason, now)
                .await?
                .into_iter()
                .collect(),
            SessionSelection::User(id) => store::end_sessions_of_user(&mut tx, Some(id), None, reason, now).await?,
        };
        let revoked = self
            .announce_ends(&mut tx, &ended, &caller.actor(), reason, now)
            .await?;
        self.commit(tx, operation, revoked).await?;
        Ok(ended.len())
    }
}
