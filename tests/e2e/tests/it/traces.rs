//! What a run leaves behind must not hold its secrets.

use std::{fs, path::Path};

use garrison_testkit::Fleet;

use crate::calls::Desk;

/// Asserts that neither a log nor a command line of the fleet's processes holds a secret of its folder or a token of
/// one of these people.
pub fn assert_no_secrets(fleet: &Fleet, people: &[&Desk]) {
    let mut secrets = secrets_under(fleet.dir());
    assert!(
        secrets.len() > 10,
        "only {} secrets were found in {}",
        secrets.len(),
        fleet.dir().display()
    );
    for desk in people {
        secrets.push(("an access token".to_owned(), desk.access.clone()));
        // The signature alone would make a copied token usable too.
        let signature = desk.access.rsplit('.').next().unwrap();
        secrets.push(("an access token's signature".to_owned(), signature.to_owned()));
        secrets.push(("a refresh token".to_owned(), desk.refresh.clone()));
    }
    let mut places = logs_under(fleet.dir());
    assert!(places.len() >= 8, "only {} logs were found", places.len());
    let lines = command_lines(fleet);
    assert!(!lines.is_empty(), "no process of the fleet was found");
    places.extend(lines);
    let found = leaks(&secrets, &places);
    assert!(found.is_empty(), "{found:#?}");
}

fn leaks(secrets: &[(String, String)], places: &[(String, String)]) -> Vec<String> {
    let mut found = Vec::new();
    for (place, text) in places {
        for (what, secret) in secrets {
            if secret.len() >= 8 && text.contains(secret.as_str()) {
                found.push(format!("{what} is in {place}"));
            }
        }
    }
    found
}

#[test]
fn a_secret_in_a_log_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let secrets = garrison_testkit::Secrets::open_or_create(&dir.path().join("secrets")).unwrap();
    let password = fs::read_to_string(secrets.password("x").unwrap()).unwrap();
    let key = fs::read_to_string(secrets.signing_key("x").unwrap()).unwrap();
    let identity = garrison_testkit::Pki::open_or_create(&dir.path().join("pki"), "a.test").unwrap();
    let private = fs::read_to_string(identity.identity("svc/x").unwrap().key_file).unwrap();
    let look = || leaks(&secrets_under(dir.path()), &logs_under(dir.path()));
    fs::write(dir.path().join("x.log"), "nothing to see\n").unwrap();
    assert_eq!(look(), Vec::<String>::new());
    for secret in [
        password.as_str(),
        key.lines().nth(1).unwrap(),
        private.lines().nth(1).unwrap(),
    ] {
        fs::write(dir.path().join("x.log"), format!("password={secret};")).unwrap();
        assert_eq!(look().len(), 1, "{secret} was not noticed");
    }
}

/// Passwords, keys and authenticator secrets: what is in the folders of secrets, and private keys of certificates,
/// line by line, because a log would hold a key's lines one by one.
fn secrets_under(dir: &Path) -> Vec<(String, String)> {
    let mut secrets = Vec::new();
    for file in files(dir) {
        let folder = file
            .parent()
            .and_then(Path::file_name)
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let private_key = folder == "pki" && file.extension().is_some_and(|extension| extension == "key");
        if folder != "secrets" && !private_key {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        let lines = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with("-----"));
        secrets.extend(lines.map(|line| (file.display().to_string(), line.to_owned())));
    }
    secrets
}

fn logs_under(dir: &Path) -> Vec<(String, String)> {
    files(dir)
        .into_iter()
        .filter(|file| file.extension().is_some_and(|extension| extension == "log"))
        .map(|file| {
            let text = String::from_utf8_lossy(&fs::read(&file).unwrap()).into_owned();
            (file.display().to_string(), text)
        })
        .collect()
}

// Every process that names the fleet's folder, and so the database and the broker too; and their environment.
fn command_lines(fleet: &Fleet) -> Vec<(String, String)> {
    let dir = fleet.dir().display().to_string();
    let mut lines = Vec::new();
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let read = |name: &str| {
            let bytes = fs::read(process.path().join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).replace('\0', " ")
        };
        let line = read("cmdline");
        if line.contains(&dir) {
            let place = process.path().display().to_string();
            lines.push((format!("{place}/environ"), read("environ")));
            lines.push((format!("{place}/cmdline"), line));
        }
    }
    lines
}

fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files(&path)),
            Ok(kind) if kind.is_file() => found.push(path),
            _ => {}
        }
    }
    found
}
