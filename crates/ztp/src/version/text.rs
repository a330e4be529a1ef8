//! Documents of every version are read into the stored one, each error at the field that was written.

use serde::{Serialize, Serializer, ser::SerializeMap as _};

use super::{ACCOUNTABILITY, Grouped, VALID, Version};
use crate::{
    decode::Findings,
    diagnostic::{Code, Diagnostic, did_you_mean},
    document::ZeroTrustPolicy,
    limits::Limits,
    node::{self, Node, Value, shorten},
};

/// The tree of a document as one of the stored version, and the version that it was written in.
pub(crate) fn to_hub(mut node: Node, f: &mut Findings<'_>) -> (Node, Version) {
    let mut version = Version::default();
    if let Value::Map(pairs) = &mut node.value {
        for (key, value) in pairs.iter_mut() {
            if is(key, "apiVersion")
                && let Value::Text(text) = &mut value.value
                && let Some(written) = Version::from_api_version(text)
            {
                version = written;
                Version::default().api_version().clone_into(text);
            }
        }
        if version == Version::V1Beta1 {
            for (key, value) in pairs.iter_mut() {
                if is(key, "spec") {
                    spec(value, f);
                }
            }
        }
    }
    (node, version)
}

fn is(key: &Node, name: &str) -> bool {
    matches!(&key.value, Value::Text(text) if text == name)
}

fn spec(node: &mut Node, f: &mut Findings<'_>) {
    let Value::Map(pairs) = &mut node.value else { return };
    apart(pairs, &ACCOUNTABILITY, "spec", f);
    for (key, value) in pairs {
        let Value::Text(direction) = &key.value else { continue };
        if direction != "ingress" && direction != "egress" {
            continue;
        }
        let Value::List(rules) = &mut value.value else { continue };
        for (i, rule) in rules.iter_mut().enumerate() {
            if let Value::Map(pairs) = &mut rule.value {
                apart(pairs, &VALID, &format!("spec.{direction}[{i}]"), f);
            }
        }
    }
}

fn apart(pairs: &mut Vec<(Node, Node)>, grouped: &Grouped, path: &str, f: &mut Findings<'_>) {
    let mut seen = false;
    for (key, value) in std::mem::take(pairs) {
        let Value::Text(name) = &key.value else {
            pairs.push((key, value));
            continue;
        };
        let field = format!("{path}.{}", shorten(name));
        if let Some((outer, inner)) = grouped.fields.iter().find(|(outer, _)| outer == name) {
            f.error(
                Code::UnknownField,
                &field,
                key.position,
                format!("{} has no field `{outer}` here", Version::V1Beta1.name()),
                format!("Write `{}: {{{inner}: …}}`", grouped.object),
            );
        } else if name != grouped.object {
            match did_you_mean(name, &[grouped.object]) {
                Some(meant) => f.error(
                    Code::UnknownField,
                    &field,
                    key.position,
                    format!("the language has no field `{}` here", shorten(name)),
                    format!("Did you mean `{meant}`?"),
                ),
                None => pairs.push((key, value)),
            }
        } else if std::mem::replace(&mut seen, true) {
            f.error(
                Code::Duplicate,
                &field,
                key.position,
                format!("`{name}` is written twice"),
                "Keep one of them",
            );
        } else {
            match value.value {
                Value::Null => {}
                Value::Map(inner) => pairs.extend(outer(inner, grouped, &field, f)),
                _ => f.wrong_type(&value, &field, "a mapping"),
            }
        }
    }
}

fn outer(inner: Vec<(Node, Node)>, grouped: &Grouped, path: &str, f: &mut Findings<'_>) -> Vec<(Node, Node)> {
    let known: Vec<&str> = grouped.fields.iter().map(|(_, name)| *name).collect();
    let mut out = Vec::with_capacity(inner.len());
    for (mut key, value) in inner {
        let Value::Text(name) = &mut key.value else {
            // Whoever reads the tree says that a key has to be text.
            out.push((key, value));
            continue;
        };
        match grouped.fields.iter().find(|(_, inner)| inner == name) {
            Some((outer, _)) => {
                (*outer).clone_into(name);
                out.push((key, value));
            }
            None => {
                let field = format!("{path}.{}", shorten(name));
                let message = format!("the language has no field `{}` here", shorten(name));
                let remedy = match did_you_mean(name, &known) {
                    Some(meant) => format!("Did you mean `{meant}`?"),
                    None => format!("Fields here are {}", known.join(", ")),
                };
                f.error(Code::UnknownField, &field, key.position, message, remedy);
            }
        }
    }
    out
}

/// Names the fields of what was found from the `first` finding on as they are written in a version.
pub(crate) fn as_written(version: Version, first: usize, f: &mut Findings<'_>) {
    if version == Version::V1Alpha1 {
        return;
    }
    for found in f.diagnostics.iter_mut().skip(first) {
        name_as_written(found);
    }
    let spans = std::mem::take(&mut f.spans);
    f.spans = spans.into_iter().map(|(path, place)| (written(&path), place)).collect();
}

fn name_as_written(found: &mut Diagnostic) {
    found.field = written(&found.field);
    for text in [&mut found.message, &mut found.remedy] {
        for (outer, inner) in VALID.fields {
            *text = text.replace(&format!("`{outer}`"), &format!("`{}.{inner}`", VALID.object));
        }
    }
}

/// A field of the stored version as `v1beta1` has it.
fn written(field: &str) -> String {
    for (outer, inner) in ACCOUNTABILITY.fields {
        if field.strip_prefix("spec.") == Some(outer) {
            return format!("spec.{}.{inner}", ACCOUNTABILITY.object);
        }
    }
    for (outer, inner) in VALID.fields {
        let rule = field.strip_suffix(outer).and_then(|rest| rest.strip_suffix("]."));
        if let Some(rule) = rule.filter(|rule| rule.starts_with("spec.ingress[") || rule.starts_with("spec.egress[")) {
            return format!("{rule}].{}.{inner}", VALID.object);
        }
    }
    field.to_owned()
}

/// A document as text of a version, in the one form.
pub(crate) fn write(policy: &ZeroTrustPolicy, version: Version) -> String {
    let text = policy.text();
    if version == Version::V1Alpha1 {
        return text;
    }
    let whole = Limits {
        bytes: usize::MAX,
        nodes: usize::MAX / 2,
        ..Limits::default()
    };
    let tree = node::split(&text)
        .into_iter()
        .next()
        .and_then(|source| node::parse(source, &whole).ok());
    let Some(mut tree) = tree else { return text };
    if let Value::Map(pairs) = &mut tree.value {
        for (key, value) in pairs {
            if is(key, "apiVersion") {
                value.value = Value::Text(version.api_version().to_owned());
            } else if is(key, "spec")
                && let Value::Map(spec) = &mut value.value
            {
                together(spec, &ACCOUNTABILITY);
                for (key, rules) in spec {
                    if let Value::List(rules) = &mut rules.value
                        && (is(key, "ingress") || is(key, "egress"))
                    {
                        for rule in rules {
                            if let Value::Map(pairs) = &mut rule.value {
                                together(pairs, &VALID);
                            }
                        }
                    }
                }
            }
        }
    }
    // Texts, numbers and lists alone: this cannot fail.
    serde_saphyr::to_string(&tree).unwrap_or(text)
}

fn together(pairs: &mut Vec<(Node, Node)>, grouped: &Grouped) {
    let mut inner = Vec::new();
    let mut at = None;
    for (mut key, value) in std::mem::take(pairs) {
        let name = grouped
            .fields
            .iter()
            .find(|(outer, _)| is(&key, outer))
            .map(|(_, name)| *name);
        match name {
            Some(name) => {
                at.get_or_insert(pairs.len());
                key.value = Value::Text(name.to_owned());
                inner.push((key, value));
            }
            None => pairs.push((key, value)),
        }
    }
    if let Some(at) = at {
        let position = inner.first().map(|(key, _)| key.position).unwrap_or_default();
        let node = |value| Node { value, position };
        pairs.insert(
            at,
            (node(Value::Text(grouped.object.to_owned())), node(Value::Map(inner))),
        );
    }
}

impl Serialize for Node {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.value {
            Value::Null => serializer.serialize_unit(),
            Value::Bool(value) => serializer.serialize_bool(*value),
            Value::Integer(value) => serializer.serialize_i128(*value),
            Value::Float(value) => serializer.serialize_f64(*value),
            Value::Text(text) => serializer.serialize_str(text),
            Value::List(list) => serializer.collect_seq(list),
            Value::Map(pairs) => {
                let mut map = serializer.serialize_map(Some(pairs.len()))?;
                for (key, value) in pairs {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{Code, check, format, version::Version};

    const BETA: &str = "\
apiVersion: garrison.dev/v1beta1
kind: ZeroTrustPolicy
metadata:
  name: web
spec:
  mode: enforce
  accountability:
    # Reachable at night.
    owner: \"shop\"
    reason: why
  subject:
    cidrs:
    - 10.0.0.1
  ingress:
  - name: a
    from:
    - cidr: 10.0.0.0/8
    ports:
    - protocol: TCP
      port: 80
    valid:
      from: 2030-01-01T00:00:00Z
      until: 2030-02-01T00:00:00Z
";

    #[test]
    fn every_version_is_read_into_the_stored_one() {
        let checked = check(BETA);
        assert!(checked.diagnostics.is_empty(), "{:?}", checked.diagnostics);
        let document = &checked.documents[0];
        assert_eq!(document.version, Version::V1Beta1);
        assert_eq!(document.policy.api_version, "garrison.dev/v1alpha1");
        assert_eq!(document.policy.spec.owner.as_deref(), Some("shop"));
        let rule = &document.policy.spec.ingress.as_ref().unwrap()[0];
        assert_eq!(rule.valid_until.as_deref(), Some("2030-02-01T00:00:00Z"));
        assert!(document.spans.contains_key("spec.accountability.owner"));
        assert_eq!(document.spans["spec.ingress[0].valid.from"].line, 22);
    }

    #[test]
    fn a_document_is_written_in_its_own_version() {
        let once = format(BETA).unwrap();
        assert!(
            once.contains("  accountability:\n") && once.contains("# Reachable at night."),
            "{once}"
        );
        assert!(once.contains("    valid:\n"), "{once}");
        assert_eq!(format(&once).unwrap(), once);
        assert_eq!(check(&once).documents[0].policy, check(BETA).documents[0].policy);
    }

    #[test]
    fn errors_stand_at_the_field_that_was_written() {
        let cases = [
            (
                "    owner: \"shop\"",
                "    owner: 3",
                "spec.accountability.owner",
                Code::WrongType,
                9,
            ),
            (
                "    owner: \"shop\"",
                "    ovner: x",
                "spec.accountability.ovner",
                Code::UnknownField,
                9,
            ),
            (
                "  accountability:",
                "  acountability:",
                "spec.acountability",
                Code::UnknownField,
                7,
            ),
            ("  mode: enforce", "  owner: x", "spec.owner", Code::UnknownField, 6),
            (
                "  mode: enforce",
                "  accountability: {}",
                "spec.accountability",
                Code::Duplicate,
                7,
            ),
            (
                "      until: 2030-02-01T00:00:00Z",
                "      until: soon",
                "spec.ingress[0].valid.until",
                Code::BadValue,
                23,
            ),
            (
                "    valid:",
                "    validFrom: 2030-01-01T00:00:00Z\n    valid:",
                "spec.ingress[0].validFrom",
                Code::UnknownField,
                21,
            ),
        ];
        for (from, to, field, code, line) in cases {
            let text = BETA.replacen(from, to, 1);
            let errors: Vec<_> = check(&text).errors().cloned().collect();
            let found = errors.iter().find(|e| e.field == field && e.code == code);
            assert_eq!(found.map(|e| e.position.line), Some(line), "{field}: {errors:?}");
        }
    }
}
