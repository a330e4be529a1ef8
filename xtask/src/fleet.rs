//! `cargo xtask up`: the fleet for development, with its logs.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead as _, BufReader, Seek as _, SeekFrom},
    path::PathBuf,
    time::Duration,
};

use anyhow::Result;
use garrison_testkit::{Fleet, bootstrap::Source};
use serde::{Deserialize, Serialize};

use crate::{
    build,
    demo::fleet_options,
    network::{self, Task},
    paths::{self, Profile},
    setup,
};

/// What `cargo xtask up` takes.
#[derive(Clone, Debug, clap::Args, Serialize, Deserialize)]
pub struct UpOptions {
    /// Capture on this interface; without it the fleet has its own empty network
    #[arg(long, value_name = "IF")]
    pub interface: Option<String>,
    /// With --interface: let playbooks change this machine's nftables
    #[arg(long, requires = "interface")]
    pub enforce: bool,
    /// Use optimised programs
    #[arg(long)]
    pub release: bool,
}

impl UpOptions {
    fn profile(&self) -> Profile {
        if self.release { Profile::Release } else { Profile::Dev }
    }
}

/// Sets up, builds, and runs the fleet until Ctrl-C. What it keeps stays for the next time.
pub fn up(options: UpOptions) -> Result<()> {
    setup::run()?;
    build::fleet(options.profile())?;
    network::run(&Task::Up(options))
}

/// The part inside the namespaces.
pub async fn up_inside(options: UpOptions) -> Result<()> {
    let binaries = paths::binaries(options.profile());
    let interface = options.interface.clone().unwrap_or_else(|| "lo".to_owned());
    let source = Some(Source::Interfaces(vec![interface]));
    let mut fleet_options = fleet_options(binaries.clone(), paths::state().join("dev"), source, !options.enforce);
    fleet_options.learn_seconds = Some(60);
    let fleet = Fleet::start(fleet_options).await?;
    let pid = fleet.process_id("responder").unwrap_or_default();
    eprintln!(
        "\nThe fleet is up. Its people are in {}; their passwords and authenticator secrets in",
        fleet.written().cli.display()
    );
    eprintln!("{}. In another terminal:", fleet.dir().join("secrets").display());
    if options.interface.is_none() {
        eprintln!("  nsenter --target {pid} --user --net --preserve-credentials bash");
    }
    eprintln!("  export GARRISON_CONFIG={}", fleet.written().cli.display());
    eprintln!("  export PATH={}:$PATH", binaries.display());
    eprintln!(
        "  garrison login analyst --tenant acme --password-file {}",
        fleet.dir().join("secrets/acme-analyst.password").display()
    );
    eprintln!("Ctrl-C ends it. Logs follow.\n");
    follow(&fleet).await
}

async fn follow(fleet: &Fleet) -> Result<()> {
    let mut readers: BTreeMap<String, BufReader<File>> = BTreeMap::new();
    loop {
        for program in fleet.programs() {
            let path: PathBuf = fleet.log(&program);
            let reader = match readers.entry(program.clone()) {
                std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
                std::collections::btree_map::Entry::Vacant(new) => {
                    let Ok(mut file) = File::open(&path) else { continue };
                    // What earlier runs wrote is in the file for whoever wants it.
                    file.seek(SeekFrom::End(0))?;
                    new.insert(BufReader::new(file))
                }
            };
            let mut line = String::new();
            while reader.read_line(&mut line)? > 0 {
                print!("{program:<12} {line}");
                line.clear();
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
