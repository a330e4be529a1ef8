//! The use cases: judging batches, learning and training, saving and recovering state.

mod budget;
mod engine;
mod intel;
mod judge;
mod learning;
mod recovery;
mod registry;
mod risk;
mod verdicts;

pub use budget::held_message;
pub use engine::{Clock, Engine, Options};
pub use intel::Intel;
pub use risk::Risks;
