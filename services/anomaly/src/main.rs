//! Finds what does not belong.

use std::process::ExitCode;

fn main() -> ExitCode {
    garrison_service::main(anomaly::INFO, anomaly::run)
}
