//! Compares what a tenant's model may be made of: `cargo run --release -p anomaly --example networks -- <corpora>`.

use std::{error::Error, path::PathBuf};

use anomaly::{
    config::default_settings,
    evaluation::{networks, threats},
};

fn main() -> Result<(), Box<dyn Error>> {
    let corpora = std::env::args().nth(1);
    let corpora = corpora.or_else(|| std::env::var("GARRISON_CORPORA").ok());
    let corpora = PathBuf::from(corpora.unwrap_or_else(|| "../shared/corpora".to_owned()));
    let scenarios = threats::scenarios(&corpora, &default_settings())?;
    println!("{}", networks::compare(&scenarios)?);
    Ok(())
}
