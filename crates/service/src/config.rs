use std::{
    net::SocketAddr,
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use garrison_bus::BusConfig;
use garrison_db::DbConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Largest configuration file that is read, in bytes.
const MAX_FILE: u64 = 1024 * 1024;
/// Largest secret file that is read, in bytes.
const MAX_SECRET: u64 = 64 * 1024;

/// A service's configuration file.
pub trait ServiceConfig: DeserializeOwned + JsonSchema {
    /// The sections every service has.
    fn core(&self) -> &Core;

    /// Checks what types cannot say. Called before any port is bound.
    ///
    /// # Errors
    /// [`ConfigError::invalid`] naming the key.
    fn validate(&self) -> Result<(), ConfigError> {
        Ok(())
    }
}

/// The sections every service has, under `[core]`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Core {
    /// Who this process is.
    pub identity: IdentityConfig,
    /// The broker.
    pub bus: BusConfig,
    /// The database, for services that have one.
    #[serde(default)]
    pub database: Option<DbConfig>,
    /// The gRPC server, for services that have one.
    #[serde(default)]
    pub grpc: Option<GrpcConfig>,
    /// Health, readiness and metrics over plain HTTP. It shows no data and takes no commands; keep it on
    /// loopback or a management network.
    #[serde(default)]
    pub admin: AdminConfig,
    /// Where token keys and revocations come from.
    #[serde(default)]
    pub auth: AuthConfig,
    /// Logs, traces and metrics.
    #[serde(default)]
    pub telemetry: TelemetryConfig,
    /// Stopping.
    #[serde(default)]
    pub lifecycle: LifecycleConfig,
}

/// The certificate this process presents and the authorities it believes.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IdentityConfig {
    /// The SPIFFE trust domain of this installation, such as `garrison.local`. Peers of another are refused.
    pub trust_domain: String,
    /// The certificate with its intermediates, PEM. Its one URI name must be this service's SPIFFE id.
    pub cert_file: PathBuf,
    /// The private key, PEM.
    pub key_file: PathBuf,
    /// The authorities whose certificates are believed, PEM.
    pub ca_file: PathBuf,
    /// How often the files are looked at for changes, in milliseconds.
    #[serde(default = "default_reload")]
    pub reload_interval_ms: u64,
}

/// The admin port.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdminConfig {
    /// Address and port for `/livez`, `/readyz`, `/metrics` and `/version`.
    pub listen: SocketAddr,
}

/// The gRPC server. It speaks TLS 1.3 only and takes messages of at most 4 MiB.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GrpcConfig {
    /// Address and port.
    pub listen: SocketAddr,
    /// Most connections at a time, those in their TLS handshake included. More wait in the kernel's queue.
    #[serde(default = "default_connections")]
    pub max_connections: usize,
    /// Most calls at a time on one connection.
    #[serde(default = "default_streams")]
    pub max_streams_per_connection: u32,
    /// How long a client may take for its TLS handshake, in milliseconds.
    #[serde(default = "default_handshake")]
    pub handshake_timeout_ms: u64,
}

/// Token keys and revocations.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AuthConfig {
    /// iam's gRPC endpoint, `https://host:port`. Without it no token is accepted; only iam itself, and programs
    /// without a gRPC server, leave it out.
    pub iam_endpoint: Option<String>,
}

/// Logs, traces and metrics.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetryConfig {
    /// What is logged: a level, or directives such as `info,garrison_responder=debug`.
    pub log: String,
    /// How it is written to standard error.
    pub log_format: LogFormat,
    /// Where traces and metrics are sent by OTLP over gRPC, `http://host:port` on this machine or
    /// `https://host:port` of a collector whose certificate one of the authorities of `core.identity` signed.
    /// Nothing is sent without it; `/metrics` is there either way.
    pub otlp_endpoint: Option<String>,
    /// Share of traces that are recorded, 0 to 1. A trace that began elsewhere keeps its decision.
    pub sampling_ratio: f64,
    /// How often metrics are sent, in milliseconds.
    pub metrics_interval_ms: u64,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Stopping.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LifecycleConfig {
    /// How long work under way may take to finish after SIGTERM or SIGINT, in milliseconds. A second signal
    /// ends it at once.
    pub drain_timeout_ms: u64,
}

fn default_reload() -> u64 {
    10_000
}

fn default_connections() -> usize {
    1024
}

fn default_streams() -> u32 {
    256
}

fn default_handshake() -> u64 {
    5_000
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 9100)),
        }
    }
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            // The broker's client says every reconnection attempt; the bus crate says what matters of it.
            log: "info,async_nats=warn".to_owned(),
            log_format: LogFormat::Auto,
            otlp_endpoint: None,
            sampling_ratio: 1.0,
            metrics_interval_ms: 15_000,
        }
    }
}

impl Default for LifecycleConfig {
    fn default() -> Self {
        Self {
            drain_timeout_ms: 10_000,
        }
    }
}

impl IdentityConfig {
    pub(crate) fn files(&self) -> garrison_auth::TlsFiles {
        garrison_auth::TlsFiles {
            cert_file: self.cert_file.clone(),
            key_file: self.key_file.clone(),
            ca_file: self.ca_file.clone(),
        }
    }
}

impl LifecycleConfig {
    pub(crate) fn drain_timeout(&self) -> Duration {
        Duration::from_millis(self.drain_timeout_ms)
    }
}

impl Core {
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        let domain = &self.identity.trust_domain;
        garrison_auth::SpiffeId::service(domain, "x").map_err(|_| {
            ConfigError::invalid(
                "core.identity.trust_domain",
                format!("{domain:?} is not a trust domain; use lower-case letters, digits, dots and hyphens"),
            )
        })?;
        if self.identity.reload_interval_ms < 100 {
            return Err(ConfigError::invalid(
                "core.identity.reload_interval_ms",
                "use at least 100",
            ));
        }
        if let Some(grpc) = &self.grpc {
            if grpc.max_connections == 0 {
                return Err(ConfigError::invalid("core.grpc.max_connections", "use at least 1"));
            }
            if grpc.max_streams_per_connection == 0 {
                return Err(ConfigError::invalid(
                    "core.grpc.max_streams_per_connection",
                    "use at least 1",
                ));
            }
            if grpc.handshake_timeout_ms == 0 {
                return Err(ConfigError::invalid("core.grpc.handshake_timeout_ms", "use at least 1"));
            }
        }
        check_telemetry(&self.telemetry)
    }
}

pub(crate) fn check_telemetry(telemetry: &TelemetryConfig) -> Result<(), ConfigError> {
    let ratio = telemetry.sampling_ratio;
    if !(0.0..=1.0).contains(&ratio) {
        return Err(ConfigError::invalid(
            "core.telemetry.sampling_ratio",
            format!("{ratio} is not between 0 and 1"),
        ));
    }
    if telemetry.metrics_interval_ms < 100 {
        return Err(ConfigError::invalid(
            "core.telemetry.metrics_interval_ms",
            "use at least 100",
        ));
    }
    Ok(())
}

/// The configuration cannot be used. The process exits with 64 before it binds a port.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not there or cannot be read.
    #[error(
        "GAR-CFG-0001: configuration file {} cannot be read: {source}; name it with --config or GARRISON_CONFIG",
        path.display()
    )]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("GAR-CFG-0002: {}, line {line}: not valid TOML: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What the parser says.
        reason: String,
    },
    /// A key is unknown, missing or of the wrong type.
    #[error(
        "GAR-CFG-0003: {}, line {line}, key `{key}`: {reason}; run the program with `config` for every key and its meaning",
        path.display()
    )]
    Key {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key, dotted from the top.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// A value cannot be used.
    #[error("GAR-CFG-0004: key `{key}`: {reason}")]
    Invalid {
        /// The key, dotted from the top.
        key: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A secret's file cannot be used.
    #[error("GAR-CFG-0005: key `{key}`: {} cannot be used: {reason}", path.display())]
    Secret {
        /// The key that names the file.
        key: String,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl ConfigError {
    /// A value of `key` cannot be used, for the reason given, which should say what to do.
    pub fn invalid(key: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid {
            key: key.into(),
            reason: reason.into(),
        }
    }
}

/// Reads and checks a configuration file.
///
/// # Errors
/// [`ConfigError`] naming the file, line and key.
pub fn read_config<C: ServiceConfig>(path: &Path) -> Result<C, ConfigError> {
    checked(read_file(path)?)
}

fn checked<C: ServiceConfig>(config: C) -> Result<C, ConfigError> {
    config.core().validate()?;
    config.validate()?;
    Ok(config)
}

/// Reads a configuration file; what types cannot say is not checked yet.
pub(crate) fn read_file<C: DeserializeOwned>(path: &Path) -> Result<C, ConfigError> {
    let file = |source| ConfigError::File {
        path: path.to_owned(),
        source,
    };
    if std::fs::metadata(path).map_err(file)?.len() > MAX_FILE {
        return Err(file(std::io::Error::other(format!(
            "it is larger than {MAX_FILE} bytes"
        ))));
    }
    let text = std::fs::read_to_string(path).map_err(file)?;
    parse(path, &text)
}

fn parse<C: DeserializeOwned>(path: &Path, text: &str) -> Result<C, ConfigError> {
    let deserializer = toml::Deserializer::parse(text).map_err(|error| ConfigError::Syntax {
        path: path.to_owned(),
        line: line_of(text, error.span()),
        reason: error.message().to_owned(),
    })?;
    serde_path_to_error::deserialize(deserializer).map_err(|error| {
        let key = match error.path().to_string() {
            root if root == "." => "(top level)".to_owned(),
            key => key,
        };
        ConfigError::Key {
            path: path.to_owned(),
            line: line_of(text, error.inner().span()),
            key,
            reason: error.inner().message().to_owned(),
        }
    })
}

fn line_of(text: &str, span: Option<Range<usize>>) -> usize {
    let end = span.map_or(0, |span| span.start.min(text.len()));
    1 + text.as_bytes()[..end].iter().filter(|byte| **byte == b'\n').count()
}

/// Reads a secret from the file that `key` names, without the line break at its end.
///
/// # Errors
/// [`ConfigError::Secret`] when it cannot be read, is empty or too large.
pub fn read_secret(key: &str, path: &Path) -> Result<String, ConfigError> {
    let unusable = |reason: String| ConfigError::Secret {
        key: key.to_owned(),
        path: path.to_owned(),
        reason,
    };
    let size = std::fs::metadata(path).map_err(|e| unusable(e.to_string()))?.len();
    if size > MAX_SECRET {
        return Err(unusable(format!("it is larger than {MAX_SECRET} bytes")));
    }
    let text = std::fs::read_to_string(path).map_err(|e| unusable(e.to_string()))?;
    let secret = text.strip_suffix('\n').unwrap_or(&text);
    let secret = secret.strip_suffix('\r').unwrap_or(secret);
    if secret.is_empty() {
        return Err(unusable("it is empty".to_owned()));
    }
    Ok(secret.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    struct Config {
        core: Core,
        #[serde(default)]
        limits: Vec<Limit>,
    }

    #[derive(Debug, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    struct Limit {
        #[allow(dead_code)]
        packets: u32,
    }

    impl ServiceConfig for Config {
        fn core(&self) -> &Core {
            &self.core
        }

        fn validate(&self) -> Result<(), ConfigError> {
            if self.limits.len() > 1 {
                return Err(ConfigError::invalid("limits", "one is enough"));
            }
            Ok(())
        }
    }

    const GOOD: &str = r#"
[core.identity]
trust_domain = "test"
cert_file = "c"
key_file = "k"
ca_file = "a"

[core.bus]
urls = ["tls://localhost:4222"]
ca_file = "a"
cert_file = "c"
key_file = "k"

[core.grpc]
listen = "127.0.0.1:0"
"#;

    fn error(text: &str) -> String {
        parse::<Config>(Path::new("x.toml"), text)
            .and_then(checked)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn fills_in_what_is_left_out() {
        let config: Config = parse(Path::new("x.toml"), GOOD).unwrap();
        assert_eq!(config.core.grpc.unwrap().max_connections, 1024);
        assert_eq!(config.core.lifecycle.drain_timeout_ms, 10_000);
    }

    #[test]
    fn names_the_key_and_the_line() {
        let unknown = error(&format!("{GOOD}max_conections = 3\n"));
        assert!(
            unknown.contains("GAR-CFG-0003") && unknown.contains("core.grpc.max_conections"),
            "{unknown}"
        );
        assert!(unknown.contains("line 16"), "{unknown}");
        let wrong = error(&GOOD.replace("\"127.0.0.1:0\"", "\"here\""));
        assert!(
            wrong.contains("`core.grpc.listen`") && wrong.contains("line 15"),
            "{wrong}"
        );
        let missing = error(&GOOD.replace("key_file = \"k\"\nca_file = \"a\"\n", "ca_file = \"a\"\n"));
        assert!(
            missing.contains("core.identity") && missing.contains("key_file"),
            "{missing}"
        );
        let nested = error(&format!("{GOOD}\n[[limits]]\npackets = -1\n"));
        assert!(nested.contains("limits[0].packets"), "{nested}");
        let syntax = error("[core\n");
        assert!(syntax.contains("GAR-CFG-0002") && syntax.contains("line 1"), "{syntax}");
        assert!(error("").contains("core"));
    }

    #[test]
    fn checks_values() {
        let domain = error(&GOOD.replace("\"test\"", "\"Not A Domain\""));
        assert!(
            domain.contains("GAR-CFG-0004") && domain.contains("core.identity.trust_domain"),
            "{domain}"
        );
        let ratio = error(&format!("{GOOD}\n[core.telemetry]\nsampling_ratio = 7.0\n"));
        assert!(ratio.contains("core.telemetry.sampling_ratio"), "{ratio}");
        let own = error(&format!("{GOOD}\n[[limits]]\npackets = 1\n[[limits]]\npackets = 2\n"));
        assert!(own.contains("`limits`"), "{own}");
    }

    #[test]
    fn reads_secrets_without_their_line_break() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        std::fs::write(&path, "pass word\r\n").unwrap();
        assert_eq!(read_secret("a.password_file", &path).unwrap(), "pass word");
        std::fs::write(&path, "\n").unwrap();
        let empty = read_secret("a.password_file", &path).unwrap_err().to_string();
        assert!(
            empty.contains("GAR-CFG-0005") && empty.contains("a.password_file"),
            "{empty}"
        );
        assert!(read_secret("a.password_file", &folder.path().join("none")).is_err());
    }
}
