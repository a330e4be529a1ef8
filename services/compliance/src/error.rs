//! What can go wrong, and how it looks to a caller.

use std::collections::HashMap;

use garrison_db::DbError;
use garrison_proof::{CheckpointError, ProofError};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// An operation of this service failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database did not do what was asked.
    #[error("GAR-COMP-0002: {operation}")]
    Database {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        source: DbError,
    },
    /// The tables contradict each other.
    #[error("GAR-COMP-0003: the log of {tenant} is damaged: {reason}")]
    Damaged {
        /// Whose log.
        tenant: String,
        /// What does not fit.
        reason: String,
    },
    /// A proof was asked for that the log cannot have.
    #[error("GAR-COMP-0004: no such proof")]
    Proof(#[from] ProofError),
    /// A checkpoint could not be signed.
    #[error("GAR-COMP-0003: the checkpoint could not be signed")]
    Checkpoint(#[from] CheckpointError),
    /// A field of a request is wrong.
    #[error("GAR-COMP-0005: {field}: {message}")]
    Field {
        /// Path of the field.
        field: &'static str,
        /// What is wrong and what to write.
        message: String,
    },
    /// There is no such thing.
    #[error("GAR-COMP-0006: {what} was not found")]
    NotFound {
        /// What was asked for.
        what: String,
    },
}

impl Error {
    /// The stable code under `docs/errors/`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Database { .. } => "GAR-COMP-0002",
            Self::Damaged { .. } | Self::Checkpoint(_) => "GAR-COMP-0003",
            Self::Proof(_) => "GAR-COMP-0004",
            Self::Field { .. } => "GAR-COMP-0005",
            Self::NotFound { .. } => "GAR-COMP-0006",
        }
    }

    /// For `map_err` at a database call.
    pub(crate) fn database<E: Into<DbError>>(operation: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Database {
            operation,
            source: source.into(),
        }
    }

    /// Whether trying again later may help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Database { .. })
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let mut details = ErrorDetails::with_error_info(error.code(), "garrison.dev", HashMap::<String, String>::new());
        let code = match &error {
            Error::Database { .. } => Code::Unavailable,
            Error::Checkpoint(_) => Code::Internal,
            Error::Damaged { .. } => Code::DataLoss,
            Error::Proof(_) => Code::OutOfRange,
            Error::Field { field, message } => {
                details.add_bad_request_violation(*field, message.clone());
                Code::InvalidArgument
            }
            Error::NotFound { .. } => Code::NotFound,
        };
        let message = match &error {
            Error::Proof(source) => format!("{error}: {source}"),
            // Why the database failed is for the operator's log, not for the caller.
            Error::Database { .. } => {
                tracing::warn!(error = &error as &dyn std::error::Error, "request failed");
                format!("{error}; try again")
            }
            Error::Damaged { .. } => {
                tracing::error!(error = &error as &dyn std::error::Error, "request failed");
                error.to_string()
            }
            _ => error.to_string(),
        };
        Status::with_error_details(code, message, details)
    }
}
