use std::path::{Path, PathBuf};

use rustls_pki_types::{CertificateDer, pem::PemObject};
use schemars::JsonSchema;
use serde::Deserialize;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use crate::DbError;

/// How to reach PostgreSQL. The server's certificate is always verified; there is no plaintext mode.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DbConfig {
    /// Host name or address, as in the server's certificate.
    pub host: String,
    /// Port.
    #[serde(default = "default_port")]
    pub port: u16,
    /// Database name.
    pub database: String,
    /// Role to log in as. A service's role owns nothing and cannot bypass row-level security.
    pub user: String,
    /// File with the role's password. A line break at its end is ignored.
    pub password_file: PathBuf,
    /// PEM file with the certificate authorities that may have signed the server's certificate.
    pub ca_file: PathBuf,
    /// Most connections this process opens.
    #[serde(default = "default_max_connections")]
    pub max_connections: u32,
    /// Milliseconds to wait for a free connection, connecting included.
    #[serde(default = "default_acquire_timeout_ms")]
    pub acquire_timeout_ms: u64,
    /// Milliseconds after which the server ends a statement.
    #[serde(default = "default_statement_timeout_ms")]
    pub statement_timeout_ms: u32,
}

fn default_port() -> u16 {
    5432
}

fn default_max_connections() -> u32 {
    10
}

fn default_acquire_timeout_ms() -> u64 {
    5_000
}

fn default_statement_timeout_ms() -> u32 {
    30_000
}

impl Default for DbConfig {
    fn default() -> Self {
        Self {
            host: "localhost".to_owned(),
            port: default_port(),
            database: "garrison".to_owned(),
            user: String::new(),
            password_file: PathBuf::new(),
            ca_file: PathBuf::new(),
            max_connections: default_max_connections(),
            acquire_timeout_ms: default_acquire_timeout_ms(),
            statement_timeout_ms: default_statement_timeout_ms(),
        }
    }
}

impl DbConfig {
    /// Checks the values and files and makes connection options with the schema as search path.
    pub(crate) fn options(&self, schema: &str) -> Result<PgConnectOptions, DbError> {
        identifier("schema", schema)?;
        for (key, value) in [("host", &self.host), ("database", &self.database), ("user", &self.user)] {
            if value.is_empty() {
                return Err(DbError::Config {
                    key,
                    reason: "it is empty".to_owned(),
                });
            }
        }
        if self.max_connections == 0 {
            return Err(DbError::Config {
                key: "max_connections",
                reason: "it must be at least 1".to_owned(),
            });
        }
        let password = password(&self.password_file)?;
        check_authorities(&self.ca_file)?;
        let statement_timeout = self.statement_timeout_ms.to_string();
        Ok(PgConnectOptions::new_without_pgpass()
            .host(&self.host)
            .port(self.port)
            .database(&self.database)
            .username(&self.user)
            .password(&password)
            .ssl_mode(PgSslMode::VerifyFull)
            .ssl_root_cert(&self.ca_file)
            .application_name(&format!("garrison-{schema}"))
            .options([
                ("search_path", schema),
                ("statement_timeout", &statement_timeout),
                // A lock that is held this long is a defect elsewhere; waiting on would spread it.
                ("lock_timeout", "10000"),
                ("idle_in_transaction_session_timeout", "60000"),
                ("timezone", "UTC"),
            ]))
    }
}

fn password(path: &Path) -> Result<String, DbError> {
    let unusable = |reason: String| DbError::File {
        what: "password",
        path: path.to_owned(),
        reason,
    };
    let text = std::fs::read_to_string(path).map_err(|error| unusable(error.to_string()))?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() {
        return Err(unusable("it is empty".to_owned()));
    }
    if text.contains(['\r', '\n', '\0']) {
        return Err(unusable("it holds more than one line".to_owned()));
    }
    Ok(text.to_owned())
}

fn check_authorities(path: &Path) -> Result<(), DbError> {
    let unusable = |reason: String| DbError::File {
        what: "authority",
        path: path.to_owned(),
        reason,
    };
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unusable(error.to_string()))?;
    if certificates.is_empty() {
        return Err(unusable("it holds no certificate".to_owned()));
    }
    Ok(())
}

/// Names that are written into statements are plain lower-case identifiers, so that they need no quoting.
pub(crate) fn identifier(key: &'static str, text: &str) -> Result<(), DbError> {
    let first = |b: u8| b.is_ascii_lowercase() || b == b'_';
    let valid = text.len() <= 63
        && text.bytes().next().is_some_and(first)
        && text.bytes().all(|b| first(b) || b.is_ascii_digit());
    if valid {
        return Ok(());
    }
    Err(DbError::Config {
        key,
        reason: format!("{text:?} is not a name of up to 63 of a-z, 0-9 and underscore that begins with a letter"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_need_quoting_are_refused() {
        for good in ["iam", "flow_ingest", "_x1"] {
            assert!(identifier("schema", good).is_ok(), "{good}");
        }
        for bad in ["", "1a", "Iam", "a-b", "a b", "a\"b", "a;drop", &"x".repeat(64)] {
            assert!(identifier("schema", bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_missing_password_file_is_named() {
        let config = DbConfig {
            user: "iam".to_owned(),
            password_file: "/nonexistent/password".into(),
            ..DbConfig::default()
        };
        let error = config.options("iam").unwrap_err().to_string();
        assert!(
            error.starts_with("GAR-DB-0001") && error.contains("/nonexistent/password"),
            "{error}"
        );
    }
}
