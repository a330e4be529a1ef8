//! Manifests that a cluster takes must be read without an error and analysed.

use std::path::Path;

use garrison_ztp::{cluster::Cluster, reach::Reach};

use crate::{Score, error, files, read};

/// Read, understood, and not silently left out.
fn analysed(cluster: &Cluster) -> Option<String> {
    error(cluster)
        .or_else(|| cluster.findings.first().map(ToString::to_string))
        .or_else(|| (cluster.program.policies().next().is_none()).then(|| "no policy was read".to_owned()))
}

pub(crate) fn cyclonus(folder: &Path, score: &mut Score) -> std::io::Result<()> {
    for file in files(folder)? {
        let cluster = read(std::slice::from_ref(&file), |text| text)?;
        let reach = Reach::of(&cluster.program);
        let name = file.strip_prefix(folder).unwrap_or(&file).display().to_string();
        let described = format!("{name} ({} policies)", cluster.program.policies().count());
        drop(reach);
        score.note(&described, analysed(&cluster));
    }
    Ok(())
}

pub(crate) fn network_policy_api(folder: &Path, score: &mut Score) -> std::io::Result<()> {
    let base = folder.join("conformance/manifests.yaml");
    for file in files(&folder.join("conformance"))? {
        if file == base {
            continue;
        }
        // The suite fills in the ports of its pods on the nodes' network.
        let cluster = read(&[base.clone(), file.clone()], |text| {
            (0..10).fold(text, |text, i| {
                text.replace(
                    &format!("{{{{ index .HostNetworkPorts {i} }}}}"),
                    &(34_345 + i).to_string(),
                )
            })
        })?;
        let connections = Reach::of(&cluster.program).connections(false).len();
        let name = file.strip_prefix(folder).unwrap_or(&file).display().to_string();
        score.note(
            &format!(
                "{name} ({} policies, {connections} connections)",
                cluster.program.policies().count()
            ),
            analysed(&cluster),
        );
    }
    Ok(())
}
