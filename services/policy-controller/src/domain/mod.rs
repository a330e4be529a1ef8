//! What is pure: policies as the cluster has them, what is to be there because of them, and how that differs from what
//! is there.

pub mod authority;
pub mod check;
pub mod crd;
pub mod difference;
pub mod plan;
pub mod rollout;
pub mod source;
pub mod status;
pub mod trust;
