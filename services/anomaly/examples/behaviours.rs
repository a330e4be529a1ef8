//! Evaluates the behaviours: `cargo run --release -p anomaly --example behaviours -- <corpora> [beacon|dns]`.

use std::{error::Error as _, path::PathBuf, process::ExitCode};

use anomaly::evaluation::{self, EvaluationError, Report};

type Run<'a> = (&'a str, &'a dyn Fn() -> Result<Report, EvaluationError>);

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let corpora = arguments.next().or_else(|| std::env::var("GARRISON_CORPORA").ok());
    let corpora = PathBuf::from(corpora.unwrap_or_else(|| "../shared/corpora".to_owned()));
    let only = arguments.next();
    let settings = anomaly::config::default_settings();
    let runs: [Run<'_>; 2] = [
        ("beacon", &|| evaluation::beacon::run(&corpora, &settings)),
        ("dns", &|| evaluation::dns::run(&corpora, &settings)),
    ];
    let mut met = true;
    for (name, run) in runs {
        if only.as_deref().is_some_and(|only| only != name) {
            continue;
        }
        match run() {
            Ok(report) => {
                met &= report.met();
                println!("{report}");
            }
            Err(error) => {
                let why = error.source().map_or(String::new(), |source| format!(": {source}"));
                eprintln!("{name}: {error}{why}");
                met = false;
            }
        }
    }
    if met { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
