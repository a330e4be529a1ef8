//! The policy controller: makes ZeroTrustPolicy resources true, and keeps them true.

use std::process::ExitCode;

fn main() -> ExitCode {
    garrison_service::standalone(
        policy_controller::INFO,
        policy_controller::COMMANDS,
        policy_controller::run,
    )
}
