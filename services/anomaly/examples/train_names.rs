//! Trains the models of names that come with the service and writes them to `src/domain/behaviour/dns`:
//! `cargo run --release -p anomaly --example train_names -- <corpora>`. The same corpora give the same files.

use std::{path::PathBuf, process::ExitCode};

use anomaly::evaluation::dns;

fn main() -> ExitCode {
    let corpora = std::env::args()
        .nth(1)
        .or_else(|| std::env::var("GARRISON_CORPORA").ok());
    let corpora = PathBuf::from(corpora.unwrap_or_else(|| "../shared/corpora".to_owned()));
    let to = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/domain/behaviour/dns");
    let (names, tunnels) = match dns::train(&corpora) {
        Ok(trained) => trained,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let list: Vec<String> = tunnels.iter().map(|w| format!("{w:.4}")).collect();
    let written = std::fs::write(to.join("names.weights"), names.to_bytes())
        .and_then(|()| std::fs::write(to.join("tunnel.weights"), format!("[{}]\n", list.join(", "))));
    match written {
        Ok(()) => {
            println!("wrote names.weights and tunnel.weights to {}", to.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{}: {error}", to.display());
            ExitCode::FAILURE
        }
    }
}
