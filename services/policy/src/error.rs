//! What can go wrong, and how it looks to a caller.

use std::collections::HashMap;

use garrison_bus::Disposition;
use garrison_db::DbError;
use garrison_ztp::Diagnostic;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::store::Review;

/// An operation of this service failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database did not do what was asked.
    #[error("{operation} failed")]
    Database {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        source: DbError,
    },
    /// The document has errors.
    #[error("the document has errors; the first: {}", .0.first().map(ToString::to_string).unwrap_or_default())]
    Document(Vec<Diagnostic>),
    /// Somebody else changed the policy.
    #[error("policy {name} has version {current}, and version {expected} was expected")]
    Conflict {
        /// The policy.
        name: String,
        /// What the caller took for the current version.
        expected: u64,
        /// What it is.
        current: u64,
    },
    /// There is no such thing.
    #[error("{0} was not found")]
    NotFound(String),
    /// A field of a request is wrong.
    #[error("{field}: {message}")]
    Field {
        /// The field.
        field: &'static str,
        /// What is wrong and what to write.
        message: String,
    },
    /// A tenant's policies are more than are decided for.
    #[error("{what}: at most {most} are taken; withdraw or merge policies")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        most: usize,
    },
    /// The policies overlap too much.
    #[error("with this change, the tenant's policies are too complex: {0}")]
    TooComplex(#[from] garrison_ztp::TooComplex),
    /// A stored document does not read.
    #[error("the stored policy {policy} does not read: {reason}")]
    Stored {
        /// Its name and version.
        policy: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The version does not wait for approval.
    #[error("{policy} does not wait for approval: {}", standing(*.review))]
    NotWaiting {
        /// Its name and version.
        policy: String,
        /// What became of its review.
        review: Review,
    },
    /// Another document was reviewed than the one that waits.
    #[error("{policy} is another document than the one that was reviewed; its SHA-256 is {sha256}")]
    OtherDocument {
        /// Its name and version.
        policy: String,
        /// The hash of the document that waits.
        sha256: String,
    },
    /// The author approves the own version.
    #[error("policy {0} is to be approved by somebody else than its author")]
    OwnReview(String),
    /// A background computation was lost.
    #[error("{0} was interrupted")]
    Interrupted(&'static str),
}

fn standing(review: Review) -> &'static str {
    match review {
        Review::NotNeeded => "it took force without",
        Review::Pending => "it does",
        Review::Approved => "it was approved",
        Review::Rejected => "it was rejected",
        Review::Superseded => "another version took its place, or the policy was withdrawn",
    }
}

impl Error {
    /// The stable code under `docs/errors/`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Database { .. } => "GAR-POLICY-0204",
            Self::Document(found) => found.first().map_or("GAR-POLICY-0001", |d| d.code.as_str()),
            Self::Conflict { .. } => "GAR-POLICY-0201",
            Self::NotFound(_) => "GAR-POLICY-0202",
            Self::Field { .. } => "GAR-POLICY-0203",
            Self::TooMany { .. } => "GAR-POLICY-0205",
            Self::TooComplex(_) => "GAR-POLICY-0013",
            Self::Stored { .. } | Self::Interrupted(_) => "GAR-POLICY-0207",
            Self::NotWaiting { .. } => "GAR-POLICY-0208",
            Self::OwnReview(_) => "GAR-POLICY-0209",
            Self::OtherDocument { .. } => "GAR-POLICY-0210",
        }
    }

    /// For `map_err` at a database call.
    pub(crate) fn database<E: Into<DbError>>(operation: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Database {
            operation,
            source: source.into(),
        }
    }

    /// A field of a request is wrong.
    pub(crate) fn field(field: &'static str, message: impl Into<String>) -> Self {
        Self::Field {
            field,
            message: message.into(),
        }
    }

    /// What a message handler should return for it.
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Database { source, .. } => source.disposition(),
            // The message has no part in it: wait for a repair, give no flow a wrong verdict.
            other => Disposition::Hold {
                after: std::time::Duration::from_secs(1),
                reason: format!("{}: {other}", other.code()),
            },
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let mut facts: HashMap<String, String> = HashMap::new();
        if let Error::Conflict {
            name,
            expected,
            current,
        } = &error
        {
            facts.insert("policy".to_owned(), name.clone());
            facts.insert("expected_version".to_owned(), expected.to_string());
            facts.insert("current_version".to_owned(), current.to_string());
        }
        let mut details = ErrorDetails::with_error_info(error.code(), "garrison.dev", facts);
        let code = match &error {
            Error::Database { source, .. } if source.is_unavailable() => Code::Unavailable,
            Error::Database { .. } | Error::Stored { .. } | Error::Interrupted(_) => Code::Internal,
            Error::Document(found) => {
                for d in found {
                    let place = format!("{}:{}", d.position.line, d.position.column);
                    let text = format!("{place} {}: {}. {}", d.code, d.message, d.remedy);
                    details.add_bad_request_violation(format!("document.{}", d.field), text);
                }
                Code::InvalidArgument
            }
            Error::Field { field, message } => {
                details.add_bad_request_violation(*field, message.clone());
                Code::InvalidArgument
            }
            Error::Conflict { .. } | Error::OtherDocument { .. } => Code::Aborted,
            Error::NotWaiting { .. } => Code::FailedPrecondition,
            Error::OwnReview(_) => Code::PermissionDenied,
            Error::NotFound(_) => Code::NotFound,
            Error::TooMany { .. } | Error::TooComplex(_) => Code::ResourceExhausted,
        };
        // Why the database failed is for the operator's log, not for the caller.
        let message = match code {
            Code::Unavailable => {
                tracing::warn!(error = &error as &dyn std::error::Error, "request failed");
                format!("{}: {error}; try again", error.code())
            }
            Code::Internal => {
                tracing::error!(error = &error as &dyn std::error::Error, "request failed");
                format!("{}: {error}", error.code())
            }
            _ => format!("{}: {error}", error.code()),
        };
        Status::with_error_details(code, message, details)
    }
}
