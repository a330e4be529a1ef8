//! Evaluates the alarm budget: `cargo run --release -p anomaly --example budget -- <corpora>`.

use std::{error::Error as _, path::PathBuf, process::ExitCode};

use anomaly::evaluation;

fn main() -> ExitCode {
    let corpora = std::env::args()
        .nth(1)
        .or_else(|| std::env::var("GARRISON_CORPORA").ok());
    let corpora = PathBuf::from(corpora.unwrap_or_else(|| "../shared/corpora".to_owned()));
    match evaluation::budget::run(&corpora, &anomaly::config::default_settings()) {
        Ok(report) => {
            println!("{report}");
            if report.met() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            let why = error.source().map_or(String::new(), |source| format!(": {source}"));
            eprintln!("{error}{why}");
            ExitCode::FAILURE
        }
    }
}
