//! YAML as a tree whose every value knows its place, read under bounds.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{DuplicateKeyPolicy, Error, MergeKeyPolicy, NonFiniteFloatPolicy, Spanned, budget::BudgetBreach};

use serde_json::Value as Json;

use crate::{
    Limits,
    diagnostic::{Code, Diagnostic, Level, Position},
};

const LIMIT_REMEDY: &str = "Split the policy into smaller documents, nest less, and write aliases out";

/// A value and its place.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) position: Position,
}

#[derive(Clone, Debug)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    /// Pairs in the order of the text, repeated keys included.
    Map(Vec<(Node, Node)>),
}

impl Node {
    fn placeless(value: Value) -> Self {
        Self {
            value,
            position: Position::default(),
        }
    }
}

impl Value {
    /// What it is, for a message.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Null => "nothing".to_owned(),
            Self::Bool(value) => format!("the boolean {value}"),
            Self::Integer(value) => format!("the number {value}"),
            Self::Float(value) => format!("the number {value}"),
            Self::Text(text) => format!("the text {:?}", shorten(text)),
            Self::List(_) => "a list".to_owned(),
            Self::Map(_) => "a mapping".to_owned(),
        }
    }
}

/// At most 60 characters of a text, for a message.
pub(crate) fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(60).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        let place = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(Self {
            value: spanned.value,
            position: Position {
                line: place(spanned.referenced.line()),
                column: place(spanned.referenced.column()),
            },
        })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any YAML value")
            }
            fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
                Ok(Value::Bool(v))
            }
            fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
                Ok(Value::Integer(v.into()))
            }
            fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
                Ok(Value::Integer(v.into()))
            }
            fn visit_i128<E>(self, v: i128) -> Result<Value, E> {
                Ok(Value::Integer(v))
            }
            fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
                Ok(Value::Float(v))
            }
            fn visit_str<E>(self, v: &str) -> Result<Value, E> {
                Ok(Value::Text(v.to_owned()))
            }
            fn visit_string<E>(self, v: String) -> Result<Value, E> {
                Ok(Value::Text(v))
            }
            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }
            fn visit_none<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }
            fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
                Value::deserialize(d)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
                let mut list = Vec::new();
                while let Some(node) = seq.next_element()? {
                    list.push(node);
                }
                Ok(Value::List(list))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Value::Map(pairs))
            }
        }

        deserializer.deserialize_any(Any)
    }
}

/// One document of a file: its text and the line before its first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Source<'t> {
    pub(crate) text: &'t str,
    pub(crate) lines_before: u32,
}

/// Cuts a file at its `---` lines. Parts with nothing but comments and directives are left out.
///
/// A line that starts with `---` and then ends or goes on with white space always starts a document
/// (YAML 1.2.2 § 9.1.2 forbids it inside any scalar), so that one broken document does not hide the others.
pub(crate) fn split(text: &str) -> Vec<Source<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut sources = Vec::new();
    let (mut start, mut start_line, mut at) = (0, 0, 0);
    let mut push = |part: std::ops::Range<usize>, line: u32| {
        let says_something = text[part.clone()].lines().any(|line| {
            let line = line.strip_prefix("---").unwrap_or(line).trim();
            !line.is_empty() && !line.starts_with(['#', '%']) && line != "..."
        });
        if says_something {
            sources.push(Source {
                text: &text[part],
                lines_before: line,
            });
        }
    };
    for (number, line) in (0u32..).zip(text.split_inclusive('\n')) {
        let marker = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if marker && at > start {
            push(start..at, start_line);
            (start, start_line) = (at, number);
        }
        at += line.len();
    }
    push(start..at, start_line);
    sources
}

/// Reads one document.
pub(crate) fn parse(source: Source<'_>, limits: &Limits) -> Result<Node, Diagnostic> {
    let mut alias_limits = serde_saphyr::options::AliasLimits::default();
    alias_limits.max_total_replayed_events = limits.replayed;
    alias_limits.max_replay_stack_depth = 8;
    alias_limits.max_alias_expansions_per_anchor = limits.aliases;
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_reader_input_bytes: Some(limits.bytes),
            max_events: limits.nodes.saturating_mul(2),
            max_nodes: limits.nodes,
            max_depth: limits.depth,
            flow_nesting_limit: limits.depth,
            max_aliases: limits.aliases,
            max_anchors: limits.aliases,
            max_recorded_anchor_events: limits.nodes,
            max_documents: 1,
            max_total_scalar_bytes: limits.bytes,
            max_merge_keys: 0,
        },
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        merge_keys: MergeKeyPolicy::AsOrdinary,
        alias_limits: alias_limits,
        strict_booleans: true,
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
        with_snippet: false,
    };
    let mut node: Node = serde_saphyr::from_str_with_options(source.text, options)
        .map_err(|error| diagnose(&error, source.lines_before))?;
    shift(&mut node, source.lines_before);
    Ok(node)
}

/// Takes one document that was read as JSON. Its values have no place.
pub(crate) fn from_json(value: &Json, limits: &Limits) -> Result<Node, Diagnostic> {
    let mut counted = Counted {
        nodes: 0,
        bytes: 0,
        limits,
    };
    counted.take(value, 0).map_err(|breach| Diagnostic {
        level: Level::Error,
        code: Code::Limit,
        field: String::new(),
        position: Position::default(),
        message: format!("the document passes a limit: {}", breached(&breach)),
        remedy: LIMIT_REMEDY.to_owned(),
    })
}

/// What was taken so far.
struct Counted<'l> {
    nodes: usize,
    bytes: usize,
    limits: &'l Limits,
}

impl Counted<'_> {
    fn take(&mut self, json: &Json, depth: usize) -> Result<Node, BudgetBreach> {
        self.nodes += 1;
        self.count(0)?;
        let value = match json {
            Json::Null => Value::Null,
            Json::Bool(value) => Value::Bool(*value),
            Json::Number(number) => match number.as_i128() {
                Some(integer) => Value::Integer(integer),
                None => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => {
                self.count(text.len())?;
                Value::Text(text.clone())
            }
            Json::Array(list) => {
                let depth = self.deeper(depth)?;
                let mut nodes = Vec::with_capacity(list.len());
                for value in list {
                    nodes.push(self.take(value, depth)?);
                }
                Value::List(nodes)
            }
            Json::Object(map) => {
                let depth = self.deeper(depth)?;
                let mut pairs = Vec::with_capacity(map.len());
                for (key, value) in map {
                    self.nodes += 1;
                    self.count(key.len())?;
                    pairs.push((Node::placeless(Value::Text(key.clone())), self.take(value, depth)?));
                }
                Value::Map(pairs)
            }
        };
        Ok(Node::placeless(value))
    }

    fn deeper(&self, depth: usize) -> Result<usize, BudgetBreach> {
        let depth = depth + 1;
        if depth > self.limits.depth {
            return Err(BudgetBreach::Depth { depth });
        }
        Ok(depth)
    }

    fn count(&mut self, bytes: usize) -> Result<(), BudgetBreach> {
        self.bytes += bytes;
        if self.nodes > self.limits.nodes {
            return Err(BudgetBreach::Nodes { nodes: self.nodes });
        }
        if self.bytes > self.limits.bytes {
            return Err(BudgetBreach::ScalarBytes {
                total_scalar_bytes: self.bytes,
            });
        }
        Ok(())
    }
}

fn shift(node: &mut Node, lines: u32) {
    node.position.line = node.position.line.saturating_add(lines);
    match &mut node.value {
        Value::List(list) => list.iter_mut().for_each(|node| shift(node, lines)),
        Value::Map(pairs) => {
            for (key, value) in pairs {
                shift(key, lines);
                shift(value, lines);
            }
        }
        _ => {}
    }
}

fn diagnose(error: &Error, lines_before: u32) -> Diagnostic {
    let error = root(error);
    let position = error.location().map_or(Position::default(), |place| Position {
        line: u32::try_from(place.line())
            .unwrap_or(u32::MAX)
            .saturating_add(lines_before),
        column: u32::try_from(place.column()).unwrap_or(u32::MAX),
    });
    let limit = matches!(
        error,
        Error::Budget { .. }
            | Error::AliasReplayLimitExceeded { .. }
            | Error::AliasExpansionLimitExceeded { .. }
            | Error::AliasReplayStackDepthExceeded { .. }
            | Error::AliasReplayCounterOverflow { .. }
    );
    let text = match error {
        Error::Budget { breach, .. } => breached(breach),
        error => error.to_string(),
    };
    // The scanner's own bound on brackets is told by its text only.
    let limit = limit || text.contains("recursion limit exceeded");
    // The place is reported as data; the library also writes it into its first line.
    let first = text.lines().next().unwrap_or_default();
    let message = match first.find(" at line ").or_else(|| first.find(" (line ")) {
        Some(end) => &first[..end],
        None => first,
    };
    let (code, remedy) = if limit {
        (Code::Limit, LIMIT_REMEDY)
    } else {
        (
            Code::Syntax,
            "Correct the YAML here; often the indentation, a missing space after a colon or an open quote is at fault",
        )
    };
    Diagnostic {
        level: Level::Error,
        code,
        field: String::new(),
        position,
        message: if limit {
            format!("the document passes a limit: {message}")
        } else {
            format!("this is not valid YAML: {message}")
        },
        remedy: remedy.to_owned(),
    }
}

fn breached(breach: &BudgetBreach) -> String {
    match breach {
        BudgetBreach::Depth { depth } => format!("it nests {depth} levels deep"),
        BudgetBreach::Nodes { nodes } => format!("it has {nodes} values or more"),
        BudgetBreach::Events { events } => format!("it has {events} parts or more"),
        BudgetBreach::Aliases { aliases } => format!("it uses {aliases} aliases or more"),
        BudgetBreach::Anchors { anchors } => format!("it has {anchors} anchors or more"),
        BudgetBreach::AliasAnchorRatio { aliases, anchors } => {
            format!("it uses {aliases} aliases of only {anchors} anchors")
        }
        BudgetBreach::ScalarBytes { total_scalar_bytes } => {
            format!("it has {total_scalar_bytes} bytes of text or more")
        }
        other => format!("{other:?}"),
    }
}

/// The error itself, without what shows or locates it.
fn root(error: &Error) -> &Error {
    match error.without_snippet() {
        Error::AliasError { error, .. } => root(error),
        error => error,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_file_is_cut_at_its_markers_and_keeps_its_lines() {
        let text = "# licence\n---\na: 1\n---\n# only a comment\n--- \nb: |\n  --- inside\n...\n";
        let parts = split(text);
        assert_eq!(parts.len(), 2);
        assert_eq!(parts[0].lines_before, 1);
        assert_eq!(parts[1].lines_before, 5);
        let second = parse(parts[1], &Limits::default()).unwrap();
        let Value::Map(pairs) = &second.value else {
            panic!("{second:?}")
        };
        assert_eq!(pairs[0].0.position, Position { line: 7, column: 1 });
        assert!(matches!(&pairs[0].1.value, Value::Text(t) if t == "--- inside\n"));
    }

    /// Like JSON itself, but of few letters and numbers.
    fn json() -> impl Strategy<Value = Json> {
        let leaf = prop_oneof![
            Just(Json::Null),
            any::<bool>().prop_map(Json::from),
            any::<i64>().prop_map(Json::from),
            any::<u64>().prop_map(Json::from),
            (-1e9f64..1e9).prop_map(Json::from),
            "\\PC{0,6}".prop_map(Json::from),
            prop::sample::select(vec![
                "~", "yes", "null", "0x1f", "1e3", "&a", "*a", "- a", "<<", "!!int 3", "\n", "\u{0}", "#"
            ])
            .prop_map(Json::from),
        ];
        leaf.prop_recursive(5, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Json::from),
                prop::collection::btree_map("\\PC{0,4}", inner, 0..6)
                    .prop_map(|map| Json::Object(map.into_iter().collect())),
            ]
        })
    }

    fn placed_nowhere(node: &mut Node) {
        node.position = Position::default();
        match &mut node.value {
            Value::List(list) => list.iter_mut().for_each(placed_nowhere),
            Value::Map(pairs) => pairs.iter_mut().for_each(|(key, value)| {
                placed_nowhere(key);
                placed_nowhere(value);
            }),
            _ => {}
        }
    }

    proptest! {
        #[test]
        fn json_is_taken_as_its_text_is_read(json in json()) {
            let limits = Limits { depth: 4, nodes: 60, ..Limits::default() };
            let text = json.to_string();
            let read = parse(Source { text: &text, lines_before: 0 }, &limits);
            match (read, from_json(&json, &limits)) {
                (Ok(mut read), Ok(taken)) => {
                    placed_nowhere(&mut read);
                    prop_assert_eq!(format!("{read:?}"), format!("{taken:?}"));
                }
                (Err(read), Err(taken)) => prop_assert_eq!(read.code, taken.code),
                (read, taken) => prop_assert!(false, "{text}: {read:?} {taken:?}"),
            }
        }
    }

    #[test]
    fn every_value_knows_its_place() {
        let source = split("a:\n  - b: 5\n    b: yes\n");
        let node = parse(source[0], &Limits::default()).unwrap();
        let Value::Map(outer) = &node.value else { panic!() };
        let Value::List(list) = &outer[0].1.value else { panic!() };
        let Value::Map(inner) = &list[0].value else { panic!() };
        assert_eq!(inner.len(), 2, "repeated keys are kept");
        assert_eq!(inner[1].0.position, Position { line: 3, column: 5 });
        assert_eq!(inner[1].1.position, Position { line: 3, column: 8 });
        assert!(
            matches!(&inner[1].1.value, Value::Text(t) if t == "yes"),
            "yes is text in YAML 1.2"
        );
    }
}
