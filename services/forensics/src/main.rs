//! The forensics service: the flow lake, event search and sealed evidence.

use std::process::ExitCode;

fn main() -> ExitCode {
    garrison_service::main(forensics::INFO, forensics::run)
}
