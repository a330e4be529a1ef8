//! The pure core: features, models, thresholds, windows and behaviours. No runtime, no database, no clock:
//! the same messages in the same order give the same findings.

pub mod activity;
pub mod autoencoder;
pub mod behaviour;
pub mod bounded;
pub mod detector;
pub mod facts;
pub mod features;
pub mod finding;
pub mod gpd;
pub mod reservoir;
pub mod rng;
pub mod scaler;
pub mod settings;
pub mod shard;
pub mod spot;
pub mod tenant;
pub mod window;
