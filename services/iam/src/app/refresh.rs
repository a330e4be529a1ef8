use std::net::IpAddr;

use garrison_auth::Caller;

use super::{Iam, Result, Tokens, address_text, person, record::user_actor};
use crate::{
    crypto::{OpaqueKind, OpaqueToken},
    domain::Standing,
    error::Error,
    store,
};

impl Iam {
    /// Trades a refresh token for new tokens. It works once: a second use means that somebody else has a copy, and ends
    /// the session.
    ///
    /// # Errors
    /// [`Error::SessionOver`] and database errors.
    pub async fn refresh(&self, refresh: &str, address: Option<IpAddr>) -> Result<Tokens> {
        let operation = "refreshing a session";
        let over = |reason| Error::SessionOver { reason };
        let token = OpaqueToken::decode(OpaqueKind::Refresh, refresh, &self.vault)
            .ok_or(over("the refresh token is not one of this installation"))?;
        let tenant = token.tenant.clone();
        let now = self.now();
        let mut tx = self.begin(&tenant, operation).await?;
        let user = store::find_session_owner(&mut tx, token.id)
            .await?
            .ok_or(over("it ended long ago"))?;
        // First the account, then the session: whatever ends sessions locks in this order.
        let account = store::find_account(&mut tx, user)
            .await?
            .ok_or(over("the account does not exist any more"))?;
        let stored = store::find_session(&mut tx, token.id)
            .await?
            .ok_or(over("it ended long ago"))?;
        let (session, limits) = (&stored.session, &self.settings.sessions);
        let tenant_enabled = store::find_tenant(&mut tx, tenant.as_str())
            .await?
            .is_some_and(|tenant| !tenant.disabled);
        let refusal = match session.standing(limits, now) {
            Standing::Ended => return Err(over("it was ended")),
            Standing::Idle => Some("it was not used for too long"),
            Standing::Expired => Some("it reached its time limit"),
            Standing::Live if !token.matches(&stored.refresh_sha256) => {
                Some("a used refresh token was presented again")
            }
            Standing::Live if account.user.disabled || !tenant_enabled => Some("the account is disabled"),
            Standing::Live => None,
        };
        if let Some(reason) = refusal {
            let actor = user_actor(user, Some(token.id), address_text(address));
            let ended = store::end_session(&mut tx, token.id, reason, now).await?;
            let revoked = self
                .announce_ends(&mut tx, ended.as_slice(), &actor, reason, now)
                .await?;
            self.commit(tx, operation, revoked).await?;
            return Err(over(reason));
        }
        let next = OpaqueToken::issue(tenant.clone(), token.id);
        let access_until = session.access_expiry(limits, now);
        let tokens = self.tokens(&tenant, &account.user, session, &next, now)?;
        store::rotate_session(&mut tx, token.id, &next.secret_sha256(), now, access_until).await?;
        self.commit(tx, operation, Vec::new()).await?;
        Ok(tokens)
    }

    /// Ends the caller's session.
    ///
    /// # Errors
    /// [`Error::NotPermitted`] for callers without a session, and database errors.
    pub async fn logout(&self, caller: &Caller) -> Result<()> {
        let operation = "logging out";
        let person = person(caller)?;
        let now = self.now();
        let mut tx = self.begin(&caller.tenant, operation).await?;
        let ended = store::end_session(&mut tx, person.session, "logged out", now).await?;
        let revoked = self
            .announce_ends(&mut tx, ended.as_slice(), &caller.actor(), "logged out", now)
            .await?;
        self.commit(tx, operation, revoked).await
    }
}
