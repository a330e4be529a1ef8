//! What can go wrong, each with its stable code; the pages are under `docs/errors/`.

use garrison_db::DbError;

use crate::domain::{alert::InvalidAlert, playbook::Violation, response::WrongState};

/// A use case failed.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The database could not be reached or refused the transaction.
    #[error("GAR-RESP-0001: the responder's database could not {operation}")]
    Transaction {
        /// What was tried.
        operation: &'static str,
        /// Why not.
        source: DbError,
    },
    /// A statement failed.
    #[error("GAR-RESP-0001: the responder's database could not {operation}")]
    Statement {
        /// What was tried.
        operation: &'static str,
        /// Why not.
        source: sqlx::Error,
    },
    /// An alert that cannot be taken in.
    #[error("GAR-RESP-0002: {0}")]
    Alert(#[from] InvalidAlert),
    /// A report that cannot be taken in.
    #[error("GAR-RESP-0003: enforcement report: {0}")]
    Report(String),
    /// Something asked for does not exist, or belongs to another tenant.
    #[error("GAR-RESP-0004: {0} does not exist")]
    NotFound(String),
    /// The request does not hold together.
    #[error("GAR-RESP-0005: the request is invalid")]
    Invalid(Vec<Violation>),
    /// A playbook document is wrong.
    #[error("GAR-RESP-0006: the playbook is invalid")]
    Playbook(Vec<Violation>),
    /// The response is not in a state that allows it.
    #[error("GAR-RESP-0007: {0}")]
    WrongState(#[from] WrongState),
    /// The incident is closed.
    #[error("GAR-RESP-0008: {0}")]
    IncidentState(String),
    /// An enforcer asks for what is not its own.
    #[error("GAR-RESP-0009: {0}")]
    Enforcer(String),
    /// A message could not be put into words.
    #[error("GAR-RESP-0010: an event could not be written as JSON")]
    Json(#[from] serde_json::Error),
}

impl AppError {
    /// Whether it is about the database and will pass.
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Transaction { source, .. } => source.is_unavailable(),
            Self::Statement { source, .. } => garrison_db::is_unavailable(source),
            _ => false,
        }
    }

    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Transaction { .. } | Self::Statement { .. } => "GAR-RESP-0001",
            Self::Alert(_) => "GAR-RESP-0002",
            Self::Report(_) => "GAR-RESP-0003",
            Self::NotFound(_) => "GAR-RESP-0004",
            Self::Invalid(_) => "GAR-RESP-0005",
            Self::Playbook(_) => "GAR-RESP-0006",
            Self::WrongState(_) => "GAR-RESP-0007",
            Self::IncidentState(_) => "GAR-RESP-0008",
            Self::Enforcer(_) => "GAR-RESP-0009",
            Self::Json(_) => "GAR-RESP-0010",
        }
    }

    /// One violation of a request field.
    pub fn field(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid(vec![Violation {
            field: field.into(),
            message: message.into(),
        }])
    }
}

/// Names the operation of a failed statement.
pub(crate) trait During<T> {
    /// `operation` completes "the database could not …".
    fn during(self, operation: &'static str) -> Result<T, AppError>;
}

impl<T> During<T> for Result<T, sqlx::Error> {
    fn during(self, operation: &'static str) -> Result<T, AppError> {
        self.map_err(|source| AppError::Statement { operation, source })
    }
}

impl<T> During<T> for Result<T, DbError> {
    fn during(self, operation: &'static str) -> Result<T, AppError> {
        self.map_err(|source| AppError::Transaction { operation, source })
    }
}
