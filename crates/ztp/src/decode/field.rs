//! Reading single values: type, bounds, spelling.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use super::Findings;
use crate::{
    diagnostic::{Code, Position, did_you_mean},
    node::{Node, Value, shorten},
};

/// A mapping whose keys are known, none twice.
pub(crate) struct Object<'n> {
    pub(crate) path: String,
    position: Position,
    fields: BTreeMap<&'n str, &'n Node>,
}

/// `path.name`, or `name` at the top.
pub(crate) fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

impl<'n> Object<'n> {
    pub(crate) fn path(&self, name: &str) -> String {
        join(&self.path, name)
    }

    /// A field that may be missing. A field with nothing behind its colon counts as missing.
    pub(crate) fn get(&self, name: &str) -> Option<&'n Node> {
        self.fields
            .get(name)
            .copied()
            .filter(|node| !matches!(node.value, Value::Null))
    }

    /// Whether the field is written, even with nothing behind its colon.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.fields.contains_key(name)
    }

    /// A field that must be there.
    pub(crate) fn require(&self, name: &str, remedy: &str, findings: &mut Findings<'_>) -> Option<&'n Node> {
        let node = self.get(name);
        if node.is_none() {
            let position = self.fields.get(name).map_or(self.position, |node| node.position);
            findings.error(
                Code::MissingField,
                &self.path(name),
                position,
                format!("`{name}` is missing"),
                remedy,
            );
        }
        node
    }
}

impl Findings<'_> {
    pub(crate) fn wrong_type(&mut self, node: &Node, path: &str, expected: &str) {
        let remedy = match &node.value {
            Value::Bool(_) | Value::Integer(_) | Value::Float(_) if expected.contains("text") => {
                "Put the value in quotes"
            }
            _ => "See the policy language reference for what the field takes",
        };
        self.error(
            Code::WrongType,
            path,
            node.position,
            format!("expected {expected}, found {}", node.value.describe()),
            remedy,
        );
    }

    /// Pairs of a mapping: keys are text, none twice.
    fn pairs<'n>(&mut self, node: &'n Node, path: &str) -> Option<Vec<(&'n str, &'n Node, &'n Node)>> {
        let Value::Map(pairs) = &node.value else {
            self.wrong_type(node, path, "a mapping");
            return None;
        };
        let mut seen: BTreeMap<&str, Position> = BTreeMap::new();
        let mut known = Vec::with_capacity(pairs.len());
        for (key, value) in pairs {
            let Value::Text(name) = &key.value else {
                self.error(
                    Code::WrongType,
                    path,
                    key.position,
                    format!("a key must be text, found {}", key.value.describe()),
                    "Put the key in quotes",
                );
                continue;
            };
            if let Some(first) = seen.insert(name, key.position) {
                self.error(
                    Code::Duplicate,
                    &join(path, &shorten(name)),
                    key.position,
                    format!(
                        "`{}` is written twice; the first is at line {}",
                        shorten(name),
                        first.line
                    ),
                    "Keep one of them",
                );
                continue;
            }
            known.push((name.as_str(), key, value));
        }
        Some(known)
    }

    /// A mapping with these fields and no others.
    pub(crate) fn object<'n>(&mut self, node: &'n Node, path: &str, fields: &[&str]) -> Option<Object<'n>> {
        self.spans.insert(path.to_owned(), node.position);
        let mut object = Object {
            path: path.to_owned(),
            position: node.position,
            fields: BTreeMap::new(),
        };
        for (name, key, value) in self.pairs(node, path)? {
            if fields.contains(&name) {
                self.spans.insert(object.path(name), value.position);
                object.fields.insert(name, value);
                continue;
            }
            let remedy = match did_you_mean(name, fields) {
                Some(meant) => format!("Did you mean `{meant}`?"),
                None => format!("Fields here are {}", list(fields)),
            };
            self.error(
                Code::UnknownField,
                &object.path(&shorten(name)),
                key.position,
                format!("the language has no field `{}` here", shorten(name)),
                remedy,
            );
        }
        Some(object)
    }

    /// A mapping with keys of the author's choice, at most `most`.
    pub(crate) fn entries<'n>(&mut self, node: &'n Node, path: &str, most: usize) -> Vec<(&'n str, String, &'n Node)> {
        self.spans.insert(path.to_owned(), node.position);
        let mut pairs = self.pairs(node, path).unwrap_or_default();
        if pairs.len() > most {
            self.too_many(node, path, pairs.len(), most);
            pairs.truncate(most);
        }
        pairs
            .into_iter()
            .map(|(name, _, value)| {
                let path = join(path, &shorten(name));
                self.spans.insert(path.clone(), value.position);
                (name, path, value)
            })
            .collect()
    }

    /// The elements of a list, at most `most`, each with its path.
    pub(crate) fn list<'n>(&mut self, node: &'n Node, path: &str, most: usize) -> Vec<(String, &'n Node)> {
        let Value::List(list) = &node.value else {
            self.wrong_type(node, path, "a list");
            return Vec::new();
        };
        if list.len() > most {
            self.too_many(node, path, list.len(), most);
        }
        list.iter()
            .take(most)
            .enumerate()
            .map(|(i, node)| {
                let path = format!("{path}[{i}]");
                self.spans.insert(path.clone(), node.position);
                (path, node)
            })
            .collect()
    }

    pub(crate) fn too_many(&mut self, node: &Node, path: &str, count: usize, most: usize) {
        self.error(
            Code::Limit,
            path,
            node.position,
            format!("{count} entries where at most {most} are taken"),
            "Summarise networks, or split the policy into several documents",
        );
    }

    /// A text that is not empty.
    pub(crate) fn text(&mut self, node: &Node, path: &str) -> Option<String> {
        let Value::Text(text) = &node.value else {
            self.wrong_type(node, path, "text");
            return None;
        };
        if text.trim().is_empty() || text.len() > self.limits.text {
            let most = self.limits.text;
            self.error(
                Code::BadValue,
                path,
                node.position,
                format!("the text has {} bytes where 1 to {most} are taken", text.trim().len()),
                "Write something shorter, or leave the field out",
            );
            return None;
        }
        Some(text.clone())
    }

    pub(crate) fn boolean(&mut self, node: &Node, path: &str) -> Option<bool> {
        if let Value::Bool(value) = node.value {
            return Some(value);
        }
        self.wrong_type(node, path, "true or false");
        None
    }

    pub(crate) fn number(&mut self, node: &Node, path: &str, from: u16, to: u16) -> Option<u16> {
        let Value::Integer(number) = node.value else {
            self.wrong_type(node, path, "a whole number");
            return None;
        };
        let taken = u16::try_from(number).ok().filter(|n| (from..=to).contains(n));
        if taken.is_none() {
            self.error(
                Code::BadValue,
                path,
                node.position,
                format!("{number} is outside {from} to {to}"),
                format!("Use a number from {from} to {to}"),
            );
        }
        taken
    }

    /// One of a few words.
    pub(crate) fn choice<T: Copy>(&mut self, node: &Node, path: &str, choices: &[(&str, T)]) -> Option<T> {
        let Value::Text(text) = &node.value else {
            self.wrong_type(node, path, "text");
            return None;
        };
        if let Some((_, value)) = choices.iter().find(|(name, _)| name == text) {
            return Some(*value);
        }
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        let remedy = match did_you_mean(text, &names) {
            Some(meant) => format!("Did you mean `{meant}`?"),
            None => format!("Use one of {}", list(&names)),
        };
        self.error(
            Code::BadValue,
            path,
            node.position,
            format!("{:?} is not one of {}", shorten(text), list(&names)),
            remedy,
        );
        None
    }

    /// A DNS label (RFC 1123), for names.
    pub(crate) fn name(&mut self, node: &Node, path: &str) -> Option<String> {
        let text = self.text(node, path)?;
        if is_name(&text) {
            return Some(text);
        }
        self.error(
            Code::BadValue,
            path,
            node.position,
            format!("{:?} is not a name", shorten(&text)),
            "Use 1 to 63 lower-case letters, digits and hyphens, with no hyphen at either end",
        );
        None
    }

    /// An address or network, in canonical form.
    pub(crate) fn network(&mut self, node: &Node, path: &str) -> Option<String> {
        let text = self.text(node, path)?;
        match read_network(&text) {
            Ok(_) => Some(text),
            Err((message, remedy)) => {
                self.error(Code::BadAddress, path, node.position, message, remedy);
                None
            }
        }
    }
}

/// Reads an address or network that [`Findings::network`] has taken, or says what is wrong with it.
pub(crate) fn read_network(text: &str) -> Result<IpNet, (String, String)> {
    let net = match text.parse::<IpNet>() {
        Ok(net) => net,
        Err(_) => match text.parse::<IpAddr>() {
            Ok(address) => IpNet::from(address),
            Err(_) => {
                return Err((
                    format!("{:?} is neither an IP address nor a network", shorten(text)),
                    "Write a network such as 10.0.0.0/8 or 2001:db8::/32, or a single address".to_owned(),
                ));
            }
        },
    };
    if net.trunc() != net {
        return Err((
            format!("{text} has bits set behind its prefix length"),
            format!(
                "Write {}, or {}/{} for the single host",
                net.trunc(),
                net.addr(),
                net.max_prefix_len()
            ),
        ));
    }
    let mapped = match net {
        IpNet::V6(v6) => v6.network().to_ipv4_mapped(),
        IpNet::V4(_) => None,
    };
    if let Some(v4) = mapped {
        return Err((
            format!("{text} is an IPv4 network written inside IPv6"),
            format!("Write {v4}/{}", net.prefix_len().saturating_sub(96)),
        ));
    }
    Ok(net)
}

/// Whether a text is a DNS label: the form of every name in a policy.
pub fn is_name(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn list(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|n| format!("`{n}`")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => quoted.concat(),
    }
}
