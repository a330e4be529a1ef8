//! Trains the classifier of threats that comes with the service, says how well it does on a network left out, and writes it
//! to `src/domain/threat`: `cargo run --release -p anomaly --example train_threats -- <corpora>`. The same corpora give the
//! same files. With `--check` nothing is written.

use std::{error::Error, path::PathBuf};

use anomaly::{config::default_settings, evaluation::threats};

fn main() -> Result<(), Box<dyn Error>> {
    let (flags, arguments): (Vec<String>, Vec<String>) = std::env::args().skip(1).partition(|a| a.starts_with("--"));
    let corpora = arguments.into_iter().next();
    let corpora = corpora.or_else(|| std::env::var("GARRISON_CORPORA").ok());
    let corpora = PathBuf::from(corpora.unwrap_or_else(|| "../shared/corpora".to_owned()));
    let scenarios = threats::scenarios(&corpora, &default_settings())?;
    println!("{}", threats::left_out(&scenarios)?);
    if flags.iter().any(|f| f == "--check") {
        return Ok(());
    }
    let trained = threats::shipped(&scenarios)?;
    let to = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/domain/threat");
    std::fs::create_dir_all(&to)?;
    std::fs::write(to.join("threats.safetensors"), trained.weights()?)?;
    let manifest = serde_json::to_string_pretty(trained.manifest())?;
    std::fs::write(to.join("threats.json"), manifest + "\n")?;
    println!("wrote threats.json and threats.safetensors to {}", to.display());
    Ok(())
}
