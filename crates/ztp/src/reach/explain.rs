//! Why one connection passes, or not.

use std::fmt;

use super::{
    classes::{Reach, in_order},
    program::{Action, Policy, Rest, Rule},
};
use crate::ir::Direction;

/// What one plane says about one side.
#[derive(Clone, Debug)]
pub struct Step<'p> {
    /// The plane.
    pub plane: &'p str,
    /// The side.
    pub direction: Direction,
    /// Whether the plane lets it pass.
    pub passes: bool,
    /// The policy and rule that decided; `None` when no rule matched.
    pub rule: Option<(&'p Policy, &'p Rule)>,
    /// The policies that deny what no rule of theirs matches, where that decided.
    pub isolated_by: Vec<&'p Policy>,
    /// Rules that passed the decision on, in order.
    pub passed_by: Vec<(&'p Policy, &'p Rule)>,
}

/// Why one connection passes, or not.
#[derive(Clone, Debug)]
pub struct Explained<'p> {
    /// Whether it passes.
    pub passes: bool,
    /// What each plane says about each side, egress first.
    pub steps: Vec<Step<'p>>,
}

impl fmt::Display for Step<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = match self.direction {
            Direction::Egress => "leaving the source",
            Direction::Ingress => "reaching the destination",
        };
        write!(f, "{side} ({}): ", self.plane)?;
        for (policy, rule) in &self.passed_by {
            write!(f, "{} of {policy} passes it on; ", named(rule))?;
        }
        match (&self.rule, self.isolated_by.as_slice()) {
            (Some((policy, rule)), _) => {
                let verb = if self.passes { "allowed" } else { "denied" };
                write!(
                    f,
                    "{verb} by {} of {policy} ({}:{})",
                    named(rule),
                    policy.file,
                    policy.line
                )
            }
            (None, []) => f.write_str("allowed: no policy denies it"),
            (None, by) => {
                let names: Vec<String> = by.iter().map(ToString::to_string).collect();
                write!(f, "denied: {} isolates it, and no rule allows this", names.join(", "))
            }
        }
    }
}

fn named(rule: &Rule) -> String {
    if rule.name.is_empty() {
        rule.field.clone()
    } else {
        format!("rule {:?} ({})", rule.name, rule.field)
    }
}

impl<'p> Reach<'p> {
    /// Why `source` may open a connection to `destination`, or may not. `None` when one of them is not on the network.
    pub fn explain(
        &self,
        network: usize,
        source: usize,
        destination: usize,
        protocol: u8,
        port: u16,
    ) -> Option<Explained<'p>> {
        let on = &self.networks[network];
        let (source_class, destination_class) = (on.class_of[source]?, on.class_of[destination]?);
        let target = &self.endpoints[destination];
        let mut steps = Vec::new();
        for direction in Direction::BOTH {
            let (class, peer) = match direction {
                Direction::Egress => (source_class, destination_class),
                Direction::Ingress => (destination_class, source_class),
            };
            for (plane, governing) in on.network.planes.iter().zip(on.governing(class, direction)) {
                let mut step = Step {
                    plane: &plane.name,
                    direction,
                    passes: true,
                    rule: None,
                    isolated_by: Vec::new(),
                    passed_by: Vec::new(),
                };
                for (stage, policies) in governing.stages {
                    if policies.is_empty() {
                        continue;
                    }
                    let hit = in_order(stage.order, &policies, direction).find(|(_, rule)| {
                        rule.peers.iter().any(|p| on.matches(peer, p)) && rule.ports.at(target).contains(protocol, port)
                    });
                    match hit {
                        Some((policy, rule)) if rule.action == Action::Pass => {
                            step.passed_by.push((policy, rule));
                        }
                        Some((policy, rule)) => {
                            step.passes = rule.action == Action::Accept;
                            step.rule = Some((policy, rule));
                            break;
                        }
                        None if stage.rest == Rest::Deny => {
                            step.passes = false;
                            step.isolated_by = policies;
                            break;
                        }
                        None => {}
                    }
                }
                steps.push(step);
            }
        }
        Some(Explained {
            passes: steps.iter().all(|step| step.passes),
            steps,
        })
    }
}
