use std::{io::Write as _, path::PathBuf, time::Duration};

use clap::{Args, Subcommand};
use garrison_proto::forensics::v1::{
    Bundle, BundleState, CreateBundleRequest, DownloadBundleRequest, GetBundleRequest, ListBundlesRequest,
    ListCustodyEventsRequest, evidence_service_client::EvidenceServiceClient,
};
use serde_json::json;

use crate::{
    Context,
    commands::{create, named, pages},
    error::CliError,
    output::{Printer, time, word},
    remote::Authorised,
};

/// How long `create --wait` waits for a bundle to be sealed.
const SEAL_LIMIT: Duration = Duration::from_secs(300);

/// Verify a bundle.
#[derive(Args)]
pub struct Verify {
    /// The bundle's archive
    file: PathBuf,
    /// SHA-256 of the public key that must have signed it, hexadecimal, from another source than the bundle
    #[arg(long, value_name = "KEY_ID")]
    key: Option<String>,
}

/// Gather, export and verify evidence.
#[derive(Subcommand)]
pub enum Evidence {
    /// Gather and seal everything about an incident
    Create {
        /// The incident's name or id
        incident: String,
        /// Wait until it is sealed
        #[arg(long)]
        wait: bool,
    },
    /// List bundles, newest first
    List {
        /// Only those of this incident
        #[arg(long)]
        incident: Option<String>,
        /// At most so many
        #[arg(long, default_value_t = 50)]
        limit: usize,
    },
    /// Show one bundle
    Show {
        /// Its name or id
        bundle: String,
    },
    /// Copy a sealed bundle out
    Export {
        /// Its name or id
        bundle: String,
        /// Where to; must not exist yet; - for standard output
        #[arg(long, short = 'f', value_name = "FILE")]
        file: PathBuf,
    },
    /// Show who held a bundle
    Custody {
        /// Its name or id
        bundle: String,
    },
    /// Verify a bundle without a fleet
    ///
    /// For example: garrison evidence verify bundle.tar --key 1f0c…
    Verify(Verify),
}

/// Verifies a bundle offline.
pub fn verify(verify: &Verify, printer: &Printer) -> Result<(), CliError> {
    let file = std::fs::File::open(&verify.file).map_err(|source| CliError::file("opening", &verify.file, source))?;
    let report = garrison_proof::verify_bundle(std::io::BufReader::new(file), verify.key.as_deref())
        .map_err(|error| CliError::Invalid(error.to_string()))?;
    if printer.is_json() {
        printer.json(&json!({ "verified": true, "report": report }));
    } else {
        println!("{}: holds", verify.file.display());
        println!("sha256 {}", report.sha256);
        println!("signed by {}", report.manifest.key_id);
        println!(
            "{} files, {} custody entries",
            report.manifest.files.len(),
            report.custody_entries
        );
    }
    if !report.key_trusted {
        eprintln!("the key is the bundle's own: compare its id with one from another source, or give --key");
    }
    Ok(())
}

impl Evidence {
    pub async fn run(self, context: &Context) -> Result<(), CliError> {
        if let Self::Verify(arguments) = &self {
            return verify(arguments, &context.printer);
        }
        let mut client = EvidenceServiceClient::new(context.remote.service("forensics").await?);
        match self {
            Self::Verify(_) => {}
            Self::Create { incident, wait } => {
                let request = CreateBundleRequest {
                    incident: named("incidents", &incident),
                    request_id: uuid::Uuid::now_v7().to_string(),
                };
                let bundle = client.create_bundle(request).await?.into_inner().bundle;
                let mut bundle = bundle.ok_or(CliError::Answer("forensics", "the bundle"))?;
                if wait {
                    bundle = sealed(&mut client, bundle).await?;
                }
                show(&context.printer, &bundle);
            }
            Self::List { incident, limit } => {
                let incident = incident
                    .map(|incident| named("incidents", &incident))
                    .unwrap_or_default();
                let bundles = pages!(limit, |page_size, page_token| {
                    let request = ListBundlesRequest {
                        page_size,
                        page_token,
                        incident: incident.clone(),
                    };
                    let answer = client.list_bundles(request).await?.into_inner();
                    (answer.bundles, answer.next_page_token)
                });
                let headers = [
                    "bundle", "state", "incident", "created", "flows", "packets", "bytes", "sha256",
                ];
                context.printer.list("bundles", &headers, &bundles, |bundle| {
                    vec![
                        bundle.name.clone(),
                        word(bundle.state().as_str_name(), "BUNDLE_STATE_"),
                        bundle.incident.clone(),
                        time(bundle.created.as_ref()),
                        bundle.flows.to_string(),
                        bundle.packets.to_string(),
                        bundle.bytes.to_string(),
                        bundle.sha256.clone(),
                    ]
                });
            }
            Self::Show { bundle } => {
                let bundle = get(&mut client, &named("bundles", &bundle)).await?;
                show(&context.printer, &bundle);
            }
            Self::Export { bundle, file } => {
                let name = named("bundles", &bundle);
                let mut stream = client
                    .download_bundle(DownloadBundleRequest { name })
                    .await?
                    .into_inner();
                let failed = |source| CliError::file("writing", &file, source);
                let mut out = None;
                let mut bytes = 0;
                while let Some(answer) = stream.message().await? {
                    // Made only once there is something to write, so that a refusal leaves no empty file.
                    let out = match &mut out {
                        Some(out) => out,
                        None => out.insert(create(&file)?),
                    };
                    bytes += answer.chunk.len();
                    out.write_all(&answer.chunk).map_err(failed)?;
                }
                if let Some(mut out) = out {
                    out.flush().map_err(failed)?;
                }
                eprintln!("{bytes} bytes written to {}", file.display());
            }
            Self::Custody { bundle } => {
                let name = named("bundles", &bundle);
                let events = client
                    .list_custody_events(ListCustodyEventsRequest { name })
                    .await?
                    .into_inner()
                    .events;
                context
                    .printer
                    .list("events", &["time", "who", "what", "detail"], &events, |event| {
                        vec![
                            time(event.time.as_ref()),
                            event.actor.clone(),
                            event.action.clone(),
                            event.detail.clone(),
                        ]
                    });
            }
        }
        Ok(())
    }
}

async fn get(client: &mut EvidenceServiceClient<Authorised>, name: &str) -> Result<Bundle, CliError> {
    let request = GetBundleRequest { name: name.to_owned() };
    let bundle = client.get_bundle(request).await?.into_inner().bundle;
    bundle.ok_or(CliError::Answer("forensics", "the bundle"))
}

async fn sealed(client: &mut EvidenceServiceClient<Authorised>, mut bundle: Bundle) -> Result<Bundle, CliError> {
    let began = std::time::Instant::now();
    while bundle.state() == BundleState::Gathering {
        if began.elapsed() > SEAL_LIMIT {
            let text = format!(
                "{} is not sealed after {} s; look again with `evidence show`",
                bundle.name,
                SEAL_LIMIT.as_secs()
            );
            return Err(tonic::Status::deadline_exceeded(text).into());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        bundle = get(client, &bundle.name).await?;
    }
    if bundle.state() == BundleState::Failed {
        return Err(tonic::Status::internal(format!("{} failed: {}", bundle.name, bundle.error)).into());
    }
    Ok(bundle)
}

fn show(printer: &Printer, bundle: &Bundle) {
    let fields = [
        ("bundle", bundle.name.clone()),
        ("state", word(bundle.state().as_str_name(), "BUNDLE_STATE_")),
        ("incident", bundle.incident.clone()),
        ("author", bundle.author.clone()),
        ("created", time(bundle.created.as_ref())),
        ("sealed", time(bundle.sealed.as_ref())),
        ("sha256", bundle.sha256.clone()),
        ("key id", bundle.key_id.clone()),
        ("bytes", bundle.bytes.to_string()),
        ("flows", bundle.flows.to_string()),
        ("packets", bundle.packets.to_string()),
        ("alerts", bundle.alerts.to_string()),
        ("responses", bundle.responses.to_string()),
        ("left out", bundle.omissions.join("\n")),
        ("error", bundle.error.clone()),
    ];
    printer.record(bundle, &fields);
}
