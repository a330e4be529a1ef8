//! Opaque page tokens: where the last page ended, and of which list in which tenant.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};

use crate::error::Error;

/// The page size when none is asked for, and the largest.
const SIZE: (i32, i32) = (50, 500);

/// A page that was asked for.
#[derive(Debug)]
pub(super) struct Page {
    /// The key of the last item of the page before; empty for the first page.
    pub(super) after: String,
    size: usize,
    list: [u8; 8],
}

impl Page {
    /// Reads what was asked for. `list` names the list with its tenant: a token is good for that list only.
    pub(super) fn read(size: i32, token: &str, list: &impl std::fmt::Debug) -> Result<Self, Error> {
        if size < 0 {
            return Err(Error::field(
                "page_size",
                format!("{size} is negative; 0 is the default"),
            ));
        }
        let size = if size == 0 { SIZE.0 } else { size.min(SIZE.1) };
        let mut fingerprint = [0; 8];
        fingerprint.copy_from_slice(&Sha256::digest(format!("{list:?}"))[..8]);
        let after = match token {
            "" => String::new(),
            token => decode(token, fingerprint)
                .ok_or_else(|| Error::field("page_token", "not a token of this list; start again without one"))?,
        };
        Ok(Self {
            after,
            size: size as usize,
            list: fingerprint,
        })
    }

    /// How many to ask the store for: one more than fits, to know whether there is another page.
    pub(super) fn limit(&self) -> i64 {
        self.size as i64 + 1
    }

    /// Cuts what the store answered to the page, and gives the token of the next.
    pub(super) fn cut<T>(&self, mut items: Vec<T>, key: impl Fn(&T) -> String) -> (Vec<T>, String) {
        if items.len() <= self.size {
            return (items, String::new());
        }
        items.truncate(self.size);
        let token = items.last().map_or_else(String::new, |last| {
            let mut bytes = self.list.to_vec();
            bytes.extend_from_slice(key(last).as_bytes());
            BASE64_URL_SAFE_NO_PAD.encode(bytes)
        });
        (items, token)
    }
}

fn decode(token: &str, list: [u8; 8]) -> Option<String> {
    if token.len() > 128 {
        return None;
    }
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(token).ok()?;
    let (given, rest) = bytes.split_first_chunk::<8>()?;
    let after = String::from_utf8(rest.to_vec()).ok()?;
    (*given == list && !after.is_empty()).then_some(after)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_token_leads_on_and_only_in_its_own_list() {
        let list = ("acme", "policies");
        let page = Page::read(2, "", &list).unwrap();
        assert_eq!(page.limit(), 3);
        let (items, token) = page.cut(vec!["a", "b", "c"], |i| (*i).to_owned());
        assert_eq!(items, ["a", "b"]);
        assert_eq!(Page::read(2, &token, &list).unwrap().after, "b");
        assert!(Page::read(2, &token, &("other", "policies")).is_err(), "another tenant");
        assert_eq!(page.cut(vec!["a"], |i| (*i).to_owned()).1, "");
        assert!(Page::read(-1, "", &list).is_err());
        assert_eq!(Page::read(100_000, "", &list).unwrap().limit(), 501);
    }

    proptest! {
        #[test]
        fn hostile_tokens_are_refused(token in "\\PC{1,150}") {
            prop_assert!(Page::read(1, &token, &"q").is_err());
        }
    }
}
