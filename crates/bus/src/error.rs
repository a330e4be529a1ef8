use std::path::PathBuf;

/// Something about the connection, the topology or a consumer went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BusError {
    /// A certificate, key or authority file cannot be used.
    #[error("GAR-BUS-0001: cannot use the {what} {}: {reason}", path.display())]
    Identity {
        /// Which of the three files.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A configuration value makes no sense.
    #[error("GAR-BUS-0008: bus configuration: {key}: {reason}")]
    Config {
        /// The key.
        key: &'static str,
        /// What is wrong with its value.
        reason: String,
    },
    /// The broker did not answer.
    #[error("GAR-BUS-0002: the broker is not available while trying to {operation}: {reason}")]
    Unavailable {
        /// What was being done.
        operation: String,
        /// Why it failed.
        reason: String,
    },
    /// The broker answered with an error.
    #[error("GAR-BUS-0003: the broker refused to {operation}: {reason}")]
    Refused {
        /// What was being done.
        operation: String,
        /// The broker's words.
        reason: String,
    },
    /// Bringing the broker to the wanted state would lose data, or cannot be done in place.
    #[error("GAR-BUS-0006: refusing destructive changes: {}", .0.join("; "))]
    Destructive(Vec<String>),
}

/// A message was not stored, or it is unknown whether it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The broker is away, did not acknowledge in time, or has no room now. Publishing the same message again
    /// later is safe and may succeed: its id makes a repeat harmless.
    #[error("GAR-BUS-0002: {subject}: not acknowledged by the broker: {reason}")]
    Unavailable {
        /// Where it was to go.
        subject: String,
        /// Why.
        reason: String,
    },
    /// The broker, or this process, will never take this message as it is.
    #[error("GAR-BUS-0003: {subject}: refused: {reason}")]
    Refused {
        /// Where it was to go.
        subject: String,
        /// Why.
        reason: String,
    },
    /// The message is larger than the broker or the stream takes.
    #[error("GAR-BUS-0004: {subject}: message of {size} bytes is too large: {reason}")]
    TooLarge {
        /// Where it was to go.
        subject: String,
        /// Payload size in bytes.
        size: usize,
        /// The limit that it exceeds.
        reason: String,
    },
}

impl PublishError {
    /// True when the same message may be accepted later; false when it never will be.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}
