//! What a binary does: read its arguments and configuration, run, and end with a meaningful status.

use std::{
    ffi::OsString,
    future::Future,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use garrison_auth::TlsIdentity;
use prometheus::Registry;
use schemars::JsonSchema;

use crate::{
    BoxError, ConfigError, Service, ServiceConfig, ServiceError, TelemetryConfig,
    config::{Core, read_config},
    health,
    lifecycle::Stages,
    reference, telemetry,
};

/// It worked.
const OK: u8 = 0;
/// It failed while running.
const FAILED: u8 = 1;
/// Arguments or configuration cannot be used (`EX_USAGE` of sysexits).
const USAGE: u8 = 64;

/// What a binary is.
#[derive(Debug, Clone, Copy)]
pub struct ServiceInfo {
    /// The service's name, as in its SPIFFE id `…/svc/<name>`, its subjects and its database schema.
    /// A name `enforcer` stands for node agents, whose id is `…/enforcer/<node>`.
    pub name: &'static str,
    /// The version, usually `env!("CARGO_PKG_VERSION")`.
    pub version: &'static str,
    /// The database migrations, for services that have a database.
    pub migrator: Option<&'static garrison_db::Migrator>,
}

impl ServiceInfo {
    /// The database schema: the name, with underscores.
    pub(crate) fn schema(&self) -> &'static str {
        // Leaked once a process at most; hyphens are rare.
        if self.name.contains('-') {
            Box::leak(self.name.replace('-', "_").into_boxed_str())
        } else {
            self.name
        }
    }
}

#[derive(Parser)]
#[command(disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    file: File,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Args)]
struct File {
    /// The configuration file, TOML
    #[arg(long, short, global = true, env = "GARRISON_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the service (the default)
    Run,
    /// Bring the service's database schema up to date, as the database's owner
    Migrate {
        /// The role that owns the schema
        #[arg(long, env = "GARRISON_DATABASE_OWNER", value_name = "ROLE")]
        owner: String,
        /// The file with the owner's password
        #[arg(long, env = "GARRISON_DATABASE_OWNER_PASSWORD_FILE", value_name = "FILE")]
        owner_password_file: PathBuf,
    },
    /// Check the configuration file and exit
    Check,
    /// Print the configuration reference as Markdown
    Config,
    /// Ask the running service whether it is ready; for container health checks
    Healthcheck {
        /// Ask only whether it is alive
        #[arg(long)]
        live: bool,
    },
}

/// A command that only one program has, beside those that all have.
#[derive(Debug, Clone, Copy)]
pub struct ExtraCommand {
    /// The word on the command line.
    pub name: &'static str,
    /// What it does, in a line of `--help`.
    pub about: &'static str,
    /// Does it. It reads no configuration.
    pub run: fn() -> Result<(), BoxError>,
}

/// [`main`] of a program with commands of its own.
pub fn main_with<C, F, Fut>(info: ServiceInfo, extra: &[ExtraCommand], run: F) -> ExitCode
where
    C: ServiceConfig,
    F: FnOnce(C, Service) -> Fut,
    Fut: Future<Output = Result<(), BoxError>>,
{
    ExitCode::from(execute(std::env::args_os(), info, extra, run))
}

/// Runs a service as the process's main function.
///
/// Exit status: 0 after a clean stop, 1 after a failure, 64 when arguments or configuration cannot be used, in
/// which case no port was bound.
pub fn main<C, F, Fut>(info: ServiceInfo, run: F) -> ExitCode
where
    C: ServiceConfig,
    F: FnOnce(C, Service) -> Fut,
    Fut: Future<Output = Result<(), BoxError>>,
{
    main_with(info, &[], run)
}

/// The command line of a program: only what it can do. `migrate` is for those that have a database; elsewhere it is not
/// shown, and says so.
fn command_line(info: &ServiceInfo, extra: &[ExtraCommand]) -> clap::Command {
    let own = extra
        .iter()
        .map(|command| clap::Command::new(command.name).about(command.about));
    Cli::command()
        .name(info.name)
        .version(info.version)
        .mut_subcommand("migrate", |migrate| migrate.hide(info.migrator.is_none()))
        .subcommands(own)
}

/// [`main_with`] with the arguments given, the program's name first; answers the exit status.
pub fn execute<C, F, Fut>(
    arguments: impl IntoIterator<Item = OsString>,
    info: ServiceInfo,
    extra: &[ExtraCommand],
    run: F,
) -> u8
where
    C: ServiceConfig,
    F: FnOnce(C, Service) -> Fut,
    Fut: Future<Output = Result<(), BoxError>>,
{
    let operations = Operations {
        read: read_config::<C>,
        admin: |config: &C| config.core().admin.listen,
        migrate: Some(|info, config: &C, owner, password_file| migrate(info, config.core(), owner, password_file)),
        serve: Box::new(|config| serve(info, config, run)),
    };
    dispatch(arguments, info, extra, operations)
}

/// What a program does with its configuration.
pub(crate) struct Operations<'a, C> {
    pub(crate) read: fn(&Path) -> Result<C, ConfigError>,
    pub(crate) admin: fn(&C) -> SocketAddr,
    pub(crate) migrate: Option<Migrate<C>>,
    pub(crate) serve: Box<dyn FnOnce(C) -> Result<(), BoxError> + 'a>,
}

type Migrate<C> = fn(&ServiceInfo, &C, String, PathBuf) -> Result<(), BoxError>;

/// Parses the command line and does what it says; answers the exit status.
pub(crate) fn dispatch<C: JsonSchema>(
    arguments: impl IntoIterator<Item = OsString>,
    info: ServiceInfo,
    extra: &[ExtraCommand],
    operations: Operations<'_, C>,
) -> u8 {
    let matches = command_line(&info, extra).try_get_matches_from(arguments);
    let named = |matches: &clap::ArgMatches| {
        let name = matches.subcommand_name()?;
        extra.iter().find(|command| command.name == name)
    };
    if let Some(command) = matches.as_ref().ok().and_then(named) {
        return status(&info, (command.run)());
    }
    let cli = match matches.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => {
            let help = !error.use_stderr();
            // Nothing can be done when the terminal is gone.
            let _ = error.print();
            return if help { OK } else { USAGE };
        }
    };
    let path = cli
        .file
        .config
        .unwrap_or_else(|| PathBuf::from(format!("/etc/garrison/{}.toml", info.name)));
    let read = || (operations.read)(&path).map_err(BoxError::from);
    let outcome = match cli.command.unwrap_or(Command::Run) {
        Command::Config => {
            print!("{}", reference::<C>(&info));
            Ok(())
        }
        Command::Check => read().map(drop),
        Command::Healthcheck { live } => read().and_then(|config| healthcheck((operations.admin)(&config), live)),
        Command::Migrate {
            owner,
            owner_password_file,
        } => match operations.migrate {
            Some(migrate) => read().and_then(|config| migrate(&info, &config, owner, owner_password_file)),
            None => Err(ConfigError::invalid("core.database", "this program has no database").into()),
        },
        Command::Run => read().and_then(operations.serve),
    };
    status(&info, outcome)
}

fn status(info: &ServiceInfo, outcome: Result<(), BoxError>) -> u8 {
    match outcome {
        Ok(()) => OK,
        Err(error) => {
            eprintln!("{}: {}", info.name, chain(error.as_ref()));
            if is_configuration(error.as_ref()) {
                USAGE
            } else {
                FAILED
            }
        }
    }
}

fn serve<C, F, Fut>(info: ServiceInfo, config: C, run: F) -> Result<(), BoxError>
where
    C: ServiceConfig,
    F: FnOnce(C, Service) -> Fut,
    Fut: Future<Output = Result<(), BoxError>>,
{
    let core = config.core().clone();
    let identity = Service::load_identity(&info, &core)?;
    let settings = core.telemetry.clone();
    in_runtime(&settings, &info, Some(&identity.clone()), async |registry| {
        tracing::info!(service = info.name, version = info.version, id = %identity.id(), "starting");
        let stages = Stages::default();
        stages.follow_signals()?;
        let service = Service::new(info, core, identity, registry, stages).await?;
        run(config, service).await
    })
}

/// Runs a program's work in a runtime with telemetry, and sends what is left of that at the end.
pub(crate) fn in_runtime(
    settings: &TelemetryConfig,
    info: &ServiceInfo,
    identity: Option<&Arc<TlsIdentity>>,
    work: impl AsyncFnOnce(Registry) -> Result<(), BoxError>,
) -> Result<(), BoxError> {
    let runtime = runtime()?;
    let (telemetry, result) = runtime.block_on(async {
        let telemetry = telemetry::start(settings, info, identity)?;
        let result = work(telemetry.registry.clone()).await;
        match &result {
            Ok(()) => tracing::info!("stopped"),
            Err(error) => tracing::error!(error = %chain(error.as_ref()), "stopped by a failure"),
        }
        Ok::<_, ServiceError>((telemetry, result))
    })?;
    telemetry.flush();
    // Blocking work that is left must not keep the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    result
}

fn migrate(info: &ServiceInfo, core: &Core, owner: String, password_file: PathBuf) -> Result<(), BoxError> {
    let migrator = info
        .migrator
        .ok_or_else(|| ConfigError::invalid("core.database", "this service has no database"))?;
    let database = core
        .database
        .clone()
        .ok_or_else(|| ConfigError::invalid("core.database", "the section is missing"))?;
    let role = database.user.clone();
    let owner = garrison_db::DbConfig {
        user: owner,
        password_file,
        ..database
    };
    runtime()?.block_on(garrison_db::migrate(&owner, info.schema(), &role, migrator))?;
    Ok(())
}

fn healthcheck(admin: SocketAddr, live: bool) -> Result<(), BoxError> {
    let page = if live { "/livez" } else { "/readyz" };
    let answer = health::ask(admin, page)?;
    println!("{}", answer.trim());
    Ok(())
}

fn runtime() -> Result<tokio::runtime::Runtime, ServiceError> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| ServiceError::Process {
            what: "starting the runtime",
            source,
        })
}

/// An error and its causes, each said once.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        next = cause.source();
    }
    text
}

fn is_configuration(error: &(dyn std::error::Error + 'static)) -> bool {
    error.is::<ConfigError>() || matches!(error.downcast_ref::<ServiceError>(), Some(ServiceError::Config(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_DATABASE: ServiceInfo = ServiceInfo {
        name: "example",
        version: "1",
        migrator: None,
    };

    #[test]
    fn help_shows_what_the_program_can_do_and_nothing_else() {
        static MIGRATOR: garrison_db::Migrator = garrison_db::Migrator::DEFAULT;
        let flush = ExtraCommand {
            name: "flush",
            about: "Remove everything",
            run: || Ok(()),
        };
        let help = |info: &ServiceInfo, extra: &[ExtraCommand]| command_line(info, extra).render_help().to_string();
        let text = help(&NO_DATABASE, &[flush]);
        assert!(text.contains("flush") && text.contains("Remove everything"), "{text}");
        assert!(!text.contains("migrate"), "{text}");
        let with_database = ServiceInfo {
            migrator: Some(&MIGRATOR),
            ..NO_DATABASE
        };
        let text = help(&with_database, &[]);
        assert!(text.contains("migrate") && !text.contains("flush"), "{text}");
        command_line(&with_database, &[flush]).debug_assert();
    }

    #[derive(serde::Deserialize, schemars::JsonSchema)]
    struct Config {
        core: Core,
    }

    impl ServiceConfig for Config {
        fn core(&self) -> &Core {
            &self.core
        }
    }

    #[test]
    fn a_command_of_its_own_runs_without_a_configuration() {
        let failing = ExtraCommand {
            name: "flush",
            about: "Remove everything",
            run: || Err("the kernel refuses".into()),
        };
        let working = ExtraCommand {
            name: "say",
            about: "Says so",
            run: || Ok(()),
        };
        let run = |words: &[&str]| {
            let arguments = std::iter::once("example")
                .chain(words.iter().copied())
                .map(OsString::from);
            execute(
                arguments,
                NO_DATABASE,
                &[failing, working],
                |_: Config, _: Service| async { Ok(()) },
            )
        };
        assert_eq!(run(&["say"]), OK);
        assert_eq!(run(&["flush"]), FAILED);
        assert_eq!(run(&["flush", "everything"]), USAGE);
        assert_eq!(run(&["unknown"]), USAGE);
    }
}
