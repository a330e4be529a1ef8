//! The programs that `cargo xtask bench flows` runs: each does one thing, and prints what came of it as one line of JSON.

#![allow(missing_docs, unreachable_pub)] // a program has no public interface

mod capture;
#[path = "../../src/domain/craft.rs"]
mod craft;
#[path = "../../benches/made/datagrams.rs"]
mod datagrams;
mod exports;
mod live;
mod meter;
mod table;
#[path = "../../benches/made/traffic.rs"]
mod traffic;

use std::{path::Path, process::ExitCode};

const USAGE: &str = "\
usage: measure capture CORPORA OUT OCTETS     make a large capture from a corpus
       measure mixed OUT                      make a capture of made traffic
       measure read FILE                      only read it
       measure meter FILE none|batches        meter it, and make Arrow batches of the records or not
       measure share FILE WORKERS             meter it with several workers
       measure flood SECONDS CONVERSATIONS    a million new flows a second beside conversations
       measure table FLOWS                    so many flows at once
       measure exports RUNS                   IPFIX
       measure live SECONDS WORKERS           capture on a pair of virtual interfaces";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text} is no number"))
}

fn run(arguments: &[&str]) -> Result<serde_json::Value, String> {
    match arguments {
        ["capture", corpora, out, octets] => {
            let made = capture::make(Path::new(corpora), Path::new(out), number(octets)?)?;
            Ok(serde_json::json!({
                "captures": made.captures, "left_out": made.left_out, "rounds": made.rounds,
                "packets": made.packets, "bytes": made.bytes,
            }))
        }
        ["mixed", out] => {
            let made = traffic::mixed();
            std::fs::write(out, &made).map_err(|error| format!("{out}: {error}"))?;
            Ok(serde_json::json!({ "bytes": made.len() }))
        }
        ["read", file] => meter::read(Path::new(file)),
        ["meter", file, "none"] => meter::metered(Path::new(file), &mut meter::Nothing(0)),
        ["meter", file, "batches"] => meter::metered(Path::new(file), &mut meter::Batches::default()),
        ["share", file, workers] => meter::shared(Path::new(file), number(workers)? as usize),
        ["flood", seconds, conversations] => Ok(table::flood(number(seconds)?, number(conversations)? as u32)),
        ["table", flows] => Ok(table::full(number(flows)?)),
        ["exports", runs] => exports::measure(number(runs)? as u32),
        ["live", seconds, workers] => live::measure(number(seconds)?, number(workers)? as usize),
        _ => Err(USAGE.to_owned()),
    }
}
