//! What can go wrong with a model.

/// A model could not be made, used or read.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Too little was learnt.
    #[error("GAR-ANOM-0003: {learnt} flows were learnt and training needs {needed}")]
    TooLittle {
        /// Flows in the sample.
        learnt: usize,
        /// Flows needed.
        needed: usize,
    },
    /// Training did not end in finite weights.
    #[error("GAR-ANOM-0004: training diverged: the loss is {loss}")]
    Diverged {
        /// The last validation loss.
        loss: f32,
    },
    /// The stored weights or their manifest are not what this release can use.
    #[error("GAR-ANOM-0005: stored model: {0}")]
    Unusable(String),
    /// The tensor library failed.
    #[error("GAR-ANOM-0006: {operation}")]
    Tensor {
        /// What was attempted.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: candle_core::Error,
    },
}

pub(crate) fn tensor(operation: &'static str) -> impl FnOnce(candle_core::Error) -> ModelError {
    move |source| ModelError::Tensor { operation, source }
}
