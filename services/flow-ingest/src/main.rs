//! The flow meter of the fleet. `flow-ingest --help` tells how to run it.

use std::process::ExitCode;

fn main() -> ExitCode {
    garrison_service::main(flow_ingest::INFO, flow_ingest::run)
}
