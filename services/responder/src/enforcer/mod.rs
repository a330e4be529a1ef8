//! The node agent: takes orders from the responder, carries them out in nftables, reads them back, and keeps
//! them true.
//!
//! * [`ledger`]: what was ordered and done, and what is still to be said; pure.
//! * [`ruleset`]: what belongs in the kernel, as data and as a script; pure.
//! * [`netlink`] and [`kernel`]: the kernel.
//! * [`agent`]: the one thread that owns kernel and ledger.
//! * [`orders`] and [`link`]: the bus and the responder.
//!
//! SIGTERM leaves the rules in force: containment must not drop because an agent is restarted or upgraded.
//! `enforcer flush` removes them.

pub mod agent;
pub mod config;
pub mod kernel;
pub mod ledger;
pub mod link;
mod listing;
pub mod metrics;
pub mod netlink;
pub mod orders;
pub mod ruleset;
pub mod state;
mod worker;

use std::{path::PathBuf, sync::Arc, time::Duration};

use garrison_auth::SpiffeRole;
use garrison_bus::{
    Dispatch,
    topology::{self, EnforcerNode},
};
use garrison_proto::TenantId;
use garrison_service::{BoxError, ConfigError, Service, ServiceInfo};
use ipnet::IpNet;

use self::{
    agent::{Agent, Setup},
    config::Config,
    kernel::{Kernel, KernelError},
    link::Link,
    orders::Orders,
    state::StateFile,
};
use crate::domain::guard::Target;

/// What this binary is.
pub const INFO: ServiceInfo = ServiceInfo {
    name: "enforcer",
    version: env!("CARGO_PKG_VERSION"),
    migrator: None,
};

/// Orders carried out at a time: they wait for the broker's word on their reports and for the disk.
const CONCURRENCY: usize = 16;

/// The enforcer cannot do its work.
#[derive(Debug, thiserror::Error)]
pub enum EnforcerError {
    /// The kernel, or `nft`.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The state file.
    #[error("GAR-ENF-0004: cannot use the state file {}", path.display())]
    State {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Whoever is in a management network must stay reachable.
    #[error("GAR-ENF-0006: {target} touches the management network {network}")]
    Management {
        /// What was to be acted on.
        target: Target,
        /// The network.
        network: IpNet,
    },
    /// The order names no action.
    #[error("GAR-ENF-0009: the order names no action")]
    NoAction,
    /// The system refused a thread.
    #[error("GAR-ENF-0001: cannot start the kernel thread")]
    Thread(#[source] std::io::Error),
    /// The kernel thread ended.
    #[error("GAR-ENF-0001: the kernel thread has ended")]
    Ended,
}

/// Wires the agent and runs it until it is told to stop.
///
/// # Errors
/// Whatever ended it.
pub async fn run(config: Config, mut service: Service) -> Result<(), BoxError> {
    let SpiffeRole::Enforcer(node) = service.identity().role().clone() else {
        return Err(Box::new(ConfigError::invalid(
            "core.identity.cert_file",
            "the certificate is not an enforcer's",
        )));
    };
    let layout = config.layout()?;
    let tenants: Vec<_> = layout.tenants.iter().map(|t| t.id.clone()).collect();
    let channel = service.channel(
        "responder",
        "enforcer.responder_endpoint",
        &config.enforcer.responder_endpoint,
    )?;
    let agent = if config.enforcer.observe_only {
        tracing::warn!("observe only: every order will be reported as failed");
        None
    } else {
        let setup = Setup {
            node: node.clone(),
            layout,
            program: config.enforcer.nft_program.clone(),
            state: StateFile::new(config.enforcer.state_file.clone()),
        };
        let (agent, ended) = tokio::task::spawn_blocking(move || Agent::start(setup)).await??;
        let stop = service.shutdown();
        service.spawn("kernel", async move {
            tokio::select! {
                _ = ended => Err(EnforcerError::Ended),
                () = stop.cancelled() => Ok(()),
            }
        });
        Some(agent)
    };
    let own = EnforcerNode::new(&node, tenants.iter().map(TenantId::as_str))?;
    let link = Arc::new(Link::new(
        node,
        tenants,
        agent.clone(),
        channel,
        service.publisher.clone(),
        Duration::from_millis(u64::from(config.enforcer.heartbeat_interval_ms)),
        Duration::from_secs(u64::from(config.enforcer.reconcile_interval_s)),
    ));
    // One for the life of the process.
    let consumer = Box::leak(Box::new(topology::enforcer_consumer(&own)));
    let orders = Orders::new(Arc::clone(&link), agent, service.publisher.clone());
    service.consume(consumer, Dispatch::Concurrent(CONCURRENCY), orders);
    let flag = service.readiness("responder");
    let beats = Arc::clone(&link).beat(flag, service.shutdown());
    service.spawn("heartbeat", beats);
    let news = link.publish_news(service.shutdown());
    service.spawn("news", news);
    service.serve_admin().await
}

/// `enforcer flush`: removes the table and with it everything that is in force on this node.
///
/// # Errors
/// [`KernelError`] when the kernel or `nft` refuses.
pub fn flush() -> Result<(), BoxError> {
    Kernel::flush("nft")?;
    eprintln!("the table inet garrison was removed; a running enforcer would restore it");
    Ok(())
}
