//! `cargo xtask bench policy`: the policy engine at scale, and the controller's webhook.

use anyhow::{Context as _, Result, ensure};

use super::machine;
use crate::paths;

/// The budgets, beside what the measurement prints.
const BUDGETS: &str = "\
budgets: all pairs of 100,000 pods and 10,000 policies 1 s; one changed policy 10 ms; what-if over 10 M flows 10 s;
         verdicts 2 M flows/s a core against 10,000 rules";

/// Builds the measurements for speed and runs them.
pub(super) fn run(quick: bool) -> Result<()> {
    let (size, seconds) = if quick { (Some("quick"), "5") } else { (None, "20") };
    bench("garrison-ztp", "scale", size)?;
    println!("\n{BUDGETS}\n");
    bench("policy-controller", "webhook", ["1000", seconds])?;
    machine();
    Ok(())
}

fn bench<'a>(package: &str, name: &str, arguments: impl IntoIterator<Item = &'a str>) -> Result<()> {
    let status = paths::cargo()
        .args(["bench", "--locked", "--quiet", "-p", package, "--bench", name, "--"])
        .args(arguments)
        .current_dir(paths::root())
        .status()
        .context("starting cargo failed")?;
    ensure!(status.success(), "the measurement failed");
    Ok(())
}
