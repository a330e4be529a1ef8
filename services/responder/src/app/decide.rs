//! From what a playbook or a person wants to responses: duplicates, limits, approval, dispatch.

use chrono::{DateTime, Utc};
use garrison_db::Tx;
use garrison_proto::{TenantId, audit::v1::Actor, response::v1::ResponseState};
use uuid::Uuid;

use super::{
    App, Rules,
    effects::{Effects, first_step},
};
use crate::{
    domain::{
        guard::{self, Usage},
        response::{Action, Draft, Response},
    },
    error::{AppError, During as _},
    store::responses::{self, Created, InPlay, Situation},
};

/// Why something is decided.
pub(super) struct Occasion {
    pub(super) incident: Option<Uuid>,
    pub(super) alert: Option<(Uuid, Option<DateTime<Utc>>)>,
    /// The person who asks; playbooks speak for themselves.
    pub(super) person: Option<Actor>,
    /// The client's own id of the request.
    pub(super) request: Option<Uuid>,
}

/// What became of the drafts.
#[derive(Debug, Default)]
pub(super) struct Decided {
    /// Decided now, in any state; they are still to be stored.
    pub(super) created: Vec<Created>,
    /// Already did, or will do, what was wanted.
    pub(super) linked: Vec<Uuid>,
}

impl App {
    /// Decides drafts that have been reduced to one for each action and target.
    #[allow(clippy::too_many_arguments)] // a decision and what it is judged by
    pub(super) fn decide(
        &self,
        tenant: &TenantId,
        rules: &Rules,
        mut situation: Situation,
        mut drafts: Vec<Draft>,
        occasion: &Occasion,
        effects: &mut Effects<'_>,
        now: DateTime<Utc>,
    ) -> Decided {
        let mut decided = Decided::default();
        drafts.sort_by_key(|d| std::cmp::Reverse(d.priority));
        for draft in drafts {
            if let Some(known) = redundant(&draft, &situation.in_play, occasion.person.is_some()) {
                if !decided.linked.contains(&known) {
                    decided.linked.push(known);
                }
                continue;
            }
            let actor = match &occasion.person {
                Some(person) => person.name.clone(),
                None => format!("playbooks/{}", draft.playbook),
            };
            let target = draft.target;
            let approval = draft.approval;
            let mut response = Response::new(Uuid::now_v7(), draft, occasion.incident, occasion.alert, now);
            let verdict = guard::check(target, &rules.protected, self.limits(tenant), &situation.usage);
            let timing = &self.settings().timing;
            let outcome = match verdict {
                Err(refusal) => response.refuse(&actor, &refusal.to_string()),
                Ok(()) if approval => response.await_approval(&actor, now, timing),
                Ok(()) => response.dispatch(&actor, situation.nodes.clone(), now, timing),
            };
            if response.state == ResponseState::Dispatched {
                situation.usage = Usage {
                    addresses: situation.usage.addresses.saturating_add(target.hosts()),
                    last_hour: situation.usage.last_hour + 1,
                };
            }
            situation.in_play.push(InPlay {
                id: response.id,
                action: response.action,
                target: target.to_string(),
                state: response.state,
                settled: None,
            });
            let Some(step) = outcome.transition.clone() else {
                continue;
            };
            effects.response(
                &response,
                &outcome,
                vec![first_step(&step, now)],
                occasion.person.clone(),
            );
            self.metrics().response(response.action, response.state);
            if let Some(deadline) = response.deadline {
                self.due().expect(tenant, deadline);
            }
            decided.created.push(Created {
                response,
                step,
                request: occasion.request,
            });
        }
        decided
    }

    /// What a decision about these drafts needs to know.
    pub(super) async fn situation(
        &self,
        tx: &mut Tx<'static>,
        tenant: &TenantId,
        drafts: &[Draft],
        incident: Option<Uuid>,
        now: DateTime<Utc>,
    ) -> Result<Situation, AppError> {
        let targets: Vec<String> = drafts.iter().map(|d| d.target.to_string()).collect();
        let mut situation = responses::situation(tx, tenant.as_str(), &targets, incident, now, self.alive_since(now))
            .await
            .during("look up what is in force")?;
        self.keep_allowed(tenant, &mut situation);
        Ok(situation)
    }

    /// Strikes nodes that the configuration does not let serve the tenant.
    pub(super) fn keep_allowed(&self, tenant: &TenantId, situation: &mut Situation) {
        situation.nodes.retain(|node| self.may_serve(node, tenant.as_str()));
    }
}

/// A response that makes the draft unnecessary: the same action waits, is sent or is in force on the target;
/// a stronger one is; or, unless a person asks, the same was settled within this incident: refused, or a
/// person turned it down or took it back.
fn redundant(draft: &Draft, in_play: &[InPlay], by_person: bool) -> Option<Uuid> {
    let target = draft.target.to_string();
    in_play
        .iter()
        .filter(|known| known.target == target)
        .find(|known| {
            let same = known.action == draft.action;
            let in_force = matches!(known.state, ResponseState::Dispatched | ResponseState::Applied);
            if known.settled.is_some() {
                return same && !by_person;
            }
            match known.state {
                ResponseState::PendingApproval => same && draft.approval,
                _ if in_force && same => true,
                _ => {
                    in_force
                        && draft.action == Action::RateLimit
                        && matches!(known.action, Action::Block | Action::Isolate)
                }
            }
        })
        .map(|known| known.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(action: Action, approval: bool) -> Draft {
        Draft {
            action,
            target: "10.0.0.9".parse().unwrap(),
            ttl: None,
            packets_per_second: 0,
            priority: 0,
            approval,
            playbook: String::new(),
            reason: String::new(),
        }
    }

    fn known(action: Action, state: ResponseState, settled: bool) -> Vec<InPlay> {
        vec![InPlay {
            id: Uuid::from_u128(1),
            action,
            target: "10.0.0.9".into(),
            state,
            settled: settled.then(|| Uuid::from_u128(2)),
        }]
    }

    #[test]
    fn what_is_in_force_is_not_doubled() {
        use ResponseState as S;
        let block = draft(Action::Block, false);
        assert!(redundant(&block, &known(Action::Block, S::Applied, false), false).is_some());
        assert!(redundant(&block, &known(Action::Block, S::Dispatched, false), true).is_some());
        assert!(redundant(&block, &known(Action::RateLimit, S::Applied, false), false).is_none());
        assert!(redundant(&block, &known(Action::Block, S::PendingApproval, false), false).is_none());
        let slow = draft(Action::RateLimit, false);
        assert!(redundant(&slow, &known(Action::Block, S::Applied, false), false).is_some());
        assert!(redundant(&slow, &known(Action::Block, S::PendingApproval, false), false).is_none());
        let ask = draft(Action::Isolate, true);
        assert!(redundant(&ask, &known(Action::Isolate, S::PendingApproval, false), false).is_some());
    }

    #[test]
    fn what_a_person_settled_is_not_asked_again_by_a_playbook() {
        use ResponseState as S;
        let block = draft(Action::Block, false);
        for state in [S::Rejected, S::Reverted, S::Refused] {
            assert!(redundant(&block, &known(Action::Block, state, true), false).is_some());
            assert!(redundant(&block, &known(Action::Block, state, true), true).is_none());
        }
    }
}
