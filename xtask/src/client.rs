//! The command line `garrison`, used as a person would, with its JSON read back.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// The command line with one profile.
#[derive(Clone, Debug)]
pub struct Client {
    program: PathBuf,
    config: PathBuf,
    profile: String,
}

impl Client {
    /// Uses `program` with the profile of that name in the configuration file.
    pub fn new(program: &Path, config: &Path, profile: &str) -> Self {
        Self {
            program: program.to_owned(),
            config: config.to_owned(),
            profile: profile.to_owned(),
        }
    }

    /// Runs a command and reads the JSON it prints.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let mut with_format = arguments.to_vec();
        with_format.extend(["-o", "json"]);
        let output = self.run(&with_format)?;
        let text = String::from_utf8_lossy(&output.stdout);
        if text.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text)
            .with_context(|| format!("`garrison {}` printed no JSON: {text}", arguments.join(" ")))
    }

    /// Runs a command that must succeed.
    pub fn run(&self, arguments: &[&str]) -> Result<Output> {
        let output = self.attempt(arguments)?;
        if !output.status.success() {
            bail!(
                "`garrison {}` ended with {}: {}",
                arguments.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(output)
    }

    /// Runs a command that may fail.
    pub fn attempt(&self, arguments: &[&str]) -> Result<Output> {
        Command::new(&self.program)
            .env("GARRISON_CONFIG", &self.config)
            .env("GARRISON_PROFILE", &self.profile)
            .args(arguments)
            .output()
            .with_context(|| format!("starting {} failed", self.program.display()))
    }
}
