use proptest::prelude::*;

use super::*;

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_700_000_000 + seconds, 0).unwrap()
}

fn response(ttl: Option<i64>) -> Response {
    let draft = Draft {
        action: Action::Block,
        target: "10.0.0.9".parse().unwrap(),
        ttl: ttl.map(Duration::seconds),
        packets_per_second: 0,
        priority: 0,
        approval: false,
        playbook: "p".into(),
        reason: "r".into(),
    };
    Response::new(Uuid::now_v7(), draft, None, None, at(0))
}

fn report(node: &str, outcome: NodeState) -> Event {
    Event::Report {
        node: node.into(),
        outcome,
        expired: false,
        error: "no".into(),
        confirmed: at(0),
    }
}

#[test]
fn is_applied_only_when_every_node_said_so() {
    let timing = Timing::default();
    let mut r = response(None);
    let out = r.dispatch("playbooks/p", vec!["a".into(), "b".into()], at(0), &timing);
    assert_eq!(out.order, Some(false));
    r.step(report("a", NodeState::Applied), at(0), &timing).unwrap();
    r.step(report("a", NodeState::Applied), at(0), &timing).unwrap();
    assert_eq!(r.state, State::Dispatched);
    r.step(report("b", NodeState::Applied), at(0), &timing).unwrap();
    assert_eq!(r.state, State::Applied);
}

#[test]
fn silence_is_a_failure_and_never_done() {
    let timing = Timing::default();
    let mut r = response(None);
    r.dispatch("playbooks/p", vec!["a".into()], at(0), &timing);
    assert_eq!(r.step(Event::Deadline, at(1), &timing).unwrap(), Outcome::default());
    for (second, order) in [(2, Some(false)), (4, Some(false)), (6, None)] {
        assert_eq!(r.step(Event::Deadline, at(second), &timing).unwrap().order, order);
    }
    assert_eq!(r.state, State::Failed);
    assert!(r.error.contains("no confirmation from a"), "{}", r.error);
    assert!(r.is_desired(at(7)));
    r.step(report("a", NodeState::Applied), at(8), &timing).unwrap();
    assert_eq!(r.state, State::Applied, "a late confirmation is the truth");
}

#[test]
fn without_a_live_enforcer_it_fails_with_the_reason() {
    let mut r = response(None);
    let out = r.dispatch("playbooks/p", vec![], at(0), &Timing::default());
    assert_eq!((r.state, out.order), (State::Failed, None));
    assert!(!r.is_desired(at(0)));
    assert!(
        r.step(
            Event::Rollback {
                actor: "u".into(),
                detail: String::new(),
                nodes: vec![]
            },
            at(1),
            &Timing::default()
        )
        .is_err()
    );
}

#[test]
fn expiry_is_confirmed_by_reports_or_forced_by_an_order() {
    let timing = Timing::default();
    let mut r = response(Some(10));
    r.dispatch("playbooks/p", vec!["a".into()], at(0), &timing);
    r.step(report("a", NodeState::Applied), at(0), &timing).unwrap();
    let mut silent = r.clone();
    let expired = Event::Report {
        node: "a".into(),
        outcome: NodeState::Removed,
        expired: true,
        error: String::new(),
        confirmed: at(10),
    };
    r.step(expired.clone(), at(10), &timing).unwrap();
    assert_eq!(r.state, State::Expired);

    assert_eq!(silent.step(Event::Deadline, at(15), &timing).unwrap().order, Some(true));
    assert_eq!(silent.state, State::Reverting);
    silent.step(expired, at(16), &timing).unwrap();
    assert_eq!(silent.state, State::Expired);
}

#[test]
fn reverting_is_retried_until_the_node_confirms() {
    let timing = Timing::default();
    let mut r = response(None);
    r.dispatch("playbooks/p", vec!["a".into(), "b".into()], at(0), &timing);
    let back = Event::Rollback {
        actor: "users/1".into(),
        detail: "mistake".into(),
        nodes: vec![],
    };
    assert_eq!(r.step(back.clone(), at(1), &timing).unwrap().order, Some(true));
    assert_eq!(r.step(back, at(1), &timing).unwrap(), Outcome::default());
    r.step(report("a", NodeState::Removed), at(2), &timing).unwrap();
    for second in [100, 200, 300, 400] {
        assert_eq!(r.step(Event::Deadline, at(second), &timing).unwrap().order, Some(true));
        assert_eq!(r.state, State::Reverting);
    }
    assert!(r.error.contains('b'));
    r.step(report("b", NodeState::Removed), at(500), &timing).unwrap();
    assert_eq!(r.state, State::Reverted);
    assert_eq!(
        r.step(report("a", NodeState::Applied), at(501), &timing).unwrap(),
        Outcome::default(),
        "a stale report from a node that removed it"
    );
    assert_eq!(
        r.step(report("c", NodeState::Applied), at(501), &timing).unwrap().order,
        Some(true),
        "a node that took up a stale order must remove it"
    );
}

fn any_event() -> impl Strategy<Value = Event> {
    let node = prop::sample::select(vec!["a", "b", "c"]);
    let outcome = prop::sample::select(vec![NodeState::Applied, NodeState::Removed, NodeState::Failed]);
    prop_oneof![
        4 => (node, outcome, any::<bool>()).prop_map(|(node, outcome, expired)| Event::Report {
            node: node.into(), outcome, expired, error: "no".into(), confirmed: at(0),
        }),
        2 => Just(Event::Deadline),
        1 => Just(Event::Rollback { actor: "u".into(), detail: "d".into(), nodes: vec!["c".into()] }),
        1 => Just(Event::Approve { actor: "u".into(), detail: "d".into(), nodes: vec!["a".into()] }),
        1 => Just(Event::Reject { actor: "u".into(), detail: "d".into() }),
    ]
}

proptest! {
    #[test]
    fn no_sequence_of_events_breaks_the_promises(
        approval in any::<bool>(),
        ttl in prop::option::of(1..40i64),
        nodes in prop::sample::subsequence(vec!["a", "b"], 0..=2),
        events in prop::collection::vec((any_event(), 0..5i64), 0..60),
    ) {
        let timing = Timing::default();
        let mut r = response(ttl);
        if approval {
            r.await_approval("p", at(0), &timing);
        } else {
            r.dispatch("p", nodes.iter().map(|n| (*n).to_owned()).collect(), at(0), &timing);
        }
        let mut now = 0;
        let mut said_applied = std::collections::BTreeSet::new();
        for (event, pause) in events {
            now += pause;
            let before = r.state;
            if let Event::Report { node, outcome: NodeState::Applied, .. } = &event {
                said_applied.insert(node.clone());
            }
            let passive = matches!(event, Event::Deadline);
            let Ok(out) = r.step(event, at(now), &timing) else { continue };
            prop_assert_eq!(out.transition.as_ref().map(|t| t.state).unwrap_or(before), r.state);
            if passive {
                prop_assert!(r.state == before || r.state != State::Applied, "a timeout made it applied");
            }
            match r.state {
                State::Applied => {
                    prop_assert!(r.nodes.keys().all(|n| said_applied.contains(n)));
                    prop_assert!(!r.nodes.is_empty());
                }
                State::Reverted | State::Expired => prop_assert!(r.all(NodeState::Removed)),
                State::Failed => prop_assert!(!r.error.is_empty(), "failed without a reason"),
                State::Dispatched | State::Reverting => prop_assert!(r.deadline.is_some(), "nobody will look again"),
                _ => {}
            }
            let ended = matches!(before, State::Reverted | State::Expired | State::Rejected | State::Refused);
            prop_assert!(!ended || r.state == before, "left an end state");
            if !is_active(r.state) {
                prop_assert!(r.deadline.is_none());
            }
        }
    }
}
