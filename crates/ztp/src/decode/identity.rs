//! Who somebody is beyond addresses and labels, what is asked of them, and what they ask for.

use std::collections::{BTreeMap, BTreeSet};

use super::{Findings, field::Object, label::tag_pairs};
use crate::{
    diagnostic::Code,
    document::{GrpcMatch, HttpMatch, Need, TrustLevel, TrustNeeds},
    node::{Node, Value, shorten},
    sets::TextPattern,
};

/// A list of texts that `right` takes; it answers with what is wrong otherwise.
pub(super) fn texts(
    object: &Object<'_>,
    name: &str,
    f: &mut Findings<'_>,
    right: impl Fn(&str) -> Result<(), &'static str>,
) -> Vec<String> {
    let Some(node) = object.get(name) else {
        return Vec::new();
    };
    let most = f.limits.peers;
    let path = object.path(name);
    if matches!(&node.value, Value::List(list) if list.is_empty()) {
        f.error(
            Code::Contradiction,
            &path,
            node.position,
            format!("`{name}` is empty"),
            "Leave the field out, or name at least one",
        );
    }
    let mut all = Vec::new();
    for (path, node) in f.list(node, &path, most) {
        let Some(text) = f.text(node, &path) else { continue };
        match right(&text) {
            Ok(()) => all.push(text),
            Err(remedy) => f.error(
                Code::BadValue,
                &path,
                node.position,
                format!("{:?} is not taken here", shorten(&text)),
                remedy,
            ),
        }
    }
    all
}

/// A name in DNS of one or more labels, not longer than 253 characters.
fn is_domain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(super::is_name)
}

pub(super) fn account(text: &str) -> Result<(), &'static str> {
    let right = is_domain(text);
    right
        .then_some(())
        .ok_or("Write the service account's name, without its namespace")
}

pub(super) fn spiffe(text: &str) -> Result<(), &'static str> {
    let remedy = "Write spiffe://TRUST-DOMAIN/PATH, with a `*` only at the end";
    let rest = text.strip_prefix("spiffe://").ok_or(remedy)?;
    let (plain, open) = match rest.strip_suffix('*') {
        Some(plain) => (plain, true),
        None => (rest, false),
    };
    let (domain, path) = plain.split_once('/').ok_or(remedy)?;
    let segment = |s: &str| {
        !s.is_empty() && s != "." && s != ".." && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    let segments: Vec<&str> = path.split('/').collect();
    let last = segments.len() - 1;
    let right = !domain.is_empty()
        && domain.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b))
        // Before the star, a segment may be cut short.
        && segments.iter().enumerate().all(|(i, s)| segment(s) || (open && i == last && s.is_empty()))
        && text.len() <= 2_048;
    right.then_some(()).ok_or(remedy)
}

pub(super) fn fqdn(text: &str) -> Result<(), &'static str> {
    let name = text.strip_prefix("*.").unwrap_or(text);
    let right = is_domain(name) && name.contains('.');
    right
        .then_some(())
        .ok_or("Write a name such as api.example.com, or *.example.com, in small letters and without a final dot")
}

pub(super) fn host(text: &str) -> Result<(), &'static str> {
    is_domain(text)
        .then_some(())
        .ok_or("Write the host's name in small letters, digits, hyphens and dots")
}

pub(super) fn iam_group(text: &str) -> Result<(), &'static str> {
    let right = text.len() <= 128
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.:/@".contains(&b));
    right
        .then_some(())
        .ok_or("Write the group's name as iam has it: letters, digits and - _ . : / @")
}

fn method(text: &str) -> Result<(), &'static str> {
    let right = text.len() <= 32 && text.bytes().all(|b| b.is_ascii_uppercase() || b == b'-');
    right.then_some(()).ok_or("Write the method in capitals, such as GET")
}

fn http_host(text: &str) -> Result<(), &'static str> {
    is_domain(text.strip_prefix("*.").unwrap_or(text))
        .then_some(())
        .ok_or("Write a host such as shop.example.com, or *.example.com, in small letters and without a port")
}

fn http_path(text: &str) -> Result<(), &'static str> {
    let remedy = "Write a path that starts with a slash, with a `*` only at one end";
    let pattern = TextPattern::read(text).ok_or(remedy)?;
    let inner = match &pattern {
        TextPattern::Any => return Ok(()),
        TextPattern::Exact(text) | TextPattern::Prefix(text) if text.starts_with('/') => text,
        TextPattern::Suffix(text) => text,
        _ => return Err(remedy),
    };
    let right = inner.bytes().all(|b| b.is_ascii_graphic() && !b"?#{}".contains(&b));
    right
        .then_some(())
        .ok_or("Write the path as it is sent: no query, no spaces, no braces")
}

/// `package.Service`, and of its methods only the name.
fn grpc_name(text: &str, dots: bool) -> bool {
    let word = |w: &str| {
        w.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
            && w.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    text.len() <= 256 && if dots { text.split('.').all(word) } else { word(text) }
}

pub(super) fn http(object: &Object<'_>, f: &mut Findings<'_>) -> Vec<HttpMatch> {
    each(object, "http", f, |node, path, f| {
        let object = f.object(node, path, &["methods", "hosts", "paths"])?;
        let found = HttpMatch {
            methods: texts(&object, "methods", f, method),
            hosts: texts(&object, "hosts", f, http_host),
            paths: texts(&object, "paths", f, http_path),
        };
        if ["methods", "hosts", "paths"].iter().all(|n| object.get(n).is_none()) {
            f.error_at(
                Code::Contradiction,
                path,
                "the request says nothing",
                "Name `methods`, `hosts` or `paths`, or write `paths: [\"*\"]` for every request",
            );
        }
        Some(found)
    })
}

pub(super) fn grpc(object: &Object<'_>, f: &mut Findings<'_>) -> Vec<GrpcMatch> {
    each(object, "grpc", f, |node, path, f| {
        let object = f.object(node, path, &["service", "methods"])?;
        let service = object
            .require("service", "Name the service with its package, such as shop.v1.Cart", f)
            .and_then(|node| {
                let path = object.path("service");
                let text = f.text(node, &path)?;
                if !grpc_name(&text, true) {
                    f.error(
                        Code::BadValue,
                        &path,
                        node.position,
                        format!("{:?} is not the name of a service", shorten(&text)),
                        "Write the package and the service, such as shop.v1.Cart",
                    );
                }
                Some(text)
            });
        let methods = texts(&object, "methods", f, |text| {
            grpc_name(text, false)
                .then_some(())
                .ok_or("Write the method's name alone, such as AddItem")
        });
        Some(GrpcMatch {
            service: service?,
            methods,
        })
    })
}

fn each<T>(
    object: &Object<'_>,
    name: &str,
    f: &mut Findings<'_>,
    mut read: impl FnMut(&Node, &str, &mut Findings<'_>) -> Option<T>,
) -> Vec<T> {
    let Some(node) = object.get(name) else {
        return Vec::new();
    };
    let path = object.path(name);
    if matches!(&node.value, Value::List(list) if list.is_empty()) {
        f.error(
            Code::Contradiction,
            &path,
            node.position,
            format!("`{name}` is empty"),
            "Leave the field out for every request, or remove the rule",
        );
    }
    // Every request is held against each.
    let most = f.limits.requests;
    let mut all = Vec::new();
    for (path, node) in f.list(node, &path, most) {
        all.extend(read(node, &path, f));
    }
    all
}

const LEVELS: [(&str, TrustLevel); 4] = [
    ("untrusted", TrustLevel::Untrusted),
    ("restricted", TrustLevel::Restricted),
    ("trusted", TrustLevel::Trusted),
    ("privileged", TrustLevel::Privileged),
];

pub(super) fn level(object: &Object<'_>, name: &str, f: &mut Findings<'_>) -> Option<TrustLevel> {
    let node = object.get(name)?;
    f.choice(node, &object.path(name), &LEVELS)
}

pub(super) fn trust_levels(object: &Object<'_>, f: &mut Findings<'_>) -> BTreeMap<TrustLevel, TrustNeeds> {
    let mut levels = BTreeMap::new();
    let Some(node) = object.get("trustLevels") else {
        return levels;
    };
    let names: Vec<&str> = LEVELS.iter().map(|(name, _)| *name).collect();
    let path = object.path("trustLevels");
    let Some(object) = f.object(node, &path, &names) else {
        return levels;
    };
    for (name, level) in LEVELS {
        let Some(node) = object.get(name) else { continue };
        let Some(inner) = f.object(node, &object.path(name), &["needs"]) else {
            continue;
        };
        let mut needs = BTreeSet::new();
        if let Some(node) = inner.require("needs", "List what the level needs; an empty list is nothing", f) {
            let choices = crate::document::Need::ALL.map(|need| (need.as_str(), need));
            for (path, node) in f.list(node, &inner.path("needs"), choices.len()) {
                needs.extend(f.choice(node, &path, &choices));
            }
        }
        levels.insert(
            level,
            TrustNeeds {
                needs: needs.into_iter().collect(),
            },
        );
    }
    // A level that needs less than one below it would be above and below it at once.
    let of = |level: TrustLevel| -> BTreeSet<Need> {
        let own: Option<&TrustNeeds> = levels.get(&level);
        own.map_or_else(
            || level.needs().iter().copied().collect(),
            |own| own.needs.iter().copied().collect(),
        )
    };
    for pair in TrustLevel::ALL.windows(2) {
        let missing: Vec<&str> = of(pair[0]).difference(&of(pair[1])).map(|n| n.as_str()).collect();
        if !missing.is_empty() {
            let (low, high) = (pair[0].as_str(), pair[1].as_str());
            f.error_at(
                Code::Contradiction,
                &path,
                format!(
                    "{high} stands above {low} and needs less: not {}",
                    missing.join(" and not ")
                ),
                format!("Let {high} need all that {low} needs, or let {low} need less"),
            );
        }
    }
    levels
}

pub(super) fn tags(object: &Object<'_>, f: &mut Findings<'_>) -> BTreeMap<String, String> {
    let Some(node) = object.get("tags") else {
        return BTreeMap::new();
    };
    let path = object.path("tags");
    let tags = tag_pairs(node, &path, f);
    if tags.is_empty() {
        f.error(
            Code::Contradiction,
            &path,
            node.position,
            "`tags` is empty",
            "Name at least one tag, or leave the field out",
        );
    }
    tags
}

/// A time of RFC 3339, in nanoseconds since the epoch.
pub(crate) fn read_time(text: &str) -> Option<i64> {
    chrono::DateTime::parse_from_rfc3339(text).ok()?.timestamp_nanos_opt()
}

/// From and until when a rule counts.
pub(super) fn validity(object: &Object<'_>, f: &mut Findings<'_>) -> (Option<String>, Option<String>) {
    let mut read = |name: &str| {
        let node = object.get(name)?;
        let path = object.path(name);
        let text = f.text(node, &path)?;
        if read_time(&text).is_none() {
            f.error(
                Code::BadValue,
                &path,
                node.position,
                format!("{:?} is not a time", shorten(&text)),
                "Write a time with its zone, in quotes, such as \"2026-12-01T00:00:00Z\"",
            );
        }
        Some(text)
    };
    let (from, until) = (read("validFrom"), read("validUntil"));
    let times = (
        from.as_deref().and_then(read_time),
        until.as_deref().and_then(read_time),
    );
    if let (Some(from), Some(until)) = times
        && until <= from
    {
        f.error_at(
            Code::Contradiction,
            &object.path("validUntil"),
            "the rule ends before it begins",
            "Swap `validFrom` and `validUntil`, or correct one of them",
        );
    }
    (from, until)
}
