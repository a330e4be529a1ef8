//! TAXII 2.1: what to ask a server for, and what its answers mean. Asking is left to the caller.

use serde::Deserialize;
use serde_json::Value;

use super::{
    FeedError, Limits, Report, Sink, Stix,
    json::{self, each_object},
};
use crate::indicator::Indicator;

/// The media type of requests and answers.
pub const MEDIA_TYPE: &str = "application/taxii+json;version=2.1";

/// The header that says when the last object of an answer was added to the collection.
pub const ADDED_LAST: &str = "x-taxii-date-added-last";

const FORMAT: &str = "TAXII 2.1";

/// A collection of an API root.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Collection {
    /// Its id.
    pub id: String,
    /// Its title.
    #[serde(default)]
    pub title: String,
    /// A name that may stand for the id.
    #[serde(default)]
    pub alias: String,
    /// The caller may read it.
    #[serde(default)]
    pub can_read: bool,
}

/// Where the collections of an API root are listed. `root` ends with a slash or not.
pub fn collections_path(root: &str) -> String {
    format!("{}/collections/", root.trim_end_matches('/'))
}

/// Finds a collection by its id, alias or title in what a server lists.
///
/// # Errors
/// [`FeedError::Format`] when the answer is none, the collection is not in it, or may not be read.
pub fn find_collection(answer: &[u8], wanted: &str) -> Result<Collection, FeedError> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        collections: Vec<Collection>,
    }
    let answer: Answer = serde_json::from_slice(answer).map_err(|e| json::error(FORMAT, &e))?;
    let wrong = |what: String| FeedError::Format { format: FORMAT, what };
    let is_it = |c: &&Collection| [&c.id, &c.alias, &c.title].into_iter().any(|name| name == wanted);
    match answer.collections.iter().find(is_it) {
        Some(collection) if collection.can_read => Ok(collection.clone()),
        Some(collection) => Err(wrong(format!(
            "the server does not let us read collection {}",
            collection.id
        ))),
        None => {
            let names: Vec<&str> = answer.collections.iter().take(20).map(|c| c.title.as_str()).collect();
            Err(wrong(format!(
                "the server has no collection {wanted:?}; it lists: {}",
                names.join(", ")
            )))
        }
    }
}

/// The path and query of the next page of a collection's indicators and what they are related to.
pub fn objects_path(root: &str, collection: &str, page: u32, added_after: Option<&str>, next: Option<&str>) -> String {
    let mut path = format!(
        "{}/collections/{}/objects/?limit={page}",
        root.trim_end_matches('/'),
        encode(collection)
    );
    for (key, value) in [("added_after", added_after), ("next", next)] {
        if let Some(value) = value {
            path += &format!("&{key}={}", encode(value));
        }
    }
    path
}

/// How a server's answer goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// There is more to ask for.
    pub more: bool,
    /// What to ask with; without it, the time of the last object.
    pub next: Option<String>,
    /// Objects in it.
    pub objects: u64,
    /// Ids of the indicators in it: what it says replaces what was said of them.
    pub indicators: Vec<String>,
}

/// Looks through a page of objects.
///
/// # Errors
/// [`FeedError::Format`] when it is none.
pub fn page(answer: &[u8]) -> Result<Page, FeedError> {
    let mut page = Page::default();
    let neighbours = each_object(answer, |number, object| {
        page.objects = number;
        if object.get("type").and_then(Value::as_str) == Some("indicator") {
            page.indicators
                .extend(object.get("id").and_then(Value::as_str).map(str::to_owned));
        }
    })
    .map_err(|e| json::error(FORMAT, &e))?;
    page.more = neighbours.more;
    page.next = neighbours.next;
    Ok(page)
}

/// Reads the pages of one poll together, so that relationships are followed across them.
///
/// # Errors
/// [`FeedError`] when one of them cannot be read.
pub fn read(
    stix: Stix,
    pages: &[&[u8]],
    limits: &Limits,
    take: &mut dyn FnMut(Indicator),
) -> Result<Report, FeedError> {
    let mut sink = Sink::new(limits, take);
    sink.fits(pages.iter().map(|p| p.len()).sum())?;
    stix.read(pages, &mut sink)?;
    Ok(sink.report)
}

// Percent-encoding of what may not stand in a query (RFC 3986 §2.3).
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for octet in text.bytes() {
        if octet.is_ascii_alphanumeric() || b"-._~".contains(&octet) {
            encoded.push(char::from(octet));
        } else {
            encoded += &format!("%{octet:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_ask_for_pages() {
        assert_eq!(collections_path("/api1/"), "/api1/collections/");
        assert_eq!(
            objects_path("/api1", "9 1", 100, Some("2026-01-01T00:00:00.5Z"), Some("a&b")),
            "/api1/collections/9%201/objects/?limit=100&added_after=2026-01-01T00%3A00%3A00.5Z&next=a%26b"
        );
    }

    #[test]
    fn collections_are_found_and_refusals_explained() {
        let answer = br#"{"collections":[{"id":"1","title":"High","alias":"h","can_read":true,"can_write":false},
            {"id":"2","title":"Secret","can_read":false}]}"#;
        for name in ["1", "High", "h"] {
            assert_eq!(find_collection(answer, name).unwrap().id, "1");
        }
        let why = |name: &str| find_collection(answer, name).unwrap_err().to_string();
        assert!(why("Secret").contains("does not let us read collection 2"));
        assert!(why("x").contains("it lists: High, Secret"));
        assert!(
            find_collection(b"<html>", "x")
                .unwrap_err()
                .to_string()
                .contains("line 1")
        );
        assert!(find_collection(b"{}", "x").is_err());
    }

    #[test]
    fn pages_belong_together() {
        let first = br#"{"more":true,"next":"n1","objects":[{"type":"indicator","id":"indicator--1","pattern":"[domain-name:value = 'evil.example']"}]}"#;
        let second = br#"{"more":false,"objects":[
            {"type":"attack-pattern","id":"attack-pattern--1","external_references":[{"source_name":"mitre-attack","external_id":"T1071"}]},
            {"type":"relationship","relationship_type":"indicates","source_ref":"indicator--1","target_ref":"attack-pattern--1"}]}"#;
        let page = page(first).unwrap();
        assert_eq!((page.more, page.next.as_deref(), page.objects), (true, Some("n1"), 1));
        assert_eq!(page.indicators, ["indicator--1"]);
        assert_eq!(super::page(b"{}").unwrap(), Page::default());
        let mut taken = Vec::new();
        let report = read(Stix::default(), &[first, second], &Limits::default(), &mut |i| {
            taken.push(i)
        })
        .unwrap();
        assert_eq!(report.taken, 1);
        assert_eq!(taken[0].techniques, ["T1071"]);
    }
}
