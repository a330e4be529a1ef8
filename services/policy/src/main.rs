//! The policy service: who may talk to whom, and a verdict on every flow.

use std::process::ExitCode;

fn main() -> ExitCode {
    garrison_service::main(policy::INFO, policy::run)
}
