//! Opaque page tokens: where the last page ended, and for which query.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use sha2::{Digest as _, Sha256};
use tonic::Status;
use uuid::Uuid;

use super::status;
use crate::error::AppError;

/// The page size when none is asked for, and the largest.
const SIZE: (i32, i32) = (50, 500);

/// A page that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Page {
    /// The last item of the page before.
    pub(super) after: Option<(DateTime<Utc>, Uuid)>,
    size: i64,
    query: [u8; 8],
}

impl Page {
    /// Reads what was asked for. `query` is everything else that the list depends on: a token is good for the
    /// query it came from only.
    #[allow(clippy::result_large_err)]
    pub(super) fn read(size: i32, token: &str, query: &impl std::fmt::Debug) -> Result<Self, Status> {
        if size < 0 {
            return Err(status(AppError::field("page_size", format!("{size} is negative"))));
        }
        let size = if size == 0 { SIZE.0 } else { size.min(SIZE.1) };
        let mut fingerprint = [0; 8];
        let hash = Sha256::digest(format!("{query:?}"));
        fingerprint.copy_from_slice(&hash[..8]);
        let after = match token {
            "" => None,
            token => Some(decode(token, fingerprint).ok_or_else(|| {
                status(AppError::field(
                    "page_token",
                    "not a token of this list with these filters; start again without one",
                ))
            })?),
        };
        Ok(Self {
            after,
            size: i64::from(size),
            query: fingerprint,
        })
    }

    /// How many to ask the store for: one more than fits, to know whether there is another page.
    pub(super) fn limit(&self) -> i64 {
        self.size + 1
    }

    /// Cuts what the store answered to the page, and gives the token of the next.
    pub(super) fn cut<T>(&self, mut items: Vec<T>, key: impl Fn(&T) -> (DateTime<Utc>, Uuid)) -> (Vec<T>, String) {
        let size = usize::try_from(self.size).unwrap_or(usize::MAX);
        if items.len() <= size {
            return (items, String::new());
        }
        items.truncate(size);
        let token = items.last().map_or_else(String::new, |last| {
            let (time, id) = key(last);
            let mut bytes = self.query.to_vec();
            bytes.extend_from_slice(&time.timestamp_micros().to_be_bytes());
            bytes.extend_from_slice(id.as_bytes());
            BASE64_URL_SAFE_NO_PAD.encode(bytes)
        });
        (items, token)
    }
}

fn decode(token: &str, query: [u8; 8]) -> Option<(DateTime<Utc>, Uuid)> {
    if token.len() > 64 {
        return None;
    }
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(token).ok()?;
    let (given, rest) = bytes.split_first_chunk::<8>()?;
    let (time, id) = rest.split_first_chunk::<8>()?;
    let id = Uuid::from_slice(id).ok()?;
    let time = DateTime::from_timestamp_micros(i64::from_be_bytes(*time))?;
    (*given == query).then_some((time, id))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_token_leads_on_and_only_in_its_own_list() {
        let page = Page::read(2, "", &"filter").unwrap();
        let time = DateTime::from_timestamp_micros(1_700_000_000_123_456).unwrap();
        let items: Vec<u128> = vec![1, 2, 3];
        let (items, token) = page.cut(items, |i| (time, Uuid::from_u128(*i)));
        assert_eq!(items, [1, 2]);
        let next = Page::read(2, &token, &"filter").unwrap();
        assert_eq!(next.after, Some((time, Uuid::from_u128(2))));
        assert!(Page::read(2, &token, &"other").is_err());
        assert_eq!(next.cut(vec![3u128], |i| (time, Uuid::from_u128(*i))).1, "");
        assert!(Page::read(-1, "", &"filter").is_err());
        assert_eq!(Page::read(100_000, "", &"filter").unwrap().limit(), 501);
    }

    proptest! {
        #[test]
        fn hostile_tokens_are_refused(token in "\\PC{1,80}") {
            prop_assert!(Page::read(1, &token, &"q").is_err());
        }
    }
}
