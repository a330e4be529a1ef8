//! One way to write a document: fields in the order of the language, block style, comments kept where they belong.

use std::collections::BTreeMap;

use crate::{
    Diagnostic, Limits, check_with,
    node::{self, Node, Value},
};

/// Writes a file of documents in the one form. What it means does not change, and formatting again changes nothing.
///
/// Comments stay before, or behind, what they stood before, or behind. A rule's `action` and a policy's `tier` are left out where they are the default; `mode` is always written.
///
/// # Errors
/// The file's errors, when it has some.
pub fn format(text: &str) -> Result<String, Vec<Diagnostic>> {
    format_with(text, &Limits::default())
}

/// As [`format`], under other limits.
///
/// # Errors
/// The file's errors, when it has some.
pub fn format_with(text: &str, limits: &Limits) -> Result<String, Vec<Diagnostic>> {
    let checked = check_with(text, limits);
    if !checked.is_valid() {
        return Err(checked.errors().cloned().collect());
    }
    let mut out = String::new();
    for (i, document) in checked.documents.iter().enumerate() {
        let written = crate::version::write(&document.policy, document.version);
        if i > 0 {
            out.push_str("---\n");
        }
        // What stands behind the marker belongs to the first line.
        let source = document.text.strip_prefix("---").unwrap_or(&document.text);
        out.push_str(&with_comments(source, &written, limits));
    }
    Ok(out)
}

/// The places of keys and list entries in a text: line and path, in order.
fn places(text: &str, limits: &Limits) -> Vec<(usize, String)> {
    fn walk(node: &Node, path: &str, all: &mut Vec<(usize, String)>) {
        match &node.value {
            Value::Map(pairs) => {
                for (key, value) in pairs {
                    if let Value::Text(name) = &key.value {
                        let path = format!("{path}.{name}");
                        all.push((key.position.line as usize, path.clone()));
                        walk(value, &path, all);
                    }
                }
            }
            Value::List(list) => {
                for (i, item) in list.iter().enumerate() {
                    let path = format!("{path}[{i}]");
                    all.push((item.position.line as usize, path.clone()));
                    walk(item, &path, all);
                }
            }
            _ => {}
        }
    }
    let mut all = Vec::new();
    for source in node::split(text).into_iter().take(1) {
        if let Ok(node) = node::parse(source, limits) {
            walk(&node, "", &mut all);
        }
    }
    all
}

/// Where the comment of a line starts: behind white space, outside quotes.
fn comment_at(line: &str, quote: &mut Option<char>) -> Option<usize> {
    let mut before = ' ';
    let mut escaped = false;
    for (at, c) in line.char_indices() {
        match *quote {
            Some('"') if escaped => escaped = false,
            Some('"') if c == '\\' => escaped = true,
            Some(q) if c == q => *quote = None,
            Some(_) => {}
            // A quote opens a scalar only where one can begin.
            None if matches!(c, '"' | '\'') && matches!(before, ' ' | '[' | '{' | ',' | ':') => *quote = Some(c),
            None if c == '#' && before.is_whitespace() => return Some(at),
            None => {}
        }
        before = if c == '\t' { ' ' } else { c };
    }
    None
}

/// The comments of a text: line, the comment, and whether it has the line for itself.
fn comments(text: &str) -> Vec<(usize, String, bool)> {
    let mut all = Vec::new();
    let mut quote = None;
    // The indentation of the line that a block scalar hangs from, while inside one.
    let mut block: Option<usize> = None;
    for (number, line) in (1..).zip(text.lines()) {
        let indent = line.len() - line.trim_start().len();
        if let Some(from) = block {
            if line.trim().is_empty() || indent > from {
                continue;
            }
            block = None;
        }
        let was_quoted = quote.is_some();
        let comment = comment_at(line, &mut quote);
        let code = line[..comment.unwrap_or(line.len())].trim_end();
        if let Some(at) = comment {
            all.push((number, line[at..].trim_end().to_owned(), code.is_empty() && !was_quoted));
        }
        let last = code.rsplit([' ', '\t']).next().unwrap_or_default();
        let opens = last.starts_with(['|', '>']) && last[1..].bytes().all(|b| b.is_ascii_digit() || b"+-".contains(&b));
        if opens && quote.is_none() {
            // Entries of a list count from their dash.
            block = Some(indent);
        }
    }
    all
}

fn with_comments(source: &str, written: &str, limits: &Limits) -> String {
    let comments = comments(source);
    if comments.is_empty() {
        return written.to_owned();
    }
    let (old, new) = (places(source, limits), places(written, limits));
    let mut line_of: BTreeMap<&str, usize> = BTreeMap::new();
    for (line, path) in &new {
        line_of.entry(path).or_insert(*line);
    }
    // The line of a path that is written, or of the nearest thing around it.
    let place = |path: &str| -> Option<usize> {
        let mut path = path;
        loop {
            if let Some(line) = line_of.get(path) {
                return Some(*line);
            }
            path = &path[..path.rfind(['.', '['])?];
        }
    };
    let (mut before, mut behind): (BTreeMap<usize, Vec<String>>, BTreeMap<usize, Vec<String>>) = Default::default();
    let mut last = Vec::new();
    for (line, comment, alone) in comments {
        let at = if alone {
            // The first thing of the next line that has one.
            old.iter().filter(|(l, _)| *l > line).min_by_key(|(l, _)| *l)
        } else {
            // The last thing of its own line, or of the lines above that its value goes on from.
            old.iter().filter(|(l, _)| *l <= line).max_by_key(|(l, _)| *l)
        };
        match at.and_then(|(_, path)| place(path)) {
            Some(at) if alone => before.entry(at).or_default().push(comment),
            Some(at) => behind.entry(at).or_default().push(comment),
            None => last.push(comment),
        }
    }
    let lines: Vec<&str> = written.lines().collect();
    let mut out = String::new();
    let mut quote = None;
    for (number, line) in (1..).zip(&lines) {
        let indent = &line[..line.len() - line.trim_start().len()];
        for comment in before.get(&number).into_iter().flatten() {
            out.push_str(&format!("{indent}{comment}\n"));
        }
        // Behind a value that goes on in the next line there is no place for a comment: it goes before.
        let goes_on = {
            comment_at(line, &mut quote);
            quote.is_some() || line.trim_end().ends_with(['|', '>', '-', '+']) && line.contains([':', '-'])
        };
        match behind.remove(&number) {
            Some(behind) if behind.len() == 1 && !goes_on => {
                out.push_str(&format!("{line} {}\n", behind.concat()));
            }
            Some(behind) => {
                for comment in behind {
                    out.push_str(&format!("{indent}{comment}\n"));
                }
                out.push_str(line);
                out.push('\n');
            }
            None => {
                out.push_str(line);
                out.push('\n');
            }
        }
    }
    for comment in last {
        out.push_str(&comment);
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# The shop's database.
apiVersion: garrison.dev/v1alpha1
kind: ZeroTrustPolicy # one namespace
metadata: {name: db}
spec:
  # Nobody else.
  ingress:
  - {from: [{cidr: 10.0.0.0/8}], name: web, ports: [{port: 80, protocol: TCP}]}
  # The last resort.
  - name: 'ops'   # on call
    from:
      # The jump host.
      - cidr: 10.9.0.1
  subject: {cidrs: [10.1.0.0/16]}
  mode: enforce
  owner: \"a # b\"
  reason: |
    # not a comment
    but text
# The end.
";

    #[test]
    fn comments_stay_with_what_they_are_about() {
        let once = format(TEXT).unwrap();
        for line in [
            "# The shop's database.\napiVersion: garrison.dev/v1alpha1\n",
            "kind: ZeroTrustPolicy # one namespace\n",
            "  # Nobody else.\n  ingress:\n",
            "# The last resort.\n  - name: ops # on call\n",
            "# The jump host.\n    - cidr: \"10.9.0.1\"\n",
            "# not a comment",
            "\n# The end.\n",
        ] {
            assert!(once.contains(line), "{line:?} is not in\n{once}");
        }
        assert!(once.find("mode: enforce") < once.find("subject:"), "{once}");
        assert_eq!(format(&once).unwrap(), once);
        assert_eq!(
            check_with(&once, &Limits::default()).documents[0].policy,
            check_with(TEXT, &Limits::default()).documents[0].policy
        );
    }

    #[test]
    fn what_is_wrong_is_not_written() {
        assert!(format("kind: Nothing\n").is_err());
    }
}
