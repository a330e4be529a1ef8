//! What the mesh is called and whose identities can be proved, followed while it changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, PoisonError},
    time::Duration,
};

use garrison_ztp::compile::{Issuer, IstioOptions, LinkerdOptions};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use tokio::io::AsyncReadExt as _;
use tokio_util::sync::CancellationToken;

use super::{Engine, brief, seconds};
use crate::domain::{
    plan::Meshes,
    trust::{LARGEST, MeshName, read_bundle, read_mesh},
};

/// What was found out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Known {
    /// What Istio says; `None` while that is not known.
    mesh: Option<MeshName>,
    /// Why it is not known.
    why: String,
    /// The trust domains with a bundle that is in force; `None` before they were read.
    proved: Option<BTreeSet<String>>,
}

impl Engine {
    /// The meshes as they are known now.
    pub(crate) fn meshes(&self) -> Meshes {
        let config = &self.config.mesh;
        let known = self.trust.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mesh = known.mesh.unwrap_or_else(|| MeshName {
            trust_domain: config.trust_domain.clone(),
            aliases: BTreeSet::new(),
        });
        let issuer = config.issuer.clone().zip(config.jwks_uri.clone());
        Meshes {
            istio: IstioOptions {
                trust_domain: mesh.trust_domain,
                proved: known.proved.filter(|_| !config.bundles.is_empty()).map(|mut proved| {
                    proved.extend(mesh.aliases);
                    proved
                }),
                issuer: issuer.map(|(issuer, jwks_uri)| Issuer { issuer, jwks_uri }),
                groups_claim: config.groups_claim.clone(),
            },
            linkerd: LinkerdOptions {
                trust_domain: config.trust_domain.clone(),
                control_plane: config.linkerd_namespace.clone(),
            },
        }
    }

    /// Why nothing can be planned for Istio, if so.
    pub(crate) fn held(&self) -> Option<String> {
        let config = &self.config;
        if !config.controller.targets.iter().any(|target| target.is_istio()) {
            return None;
        }
        let known = self.trust.read().unwrap_or_else(PoisonError::into_inner);
        if config.mesh.istio_config.is_some() && known.mesh.is_none() {
            return Some(format!(
                "What Istio's mesh is called is not known (GAR-CTL-0009): {}",
                known.why
            ));
        }
        (!config.mesh.bundles.is_empty() && known.proved.is_none())
            .then(|| "The trust bundles are being read".to_owned())
    }

    /// Looks at bundles and Istio's configuration until `stop`, and makes everything due when they changed.
    pub(crate) async fn follow_trust(self: Arc<Self>, stop: CancellationToken) {
        let config = &self.config.mesh;
        if config.istio_config.is_none() && config.bundles.is_empty() {
            return;
        }
        let mut told: BTreeMap<String, String> = BTreeMap::new();
        loop {
            let before = self.trust.read().unwrap_or_else(PoisonError::into_inner).clone();
            let now = self.look(&before, &mut told).await;
            if now != before {
                tracing::info!(mesh = ?now.mesh, proved = ?now.proved, "what identities can be proved has changed");
                *self.trust.write().unwrap_or_else(PoisonError::into_inner) = now;
                self.everything();
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(Duration::from_millis(config.reload_interval_ms)) => {}
            }
        }
    }

    async fn look(&self, before: &Known, told: &mut BTreeMap<String, String>) -> Known {
        let config = &self.config.mesh;
        let mut now = before.clone();
        if let Some((namespace, name)) = config.istio() {
            let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
            let found = match api.get_opt(name).await {
                Ok(Some(map)) => match map.data.as_ref().and_then(|data| data.get("mesh")) {
                    Some(text) => {
                        read_mesh(text).map_err(|why| format!("`mesh` of ConfigMap {namespace}/{name}: {why}"))
                    }
                    None => Err(format!("ConfigMap {namespace}/{name} has no `mesh`")),
                },
                Ok(None) => Err(format!("there is no ConfigMap {namespace}/{name}")),
                Err(error) => Err(format!("reading ConfigMap {namespace}/{name}: {}", brief(&error))),
            };
            match found {
                Ok(mesh) => {
                    told.remove("");
                    (now.mesh, now.why) = (Some(mesh), String::new());
                }
                // What was known stays: an unreadable line is no reason to call the mesh something else.
                Err(why) => {
                    say(told, "", &why);
                    if now.mesh.is_none() {
                        now.why = why;
                    }
                }
            }
        }
        let mut proved = BTreeSet::new();
        for bundle in &config.bundles {
            let domain = &bundle.trust_domain;
            let read = match contents(&bundle.file).await {
                Ok(bytes) => read_bundle(domain, &bytes, seconds()),
                Err(error) => Err(error.to_string()),
            };
            match read {
                Ok(read) => {
                    told.remove(domain);
                    self.metrics.bundle(domain, read.expires);
                    proved.insert(domain.clone());
                }
                Err(why) => {
                    self.metrics.bundle(domain, 0);
                    say(told, domain, &format!("{}: {why}", bundle.file.display()));
                }
            }
        }
        now.proved = Some(proved);
        now
    }
}

/// Warns once of each thing.
fn say(told: &mut BTreeMap<String, String>, domain: &str, why: &str) {
    if told.insert(domain.to_owned(), why.to_owned()).as_deref() != Some(why) {
        tracing::warn!(
            trust_domain = domain,
            why,
            code = "GAR-CTL-0009",
            "identities cannot be told"
        );
    }
}

async fn contents(path: &Path) -> std::io::Result<Vec<u8>> {
    let file = tokio::fs::File::open(path).await?;
    let mut bytes = Vec::new();
    file.take(LARGEST as u64 + 1).read_to_end(&mut bytes).await?;
    Ok(bytes)
}
