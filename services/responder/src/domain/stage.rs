//! Where in an attack a technique belongs.

use garrison_proto::alert::v1::Technique;

/// An ATT&CK tactic, in the order of the enterprise matrix; the number is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(i16)]
pub enum Stage {
    /// The alert names no technique, or its tactic is not one of the matrix.
    Unknown = 0,
    /// TA0043
    Reconnaissance = 1,
    /// TA0042
    ResourceDevelopment = 2,
    /// TA0001
    InitialAccess = 3,
    /// TA0002
    Execution = 4,
    /// TA0003
    Persistence = 5,
    /// TA0004
    PrivilegeEscalation = 6,
    /// TA0005
    DefenseEvasion = 7,
    /// TA0006
    CredentialAccess = 8,
    /// TA0007
    Discovery = 9,
    /// TA0008
    LateralMovement = 10,
    /// TA0009
    Collection = 11,
    /// TA0011
    CommandAndControl = 12,
    /// TA0010
    Exfiltration = 13,
    /// TA0040
    Impact = 14,
}

/// Every stage with its ATT&CK id and name.
const ALL: [(Stage, &str, &str); 14] = [
    (Stage::Reconnaissance, "TA0043", "Reconnaissance"),
    (Stage::ResourceDevelopment, "TA0042", "Resource Development"),
    (Stage::InitialAccess, "TA0001", "Initial Access"),
    (Stage::Execution, "TA0002", "Execution"),
    (Stage::Persistence, "TA0003", "Persistence"),
    (Stage::PrivilegeEscalation, "TA0004", "Privilege Escalation"),
    (Stage::DefenseEvasion, "TA0005", "Defense Evasion"),
    (Stage::CredentialAccess, "TA0006", "Credential Access"),
    (Stage::Discovery, "TA0007", "Discovery"),
    (Stage::LateralMovement, "TA0008", "Lateral Movement"),
    (Stage::Collection, "TA0009", "Collection"),
    (Stage::CommandAndControl, "TA0011", "Command and Control"),
    (Stage::Exfiltration, "TA0010", "Exfiltration"),
    (Stage::Impact, "TA0040", "Impact"),
];

impl Stage {
    /// Reads a tactic by name (any case, with spaces, hyphens or underscores) or by ATT&CK id.
    pub fn of_tactic(tactic: &str) -> Self {
        let plain = |text: &str| -> String {
            text.chars()
                .filter(char::is_ascii_alphanumeric)
                .map(|c| c.to_ascii_lowercase())
                .collect()
        };
        let wanted = plain(tactic);
        ALL.iter()
            .find(|(_, id, name)| plain(id) == wanted || plain(name) == wanted)
            .map_or(Self::Unknown, |(stage, _, _)| *stage)
    }

    /// The stage with the stored number; unknown numbers are [`Stage::Unknown`].
    pub fn from_number(number: i16) -> Self {
        ALL.iter()
            .find(|(stage, _, _)| *stage as i16 == number)
            .map_or(Self::Unknown, |(stage, _, _)| *stage)
    }

    /// The tactic's name, empty for [`Stage::Unknown`].
    pub fn name(self) -> &'static str {
        ALL.iter()
            .find(|(stage, _, _)| *stage == self)
            .map_or("", |(_, _, name)| name)
    }

    /// The tactic's ATT&CK id, empty for [`Stage::Unknown`].
    pub fn id(self) -> &'static str {
        ALL.iter()
            .find(|(stage, _, _)| *stage == self)
            .map_or("", |(_, id, _)| id)
    }

    /// How well suffering this explains that the victim acts for the attacker afterwards, 0 to 1.
    ///
    /// Being scanned explains little; having its passwords guessed or being exploited explains much.
    pub fn access(self) -> f64 {
        match self {
            Self::Unknown => 0.5,
            Self::Reconnaissance | Self::ResourceDevelopment | Self::Discovery => 0.3,
            Self::InitialAccess
            | Self::Execution
            | Self::Persistence
            | Self::PrivilegeEscalation
            | Self::CredentialAccess
            | Self::LateralMovement => 0.9,
            Self::DefenseEvasion | Self::Collection | Self::CommandAndControl | Self::Exfiltration | Self::Impact => {
                0.6
            }
        }
    }

    /// How much doing this looks like a host that somebody else controls, 0 to 1.
    pub fn conduct(self) -> f64 {
        match self {
            Self::LateralMovement | Self::Collection | Self::CommandAndControl | Self::Exfiltration | Self::Impact => {
                0.9
            }
            Self::InitialAccess
            | Self::Execution
            | Self::Persistence
            | Self::PrivilegeEscalation
            | Self::DefenseEvasion
            | Self::CredentialAccess => 0.7,
            Self::Reconnaissance | Self::ResourceDevelopment | Self::Discovery => 0.6,
            Self::Unknown => 0.5,
        }
    }
}

/// The stages of an alert's techniques. An alert of the policy service that names no technique is a
/// forbidden contact, which is how lateral movement looks on the wire.
pub fn stages(detector: &str, techniques: &[Technique]) -> Vec<Stage> {
    let named: Vec<Stage> = techniques.iter().map(|t| Stage::of_tactic(&t.tactic)).collect();
    match named.is_empty() {
        false => named,
        true if detector.starts_with("policy.") => vec![Stage::LateralMovement],
        true => vec![Stage::Unknown],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_spelling_of_a_tactic() {
        for text in [
            "Lateral Movement",
            "lateral-movement",
            "lateral_movement",
            "TA0008",
            "ta0008",
        ] {
            assert_eq!(Stage::of_tactic(text), Stage::LateralMovement, "{text}");
        }
        assert_eq!(Stage::of_tactic("dancing"), Stage::Unknown);
        for (stage, id, name) in ALL {
            assert_eq!(Stage::from_number(stage as i16), stage);
            assert_eq!((stage.id(), stage.name()), (id, name));
        }
        assert_eq!(Stage::from_number(99), Stage::Unknown);
    }
}
