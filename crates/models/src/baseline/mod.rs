//! What every model has to be better than: a boxplot on a rate, an isolation forest and a linear model.

mod boxplot;
mod forest;
mod linear;

pub use boxplot::Boxplot;
pub use forest::IsolationForest;
pub use linear::Linear;
