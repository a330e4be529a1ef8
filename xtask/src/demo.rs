//! `cargo xtask demo`: the whole loop on real packets, told as it happens and checked as it goes.

mod capture;
pub mod report;
mod story;

use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::{
    absolute, build,
    network::{self, Task},
    paths::Profile,
    setup,
};

pub use story::{TENANT, fleet_options, login, until};

/// What `cargo xtask demo` takes.
#[derive(Clone, Debug, clap::Args, Serialize, Deserialize)]
pub struct Options {
    /// Run the loop on a capture file instead of the lab network
    #[arg(long, value_name = "FILE", conflicts_with = "interface")]
    pub pcap: Option<PathBuf>,
    /// Run the loop on a live interface instead of the lab network; observes only
    #[arg(long, value_name = "IF")]
    pub interface: Option<String>,
    /// With --interface: let playbooks change this machine's nftables
    #[arg(long, requires = "interface")]
    pub enforce: bool,
    /// Write what happened as JSON
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Leave the fleet up until Ctrl-C, and say how to look around
    #[arg(long)]
    pub keep: bool,
    /// Use unoptimised programs, which build faster
    #[arg(long)]
    pub debug_build: bool,
}

impl Options {
    /// How the fleet is built.
    pub fn profile(&self) -> Profile {
        if self.debug_build {
            Profile::Dev
        } else {
            Profile::Release
        }
    }
}

/// Sets up, builds, and runs the demo.
pub fn run(mut options: Options) -> Result<()> {
    setup::run()?;
    build::fleet(options.profile())?;
    options.pcap = options.pcap.map(absolute).transpose()?;
    options.report = options.report.map(absolute).transpose()?;
    network::run(&Task::Demo(options))
}

/// The part inside the namespaces.
pub async fn inside(options: Options) -> Result<()> {
    match (&options.pcap, &options.interface) {
        (Some(file), _) => capture::from_file(&options, file).await,
        (None, Some(interface)) => capture::from_interface(&options, interface).await,
        (None, None) => story::tell(&options).await,
    }
}
