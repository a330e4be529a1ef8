//! STIX 2.1: bundles, and the envelopes of TAXII servers.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::{
    FeedError, Sink,
    json::{self, each_object, text, texts},
    pattern, technique, time,
};
use crate::indicator::{Indicator, Span};

const FORMAT: &str = "STIX 2.1";

/// Most objects that relationships are followed to, and most relationships.
const MOST_KNOWN: usize = 200_000;

/// A STIX 2.1 bundle. Techniques and names of malware, tools, campaigns and actors come over `indicates` relationships.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stix {
    /// Names stand for all below them too. STIX itself means the name alone.
    pub subdomains: bool,
}

/// What indicators may be said to indicate.
#[derive(Default)]
struct Known {
    /// Techniques and names, by id.
    objects: HashMap<String, (Option<String>, String)>,
    /// Ids of what an indicator indicates, by its id.
    indicates: HashMap<String, Vec<String>>,
    /// The latest version of each indicator that is there several times, by id.
    latest: HashMap<String, String>,
}

impl Stix {
    /// Reads bundles or pages that belong together.
    pub(super) fn read(&self, pages: &[&[u8]], sink: &mut Sink<'_>) -> Result<(), FeedError> {
        let mut known = Known::default();
        for page in pages {
            each_object(page, |_, object| known.learn(object)).map_err(|e| json::error(FORMAT, &e))?;
        }
        let mut done = HashSet::new();
        for page in pages {
            each_object(page, |number, object| {
                self.object(number, object, &known, &mut done, sink)
            })
            .map_err(|e| json::error(FORMAT, &e))?;
        }
        Ok(())
    }

    fn object(&self, number: u64, object: &Value, known: &Known, done: &mut HashSet<String>, sink: &mut Sink<'_>) {
        let Some(object) = object.as_object() else {
            return sink.bad(|| format!("object {number}"), "it is no object");
        };
        if text(object, "type") != "indicator" {
            return;
        }
        let id = text(object, "id");
        let place = || format!("object {number} ({id})");
        let version = text(object, "modified");
        if known.latest.get(id).is_some_and(|latest| latest != version) || !done.insert(id.to_owned()) && !id.is_empty()
        {
            sink.report.left_out += 1;
            return;
        }
        if object.get("revoked").and_then(Value::as_bool) == Some(true) {
            sink.report.left_out += 1;
            return;
        }
        match text(object, "pattern_type") {
            "" | "stix" => {}
            other => return sink.not_understood(place, format_args!("its pattern is of type {other}, not stix")),
        }
        let read = pattern::read(text(object, "pattern"), self.subdomains);
        let span = Span::of(time(text(object, "valid_from")), time(text(object, "valid_until")));
        if span.from > span.until {
            return sink.bad(place, "valid_until is before valid_from");
        }
        if !read.not_understood.is_empty() {
            sink.not_understood(place, read.not_understood.join("; "));
        }
        let (labels, techniques) = known.said_of(id, object);
        let confidence = object.get("confidence").and_then(Value::as_u64);
        for value in read.values {
            sink.take(Indicator {
                value,
                confidence: confidence.and_then(|c| u8::try_from(c).ok()).filter(|c| *c <= 100),
                span,
                labels: labels.clone(),
                techniques: techniques.clone(),
                reference: id.to_owned(),
                context: text(object, "name").to_owned(),
            });
        }
    }
}

impl Known {
    fn learn(&mut self, object: &Value) {
        let Some(object) = object.as_object() else { return };
        let id = text(object, "id");
        match text(object, "type") {
            "indicator" => {
                let version = text(object, "modified");
                // Times of one form compare as texts.
                if self.latest.get(id).is_none_or(|latest| latest.as_str() < version)
                    && self.latest.len() < 10 * MOST_KNOWN
                {
                    self.latest.insert(id.to_owned(), version.to_owned());
                }
            }
            "relationship" if text(object, "relationship_type") == "indicates" && self.indicates.len() < MOST_KNOWN => {
                let targets = self.indicates.entry(text(object, "source_ref").to_owned()).or_default();
                if targets.len() < 8 {
                    targets.push(text(object, "target_ref").to_owned());
                }
            }
            "attack-pattern" | "malware" | "tool" | "campaign" | "threat-actor" | "intrusion-set"
            | "infrastructure"
                if self.objects.len() < MOST_KNOWN =>
            {
                let name = text(object, "name").to_owned();
                self.objects.insert(id.to_owned(), (attack_id(object), name));
            }
            _ => {}
        }
    }

    fn said_of(&self, id: &str, object: &Map<String, Value>) -> (Vec<String>, Vec<String>) {
        let mut labels: Vec<String> = Vec::new();
        let mut techniques: Vec<String> = attack_id(object).into_iter().collect();
        for word in texts(object, "indicator_types").chain(texts(object, "labels")) {
            match technique(word) {
                Some(technique) => techniques.push(technique),
                None => labels.push(word.to_owned()),
            }
        }
        for target in self.indicates.get(id).into_iter().flatten() {
            match self.objects.get(target) {
                Some((Some(technique), _)) => techniques.push(technique.clone()),
                Some((None, name)) if !name.is_empty() => labels.push(name.clone()),
                _ => {}
            }
        }
        for words in [&mut labels, &mut techniques] {
            let mut seen = HashSet::new();
            words.retain(|w| seen.insert(w.clone()));
        }
        (labels, techniques)
    }
}

// The id that MITRE ATT&CK gives it.
fn attack_id(object: &Map<String, Value>) -> Option<String> {
    let references = object.get("external_references")?.as_array()?;
    let mitre = references.iter().filter_map(Value::as_object);
    mitre
        .filter(|r| text(r, "source_name").starts_with("mitre"))
        .find_map(|r| technique(text(r, "external_id")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feed::{Format, Limits, read, tests::shown};

    const BUNDLE: &str = r#"{"type":"bundle","id":"bundle--1","objects":[
        {"type":"relationship","id":"relationship--1","relationship_type":"indicates","source_ref":"indicator--1","target_ref":"attack-pattern--1"},
        {"type":"relationship","id":"relationship--2","relationship_type":"indicates","source_ref":"indicator--1","target_ref":"malware--1"},
        {"type":"indicator","id":"indicator--1","pattern_type":"stix","confidence":80,"labels":["c2"],"valid_from":"2026-01-01T00:00:00Z",
         "modified":"2026-01-02T00:00:00.000Z","pattern":"[ipv4-addr:value = '192.0.2.1']","name":"a controller"},
        {"type":"indicator","id":"indicator--1","pattern_type":"stix","modified":"2026-01-01T00:00:00.000Z","pattern":"[ipv4-addr:value = '192.0.2.9']"},
        {"type":"indicator","id":"indicator--2","pattern_type":"snort","pattern":"alert tcp"},
        {"type":"indicator","id":"indicator--3","revoked":true,"pattern":"[domain-name:value = 'gone.example']"},
        {"type":"indicator","id":"indicator--4","pattern":"[process:name = 'x' OR domain-name:value = 'evil.example']","confidence":"high"},
        {"type":"indicator","id":"indicator--5","pattern":"[url:value='http://a.example/']","valid_from":"2026-01-02T00:00:00Z","valid_until":"2026-01-01T00:00:00Z"},
        {"type":"attack-pattern","id":"attack-pattern--1","name":"Web Protocols","external_references":[{"source_name":"mitre-attack","external_id":"T1071.001"}]},
        {"type":"malware","id":"malware--1","name":"Rat"},
        "odd", 7, {"type":5}
    ]}"#;

    #[test]
    fn a_bundle_is_read_with_what_it_indicates() {
        let (taken, report) = shown(&Format::Stix(Stix::default()), BUNDLE);
        assert_eq!(
            taken,
            [
                "address 192.0.2.1 80% c2 Rat T1071.001 <indicator--1>",
                "domain evil.example <indicator--4>"
            ]
        );
        assert_eq!(
            (report.taken, report.bad, report.not_understood, report.left_out),
            (2, 3, 2, 2)
        );
        let problems: Vec<String> = report.problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            problems[0],
            "object 5 (indicator--2): its pattern is of type snort, not stix"
        );
        assert!(problems[1].contains("process:name is not looked up"), "{problems:?}");
        assert!(problems[2].contains("valid_until is before valid_from"), "{problems:?}");
    }

    #[test]
    fn what_is_no_bundle_is_refused_with_its_place() {
        let stix = Format::Stix(Stix::default());
        let error = |text: &str| read(&stix, text.as_bytes(), &Limits::default(), &mut |_| {}).unwrap_err();
        assert!(
            error("{\"type\":\"bundle\",\n\"objects\":[{]}")
                .to_string()
                .contains("line 2 column")
        );
        assert!(
            error("{\"type\":\"report\"}")
                .to_string()
                .contains("no list called objects")
        );
        assert!(error("12").to_string().starts_with("it is not STIX 2.1"));
        assert!(error("").to_string().contains("EOF"));
        let deep = format!("{{\"objects\":{}", "[".repeat(100_000));
        assert!(error(&deep).to_string().contains("recursion"));
        // An envelope of a server that has nothing, and a bare list.
        for empty in ["{}", "{\"more\":false}", "[]", "{\"type\":\"bundle\"}"] {
            assert_eq!(shown(&stix, empty).1.taken, 0, "{empty}");
        }
    }
}
