//! Learning and thresholds over plain matrices. Nothing here knows of flows, tenants, a clock or a runtime: the same
//! numbers and seed give the same model, in the service and in its evaluation.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod autoencoder;
pub mod baseline;
pub mod budget;
pub mod classifier;
pub(crate) mod dense;
pub mod ensemble;
pub mod error;
pub mod gpd;
pub mod hashed;
pub mod letters;
pub mod matrix;
pub mod metrics;
pub mod reservoir;
pub mod rng;
pub mod scaler;
pub mod spot;
pub mod table;
pub mod trees;
pub(crate) mod weights;

pub use matrix::Matrix;
