//! Looking into resources of which only a few fields matter.

use crate::{
    node::{Node, Value},
    sets::Labels,
};

impl Node {
    /// A field of a mapping; `None` when it is missing, empty, or this is no mapping.
    pub(crate) fn at(&self, name: &str) -> Option<&Node> {
        let Value::Map(pairs) = &self.value else { return None };
        pairs
            .iter()
            .find(|(key, _)| matches!(&key.value, Value::Text(text) if text == name))
            .map(|(_, value)| value)
            .filter(|value| !matches!(value.value, Value::Null))
    }

    /// A field of fields.
    pub(crate) fn path(&self, names: &[&str]) -> Option<&Node> {
        names.iter().try_fold(self, |node, name| node.at(name))
    }

    /// A text.
    pub(crate) fn as_text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A text in a field.
    pub(crate) fn text_at(&self, name: &str) -> Option<&str> {
        self.at(name)?.as_text()
    }

    /// A port number.
    pub(crate) fn as_port(&self) -> Option<u16> {
        match self.value {
            Value::Integer(number) => u16::try_from(number).ok(),
            _ => None,
        }
    }

    /// The elements of a list in a field; nothing when it is missing or no list.
    pub(crate) fn items_at(&self, name: &str) -> &[Node] {
        match self.at(name).map(|node| &node.value) {
            Some(Value::List(list)) => list,
            _ => &[],
        }
    }

    /// Text by text, as labels and annotations are. What is no text is left out.
    pub(crate) fn labels(&self) -> Labels {
        let Value::Map(pairs) = &self.value else {
            return Labels::new();
        };
        pairs
            .iter()
            .filter_map(|(key, value)| Some((key.as_text()?.to_owned(), value.as_text()?.to_owned())))
            .collect()
    }
}
