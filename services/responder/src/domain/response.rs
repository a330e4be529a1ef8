//! The life of one action: from the decision to the enforcers' word that it is gone again.
//!
//! Nothing here reads a clock or sends a message. An event goes in; what changed comes out, and the caller
//! stores and publishes it in one transaction.

use std::collections::BTreeMap;

use chrono::{DateTime, Duration, Utc};
use garrison_proto::{
    resource_name,
    response::v1::{self as proto, EnforcementOrder, ResponseState as State},
    to_timestamp,
};
use uuid::Uuid;

use super::guard::Target;
pub use garrison_proto::response::v1::Action;

/// The actor of what the responder does by itself.
pub const SELF: &str = "services/responder";

/// How long things may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// An enforcer has this long to confirm an order before it is sent again.
    pub confirm: Duration,
    /// How often an apply order is sent before the response has failed.
    pub attempts: i32,
    /// A person has this long to approve.
    pub approval: Duration,
    /// After its time ran out an action is reverted by order when the enforcers have not reported its
    /// removal within this time.
    pub expiry_grace: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            confirm: Duration::seconds(2),
            attempts: 3,
            approval: Duration::hours(1),
            expiry_grace: Duration::seconds(5),
        }
    }
}

/// The longest pause between two revert orders for one response.
const LONGEST_RETRY: Duration = Duration::seconds(30);

/// Where a node stands with a response; the number is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i16)]
pub enum NodeState {
    /// Nothing heard yet.
    Pending = 0,
    /// Read back from its kernel.
    Applied = 1,
    /// Gone from its kernel. Final: an enforcer never applies a response that it removed.
    Removed = 2,
    /// It could not.
    Failed = 3,
}

impl NodeState {
    /// The state with the stored number.
    pub fn from_number(number: i16) -> Self {
        match number {
            1 => Self::Applied,
            2 => Self::Removed,
            3 => Self::Failed,
            _ => Self::Pending,
        }
    }
}

/// Why a response is being reverted; the number is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i16)]
pub enum Ending {
    /// Somebody rolled it back.
    Rollback = 1,
    /// Its time ran out.
    Expiry = 2,
}

/// What is asked for, before it is decided whether it may be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// The action.
    pub action: Action,
    /// On whom.
    pub target: Target,
    /// How long; `None` until rolled back.
    pub ttl: Option<Duration>,
    /// For rate limits.
    pub packets_per_second: u32,
    /// Higher wins.
    pub priority: i32,
    /// Whether a person must approve.
    pub approval: bool,
    /// The playbook's name, or empty.
    pub playbook: String,
    /// Why.
    pub reason: String,
}

/// A response and everything that decides what may happen to it next.
#[derive(Debug, Clone, PartialEq)]
pub struct Response {
    /// UUIDv7.
    pub id: Uuid,
    /// The incident it belongs to, if any.
    pub incident: Option<Uuid>,
    /// What is done.
    pub action: Action,
    /// To whom.
    pub target: Target,
    /// Where it stands.
    pub state: State,
    /// Higher wins.
    pub priority: i32,
    /// How long it stays in force, counted from its dispatch.
    pub ttl: Option<Duration>,
    /// For rate limits.
    pub packets_per_second: u32,
    /// The playbook's name, or empty.
    pub playbook: String,
    /// Why.
    pub reason: String,
    /// When it was decided.
    pub created: DateTime<Utc>,
    /// When the last enforcer confirmed it.
    pub applied: Option<DateTime<Utc>>,
    /// When its time runs out.
    pub expires: Option<DateTime<Utc>>,
    /// The alert that caused it.
    pub alert: Option<Uuid>,
    /// When that alert's packet was captured.
    pub trigger_time: Option<DateTime<Utc>>,
    /// What went wrong last.
    pub error: String,
    /// The nodes that must confirm.
    pub nodes: BTreeMap<String, NodeState>,
    /// When the scheduler must look at it again.
    pub deadline: Option<DateTime<Utc>>,
    /// Orders sent in the present state.
    pub attempts: i32,
    /// Why it is being reverted.
    pub ending: Option<Ending>,
}

/// What happened to a response.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A person approved it; these nodes are alive.
    Approve {
        /// Who.
        actor: String,
        /// Why.
        detail: String,
        /// The live nodes of the tenant.
        nodes: Vec<String>,
    },
    /// A person, or the guard at approval time, turned it down.
    Reject {
        /// Who.
        actor: String,
        /// Why.
        detail: String,
    },
    /// A node reports.
    Report {
        /// Which.
        node: String,
        /// `Applied`, `Removed` or `Failed`.
        outcome: NodeState,
        /// For a removal: by the clock.
        expired: bool,
        /// For a failure.
        error: String,
        /// When it read the kernel back.
        confirmed: DateTime<Utc>,
    },
    /// The deadline has passed.
    Deadline,
    /// Somebody wants it undone; these nodes are alive and may have taken it up on their own.
    Rollback {
        /// Who.
        actor: String,
        /// Why.
        detail: String,
        /// The live nodes of the tenant.
        nodes: Vec<String>,
    },
}

/// A step in the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    /// The state reached.
    pub state: State,
    /// By whom.
    pub actor: String,
    /// Why or how.
    pub detail: String,
}

/// What follows from an event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The new state, if it changed.
    pub transition: Option<Transition>,
    /// An order to send: `Some(true)` to revert, `Some(false)` to apply.
    pub order: Option<bool>,
}

/// The event does not fit the state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the response is {}, and only {wanted} can be {verb}", state_word(*.state))]
pub struct WrongState {
    /// Where it stands.
    pub state: State,
    /// What was wanted of it.
    pub verb: &'static str,
    /// Which states would do.
    pub wanted: &'static str,
}

/// A state in a person's words.
pub fn state_word(state: State) -> &'static str {
    match state {
        State::Unspecified => "unknown",
        State::PendingApproval => "pending approval",
        State::Dispatched => "dispatched",
        State::Applied => "applied",
        State::Failed => "failed",
        State::Reverting => "reverting",
        State::Reverted => "reverted",
        State::Expired => "expired",
        State::Rejected => "rejected",
        State::Refused => "refused",
    }
}

/// An action in a person's words.
pub fn action_word(action: Action) -> &'static str {
    match action {
        Action::Unspecified => "nothing",
        Action::Block => "block",
        Action::RateLimit => "rate-limit",
        Action::Isolate => "isolate",
    }
}

/// Whether a state can still change by itself or by an enforcer.
pub fn is_active(state: State) -> bool {
    matches!(
        state,
        State::PendingApproval | State::Dispatched | State::Applied | State::Reverting
    )
}

impl Response {
    /// A decided response that has not been dispatched, refused or put to approval yet.
    pub fn new(
        id: Uuid,
        draft: Draft,
        incident: Option<Uuid>,
        alert: Option<(Uuid, Option<DateTime<Utc>>)>,
        now: DateTime<Utc>,
    ) -> Self {
        Self {
            id,
            incident,
            action: draft.action,
            target: draft.target,
            state: State::Unspecified,
            priority: draft.priority,
            ttl: draft.ttl,
            packets_per_second: draft.packets_per_second,
            playbook: draft.playbook,
            reason: draft.reason,
            created: now,
            applied: None,
            expires: None,
            alert: alert.map(|(id, _)| id),
            trigger_time: alert.and_then(|(_, time)| time),
            error: String::new(),
            nodes: BTreeMap::new(),
            deadline: None,
            attempts: 0,
            ending: None,
        }
    }

    /// The guard said no: it will never be sent.
    pub fn refuse(&mut self, actor: &str, reason: &str) -> Outcome {
        self.error = reason.to_owned();
        self.turn(State::Refused, actor, reason)
    }

    /// A person must approve it first.
    pub fn await_approval(&mut self, actor: &str, now: DateTime<Utc>, timing: &Timing) -> Outcome {
        self.deadline = Some(now + timing.approval);
        self.turn(State::PendingApproval, actor, "waits for approval")
    }

    /// Sends it to the live nodes; fails at once when there are none.
    pub fn dispatch(&mut self, actor: &str, nodes: Vec<String>, now: DateTime<Utc>, timing: &Timing) -> Outcome {
        self.deadline = None;
        if nodes.is_empty() {
            self.error = "no enforcer of this tenant is alive".to_owned();
            return self.turn(State::Failed, actor, &self.error.clone());
        }
        self.nodes = nodes.into_iter().map(|n| (n, NodeState::Pending)).collect();
        self.expires = self.ttl.map(|ttl| now + ttl);
        self.attempts = 1;
        self.deadline = Some(now + timing.confirm);
        let detail = format!("sent to {}", self.node_list(|_| true));
        let mut outcome = self.turn(State::Dispatched, actor, &detail);
        outcome.order = Some(false);
        outcome
    }

    fn turn(&mut self, state: State, actor: &str, detail: &str) -> Outcome {
        self.state = state;
        if !is_active(state) {
            self.deadline = None;
        }
        Outcome {
            transition: Some(Transition {
                state,
                actor: actor.to_owned(),
                detail: detail.to_owned(),
            }),
            order: None,
        }
    }

    fn all(&self, wanted: NodeState) -> bool {
        !self.nodes.is_empty() && self.nodes.values().all(|s| *s == wanted)
    }

    fn node_list(&self, wanted: impl Fn(NodeState) -> bool) -> String {
        let names: Vec<&str> = self
            .nodes
            .iter()
            .filter(|(_, state)| wanted(**state))
            .map(|(name, _)| name.as_str())
            .collect();
        names.join(", ")
    }

    /// Whether an enforcer should have it in force now: from its dispatch until it is to be reverted or its
    /// time is over. A failed one stays wanted, so that an enforcer that comes back takes it up, unless it
    /// was never sent.
    pub fn is_desired(&self, now: DateTime<Utc>) -> bool {
        let wanted = match self.state {
            State::Dispatched | State::Applied => true,
            State::Failed => !self.nodes.is_empty(),
            _ => false,
        };
        wanted && self.expires.is_none_or(|expires| now < expires)
    }

    /// Takes an event in.
    ///
    /// # Errors
    /// [`WrongState`] when a person asks for what the state does not allow. Reports and deadlines never
    /// fail: they may be late, early or repeated.
    pub fn step(&mut self, event: Event, now: DateTime<Utc>, timing: &Timing) -> Result<Outcome, WrongState> {
        match event {
            Event::Approve {
                actor,
                detail: _,
                nodes,
            } => match self.state {
                State::PendingApproval => Ok(self.dispatch(&actor, nodes, now, timing)),
                state => Err(WrongState {
                    state,
                    verb: "approved",
                    wanted: "one that is pending approval",
                }),
            },
            Event::Reject { actor, detail } => match self.state {
                State::PendingApproval => Ok(self.turn(State::Rejected, &actor, &detail)),
                State::Rejected => Ok(Outcome::default()),
                state => Err(WrongState {
                    state,
                    verb: "rejected",
                    wanted: "one that is pending approval",
                }),
            },
            Event::Rollback { actor, detail, nodes } => self.roll_back(&actor, &detail, nodes, now, timing),
            Event::Report {
                node,
                outcome,
                expired,
                error,
                confirmed,
            } => Ok(self.report(&node, outcome, expired, &error, confirmed, now, timing)),
            Event::Deadline => Ok(self.deadline_passed(now, timing)),
        }
    }

    fn roll_back(
        &mut self,
        actor: &str,
        detail: &str,
        nodes: Vec<String>,
        now: DateTime<Utc>,
        timing: &Timing,
    ) -> Result<Outcome, WrongState> {
        match self.state {
            State::Reverting | State::Reverted => Ok(Outcome::default()),
            State::Dispatched | State::Applied | State::Failed if !self.nodes.is_empty() => {
                for node in nodes {
                    self.nodes.entry(node).or_insert(NodeState::Pending);
                }
                self.ending = Some(Ending::Rollback);
                Ok(self.start_reverting(actor, detail, now, timing))
            }
            state => Err(WrongState {
                state,
                verb: "rolled back",
                wanted: "one that was sent to an enforcer",
            }),
        }
    }

    fn start_reverting(&mut self, actor: &str, detail: &str, now: DateTime<Utc>, timing: &Timing) -> Outcome {
        let mut outcome = self.turn(State::Reverting, actor, detail);
        self.error.clear();
        self.attempts = 1;
        self.deadline = Some(now + timing.confirm);
        outcome.order = Some(true);
        outcome
    }

    fn finish_reverting(&mut self, actor: &str) -> Outcome {
        self.error.clear();
        match self.ending {
            Some(Ending::Expiry) => self.turn(State::Expired, actor, "every enforcer removed it"),
            _ => self.turn(State::Reverted, actor, "every enforcer removed it"),
        }
    }

    #[allow(clippy::too_many_arguments)] // the fields of one report
    fn report(
        &mut self,
        node: &str,
        outcome: NodeState,
        expired: bool,
        error: &str,
        confirmed: DateTime<Utc>,
        now: DateTime<Utc>,
        timing: &Timing,
    ) -> Outcome {
        let actor = format!("enforcers/{node}");
        match self.state {
            // A report about something that was never sent changes nothing.
            State::Unspecified | State::PendingApproval | State::Rejected | State::Refused => {
                return Outcome::default();
            }
            // A node that applied a stale order after the end is told to remove it.
            State::Reverted | State::Expired => {
                return Outcome {
                    transition: None,
                    order: (outcome == NodeState::Applied && self.nodes.get(node) != Some(&NodeState::Removed))
                        .then_some(true),
                };
            }
            State::Dispatched | State::Applied | State::Failed | State::Reverting => {}
        }
        // It was never sent to anybody, or a node that took no part says that it has nothing.
        if self.nodes.is_empty() || (outcome == NodeState::Removed && !self.nodes.contains_key(node)) {
            return Outcome::default();
        }
        let known = self.nodes.entry(node.to_owned()).or_insert(NodeState::Pending);
        if *known == NodeState::Removed {
            return Outcome::default();
        }
        let before = *known;
        *known = outcome;
        match (self.state, outcome) {
            (State::Reverting, NodeState::Removed) => {
                if self.all(NodeState::Removed) {
                    return self.finish_reverting(&actor);
                }
                Outcome::default()
            }
            (State::Reverting, NodeState::Failed) => {
                self.error = format!("{node} could not remove it: {error}");
                Outcome::default()
            }
            // It crossed the revert order on the wire; the confirmation of that is still to come.
            (State::Reverting, _) => Outcome::default(),
            (State::Dispatched | State::Failed, NodeState::Applied) => {
                if !self.all(NodeState::Applied) {
                    return Outcome::default();
                }
                let late = self.state == State::Failed;
                self.error.clear();
                let mut outcome = self.turn(
                    State::Applied,
                    &actor,
                    if late {
                        "read back from every kernel, late"
                    } else {
                        "read back from every kernel"
                    },
                );
                self.applied = Some(confirmed);
                self.attempts = 0;
                self.deadline = self.expires.map(|expires| expires + timing.expiry_grace);
                outcome.order = None;
                outcome
            }
            (State::Applied, NodeState::Applied) => Outcome::default(),
            (_, NodeState::Removed) => {
                let over = self.expires.is_some_and(|expires| now >= expires);
                if expired || over {
                    if self.all(NodeState::Removed) {
                        self.ending = Some(Ending::Expiry);
                        return self.finish_reverting(&actor);
                    }
                    return Outcome::default();
                }
                self.fail(&actor, &format!("{node} removed it without being told to"))
            }
            (State::Failed, NodeState::Failed) if before == NodeState::Failed => {
                self.error = format!("{node}: {error}");
                Outcome::default()
            }
            (_, NodeState::Failed) => self.fail(&actor, &format!("{node}: {error}")),
            (_, NodeState::Pending) => Outcome::default(),
            // The states that were returned for above.
            (_, NodeState::Applied) => Outcome::default(),
        }
    }

    fn fail(&mut self, actor: &str, error: &str) -> Outcome {
        let error = super::alert::shorten(error);
        self.error.clone_from(&error);
        if self.state == State::Failed {
            return Outcome::default();
        }
        self.turn(State::Failed, actor, &error)
    }

    fn deadline_passed(&mut self, now: DateTime<Utc>, timing: &Timing) -> Outcome {
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return Outcome::default();
        }
        match self.state {
            State::PendingApproval => self.turn(State::Rejected, SELF, "nobody approved it in time"),
            State::Dispatched if self.attempts < timing.attempts => {
                self.attempts += 1;
                self.deadline = Some(now + timing.confirm);
                Outcome {
                    transition: None,
                    order: Some(false),
                }
            }
            State::Dispatched => {
                let silent = self.node_list(|s| s != NodeState::Applied);
                let error = format!(
                    "no confirmation from {silent} after {} orders, {} ms apart",
                    self.attempts,
                    timing.confirm.num_milliseconds()
                );
                self.fail(SELF, &error)
            }
            State::Applied => {
                self.ending = Some(Ending::Expiry);
                let silent = self.node_list(|s| s != NodeState::Removed);
                self.start_reverting(
                    SELF,
                    &format!("its time ran out and {silent} did not report its removal"),
                    now,
                    timing,
                )
            }
            State::Reverting => {
                let silent = self.node_list(|s| s != NodeState::Removed);
                if self.error.is_empty() {
                    self.error = format!("no confirmation from {silent} yet");
                }
                let doublings = self.attempts.clamp(0, 10) as u32;
                self.attempts = self.attempts.saturating_add(1);
                let pause = (timing.confirm * (1 << doublings)).min(LONGEST_RETRY);
                self.deadline = Some(now + pause);
                Outcome {
                    transition: None,
                    order: Some(true),
                }
            }
            _ => {
                self.deadline = None;
                Outcome::default()
            }
        }
    }

    /// The order for the enforcers.
    pub fn order(&self, tenant: &str, revert: bool) -> EnforcementOrder {
        EnforcementOrder {
            response_id: self.id.to_string(),
            action: self.action as i32,
            target: self.target.to_string(),
            packets_per_second: self.packets_per_second,
            expires: self.expires.map(to_timestamp),
            priority: self.priority,
            revert,
            nodes: self.nodes.keys().cloned().collect(),
            tenant: tenant.to_owned(),
        }
    }

    /// The message of the same name.
    pub fn to_proto(&self, history: Vec<proto::Transition>) -> proto::Response {
        proto::Response {
            name: resource_name("responses", self.id),
            incident: self
                .incident
                .map(|id| resource_name("incidents", id))
                .unwrap_or_default(),
            action: self.action as i32,
            target: self.target.to_string(),
            state: self.state as i32,
            priority: self.priority,
            ttl: self.ttl.map(|ttl| prost_types::Duration {
                seconds: ttl.num_seconds(),
                nanos: ttl.subsec_nanos(),
            }),
            packets_per_second: self.packets_per_second,
            playbook: if self.playbook.is_empty() {
                String::new()
            } else {
                format!("playbooks/{}", self.playbook)
            },
            reason: self.reason.clone(),
            created: Some(to_timestamp(self.created)),
            applied: self.applied.map(to_timestamp),
            expires: self.expires.map(to_timestamp),
            history,
            alert_id: self.alert.map(|id| id.to_string()).unwrap_or_default(),
            trigger_time: self.trigger_time.map(to_timestamp),
            nodes: self.nodes.keys().cloned().collect(),
            error: self.error.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
