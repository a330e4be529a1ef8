use std::{collections::BTreeSet, str::FromStr};

use garrison_proto::TenantId;

use crate::subject;

/// What stands for every tenant.
const EVERYBODY: &str = "*";

/// Most tenants that are named for one node; a node that serves more serves `*`.
pub const MAX_TENANTS: usize = 1_000;

/// A node with an enforcer, and whose orders it may read and report on. Written `node=tenant,tenant` or `node=*`; the
/// same as the responder's `enforcement.nodes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnforcerNode {
    name: String,
    /// Subject tokens.
    tenants: BTreeSet<String>,
}

/// What was written is no enforcer node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidNode {
    /// The name cannot be used in a SPIFFE id and a consumer name.
    #[error("GAR-BUS-0008: {0:?} is not a node name: use 1 to 63 of a-z, 0-9, hyphen and underscore")]
    Name(String),
    /// It is not said whose orders it may read.
    #[error(
        "GAR-BUS-0008: {0:?} names 1 to {MAX_TENANTS} tenants or none of them: write {0}=tenant,tenant, or {0}=* for all"
    )]
    Tenants(String),
    /// One of the tenants is none.
    #[error("GAR-BUS-0008: node {node}: {reason}")]
    Tenant {
        /// The node.
        node: String,
        /// What is wrong.
        reason: String,
    },
}

impl EnforcerNode {
    /// A node that serves these tenants; `*` stands for all.
    ///
    /// # Errors
    /// [`InvalidNode`] when the name is not a safe token, or no tenant or something else is named.
    pub fn new<T: AsRef<str>>(name: &str, tenants: impl IntoIterator<Item = T>) -> Result<Self, InvalidNode> {
        if subject::token(name) != name || name.len() > 63 {
            return Err(InvalidNode::Name(name.to_owned()));
        }
        let mut served = BTreeSet::new();
        for tenant in tenants {
            let tenant = tenant.as_ref();
            if tenant != EVERYBODY {
                let parsed: Result<TenantId, _> = tenant.parse();
                parsed.map_err(|error| InvalidNode::Tenant {
                    node: name.to_owned(),
                    reason: error.to_string(),
                })?;
            }
            served.insert(tenant.to_owned());
        }
        if served.contains(EVERYBODY) {
            served = BTreeSet::from([EVERYBODY.to_owned()]);
        }
        if !(1..=MAX_TENANTS).contains(&served.len()) {
            return Err(InvalidNode::Tenants(name.to_owned()));
        }
        Ok(Self {
            name: name.to_owned(),
            tenants: served,
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The tokens that stand for its tenants in subjects: their ids, or `*`.
    pub fn tenants(&self) -> impl Iterator<Item = &str> {
        self.tenants.iter().map(String::as_str)
    }
}

impl FromStr for EnforcerNode {
    type Err = InvalidNode;

    fn from_str(text: &str) -> Result<Self, InvalidNode> {
        let Some((name, tenants)) = text.split_once('=') else {
            // A bad name is said first: it would be in the remedy.
            return Err(Self::new(text, [EVERYBODY])
                .err()
                .unwrap_or_else(|| InvalidNode::Tenants(text.to_owned())));
        };
        Self::new(name, tenants.split(',').filter(|tenant| !tenant.is_empty()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_read() {
        let node: EnforcerNode = "edge-1=globex,acme,acme".parse().unwrap();
        assert_eq!(node.name(), "edge-1");
        assert_eq!(node.tenants().collect::<Vec<_>>(), ["acme", "globex"]);
        let all: EnforcerNode = "router=acme,*".parse().unwrap();
        assert_eq!(all.tenants().collect::<Vec<_>>(), ["*"]);
        assert_eq!(all, EnforcerNode::new("router", ["*"]).unwrap());
    }

    #[test]
    fn what_is_missing_or_hostile_is_named() {
        for (text, said) in [
            ("router", "write router=tenant,tenant"),
            ("router=", "write router=tenant,tenant"),
            ("router=,", "write router=tenant,tenant"),
            ("router=A", "\"A\" is not a tenant id"),
            ("router=acme,>", "\">\" is not a tenant id"),
            ("router=acme.x", "is not a tenant id"),
            ("=acme", "\"\" is not a node name"),
            ("no good", "\"no good\" is not a node name"),
        ] {
            let error = text.parse::<EnforcerNode>().unwrap_err().to_string();
            assert!(
                error.contains("GAR-BUS-0008") && error.contains(said),
                "{text}: {error}"
            );
        }
        for bad in ["", "a b", "*", ">", "a.b", "A", "x\"y", &"n".repeat(64)] {
            assert!(EnforcerNode::new(bad, ["acme"]).is_err(), "{bad:?} was taken");
        }
        let many = (0..=MAX_TENANTS).map(|n| format!("t{n}"));
        assert!(EnforcerNode::new("router", many).is_err());
    }
}
