//! Programs that are no part of the fleet's bus: the same command line, configuration, telemetry, health and two
//! stages of stopping as a [`Service`](crate::Service), without broker, database and gRPC server.

use std::{borrow::Cow, ffi::OsString, future::Future, path::Path, process::ExitCode, sync::Arc};

use garrison_auth::{TlsFiles, TlsIdentity};
use prometheus::Registry;
use schemars::JsonSchema;
use serde::{Deserialize, de::DeserializeOwned};
use tokio_util::sync::CancellationToken;

use crate::{
    AdminConfig, BoxError, ConfigError, ExtraCommand, LifecycleConfig, ServiceInfo, TelemetryConfig,
    config::{check_telemetry, read_file},
    lifecycle::{Stages, Supervisor},
    program,
    readiness::{Readiness, ReadinessFlag},
    service::serve_admin,
};

/// The sections of a program that is no part of the fleet's bus, under `[core]`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StandaloneCore {
    /// Health, readiness and metrics over plain HTTP. It shows no data and takes no commands; keep it on
    /// loopback or a management network.
    pub admin: AdminConfig,
    /// Logs, traces and metrics.
    pub telemetry: TelemetryConfig,
    /// Stopping.
    pub lifecycle: LifecycleConfig,
}

/// The configuration file of such a program.
pub trait StandaloneConfig: DeserializeOwned + JsonSchema {
    /// The sections that every such program has.
    fn core(&self) -> &StandaloneCore;

    /// Checks what types cannot say. Called before any port is bound.
    ///
    /// # Errors
    /// [`ConfigError::invalid`] naming the key.
    fn validate(&self) -> Result<(), ConfigError> {
        Ok(())
    }
}

/// What a program's `run` receives.
#[derive(Debug)]
pub struct Standalone {
    info: ServiceInfo,
    core: StandaloneCore,
    readiness: Readiness,
    stages: Stages,
    supervisor: Supervisor,
    registry: Registry,
}

impl Standalone {
    /// One inside another program: without telemetry and signals of its own.
    ///
    /// # Errors
    /// [`ConfigError`] for values that cannot be used.
    pub fn embedded(info: ServiceInfo, core: StandaloneCore) -> Result<Self, ConfigError> {
        check_telemetry(&core.telemetry)?;
        Ok(Self::new(info, core, Registry::new(), Stages::default()))
    }

    fn new(info: ServiceInfo, core: StandaloneCore, registry: Registry, stages: Stages) -> Self {
        Self {
            info,
            core,
            readiness: Readiness::default(),
            stages,
            supervisor: Supervisor::default(),
            registry,
        }
    }

    /// Cancelled when the program is to stop taking work. What is under way may still finish.
    pub fn shutdown(&self) -> CancellationToken {
        self.stages.stop.clone()
    }

    /// Adds something that must be there before the program is ready.
    pub fn readiness(&self, name: &'static str) -> ReadinessFlag {
        self.readiness.flag(name)
    }

    /// Starts a supervised task. Its error or panic ends the program with status 1; ending well is fine at any time.
    /// It should end soon after [`Standalone::shutdown`].
    pub fn spawn<F, E>(&mut self, name: impl Into<Cow<'static, str>>, task: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        self.supervisor.spawn(name.into(), task);
    }

    /// Serves the admin port until asked to stop or a task fails, then drains.
    ///
    /// # Errors
    /// [`ServiceError`](crate::ServiceError), after everything has been stopped.
    pub async fn serve(self) -> Result<(), BoxError> {
        serve_admin(
            self.info,
            self.core.admin.listen,
            self.core.lifecycle.drain_timeout(),
            self.readiness,
            self.registry,
            &self.stages,
            self.supervisor,
        )
        .await
    }
}

/// Runs a standalone program: parses the command line, reads the configuration, sets telemetry up and calls `run`.
/// `extra` are commands of its own. The status is 64 for a wrong command line or configuration.
pub fn standalone<C, F, Fut>(info: ServiceInfo, extra: &[ExtraCommand], run: F) -> ExitCode
where
    C: StandaloneConfig,
    F: FnOnce(C, Standalone) -> Fut,
    Fut: Future<Output = Result<(), BoxError>>,
{
    ExitCode::from(execute_standalone(std::env::args_os(), info, extra, run))
}

/// [`standalone`] with the command line given, answering the status.
pub fn execute_standalone<C, F, Fut>(
    arguments: impl IntoIterator<Item = OsString>,
    info: ServiceInfo,
    extra: &[ExtraCommand],
    run: F,
) -> u8
where
    C: StandaloneConfig,
    F: FnOnce(C, Standalone) -> Fut,
    Fut: Future<Output = Result<(), BoxError>>,
{
    program::dispatch::<C>(
        arguments,
        info,
        extra,
        program::Operations {
            read,
            admin: |config: &C| config.core().admin.listen,
            migrate: None,
            serve: Box::new(|config| serve(info, config, run)),
        },
    )
}

fn read<C: StandaloneConfig>(path: &Path) -> Result<C, ConfigError> {
    let config: C = read_file(path)?;
    check_telemetry(&config.core().telemetry)?;
    config.validate()?;
    Ok(config)
}

fn serve<C, F, Fut>(info: ServiceInfo, config: C, run: F) -> Result<(), BoxError>
where
    C: StandaloneConfig,
    F: FnOnce(C, Standalone) -> Fut,
    Fut: Future<Output = Result<(), BoxError>>,
{
    let core = config.core().clone();
    program::in_runtime(&core.telemetry, &info, None, async |registry| {
        tracing::info!(service = info.name, version = info.version, "starting");
        let stages = Stages::default();
        stages.follow_signals()?;
        run(config, Standalone::new(info, core.clone(), registry, stages)).await
    })
}

/// Reads an identity of the fleet, for a program that calls one of its services. `key` names the section for errors.
///
/// # Errors
/// [`ConfigError`] when it cannot be used.
pub fn identity(key: &str, config: &crate::IdentityConfig) -> Result<Arc<TlsIdentity>, ConfigError> {
    let files: TlsFiles = config.files();
    TlsIdentity::load(files, &config.trust_domain)
        .map_err(|e| ConfigError::invalid(key, format!("{e}{}", crate::service::causes(&e))))
}
