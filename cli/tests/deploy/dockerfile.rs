//! The one Dockerfile.

use std::collections::BTreeMap;

use crate::{PROGRAMS, VERSION, deploy, read};

/// The instructions of each stage by its name, continued lines joined, without comments.
pub fn stages() -> BTreeMap<String, Vec<String>> {
    let text = read(&deploy().join("docker/Dockerfile")).replace("\\\n", " ");
    let mut stages: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut current = String::new();
    for line in text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        if let Some(from) = line.strip_prefix("FROM ") {
            let (_, name) = from.split_once(" AS ").expect("every stage has a name");
            current = name.to_owned();
        }
        stages
            .entry(current.clone())
            .or_default()
            .push(line.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    stages
}

#[test]
fn every_program_has_an_image_that_runs_it_and_asks_it() {
    let stages = stages();
    for program in PROGRAMS.iter().chain(&["garrison"]) {
        let stage = stages
            .get(*program)
            .unwrap_or_else(|| panic!("there is no target {program}"));
        assert_eq!(stage[0], format!("FROM runtime AS {program}"));
        assert!(
            stage.contains(&format!("COPY --from=build /out/{program} /usr/bin/{program}")),
            "{stage:?}"
        );
        assert!(
            stage.contains(&format!("ENTRYPOINT [\"/usr/bin/{program}\"]")),
            "{stage:?}"
        );
        let asks = stage.iter().any(|line| {
            line.starts_with("HEALTHCHECK") && line.ends_with(&format!("CMD [\"/usr/bin/{program}\", \"healthcheck\"]"))
        });
        assert_eq!(asks, *program != "garrison", "{program}");
    }
}

#[test]
fn the_build_makes_every_program_from_the_locked_versions() {
    let build = stages()["build"].join("\n");
    assert!(build.contains("cargo build --release --locked --bins"), "{build}");
    for program in PROGRAMS.iter().chain(&["garrison"]) {
        // The enforcer is the responder's second binary.
        let package = if *program == "enforcer" { "responder" } else { program };
        assert!(build.contains(&format!("--package {package} ")), "{program}");
        let taken = build
            .split("for program in ")
            .nth(1)
            .unwrap()
            .split(';')
            .next()
            .unwrap();
        assert!(
            taken.split(' ').any(|word| word == *program),
            "{program} does not leave the stage"
        );
    }
}

#[test]
fn no_image_ends_as_root_or_floats() {
    let stages = stages();
    for (name, stage) in stages
        .iter()
        .filter(|(name, _)| !["", "build"].contains(&name.as_str()))
    {
        let user = stage.iter().rev().find_map(|line| line.strip_prefix("USER "));
        assert!([None, Some("10001:10001")].contains(&user), "{name} ends as {user:?}");
    }
    let all = stages.values().flatten().cloned().collect::<Vec<_>>().join("\n");
    assert!(!all.contains(":latest"));
    assert!(
        all.contains("ARG TOOLCHAIN_IMAGE=rust:1-bookworm") && all.contains("ARG RUNTIME_IMAGE=debian:bookworm-slim")
    );
    assert!(
        all.contains(&format!("ARG VERSION={VERSION}")),
        "the version label is not {VERSION}"
    );
    for label in ["source", "licenses", "version", "revision"] {
        assert!(all.contains(&format!("org.opencontainers.image.{label}=")), "{label}");
    }
}
