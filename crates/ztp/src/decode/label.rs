//! Labels and label selectors, as Kubernetes writes them.

use std::collections::BTreeMap;

use super::{
    Findings,
    field::{Object, is_name},
};
use crate::{
    diagnostic::Code,
    document::{LabelOperator, LabelRequirement, LabelSelector},
    node::{Node, Value, shorten},
};

pub(super) fn labels(node: &Node, path: &str, f: &mut Findings<'_>) -> BTreeMap<String, String> {
    let most = f.limits.labels;
    let mut labels = BTreeMap::new();
    for (key, path, value) in f.entries(node, path, most) {
        let Value::Text(text) = &value.value else {
            f.wrong_type(value, &path, "text");
            continue;
        };
        label_key(key, value, &path, f);
        label_value(text, value, &path, f);
        labels.insert(key.to_owned(), text.clone());
    }
    labels
}

/// Tags of cloud instances: any text up to what the providers take.
pub(super) fn tag_pairs(node: &Node, path: &str, f: &mut Findings<'_>) -> BTreeMap<String, String> {
    let most = f.limits.labels;
    let mut tags = BTreeMap::new();
    for (key, path, value) in f.entries(node, path, most) {
        let Value::Text(text) = &value.value else {
            f.wrong_type(value, &path, "text");
            continue;
        };
        if key.is_empty() || key.len() > 128 || text.len() > 256 {
            f.error(
                Code::BadValue,
                &path,
                value.position,
                "no provider takes this tag",
                "Use a key of 1 to 128 bytes and a value of at most 256",
            );
        }
        tags.insert(key.to_owned(), text.clone());
    }
    tags
}

/// Kubernetes label syntax: an optional DNS prefix and a name of 63 characters.
fn label_key(key: &str, node: &Node, path: &str, f: &mut Findings<'_>) {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let prefix_is_fine =
        prefix.is_none_or(|prefix| (1..=253).contains(&prefix.len()) && prefix.split('.').all(is_name));
    if !prefix_is_fine || name.is_empty() || !is_label_word(name) {
        f.error(
            Code::BadValue,
            path,
            node.position,
            format!("{:?} is not a label key", shorten(key)),
            "Use letters, digits, hyphens, underscores and dots, 63 at most, with an optional `domain/` before",
        );
    }
}

fn label_value(value: &str, node: &Node, path: &str, f: &mut Findings<'_>) {
    if !is_label_word(value) {
        f.error(
            Code::BadValue,
            path,
            node.position,
            format!("{:?} is not a label value", shorten(value)),
            "Use letters, digits, hyphens, underscores and dots, 63 at most, starting and ending with a letter or digit",
        );
    }
}

fn is_label_word(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let edge = |b: Option<&u8>| b.is_none_or(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= 63 && bytes.iter().all(|b| inner(*b)) && edge(bytes.first()) && edge(bytes.last())
}

pub(crate) fn selector(object: &Object<'_>, name: &str, f: &mut Findings<'_>) -> Option<LabelSelector> {
    let node = object.get(name)?;
    let object = f.object(node, &object.path(name), &["matchLabels", "matchExpressions"])?;
    let match_labels = object
        .get("matchLabels")
        .map(|node| labels(node, &object.path("matchLabels"), f))
        .unwrap_or_default();
    let most = f.limits.labels;
    let match_expressions = object
        .get("matchExpressions")
        .map(|node| {
            f.list(node, &object.path("matchExpressions"), most)
                .into_iter()
                .filter_map(|(path, node)| requirement(node, &path, f))
                .collect()
        })
        .unwrap_or_default();
    Some(LabelSelector {
        match_labels,
        match_expressions,
    })
}

fn requirement(node: &Node, path: &str, f: &mut Findings<'_>) -> Option<LabelRequirement> {
    let object = f.object(node, path, &["key", "operator", "values"])?;
    let key = object.require("key", "Name the label", f).and_then(|node| {
        let path = object.path("key");
        let key = f.text(node, &path)?;
        label_key(&key, node, &path, f);
        Some(key)
    });
    let operator = object
        .require(
            "operator",
            "Write `operator: In`, `NotIn`, `Exists` or `DoesNotExist`",
            f,
        )
        .and_then(|node| {
            let choices = [
                ("In", LabelOperator::In),
                ("NotIn", LabelOperator::NotIn),
                ("Exists", LabelOperator::Exists),
                ("DoesNotExist", LabelOperator::DoesNotExist),
            ];
            f.choice(node, &object.path("operator"), &choices)
        });
    let most = f.limits.labels;
    let mut values = Vec::new();
    if let Some(node) = object.get("values") {
        for (path, node) in f.list(node, &object.path("values"), most) {
            let Value::Text(text) = &node.value else {
                f.wrong_type(node, &path, "text");
                continue;
            };
            label_value(text, node, &path, f);
            values.push(text.clone());
        }
    }
    let wants_values = matches!(operator, Some(LabelOperator::In | LabelOperator::NotIn));
    if operator.is_some() && wants_values != object.get("values").is_some_and(|_| !values.is_empty()) {
        f.error_at(
            Code::Contradiction,
            path,
            if wants_values {
                "the operator compares with `values`, and there are none"
            } else {
                "the operator takes no `values`"
            },
            if wants_values {
                "Add `values`"
            } else {
                "Remove `values`, or use `In` or `NotIn`"
            },
        );
    }
    Some(LabelRequirement {
        key: key?,
        operator: operator?,
        values,
    })
}
