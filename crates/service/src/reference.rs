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
            let (inner, repeated) = match (resolved.get("items"), self.values(resolved)) {
                (Some(items), _) => (self.resolve(items).0, true),
                (None, Some(values)) => (values, false),
                (None, None) => (resolved, false),
            };
            let keyed = self.values(resolved).map(|_| map_key(property, resolved));
            let must = required.contains(&name.as_str());
            let key = if path.is_empty() {
                name.clone()
            } else {
                format!("{path}.{name}")
            };
            if inner.get("properties").is_some() {
                let key = match keyed {
                    Some(named) => format!("{key}.<{named}>"),
                    None => key,
                };
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
            meaning.push_str(&choices(inner));
            let default = match property.get("default") {
                _ if must => "required".to_owned(),
                Some(Value::Null) | None => if nullable { "not set" } else { "" }.to_owned(),
                Some(Value::Object(entries)) if entries.is_empty() => "none".to_owned(),
                Some(value) => format!("`{value}`"),
            };
            let _ = writeln!(
                rows,
                "| `{name}` | {} | {default} | {} |",
                match keyed {
                    Some(named) => format!("table: {named} to {}", self.kind(inner)),
                    None => self.kind(resolved),
                },
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

    /// What the values of a map are like, when the schema is one.
    fn values(&self, schema: &'a Value) -> Option<&'a Value> {
        let values = schema.get("additionalProperties").filter(|values| values.is_object())?;
        Some(self.resolve(values).0)
    }

    fn kind(&self, schema: &'a Value) -> String {
        let words = words(schema);
        if !words.is_empty() {
            let words: Vec<&str> = words.iter().map(|(word, _)| word.as_str()).collect();
            return format!("one of {}", words.join(", "));
        }
        if let Some(items) = schema.get("items") {
            return format!("list of {}", self.kind(self.resolve(items).0));
        }
        if let Some(values) = self.values(schema) {
            return format!("table: {} to {}", map_key(schema, schema), self.kind(values));
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

/// What the keys of a map are; a field says it with `#[schemars(extend("x-key" = "tenant id"))]`.
fn map_key<'a>(property: &'a Value, resolved: &'a Value) -> &'a str {
    let named = |schema: &'a Value| schema.get("x-key").and_then(Value::as_str);
    named(property).or_else(|| named(resolved)).unwrap_or("name")
}

/// The words a value may be, each with its meaning.
fn words(schema: &Value) -> Vec<(String, String)> {
    let word = |value: &Value| value.as_str().map(|word| format!("`\"{word}\"`"));
    let named = |part: &Value| -> Vec<String> {
        let several = part.get("enum").and_then(Value::as_array).into_iter().flatten();
        part.get("const").into_iter().chain(several).filter_map(word).collect()
    };
    let mut words: Vec<(String, String)> = Vec::new();
    for part in schema.get("oneOf").and_then(Value::as_array).into_iter().flatten() {
        let meaning = description(part);
        words.extend(named(part).into_iter().map(|word| (word, meaning.clone())));
    }
    words.extend(named(schema).into_iter().map(|word| (word, String::new())));
    words
}

/// The meanings of the words a value may be.
fn choices(schema: &Value) -> String {
    let said: Vec<String> = words(schema)
        .into_iter()
        .filter(|(_, meaning)| !meaning.is_empty())
        .map(|(word, meaning)| format!("{word}: {}", meaning.trim_end_matches('.')))
        .collect();
    if said.is_empty() {
        String::new()
    } else {
        format!(" {}.", said.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Serialize};

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
        /// How fast.
        #[serde(default)]
        pace: Pace,
        /// Any of these.
        #[serde(default)]
        paces: Vec<Pace>,
        /// Who may go where.
        #[serde(default)]
        #[schemars(extend("x-key" = "node"))]
        routes: BTreeMap<String, Vec<String>>,
        /// What single sites have for themselves.
        #[serde(default)]
        #[schemars(extend("x-key" = "site"))]
        sites: BTreeMap<String, Watch>,
    }

    #[derive(Default, Deserialize, Serialize, JsonSchema)]
    #[serde(rename_all = "lowercase")]
    enum Pace {
        /// At once.
        #[default]
        Fast,
        /// With pauses.
        Slow,
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
            "| `log_format` | one of `\"auto\"`, `\"text\"`, `\"json\"` | `\"auto\"` | ",
            "`\"json\"`: One JSON object a line",
            "| `pace` | one of `\"fast\"`, `\"slow\"` | `\"fast\"` | How fast. `\"fast\"`: At once; `\"slow\"`: With pauses. |",
            "| `paces` | list of one of `\"fast\"`, `\"slow\"` | `[]` | Any of these. `\"fast\"`: At once; `\"slow\"`: With pauses. |",
            "| `routes` | table: node to list of text | none | Who may go where. |",
            "## `[sites.<site>]`\n\nWhat single sites have for themselves.",
            "## `[[watch]]`",
            "| `interface` | text | required | The interface. |",
        ] {
            assert!(text.contains(part), "{part:?} is not in:\n{text}");
        }
    }
}
