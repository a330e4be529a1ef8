use std::{fmt, str::FromStr};

/// What a person may do. What each role permits is written in the fleet's Cedar policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Watches.
    Viewer,
    /// Works incidents, contains what is under way and gathers evidence.
    Analyst,
    /// Contains, and plans what is done by itself.
    Responder,
    /// Writes zero-trust policy.
    PolicyAuthor,
    /// Reads the audit log, evidence and reports.
    Auditor,
    /// May everything, and administers the people of the tenant.
    Admin,
}

/// No role has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no role; the roles are viewer, analyst, responder, policy-author, auditor and admin")]
pub struct UnknownRole(String);

impl Role {
    /// Every role, weakest first.
    pub const ALL: [Self; 6] = [
        Self::Viewer,
        Self::Analyst,
        Self::Responder,
        Self::PolicyAuthor,
        Self::Auditor,
        Self::Admin,
    ];

    /// The role's name in tokens, tables and on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Analyst => "analyst",
            Self::Responder => "responder",
            Self::PolicyAuthor => "policy-author",
            Self::Auditor => "auditor",
            Self::Admin => "admin",
        }
    }

    /// What the role permits, in the words of the fleet's Cedar policy. A test compares the two.
    pub fn rights(self) -> &'static [Right] {
        use Right::{
            Administer, Author, CollectEvidence, ExportEvidence, Operate, Packets, PlanResponses, ReadAudit,
            ReadEvidence, Report, Respond, ReviewAccess, Search, Teach, Triage, View,
        };
        match self {
            Self::Viewer => &[View],
            Self::Analyst => &[
                View,
                Search,
                Packets,
                Triage,
                Respond,
                Teach,
                CollectEvidence,
                ReadEvidence,
                ExportEvidence,
            ],
            Self::Responder => &[
                View,
                Search,
                Packets,
                Triage,
                Respond,
                PlanResponses,
                CollectEvidence,
                ReadEvidence,
                ExportEvidence,
            ],
            Self::PolicyAuthor => &[View, Search, Author],
            Self::Auditor => &[View, ReadEvidence, ExportEvidence, ReadAudit, Report, ReviewAccess],
            Self::Admin => &[
                View,
                Search,
                Packets,
                Triage,
                Respond,
                PlanResponses,
                Teach,
                Author,
                CollectEvidence,
                ReadEvidence,
                ExportEvidence,
                ReadAudit,
                Report,
                ReviewAccess,
                Administer,
                Operate,
            ],
        }
    }

    /// One sentence on what the role may do.
    pub fn description(self) -> String {
        let phrases: Vec<&str> = self.rights().iter().map(|right| right.phrase()).collect();
        match phrases.split_last() {
            Some((last, rest)) if !rest.is_empty() => format!("May {}; and {last}.", rest.join("; ")),
            _ => format!("May {}.", phrases.concat()),
        }
    }
}

/// A right, which roles have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Right {
    /// Flows as they are seen, alerts, incidents, responses and policies.
    View,
    /// The flow lake.
    Search,
    /// Packet contents.
    Packets,
    /// Incidents.
    Triage,
    /// Containment and its undoing.
    Respond,
    /// Playbooks and what no action may touch.
    PlanResponses,
    /// What the detectors learn as normal.
    Teach,
    /// Policies.
    Author,
    /// Bundles are made.
    CollectEvidence,
    /// Bundles are listed.
    ReadEvidence,
    /// Bundles leave, with packet contents.
    ExportEvidence,
    /// The transparency log and reports.
    ReadAudit,
    /// Reports are made.
    Report,
    /// Who has which role.
    ReviewAccess,
    /// The people of a tenant.
    Administer,
    /// The installation.
    Operate,
}

impl Right {
    /// Its name in the policy.
    pub fn name(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Search => "search",
            Self::Packets => "packets",
            Self::Triage => "triage",
            Self::Respond => "respond",
            Self::PlanResponses => "plan-responses",
            Self::Teach => "teach",
            Self::Author => "author",
            Self::CollectEvidence => "collect-evidence",
            Self::ReadEvidence => "read-evidence",
            Self::ExportEvidence => "export-evidence",
            Self::ReadAudit => "read-audit",
            Self::Report => "report",
            Self::ReviewAccess => "review-access",
            Self::Administer => "administer",
            Self::Operate => "operate",
        }
    }

    /// What who has it may do.
    pub fn phrase(self) -> &'static str {
        match self {
            Self::View => "see flows, alerts, incidents, responses and policies",
            Self::Search => "search stored flows",
            Self::Packets => "fetch packets",
            Self::Triage => "work incidents",
            Self::Respond => "order, approve, reject and roll back responses",
            Self::PlanResponses => "change playbooks and what no action may touch",
            Self::Teach => "steer what the detectors learn as normal",
            Self::Author => "write zero-trust policy",
            Self::CollectEvidence => "have evidence sealed",
            Self::ReadEvidence => "list evidence and its chain of custody",
            Self::ExportEvidence => "download evidence, packet contents included",
            Self::ReadAudit => "read the audit log and reports",
            Self::Report => "make reports",
            Self::ReviewAccess => "see who has which role",
            Self::Administer => "administer the people of the tenant, their roles and sessions",
            Self::Operate => "in the tenant system, manage tenants and signing keys",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|role| role.name() == name)
            .ok_or_else(|| UnknownRole(name.chars().take(40).collect()))
    }
}

/// Reads a list of role names; the answer is sorted and without repeats.
///
/// # Errors
/// [`UnknownRole`] for the first name that is no role.
pub fn roles_from_names<S: AsRef<str>>(names: &[S]) -> Result<Vec<Role>, UnknownRole> {
    let mut roles = names
        .iter()
        .map(|name| name.as_ref().parse())
        .collect::<Result<Vec<Role>, _>>()?;
    roles.sort_unstable();
    roles.dedup();
    Ok(roles)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_role_reads_back_from_its_name() {
        for role in Role::ALL {
            assert_eq!(role.name().parse(), Ok(role));
        }
        assert!("root".parse::<Role>().is_err());
    }

    /// The names in a Cedar list such as `Action::"view", Action::"search"`.
    fn actions(text: &str) -> Vec<&str> {
        let quoted = text.split("Action::\"").skip(1);
        quoted.filter_map(|rest| rest.split('"').next()).collect()
    }

    #[test]
    fn roles_permit_what_the_policy_permits() {
        let policy = include_str!("../../../../crates/auth/policies/garrison.cedar");
        let mut compared = Vec::new();
        for rule in policy.split("permit (").skip(1) {
            let rule = rule.split(");").next().unwrap();
            let Some((_, rest)) = rule.split_once("principal is User in Role::\"") else {
                continue;
            };
            let (name, rest) = rest.split_once('"').unwrap();
            let role: Role = name
                .parse()
                .unwrap_or_else(|_| panic!("the policy knows a role {name} more"));
            let rights: Vec<&str> = role.rights().iter().map(|right| right.name()).collect();
            assert_eq!(rights, actions(rest), "{name}");
            assert!(!compared.contains(&role), "two rules for {name}");
            compared.push(role);
        }
        compared.sort_unstable();
        let mut all = Role::ALL;
        all.sort_unstable();
        assert_eq!(compared, all);
        // Every right that the policy's schema has for people is somebody's.
        let schema = include_str!("../../../../crates/auth/policies/schema.cedarschema");
        for right in Role::Admin.rights() {
            assert!(schema.contains(&format!("action \"{}\";", right.name())), "{right:?}");
        }
    }

    #[test]
    fn descriptions_say_what_is_permitted() {
        assert_eq!(
            Role::Viewer.description(),
            "May see flows, alerts, incidents, responses and policies."
        );
        assert_eq!(
            Role::PolicyAuthor.description(),
            "May see flows, alerts, incidents, responses and policies; search stored flows; and write zero-trust policy."
        );
    }

    #[test]
    fn lists_are_sorted_without_repeats() {
        assert_eq!(
            roles_from_names(&["admin", "viewer", "admin"]),
            Ok(vec![Role::Viewer, Role::Admin])
        );
        assert!(roles_from_names(&["viewer", "Admin"]).is_err());
    }
}
