use std::{fmt, str::FromStr};

/// What a person may do. What each role permits is written in the fleet's Cedar policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Reads flows, alerts, incidents and responses.
    Viewer,
    /// Also works incidents, searches and gathers evidence.
    Analyst,
    /// Also asks for, approves and rolls back responses.
    Responder,
    /// Writes zero-trust policy and playbooks.
    PolicyAuthor,
    /// Reads the audit log, evidence and reports.
    Auditor,
    /// Administers the people of the tenant.
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

    /// One sentence on what the role is for.
    pub fn description(self) -> &'static str {
        match self {
            Self::Viewer => "Reads flows, alerts, incidents and responses.",
            Self::Analyst => "Works incidents, searches stored flows and gathers evidence.",
            Self::Responder => "Asks for, approves, rejects and rolls back responses.",
            Self::PolicyAuthor => "Writes zero-trust policy and playbooks.",
            Self::Auditor => "Reads the audit log, evidence and reports.",
            Self::Admin => "Administers the people, roles and sessions of the tenant.",
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

    #[test]
    fn lists_are_sorted_without_repeats() {
        assert_eq!(
            roles_from_names(&["admin", "viewer", "admin"]),
            Ok(vec![Role::Viewer, Role::Admin])
        );
        assert!(roles_from_names(&["viewer", "Admin"]).is_err());
    }
}
