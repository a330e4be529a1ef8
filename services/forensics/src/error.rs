//! What can go wrong, and how it looks to a caller.

use std::collections::HashMap;

use garrison_db::DbError;
use garrison_flow::FilterError;
use garrison_proof::BundleError;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::lake::{LakeError, compact::WriteError, search::SearchError};

/// An operation of this service failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The flow lake.
    #[error(transparent)]
    Lake(#[from] LakeError),
    /// A segment could not become Parquet.
    #[error("GAR-FOR-0004: {segment} could not be written as Parquet")]
    Compaction {
        /// The segment.
        segment: String,
        /// Why.
        source: WriteError,
    },
    /// A search.
    #[error(transparent)]
    Search(#[from] SearchError),
    /// The database did not do what was asked.
    #[error("GAR-FOR-0006: {operation}")]
    Database {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        source: DbError,
    },
    /// A stored message cannot be read.
    #[error("GAR-FOR-0006: a stored message cannot be read")]
    Stored(#[source] prost::DecodeError),
    /// Too many searches.
    #[error("GAR-FOR-0007: too many searches are under way")]
    Busy,
    /// A field of a request is wrong.
    #[error("GAR-FOR-0008: {field}: {message}")]
    Field {
        /// Path of the field.
        field: String,
        /// What is wrong and what to write.
        message: String,
    },
    /// There is no such thing.
    #[error("GAR-FOR-0009: {what} was not found")]
    NotFound {
        /// What was asked for.
        what: String,
    },
    /// The bundle has no archive.
    #[error("GAR-FOR-0010: {bundle} is {state}; only a sealed bundle can be downloaded")]
    NotSealed {
        /// The bundle.
        bundle: String,
        /// How far it is.
        state: String,
    },
    /// The archive on disk is not what was sealed.
    #[error("GAR-FOR-0011: the archive of {bundle} is damaged: {reason}")]
    Damaged {
        /// The bundle.
        bundle: String,
        /// What differs.
        reason: String,
    },
    /// Files of a bundle could not be written.
    #[error("GAR-FOR-0012: {operation} failed")]
    Gather {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The archive could not be written.
    #[error("GAR-FOR-0012: sealing the bundle failed")]
    Seal(#[from] BundleError),
}

impl Error {
    /// The stable code under `docs/errors/`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Lake(LakeError::Full { .. }) => "GAR-FOR-0001",
            Self::Lake(_) => "GAR-FOR-0002",
            Self::Compaction { .. } => "GAR-FOR-0004",
            Self::Search(_) => "GAR-FOR-0005",
            Self::Database { .. } | Self::Stored(_) => "GAR-FOR-0006",
            Self::Busy => "GAR-FOR-0007",
            Self::Field { .. } => "GAR-FOR-0008",
            Self::NotFound { .. } => "GAR-FOR-0009",
            Self::NotSealed { .. } => "GAR-FOR-0010",
            Self::Damaged { .. } => "GAR-FOR-0011",
            Self::Gather { .. } | Self::Seal(_) => "GAR-FOR-0012",
        }
    }

    /// For `map_err` at a database call.
    pub(crate) fn database<E: Into<DbError>>(operation: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Database {
            operation,
            source: source.into(),
        }
    }

    /// For `map_err` while gathering.
    pub(crate) fn gather<E>(operation: &'static str) -> impl FnOnce(E) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        move |source| Self::Gather {
            operation,
            source: source.into(),
        }
    }

    pub(crate) fn field(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Field {
            field: field.into(),
            message: message.into(),
        }
    }

    /// The error and its causes in one line.
    pub(crate) fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            text = format!("{text}: {cause}");
            next = cause.source();
        }
        text
    }
}

impl From<FilterError> for Error {
    fn from(error: FilterError) -> Self {
        Self::Field {
            field: format!("filter.{}", error.field),
            message: error.message,
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let mut details = ErrorDetails::with_error_info(error.code(), "garrison.dev", HashMap::<String, String>::new());
        let code = match &error {
            Error::Lake(_) | Error::Database { .. } => Code::Unavailable,
            Error::Search(SearchError::Cancelled) => Code::Cancelled,
            Error::Busy => Code::ResourceExhausted,
            Error::Field { field, message } => {
                details.add_bad_request_violation(field.clone(), message.clone());
                Code::InvalidArgument
            }
            Error::NotFound { .. } => Code::NotFound,
            Error::NotSealed { .. } => Code::FailedPrecondition,
            Error::Damaged { .. } | Error::Stored(_) | Error::Search(_) => Code::DataLoss,
            Error::Compaction { .. } | Error::Gather { .. } | Error::Seal(_) => Code::Internal,
        };
        if matches!(code, Code::Unavailable | Code::Internal | Code::DataLoss) {
            tracing::warn!(error = &error as &dyn std::error::Error, "request failed");
        }
        Status::with_error_details(code, error.to_string(), details)
    }
}
