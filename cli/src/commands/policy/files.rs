//! Reading the manifests that a command is given.

use std::path::{Path, PathBuf};

use garrison_ztp::{
    Level,
    cluster::{Cluster, Source, import},
};

use crate::{commands::read_text, error::CliError};

/// Most files of one command.
const FILES: usize = 20_000;
/// Most bytes of them together.
const BYTES: usize = 512 << 20;
/// How deep folders are followed.
const DEPTH: usize = 32;

/// Reads files, and of folders every `.yaml`, `.yml` and `.json` below; `-` is standard input.
///
/// # Errors
/// When a file cannot be read, there is none, or one has an error. What was found is printed.
pub fn cluster(paths: &[PathBuf]) -> Result<Cluster, CliError> {
    let sources = sources(paths)?;
    let cluster = import(&sources);
    for finding in &cluster.findings {
        eprintln!("{finding}");
    }
    let errors = cluster.findings.iter().filter(|f| f.diagnostic.level == Level::Error);
    match errors.count() {
        0 => Ok(cluster),
        errors => Err(CliError::Invalid(format!(
            "the manifests have {}; nothing was analysed",
            super::count(errors)
        ))),
    }
}

/// The files, read; of folders every `.yaml`, `.yml` and `.json` below; `-` is standard input.
pub fn sources(paths: &[PathBuf]) -> Result<Vec<Source>, CliError> {
    let mut files = Vec::new();
    for path in paths {
        gather(path, 0, true, &mut files)?;
    }
    if files.is_empty() {
        return Err(CliError::Argument(
            "there is no .yaml, .yml or .json file to read".to_owned(),
        ));
    }
    let mut bytes = 0;
    let mut sources = Vec::with_capacity(files.len());
    for file in files {
        let text = read_text(&file)?;
        bytes += text.len();
        if bytes > BYTES {
            return Err(CliError::Argument(format!(
                "the files have more than {BYTES} bytes together; give one namespace at a time"
            )));
        }
        sources.push(Source {
            file: file.display().to_string(),
            text,
        });
    }
    Ok(sources)
}

/// Whether a file is one of policy documents: the first kind in it is.
pub fn is_policy(text: &str) -> bool {
    text.lines()
        .filter_map(|line| line.trim_start_matches("- ").strip_prefix("kind:"))
        .map(|kind| {
            kind.split('#')
                .next()
                .unwrap_or_default()
                .trim()
                .trim_matches(['"', '\''])
        })
        .any(|kind| kind == garrison_ztp::document::KIND || kind == garrison_ztp::document::CLUSTER_KIND)
}

fn gather(path: &Path, depth: usize, named: bool, files: &mut Vec<PathBuf>) -> Result<(), CliError> {
    if path.is_dir() {
        if depth > DEPTH {
            return Err(CliError::Argument(format!(
                "{} is more than {DEPTH} folders deep",
                path.display()
            )));
        }
        let failed = |source| CliError::file("reading", path, source);
        let mut entries = std::fs::read_dir(path)
            .map_err(failed)?
            .map(|entry| entry.map(|e| e.path()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(failed)?;
        entries.sort();
        for entry in entries {
            // Links to folders could lead in circles.
            if !(entry.is_symlink() && entry.is_dir()) {
                gather(&entry, depth + 1, false, files)?;
            }
        }
        return Ok(());
    }
    let manifest = path
        .extension()
        .is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
    if named || manifest {
        if files.len() == FILES {
            return Err(CliError::Argument(format!("there are more than {FILES} files")));
        }
        files.push(path.to_owned());
    }
    Ok(())
}
