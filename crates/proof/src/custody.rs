//! The chain of custody of a bundle: each entry holds the hash of the one before.

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::json;

/// What the first entry has in place of a predecessor's hash.
pub const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// No entry is longer, in bytes.
const MAX_LINE: usize = 64 << 10;

/// One thing that happened to a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CustodyEntry {
    /// Counts from 0 in each bundle.
    pub sequence: u64,
    /// RFC 3339, UTC.
    pub time: String,
    /// `users/{id}` or `services/{name}`.
    pub actor: String,
    /// `created`, `gathered`, `sealed`, `downloaded`, `failed`.
    pub action: String,
    /// In words.
    pub detail: String,
    /// Hash of the entry before, hexadecimal; [`GENESIS`] in the first.
    pub previous: String,
    /// SHA-256 over the canonical JSON of all other fields, hexadecimal.
    pub hash: String,
}

impl CustodyEntry {
    /// Makes the entry that follows `previous`.
    pub fn following(previous: Option<&Self>, time: &str, actor: &str, action: &str, detail: &str) -> Self {
        let mut entry = Self {
            sequence: previous.map_or(0, |p| p.sequence + 1),
            time: time.to_owned(),
            actor: actor.to_owned(),
            action: action.to_owned(),
            detail: detail.to_owned(),
            previous: previous.map_or_else(|| GENESIS.to_owned(), |p| p.hash.clone()),
            hash: String::new(),
        };
        entry.hash = entry.compute_hash();
        entry
    }

    /// The hash that the entry should have.
    pub fn compute_hash(&self) -> String {
        hex::encode(crate::sha256(&json::canonical(&json!({
            "sequence": self.sequence,
            "time": self.time,
            "actor": self.actor,
            "action": self.action,
            "detail": self.detail,
            "previous": self.previous,
        }))))
    }
}

/// The chain does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CustodyError {
    /// A line is no entry.
    #[error("custody entry {0} cannot be read")]
    Malformed(u64),
    /// An entry's hash does not fit its content.
    #[error("custody entry {0} was changed: its hash does not fit")]
    Changed(u64),
    /// An entry does not follow the one before.
    #[error("custody entry {0} does not follow the one before: an entry was removed, added or moved")]
    Broken(u64),
}

/// Checks a chain from its first entry on.
///
/// # Errors
/// [`CustodyError`] names the first entry that is wrong.
pub fn verify_chain<'a>(entries: impl IntoIterator<Item = &'a CustodyEntry>) -> Result<Option<String>, CustodyError> {
    let mut head: Option<String> = None;
    for (at, entry) in (0u64..).zip(entries) {
        if entry.sequence != at || entry.previous != head.as_deref().unwrap_or(GENESIS) {
            return Err(CustodyError::Broken(at));
        }
        if entry.hash != entry.compute_hash() {
            return Err(CustodyError::Changed(at));
        }
        head = Some(entry.hash.clone());
    }
    Ok(head)
}

/// Reads JSON lines, one entry each.
///
/// # Errors
/// [`CustodyError::Malformed`].
pub fn parse_lines(text: &[u8]) -> Result<Vec<CustodyEntry>, CustodyError> {
    text.split(|b| *b == b'\n')
        .filter(|line| !line.is_empty())
        .zip(0u64..)
        .map(|(line, at)| {
            if line.len() > MAX_LINE {
                return Err(CustodyError::Malformed(at));
            }
            serde_json::from_slice(line).map_err(|_| CustodyError::Malformed(at))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain() -> Vec<CustodyEntry> {
        let mut entries: Vec<CustodyEntry> = Vec::new();
        for action in ["created", "gathered", "sealed", "downloaded"] {
            let next = CustodyEntry::following(entries.last(), "2026-01-01T00:00:00Z", "users/1", action, "");
            entries.push(next);
        }
        entries
    }

    #[test]
    fn finds_what_was_changed_removed_or_moved() {
        let good = chain();
        assert_eq!(verify_chain(&good), Ok(Some(good[3].hash.clone())));

        let mut changed = good.clone();
        changed[1].actor = "users/2".into();
        assert_eq!(verify_chain(&changed), Err(CustodyError::Changed(1)));
        // Even with its own hash made to fit, the next entry tells.
        changed[1].hash = changed[1].compute_hash();
        assert_eq!(verify_chain(&changed), Err(CustodyError::Broken(2)));

        let mut removed = good.clone();
        removed.remove(1);
        assert_eq!(verify_chain(&removed), Err(CustodyError::Broken(1)));

        let mut moved = good;
        moved.swap(1, 2);
        assert_eq!(verify_chain(&moved), Err(CustodyError::Broken(1)));
    }
}
