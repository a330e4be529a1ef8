use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
};

use toml::{Table, Value};

use crate::error::CliError;

/// One program's folder: nobody but its user may enter it or read anything in it.
pub struct Folder {
    name: String,
    uid: u32,
    chown: bool,
    path: PathBuf,
    authority: PathBuf,
    mounted_at: PathBuf,
    files: Vec<String>,
}

impl Folder {
    /// Opens the folder `name` in `dir`, making it when there is none.
    pub fn open(dir: &Path, name: &str, uid: u32, chown: bool, mounted_at: &Path) -> Result<Self, CliError> {
        let folder = Self {
            name: name.to_owned(),
            uid,
            chown,
            path: dir.join(name),
            authority: dir.join("authority"),
            mounted_at: mounted_at.to_owned(),
            files: Vec::new(),
        };
        folder.make(&folder.path)?;
        Ok(folder)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// What was put in, in that order.
    pub fn files(&self) -> &[String] {
        &self.files
    }

    /// Puts a configuration file in, and beside it every file that it names.
    pub fn config(&mut self, name: &str, config: &Table) -> Result<(), CliError> {
        let mut named = Vec::new();
        texts(&Value::Table(config.clone()), &mut |text| {
            if let Ok(inner) = Path::new(text).strip_prefix(&self.mounted_at) {
                named.push(inner.display().to_string());
            }
        });
        for inner in named {
            self.copy(&self.authority.join(&inner), &inner)?;
        }
        self.text(name, &config.to_string())
    }

    /// Puts a copy of a file in.
    pub fn copy(&mut self, from: &Path, inner: &str) -> Result<(), CliError> {
        let bytes = fs::read(from).map_err(|source| CliError::file("reading", from, source))?;
        self.put(inner, &bytes, 0o600)
    }

    /// Puts a text in.
    pub fn text(&mut self, inner: &str, text: &str) -> Result<(), CliError> {
        self.put(inner, text.as_bytes(), 0o600)
    }

    /// Puts something to execute in.
    pub fn script(&mut self, inner: &str, text: &str) -> Result<(), CliError> {
        self.put(inner, text.as_bytes(), 0o700)
    }

    // Under another name first: a program that runs sees the old file or the new one, never half of it.
    fn put(&mut self, inner: &str, bytes: &[u8], mode: u32) -> Result<(), CliError> {
        if self.files.iter().any(|known| known == inner) {
            return Ok(());
        }
        let path = self.path.join(inner);
        if let Some(parent) = path.parent()
            && parent != self.path
        {
            self.make(parent)?;
        }
        let new = path.with_extension("new");
        let write = || -> io::Result<()> {
            if new.exists() {
                fs::remove_file(&new)?;
            }
            let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            self.give(&new)?;
            fs::rename(&new, &path)
        };
        write().map_err(|source| CliError::file("writing", &path, source))?;
        self.files.push(inner.to_owned());
        Ok(())
    }

    fn make(&self, path: &Path) -> Result<(), CliError> {
        let make = || -> io::Result<()> {
            fs::create_dir_all(path)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
            self.give(path)
        };
        make().map_err(|source| CliError::file("making", path, source))
    }

    fn give(&self, path: &Path) -> io::Result<()> {
        if self.chown {
            chown(path, Some(self.uid), Some(self.uid))?;
        }
        Ok(())
    }
}

/// Reads a TOML file.
pub fn table(path: &Path) -> Result<Table, CliError> {
    let text = fs::read_to_string(path).map_err(|source| CliError::file("reading", path, source))?;
    text.parse().map_err(|error: toml::de::Error| CliError::Configuration {
        path: path.to_owned(),
        problem: error.to_string(),
    })
}

fn texts(value: &Value, seen: &mut impl FnMut(&str)) {
    match value {
        Value::String(text) => seen(text),
        Value::Array(values) => values.iter().for_each(|value| texts(value, seen)),
        Value::Table(table) => table.values().for_each(|value| texts(value, seen)),
        _ => {}
    }
}
