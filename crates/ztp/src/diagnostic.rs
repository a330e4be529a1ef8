use std::fmt;

use serde::Serialize;

/// Where something is in a document. Lines and columns count from 1; 0 when unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Position {
    /// The line.
    pub line: u32,
    /// The column, in characters.
    pub column: u32,
}

/// Whether a document can be used in spite of what was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The document is refused.
    Error,
    /// The document is taken; somebody should look.
    Warning,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal),* $(,)?) => {
        /// A stable code; each has a page under `docs/errors/`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code { $($(#[$doc])* $name),* }

        impl Code {
            /// Every code.
            pub const ALL: &'static [Code] = &[$(Code::$name),*];

            /// The code as text, for example `GAR-POLICY-0003`.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$name => concat!("GAR-POLICY-", $code)),* }
            }
        }
    };
}

codes! {
    /// The text is not YAML.
    Syntax = "0001",
    /// A limit on size, depth, aliases or counts was passed.
    Limit = "0002",
    /// A field that the language does not have.
    UnknownField = "0003",
    /// A field that must be there is not.
    MissingField = "0004",
    /// A value of another type than the field's.
    WrongType = "0005",
    /// A value outside what the field takes.
    BadValue = "0006",
    /// Not an address or network.
    BadAddress = "0007",
    /// The same key or name twice.
    Duplicate = "0008",
    /// A group that the document does not define.
    UnknownGroup = "0009",
    /// Fields that exclude each other, or a structure that says nothing.
    Contradiction = "0010",
    /// Another kind or API version.
    UnknownKind = "0011",
    /// A deny rule that flows cannot be held against.
    Undecidable = "0012",
    /// Rules that overlap so much that verdicts would need too much memory.
    TooComplex = "0013",
    /// A rule that never decides anything.
    Unreachable = "0101",
    /// A rule that another rule already covers.
    Redundant = "0102",
    /// A rule that allows everything from or to anywhere.
    OverWide = "0103",
    /// A group that nothing uses.
    UnusedGroup = "0104",
    /// Nobody, or no reason, stands behind an enforced policy.
    Unowned = "0105",
    /// Something that flows cannot be held against, because it has no addresses.
    NoAddresses = "0106",
    /// All of one address family and nothing of the other.
    OneFamily = "0107",
    /// A rule that never decides anything, because earlier tiers do.
    Shadowed = "0108",
    /// Rules of two policies that say opposite things of the same connections.
    Conflicting = "0109",
    /// A file that is not written as the formatter writes it.
    Unformatted = "0110",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// One thing wrong with a document, or worth saying about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// Whether the document is refused for it.
    pub level: Level,
    /// The stable code.
    pub code: Code,
    /// The field, for example `spec.ingress[0].ports[1].port`; empty for the document as a whole.
    pub field: String,
    /// Where it is.
    #[serde(flatten)]
    pub position: Position,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Error => "error",
            Level::Warning => "warning",
        };
        let Position { line, column } = self.position;
        write!(f, "{line}:{column}: {level} {}: ", self.code)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        write!(f, "{}. {}", self.message, self.remedy)
    }
}

/// The candidate that `given` was probably meant to be.
pub(crate) fn did_you_mean<'c>(given: &str, candidates: &[&'c str]) -> Option<&'c str> {
    if given.chars().count() > 64 {
        return None;
    }
    candidates
        .iter()
        .map(|c| (distance(&given.to_lowercase(), &c.to_lowercase()), *c))
        .filter(|(distance, c)| *distance <= (c.chars().count() / 3).max(1))
        .min()
        .map(|(_, c)| c)
}

/// Optimal string alignment distance: insertions, deletions, replacements and swaps of neighbours.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let replace = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replace.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guesses_only_what_is_close() {
        let fields = ["ingress", "egress", "subject", "mode"];
        assert_eq!(did_you_mean("ingres", &fields), Some("ingress"));
        assert_eq!(did_you_mean("subjcet", &fields), Some("subject"));
        assert_eq!(did_you_mean("Mode", &fields), Some("mode"));
        assert_eq!(did_you_mean("banana", &fields), None);
    }

    #[test]
    fn codes_are_unique() {
        let mut texts: Vec<_> = Code::ALL.iter().map(|c| c.as_str()).collect();
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), Code::ALL.len());
    }

    #[test]
    fn every_code_has_its_page() {
        let pages = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/errors");
        for code in Code::ALL {
            let page = pages.join(format!("{code}.md"));
            let text = std::fs::read_to_string(&page).unwrap_or_default();
            assert!(
                text.starts_with(&format!("# {code}: ")),
                "{} is missing",
                page.display()
            );
        }
    }
}
