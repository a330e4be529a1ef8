//! The pure core: features, models, thresholds, windows and behaviours. No runtime, no database, no clock:
//! the same messages in the same order give the same findings.

pub use garrison_models::{autoencoder, reservoir, rng, spot};

pub mod activity;
pub mod anchor;
pub mod behaviour;
pub mod bounded;
pub mod brief;
pub mod budget;
pub mod detector;
pub mod drift;
pub mod facts;
pub mod features;
pub mod finding;
pub mod intel;
pub mod logarithm;
pub mod network;
pub mod prefetch;
pub mod ranking;
pub mod registry;
pub mod replicas;
pub mod risk;
pub mod sample;
pub mod settings;
pub mod shard;
pub mod tenant;
pub mod threat;
pub mod wide;
pub mod window;
