//! The enforcer: the node agent of the responder.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == "flush") && arguments.next().is_none() {
        return responder::enforcer::flush();
    }
    garrison_service::main(responder::enforcer::INFO, responder::enforcer::run)
}
