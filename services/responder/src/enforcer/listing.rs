//! What `nft -j list table` says, as far as it matters here.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use serde_json::Value;

/// The table without what changes by itself: handles, counters, elements.
pub(super) fn structure(listed: &Value) -> Value {
    fn strip(value: &Value) -> Value {
        match value {
            Value::Object(map) => Value::Object(
                map.iter()
                    .filter(|(key, _)| !matches!(key.as_str(), "handle" | "packets" | "bytes" | "metainfo"))
                    .map(|(key, value)| (key.clone(), strip(value)))
                    .collect(),
            ),
            Value::Array(items) => Value::Array(items.iter().map(strip).collect()),
            other => other.clone(),
        }
    }
    let mut stripped = strip(listed);
    if let Some(items) = stripped.get_mut("nftables").and_then(Value::as_array_mut) {
        items.retain(|item| item.as_object().is_some_and(|o| !o.is_empty()));
        for item in items {
            let Some(set) = item.get_mut("set").and_then(Value::as_object_mut) else {
                continue;
            };
            // The management networks are part of the structure; other elements come and go.
            let fixed = set
                .get("name")
                .and_then(Value::as_str)
                .is_some_and(|name| name.starts_with("management"));
            if !fixed {
                set.remove("elem");
            }
        }
    }
    stripped
}

/// Elements of every set but the management networks, each with the time left.
pub(super) fn held_elements(listed: &Value) -> BTreeMap<(String, IpAddr), Option<Duration>> {
    let mut held = BTreeMap::new();
    let items = listed.get("nftables").and_then(Value::as_array);
    for set in items.into_iter().flatten().filter_map(|i| i.get("set")) {
        let Some(name) = set.get("name").and_then(Value::as_str) else {
            continue;
        };
        for element in set.get("elem").and_then(Value::as_array).into_iter().flatten() {
            let (value, left) = match element.get("elem") {
                Some(inner) => (
                    inner.get("val"),
                    inner.get("expires").and_then(Value::as_u64).map(Duration::from_secs),
                ),
                None => (Some(element), None),
            };
            if let Some(address) = value.and_then(Value::as_str).and_then(|v| v.parse().ok()) {
                held.insert((name.to_owned(), address), left);
            }
        }
    }
    held
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(elements: &str, handle: u32, packets: u32) -> Value {
        serde_json::from_str(&format!(
            r#"{{"nftables": [{{"metainfo": {{"version": "1"}}}},
                {{"set": {{"name": "block4_32_acme", "handle": {handle}, "elem": [{elements}]}}}},
                {{"set": {{"name": "management4", "handle": 2, "elem": [{{"prefix": {{"addr": "10.9.0.0", "len": 24}}}}]}}}},
                {{"rule": {{"handle": {handle}, "expr": [{{"counter": {{"packets": {packets}, "bytes": 0}}}}, {{"drop": null}}]}}}}]}}"#
        ))
        .unwrap()
    }

    #[test]
    fn structure_leaves_out_what_changes_by_itself_and_nothing_else() {
        let a = listing(r#""192.0.2.1""#, 4, 7);
        assert_eq!(structure(&a), structure(&listing("", 9, 0)));
        let text = serde_json::to_string(&a).unwrap();
        for (from, to) in [("drop", "accept"), ("10.9.0.0", "10.8.0.0"), ("block4", "blick4")] {
            let changed: Value = serde_json::from_str(&text.replace(from, to)).unwrap();
            assert_ne!(structure(&a), structure(&changed), "{from} to {to} was not noticed");
        }
    }

    #[test]
    fn elements_are_read_with_the_time_left() {
        let held = held_elements(&listing(
            r#""192.0.2.1", {"elem": {"val": "192.0.2.2", "timeout": 60, "expires": 59}}"#,
            1,
            0,
        ));
        let left = |a: &str| held.get(&("block4_32_acme".to_owned(), a.parse().unwrap())).copied();
        assert_eq!(left("192.0.2.1"), Some(None));
        assert_eq!(left("192.0.2.2"), Some(Some(Duration::from_secs(59))));
        assert_eq!(held.len(), 2);
    }
}
