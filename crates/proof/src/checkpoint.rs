//! Checkpoints: a log's signed size and root, after C2SP `tlog-checkpoint`.

use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::{
    key::SigningKey,
    merkle::{self, Hash, ProofError},
    note::{self, NoteError, SignedNote, VerifierKey},
};

/// A checkpoint could not be read or does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// The signed note around it.
    #[error("the checkpoint cannot be trusted: {0}")]
    Note(#[from] NoteError),
    /// The note's text is no checkpoint.
    #[error("the signed text is no checkpoint: {0}")]
    Body(&'static str),
    /// The checkpoint is of another log.
    #[error("the checkpoint is of the log {found}, not of {expected}")]
    Origin {
        /// The log that was meant.
        expected: String,
        /// The log that the checkpoint names.
        found: String,
    },
}

impl CheckpointError {
    /// The stable code under `docs/errors/`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Note(source) => source.code(),
            Self::Body(_) | Self::Origin { .. } => "GAR-PROOF-0002",
        }
    }
}

/// A log's size and root at some time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Which log: `garrison.dev/<trust domain>/<tenant>`. Also the name of the key that signs.
    pub origin: String,
    /// Number of entries.
    pub size: u64,
    /// Root hash over them.
    pub root: Hash,
    /// Further lines, none of them empty.
    pub extensions: Vec<String>,
}

impl Checkpoint {
    /// The text that is signed.
    pub fn body(&self) -> String {
        let mut body = format!("{}\n{}\n{}\n", self.origin, self.size, STANDARD.encode(self.root));
        for line in &self.extensions {
            body.push_str(line);
            body.push('\n');
        }
        body
    }

    /// Signs it under the origin's name.
    ///
    /// # Errors
    /// [`CheckpointError::Note`] when the origin cannot name a key.
    pub fn sign(&self, key: &SigningKey) -> Result<String, CheckpointError> {
        Ok(note::sign(&self.body(), &self.origin, key)?)
    }

    /// Reads a signed checkpoint and checks its signature and that the signer is the log it names.
    ///
    /// # Errors
    /// [`CheckpointError`].
    pub fn verify(note: &str, key: &VerifierKey) -> Result<Self, CheckpointError> {
        let note = SignedNote::parse(note)?;
        let checkpoint = Self::parse_body(note.verify(key)?)?;
        if checkpoint.origin != key.name() {
            return Err(CheckpointError::Origin {
                expected: key.name().to_owned(),
                found: checkpoint.origin,
            });
        }
        Ok(checkpoint)
    }

    /// Reads the text of a checkpoint without its signatures.
    ///
    /// # Errors
    /// [`CheckpointError::Body`].
    pub fn parse_body(body: &str) -> Result<Self, CheckpointError> {
        let body = body
            .strip_suffix('\n')
            .ok_or(CheckpointError::Body("it does not end in a newline"))?;
        let mut lines = body.split('\n');
        let origin = lines
            .next()
            .filter(|l| !l.is_empty())
            .ok_or(CheckpointError::Body("the origin is empty"))?;
        let size = lines.next().ok_or(CheckpointError::Body("the tree size is missing"))?;
        let canonical = size == "0" || (size.bytes().all(|b| b.is_ascii_digit()) && !size.starts_with('0'));
        let size = size
            .parse()
            .ok()
            .filter(|_| canonical)
            .ok_or(CheckpointError::Body("the tree size is no number"))?;
        let root = lines
            .next()
            .and_then(|line| STANDARD.decode(line).ok())
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or(CheckpointError::Body("the root is not 32 bytes of base64"))?;
        let extensions: Vec<String> = lines.map(str::to_owned).collect();
        if extensions.iter().any(String::is_empty) {
            return Err(CheckpointError::Body("an extension line is empty"));
        }
        Ok(Self {
            origin: origin.to_owned(),
            size,
            root,
            extensions,
        })
    }

    /// Checks that `newer` only appended to this one.
    ///
    /// # Errors
    /// [`ProofError`].
    pub fn verify_extended_by(&self, newer: &Self, proof: &[Hash]) -> Result<(), ProofError> {
        merkle::verify_consistency(self.size, &self.root, newer.size, &newer.root, proof)
    }

    /// Checks that an entry's body is in the log at this index.
    ///
    /// # Errors
    /// [`ProofError`].
    pub fn verify_entry(&self, index: u64, body: &[u8], proof: &[Hash]) -> Result<(), ProofError> {
        merkle::verify_inclusion(&merkle::leaf_hash(body), index, self.size, proof, &self.root)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn signs_and_verifies_and_knows_its_log() {
        let key = SigningKey::from_pkcs8_pem(&SigningKey::generate_pkcs8_pem().unwrap()).unwrap();
        let checkpoint = Checkpoint {
            origin: "garrison.dev/lab/acme".into(),
            size: 7,
            root: [9; 32],
            extensions: vec![],
        };
        let note = checkpoint.sign(&key).unwrap();
        let verifier = VerifierKey::new("garrison.dev/lab/acme", key.public()).unwrap();
        assert_eq!(Checkpoint::verify(&note, &verifier), Ok(checkpoint.clone()));

        let other = VerifierKey::new("garrison.dev/lab/other", key.public()).unwrap();
        assert!(Checkpoint::verify(&note, &other).is_err());
        // The right key that signed the text of another log.
        let moved = note::sign(&checkpoint.body(), "garrison.dev/lab/other", &key).unwrap();
        assert!(matches!(
            Checkpoint::verify(&moved, &other),
            Err(CheckpointError::Origin { .. })
        ));
    }

    #[test]
    fn refuses_bodies_that_could_be_read_twice() {
        let root = STANDARD.encode([0; 32]);
        for bad in [
            String::new(),
            "a\n1\n".to_owned(),
            format!("\n1\n{root}\n"),
            format!("a\n01\n{root}\n"),
            format!("a\n+1\n{root}\n"),
            format!("a\n-1\n{root}\n"),
            format!("a\n1\n{root}"),
            format!("a\n1\n{root}\n\n"),
            format!("a\n18446744073709551616\n{root}\n"),
            "a\n1\nAAAA\n".to_owned(),
        ] {
            assert!(Checkpoint::parse_body(&bad).is_err(), "{bad:?} was taken");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_was_written(origin in "[a-z./]{1,40}", size in any::<u64>(), root in any::<[u8; 32]>(),
                                            extensions in proptest::collection::vec("[a-z ]{1,20}", 0..3)) {
            let checkpoint = Checkpoint { origin, size, root, extensions };
            prop_assert_eq!(Checkpoint::parse_body(&checkpoint.body()), Ok(checkpoint));
        }

        #[test]
        fn no_text_panics(text in "(?s).{0,200}") {
            let _ = Checkpoint::parse_body(&text);
        }
    }
}
