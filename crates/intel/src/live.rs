//! The index in force.

use std::sync::{Arc, PoisonError, RwLock};

use crate::index::Index;

/// An index that is replaced while it is read. Readers keep the one they began with.
#[derive(Debug, Default)]
pub struct Live(RwLock<Arc<Index>>);

impl Live {
    /// The index as of now. Taken once a batch.
    pub fn load(&self) -> Arc<Index> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts another in its place and answers the one before.
    pub fn swap(&self, index: Arc<Index>) -> Arc<Index> {
        std::mem::replace(&mut self.0.write().unwrap_or_else(PoisonError::into_inner), index)
    }
}
