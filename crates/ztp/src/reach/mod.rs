//! Who can reach whom: policies of any kind, decided exactly over the endpoints of a cluster.
//!
//! Importers ([`crate::cluster`]) turn what enforcement points are told into a [`Program`]. Its meaning:
//!
//! A connection passes on a network when every [`Plane`] lets it leave its source (egress) and reach its destination
//! (ingress). A plane asks its [`Stage`]s in order. In a stage, the first rule that matches decides: *accept* and
//! *deny* end the plane for this side, *pass* goes on with the next stage. What no rule of a stage matches goes on
//! too, or is denied where a policy of the stage governs the endpoint ([`Rest::Deny`]). What is left after the last
//! stage is accepted.
//!
//! Everything is computed on exact sets of services. Endpoints that no predicate of the program tells apart are one
//! class, so the cost depends on how many different endpoints there are rather than on how many there are.

mod assertion;
mod classes;
mod connections;
mod diff;
mod explain;
mod matrix;
mod picture;
mod program;

pub use assertion::{Assertion, Expectation, Expression, ExpressionError, Outcome, Violation, read_assertions};
pub use classes::Reach;
pub use connections::{Connection, Side, dot};
pub use diff::{Change, diff};
pub use explain::{Explained, Step};
pub use matrix::{ChangeError, Matrix};
pub use picture::{MOST_ENDS, MOST_LINES, TooLarge, svg};
pub(crate) use program::domain_within;
pub use program::{
    Action, Endpoint, Exposed, Identity, NamedPort, Network, Order, Peer, Plane, Policy, Ports, Program, Rest, Rule,
    Stage,
};
