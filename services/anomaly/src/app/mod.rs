//! The use cases: judging batches, learning and training, saving and recovering state.

mod budget;
mod cell;
mod checkpoint;
mod engine;
mod intel;
mod judge;
mod learning;
mod recovery;
mod registry;
mod replicas;
mod risk;
mod verdicts;

use std::collections::BTreeMap;

use garrison_bus::Message;
use garrison_proto::{
    TenantId,
    audit::v1::{Actor, Decision},
};
use garrison_service::audit;

pub use budget::held_message;
pub use engine::{Clock, Engine, Options};
pub use intel::Intel;
pub use risk::Risks;

use crate::INFO;

/// The audit's record of what somebody did.
fn recorded(id: &TenantId, actor: Actor, action: &str, resource: &str, details: BTreeMap<String, String>) -> Message {
    audit::message(
        &INFO,
        &audit::record(&INFO, id, actor, action, resource, Decision::Allow, "", details),
    )
}
