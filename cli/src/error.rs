use std::{path::PathBuf, process::ExitCode};

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// What the exit status says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It was done.
    Done = 0,
    /// It failed.
    Failed = 1,
    /// The arguments cannot be used.
    Usage = 2,
    /// There is no such thing.
    NotFound = 3,
    /// Not logged in, or not allowed.
    Denied = 4,
    /// A service is away.
    Unavailable = 5,
    /// What was verified does not hold.
    Invalid = 6,
    /// The profile cannot be used (`EX_USAGE` of sysexits).
    Configuration = 64,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// A service refused or could not do it.
    #[error("{}", status_text(.0))]
    Status(Box<Status>),
    /// A service could not be reached.
    #[error("GAR-CLI-0001: {service} at {endpoint} cannot be reached: {reason}")]
    Unreachable {
        /// The service.
        service: &'static str,
        /// Where it should be.
        endpoint: String,
        /// Why not.
        reason: String,
    },
    /// Nobody is logged in.
    #[error("GAR-CLI-0002: not logged in")]
    NotLoggedIn,
    /// The configuration file cannot be used.
    #[error("GAR-CLI-0003: {}: {problem}", path.display())]
    Configuration {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A file could not be read or written.
    #[error("GAR-CLI-0004: {what} failed: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// An argument cannot be used.
    #[error("GAR-CLI-0005: {0}")]
    Argument(String),
    /// What was verified does not hold.
    #[error("GAR-CLI-0006: verification failed: {0}")]
    Invalid(String),
    /// What was asserted does not hold.
    #[error("GAR-CLI-0008: {0}")]
    Violated(String),
    /// The broker refused.
    #[error("{0}")]
    Bus(String),
    /// A file of flows cannot be read.
    #[error("{0}")]
    Input(String),
    /// An answer lacks what it must have.
    #[error("GAR-CLI-0007: {0} answered without {1}; it may be of another release")]
    Answer(&'static str, &'static str),
}

impl CliError {
    /// What the exit status says.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Status(status) => match status.code() {
                Code::NotFound => Exit::NotFound,
                Code::Unauthenticated | Code::PermissionDenied => Exit::Denied,
                Code::Unavailable | Code::DeadlineExceeded => Exit::Unavailable,
                Code::InvalidArgument | Code::OutOfRange => Exit::Usage,
                _ => Exit::Failed,
            },
            Self::Unreachable { .. } => Exit::Unavailable,
            Self::NotLoggedIn => Exit::Denied,
            Self::Configuration { .. } => Exit::Configuration,
            Self::Argument(_) => Exit::Usage,
            Self::Invalid(_) => Exit::Invalid,
            Self::Io { .. } | Self::Bus(_) | Self::Input(_) | Self::Answer(..) | Self::Violated(_) => Exit::Failed,
        }
    }

    /// What to do about it, where that is known.
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::NotLoggedIn => Some("run `garrison login`".to_owned()),
            Self::Unreachable { .. } => {
                Some("is the fleet up, and does the profile name the right endpoint?".to_owned())
            }
            Self::Configuration { .. } => {
                Some("the file's form is described in docs/reference/cli-configuration.md".to_owned())
            }
            // iam's own refusals are about what was just entered; the others' are about the session.
            Self::Status(status) if status.code() == Code::Unauthenticated && !from_iam(status) => {
                Some("run `garrison login`".to_owned())
            }
            _ => None,
        }
    }

    /// A file could not be read or written.
    pub fn file(what: &str, path: &std::path::Path, source: std::io::Error) -> Self {
        Self::Io {
            what: format!("{what} {}", path.display()),
            source,
        }
    }
}

impl From<Status> for CliError {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

fn from_iam(status: &Status) -> bool {
    let details = status.get_error_details();
    details
        .error_info()
        .is_some_and(|info| info.reason.starts_with("GAR-IAM-"))
}

fn status_text(status: &Status) -> String {
    let details = status.get_error_details();
    let mut text = String::new();
    if let Some(info) = details.error_info()
        && !status.message().starts_with(&info.reason)
    {
        text.push_str(&info.reason);
        text.push_str(": ");
    }
    text.push_str(status.message());
    for violation in details
        .bad_request()
        .map(|bad| bad.field_violations.as_slice())
        .unwrap_or_default()
    {
        if !status.message().contains(&violation.description) {
            text.push_str(&format!("\n  {}: {}", violation.field, violation.description));
        }
    }
    if text.is_empty() {
        text = status.code().description().to_owned();
    }
    text
}
