//! What the responder decides, without a clock, a database or a network.

pub mod alert;
pub mod correlation;
pub mod guard;
pub mod incident;
pub mod ocsf;
pub mod playbook;
pub mod response;
pub mod stage;
