//! Who is calling, and may they: identity, tokens, keys and authorisation for every gRPC hop of the fleet.
//!
//! * [`SpiffeId`] and [`TlsIdentity`]: mutual TLS with SPIFFE ids, certificates read again when they change.
//! * [`client`]: channels to other services that accept exactly the service they were meant for.
//! * [`token`]: the one token format, Ed25519-signed JWTs (RFC 8037), and nothing else.
//! * [`KeyRing`]: iam's public keys and the revoked sessions, kept fresh.
//! * [`Authorizer`]: Cedar policies over every method in `proto/`, deny by default.
//! * [`AuthLayer`]: all of it as one tower layer; handlers only ask [`caller`].

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod authorize;
mod caller;
pub mod client;
mod denial;
mod identity;
mod jwks;
mod keys;
mod layer;
mod refusals;
mod tls;
pub mod token;

pub use authorize::{Authorizer, Effect, PolicyError, Verdict};
pub use caller::{Caller, Principal, accepted_until, caller};
pub use denial::Denial;
pub use identity::{IdentityError, Role as SpiffeRole, SpiffeId};
pub use jwks::{JwkSet, JwksError, PublicKey};
pub use keys::{IamKeySource, KeyRing, KeySource, KeySourceError, RefreshIntervals, Revoked};
pub use layer::{AuditError, AuditSink, AuthLayer, AuthService, Gate, TENANT_METADATA};
pub use tls::{TlsError, TlsFiles, TlsIdentity};
