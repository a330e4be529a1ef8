//! Offline verification: everything an outsider needs in order to check Garrison's evidence and audit log
//! without asking Garrison.
//!
//! | module | what | source |
//! |---|---|---|
//! | [`merkle`] | hashes, inclusion and consistency proofs of an append-only log | RFC 9162 §2.1 |
//! | [`note`] | signed notes and their Ed25519 keys | C2SP signed-note |
//! | [`checkpoint`] | the signed statement "this log has this size and this root" | C2SP tlog-checkpoint |
//! | [`export`] | a whole log in one file of JSON lines | `docs/formats/log-export.md` |
//! | [`custody`] | the hash-chained record of who held a bundle | `docs/formats/evidence-bundle.md` |
//! | [`bundle`] | sealed evidence bundles: writing, reading, verifying | `docs/formats/evidence-bundle.md` |
//!
//! The crate reads hostile input: every length is bounded before memory is taken, nothing is written to disk
//! and nothing is fetched. It has no clock, no runtime and no database.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod bundle;
pub mod checkpoint;
pub mod custody;
pub mod export;
pub mod json;
pub mod key;
pub mod merkle;
pub mod note;
pub mod tar;

pub use bundle::{BundleError, BundleReport, verify_bundle};
pub use checkpoint::{Checkpoint, CheckpointError};
pub use export::{ExportError, ExportOptions, ExportReport, verify_export};
pub use key::{KeyError, PublicKey, SigningKey};
pub use merkle::{Hash, ProofError};
pub use note::{NoteError, SignedNote, VerifierKey};

/// SHA-256 of some bytes.
pub fn sha256(data: &[u8]) -> Hash {
    let mut hash = [0; 32];
    hash.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, data).as_ref());
    hash
}
