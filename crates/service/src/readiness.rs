use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use serde::Serialize;
use tokio::sync::watch;

/// What a service still lacks before it can do its work. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Readiness {
    state: Arc<Mutex<State>>,
    ready: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    checks: BTreeMap<&'static str, Option<String>>,
    draining: bool,
}

/// One thing that must be there. Not ready until [`ReadinessFlag::ready`] is called.
#[derive(Debug, Clone)]
pub struct ReadinessFlag {
    name: &'static str,
    readiness: Readiness,
}

/// The answer of `/readyz`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Report {
    pub(crate) ready: bool,
    pub(crate) draining: bool,
    pub(crate) checks: Vec<Check>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    pub(crate) name: &'static str,
    pub(crate) ready: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) lacking: Option<String>,
}

impl Default for Readiness {
    fn default() -> Self {
        Self {
            state: Arc::default(),
            ready: watch::Sender::new(false),
        }
    }
}

impl Readiness {
    /// Adds something that must be there, and is not yet.
    pub fn flag(&self, name: &'static str) -> ReadinessFlag {
        self.change(|state| {
            state
                .checks
                .entry(name)
                .or_insert_with(|| Some("not checked yet".to_owned()));
        });
        ReadinessFlag {
            name,
            readiness: self.clone(),
        }
    }

    /// Whether everything is there and the service is not stopping.
    pub fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }

    /// Follows [`Readiness::is_ready`].
    pub fn subscribe(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    pub(crate) fn drain(&self) {
        self.change(|state| state.draining = true);
    }

    pub(crate) fn report(&self) -> Report {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let checks: Vec<Check> = state
            .checks
            .iter()
            .map(|(name, lacking)| Check {
                name,
                ready: lacking.is_none(),
                lacking: lacking.clone(),
            })
            .collect();
        Report {
            ready: !state.draining && checks.iter().all(|check| check.ready),
            draining: state.draining,
            checks,
        }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            change(&mut state);
            let ready = !state.draining && state.checks.values().all(Option::is_none);
            self.ready
                .send_if_modified(|was| std::mem::replace(was, ready) != ready);
        }
    }
}

impl ReadinessFlag {
    /// It is there.
    pub fn ready(&self) {
        self.set(None);
    }

    /// It is not there, and this is what is lacking.
    pub fn not_ready(&self, lacking: impl Into<String>) {
        self.set(Some(lacking.into()));
    }

    /// Logs a change from ready to not ready and back once; a changed reason while not ready is not news.
    fn set(&self, lacking: Option<String>) {
        let name = self.name;
        self.readiness.change(|state| {
            let before = state.checks.insert(name, lacking.clone());
            let was_ready = matches!(before, Some(None));
            let first = matches!(&before, Some(Some(reason)) if reason == "not checked yet") || before.is_none();
            match &lacking {
                None if !was_ready => tracing::info!(dependency = name, "ready"),
                Some(lacking) if was_ready || first => {
                    tracing::warn!(dependency = name, lacking, "not ready");
                }
                _ => {}
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_only_while_everything_is_there() {
        let readiness = Readiness::default();
        let (one, two) = (readiness.flag("one"), readiness.flag("two"));
        let mut changes = readiness.subscribe();
        assert!(!readiness.is_ready());
        one.ready();
        assert!(!readiness.is_ready());
        two.ready();
        assert!(readiness.is_ready() && changes.has_changed().unwrap());
        changes.mark_unchanged();
        one.ready();
        assert!(
            !changes.has_changed().unwrap(),
            "nothing changed and yet it was announced"
        );
        one.not_ready("gone");
        let report = readiness.report();
        assert!(!report.ready);
        assert_eq!(report.checks[0].lacking.as_deref(), Some("gone"));
        one.ready();
        readiness.drain();
        assert!(!readiness.is_ready() && readiness.report().draining);
    }

    #[test]
    fn asking_for_a_flag_again_does_not_reset_it() {
        let readiness = Readiness::default();
        readiness.flag("one").ready();
        let again = readiness.flag("one");
        assert!(readiness.is_ready());
        again.not_ready("gone");
        assert!(!readiness.is_ready());
    }
}
