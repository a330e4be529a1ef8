//! A short text that is kept where it stands. Windows hold a Community ID for each attempt, and one is made for nearly every
//! flow: taking memory for it each time would cost as much as the rest of the window.

use std::ops::Deref;

/// Octets that fit in: a Community ID of version 1 has 30.
const INSIDE: usize = 30;

/// A text, inside while it is short.
#[derive(Clone, PartialEq, Eq)]
pub enum Brief {
    /// So many octets.
    Inside(u8, [u8; INSIDE]),
    /// A longer one.
    Outside(Box<str>),
}

impl From<&str> for Brief {
    fn from(text: &str) -> Self {
        let mut octets = [0; INSIDE];
        match (octets.get_mut(..text.len()), u8::try_from(text.len())) {
            (Some(place), Ok(length)) => {
                place.copy_from_slice(text.as_bytes());
                Self::Inside(length, octets)
            }
            _ => Self::Outside(text.into()),
        }
    }
}

impl Deref for Brief {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Inside(length, octets) => {
                let octets = octets.get(..usize::from(*length)).unwrap_or_default();
                // It was made of a text.
                std::str::from_utf8(octets).unwrap_or_default()
            }
            Self::Outside(text) => text,
        }
    }
}

impl std::fmt::Debug for Brief {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_goes_in_comes_out(text in ".{0,40}", other in ".{0,40}") {
            let brief = Brief::from(text.as_str());
            prop_assert_eq!(&*brief, text.as_str());
            prop_assert_eq!(brief == Brief::from(other.as_str()), text == other);
        }
    }
}
