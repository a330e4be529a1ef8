use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{EnforcerNode, Retention, STREAMS, StreamSpec};
use crate::BusError;

/// What [`apply`](super::apply) should provision besides the fixed part.
#[derive(Debug, Clone)]
pub struct ApplyOptions {
    /// Nodes with an enforcer; each gets its own consumer.
    pub enforcers: Vec<EnforcerNode>,
    /// Copies of each stream in a broker cluster, 1 to 5.
    pub replicas: usize,
    /// Limits of single streams, by name, where they are not the default.
    pub limits: BTreeMap<String, StreamLimits>,
}

/// Limits of one stream. What is `None` is as in [`STREAMS`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StreamLimits {
    /// Most bytes it holds.
    pub max_bytes: Option<i64>,
    /// Longest time it holds a message.
    pub max_age: Option<Duration>,
}

impl Default for ApplyOptions {
    fn default() -> Self {
        Self {
            enforcers: Vec::new(),
            replicas: 1,
            limits: BTreeMap::new(),
        }
    }
}

impl ApplyOptions {
    /// The streams with these limits.
    ///
    /// # Errors
    /// [`BusError::Config`] names the stream and what is wrong with its limit.
    pub(super) fn streams(&self) -> Result<Vec<StreamSpec>, BusError> {
        let refuse = |key, reason| Err(BusError::Config { key, reason });
        if !(1..=5).contains(&self.replicas) {
            return refuse("replicas", format!("{} is not within 1 to 5", self.replicas));
        }
        if let Some(unknown) = self.limits.keys().find(|name| !STREAMS.iter().any(|s| s.name == *name)) {
            let names: Vec<&str> = STREAMS.iter().map(|stream| stream.name).collect();
            return refuse("stream", format!("{unknown:?} is none of {}", names.join(", ")));
        }
        let mut seen = BTreeSet::new();
        if let Some(node) = self.enforcers.iter().find(|node| !seen.insert(node.name())) {
            return refuse("enforcers", format!("node {:?} is named twice", node.name()));
        }
        let mut streams = Vec::with_capacity(STREAMS.len());
        for spec in STREAMS {
            let mut spec = spec.clone();
            let limits = self.limits.get(spec.name).copied().unwrap_or_default();
            if let Some(bytes) = limits.max_bytes {
                if bytes < 1 {
                    return refuse("max_bytes", format!("{}: {bytes} leaves no room", spec.name));
                }
                spec.max_bytes = bytes;
            }
            if let Some(age) = limits.max_age {
                if spec.retention == Retention::Interest && spec.max_age.is_zero() {
                    return refuse(
                        "max_age",
                        format!(
                            "{}: a record stays until it is in the log, however long that takes",
                            spec.name
                        ),
                    );
                }
                if age < spec.duplicate_window {
                    return refuse(
                        "max_age",
                        format!(
                            "{}: {} s is shorter than the {} s within which repeats are known",
                            spec.name,
                            age.as_secs(),
                            spec.duplicate_window.as_secs()
                        ),
                    );
                }
                spec.max_age = age;
            }
            streams.push(spec);
        }
        Ok(streams)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(stream: &str, max_bytes: Option<i64>, max_age: Option<u64>) -> ApplyOptions {
        let limits = StreamLimits {
            max_bytes,
            max_age: max_age.map(Duration::from_secs),
        };
        ApplyOptions {
            limits: BTreeMap::from([(stream.to_owned(), limits)]),
            ..ApplyOptions::default()
        }
    }

    #[test]
    fn limits_are_those_of_their_stream_alone() {
        let streams = with("FLOWS", Some(7), Some(3_600)).streams().unwrap();
        for (given, default) in streams.iter().zip(STREAMS) {
            if given.name == "FLOWS" {
                assert_eq!((given.max_bytes, given.max_age.as_secs()), (7, 3_600));
            } else {
                assert_eq!(given, default);
            }
        }
        assert_eq!(ApplyOptions::default().streams().unwrap(), STREAMS);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (options, said) in [
            (with("flows", Some(7), None), "\"flows\" is none of FLOWS, ALERTS"),
            (with("ALERTS", Some(0), None), "ALERTS: 0 leaves no room"),
            (with("ALERTS", None, Some(60)), "ALERTS: 60 s is shorter than the 900 s"),
            (with("AUDIT", None, Some(864_000)), "AUDIT: a record stays"),
            (
                ApplyOptions {
                    replicas: 0,
                    ..ApplyOptions::default()
                },
                "replicas",
            ),
            (
                ApplyOptions {
                    enforcers: ["a=acme", "a=globex"].map(|node| node.parse().unwrap()).into(),
                    ..ApplyOptions::default()
                },
                "\"a\" is named twice",
            ),
        ] {
            let error = options.streams().unwrap_err().to_string();
            assert!(error.contains("GAR-BUS-0008") && error.contains(said), "{error}");
        }
    }
}
