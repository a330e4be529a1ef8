//! `garrison`: the command line. An ordinary gRPC client with no privileged API.

#![allow(unreachable_pub)] // a program has no public interface; `pub` says what a module offers
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod commands;
mod error;
mod output;
mod profile;
mod reference;
mod remote;
mod session;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::{
    error::{CliError, Exit},
    output::{Format, Printer},
    profile::Profile,
    remote::Remote,
};

/// Talks to a Garrison fleet.
///
/// Data goes to standard output, everything else to standard error. On a terminal lists are tables; piped, they are
/// tab-separated without colour; with `-o json` they are protobuf's canonical JSON, one object a line for streams.
#[derive(Parser)]
#[command(name = "garrison", version, propagate_version = true, arg_required_else_help = true)]
#[command(
    after_help = "Exit status: 0 done, 1 failed, 2 usage, 3 not found, 4 denied or not logged in, \
                        5 service unavailable, 6 verification failed, 64 configuration."
)]
struct Cli {
    /// How to print: table, tsv or json; table on a terminal and tsv otherwise when left out. The others are for `flows read`
    #[arg(short, long, global = true, value_enum, value_name = "FORMAT")]
    output: Option<Format>,
    /// Which profile of the configuration file to use
    #[arg(long, global = true, env = "GARRISON_PROFILE", default_value = "default")]
    profile: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Log in with a password, and a second factor where one is enrolled
    Login(commands::account::Login),
    /// End the session
    Logout,
    /// Show who is logged in
    Whoami,
    /// Manage one's own second factor and password
    #[command(subcommand)]
    Account(commands::account::Account),
    /// Watch and search flows
    #[command(subcommand)]
    Flows(commands::flows::Flows),
    /// Show sensors and what became of their packets
    #[command(subcommand)]
    Sensors(commands::flows::Sensors),
    /// Show what detectors found
    #[command(subcommand)]
    Alerts(commands::alerts::Alerts),
    /// Steer what is learnt as normal
    #[command(subcommand, visible_alias = "models")]
    Model(commands::models::Model),
    /// Show how much speaks against hosts, services and users
    #[command(subcommand)]
    Risks(commands::risks::Risks),
    /// Show what threat intelligence knows
    #[command(subcommand)]
    Intel(commands::intel::Intel),
    /// Show and close incidents
    #[command(subcommand)]
    Incidents(commands::incidents::Incidents),
    /// Show, order, approve and roll back responses
    #[command(subcommand)]
    Responses(commands::responses::Responses),
    /// Show and change playbooks
    #[command(subcommand)]
    Playbooks(commands::responses::Playbooks),
    /// Hosts that no response may touch
    #[command(subcommand)]
    Protected(commands::responses::Protected),
    /// Check, apply and explain zero-trust policy
    #[command(subcommand)]
    Policy(commands::policy::Policy),
    /// Gather, export and verify evidence
    #[command(subcommand)]
    Evidence(commands::evidence::Evidence),
    /// Export, prove and verify the audit log
    #[command(subcommand)]
    Audit(commands::audit::Audit),
    /// Reports on controls
    #[command(subcommand)]
    Reports(commands::audit::Reports),
    /// Manage people of this tenant
    #[command(subcommand)]
    Users(commands::admin::Users),
    /// Show and end sessions
    #[command(subcommand)]
    Sessions(commands::admin::Sessions),
    /// Manage tenants of the installation
    #[command(subcommand)]
    Tenants(commands::admin::Tenants),
    /// Token signing keys of the installation
    #[command(subcommand)]
    Keys(commands::admin::Keys),
    /// Streams, consumers and permissions of the broker
    #[command(subcommand)]
    Bus(commands::bus::BusCommand),
    /// Set up fleets for development
    #[command(subcommand)]
    Dev(commands::dev::Dev),
    /// Print a completion script for a shell
    ///
    /// For example: garrison completion bash > /etc/bash_completion.d/garrison
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the version
    Version,
    /// Print this reference as Markdown
    #[command(hide = true)]
    Reference,
}

/// What every command needs.
struct Context {
    profile: Profile,
    remote: Remote,
    printer: Printer,
}

fn main() -> ExitCode {
    restore_broken_pipe();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Done };
            // Nothing can be done when the terminal is gone.
            let _ = error.print();
            return exit.into();
        }
    };
    match run(cli) {
        Ok(()) => Exit::Done.into(),
        Err(error) => {
            eprintln!("garrison: {error}");
            if let Some(remedy) = error.remedy() {
                eprintln!("          {remedy}");
            }
            error.exit().into()
        }
    }
}

// A reader that has seen enough, as `head` does, ends us as it ends any other tool.
#[allow(unsafe_code)]
fn restore_broken_pipe() {
    // SAFETY: sets the default disposition before any thread or handler exists.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}

fn run(cli: Cli) -> Result<(), CliError> {
    let reading = matches!(cli.command, Command::Flows(commands::flows::Flows::Read(_)));
    if let Some(format) = cli.output.filter(|format| format.is_for_files() && !reading) {
        return Err(CliError::Argument(format!(
            "-o {format:?} is a format of `garrison flows read`; here it is table, tsv or json"
        )));
    }
    let printer = Printer::new(cli.output);
    match &cli.command {
        Command::Completion { shell } => {
            clap_complete::generate(*shell, &mut Cli::command(), "garrison", &mut std::io::stdout());
            return Ok(());
        }
        Command::Version => {
            println!("garrison {}", env!("CARGO_PKG_VERSION"));
            return Ok(());
        }
        Command::Reference => {
            print!("{}", reference::markdown(&Cli::command()));
            return Ok(());
        }
        // What needs no fleet needs no profile either.
        Command::Policy(policy) => {
            if let Some(done) = policy.offline(&printer) {
                return done;
            }
        }
        Command::Evidence(commands::evidence::Evidence::Verify(verify)) => {
            return commands::evidence::verify(verify, &printer);
        }
        Command::Audit(commands::audit::Audit::Verify(verify)) if verify.file.is_some() => {
            return commands::audit::verify_file(verify, &printer);
        }
        Command::Bus(commands::bus::BusCommand::Permissions { trust_domain, enforcer }) => {
            commands::bus::permissions(trust_domain, enforcer);
            return Ok(());
        }
        Command::Dev(dev) => return dev.run(&printer),
        Command::Flows(commands::flows::Flows::Read(read)) => return commands::read::run(read, cli.output),
        _ => {}
    }
    let profile = Profile::load(&cli.profile)?;
    let context = Context {
        remote: Remote::new(&profile)?,
        profile,
        printer,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| CliError::Io {
            what: "starting".to_owned(),
            source,
        })?;
    runtime.block_on(dispatch(cli.command, &context))
}

async fn dispatch(command: Command, context: &Context) -> Result<(), CliError> {
    match command {
        Command::Login(login) => login.run(context).await,
        Command::Logout => commands::account::logout(context).await,
        Command::Whoami => commands::account::whoami(context).await,
        Command::Account(account) => account.run(context).await,
        Command::Flows(flows) => flows.run(context).await,
        Command::Sensors(sensors) => sensors.run(context).await,
        Command::Alerts(alerts) => alerts.run(context).await,
        Command::Model(model) => model.run(context).await,
        Command::Intel(intel) => intel.run(context).await,
        Command::Risks(risks) => risks.run(context).await,
        Command::Incidents(incidents) => incidents.run(context).await,
        Command::Responses(responses) => responses.run(context).await,
        Command::Playbooks(playbooks) => playbooks.run(context).await,
        Command::Protected(protected) => protected.run(context).await,
        Command::Policy(policy) => policy.run(context).await,
        Command::Evidence(evidence) => evidence.run(context).await,
        Command::Audit(audit) => audit.run(context).await,
        Command::Reports(reports) => reports.run(context).await,
        Command::Users(users) => users.run(context).await,
        Command::Sessions(sessions) => sessions.run(context).await,
        Command::Tenants(tenants) => tenants.run(context).await,
        Command::Keys(keys) => keys.run(context).await,
        Command::Bus(bus) => bus.run(context).await,
        // Answered in `run`, which needs no fleet for them.
        Command::Completion { .. } | Command::Version | Command::Reference | Command::Dev(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_and_argument_explains_itself() {
        fn visit(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            assert!(command.get_about().is_some(), "{path} has no description");
            for argument in command.get_arguments() {
                let known = ["help", "version"].contains(&argument.get_id().as_str());
                let said = argument.get_help().is_some() || !argument.get_possible_values().is_empty();
                assert!(known || said, "{path}: {} has no description", argument.get_id());
            }
            command.get_subcommands().for_each(|child| visit(child, &path));
        }
        visit(&Cli::command(), "");
    }

    #[test]
    fn the_reference_has_every_command() {
        let page = reference::markdown(&Cli::command());
        for heading in [
            "## garrison responses approve",
            "## garrison policy check",
            "## garrison bus apply",
        ] {
            assert!(page.contains(heading), "{heading} is missing");
        }
        assert!(!page.contains("garrison help"));
    }
}
