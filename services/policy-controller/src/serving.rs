//! The webhook's certificate, and who has to know its authority.
//!
//! Where files have the certificate, somebody else makes it: cert-manager, SPIRE, an administrator. Where the controllers
//! keep an authority of their own, the replica that leads makes it and all show what is in the Secret. The authority is
//! written into the `caBundle` of the webhook configuration and of the definitions' conversion before anything is shown
//! that needs it.

use std::{path::PathBuf, sync::Arc};

use garrison_service::ReadinessFlag;
use k8s_openapi::{
    ByteString,
    api::{admissionregistration::v1::ValidatingWebhookConfiguration, core::v1::Secret},
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    Metrics,
    config::{AuthorityConfig, WebhookConfig},
    domain::{
        authority::{self, Due, Material},
        source::{GROUP, Kind},
    },
    engine::MANAGER,
    tls::{Certificate, certified},
};

/// Keeps the certificate, and those who have to know of it.
pub(crate) struct Keeper {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) config: WebhookConfig,
    pub(crate) certificate: Arc<Certificate>,
    pub(crate) flag: ReadinessFlag,
    pub(crate) metrics: Metrics,
}

/// What a look at the Secret found.
struct Seen {
    bundle: String,
    shown: Option<(String, String)>,
}

impl Keeper {
    /// Looks now and then, and whenever the leader changes, until `stop`.
    pub(crate) async fn run(self, mut leading: watch::Receiver<bool>, stop: CancellationToken) {
        let mut last: Option<(String, String)> = None;
        let mut told = String::new();
        loop {
            let leads = *leading.borrow_and_update();
            match self.look(leads, &mut last).await {
                Ok(()) => told.clear(),
                Err(why) => {
                    // Once for each reason: what was shown before is shown still.
                    if told != why {
                        tracing::warn!(
                            why,
                            code = "GAR-CTL-0008",
                            "the webhook's certificate is not as it should be"
                        );
                        told = why;
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(self.config.reload()) => {}
                changed = leading.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn look(&self, leads: bool, last: &mut Option<(String, String)>) -> Result<(), String> {
        let seen = match (&self.config.authority, &self.config.ca_file) {
            (Some(config), _) => self.secret(config, leads).await?,
            (None, Some(file)) => Seen {
                bundle: read(file).await?,
                shown: None,
            },
            (None, None) => return Ok(()),
        };
        if leads {
            self.tell(&seen.bundle).await?;
        }
        let Some(shown) = seen.shown.filter(|shown| last.as_ref() != Some(shown)) else {
            return Ok(());
        };
        let key = certified(shown.0.as_bytes(), shown.1.as_bytes())?;
        self.certificate.show(key);
        self.metrics.certificate(authority::expires(&shown.0)?);
        self.flag.ready();
        tracing::info!("the webhook shows a new certificate");
        *last = Some(shown);
        Ok(())
    }

    /// What the Secret has; the leader makes what is missing or due, one step at a time.
    async fn secret(&self, config: &AuthorityConfig, leads: bool) -> Result<Seen, String> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let name = &config.secret;
        let failed = |error: kube::Error| format!("Secret {}/{name}: {}", self.namespace, crate::engine::brief(&error));
        let now = Timestamp::now().as_second();
        let Some(secret) = api.get_opt(name).await.map_err(failed)? else {
            if !leads {
                return Err(format!("Secret {}/{name} is not there yet", self.namespace));
            }
            let made = authority::create(&config.names, config.certificate_hours, now)?;
            // Whoever has to know the authority knows it before it is used.
            self.tell(&made.bundle).await?;
            let secret = filled(name, None, &made);
            api.create(&PostParams::default(), &secret).await.map_err(failed)?;
            return Ok(seen(made));
        };
        let material = material(&secret).map_err(|why| format!("Secret {}/{name}: {why}", self.namespace))?;
        if !leads {
            return Ok(seen(material));
        }
        let due = authority::due(&material, &config.names, config.certificate_hours, now)
            .map_err(|why| format!("Secret {}/{name}: {why}", self.namespace))?;
        let next = match due {
            Due::Nothing => return Ok(seen(material)),
            Due::Certificate => {
                // It is of the authority that stands first, which is told before.
                self.tell(&material.bundle).await?;
                authority::renew(&material, &config.names, config.certificate_hours, now)?
            }
            Due::Authority => authority::replace(&material, now)?,
        };
        let secret = filled(name, secret.metadata.resource_version.clone(), &next);
        api.replace(name, &PostParams::default(), &secret)
            .await
            .map_err(failed)?;
        tracing::info!(?due, secret = name, "the webhook's Secret has something new");
        Ok(seen(next))
    }

    /// Writes the authorities where the API server looks for them.
    async fn tell(&self, bundle: &str) -> Result<(), String> {
        let bundle = ByteString(bundle.as_bytes().to_vec());
        let name = &self.config.configuration;
        let api: Api<ValidatingWebhookConfiguration> = Api::all(self.client.clone());
        let failed = |error: kube::Error| {
            format!(
                "ValidatingWebhookConfiguration {name}: {}",
                crate::engine::brief(&error)
            )
        };
        if let Some(mut configuration) = api.get_opt(name).await.map_err(failed)? {
            let mut changed = false;
            for webhook in configuration.webhooks.iter_mut().flatten() {
                if webhook.client_config.ca_bundle.as_ref() != Some(&bundle) {
                    webhook.client_config.ca_bundle = Some(bundle.clone());
                    changed = true;
                }
            }
            if changed {
                configuration.metadata.managed_fields = None;
                api.replace(name, &params(), &configuration).await.map_err(failed)?;
                tracing::info!(configuration = name, "the webhook configuration knows the authority");
            }
        }
        let text = serde_json::to_value(&bundle).map_err(|error| error.to_string())?;
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &definitions());
        for kind in Kind::ALL {
            let name = format!("{}.{GROUP}", kind.plural());
            let failed =
                |error: kube::Error| format!("CustomResourceDefinition {name}: {}", crate::engine::brief(&error));
            let Some(definition) = api.get_opt(&name).await.map_err(failed)? else {
                continue;
            };
            let conversion = definition.data.pointer("/spec/conversion");
            let by_webhook = conversion.is_some_and(|conversion| conversion["strategy"] == "Webhook");
            let known = conversion.and_then(|conversion| conversion.pointer("/webhook/clientConfig/caBundle"));
            if by_webhook && known != Some(&text) {
                let patch: Value = json!({"spec": {"conversion": {"webhook": {"clientConfig": {"caBundle": text}}}}});
                let params = PatchParams {
                    field_manager: Some(MANAGER.to_owned()),
                    ..PatchParams::default()
                };
                api.patch(&name, &params, &Patch::Merge(patch)).await.map_err(failed)?;
                tracing::info!(definition = name, "the definition's conversion knows the authority");
            }
        }
        Ok(())
    }
}

fn params() -> PostParams {
    PostParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PostParams::default()
    }
}

fn definitions() -> ApiResource {
    ApiResource {
        group: "apiextensions.k8s.io".to_owned(),
        version: "v1".to_owned(),
        api_version: "apiextensions.k8s.io/v1".to_owned(),
        kind: "CustomResourceDefinition".to_owned(),
        plural: "customresourcedefinitions".to_owned(),
    }
}

fn seen(material: Material) -> Seen {
    Seen {
        bundle: material.bundle,
        shown: Some((material.certificate, material.key)),
    }
}

async fn read(file: &PathBuf) -> Result<String, String> {
    let text = tokio::fs::read_to_string(file).await;
    let text = text.map_err(|error| format!("{}: {error}", file.display()))?;
    // An empty bundle would make the API server trust whatever its machine does.
    authority::expires(&text).map_err(|why| format!("{}: {why}", file.display()))?;
    Ok(text)
}

const KEYS: [&str; 4] = ["ca.crt", "ca.key", "tls.crt", "tls.key"];

fn material(secret: &Secret) -> Result<Material, String> {
    let text = |key: &str| {
        let bytes = secret.data.as_ref().and_then(|data| data.get(key));
        let bytes = bytes.ok_or_else(|| format!("it has no {key}, so that it is another's; name another one"))?;
        String::from_utf8(bytes.0.clone()).map_err(|_| format!("{key} is not text"))
    };
    let [bundle, authority_key, certificate, key] = KEYS;
    Ok(Material {
        bundle: text(bundle)?,
        authority_key: text(authority_key)?,
        certificate: text(certificate)?,
        key: text(key)?,
    })
}

fn filled(name: &str, version: Option<String>, material: &Material) -> Secret {
    let values = [
        &material.bundle,
        &material.authority_key,
        &material.certificate,
        &material.key,
    ];
    let data = KEYS.into_iter().zip(values);
    Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            resource_version: version,
            labels: Some(
                [(
                    "app.kubernetes.io/managed-by".to_owned(),
                    "policy-controller".to_owned(),
                )]
                .into(),
            ),
            ..ObjectMeta::default()
        },
        data: Some(
            data.map(|(key, value)| (key.to_owned(), ByteString(value.clone().into_bytes())))
                .collect(),
        ),
        type_: Some("kubernetes.io/tls".to_owned()),
        ..Secret::default()
    }
}
