//! From policies to what enforcement points understand.
//!
//! Output is never wider than the policies. What a target cannot say is left out of what it allows and named
//! as a [`Gap`].

mod kubernetes;
mod nftables;

pub use kubernetes::kubernetes;
pub use nftables::{TABLE, nftables};

/// A file of compiler output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompiledFile {
    /// A relative path.
    pub path: String,
    /// The content.
    pub content: String,
}

/// Something that the target cannot express.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gap {
    /// `policy` or `policy/rule`.
    pub rule: String,
    /// What is missing from the output, and why.
    pub reason: String,
}

/// What a compiler made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    /// Files, in the order of their paths.
    pub files: Vec<CompiledFile>,
    /// What they leave out.
    pub gaps: Vec<Gap>,
}

impl Compiled {
    fn gap(&mut self, rule: impl Into<String>, reason: impl Into<String>) {
        let gap = Gap {
            rule: rule.into(),
            reason: reason.into(),
        };
        if !self.gaps.contains(&gap) {
            self.gaps.push(gap);
        }
    }
}
