//! The budgets in a checkpoint. Fields may be added; numbers are never used again. A checkpoint of a release without
//! budgets has none, and they begin as for a new tenant.

use garrison_models::budget::{AlarmBudget, BudgetState};
use prost::Message;

use crate::domain::budget::{Budgets, Count, Group, GroupBudget, Hour, Ledger};

#[derive(Clone, PartialEq, Message)]
pub(super) struct GroupState {
    #[prost(string, tag = "1")]
    group: String,
    /// What was set at run time.
    #[prost(double, optional, tag = "2")]
    set: Option<f64>,
    #[prost(double, optional, tag = "3")]
    latest: Option<f64>,
    #[prost(double, tag = "4")]
    scores: f64,
    #[prost(double, tag = "5")]
    seconds: f64,
    #[prost(double, tag = "6")]
    ahead: f64,
    #[prost(double, tag = "7")]
    promised: f64,
    #[prost(uint64, tag = "8")]
    issued: u64,
    #[prost(uint64, tag = "9")]
    held: u64,
    #[prost(double, repeated, tag = "10")]
    weights: Vec<f64>,
    #[prost(message, repeated, tag = "11")]
    hours: Vec<Hour>,
    #[prost(message, optional, tag = "12")]
    before: Option<Count>,
    #[prost(sint64, tag = "13")]
    since: i64,
}

/// Every group.
pub(super) fn write(budgets: &Budgets) -> Vec<GroupState> {
    let state = |group: Group| {
        let own = budgets.group(group);
        let state = own.budget.state();
        GroupState {
            group: group.id().to_owned(),
            set: own.set,
            latest: state.latest,
            scores: state.scores,
            seconds: state.seconds,
            ahead: state.ahead,
            promised: state.promised,
            issued: state.issued,
            held: state.held,
            weights: own.weights.iter().copied().collect(),
            hours: own.ledger.hours().to_vec(),
            before: Some(own.ledger.before()),
            since: own.ledger.since(),
        }
    };
    Group::ALL.map(state).into()
}

/// Puts the groups back. What is no number is taken for a budget of its own that begins now.
pub(super) fn read(budgets: &mut Budgets, states: Vec<GroupState>) {
    for state in states {
        let numbers = [state.scores, state.seconds, state.ahead, state.promised];
        let finite = numbers
            .iter()
            .chain(&state.latest)
            .chain(&state.set)
            .all(|n| n.is_finite());
        let (Some(group), true) = (Group::of_id(&state.group), finite) else {
            continue;
        };
        let stored = BudgetState {
            latest: state.latest,
            scores: state.scores,
            seconds: state.seconds,
            ahead: state.ahead,
            promised: state.promised,
            issued: state.issued,
            held: state.held,
        };
        budgets.restore(
            group,
            GroupBudget {
                budget: AlarmBudget::restore(0.0, stored),
                set: state.set.filter(|set| *set > 0.0),
                ledger: Ledger::restore(state.hours, state.before.unwrap_or_default(), state.since),
                weights: state.weights.into_iter().filter(|w| w.is_finite()).collect(),
            },
        );
    }
}
