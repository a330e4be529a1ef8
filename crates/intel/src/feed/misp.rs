//! MISP: events and attributes as JSON.

use std::collections::HashSet;

use serde::Deserialize;

use super::{
    FeedError, Sink,
    json::{self, Loose},
    technique, time, typed,
};
use crate::indicator::{Indicator, Span};

const FORMAT: &str = "MISP JSON";

/// Events or attributes of MISP: an event, a list of events, or what a search answers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Misp {
    /// Take attributes too that are not meant for detection (`to_ids`).
    pub all_attributes: bool,
    /// Domains stand for all below them too; host names never do.
    pub subdomains: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Whole {
    List(Vec<Wrapped>),
    Answer { response: Response },
    One(Wrapped),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Response {
    Events(Vec<Wrapped>),
    Attributes {
        #[serde(rename = "Attribute")]
        attributes: Vec<Attribute>,
    },
}

#[derive(Deserialize)]
struct Wrapped {
    #[serde(rename = "Event")]
    event: Event,
}

#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    info: Loose,
    #[serde(default, rename = "Attribute")]
    attributes: Vec<Attribute>,
    #[serde(default, rename = "Object")]
    objects: Vec<Object>,
    #[serde(default, rename = "Tag")]
    tags: Vec<Tag>,
}

#[derive(Deserialize)]
struct Object {
    #[serde(default, rename = "Attribute")]
    attributes: Vec<Attribute>,
}

#[derive(Deserialize)]
struct Attribute {
    #[serde(default)]
    uuid: Loose,
    #[serde(default, rename = "type")]
    kind: Loose,
    #[serde(default)]
    value: Loose,
    #[serde(default)]
    to_ids: Loose,
    #[serde(default)]
    deleted: Loose,
    #[serde(default)]
    timestamp: Loose,
    #[serde(default, rename = "Tag")]
    tags: Vec<Tag>,
}

#[derive(Deserialize)]
struct Tag {
    #[serde(default)]
    name: Loose,
}

impl Misp {
    pub(super) fn read(self, feed: &[u8], sink: &mut Sink<'_>) -> Result<(), FeedError> {
        let whole: Whole = serde_json::from_slice(feed).map_err(|e| {
            // What is no JSON has a place; what is other JSON has none.
            if e.is_data() {
                FeedError::Format {
                    format: FORMAT,
                    what: "there is neither an Event nor a response with events or attributes".to_owned(),
                }
            } else {
                json::error(FORMAT, &e)
            }
        })?;
        let events = match whole {
            Whole::List(events)
            | Whole::Answer {
                response: Response::Events(events),
            } => events,
            Whole::One(event) => vec![event],
            Whole::Answer {
                response: Response::Attributes { attributes },
            } => {
                self.attributes("", &attributes, &[], sink);
                return Ok(());
            }
        };
        for Wrapped { event } in &events {
            let info = event.info.as_str();
            self.attributes(info, &event.attributes, &event.tags, sink);
            for object in &event.objects {
                self.attributes(info, &object.attributes, &event.tags, sink);
            }
        }
        Ok(())
    }

    fn attributes(self, info: &str, attributes: &[Attribute], event_tags: &[Tag], sink: &mut Sink<'_>) {
        for (number, attribute) in attributes.iter().enumerate() {
            let place = || format!("attribute {} ({}) of {info:?}", number + 1, attribute.uuid.as_str());
            let meant = attribute.to_ids.is_true() || self.all_attributes;
            if attribute.deleted.is_true() || !meant {
                sink.report.left_out += 1;
                continue;
            }
            let (kind, text) = (attribute.kind.as_str(), attribute.value.as_str());
            // Both parts of such a pair are indicators of their own.
            let parts: Vec<(&str, &str)> = match (kind, text.split_once('|')) {
                ("domain|ip", Some((domain, address))) => vec![("domain", domain), ("ip-dst", address)],
                _ if kind.is_empty() => vec![("unnamed", text)],
                _ => vec![(kind, text)],
            };
            for (kind, text) in parts {
                match typed(kind, text, self.subdomains) {
                    Some(Ok(value)) => {
                        let said = Said::of(event_tags.iter().chain(&attribute.tags));
                        sink.take(Indicator {
                            value,
                            confidence: said.confidence,
                            span: Span::of(time(attribute.timestamp.as_str()), None),
                            labels: said.labels,
                            techniques: said.techniques,
                            reference: attribute.uuid.as_str().to_owned(),
                            context: info.to_owned(),
                        });
                    }
                    Some(Err(error)) => sink.bad(place, error),
                    None => sink.not_understood(
                        place,
                        format_args!("attributes of type {kind:?} are not looked up in flows"),
                    ),
                }
            }
        }
    }
}

/// What tags say.
#[derive(Default)]
struct Said {
    confidence: Option<u8>,
    labels: Vec<String>,
    techniques: Vec<String>,
}

impl Said {
    fn of<'a>(tags: impl Iterator<Item = &'a Tag>) -> Self {
        let mut said = Self::default();
        let mut seen = HashSet::new();
        for tag in tags.map(|t| t.name.as_str()).filter(|t| !t.is_empty()) {
            let quoted = tag.split('"').nth(1).unwrap_or_default();
            if tag.contains("attack-pattern")
                && let Some(technique) = technique(tag)
            {
                if seen.insert(technique.clone()) {
                    said.techniques.push(technique);
                }
            } else if tag.starts_with("misp:confidence-level") {
                // The words of the taxonomy.
                said.confidence = match quoted {
                    "completely-confident" => Some(100),
                    "usually-confident" => Some(75),
                    "fairly-confident" => Some(50),
                    "rarely-confident" => Some(25),
                    "unconfident" => Some(0),
                    _ => said.confidence,
                };
            } else if !tag.starts_with("tlp:") && !tag.starts_with("PAP:") {
                let label = if tag.starts_with("misp-galaxy:") { quoted } else { tag };
                if seen.insert(label.to_owned()) {
                    said.labels.push(label.to_owned());
                }
            }
        }
        said
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feed::{Format, Limits, read, tests::shown};

    const EVENT: &str = r#"{"Event":{"info":"A campaign","Tag":[{"name":"tlp:green"},{"name":"misp-galaxy:banker=\"Qbot\""},
        {"name":"misp-galaxy:mitre-attack-pattern=\"Web Protocols - T1071.001\""}],
        "Attribute":[
         {"uuid":"u1","type":"ip-dst|port","value":"192.0.2.1|443","to_ids":true,"timestamp":"1767323045",
          "Tag":[{"name":"misp:confidence-level=\"usually-confident\""}]},
         {"uuid":"u2","type":"domain|ip","value":"evil.example|192.0.2.2","to_ids":1},
         {"uuid":"u3","type":"ip-src","value":"192.0.2.3","to_ids":false},
         {"uuid":"u4","type":"ip-src","value":"not one","to_ids":"1"},
         {"uuid":"u5","type":"mutex","value":"x","to_ids":true},
         {"uuid":"u6","type":"hostname","value":"h.example","to_ids":true,"deleted":true},
         {"type":{"odd":1},"to_ids":true}],
        "Object":[{"name":"file","Attribute":[
         {"uuid":"u7","type":"md5","value":"0123456789abcdef0123456789abcdef","to_ids":true},
         {"uuid":"u8","type":"ja3-fingerprint-md5","value":"0123456789abcdef0123456789abcdef","to_ids":true}]}]}}"#;

    #[test]
    fn events_are_read_with_their_tags() {
        let misp = Format::Misp(Misp {
            subdomains: true,
            all_attributes: false,
        });
        let (taken, report) = shown(&misp, EVENT);
        assert_eq!(
            taken,
            [
                "address 192.0.2.1 75% Qbot T1071.001 <u1>",
                "domain-tree *.evil.example Qbot T1071.001 <u2>",
                "address 192.0.2.2 Qbot T1071.001 <u2>",
                "file 0123456789abcdef0123456789abcdef Qbot T1071.001 <u7>",
                "ja3 0123456789abcdef0123456789abcdef Qbot T1071.001 <u8>",
            ]
        );
        assert_eq!((report.bad, report.not_understood, report.left_out), (1, 2, 2));
        assert_eq!(
            report.problems[0].to_string(),
            "attribute 4 (u4) of \"A campaign\": \"not one\" is no IP address"
        );
    }

    #[test]
    fn lists_and_answers_are_taken_too() {
        let misp = Format::Misp(Misp {
            all_attributes: true,
            subdomains: false,
        });
        let attribute = r#"{"type":"domain","value":"evil.example"}"#;
        for feed in [
            format!("[{{\"Event\":{{\"Attribute\":[{attribute}]}}}}]"),
            format!("{{\"response\":[{{\"Event\":{{\"Attribute\":[{attribute}]}}}}]}}"),
            format!("{{\"response\":{{\"Attribute\":[{attribute}]}}}}"),
        ] {
            assert_eq!(shown(&misp, &feed).0, ["domain evil.example"], "{feed}");
        }
        let error = |feed: &str| {
            read(&misp, feed.as_bytes(), &Limits::default(), &mut |_| {})
                .unwrap_err()
                .to_string()
        };
        assert!(error("{\"a\":1}").contains("neither an Event nor"));
        assert!(error("{\"Event\":").contains("line 1 column"));
        assert!(error(&"[".repeat(100_000)).contains("recursion"));
    }
}
