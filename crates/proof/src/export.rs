//! A whole log in one file, for verification without a connection.
//!
//! JSON lines. The first is the header, then one line for each entry in order:
//!
//! ```json
//! {"format":"garrison.dev/log-export/v1","checkpoint":"garrison.dev/lab/acme\n2\n…","verifier_key":"garrison.dev/lab/acme+…"}
//! {"index":0,"leaf_hash":"<hex>","body":"{…}","nodes":[]}
//! {"index":1,"leaf_hash":"<hex>","body":"{…}","nodes":["<hex>"]}
//! ```
//!
//! `body` is the text that is hashed, `leaf_hash` is `SHA-256(0x00 || body)`, and `nodes` are the hashes of the
//! perfect subtrees that the entry completes, smallest first. Only the checkpoint is signed; `leaf_hash` and `nodes`
//! are there so that a change is found where it is rather than only at the end. Lines have exactly the form shown, without
//! white space and in this order of fields, so that every byte of the file is accounted for.

use std::io::{BufRead, Read as _, Write};

use serde::{Deserialize, Serialize};

use crate::{
    checkpoint::{Checkpoint, CheckpointError},
    merkle::{self, Hash, Tree},
    note::VerifierKey,
};

/// The form of file that this code reads and writes.
pub const FORMAT: &str = "garrison.dev/log-export/v1";
/// No line is longer, in bytes.
const MAX_LINE: u64 = 8 << 20;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format: String,
    checkpoint: String,
    verifier_key: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    index: u64,
    leaf_hash: String,
    body: String,
    nodes: Vec<String>,
}

/// Why an export is not the log that was signed.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Reading or writing failed.
    #[error("the export could not be read or written")]
    Io(#[from] std::io::Error),
    /// A line cannot be read.
    #[error("line {line}: {reason}")]
    Malformed {
        /// Counts from 1.
        line: u64,
        /// What is wrong.
        reason: String,
    },
    /// The checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The key in the file is not the one that the caller trusts.
    #[error("the export is signed by {found}, not by {expected}")]
    OtherKey {
        /// The key that was expected.
        expected: String,
        /// The key in the file.
        found: String,
    },
    /// An entry is not where it should be.
    #[error("entry {expected} is missing: line {line} holds entry {found}; an entry was removed, added or moved")]
    OutOfOrder {
        /// The line, from 1.
        line: u64,
        /// The entry that belongs there.
        expected: u64,
        /// The entry that is there.
        found: u64,
    },
    /// An entry's body is not what was hashed.
    #[error("entry {index} was changed: its body does not give its hash")]
    Changed {
        /// The entry.
        index: u64,
    },
    /// The entries of a range are not those that were signed.
    #[error("between entry {first} and entry {last} the log was changed: the hashes do not give the signed root")]
    Altered {
        /// First entry of the smallest range that is known to be wrong.
        first: u64,
        /// Last entry of that range.
        last: u64,
    },
    /// Entries are missing at the end.
    #[error("entries {first} to {last} are missing at the end")]
    Cut {
        /// First entry that is missing.
        first: u64,
        /// Last entry that is missing.
        last: u64,
    },
    /// Entries follow that the checkpoint does not cover.
    #[error("entry {index} is more than the checkpoint covers")]
    Extra {
        /// The first entry too many.
        index: u64,
    },
    /// The entries hold, but a hash that helps to find changes does not.
    #[error("the entries hold, but `nodes` of entry {index} was changed")]
    Nodes {
        /// The entry.
        index: u64,
    },
    /// An earlier checkpoint of the same log is not a prefix.
    #[error("the log does not extend the earlier checkpoint of {size} entries: its history was rewritten")]
    Rewritten {
        /// Entries of the earlier checkpoint.
        size: u64,
    },
}

impl ExportError {
    /// The stable code under `docs/errors/`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io(_) => "GAR-PROOF-0006",
            Self::Checkpoint(source) => source.code(),
            _ => "GAR-PROOF-0004",
        }
    }
}

/// What the examiner already has.
#[derive(Debug, Clone, Default)]
pub struct ExportOptions {
    /// The log's key, from another source than the export.
    pub trusted_key: Option<VerifierKey>,
    /// A checkpoint of the same log seen before; the export must extend it.
    pub earlier: Option<Checkpoint>,
}

/// What an export that holds is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportReport {
    /// The signed size and root.
    pub checkpoint: Checkpoint,
    /// The key that signed.
    pub key: VerifierKey,
    /// Whether the key was compared with one that the caller trusts.
    pub key_trusted: bool,
    /// Whether an earlier checkpoint was found to be a prefix.
    pub extends_earlier: bool,
}

/// Writes an export, and checks it while doing so.
#[derive(Debug)]
pub struct ExportWriter<W> {
    out: W,
    tree: Tree,
    checkpoint: Checkpoint,
}

impl<W: Write> ExportWriter<W> {
    /// Begins with a signed checkpoint and the key that signed it.
    ///
    /// # Errors
    /// [`ExportError`] when the checkpoint does not hold or writing fails.
    pub fn new(mut out: W, checkpoint: &str, verifier_key: &str) -> Result<Self, ExportError> {
        let key = VerifierKey::parse(verifier_key).map_err(CheckpointError::Note)?;
        let verified = Checkpoint::verify(checkpoint, &key)?;
        let header = Header {
            format: FORMAT.into(),
            checkpoint: checkpoint.into(),
            verifier_key: key.to_string(),
        };
        write_line(&mut out, &header)?;
        Ok(Self {
            out,
            tree: Tree::new(),
            checkpoint: verified,
        })
    }

    /// Adds the next entry.
    ///
    /// # Errors
    /// [`ExportError`] when it is not the next, its body is no text, or writing fails.
    pub fn entry(&mut self, index: u64, body: &[u8]) -> Result<(), ExportError> {
        let line = self.tree.size() + 2;
        if index != self.tree.size() {
            return Err(ExportError::OutOfOrder {
                line,
                expected: self.tree.size(),
                found: index,
            });
        }
        let text = std::str::from_utf8(body).map_err(|_| ExportError::Malformed {
            line,
            reason: format!("the body of entry {index} is not UTF-8"),
        })?;
        let leaf = merkle::leaf_hash(body);
        let mut nodes = Vec::new();
        self.tree.push(leaf, |node, hash| {
            if node.level > 0 {
                nodes.push(hex::encode(hash));
            }
        });
        let entry = Line {
            index,
            leaf_hash: hex::encode(leaf),
            body: text.to_owned(),
            nodes,
        };
        Ok(write_line(&mut self.out, &entry)?)
    }

    /// Ends the export: the entries must give the checkpoint's root.
    ///
    /// # Errors
    /// [`ExportError`] when they do not.
    pub fn finish(mut self) -> Result<(W, Checkpoint), ExportError> {
        self.out.flush()?;
        close(&self.tree, &self.checkpoint, None)?;
        Ok((self.out, self.checkpoint))
    }
}

fn write_line(out: &mut impl Write, value: &impl Serialize) -> std::io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    out.write_all(b"\n")
}

/// The signed root decides; `suspect` is the smallest range whose stated hash did not fit.
fn close(tree: &Tree, checkpoint: &Checkpoint, suspect: Option<(u64, u64)>) -> Result<(), ExportError> {
    let whole = (0, tree.size().saturating_sub(1));
    if tree.size() < checkpoint.size {
        return Err(match suspect {
            Some((first, last)) => ExportError::Altered { first, last },
            None => ExportError::Cut {
                first: tree.size(),
                last: checkpoint.size - 1,
            },
        });
    }
    if tree.root() != checkpoint.root {
        let (first, last) = suspect.unwrap_or(whole);
        return Err(ExportError::Altered { first, last });
    }
    match suspect {
        Some((_, index)) => Err(ExportError::Nodes { index }),
        None => Ok(()),
    }
}

/// Reads an export to its end, recomputes the root from the bodies and compares it with the signed checkpoint.
///
/// # Errors
/// [`ExportError`] says which entry was changed, removed, added or moved.
pub fn verify_export(mut input: impl BufRead, options: &ExportOptions) -> Result<ExportReport, ExportError> {
    let mut line = 0;
    let mut buffer = Vec::new();
    let header: Header = match next_line(&mut input, &mut buffer, &mut line)? {
        true => parse(&buffer, line)?,
        false => {
            return Err(ExportError::Malformed {
                line: 1,
                reason: "the file is empty".into(),
            });
        }
    };
    if header.format != FORMAT {
        let reason = format!("this is no log export of the form {FORMAT}");
        return Err(ExportError::Malformed { line, reason });
    }
    let key = VerifierKey::parse(&header.verifier_key).map_err(CheckpointError::Note)?;
    if let Some(trusted) = options.trusted_key.as_ref().filter(|trusted| **trusted != key) {
        return Err(ExportError::OtherKey {
            expected: trusted.to_string(),
            found: key.to_string(),
        });
    }
    let checkpoint = Checkpoint::verify(&header.checkpoint, &key)?;

    let mut tree = Tree::new();
    let mut suspect = None;
    let mut earlier_root = None;
    loop {
        if options
            .earlier
            .as_ref()
            .is_some_and(|earlier| earlier.size == tree.size())
        {
            earlier_root = Some(tree.root());
        }
        if !next_line(&mut input, &mut buffer, &mut line)? {
            break;
        }
        let entry: Line = parse(&buffer, line)?;
        let index = tree.size();
        if entry.index != index {
            return Err(ExportError::OutOfOrder {
                line,
                expected: index,
                found: entry.index,
            });
        }
        if index >= checkpoint.size {
            return Err(ExportError::Extra { index });
        }
        let leaf = merkle::leaf_hash(entry.body.as_bytes());
        if hex::encode(leaf) != entry.leaf_hash {
            return Err(ExportError::Changed { index });
        }
        let mut stated = entry.nodes.iter();
        let mut wrong = None;
        tree.push(leaf, |node, hash: Hash| {
            if node.level > 0 && stated.next().is_none_or(|text| *text != hex::encode(hash)) {
                let first = node.index << node.level;
                wrong = wrong.or(Some((first, index)));
            }
        });
        if stated.next().is_some() {
            wrong = wrong.or(Some((index, index)));
        }
        suspect = suspect.or(wrong);
    }
    close(&tree, &checkpoint, suspect)?;
    if let Some(earlier) = &options.earlier
        && (earlier_root != Some(earlier.root) || earlier.origin != checkpoint.origin)
    {
        return Err(ExportError::Rewritten { size: earlier.size });
    }
    Ok(ExportReport {
        checkpoint,
        key,
        key_trusted: options.trusted_key.is_some(),
        extends_earlier: options.earlier.is_some(),
    })
}

fn parse<T: for<'a> Deserialize<'a> + Serialize>(buffer: &[u8], line: u64) -> Result<T, ExportError> {
    let wrong = |reason: String| ExportError::Malformed { line, reason };
    let value: T = serde_json::from_slice(buffer).map_err(|e| wrong(e.to_string()))?;
    if serde_json::to_vec(&value).map_err(|e| wrong(e.to_string()))? != buffer {
        return Err(wrong("it is not in the form that an export has".into()));
    }
    Ok(value)
}

fn next_line(input: &mut impl BufRead, buffer: &mut Vec<u8>, line: &mut u64) -> Result<bool, ExportError> {
    buffer.clear();
    *line += 1;
    let n = input.take(MAX_LINE + 1).read_until(b'\n', buffer)?;
    if n == 0 {
        return Ok(false);
    }
    if buffer.pop() != Some(b'\n') {
        let reason = if n as u64 > MAX_LINE {
            "the line is longer than 8 MiB"
        } else {
            "the last line is cut short"
        };
        return Err(ExportError::Malformed {
            line: *line,
            reason: reason.into(),
        });
    }
    Ok(true)
}

#[cfg(test)]
#[path = "export_tests.rs"]
mod tests;
