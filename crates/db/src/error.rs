use std::{path::PathBuf, time::Duration};

use garrison_bus::Disposition;

/// An operation on the database failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DbError {
    /// The password or authority file cannot be used.
    #[error("GAR-DB-0001: cannot use the {what} file {}: {reason}", path.display())]
    File {
        /// Which file.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The database is away, starting, shutting down, or out of connections.
    #[error("GAR-DB-0002: the database is not available while trying to {operation}")]
    Unavailable {
        /// What was being done.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: sqlx::Error,
    },
    /// The database answered with an error.
    #[error("GAR-DB-0003: the database failed to {operation}")]
    Query {
        /// What was being done.
        operation: &'static str,
        /// The database's words.
        #[source]
        source: sqlx::Error,
    },
    /// The database was migrated by a newer version of the program.
    #[error(
        "GAR-DB-0004: schema {schema} has migration {version}, which this program does not know: run the version \
         that made it, or a newer one"
    )]
    Newer {
        /// The schema.
        schema: &'static str,
        /// The unknown migration.
        version: i64,
    },
    /// A migration failed or differs from what was applied.
    #[error("GAR-DB-0005: migrating schema {schema} failed: {reason}")]
    Migration {
        /// The schema.
        schema: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A configuration value makes no sense.
    #[error("GAR-DB-0006: database configuration: {key}: {reason}")]
    Config {
        /// The key.
        key: &'static str,
        /// What is wrong with its value.
        reason: String,
    },
    /// A message cannot be put into the outbox.
    #[error("GAR-DB-0007: message for {subject} cannot be published: {reason}")]
    Message {
        /// Where it was to go.
        subject: String,
        /// Why.
        reason: String,
    },
    /// The service's role is missing or has more rights than it may have.
    #[error("GAR-DB-0008: role {role}: {reason}")]
    Role {
        /// The role.
        role: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Tables are not protected by row-level security.
    #[error(
        "GAR-DB-0009: schema {schema}: without tenant_id or forced row-level security: {}",
        tables.join(", ")
    )]
    Unprotected {
        /// The schema.
        schema: &'static str,
        /// The tables.
        tables: Vec<String>,
    },
}

impl DbError {
    /// Wraps a driver error with the operation that failed, telling absence from refusal.
    pub fn new(operation: &'static str, source: sqlx::Error) -> Self {
        if is_unavailable(&source) {
            Self::Unavailable { operation, source }
        } else {
            Self::Query { operation, source }
        }
    }

    /// For `map_err`: wraps a driver error with the operation that failed.
    pub fn during(operation: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| Self::new(operation, source)
    }

    /// True when the database is away and the same operation may succeed later.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    /// What a message handler should return for this error: see [`disposition`].
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Unavailable { source, .. } | Self::Query { source, .. } => disposition(source),
            other => Disposition::Retry {
                after: Duration::from_millis(100),
                reason: other.to_string(),
            },
        }
    }
}

/// For `?` on queries inside a transaction, where the caller adds the operation.
impl From<sqlx::Error> for DbError {
    fn from(source: sqlx::Error) -> Self {
        Self::new("run a query", source)
    }
}

/// What a message handler should return for a driver error: [`Disposition::Hold`] while the database is away, which
/// never ends in the DLQ, and [`Disposition::Retry`] otherwise.
pub fn disposition(error: &sqlx::Error) -> Disposition {
    let reason = error.to_string();
    if is_unavailable(error) {
        Disposition::Hold {
            after: Duration::from_millis(250),
            reason,
        }
    } else {
        Disposition::Retry {
            after: Duration::from_millis(50),
            reason,
        }
    }
}

/// True when the database could not be reached, or ended the session for a reason of its own (SQLSTATE classes 08
/// and 57P, and 53300: too many connections). Such an operation may succeed later without any change.
pub fn is_unavailable(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::BeginFailed => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| {
            code.starts_with("08") || code.starts_with("57P") || code == "53300" || code == "25P03"
        }),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absence_holds_and_defects_retry() {
        let away = sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into());
        assert!(matches!(disposition(&away), Disposition::Hold { .. }));
        assert!(DbError::new("x", away).is_unavailable());
        assert!(matches!(
            disposition(&sqlx::Error::PoolTimedOut),
            Disposition::Hold { .. }
        ));
        assert!(matches!(
            disposition(&sqlx::Error::RowNotFound),
            Disposition::Retry { .. }
        ));
        assert!(!DbError::new("x", sqlx::Error::RowNotFound).is_unavailable());
    }
}
