use garrison_proto::{TenantId, iam::v1 as proto, parse_name, resource_name, to_timestamp};
use uuid::Uuid;

use crate::{
    app::Tokens,
    domain::{LoginName, Role, Session, Tenant, User, roles_from_names},
    error::Error,
};

pub(super) fn tokens(tokens: &Tokens) -> proto::TokenSet {
    proto::TokenSet {
        access_token: tokens.access.expose().to_owned(),
        access_expires: Some(to_timestamp(tokens.access_expires)),
        refresh_token: tokens.refresh.expose().to_owned(),
        session_expires: Some(to_timestamp(tokens.session_expires)),
    }
}

pub(super) fn user(user: User) -> proto::User {
    proto::User {
        name: resource_name("users", user.id),
        login: user.login.to_string(),
        display_name: user.display_name,
        roles: user.roles.iter().map(ToString::to_string).collect(),
        disabled: user.disabled,
        totp_enrolled: user.totp_enrolled,
        created: Some(to_timestamp(user.created)),
        last_login: user.last_login.map(to_timestamp),
        locked_until: user.locked_until.map(to_timestamp),
    }
}

pub(super) fn session(session: Session) -> proto::Session {
    proto::Session {
        name: resource_name("sessions", session.id),
        user: resource_name("users", session.user),
        created: Some(to_timestamp(session.created)),
        last_used: Some(to_timestamp(session.last_used)),
        expires: Some(to_timestamp(session.expires)),
        client_address: session.client_address,
        second_factor: session.second_factor,
    }
}

pub(super) fn tenant(tenant: Tenant) -> proto::Tenant {
    proto::Tenant {
        name: format!("tenants/{}", tenant.id),
        display_name: tenant.display_name,
        disabled: tenant.disabled,
        created: Some(to_timestamp(tenant.created)),
    }
}

pub(super) fn user_id(field: &'static str, name: &str) -> Result<Uuid, Error> {
    parse_name("users", name).map_err(|problem| Error::field(field, problem))
}

pub(super) fn login(field: &'static str, text: &str) -> Result<LoginName, Error> {
    text.parse()
        .map_err(|problem: crate::domain::InvalidLogin| Error::field(field, problem))
}

pub(super) fn roles(names: &[String]) -> Result<Vec<Role>, Error> {
    roles_from_names(names).map_err(|problem| Error::field("roles", problem))
}

pub(super) fn tenant_id(field: &'static str, text: &str) -> Result<TenantId, Error> {
    text.strip_prefix("tenants/")
        .unwrap_or(text)
        .parse()
        .map_err(|problem: garrison_proto::InvalidTenant| Error::field(field, problem))
}
