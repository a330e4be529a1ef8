use std::{fmt, net::IpAddr};

use chrono::{DateTime, Utc};
use garrison_proto::TenantId;
use uuid::Uuid;

use crate::{denial::Denial, token};

/// Who a verified request comes from, and for which tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The tenant whose data the request may touch: the token's for people, the one a service asked for and
    /// was granted, [`TenantId::SYSTEM`] otherwise.
    pub tenant: TenantId,
    /// The verified identity.
    pub principal: Principal,
    /// Roles the token carried; empty for services and enforcers.
    pub roles: Vec<String>,
    /// The session the token belongs to, for people.
    pub session: Option<Uuid>,
    /// Whether the session was opened with a second factor.
    pub second_factor: bool,
    /// The address the connection came from.
    pub address: Option<IpAddr>,
}

impl Caller {
    /// A caller without any credential.
    pub fn anonymous(address: Option<IpAddr>) -> Self {
        Self {
            tenant: TenantId::system(),
            principal: Principal::Anonymous,
            roles: Vec::new(),
            session: None,
            second_factor: false,
            address,
        }
    }

    /// Whether the token carried the role.
    pub fn has_role(&self, role: &str) -> bool {
        self.roles.iter().any(|held| held == role)
    }

    /// The user's id, when a person is calling.
    pub fn user(&self) -> Option<Uuid> {
        match &self.principal {
            Principal::User { id, .. } => Some(*id),
            _ => None,
        }
    }

    /// The caller as it stands in audit records.
    pub fn actor(&self) -> garrison_proto::audit::v1::Actor {
        garrison_proto::audit::v1::Actor {
            name: self.principal.to_string(),
            session: self
                .session
                .map(|id| garrison_proto::resource_name("sessions", id))
                .unwrap_or_default(),
            roles: self.roles.clone(),
            address: self.address.map(|a| a.to_string()).unwrap_or_default(),
        }
    }
}

/// A verified identity.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Principal {
    /// A person with a token of iam.
    User {
        /// The user's id.
        id: Uuid,
        /// The name the person logs in with; for people to read, never for decisions.
        login: String,
    },
    /// A service of the fleet, by its certificate.
    Service {
        /// The service's name, such as `forensics`.
        name: String,
    },
    /// A node agent, by its certificate.
    Enforcer {
        /// The node's name.
        node: String,
    },
    /// Nobody in particular.
    Anonymous,
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User { id, .. } => write!(f, "users/{id}"),
            Self::Service { name } => write!(f, "services/{name}"),
            Self::Enforcer { node } => write!(f, "enforcers/{node}"),
            Self::Anonymous => f.write_str("anonymous"),
        }
    }
}

/// The verified caller of a request, as the [`AuthLayer`](crate::AuthLayer) left it.
///
/// # Errors
/// `INTERNAL` when the request did not pass the layer, which is a mistake in the server's wiring and never the
/// caller's.
#[allow(clippy::result_large_err)] // tonic's own error type
pub fn caller<T>(request: &tonic::Request<T>) -> Result<Caller, tonic::Status> {
    request
        .extensions()
        .get::<Caller>()
        .cloned()
        .ok_or_else(|| Denial::NotWired.into_status())
}

/// When the token of a request, which the layer has verified, is accepted no longer. `None` for calls without a token,
/// whose certificate ends with the connection. A call that streams for long asks for this and ends then, with
/// [`Denial::Expired`].
pub fn accepted_until<T>(request: &tonic::Request<T>) -> Option<DateTime<Utc>> {
    let authorization = request.metadata().get("authorization")?.to_str().ok()?;
    token::accepted_until(authorization.split_once(' ')?.1.trim())
}
