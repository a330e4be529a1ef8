//! Requests as Cilium's HTTP rules, whose fields are regular expressions that match the whole.

use serde::Serialize;

use crate::sets::{RequestSet, TextPattern, TextSet};

#[derive(Clone, Serialize)]
pub(super) struct Http {
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
}

pub(super) fn http(requests: &RequestSet) -> Vec<Http> {
    requests
        .boxes
        .iter()
        .map(|one| Http {
            method: one
                .methods
                .as_ref()
                .map(|methods| either(methods.iter().map(|m| quote(m)).collect())),
            // Clients may write a port behind the host.
            host: expression(&one.hosts, |pattern| match pattern {
                TextPattern::Any => ".*".to_owned(),
                TextPattern::Exact(text) => format!("{}(:[0-9]+)?", quote(text)),
                TextPattern::Prefix(text) => format!("{}[^:]*(:[0-9]+)?", quote(text)),
                TextPattern::Suffix(text) => format!("[^:]*{}(:[0-9]+)?", quote(text)),
            }),
            // What Cilium calls the path has the query behind it.
            path: expression(&one.paths, |pattern| match pattern {
                TextPattern::Any => ".*".to_owned(),
                TextPattern::Exact(text) => format!("{}([?].*)?", quote(text)),
                TextPattern::Prefix(text) => format!("{}.*", quote(text)),
                TextPattern::Suffix(text) => format!("[^?]*{}([?].*)?", quote(text)),
            }),
        })
        .collect()
}

fn expression(set: &TextSet, write: impl Fn(&TextPattern) -> String) -> Option<String> {
    (!set.is_full()).then(|| either(set.patterns().map(write).collect()))
}

fn either(mut expressions: Vec<String>) -> String {
    if expressions.len() == 1 {
        return expressions.remove(0);
    }
    format!("({})", expressions.join("|"))
}

/// The text itself as an expression.
fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    for c in text.chars() {
        if !(c.is_ascii_alphanumeric() || "/-_~%,:;=@!&'".contains(c)) {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted
}
