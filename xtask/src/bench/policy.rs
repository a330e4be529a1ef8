//! `cargo xtask bench policy`: the policy engine alone, at scale.

use anyhow::{Context as _, Result, ensure};

use crate::paths;

/// The budgets, beside what the measurement prints.
const BUDGETS: &str = "\
budgets: all pairs of 100,000 pods and 10,000 policies 1 s; one changed policy 10 ms; what-if over 10 M flows 10 s;
         verdicts 2 M flows/s a core against 10,000 rules";

/// Builds the measurement for speed and runs it.
pub(super) fn run(quick: bool) -> Result<()> {
    let mut command = paths::cargo();
    command
        .args(["bench", "--locked", "--quiet", "-p", "garrison-ztp", "--bench", "scale"])
        .current_dir(paths::root());
    if quick {
        command.args(["--", "quick"]);
    }
    let status = command.status().context("starting cargo failed")?;
    ensure!(status.success(), "the measurement failed");
    println!("\n{BUDGETS}");
    Ok(())
}
