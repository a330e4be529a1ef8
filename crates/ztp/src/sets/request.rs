use std::{collections::BTreeSet, fmt};

use serde::Serialize;

use super::{TextSet, text::witnesses};

/// An HTTP request, as far as policies speak of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct HttpRequest {
    /// The method, in capitals.
    pub method: String,
    /// The host, in small letters, without a port.
    pub host: String,
    /// The path, without the query.
    pub path: String,
}

/// Requests that have one of the methods, one of the hosts and one of the paths.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct RequestBox {
    /// The methods; every method when missing.
    pub methods: Option<BTreeSet<String>>,
    /// The hosts.
    pub hosts: TextSet,
    /// The paths.
    pub paths: TextSet,
}

impl RequestBox {
    /// Whether a request is one of them.
    pub fn matches(&self, request: &HttpRequest) -> bool {
        self.methods.as_ref().is_none_or(|m| m.contains(&request.method))
            && self.hosts.matches(&request.host)
            && self.paths.matches(&request.path)
    }

    /// Whether every request is one of them.
    pub fn is_full(&self) -> bool {
        self.methods.is_none() && self.hosts.is_full() && self.paths.is_full()
    }
}

/// A set of HTTP requests: the union of boxes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
pub struct RequestSet {
    /// The boxes.
    pub boxes: Vec<RequestBox>,
}

/// A method that no policy names.
const OTHER_METHOD: &str = "\u{10FFFD}";

impl RequestSet {
    /// Whether a request is a member.
    pub fn matches(&self, request: &HttpRequest) -> bool {
        self.boxes.iter().any(|b| b.matches(request))
    }

    /// Whether there is no member.
    pub fn is_empty(&self) -> bool {
        let nothing = |b: &RequestBox| {
            b.methods.as_ref().is_some_and(BTreeSet::is_empty) || b.hosts.is_empty() || b.paths.is_empty()
        };
        self.boxes.iter().all(nothing)
    }

    /// Whether every member is in `other`, decided on requests that stand for all.
    pub fn is_subset(&self, other: &Self) -> bool {
        // Box by box, so that requests stand for one box and the other set only.
        self.boxes.iter().all(|inner| {
            if other.boxes.iter().any(|outer| covers(outer, inner)) {
                return true;
            }
            let one = Self {
                boxes: vec![inner.clone()],
            };
            representatives([&one, other])
                .iter()
                .all(|request| !one.matches(request) || other.matches(request))
        })
    }
}

fn covers(outer: &RequestBox, inner: &RequestBox) -> bool {
    let methods = match (&outer.methods, &inner.methods) {
        (None, _) => true,
        (Some(outer), Some(inner)) => inner.is_subset(outer),
        (Some(_), None) => false,
    };
    methods && inner.hosts.is_subset(&outer.hosts) && inner.paths.is_subset(&outer.paths)
}

/// Requests that stand for all: whichever boxes hold of any request, they hold of one of these.
pub fn representatives<'s>(sets: impl IntoIterator<Item = &'s RequestSet>) -> Vec<HttpRequest> {
    let boxes: Vec<&RequestBox> = sets.into_iter().flat_map(|set| &set.boxes).collect();
    let mut methods: BTreeSet<&str> = boxes
        .iter()
        .filter_map(|b| b.methods.as_ref())
        .flatten()
        .map(String::as_str)
        .collect();
    methods.insert(OTHER_METHOD);
    let classes = |texts: Vec<String>, set: &dyn Fn(&RequestBox) -> &TextSet| {
        // Texts that no box tells apart are one.
        let mut seen = BTreeSet::new();
        texts
            .into_iter()
            .filter(|text| {
                let signature: Vec<bool> = boxes.iter().map(|b| set(b).matches(text)).collect();
                seen.insert(signature)
            })
            .collect::<Vec<_>>()
    };
    let hosts = classes(witnesses(boxes.iter().map(|b| &b.hosts)), &|b| &b.hosts);
    let paths = classes(witnesses(boxes.iter().map(|b| &b.paths)), &|b| &b.paths);
    let mut all = Vec::with_capacity(methods.len() * hosts.len() * paths.len());
    for method in methods {
        for host in &hosts {
            for path in &paths {
                all.push(HttpRequest {
                    method: method.to_owned(),
                    host: host.clone(),
                    path: path.clone(),
                });
            }
        }
    }
    all
}

impl fmt::Display for RequestSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, b) in self.boxes.iter().enumerate() {
            if i > 0 {
                f.write_str("; ")?;
            }
            match &b.methods {
                Some(methods) => f.write_str(&methods.iter().cloned().collect::<Vec<_>>().join(", "))?,
                None => f.write_str("every method")?,
            }
            if !b.hosts.is_full() {
                write!(f, " on {}", b.hosts)?;
            }
            if !b.paths.is_full() {
                write!(f, " of {}", b.paths)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sets::TextPattern;

    fn set(boxes: &[(&[&str], &str, &str)]) -> RequestSet {
        let texts = |text: &str| TextSet::of([TextPattern::read(text).unwrap()]);
        RequestSet {
            boxes: boxes
                .iter()
                .map(|(methods, host, path)| RequestBox {
                    methods: (!methods.is_empty()).then(|| methods.iter().map(|m| (*m).to_owned()).collect()),
                    hosts: texts(host),
                    paths: texts(path),
                })
                .collect(),
        }
    }

    #[test]
    fn a_union_can_cover_what_none_of_its_parts_does() {
        let inner = set(&[(&["GET", "POST"], "*", "/items/*")]);
        let outer = set(&[(&["GET"], "*", "/*"), (&["POST"], "*", "/items*")]);
        assert!(inner.is_subset(&outer));
        assert!(!outer.is_subset(&inner));
        assert!(!inner.is_subset(&set(&[(&["GET"], "*", "*")])));
        assert!(
            !set(&[(&[], "*", "*")]).is_subset(&set(&[(&["GET"], "*", "*")])),
            "other methods are left"
        );
        assert!(set(&[(&[], "a", "*")]).is_subset(&set(&[(&[], "a*", "*")])));
    }
}
