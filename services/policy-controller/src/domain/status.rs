//! What a policy's status says.

use serde_json::{Value, json};

use super::{check::Finding, difference::Change, plan::GapReport};

/// Gaps that a status lists; the rest is counted.
const LISTED: usize = 16;
/// Bytes of a condition's message.
const MESSAGE: usize = 1_024;

/// Whether enforcement points have a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Programmed {
    /// They have it.
    Yes,
    /// Its mode does not ask for it.
    NotEnforced,
    /// The document has errors. What was written for it before stays: nothing at all would open what it protects.
    Invalid,
    /// Another's object has the name of one that is to be written.
    Conflict(String),
    /// The cluster lacks the kinds of a target.
    TargetMissing(String),
    /// The API server did not take it; it is tried again.
    Failed(String),
    /// The new version denied too much; the one before is enforced.
    Returned(String),
}

/// How often objects were put back, and the last time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Restored {
    /// How often.
    pub count: u64,
    /// The last time, as the status has it.
    pub last: Option<Value>,
}

impl Restored {
    /// Counts one more.
    pub fn add(&mut self, object: &str, change: Option<&Change>, fields: &[String], now: &str) {
        self.count += 1;
        let mut last = json!({"object": object, "fields": fields, "time": now});
        // An empty text is left out: servers differ in whether they take one.
        if let Some(change) = change {
            last["manager"] = json!(change.manager);
            last["operation"] = json!(change.operation);
        }
        self.last = Some(last);
    }

    /// What an earlier process wrote.
    pub fn read(status: &Value) -> Self {
        Self {
            count: status.get("restored").and_then(Value::as_u64).unwrap_or_default(),
            last: status.get("lastRestored").cloned(),
        }
    }
}

/// Everything that a status tells.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// The generation of `spec` that it is about.
    pub generation: i64,
    /// The generation that is enforced.
    pub enforced_generation: Option<i64>,
    /// What was found in the document.
    pub findings: &'a [Finding],
    /// Whether enforcement points have it.
    pub programmed: &'a Programmed,
    /// Objects made of it.
    pub objects: usize,
    /// What they do not say.
    pub gaps: &'a [GapReport],
    /// What was put back.
    pub restored: &'a Restored,
    /// How the newest version does.
    pub rollout: Option<Value>,
}

/// The status, with the times of conditions that hold as before taken from `before`.
pub fn status(facts: &Facts<'_>, before: &Value, now: &str) -> Value {
    let errors: Vec<String> = facts
        .findings
        .iter()
        .filter(|f| f.refused)
        .map(ToString::to_string)
        .collect();
    let accepted = if errors.is_empty() {
        ("Accepted", true, "Valid", "The document has no errors".to_owned())
    } else {
        ("Accepted", false, "Invalid", errors.join("; "))
    };
    let objects = match facts.objects {
        1 => "1 object".to_owned(),
        n => format!("{n} objects"),
    };
    let (holds, reason, message) = match facts.programmed {
        Programmed::Yes => (true, "Programmed", format!("{objects} written and compared")),
        Programmed::NotEnforced => (
            false,
            "NotEnforced",
            "The mode is not `enforce`: nothing is written for it".to_owned(),
        ),
        Programmed::Invalid => (
            false,
            "Invalid",
            "The document has errors: what was written for it before stays".to_owned(),
        ),
        Programmed::Conflict(message) => (false, "Conflict", message.clone()),
        Programmed::TargetMissing(message) => (false, "TargetMissing", message.clone()),
        Programmed::Failed(message) => (false, "Failed", message.clone()),
        Programmed::Returned(message) => (true, "Returned", message.clone()),
    };
    let programmed = ("Programmed", holds, reason, message);
    let complete = match facts.gaps {
        [] => ("Complete", true, "NoGaps", "Every target says all of it".to_owned()),
        [first, ..] => (
            "Complete",
            false,
            "Gaps",
            format!(
                "{} parts of it are not said, and nothing more is allowed than it says; the first: {}",
                facts.gaps.len(),
                first.reason
            ),
        ),
    };
    let conditions: Vec<Value> = [accepted, programmed, complete]
        .into_iter()
        .map(|(type_, holds, reason, message)| {
            let status = if holds { "True" } else { "False" };
            let earlier = before
                .get("conditions")
                .and_then(Value::as_array)
                .and_then(|conditions| conditions.iter().find(|c| c["type"] == type_ && c["status"] == status));
            let since = earlier.and_then(|c| c["lastTransitionTime"].as_str()).unwrap_or(now);
            json!({
                "type": type_,
                "status": status,
                "reason": reason,
                "message": shorten(&message),
                "observedGeneration": facts.generation,
                "lastTransitionTime": since,
            })
        })
        .collect();
    let gaps: Vec<Value> = facts
        .gaps
        .iter()
        .take(LISTED)
        .map(|gap| {
            let mut entry = json!({"target": gap.target, "reason": shorten(&gap.reason)});
            if !gap.rule.is_empty() {
                entry["rule"] = json!(gap.rule);
            }
            if let Some(target) = gap.closed_by {
                entry["closedBy"] = json!(target);
            }
            entry
        })
        .collect();
    // Null takes a field away in a merge patch.
    json!({
        "observedGeneration": facts.generation,
        "enforcedGeneration": facts.enforced_generation,
        "objects": facts.objects,
        "gapCount": facts.gaps.len(),
        "gaps": if gaps.is_empty() { Value::Null } else { Value::Array(gaps) },
        "restored": facts.restored.count,
        "lastRestored": last_restored(facts.restored, before),
        "rollout": facts.rollout,
        "conditions": conditions,
    })
}

/// A merge patch keeps what it does not name, so what the last report does not have is taken away by name.
fn last_restored(restored: &Restored, before: &Value) -> Option<Value> {
    let mut last = restored.last.clone()?;
    for key in ["manager", "operation"] {
        if last.get(key).is_none() && before.pointer(&format!("/lastRestored/{key}")).is_some() {
            last[key] = Value::Null;
        }
    }
    Some(last)
}

/// Whether a status already says what `wanted` says.
pub fn says(status: &Value, wanted: &Value) -> bool {
    wanted.as_object().into_iter().flatten().all(|(key, value)| {
        let there = status.get(key).unwrap_or(&Value::Null);
        match (there, value) {
            (there @ Value::Object(_), value @ Value::Object(_)) => says(there, value),
            _ => there == value,
        }
    })
}

fn shorten(text: &str) -> String {
    if text.len() <= MESSAGE {
        return text.to_owned();
    }
    let mut end = MESSAGE;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_keeps_its_time_while_it_holds() {
        let restored = Restored::default();
        let mut facts = Facts {
            generation: 1,
            enforced_generation: Some(1),
            findings: &[],
            programmed: &Programmed::Yes,
            objects: 1,
            gaps: &[],
            restored: &restored,
            rollout: None,
        };
        let first = status(&facts, &Value::Null, "2030-01-01T00:00:00Z");
        let second = status(&facts, &first, "2030-01-01T00:01:00Z");
        assert!(says(&first, &second));
        let failed = Programmed::Failed("no".to_owned());
        facts.programmed = &failed;
        let third = status(&facts, &first, "2030-01-01T00:02:00Z");
        assert!(!says(&first, &third));
        assert_eq!(third["conditions"][0]["lastTransitionTime"], "2030-01-01T00:00:00Z");
        assert_eq!(third["conditions"][1]["lastTransitionTime"], "2030-01-01T00:02:00Z");
    }
}
