//! What the leader remembers between looks.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::Place;
use crate::domain::{
    plan::{ObjectKey, PolicyPlan},
    rollout::Rollout,
    source::{PolicyId, Source},
    status::{Programmed, Restored},
};

/// What one term of leadership knows.
#[derive(Debug, Default)]
pub(crate) struct Book {
    /// The objects that were written here.
    pub(crate) written: HashMap<ObjectKey, Mark>,
    /// Objects that a watch told of as gone, and that were not taken away here.
    pub(crate) gone: HashSet<ObjectKey>,
    /// What became of policies, by place.
    pub(crate) parts: HashMap<PolicyId, BTreeMap<Place, Part>>,
    /// What was put back, by policy.
    pub(crate) restored: HashMap<PolicyId, Restored>,
    /// How new versions do.
    pub(crate) rollouts: HashMap<PolicyId, Watched>,
    /// Policies on their way out of which nothing is left in the cluster as a whole.
    pub(crate) released: HashSet<PolicyId>,
    /// What was last told of policies by event.
    pub(crate) told: HashMap<PolicyId, (i64, String)>,
}

/// An object as it was written here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Its version then: what a watch tells of that is no news.
    pub(crate) version: String,
    /// The hash of what was written.
    pub(crate) hash: String,
}

/// What became of a policy in one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) plan: PolicyPlan,
    /// Why it is not all there; `None` when it is.
    pub(crate) problem: Option<Programmed>,
}

/// A version that is watched, and what it goes back to.
#[derive(Clone, Debug)]
pub(crate) struct Watched {
    pub(crate) rollout: Rollout,
    pub(crate) previous: Option<Source>,
}
