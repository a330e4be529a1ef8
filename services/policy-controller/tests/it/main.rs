//! The controller against a real API server, driven with kubectl. No node and no other controller runs: nothing is
//! collected for its owner's sake, so what goes is what the controller takes away.

#![allow(clippy::unwrap_used, missing_docs)]

mod cluster;
mod conversion;
mod election;
mod lifecycle;
mod manifests;
mod mesh;
mod rollout;
mod serving;
mod tampering;
mod targets;
mod webhook;
