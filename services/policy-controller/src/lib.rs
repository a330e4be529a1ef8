//! Makes the policies of a Kubernetes cluster true, and keeps them true.
//!
//! `domain` says, without a cluster, what is to be there because of the policies; `engine` compares that with what is
//! there and writes the difference; `lease` decides which replica does so; `webhook` refuses documents with errors
//! before they are stored and `convert` tells one version of the API in another, both in every replica, under a certificate
//! that `serving` looks after.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod config;
mod convert;
pub mod domain;
mod engine;
mod figures;
mod lease;
mod metrics;
mod queue;
mod serving;
mod tls;
mod webhook;

use std::sync::Arc;

use garrison_service::{BoxError, ConfigError, ExtraCommand, ServiceInfo, Standalone};
use kube::config::{KubeConfigOptions, Kubeconfig};

pub use config::{
    AuthorityConfig, BundleConfig, Config, ControllerConfig, KubernetesConfig, LeaderConfig, MeshConfig, RolloutConfig,
    TargetName, WebhookConfig,
};
pub use convert::Conversion;
pub use metrics::Metrics;
pub use webhook::{Admission, router};

/// What the program is called.
pub const INFO: ServiceInfo = ServiceInfo {
    name: "policy-controller",
    version: env!("CARGO_PKG_VERSION"),
    migrator: None,
};

/// Commands besides those that every program has.
pub const COMMANDS: &[ExtraCommand] = &[ExtraCommand {
    name: "crds",
    about: "Print the custom resource definitions, YAML",
    run: print_definitions,
}];

/// The custom resource definitions as YAML documents.
///
/// # Errors
/// Never in practice: they are made of plain values.
pub fn definitions() -> Result<String, BoxError> {
    let documents = domain::crd::definitions()
        .iter()
        .map(serde_saphyr::to_string)
        .collect::<Result<Vec<String>, _>>()?;
    Ok(documents.join("---\n"))
}

fn print_definitions() -> Result<(), BoxError> {
    print!("{}", definitions()?);
    Ok(())
}

/// Serves the webhook and takes part in the election; acts while it leads.
///
/// # Errors
/// When the configuration cannot be used, or a task fails.
pub async fn run(config: Config, mut program: Standalone) -> Result<(), BoxError> {
    let metrics = Metrics::default();
    let mut shown = None;
    if let Some(webhook) = &config.webhook {
        let certificate = Arc::new(tls::Certificate::default());
        let flag = program.readiness("webhook");
        if let Some(files) = tls::Files::of(webhook) {
            let (key, expires) = files.load()?;
            certificate.show(key);
            metrics.certificate(expires);
            let follow = files.follow(webhook.reload(), Arc::clone(&certificate), metrics.clone());
            tokio::spawn(program.shutdown().run_until_cancelled_owned(follow));
        }
        let listener = tls::Listener::bind(webhook, Arc::clone(&certificate)).await?;
        let admission = Admission::new(config.controller.lowest_namespaced_tier, metrics.clone());
        let routes = router(admission, Conversion::new(metrics.clone()));
        let (stop, linger) = (program.shutdown(), webhook.linger());
        tracing::info!(address = %listener.address(), "serving the webhook");
        if webhook.authority.is_none() {
            flag.ready();
        }
        program.spawn("webhook", async move {
            // The API server learns late that this replica goes, and would be refused until then.
            let stopped = async move {
                stop.cancelled().await;
                tokio::time::sleep(linger).await;
            };
            axum::serve(listener, routes).with_graceful_shutdown(stopped).await
        });
        shown = Some((webhook.clone(), certificate, flag));
    }
    let client = client(&config).await?;
    let (leads, leading) = tokio::sync::watch::channel(false);
    if let Some((webhook, certificate, flag)) = shown {
        let keeper = serving::Keeper {
            client: client.clone(),
            namespace: config.kubernetes.namespace.clone(),
            config: webhook,
            certificate,
            flag,
            metrics: metrics.clone(),
        };
        let (leading, stop) = (leading.clone(), program.shutdown());
        program.spawn("certificate", async move {
            keeper.run(leading, stop).await;
            Ok::<(), BoxError>(())
        });
    }
    let identity = config.leader.identity.clone().unwrap_or_else(own_name);
    let engine = Arc::new(engine::Engine::new(
        client.clone(),
        config.clone(),
        &identity,
        metrics.clone(),
        program.readiness("kubernetes"),
    ));
    let candidate = lease::Candidate::new(client, &config.kubernetes.namespace, &config.leader, identity);
    let stop = program.shutdown();
    program.spawn("election", async move {
        candidate.run(leads, stop).await;
        Ok::<(), BoxError>(())
    });
    let stop = program.shutdown();
    program.spawn("engine", async move {
        engine.run(leading, stop).await;
        Ok::<(), BoxError>(())
    });
    program.serve().await
}

async fn client(config: &Config) -> Result<kube::Client, ConfigError> {
    let settings = match &config.kubernetes.kubeconfig {
        Some(path) => {
            let invalid = |error: &dyn std::fmt::Display| {
                ConfigError::invalid("kubernetes.kubeconfig", format!("{}: {error}", path.display()))
            };
            let file = Kubeconfig::read_from(path).map_err(|error| invalid(&error))?;
            kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .map_err(|error| invalid(&error))?
        }
        None => kube::Config::incluster().map_err(|error| {
            ConfigError::invalid(
                "kubernetes.kubeconfig",
                format!("GAR-CTL-0003: this is not a pod with a service account: {error}; name a kubeconfig"),
            )
        })?,
    };
    kube::Client::try_from(settings)
        .map_err(|error| ConfigError::invalid("kubernetes", format!("GAR-CTL-0003: {error}")))
}

fn own_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}-{}", host.trim(), std::process::id())
}
