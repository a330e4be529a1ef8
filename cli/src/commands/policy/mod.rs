mod analysis;
mod authorize;
mod ci;
mod compile;
mod files;
mod import;
mod lint;
mod recommend;
mod review;
mod what_if;

use std::path::{Path, PathBuf};

use clap::Subcommand;
use garrison_proto::policy::v1::{
    ApplyPolicyRequest, DeletePolicyRequest, Diagnostic, ExplainConnectionRequest, GetPolicyRequest,
    ListPoliciesRequest, ListPolicyVersionsRequest, ListVerdictCountsRequest, Policy as Stored, Review as ReviewState,
    policy_service_client::PolicyServiceClient,
};
use serde_json::json;

use crate::{
    Context,
    commands::{named, pages, read_text},
    error::CliError,
    output::{Printer, time, word},
};

type Client = PolicyServiceClient<crate::remote::Authorised>;

/// Check, apply and explain policy.
#[derive(Subcommand)]
pub enum Policy {
    /// Check a file without a fleet and without storing anything
    ///
    /// For example: garrison policy check web.yaml && git commit web.yaml
    Check {
        /// YAML file, or - for standard input
        file: PathBuf,
    },
    /// Find rules that never decide, add nothing, allow too much, or contradict each other
    ///
    /// Ends with 1 when something was found and --deny-warnings is given.
    ///
    /// For example: garrison policy lint policies/ --deny-warnings
    Lint(lint::Lint),
    /// Write policy files in the one form, comments kept
    ///
    /// For example: garrison policy fmt --check policies/
    Fmt(lint::Fmt),
    /// Store a policy as a new version
    Apply {
        /// YAML file, or - for standard input
        file: PathBuf,
        /// Fail unless this is the current version; 0 for "must not exist"
        #[arg(long)]
        expected_version: Option<u64>,
    },
    /// List policies
    List {
        /// At most so many
        #[arg(long, default_value_t = 200)]
        limit: usize,
    },
    /// Print a policy's document
    Show {
        /// Its name
        policy: String,
        /// Its version; the current one when left out
        #[arg(long = "at-version", value_name = "VERSION", default_value_t = 0)]
        at: u64,
    },
    /// List the versions of a policy
    Versions {
        /// Its name
        policy: String,
        /// At most so many
        #[arg(long, default_value_t = 200)]
        limit: usize,
    },
    /// Withdraw a policy
    Delete {
        /// Its name
        policy: String,
    },
    /// List the versions that wait for approval, or show one with what it changes
    ///
    /// For example: garrison policy review database
    Review(review::Review),
    /// Put a version that waits into force; not for its author
    ///
    /// For example: garrison policy approve database --sha256 4b1f09c2a77d
    Approve(review::Decide),
    /// Refuse a version that waits, or take the own one back; what is in force stays
    Reject(review::Decide),
    /// Print what the policies are on an enforcement point
    ///
    /// What the target cannot say is left out of what it allows, and told on standard error, with the target that can.
    ///
    /// For example: garrison policy compile --target calico web.yaml
    Compile(compile::Compile),
    /// Say what is decided about a connection, and why
    ///
    /// For example: garrison policy explain 10.0.1.5 10.0.2.9 5432
    Explain {
        /// Opening side
        src: String,
        /// Answering side
        dst: String,
        /// Port
        port: u16,
        /// IP protocol number
        #[arg(long, default_value_t = 6)]
        protocol: u8,
        /// Ask these manifests instead of the fleet; ends may then be namespace/workload too
        #[arg(long = "in", value_name = "PATH")]
        manifests: Vec<PathBuf>,
    },
    /// Who can reach whom in a cluster, from its manifests alone
    ///
    /// Reads workloads, services and policies, whoever wrote them.
    ///
    /// For example: kubectl get ns,pods,netpol -A -o yaml | garrison policy connections - --svg > now.svg
    Connections(analysis::Connections),
    /// Connections gained and lost from one set of manifests to another
    ///
    /// For example: garrison policy diff deployed/ proposed/
    Diff {
        /// Manifests, or a folder of them
        before: PathBuf,
        /// Manifests, or a folder of them
        after: PathBuf,
        /// Also what pods of one workload may speak among themselves
        #[arg(long)]
        within: bool,
    },
    /// Check what must never, or must always, be possible; ends with 1 and a counterexample when it does not hold
    ///
    /// For example: garrison policy assert k8s/ --forbid 'not namespace=finance -> app=ledger'
    Assert(analysis::Assert),
    /// What Istio's AuthorizationPolicies decide about one request, and by which rule
    ///
    /// For example: garrison policy authorize authz.yaml --namespace shop --label app=web --method GET --path /items
    Authorize(authorize::Authorize),
    /// What a draft would have done to recorded flows: what it blocks, which rules are used, and how sure that is
    ///
    /// For example: garrison policy what-if draft.yaml --flows lake/
    WhatIf(what_if::WhatIf),
    /// Policies to start from, learnt from recorded flows: the least that they need, each with its risk
    ///
    /// All of them observe. Who was seen as no destination gets none.
    ///
    /// For example: garrison policy recommend --flows lake/ > learnt.yaml
    Recommend(recommend::Recommend),
    /// Write policies of others as ZeroTrustPolicy documents: Kubernetes, Cilium, Calico, Istio, Linkerd, security groups
    ///
    /// What the language cannot say is left out of what is allowed, and told. Policies for packets and those of meshes become
    /// documents that mean both. All documents observe.
    ///
    /// For example: kubectl get networkpolicies -A -o yaml | garrison policy import -
    Import(import::Import),
    /// Print the JSON Schema of policy documents, for editors
    ///
    /// For example: garrison policy schema v1beta1 > zero-trust-policy.schema.json
    Schema {
        /// The version of the API that the documents are written in
        #[arg(value_enum, default_value_t)]
        api: Api,
    },
    /// Check everything about policy in folders, for a pipeline
    ///
    /// Ends with 6 for an error, and with 1 for a warning when --deny-warnings is given.
    ///
    /// For example: garrison policy ci . --sarif policy.sarif --junit policy.xml
    Ci(ci::Ci),
    /// How many flows each rule decided
    Counts,
}

/// A version of the API of policies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Api {
    /// `garrison.dev/v1alpha1`
    #[default]
    V1alpha1,
    /// `garrison.dev/v1beta1`
    V1beta1,
}

impl From<Api> for garrison_ztp::Version {
    fn from(api: Api) -> Self {
        match api {
            Api::V1alpha1 => Self::V1Alpha1,
            Api::V1beta1 => Self::V1Beta1,
        }
    }
}

/// Checks a file offline.
fn check(file: &Path, printer: &Printer) -> Result<(), CliError> {
    let checked = garrison_ztp::check(&read_text(file)?);
    if printer.is_json() {
        let found = &checked.diagnostics;
        printer.json(&json!({ "valid": checked.is_valid(), "diagnostics": found }));
    } else {
        for diagnostic in &checked.diagnostics {
            println!("{}:{diagnostic}", file.display());
        }
    }
    let errors = checked.errors().count();
    if errors > 0 {
        return Err(CliError::Invalid(format!("{} has {}", file.display(), count(errors))));
    }
    eprintln!("{}: {} policies, no errors", file.display(), checked.documents.len());
    Ok(())
}

impl Policy {
    /// What needs no fleet: done, when this is such a command.
    pub fn offline(&self, printer: &Printer) -> Option<Result<(), CliError>> {
        Some(match self {
            Self::Check { file } => check(file, printer),
            Self::Lint(lint) => lint.run(printer),
            Self::Fmt(fmt) => fmt.run(printer),
            Self::Connections(connections) => connections.run(printer),
            Self::Diff { before, after, within } => analysis::difference(before, after, *within, printer),
            Self::Assert(assert) => assert.run(printer),
            Self::WhatIf(what_if) => what_if.run(printer),
            Self::Recommend(recommend) => recommend.run(printer),
            Self::Ci(ci) => ci.run(printer),
            Self::Schema { api } => {
                println!("{:#}", garrison_ztp::version::json_schema((*api).into()));
                Ok(())
            }
            Self::Import(import) => import.run(printer),
            Self::Authorize(authorize) => authorize.run(printer),
            Self::Compile(compile) if !compile.files.is_empty() => compile.offline(printer),
            Self::Explain {
                src,
                dst,
                port,
                protocol,
                manifests,
            } if !manifests.is_empty() => analysis::explain(manifests, src, dst, *port, *protocol, printer),
            _ => return None,
        })
    }

    pub async fn run(self, context: &Context) -> Result<(), CliError> {
        let mut client = PolicyServiceClient::new(context.remote.service("policy").await?);
        let printer = &context.printer;
        match self {
            // Done in `offline`.
            Self::Check { .. } | Self::Connections(_) | Self::Diff { .. } | Self::Assert(_) => {}
            Self::WhatIf(_) | Self::Authorize(_) | Self::Lint(_) | Self::Fmt(_) => {}
            Self::Recommend(_) | Self::Ci(_) | Self::Import(_) | Self::Schema { .. } => {}
            Self::Apply { file, expected_version } => {
                for document in documents(&file, expected_version)? {
                    let request = ApplyPolicyRequest {
                        document,
                        expected_version,
                    };
                    let answer = client.apply_policy(request).await?.into_inner();
                    warn(&answer.diagnostics);
                    let policy = answer.policy.clone().ok_or(CliError::Answer("policy", "the policy"))?;
                    if answer.unchanged {
                        eprintln!("{} is unchanged", policy.name);
                    }
                    if policy.review() == ReviewState::Pending {
                        eprintln!(
                            "{} waits until somebody else approves it: garrison policy review {}",
                            policy.name,
                            policy.name.trim_start_matches("policies/")
                        );
                    }
                    printer.record(&answer, &fields(&policy));
                }
            }
            Self::List { limit } => {
                let policies = pages!(limit, |page_size, page_token| {
                    let answer = client
                        .list_policies(ListPoliciesRequest { page_size, page_token })
                        .await?
                        .into_inner();
                    (answer.policies, answer.next_page_token)
                });
                list(printer, &policies);
            }
            Self::Show { policy, at: version } => {
                let name = named("policies", &policy);
                let answer = client
                    .get_policy(GetPolicyRequest { name, version })
                    .await?
                    .into_inner();
                let policy = answer.policy.ok_or(CliError::Answer("policy", "the policy"))?;
                if printer.is_json() {
                    printer.record(&policy, &[]);
                } else {
                    print!("{}", policy.document);
                }
            }
            Self::Versions { policy, limit } => {
                let name = named("policies", &policy);
                let policies = pages!(limit, |page_size, page_token| {
                    let request = ListPolicyVersionsRequest {
                        name: name.clone(),
                        page_size,
                        page_token,
                    };
                    let answer = client.list_policy_versions(request).await?.into_inner();
                    (answer.policies, answer.next_page_token)
                });
                list(printer, &policies);
            }
            Self::Review(review) => review.run(&mut client, context).await?,
            Self::Approve(decide) => decide.run(&mut client, context, true).await?,
            Self::Reject(decide) => decide.run(&mut client, context, false).await?,
            Self::Delete { policy } => {
                let name = named("policies", &policy);
                client.delete_policy(DeletePolicyRequest { name: name.clone() }).await?;
                eprintln!("{name} is withdrawn");
            }
            Self::Compile(compile) => {
                let stored = pages!(usize::MAX, |page_size, page_token| {
                    let answer = client
                        .list_policies(ListPoliciesRequest { page_size, page_token })
                        .await?
                        .into_inner();
                    (answer.policies, answer.next_page_token)
                });
                let mut policies = Vec::new();
                for policy in stored.iter().filter(|policy| !policy.withdrawn) {
                    policies.extend(compile::lowered(&policy.document, &policy.name, policy.version)?);
                }
                let sha256 = |name: &str| {
                    let name = named("policies", name);
                    stored.iter().find(|p| p.name == name).map(|p| p.sha256.clone())
                };
                compile.print(&policies, sha256, printer)?;
            }
            Self::Explain {
                src,
                dst,
                port,
                protocol,
                manifests: _,
            } => {
                let request = ExplainConnectionRequest {
                    src_ip: src,
                    dst_ip: dst,
                    dst_port: port.into(),
                    protocol: protocol.into(),
                };
                let answer = client.explain_connection(request).await?.into_inner();
                let shown = [
                    ("verdict", word(answer.verdict().as_str_name(), "VERDICT_")),
                    ("because", answer.reason.clone()),
                    ("policy", answer.policy.clone()),
                    ("rule", answer.rule.clone()),
                ];
                printer.record(&answer, &shown);
            }
            Self::Counts => {
                let counts = client
                    .list_verdict_counts(ListVerdictCountsRequest {})
                    .await?
                    .into_inner()
                    .counts;
                printer.list(
                    "counts",
                    &["policy", "rule", "verdict", "flows", "last seen"],
                    &counts,
                    |count| {
                        vec![
                            count.policy.clone(),
                            count.rule.clone(),
                            word(count.verdict().as_str_name(), "VERDICT_"),
                            count.flows.to_string(),
                            time(count.last_seen.as_ref()),
                        ]
                    },
                );
            }
        }
        Ok(())
    }
}

fn count(errors: usize) -> String {
    format!("{errors} error{}", if errors == 1 { "" } else { "s" })
}

// A file may hold several policies, and none is stored while one is wrong.
fn documents(file: &Path, expected_version: Option<u64>) -> Result<Vec<String>, CliError> {
    let checked = garrison_ztp::check(&read_text(file)?);
    for diagnostic in &checked.diagnostics {
        eprintln!("{}:{diagnostic}", file.display());
    }
    if !checked.is_valid() {
        let errors = checked.errors().count();
        return Err(CliError::Invalid(format!(
            "{} has {errors} errors; nothing was stored",
            file.display()
        )));
    }
    let mut names: Vec<&str> = checked
        .documents
        .iter()
        .map(|d| d.policy.metadata.name.as_str())
        .collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(CliError::Invalid(format!(
            "{} has two policies called {:?}: names are unique in the fleet, whatever the namespace. Give each its own name;              nothing was stored",
            file.display(),
            twice[0]
        )));
    }
    if expected_version.is_some() && checked.documents.len() > 1 {
        return Err(CliError::Argument(
            "--expected-version goes with a file of one policy".to_owned(),
        ));
    }
    Ok(checked.documents.into_iter().map(|document| document.text).collect())
}

fn warn(diagnostics: &[Diagnostic]) {
    for d in diagnostics {
        eprintln!("{}:{}: {} {}: {}", d.line, d.column, d.code, d.field, d.message);
    }
}

fn fields(policy: &Stored) -> Vec<(&'static str, String)> {
    vec![
        ("policy", policy.name.clone()),
        ("version", policy.version.to_string()),
        ("mode", word(policy.mode().as_str_name(), "MODE_")),
        ("author", policy.author.clone()),
        ("created", time(policy.created.as_ref())),
        ("sha256", policy.sha256.clone()),
        ("in force", policy.in_force.to_string()),
        ("review", word(policy.review().as_str_name(), "REVIEW_")),
        ("reviewer", policy.reviewer.clone()),
        ("note", policy.review_note.clone()),
    ]
}

fn list(printer: &Printer, policies: &[Stored]) {
    let headers = [
        "policy",
        "version",
        "mode",
        "author",
        "created",
        "withdrawn",
        "review",
        "reviewer",
    ];
    printer.list("policies", &headers, policies, |policy| {
        let mut row: Vec<String> = fields(policy).into_iter().take(5).map(|(_, value)| value).collect();
        row.push(policy.withdrawn.to_string());
        row.push(word(policy.review().as_str_name(), "REVIEW_"));
        row.push(policy.reviewer.clone());
        row
    });
}
