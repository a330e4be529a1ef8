use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// Why a request was turned away. Each has a stable code with a page under `docs/errors/`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// The method needs an identity and the request has none.
    #[error("this method needs a client certificate or an `authorization: Bearer` token; run `garrison login`")]
    NoCredentials,
    /// The token is not one that iam issued for this installation.
    #[error("the token was refused: {0}")]
    BadToken(String),
    /// The token's time is over, or has not come.
    #[error("the token is not valid at this time: {0}")]
    Expired(String),
    /// The token's session was ended.
    #[error("the session of this token was revoked; log in again")]
    Revoked,
    /// The token names a signing key that iam does not have.
    #[error("the token was signed with key {0:?}, which iam does not publish")]
    UnknownKey(String),
    /// No policy admits this.
    #[error("{principal} may not call {method} in tenant {tenant}")]
    Forbidden {
        /// Who asked.
        principal: String,
        /// The method, `package.Service/Method`.
        method: String,
        /// The tenant.
        tenant: String,
    },
    /// The certificate is of this authority but not an identity this service takes.
    #[error("the client certificate was refused: {0}")]
    WrongCertificate(String),
    /// iam was never reached, so no token can be verified.
    #[error("tokens cannot be verified yet: this service has not reached iam for its keys and revocations")]
    KeysUnavailable,
    /// The decision could not be recorded, so it was not carried out.
    #[error("the call was not carried out because its audit record could not be stored; try again")]
    AuditUnavailable,
    /// A second factor is needed.
    #[error("{method} needs a session with a second factor; enrol one and log in with it")]
    SecondFactor {
        /// The method, `package.Service/Method`.
        method: String,
    },
    /// The `garrison-tenant` metadata cannot be used.
    #[error("metadata garrison-tenant: {0}")]
    BadTenant(String),
    /// The method is not in any contract.
    #[error("{0} is not a method of this installation")]
    UnknownMethod(String),
    /// The handler was reached without the layer.
    #[error("the server is wired wrongly: a handler was reached without authentication")]
    NotWired,
}

impl Denial {
    /// The stable error code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoCredentials => "GAR-AUTH-0001",
            Self::BadToken(_) => "GAR-AUTH-0002",
            Self::Expired(_) => "GAR-AUTH-0003",
            Self::Revoked => "GAR-AUTH-0004",
            Self::UnknownKey(_) => "GAR-AUTH-0005",
            Self::Forbidden { .. } => "GAR-AUTH-0006",
            Self::WrongCertificate(_) => "GAR-AUTH-0007",
            Self::KeysUnavailable => "GAR-AUTH-0008",
            Self::AuditUnavailable => "GAR-AUTH-0009",
            Self::SecondFactor { .. } => "GAR-AUTH-0010",
            Self::BadTenant(_) => "GAR-AUTH-0011",
            Self::UnknownMethod(_) => "GAR-AUTH-0012",
            Self::NotWired => "GAR-AUTH-0013",
        }
    }

    /// The gRPC status code.
    pub fn grpc_code(&self) -> Code {
        match self {
            Self::NoCredentials
            | Self::BadToken(_)
            | Self::Expired(_)
            | Self::Revoked
            | Self::UnknownKey(_)
            | Self::WrongCertificate(_) => Code::Unauthenticated,
            Self::Forbidden { .. } | Self::SecondFactor { .. } => Code::PermissionDenied,
            Self::KeysUnavailable | Self::AuditUnavailable => Code::Unavailable,
            Self::BadTenant(_) => Code::InvalidArgument,
            Self::UnknownMethod(_) => Code::Unimplemented,
            Self::NotWired => Code::Internal,
        }
    }

    /// The status to answer with: code, message and a `google.rpc.ErrorInfo` that carries [`Denial::code`].
    pub fn into_status(self) -> Status {
        let details = ErrorDetails::with_error_info(self.code(), "garrison.dev", HashMap::new());
        Status::with_error_details(self.grpc_code(), self.to_string(), details)
    }
}
