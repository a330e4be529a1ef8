//! The enforcer: the node agent of the responder.

use std::process::ExitCode;

use garrison_service::ExtraCommand;
use responder::enforcer;

const FLUSH: ExtraCommand = ExtraCommand {
    name: "flush",
    about: "Remove the table inet garrison, and with it everything that is in force on this node",
    run: enforcer::flush,
};

fn main() -> ExitCode {
    garrison_service::main_with(enforcer::INFO, &[FLUSH], enforcer::run)
}
