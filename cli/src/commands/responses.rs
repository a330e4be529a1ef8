use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};
use garrison_proto::{
    Duration,
    response::v1::{
        Action, AddProtectedHostRequest, ApplyPlaybookRequest, ApproveResponseRequest, CreateResponseRequest,
        GetResponseRequest, ListPlaybooksRequest, ListProtectedHostsRequest, ListResponsesRequest,
        RejectResponseRequest, RemoveProtectedHostRequest, Response, ResponseState, RollbackResponseRequest,
        playbook_service_client::PlaybookServiceClient, response_service_client::ResponseServiceClient,
    },
};

use crate::{
    Context,
    commands::{named, pages, parse_duration, read_text},
    error::CliError,
    output::{time, word},
};

/// An action as an argument.
#[derive(Clone, Copy, ValueEnum)]
pub enum Act {
    /// Drop everything from and to an address
    Block,
    /// Let through only so many packets a second
    RateLimit,
    /// Cut a host off from everything but the management network
    Isolate,
}

/// A state as an argument.
#[derive(Clone, Copy, ValueEnum)]
pub enum State {
    PendingApproval,
    Dispatched,
    Applied,
    Failed,
    Reverting,
    Reverted,
    Expired,
    Rejected,
    Refused,
}

impl From<State> for ResponseState {
    fn from(state: State) -> Self {
        match state {
            State::PendingApproval => Self::PendingApproval,
            State::Dispatched => Self::Dispatched,
            State::Applied => Self::Applied,
            State::Failed => Self::Failed,
            State::Reverting => Self::Reverting,
            State::Reverted => Self::Reverted,
            State::Expired => Self::Expired,
            State::Rejected => Self::Rejected,
            State::Refused => Self::Refused,
        }
    }
}

/// Show, order, approve and roll back responses.
#[derive(Subcommand)]
pub enum Responses {
    /// List responses, newest first
    ///
    /// For example: garrison responses list --state pending-approval
    List {
        /// Only these states
        #[arg(long, value_enum)]
        state: Vec<State>,
        /// Only those of this incident
        #[arg(long)]
        incident: Option<String>,
        /// At most so many
        #[arg(long, default_value_t = 50)]
        limit: usize,
    },
    /// Show one response with its history
    Show {
        /// Its name or id
        response: String,
    },
    /// Order a response by hand
    ///
    /// For example: garrison responses create block 203.0.113.7 --ttl 1h --reason "seen in the proxy log"
    Create {
        #[arg(value_enum)]
        action: Act,
        /// Address or network
        target: String,
        /// How long it stays in force; until rolled back when left out
        #[arg(long, value_parser = parse_duration)]
        ttl: Option<Duration>,
        /// For rate-limit
        #[arg(long, default_value_t = 0)]
        packets_per_second: u32,
        /// The incident it belongs to
        #[arg(long)]
        incident: Option<String>,
        /// Why, for the record
        #[arg(long)]
        reason: String,
    },
    /// Approve a response that waits for it
    Approve {
        /// Its name or id
        response: String,
        /// Why, for the record
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Reject a response that waits for approval
    Reject {
        /// Its name or id
        response: String,
        /// Why, for the record
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Undo a response
    Rollback {
        /// Its name or id
        response: String,
        /// Why, for the record
        #[arg(long, default_value = "")]
        reason: String,
    },
}

impl Responses {
    pub async fn run(self, context: &Context) -> Result<(), CliError> {
        let mut client = ResponseServiceClient::new(context.remote.service("responder").await?);
        let response = match self {
            Self::List { state, incident, limit } => {
                let states: Vec<i32> = state
                    .into_iter()
                    .map(|state| ResponseState::from(state).into())
                    .collect();
                let incident = incident
                    .map(|incident| named("incidents", &incident))
                    .unwrap_or_default();
                let responses = pages!(limit, |page_size, page_token| {
                    let request = ListResponsesRequest {
                        page_size,
                        page_token,
                        states: states.clone(),
                        incident: incident.clone(),
                    };
                    let answer = client.list_responses(request).await?.into_inner();
                    (answer.responses, answer.next_page_token)
                });
                let headers = [
                    "response", "state", "action", "target", "created", "expires", "playbook", "reason",
                ];
                context.printer.list("responses", &headers, &responses, |response| {
                    vec![
                        response.name.clone(),
                        word(response.state().as_str_name(), "RESPONSE_STATE_"),
                        word(response.action().as_str_name(), "ACTION_"),
                        response.target.clone(),
                        time(response.created.as_ref()),
                        time(response.expires.as_ref()),
                        response.playbook.clone(),
                        response.reason.clone(),
                    ]
                });
                return Ok(());
            }
            Self::Show { response } => {
                let name = named("responses", &response);
                client
                    .get_response(GetResponseRequest { name })
                    .await?
                    .into_inner()
                    .response
            }
            Self::Create {
                action,
                target,
                ttl,
                packets_per_second,
                incident,
                reason,
            } => {
                let action = match action {
                    Act::Block => Action::Block,
                    Act::RateLimit => Action::RateLimit,
                    Act::Isolate => Action::Isolate,
                };
                let request = CreateResponseRequest {
                    action: action.into(),
                    target,
                    ttl,
                    packets_per_second,
                    incident: incident
                        .map(|incident| named("incidents", &incident))
                        .unwrap_or_default(),
                    reason,
                    request_id: uuid::Uuid::now_v7().to_string(),
                };
                client.create_response(request).await?.into_inner().response
            }
            Self::Approve { response, reason } => {
                let name = named("responses", &response);
                client
                    .approve_response(ApproveResponseRequest { name, reason })
                    .await?
                    .into_inner()
                    .response
            }
            Self::Reject { response, reason } => {
                let name = named("responses", &response);
                client
                    .reject_response(RejectResponseRequest { name, reason })
                    .await?
                    .into_inner()
                    .response
            }
            Self::Rollback { response, reason } => {
                let name = named("responses", &response);
                client
                    .rollback_response(RollbackResponseRequest { name, reason })
                    .await?
                    .into_inner()
                    .response
            }
        };
        show(context, response)
    }
}

fn show(context: &Context, response: Option<Response>) -> Result<(), CliError> {
    let response = response.ok_or(CliError::Answer("responder", "the response"))?;
    let history: Vec<String> = response
        .history
        .iter()
        .map(|step| {
            let state = word(step.state().as_str_name(), "RESPONSE_STATE_");
            format!("{}  {state}  {}  {}", time(step.time.as_ref()), step.actor, step.detail)
        })
        .collect();
    let fields = [
        ("response", response.name.clone()),
        ("state", word(response.state().as_str_name(), "RESPONSE_STATE_")),
        ("action", word(response.action().as_str_name(), "ACTION_")),
        ("target", response.target.clone()),
        ("reason", response.reason.clone()),
        ("error", response.error.clone()),
        ("incident", response.incident.clone()),
        ("alert", response.alert_id.clone()),
        ("playbook", response.playbook.clone()),
        ("nodes", response.nodes.join(", ")),
        ("created", time(response.created.as_ref())),
        ("applied", time(response.applied.as_ref())),
        ("expires", time(response.expires.as_ref())),
        ("history", history.join("\n")),
    ];
    context.printer.record(&response, &fields);
    Ok(())
}

/// Show and change playbooks.
#[derive(Subcommand)]
pub enum Playbooks {
    /// List playbooks
    List,
    /// Store a playbook from a file
    Apply {
        /// YAML file, or - for standard input
        file: PathBuf,
    },
    /// Print a playbook's document
    Show {
        /// Its name
        playbook: String,
    },
}

impl Playbooks {
    pub async fn run(self, context: &Context) -> Result<(), CliError> {
        let mut client = PlaybookServiceClient::new(context.remote.service("responder").await?);
        match self {
            Self::List => {
                let playbooks = client
                    .list_playbooks(ListPlaybooksRequest {})
                    .await?
                    .into_inner()
                    .playbooks;
                context.printer.list(
                    "playbooks",
                    &["playbook", "version", "enabled"],
                    &playbooks,
                    |playbook| {
                        vec![
                            playbook.name.clone(),
                            playbook.version.to_string(),
                            playbook.enabled.to_string(),
                        ]
                    },
                );
            }
            Self::Apply { file } => {
                let document = read_text(&file)?;
                let answer = client
                    .apply_playbook(ApplyPlaybookRequest { document })
                    .await?
                    .into_inner();
                let playbook = answer.playbook.ok_or(CliError::Answer("responder", "the playbook"))?;
                let fields = [
                    ("playbook", playbook.name.clone()),
                    ("version", playbook.version.to_string()),
                ];
                context.printer.record(&playbook, &fields);
            }
            Self::Show { playbook } => {
                let name = named("playbooks", &playbook);
                let playbooks = client
                    .list_playbooks(ListPlaybooksRequest {})
                    .await?
                    .into_inner()
                    .playbooks;
                let found = playbooks.into_iter().find(|playbook| playbook.name == name);
                let found = found.ok_or_else(|| tonic::Status::not_found(format!("there is no {name}")))?;
                if context.printer.is_json() {
                    context.printer.record(&found, &[]);
                } else {
                    print!("{}", found.document);
                }
            }
        }
        Ok(())
    }
}

/// Hosts that no response may touch.
#[derive(Subcommand)]
pub enum Protected {
    /// List them
    List,
    /// Add an address or network
    Add {
        /// Address or network
        network: String,
        /// Why, for the record
        #[arg(long)]
        reason: String,
    },
    /// Remove an address or network
    Remove {
        /// Address or network
        network: String,
    },
}

impl Protected {
    pub async fn run(self, context: &Context) -> Result<(), CliError> {
        let mut client = PlaybookServiceClient::new(context.remote.service("responder").await?);
        match self {
            Self::List => {
                let hosts = client
                    .list_protected_hosts(ListProtectedHostsRequest {})
                    .await?
                    .into_inner()
                    .hosts;
                context
                    .printer
                    .list("hosts", &["network", "by", "reason"], &hosts, |host| {
                        vec![host.network.clone(), host.author.clone(), host.reason.clone()]
                    });
            }
            Self::Add { network, reason } => {
                client
                    .add_protected_host(AddProtectedHostRequest {
                        network: network.clone(),
                        reason,
                    })
                    .await?;
                eprintln!("{network} is protected");
            }
            Self::Remove { network } => {
                client
                    .remove_protected_host(RemoveProtectedHostRequest {
                        network: network.clone(),
                    })
                    .await?;
                eprintln!("{network} is no longer protected");
            }
        }
        Ok(())
    }
}
