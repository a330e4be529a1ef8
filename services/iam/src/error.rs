//! What can go wrong, each with a stable code and a page under `docs/errors/`.

use std::{collections::HashMap, time::Duration};

use chrono::TimeDelta;
use garrison_db::DbError;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{
    crypto::{HashError, Unsealable},
    domain::PasswordProblem,
};

/// A request to iam failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Unknown name, wrong password, disabled account or tenant: on purpose one answer.
    #[error("the tenant, login or password is wrong, or the account is disabled")]
    Credentials,
    /// Too many failures; the same for names that do not exist.
    #[error("too many failed attempts for this login; it is locked for a while")]
    Locked {
        /// Until the next attempt counts.
        retry_after: TimeDelta,
    },
    /// Too many attempts from one address.
    #[error("too many login attempts from this address")]
    RateLimited {
        /// Until the next attempt is admitted.
        retry_after: TimeDelta,
    },
    /// The code is wrong, or was used before.
    #[error("the code is wrong or has been used already")]
    Factor,
    /// The challenge is not one of ours, expired, or was tried too often.
    #[error("the login took too long or too many codes were wrong; log in again")]
    Challenge,
    /// The refresh token is not one of ours, or its session is over.
    #[error("the session is over: {reason}; log in again")]
    SessionOver {
        /// In words.
        reason: &'static str,
    },
    /// A new password is too easy to guess.
    #[error("the password is not accepted: {problem}")]
    Password {
        /// The field that carried it.
        field: &'static str,
        /// Why.
        problem: PasswordProblem,
    },
    /// A field of the request cannot be used.
    #[error("{field}: {problem}")]
    Field {
        /// Dotted path.
        field: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// There is no such thing in the caller's tenant.
    #[error("{0} does not exist")]
    NotFound(String),
    /// The name is taken.
    #[error("{0} exists already")]
    Exists(String),
    /// The last administrator, oneself, or the system tenant would be shut out.
    #[error("{0}")]
    LockOut(&'static str),
    /// The authenticator is not in the state that this needs.
    #[error("{0}")]
    Enrolment(&'static str),
    /// The caller is not somebody who may do this.
    #[error("{0}")]
    NotPermitted(&'static str),
    /// Keys were rotated so often that more would not be read by verifiers.
    #[error("{0} signing keys are still needed to verify tokens; rotate again when some have expired")]
    TooManyKeys(usize),
    /// More password checks than memory is set aside for.
    #[error("too many logins at once; try again in a moment")]
    Busy,
    /// PostgreSQL cannot be reached.
    #[error("{operation}: the database cannot be reached")]
    Unavailable {
        /// What was being done.
        operation: &'static str,
        /// The cause.
        source: DbError,
    },
    /// PostgreSQL refused or answered something unexpected.
    #[error("{operation}: the database refused")]
    Database {
        /// What was being done.
        operation: &'static str,
        /// The cause.
        source: DbError,
    },
    /// A value in the database is not what this service writes.
    #[error("{operation}: the database holds an unexpected value: {detail}")]
    Stored {
        /// What was being done.
        operation: &'static str,
        /// What was found.
        detail: String,
    },
    /// Argon2 failed.
    #[error("hashing a password failed")]
    Hash(#[source] HashError),
    /// The key file is not the one that sealed the database's secrets.
    #[error("a stored secret cannot be opened with the configured key file")]
    Sealed(#[from] Unsealable),
    /// The signing keys have not been read from the database yet.
    #[error("the signing keys have not been loaded yet")]
    NoSigningKey,
}

impl From<HashError> for Error {
    fn from(error: HashError) -> Self {
        match error {
            HashError::Busy => Self::Busy,
            other => Self::Hash(other),
        }
    }
}

impl Error {
    /// Names the operation that a database error happened in.
    pub(crate) fn database(operation: &'static str) -> impl Fn(DbError) -> Self {
        move |source| {
            if source.is_unavailable() {
                Self::Unavailable { operation, source }
            } else {
                Self::Database { operation, source }
            }
        }
    }

    /// The same for sqlx's own error.
    pub(crate) fn query(operation: &'static str) -> impl Fn(sqlx::Error) -> Self {
        move |source| Self::database(operation)(DbError::from(source))
    }

    /// A request field that cannot be used.
    pub(crate) fn field(field: &'static str, problem: impl ToString) -> Self {
        Self::Field {
            field,
            problem: problem.to_string(),
        }
    }

    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Credentials => "GAR-IAM-0001",
            Self::Locked { .. } => "GAR-IAM-0002",
            Self::RateLimited { .. } => "GAR-IAM-0003",
            Self::Factor => "GAR-IAM-0004",
            Self::Challenge => "GAR-IAM-0005",
            Self::SessionOver { .. } => "GAR-IAM-0006",
            Self::Password { .. } => "GAR-IAM-0007",
            Self::Field { .. } => "GAR-IAM-0008",
            Self::NotFound(_) => "GAR-IAM-0009",
            Self::Exists(_) => "GAR-IAM-0010",
            Self::LockOut(_) => "GAR-IAM-0011",
            Self::Enrolment(_) => "GAR-IAM-0012",
            Self::NotPermitted(_) => "GAR-IAM-0013",
            Self::TooManyKeys(_) => "GAR-IAM-0014",
            // 0015 is the key file's.
            Self::Busy => "GAR-IAM-0016",
            Self::Unavailable { .. } => "GAR-IAM-0017",
            Self::Database { .. } | Self::Stored { .. } | Self::Hash(_) => "GAR-IAM-0018",
            Self::Sealed(_) => "GAR-IAM-0019",
            Self::NoSigningKey => "GAR-IAM-0020",
        }
    }

    fn grpc_code(&self) -> Code {
        match self {
            Self::Credentials | Self::Factor | Self::Challenge | Self::SessionOver { .. } => Code::Unauthenticated,
            Self::Locked { .. } | Self::RateLimited { .. } => Code::ResourceExhausted,
            Self::Password { .. } | Self::Field { .. } => Code::InvalidArgument,
            Self::NotFound(_) => Code::NotFound,
            Self::Exists(_) => Code::AlreadyExists,
            Self::LockOut(_) | Self::Enrolment(_) | Self::TooManyKeys(_) => Code::FailedPrecondition,
            Self::NotPermitted(_) => Code::PermissionDenied,
            Self::Busy | Self::Unavailable { .. } | Self::NoSigningKey => Code::Unavailable,
            Self::Database { .. } | Self::Stored { .. } | Self::Hash(_) | Self::Sealed(_) => Code::Internal,
        }
    }

    /// The whole chain of causes in one line, for the log.
    fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        text
    }
}

/// The answer to a client. What only operators should see is logged here, once, and not sent.
impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let (code, grpc) = (error.code(), error.grpc_code());
        let mut details = ErrorDetails::with_error_info(code, "garrison.dev", HashMap::new());
        let message = match &error {
            Error::Locked { retry_after } | Error::RateLimited { retry_after } => {
                details.set_retry_info(retry_after.to_std().ok());
                error.to_string()
            }
            Error::Password { field, problem } => {
                details.add_bad_request_violation(*field, problem.to_string());
                error.to_string()
            }
            Error::Field { field, problem } => {
                details.add_bad_request_violation(*field, problem);
                error.to_string()
            }
            Error::Busy | Error::NoSigningKey | Error::Unavailable { .. } => {
                tracing::warn!(code, error = error.chain(), "request not served");
                details.set_retry_info(Some(Duration::from_secs(1)));
                "iam cannot answer right now; try again".to_owned()
            }
            Error::Database { .. } | Error::Stored { .. } | Error::Hash(_) | Error::Sealed(_) => {
                tracing::error!(code, error = error.chain(), "request failed");
                "iam failed to carry this out; its log says why".to_owned()
            }
            _ => error.to_string(),
        };
        Self::with_error_details(grpc, message, details)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_carry_the_code_and_hide_the_cause() {
        let status = Status::from(Error::Stored {
            operation: "reading a user",
            detail: "internal thing".into(),
        });
        assert_eq!(status.code(), Code::Internal);
        assert!(!status.message().contains("internal thing"));
        let details = status.get_error_details();
        assert_eq!(details.error_info().unwrap().reason, "GAR-IAM-0018");
    }

    #[test]
    fn every_code_has_its_page() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/errors/");
        let source = include_str!("error.rs");
        let mut codes: Vec<&str> = source
            .match_indices("GAR-IAM-0")
            .map(|(at, _)| &source[at..at + 12])
            .filter(|code| code.bytes().skip(8).all(|byte| byte.is_ascii_digit()))
            .collect();
        codes.push("GAR-IAM-0015");
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), 20);
        for code in codes {
            let page = std::fs::read_to_string(format!("{folder}{code}.md")).unwrap();
            assert!(page.starts_with(&format!("# {code}: ")), "{code}");
            assert!(page.contains("\n## What to do\n"), "{code}");
        }
    }

    #[test]
    fn a_lock_says_when_to_come_back() {
        let status = Status::from(Error::Locked {
            retry_after: TimeDelta::seconds(30),
        });
        let details = status.get_error_details();
        assert_eq!(details.retry_info().unwrap().retry_delay, Some(Duration::from_secs(30)));
    }
}
