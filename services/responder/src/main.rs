//! The responder.

use std::process::ExitCode;

fn main() -> ExitCode {
    garrison_service::main(responder::INFO, responder::run)
}
