//! The last good state of a feed, as text: a line for the reader's own use, then an indicator a line, each a JSON list.

use serde::{Deserialize, Serialize};

use super::{FeedError, Limits};
use crate::{
    index::Index,
    indicator::{Indicator, Span},
    value::{Kind, Value},
};

/// Kind, value, confidence, deliberate, from, until, reference, context, labels, techniques.
#[derive(Serialize, Deserialize)]
struct Line(
    String,
    String,
    u8,
    bool,
    u32,
    u32,
    String,
    String,
    Vec<String>,
    Vec<String>,
);

/// Writes what an index has of a source. `note` comes back from [`read`].
pub fn write(index: &Index, source: &str, note: &str) -> String {
    let mut text = serde_json::Value::from(note).to_string();
    text.push('\n');
    for entry in index.entries() {
        let value = entry.to_value();
        for claim in entry.claims().filter(|c| c.source == source) {
            let line = Line(
                value.kind().name().to_owned(),
                value.to_string(),
                claim.confidence(),
                claim.deliberate(),
                claim.span.from,
                claim.span.until,
                claim.reference.to_owned(),
                claim.context().to_owned(),
                claim.labels().map(str::to_owned).collect(),
                claim.techniques().map(str::to_owned).collect(),
            );
            // Texts and numbers always become JSON.
            if let Ok(line) = serde_json::to_string(&line) {
                text.push_str(&line);
                text.push('\n');
            }
        }
    }
    text
}

/// Reads what was written: the note, and each indicator with whether it was deliberate.
///
/// # Errors
/// [`FeedError`] when it was not written by [`write`].
pub fn read(text: &str, limits: &Limits, mut take: impl FnMut(Indicator, bool)) -> Result<String, FeedError> {
    let wrong = |line: usize, what: &dyn std::fmt::Display| FeedError::Format {
        format: "a stored feed",
        what: format!("line {line}: {what}"),
    };
    let mut lines = text.lines().enumerate();
    let note = match lines.next() {
        Some((_, note)) => serde_json::from_str::<String>(note).map_err(|e| wrong(1, &e))?,
        None => return Err(wrong(1, &"it is empty")),
    };
    let mut taken = 0;
    for (number, line) in lines {
        let Line(kind, value, confidence, deliberate, from, until, reference, context, labels, techniques) =
            serde_json::from_str(line).map_err(|e| wrong(number + 1, &e))?;
        let kind = Kind::of_name(&kind).ok_or_else(|| wrong(number + 1, &"the kind is unknown"))?;
        let indicator = Indicator {
            value: Value::parse(kind, &value).map_err(|e| wrong(number + 1, &e))?,
            confidence: Some(confidence),
            span: Span { from, until },
            labels,
            techniques,
            reference,
            context,
        };
        taken += 1;
        if taken > limits.indicators {
            break;
        }
        take(indicator, deliberate);
    }
    Ok(note)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::Builder;

    #[test]
    fn what_is_written_reads_back() {
        let mut builder = Builder::new(10, 0);
        for (text, source) in [("192.0.2.1", "a"), ("*.evil.example", "a"), ("198.51.100.0/24", "b")] {
            let mut indicator = Indicator::of(Value::guess(text, false).unwrap());
            indicator.labels = vec!["c2 \"quoted\"".to_owned()];
            indicator.techniques = vec!["T1071".to_owned()];
            indicator.reference = "indicator--1".to_owned();
            indicator.span = Span::of(Some(5), None);
            builder.add(source, &indicator, 70, source == "a").unwrap();
        }
        let index = builder.build();
        let text = write(&index, "a", "cursor\n1");
        let mut again = Builder::new(10, 0);
        let note = read(&text, &Limits::default(), |indicator, deliberate| {
            again.add("a", &indicator, 0, deliberate).unwrap();
        });
        assert_eq!(note.unwrap(), "cursor\n1");
        let again = again.build();
        assert_eq!(again.len(), 2);
        assert_eq!(write(&again, "a", "cursor\n1").lines().count(), 3);
        for entry in again.entries() {
            let claim = entry.claims().next().unwrap();
            assert_eq!((claim.confidence(), claim.deliberate(), claim.span.from), (70, true, 5));
            assert_eq!(claim.labels().collect::<Vec<_>>(), ["c2 \"quoted\""]);
        }
        for odd in [
            "",
            "x",
            "\"n\"\n[1]",
            "\"n\"\n[\"odd\",\"v\",1,false,0,0,\"\",\"\",[],[]]",
        ] {
            assert!(read(odd, &Limits::default(), |_, _| {}).is_err(), "{odd}");
        }
    }
}
