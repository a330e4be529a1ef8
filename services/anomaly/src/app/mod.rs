//! The use cases: judging batches, learning and training, saving and recovering state.

mod engine;
mod intel;
mod judge;
mod learning;
mod recovery;
mod verdicts;

pub use engine::{Clock, Engine, Options};
pub use intel::Intel;
