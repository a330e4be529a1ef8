//! The compliance service: the transparency log over `audit.>` and reports that resolve to it.

use std::process::ExitCode;

fn main() -> ExitCode {
    garrison_service::main(compliance::INFO, compliance::run)
}
