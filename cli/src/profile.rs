use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::error::CliError;

/// The configuration file: one or more fleets to talk to.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    profiles: BTreeMap<String, Section>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Section {
    ca_file: PathBuf,
    #[serde(default)]
    tenant: Option<String>,
    #[serde(default)]
    endpoints: BTreeMap<String, String>,
    #[serde(default)]
    bus: Option<BusSection>,
}

/// How to reach the broker for `garrison bus apply`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BusSection {
    /// `tls://host:port`.
    pub url: String,
    /// Certificate of `svc/bus-admin`.
    pub cert_file: PathBuf,
    /// Its key.
    pub key_file: PathBuf,
}

/// One fleet and how to reach it.
#[derive(Debug)]
pub struct Profile {
    /// Its name.
    pub name: String,
    /// The configuration file.
    pub path: PathBuf,
    /// Authorities that sign the services' certificates.
    pub ca_file: PathBuf,
    /// The tenant that `login` takes when none is given.
    pub tenant: Option<String>,
    /// Service name to `https://host:port`.
    pub endpoints: BTreeMap<String, String>,
    /// The broker.
    pub bus: Option<BusSection>,
}

impl Profile {
    /// Reads a profile from `$GARRISON_CONFIG`, or from `garrison/config.toml` in the user's configuration folder.
    ///
    /// # Errors
    /// [`CliError::Configuration`] names the file and what is wrong.
    pub fn load(name: &str) -> Result<Self, CliError> {
        Self::read(&location(), name)
    }

    fn read(path: &Path, name: &str) -> Result<Self, CliError> {
        let wrong = |problem: String| CliError::Configuration {
            path: path.to_owned(),
            problem,
        };
        let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        let mut file: File = toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        let known: Vec<String> = file.profiles.keys().cloned().collect();
        let section = file
            .profiles
            .remove(name)
            .ok_or_else(|| wrong(format!("there is no profile {name:?}, only {}", known.join(", "))))?;
        // Relative paths mean places beside the file.
        let base = path.parent().unwrap_or(Path::new("."));
        Ok(Self {
            name: name.to_owned(),
            path: path.to_owned(),
            ca_file: base.join(section.ca_file),
            tenant: section.tenant,
            endpoints: section.endpoints,
            bus: section.bus.map(|bus| BusSection {
                url: bus.url,
                cert_file: base.join(bus.cert_file),
                key_file: base.join(bus.key_file),
            }),
        })
    }

    /// Where this profile's tokens are kept.
    pub fn token_file(&self) -> PathBuf {
        let folder = self.path.parent().unwrap_or(Path::new(".")).join("tokens");
        let safe: String = self
            .name
            .chars()
            .map(|c| if c.is_alphanumeric() { c } else { '_' })
            .collect();
        folder.join(format!("{safe}.json"))
    }
}

fn location() -> PathBuf {
    if let Some(given) = std::env::var_os("GARRISON_CONFIG") {
        return given.into();
    }
    let folder = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".config");
    folder.unwrap_or_else(home).join("garrison/config.toml")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_found_and_a_wrong_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(
            &path,
            "[profiles.lab]\nca_file = \"ca.pem\"\n[profiles.lab.endpoints]\niam = \"https://a:1\"\n",
        )
        .unwrap();
        let profile = Profile::read(&path, "lab").unwrap();
        assert_eq!(profile.ca_file, dir.path().join("ca.pem"));
        assert_eq!(profile.endpoints["iam"], "https://a:1");
        let missing = Profile::read(&path, "prod").unwrap_err();
        assert!(missing.to_string().contains("only lab"), "{missing}");
        assert_eq!(missing.exit(), crate::error::Exit::Configuration);
        std::fs::write(&path, "[profiles.lab]\nca_fiel = \"x\"\n").unwrap();
        assert!(Profile::read(&path, "lab").unwrap_err().to_string().contains("ca_fiel"));
    }
}
