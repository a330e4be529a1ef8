//! The configuration reference, written from the same types that read the file.

use std::fmt::Write;

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Map, Value};

use crate::ServiceInfo;

/// Every key of a service's configuration file with its type, default and meaning, as Markdown.
pub fn reference<C: JsonSchema>(info: &ServiceInfo) -> String {
    let schema = SchemaSettings::draft2020_12()
        .into_generator()
        .into_root_schema_for::<C>();
    let root = Value::from(schema);
    let mut text = format!(
        "# Configuration of {}\n\nTOML, by default `/etc/garrison/{}.toml`; another file is named with `--config` or \
         `GARRISON_CONFIG`. Unknown keys are refused. Secrets are read from the files that `*_file` keys name.\n",
        info.name, info.name
    );
    Writer { root: &root }.section(&mut text, "", &root, false);
    text
}

struct Writer<'a> {
    root: &'a Value,
}

/// A section's own keys are written before its sub-sections, as TOML wants them.
struct Section<'a> {
    path: String,
    schema: &'a Value,
    repeated: bool,
    optional: bool,
    meaning: String,
}

impl<'a> Writer<'a> {
    fn section(&self, text: &mut String, path: &str, schema: &'a Value, repeated: bool) {
        let empty = Map::new();
        let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&empty);
        let required: Vec<&str> = schema
            .get("required")
            .and_then(Value::as_array)
            .map(|names| names.iter().filter_map(Value::as_str).collect())
            .unwrap_or_default();
        let mut rows = String::new();
        let mut below = Vec::new();
        for (name, property) in properties {
            let mut meaning = description(property);
            let (resolved, nullable) = self.resolve(property);
            let (inner, repeated) = match resolved.get("items") {
                Some(items) => (self.resolve(items).0, true),
                None => (resolved, false),
            };
            let must = required.contains(&name.as_str());
            let key = if path.is_empty() {
                name.clone()
            } else {
                format!("{path}.{name}")
            };
            if inner.get("properties").is_some() {
                if meaning.is_empty() {
                    meaning = description(inner);
                }
                below.push(Section {
                    path: key,
                    schema: inner,
                    repeated,
                    optional: !must,
                    meaning,
                });
                continue;
            }
            if meaning.is_empty() {
                meaning = description(resolved);
            }
            meaning.push_str(&choices(resolved));
            let default = match property.get("default") {
                _ if must => "required".to_owned(),
                Some(Value::Null) | None => if nullable { "not set" } else { "" }.to_owned(),
                Some(value) => format!("`{value}`"),
            };
            let _ = writeln!(
                rows,
                "| `{name}` | {} | {default} | {} |",
                self.kind(resolved),
                meaning.replace('|', "\\|")
            );
        }
        if !rows.is_empty() {
            if !path.is_empty() && repeated {
                let _ = writeln!(text, "\nMay be repeated.");
            }
            let _ = write!(text, "\n| key | type | default | meaning |\n|---|---|---|---|\n{rows}");
        }
        for section in below {
            let brackets = if section.repeated { ("[[", "]]") } else { ("[", "]") };
            let _ = writeln!(text, "\n## `{}{}{}`", brackets.0, section.path, brackets.1);
            if !section.meaning.is_empty() {
                let _ = writeln!(text, "\n{}", section.meaning);
            }
            if section.optional {
                let _ = writeln!(text, "\nThe section may be left out.");
            }
            self.section(text, &section.path, section.schema, section.repeated);
        }
    }

    /// Follows references and takes the not-null part of an optional one.
    fn resolve(&self, schema: &'a Value) -> (&'a Value, bool) {
        let mut schema = schema;
        let mut nullable = false;
        for _ in 0..16 {
            if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
                let pointer = reference.trim_start_matches('#');
                match self.root.pointer(pointer) {
                    Some(target) => schema = target,
                    None => break,
                }
            } else if let Some(parts) = schema.get("anyOf").and_then(Value::as_array) {
                let is_null = |part: &Value| part.get("type").and_then(Value::as_str) == Some("null");
                nullable |= parts.iter().any(is_null);
                match parts.iter().find(|part| !is_null(part)) {
                    Some(part) if nullable => schema = part,
                    _ => break,
                }
            } else {
                break;
            }
        }
        let null_type = schema
            .get("type")
            .and_then(Value::as_array)
            .is_some_and(|types| types.iter().any(|kind| kind == "null"));
        (schema, nullable || null_type)
    }

    fn kind(&self, schema: &'a Value) -> String {
        if schema.get("enum").is_some() || schema.get("oneOf").is_some() {
            return "word".to_owned();
        }
        if let Some(items) = schema.get("items") {
            return format!("list of {}", self.kind(self.resolve(items).0));
        }
        if let Some(values) = schema.get("additionalProperties").filter(|values| values.is_object()) {
            return format!("table of {}", self.kind(self.resolve(values).0));
        }
        let kind = match schema.get("type") {
            Some(Value::String(kind)) => kind.as_str(),
            Some(Value::Array(kinds)) => kinds
                .iter()
                .filter_map(Value::as_str)
                .find(|k| *k != "null")
                .unwrap_or(""),
            _ => "",
        };
        match kind {
            "string" => "text",
            "boolean" => "true or false",
            "object" => "table",
            "array" => "list",
            other => other,
        }
        .to_owned()
    }
}

fn description(schema: &Value) -> String {
    let text = schema.get("description").and_then(Value::as_str).unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The words a key may take, with their meanings.
fn choices(schema: &Value) -> String {
    let word = |value: &Value| value.as_str().map(|word| format!("`{word}`"));
    let mut words: Vec<String> = Vec::new();
    for part in schema.get("oneOf").and_then(Value::as_array).into_iter().flatten() {
        let meaning = description(part);
        let named = part
            .get("const")
            .into_iter()
            .chain(part.get("enum").and_then(Value::as_array).into_iter().flatten());
        for name in named.filter_map(word) {
            words.push(if meaning.is_empty() {
                name
            } else {
                format!("{name}: {}", meaning.trim_end_matches('.'))
            });
        }
    }
    words.extend(
        schema
            .get("enum")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(word),
    );
    if words.is_empty() {
        String::new()
    } else {
        format!(" {}.", words.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::Core;

    #[derive(Deserialize, JsonSchema)]
    #[allow(dead_code)]
    struct Config {
        core: Core,
        /// What is watched.
        #[serde(default)]
        watch: Vec<Watch>,
        /// A number for people.
        #[serde(default = "seven")]
        number: u16,
    }

    #[derive(Deserialize, JsonSchema)]
    #[allow(dead_code)]
    struct Watch {
        /// The interface.
        interface: String,
    }

    fn seven() -> u16 {
        7
    }

    #[test]
    fn lists_every_key_with_its_meaning() {
        let info = ServiceInfo {
            name: "example",
            version: "1",
            migrator: None,
        };
        let text = reference::<Config>(&info);
        for part in [
            "# Configuration of example",
            "| `number` | integer | `7` | A number for people. |",
            "## `[core.identity]`",
            "| `trust_domain` | text | required |",
            "## `[core.bus]`",
            "## `[core.database]`",
            "| `listen` | text | `\"127.0.0.1:9100\"` |",
            "| `iam_endpoint` | text | not set |",
            "`json`: One JSON object a line",
            "## `[[watch]]`",
            "| `interface` | text | required | The interface. |",
        ] {
            assert!(text.contains(part), "{part:?} is not in:\n{text}");
        }
    }
}
