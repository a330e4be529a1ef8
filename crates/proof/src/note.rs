//! Signed notes: a text with signatures below it, after C2SP `signed-note`.
//!
//! ```text
//! <text, ending in a newline>
//!
//! — <key name> <base64(key hash, 4 bytes || signature)>
//! ```

use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::key::{PublicKey, SigningKey};

/// Signature algorithm byte of Ed25519.
const ED25519: u8 = 1;
/// No note of a log is larger.
const MAX_NOTE: usize = 1 << 20;
const MAX_SIGNATURES: usize = 100;
const MAX_NAME: usize = 255;

/// A note or its key could not be read, or no signature holds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// The text is no signed note.
    #[error("this is no signed note: {0}")]
    Malformed(&'static str),
    /// The text is no verifier key.
    #[error("this is no Ed25519 verifier key of the form name+hash+base64: {0}")]
    Key(&'static str),
    /// No line is signed by the key.
    #[error("the note is not signed by {0}")]
    NotSigned(String),
    /// The key's signature is wrong.
    #[error("the signature by {0} does not fit the note: the text or the signature was changed")]
    BadSignature(String),
}

impl NoteError {
    /// The stable code under `docs/errors/`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Key(_) => "GAR-PROOF-0001",
            Self::Malformed(_) | Self::NotSigned(_) | Self::BadSignature(_) => "GAR-PROOF-0002",
        }
    }
}

/// A public key with the name that its signatures carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifierKey {
    name: String,
    key: PublicKey,
}

impl VerifierKey {
    /// Names a key.
    ///
    /// # Errors
    /// [`NoteError::Key`] when the name is empty, too long or holds white space or a plus sign.
    pub fn new(name: &str, key: PublicKey) -> Result<Self, NoteError> {
        if !valid_name(name) {
            return Err(NoteError::Key(
                "the name is empty, too long, or has white space or a plus sign",
            ));
        }
        Ok(Self {
            name: name.to_owned(),
            key,
        })
    }

    /// Reads the text form, `name+hash+base64`.
    ///
    /// # Errors
    /// [`NoteError::Key`].
    pub fn parse(text: &str) -> Result<Self, NoteError> {
        let mut parts = text.trim_end_matches('\n').splitn(3, '+');
        let (Some(name), Some(hash), Some(data)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(NoteError::Key("it has not three parts"));
        };
        if data.len() > 256 {
            return Err(NoteError::Key("the key is too long"));
        }
        let data = STANDARD
            .decode(data)
            .map_err(|_| NoteError::Key("the key is not base64"))?;
        let Some((&ED25519, key)) = data.split_first() else {
            return Err(NoteError::Key("the algorithm is not Ed25519"));
        };
        let key = PublicKey(key.try_into().map_err(|_| NoteError::Key("the key is not 32 bytes"))?);
        let verifier = Self::new(name, key)?;
        if hash != hex::encode(verifier.hash()) {
            return Err(NoteError::Key("the hash does not fit the key"));
        }
        Ok(verifier)
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The key.
    pub fn public(&self) -> &PublicKey {
        &self.key
    }

    /// `SHA-256(name || "\n" || 0x01 || key)[..4]`.
    fn hash(&self) -> [u8; 4] {
        let all = crate::sha256(&[self.name.as_bytes(), b"\n", &[ED25519], &self.key.0].concat());
        [all[0], all[1], all[2], all[3]]
    }
}

impl std::fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let data = [&[ED25519][..], &self.key.0].concat();
        write!(
            f,
            "{}+{}+{}",
            self.name,
            hex::encode(self.hash()),
            STANDARD.encode(data)
        )
    }
}

fn valid_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_NAME
        && !name.contains(|c: char| c.is_whitespace() || c.is_control() || c == '+')
}

/// Signs a text, which must end in a newline.
///
/// # Errors
/// [`NoteError`] when the text or the name cannot be in a note.
pub fn sign(text: &str, name: &str, key: &SigningKey) -> Result<String, NoteError> {
    let verifier = VerifierKey::new(name, key.public())?;
    check_text(text)?;
    let signature = [&verifier.hash()[..], &key.sign(text.as_bytes())].concat();
    Ok(format!("{text}\n\u{2014} {name} {}\n", STANDARD.encode(signature)))
}

fn check_text(text: &str) -> Result<(), NoteError> {
    if !text.ends_with('\n') {
        return Err(NoteError::Malformed("the text does not end in a newline"));
    }
    if text.len() > MAX_NOTE {
        return Err(NoteError::Malformed("it is larger than 1 MiB"));
    }
    if text.chars().any(|c| c < ' ' && c != '\n') {
        return Err(NoteError::Malformed("the text holds a control character"));
    }
    Ok(())
}

/// A note that was read; nothing about it is verified yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedNote {
    text: String,
    signatures: Vec<(String, Vec<u8>)>,
}

impl SignedNote {
    /// Reads a note.
    ///
    /// # Errors
    /// [`NoteError::Malformed`].
    pub fn parse(note: &str) -> Result<Self, NoteError> {
        if note.len() > MAX_NOTE {
            return Err(NoteError::Malformed("it is larger than 1 MiB"));
        }
        let split = note
            .rfind("\n\n")
            .ok_or(NoteError::Malformed("no empty line ends its text"))?;
        let text = &note[..=split];
        check_text(text)?;
        let block = note[split + 2..].strip_suffix('\n').ok_or(NoteError::Malformed(
            "the last signature line does not end in a newline",
        ))?;
        let mut signatures = Vec::new();
        for line in block.split('\n') {
            if signatures.len() == MAX_SIGNATURES {
                return Err(NoteError::Malformed("it has more than 100 signatures"));
            }
            let (name, data) = line
                .strip_prefix("\u{2014} ")
                .and_then(|rest| rest.split_once(' '))
                .ok_or(NoteError::Malformed("a signature line is not \"— name base64\""))?;
            let data = STANDARD
                .decode(data)
                .map_err(|_| NoteError::Malformed("a signature is not base64"))?;
            if !valid_name(name) || data.len() < 5 {
                return Err(NoteError::Malformed("a signature line is not \"— name base64\""));
            }
            signatures.push((name.to_owned(), data));
        }
        Ok(Self {
            text: text.to_owned(),
            signatures,
        })
    }

    /// The text, once the key's signature is found to hold. Signatures by others are ignored.
    ///
    /// # Errors
    /// [`NoteError::NotSigned`] or [`NoteError::BadSignature`].
    pub fn verify(&self, key: &VerifierKey) -> Result<&str, NoteError> {
        let hash = key.hash();
        let mut found = false;
        for (name, data) in &self.signatures {
            if *name != key.name || data[..4] != hash {
                continue;
            }
            found = true;
            if !key.key.verify(self.text.as_bytes(), &data[4..]) {
                return Err(NoteError::BadSignature(key.name.clone()));
            }
        }
        if found {
            Ok(&self.text)
        } else {
            Err(NoteError::NotSigned(key.name.clone()))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn verifies_the_example_of_the_go_reference_implementation() {
        // golang.org/x/mod/sumdb/note, package documentation.
        let key = VerifierKey::parse("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW").unwrap();
        let note = "If you think cryptography is the answer to your problem,\n\
                    then you don't know what your problem is.\n\
                    \n\
                    \u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";
        let text = SignedNote::parse(note).unwrap().verify(&key).unwrap().to_owned();
        assert!(text.ends_with("problem is.\n"));
        assert_eq!(
            key.to_string(),
            "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
        );
    }

    fn key() -> SigningKey {
        SigningKey::from_pkcs8_pem(&SigningKey::generate_pkcs8_pem().unwrap()).unwrap()
    }

    #[test]
    fn another_key_of_the_same_name_is_not_the_signer() {
        let (ours, theirs) = (key(), key());
        let note = SignedNote::parse(&sign("text\n", "log", &ours).unwrap()).unwrap();
        let verifier = |k: &SigningKey| VerifierKey::new("log", k.public()).unwrap();
        assert_eq!(note.verify(&verifier(&ours)), Ok("text\n"));
        assert_eq!(note.verify(&verifier(&theirs)), Err(NoteError::NotSigned("log".into())));
    }

    proptest! {
        #[test]
        fn any_flipped_byte_is_found(at in any::<prop::sample::Index>(), mask in 1u8..=255) {
            let signer = key();
            let verifier = VerifierKey::new("log", signer.public()).unwrap();
            let mut bytes = sign("garrison.dev/test\n12\nAAAA\n", "log", &signer).unwrap().into_bytes();
            let at = at.index(bytes.len());
            bytes[at] ^= mask;
            let holds = String::from_utf8(bytes).ok()
                .and_then(|note| SignedNote::parse(&note).ok())
                .is_some_and(|note| note.verify(&verifier).is_ok());
            prop_assert!(!holds);
        }

        #[test]
        fn no_text_panics(text in "(?s).{0,200}") {
            let _ = SignedNote::parse(&text);
            let _ = SignedNote::parse(&format!("{text}\n\n\u{2014} {text}\n"));
            let _ = VerifierKey::parse(&text);
        }
    }
}
