//! The controls that reports speak about, and what in a log is evidence for them.
//!
//! Titles and objectives are in this project's own words. The criteria themselves are the AICPA's 2017 Trust
//! Services Criteria, whose text is not reproduced here.

/// A framework that reports can be made for.
pub const SOC2: &str = "soc2";

/// A criterion.
#[derive(Debug, Clone, Copy)]
pub struct Control {
    /// For example `CC7.2`.
    pub id: &'static str,
    /// In this project's words.
    pub title: &'static str,
    /// What is looked at.
    pub objectives: &'static [Objective],
}

/// One statement about a control that log entries can support or contradict.
#[derive(Debug, Clone, Copy)]
pub struct Objective {
    /// For example `cc7.2-a`.
    pub id: &'static str,
    /// The statement.
    pub statement: &'static str,
    /// Which entries speak for it.
    pub evidence: &'static [Pattern],
    /// What would contradict it.
    pub test: Test,
}

/// How an objective is judged once there is evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Test {
    /// One entry suffices.
    Exists,
    /// Every subject that enters through a pattern of the list must leave through one of the other list.
    Concluded {
        /// Entries that open a matter, by their resource.
        opens: &'static [Pattern],
        /// Entries that settle it.
        settles: &'static [Pattern],
        /// What an open matter is called.
        open_matter: &'static str,
    },
}

/// Matches an audit record's action: exactly, or by prefix when it ends in `*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pattern(pub &'static str);

impl Pattern {
    /// Whether the action fits.
    pub fn matches(&self, action: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(prefix) => action.starts_with(prefix),
            None => action == self.0,
        }
    }
}

const INCIDENT_OPENED: &[Pattern] = &[Pattern("incident.opened"), Pattern("incident.created")];
const INCIDENT_SETTLED: &[Pattern] = &[
    Pattern("incident.closed"),
    Pattern("incident.contained"),
    Pattern("incident.merged"),
];

/// CC7.2 to CC7.5.
pub const CONTROLS: &[Control] = &[
    Control {
        id: "CC7.2",
        title: "Systems are watched for signs of attack, error and misuse",
        objectives: &[
            Objective {
                id: "cc7.2-a",
                statement: "What is watched, and what is allowed, is set deliberately and by an identified person or service",
                evidence: &[
                    Pattern("garrison.policy.v1.PolicyService/ApplyPolicy"),
                    Pattern("garrison.policy.v1.PolicyService/DeletePolicy"),
                    Pattern("garrison.alert.v1.DetectionService/StartLearning"),
                    Pattern("garrison.alert.v1.DetectionService/FinishLearning"),
                    Pattern("garrison.response.v1.PlaybookService/*"),
                    Pattern("policy.*"),
                    Pattern("learning.*"),
                    Pattern("model.*"),
                    Pattern("playbook.*"),
                ],
                test: Test::Exists,
            },
            Objective {
                id: "cc7.2-b",
                statement: "Detection was at work in the period: anomalies were found and raised",
                evidence: &[
                    Pattern("incident.opened"),
                    Pattern("incident.created"),
                    Pattern("alert.*"),
                ],
                test: Test::Exists,
            },
        ],
    },
    Control {
        id: "CC7.3",
        title: "Findings are judged, and those that matter are handled as incidents",
        objectives: &[
            Objective {
                id: "cc7.3-a",
                statement: "Findings were correlated and judged as incidents",
                evidence: &[Pattern("incident.*"), Pattern("garrison.response.v1.IncidentService/*")],
                test: Test::Exists,
            },
            Objective {
                id: "cc7.3-b",
                statement: "Every incident that was opened in the period reached a conclusion",
                evidence: &[
                    Pattern("incident.closed"),
                    Pattern("incident.contained"),
                    Pattern("garrison.response.v1.IncidentService/CloseIncident"),
                ],
                test: Test::Concluded {
                    opens: INCIDENT_OPENED,
                    settles: INCIDENT_SETTLED,
                    open_matter: "incident without a conclusion",
                },
            },
            Objective {
                id: "cc7.3-c",
                statement: "Evidence was preserved so that the judgement can be repeated",
                evidence: &[
                    Pattern("garrison.forensics.v1.EvidenceService/*"),
                    Pattern("evidence.*"),
                ],
                test: Test::Exists,
            },
        ],
    },
    Control {
        id: "CC7.4",
        title: "Incidents are answered by a defined, approved and confirmed response",
        objectives: &[
            Objective {
                id: "cc7.4-a",
                statement: "Containment was applied and read back from the enforcing nodes",
                evidence: &[Pattern("response.applied")],
                test: Test::Exists,
            },
            Objective {
                id: "cc7.4-b",
                statement: "Responses that need a person's approval got a decision",
                evidence: &[
                    Pattern("response.approved"),
                    Pattern("response.rejected"),
                    Pattern("garrison.response.v1.ResponseService/ApproveResponse"),
                    Pattern("garrison.response.v1.ResponseService/RejectResponse"),
                ],
                test: Test::Concluded {
                    opens: &[Pattern("response.pending_approval")],
                    settles: &[
                        Pattern("response.approved"),
                        Pattern("response.dispatched"),
                        Pattern("response.applied"),
                        Pattern("response.rejected"),
                        Pattern("response.refused"),
                        Pattern("response.failed"),
                    ],
                    open_matter: "response that still waits for a decision",
                },
            },
            Objective {
                id: "cc7.4-c",
                statement: "No response that was decided on failed without being made good",
                evidence: &[
                    Pattern("response.dispatched"),
                    Pattern("response.applied"),
                    Pattern("response.failed"),
                ],
                test: Test::Concluded {
                    opens: &[Pattern("response.failed")],
                    settles: &[Pattern("response.applied"), Pattern("response.reverted")],
                    open_matter: "response that failed",
                },
            },
        ],
    },
    Control {
        id: "CC7.5",
        title: "Normal operation is restored after an incident",
        objectives: &[
            Objective {
                id: "cc7.5-a",
                statement: "Containment was lifted again, by hand or at its time limit, and its removal was confirmed",
                evidence: &[
                    Pattern("response.reverted"),
                    Pattern("response.expired"),
                    Pattern("garrison.response.v1.ResponseService/RollbackResponse"),
                ],
                test: Test::Concluded {
                    opens: &[Pattern("response.reverting")],
                    settles: &[Pattern("response.reverted"), Pattern("response.expired")],
                    open_matter: "roll-back that was not confirmed",
                },
            },
            Objective {
                id: "cc7.5-b",
                statement: "Incidents were closed by an identified person",
                evidence: &[
                    Pattern("incident.closed"),
                    Pattern("garrison.response.v1.IncidentService/CloseIncident"),
                ],
                test: Test::Exists,
            },
        ],
    },
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_are_unique_and_every_objective_has_evidence_to_look_for() {
        let mut seen = HashSet::new();
        for control in CONTROLS {
            assert!(seen.insert(control.id));
            for objective in control.objectives {
                assert!(seen.insert(objective.id));
                assert!(!objective.evidence.is_empty());
                assert!(objective.id.starts_with(&control.id.to_lowercase()));
            }
        }
    }

    #[test]
    fn patterns_match_whole_actions_or_prefixes() {
        assert!(Pattern("a.b").matches("a.b"));
        assert!(!Pattern("a.b").matches("a.bc"));
        assert!(Pattern("a.*").matches("a.bc"));
        assert!(!Pattern("a.*").matches("ab"));
    }
}
