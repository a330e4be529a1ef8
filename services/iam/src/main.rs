//! People, tenants, factors, sessions, roles and tokens.

use std::process::ExitCode;

fn main() -> ExitCode {
    garrison_service::main(iam::INFO, iam::run)
}
