//! `cargo xtask test`: everything that must hold, in one summary.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    build,
    paths::{self, Profile},
    setup,
};

struct Step {
    name: &'static str,
    took: Duration,
    outcome: Result<Counts>,
}

type Check = (&'static str, fn() -> Result<Counts>);

#[derive(Clone, Default)]
struct Counts {
    passed: u64,
    failed: u64,
    /// Which, and why.
    skipped: Vec<String>,
    /// Those of them that are among the passed.
    idle: u64,
}

impl Counts {
    /// Takes a line of what cargo test prints.
    fn read(&mut self, line: &str) {
        if let Some(numbers) = line.strip_prefix("test result: ") {
            self.passed += number_before(numbers, " passed");
            self.failed += number_before(numbers, " failed");
        } else if let Some(test) = line.strip_prefix("skipped: ") {
            // It says so itself, and the harness counts it as passed.
            self.skipped.push(test.to_owned());
            self.idle += 1;
        } else if let Some((test, reason)) = line
            .strip_prefix("test ")
            .and_then(|line| line.split_once(" ... ignored"))
        {
            // What another test runs, in a namespace of its own, is not skipped.
            let reason = reason.trim_start_matches(", ");
            if !reason.starts_with("run by ") {
                self.skipped.push(format!("{test}: {reason}"));
            }
        }
    }

    /// Tests that ran and passed.
    fn ran(&self) -> u64 {
        self.passed.saturating_sub(self.idle)
    }

    fn add(&mut self, other: &Self) {
        self.passed += other.ran();
        self.failed += other.failed;
        self.skipped.extend(other.skipped.iter().cloned());
    }
}

/// Runs every step, whatever becomes of the ones before it, and fails when one has failed.
pub fn run(only: &[String]) -> Result<()> {
    setup::for_tests()?;
    setup::rust_components()?;
    let steps: [Check; 6] = [
        ("format", || plain(&["fmt", "--all", "--check"])),
        ("lints", || {
            plain(&[
                "clippy",
                "--workspace",
                "--all-targets",
                "--locked",
                "--",
                "-D",
                "warnings",
            ])
        }),
        ("dependencies", dependencies),
        ("tests", || {
            tests(&[
                "test",
                "--workspace",
                "--locked",
                "--no-fail-fast",
                "--exclude",
                "garrison-e2e",
            ])
        }),
        ("documents", || build::reference(true).map(|()| Counts::default())),
        ("end to end", || {
            build::fleet(Profile::Dev)?;
            tests(&["test", "--package", "garrison-e2e", "--locked", "--no-fail-fast"])
        }),
    ];
    let mut done = Vec::new();
    for (name, step) in steps {
        if !only.is_empty() && !only.iter().any(|wanted| name.replace(' ', "-") == *wanted) {
            continue;
        }
        eprintln!("\n== {name}");
        let started = Instant::now();
        let outcome = step();
        if let Err(error) = &outcome {
            eprintln!("{name}: {error:#}");
        }
        done.push(Step {
            name,
            took: started.elapsed(),
            outcome,
        });
    }
    summarise(&done)
}

fn summarise(steps: &[Step]) -> Result<()> {
    let mut sum = Counts::default();
    println!("\n{:<14} {:>9}  outcome", "step", "seconds");
    for step in steps {
        let outcome = match &step.outcome {
            Ok(counts) => {
                sum.add(counts);
                match (counts.ran(), counts.skipped.len()) {
                    (0, _) => "ok".to_owned(),
                    (ran, 0) => format!("ok, {ran} tests"),
                    (ran, skipped) => format!("ok, {ran} tests, {skipped} skipped"),
                }
            }
            Err(error) => {
                if let Some(TestsFailed(counts)) = error.downcast_ref() {
                    sum.add(counts);
                } else {
                    sum.failed += 1;
                }
                format!("FAILED: {error}")
            }
        };
        println!("{:<14} {:>9.1}  {outcome}", step.name, step.took.as_secs_f64());
    }
    for test in &sum.skipped {
        println!("skipped: {test}");
    }
    println!(
        "\n{} passed, {} failed, {} skipped",
        sum.passed,
        sum.failed,
        sum.skipped.len()
    );
    if sum.failed > 0 {
        bail!("{} failed", sum.failed);
    }
    Ok(())
}

#[derive(Debug, thiserror::Error)]
#[error("{} of {} tests failed", .0.failed, .0.passed + .0.failed)]
struct TestsFailed(Counts);

impl std::fmt::Debug for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

fn plain(arguments: &[&str]) -> Result<Counts> {
    let status = cargo(arguments).status().context("starting cargo failed")?;
    if !status.success() {
        bail!("cargo {} ended with {status}", arguments.join(" "));
    }
    Ok(Counts::default())
}

// Shows what cargo test prints as it comes and adds up its closing lines.
fn tests(arguments: &[&str]) -> Result<Counts> {
    let mut child = cargo(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .context("starting cargo failed")?;
    let mut counts = Counts::default();
    if let Some(stdout) = child.stdout.take() {
        // What tests print need not be text.
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line.context("reading what cargo prints")?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            counts.read(&line);
        }
    }
    let status = child.wait()?;
    if !status.success() {
        counts.failed = counts.failed.max(1);
        return Err(TestsFailed(counts).into());
    }
    if counts.passed == 0 {
        bail!("no test ran");
    }
    Ok(counts)
}

fn number_before(text: &str, word: &str) -> u64 {
    let before = text.split(word).next().unwrap_or_default();
    before
        .rsplit(' ')
        .next()
        .and_then(|number| number.parse().ok())
        .unwrap_or_default()
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = paths::cargo();
    command.args(arguments).current_dir(paths::root());
    command
}

/// The dependency policy of `deny.toml`: licences by the lock file's own metadata, which needs no network.
/// cargo-deny, where it is installed, also asks the advisory database.
fn dependencies() -> Result<Counts> {
    #[derive(serde::Deserialize)]
    struct Deny {
        licenses: Licences,
        bans: Bans,
    }
    #[derive(serde::Deserialize)]
    struct Licences {
        allow: Vec<String>,
    }
    #[derive(serde::Deserialize)]
    struct Bans {
        deny: Vec<Banned>,
    }
    #[derive(serde::Deserialize)]
    struct Banned {
        name: String,
        reason: String,
    }
    #[derive(serde::Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    #[derive(serde::Deserialize)]
    struct Package {
        name: String,
        version: String,
        license: Option<String>,
        source: Option<String>,
    }

    let text = fs::read_to_string(paths::root().join("deny.toml")).context("reading deny.toml")?;
    let policy: Deny = toml::from_str(&text).context("deny.toml")?;
    let output = cargo(&["metadata", "--format-version", "1", "--locked"]).output()?;
    let metadata: Metadata = serde_json::from_slice(&output.stdout).context("reading cargo metadata")?;
    let mut wrong = BTreeMap::new();
    let mut checked = 0;
    for package in metadata.packages.iter().filter(|package| package.source.is_some()) {
        checked += 1;
        let id = format!("{} {}", package.name, package.version);
        let licence = package.license.as_deref().unwrap_or("none stated");
        if !permitted(licence, &policy.licenses.allow) {
            wrong.insert(id.clone(), format!("licence {licence}"));
        }
        if let Some(ban) = policy.bans.deny.iter().find(|ban| ban.name == package.name) {
            wrong.insert(id, format!("is banned: {}", ban.reason));
        }
    }
    for (package, problem) in &wrong {
        eprintln!("{package}: {problem}");
    }
    if !wrong.is_empty() {
        bail!("{} of {checked} dependencies break deny.toml", wrong.len());
    }
    eprintln!("{checked} dependencies keep to deny.toml");
    if setup::which("cargo-deny").is_some() {
        return plain(&["deny", "check", "licenses", "bans", "sources"]);
    }
    Ok(Counts::default())
}

// SPDX expressions as crates use them: OR chooses, AND adds, WITH belongs to the name, "/" is an old OR.
fn permitted(expression: &str, allowed: &[String]) -> bool {
    let expression = expression.replace('/', " OR ");
    let mut alternatives = Vec::new();
    let mut depth = 0;
    let mut current = String::new();
    for word in expression.replace('(', " ( ").replace(')', " ) ").split_whitespace() {
        match word {
            "(" => depth += 1,
            ")" => depth -= 1,
            "OR" if depth == 0 => {
                alternatives.push(std::mem::take(&mut current));
                continue;
            }
            _ => {}
        }
        current.push_str(word);
        current.push(' ');
    }
    alternatives.push(current);
    alternatives
        .iter()
        .any(|alternative| all_permitted(alternative.trim(), allowed))
}

fn all_permitted(conjunction: &str, allowed: &[String]) -> bool {
    let mut depth = 0;
    let mut part = String::new();
    let mut parts = Vec::new();
    for word in conjunction.split_whitespace() {
        match word {
            "(" => depth += 1,
            ")" => depth -= 1,
            "AND" if depth == 0 => {
                parts.push(std::mem::take(&mut part));
                continue;
            }
            _ => {}
        }
        part.push_str(word);
        part.push(' ');
    }
    parts.push(part);
    parts.iter().all(|part| {
        let part = part.trim();
        match part.strip_prefix("( ").and_then(|inner| inner.strip_suffix(" )")) {
            Some(inner) => permitted(inner, allowed),
            None => allowed.iter().any(|name| name == part),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licence_expressions_are_read_as_spdx_means_them() {
        let allowed: Vec<String> = ["MIT", "Apache-2.0", "BSD-3-Clause", "Apache-2.0 WITH LLVM-exception"]
            .map(str::to_owned)
            .to_vec();
        for good in [
            "MIT",
            "GPL-3.0 OR MIT",
            "MIT/Apache-2.0",
            "MIT AND BSD-3-Clause",
            "(MIT OR GPL-2.0) AND Apache-2.0",
            "Apache-2.0 WITH LLVM-exception",
        ] {
            assert!(permitted(good, &allowed), "{good}");
        }
        for bad in [
            "GPL-3.0",
            "MIT AND GPL-3.0",
            "(GPL-2.0 OR AGPL-3.0) AND MIT",
            "none stated",
        ] {
            assert!(!permitted(bad, &allowed), "{bad}");
        }
    }

    #[test]
    fn closing_lines_are_counted() {
        let line = "ok. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out";
        assert_eq!(number_before(line, " passed"), 12);
        assert_eq!(number_before(line, " failed"), 3);
    }

    #[test]
    fn what_is_skipped_is_named_and_not_counted_as_passed() {
        let mut counts = Counts::default();
        for line in [
            "test lab::inside ... ignored, run by lab::outside in a namespace of its own",
            "test slow ... ignored, takes an hour",
            "test bare ... ignored",
            "skipped: corpora::zeek: GARRISON_CORPORA does not name the folder of the corpora",
            "test corpora::zeek ... ok",
            "test result: ok. 5 passed; 0 failed; 3 ignored; 0 measured; 0 filtered out",
        ] {
            counts.read(line);
        }
        assert_eq!(
            counts.skipped,
            [
                "slow: takes an hour",
                "bare: ",
                "corpora::zeek: GARRISON_CORPORA does not name the folder of the corpora"
            ]
        );
        assert_eq!(counts.ran(), 4);
        let mut sum = Counts::default();
        sum.add(&counts);
        assert_eq!((sum.passed, sum.skipped.len()), (4, 3));
    }
}
