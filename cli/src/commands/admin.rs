use std::path::PathBuf;

use clap::Subcommand;
use garrison_proto::iam::v1::{
    CreateTenantRequest, CreateUserRequest, GetUserRequest, ListRolesRequest, ListSessionsRequest, ListTenantsRequest,
    ListUsersRequest, ResetPasswordRequest, RevokeSessionRequest, RotateKeyRequest, UpdateTenantRequest,
    UpdateUserRequest, User, key_service_client::KeyServiceClient, session_service_client::SessionServiceClient,
    tenant_service_client::TenantServiceClient, user_service_client::UserServiceClient,
};

use crate::{
    Context,
    commands::{named, pages, secret},
    error::CliError,
    output::{Printer, time},
};

/// Manage people of this tenant.
#[derive(Subcommand)]
pub enum Users {
    /// List people
    List {
        /// At most so many
        #[arg(long, default_value_t = 200)]
        limit: usize,
    },
    /// Show one
    Show {
        /// Name or id
        user: String,
    },
    /// Add somebody
    ///
    /// For example: garrison users create ana --role analyst
    Create {
        /// Login name
        login: String,
        /// Name for people
        #[arg(long, default_value = "")]
        display_name: String,
        /// A role; repeat for several
        #[arg(long)]
        role: Vec<String>,
        /// File with the first password, or - for standard input; asked for when left out
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Change roles, or shut an account
    Update {
        /// Name or id
        user: String,
        /// The roles from now on; repeat for several
        #[arg(long)]
        role: Vec<String>,
        /// Shut the account
        #[arg(long, conflicts_with = "enable")]
        disable: bool,
        /// Open the account again
        #[arg(long)]
        enable: bool,
    },
    /// Give somebody a new password and end their sessions
    ResetPassword {
        /// Name or id
        user: String,
        /// File with the new password, or - for standard input; asked for when left out
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
        /// Remove the authenticator too
        #[arg(long)]
        reset_totp: bool,
    },
    /// List roles and what they may do
    Roles,
}

impl Users {
    pub async fn run(self, context: &Context) -> Result<(), CliError> {
        let mut client = UserServiceClient::new(context.remote.service("iam").await?);
        let printer = &context.printer;
        match self {
            Self::List { limit } => {
                let users = pages!(limit, |page_size, page_token| {
                    let answer = client
                        .list_users(ListUsersRequest { page_size, page_token })
                        .await?
                        .into_inner();
                    (answer.users, answer.next_page_token)
                });
                let headers = ["user", "login", "roles", "second factor", "disabled", "last login"];
                printer.list("users", &headers, &users, |user| {
                    vec![
                        user.name.clone(),
                        user.login.clone(),
                        user.roles.join(","),
                        user.totp_enrolled.to_string(),
                        user.disabled.to_string(),
                        time(user.last_login.as_ref()),
                    ]
                });
            }
            Self::Show { user } => {
                let name = named("users", &user);
                show(
                    printer,
                    client.get_user(GetUserRequest { name }).await?.into_inner().user,
                )?;
            }
            Self::Create {
                login,
                display_name,
                role,
                password_file,
            } => {
                let request = CreateUserRequest {
                    login,
                    display_name,
                    roles: role,
                    password: secret(password_file.as_ref(), "First password: ")?,
                };
                show(printer, client.create_user(request).await?.into_inner().user)?;
            }
            Self::Update {
                user,
                role,
                disable,
                enable,
            } => {
                let request = UpdateUserRequest {
                    name: named("users", &user),
                    set_roles: !role.is_empty(),
                    roles: role,
                    disabled: match (disable, enable) {
                        (true, _) => Some(true),
                        (_, true) => Some(false),
                        _ => None,
                    },
                };
                show(printer, client.update_user(request).await?.into_inner().user)?;
            }
            Self::ResetPassword {
                user,
                password_file,
                reset_totp,
            } => {
                let request = ResetPasswordRequest {
                    name: named("users", &user),
                    password: secret(password_file.as_ref(), "New password: ")?,
                    reset_totp,
                };
                client.reset_password(request).await?;
                eprintln!("password reset; every session of {user} has ended");
            }
            Self::Roles => {
                let roles = client.list_roles(ListRolesRequest {}).await?.into_inner().roles;
                printer.list("roles", &["role", "may"], &roles, |role| {
                    vec![role.name.clone(), role.description.clone()]
                });
            }
        }
        Ok(())
    }
}

fn show(printer: &Printer, user: Option<User>) -> Result<(), CliError> {
    let user = user.ok_or(CliError::Answer("iam", "the user"))?;
    let fields = [
        ("user", user.name.clone()),
        ("login", user.login.clone()),
        ("name", user.display_name.clone()),
        ("roles", user.roles.join(", ")),
        (
            "second factor",
            if user.totp_enrolled { "enrolled" } else { "none" }.to_owned(),
        ),
        ("disabled", user.disabled.to_string()),
        ("created", time(user.created.as_ref())),
        ("last login", time(user.last_login.as_ref())),
        ("locked until", time(user.locked_until.as_ref())),
    ];
    printer.record(&user, &fields);
    Ok(())
}

/// Show and end sessions.
#[derive(Subcommand)]
pub enum Sessions {
    /// List sessions: one's own, or somebody's
    List {
        /// Whose
        #[arg(long)]
        user: Option<String>,
    },
    /// End one session, or all of somebody's
    Revoke {
        /// The session
        session: Option<String>,
        /// Or everything of this user
        #[arg(long, conflicts_with = "session")]
        user: Option<String>,
    },
}

impl Sessions {
    pub async fn run(self, context: &Context) -> Result<(), CliError> {
        let mut client = SessionServiceClient::new(context.remote.service("iam").await?);
        match self {
            Self::List { user } => {
                let user = user.map(|user| named("users", &user)).unwrap_or_default();
                let sessions = client
                    .list_sessions(ListSessionsRequest { user })
                    .await?
                    .into_inner()
                    .sessions;
                let headers = [
                    "session",
                    "user",
                    "created",
                    "last used",
                    "expires",
                    "from",
                    "second factor",
                ];
                context.printer.list("sessions", &headers, &sessions, |session| {
                    vec![
                        session.name.clone(),
                        session.user.clone(),
                        time(session.created.as_ref()),
                        time(session.last_used.as_ref()),
                        time(session.expires.as_ref()),
                        session.client_address.clone(),
                        session.second_factor.to_string(),
                    ]
                });
            }
            Self::Revoke { session, user } => {
                if session.is_none() && user.is_none() {
                    return Err(CliError::Argument("name a session, or a user with --user".to_owned()));
                }
                let request = RevokeSessionRequest {
                    name: session.map(|session| named("sessions", &session)).unwrap_or_default(),
                    user: user.map(|user| named("users", &user)).unwrap_or_default(),
                };
                let revoked = client.revoke_session(request).await?.into_inner().revoked;
                eprintln!("{revoked} sessions ended");
            }
        }
        Ok(())
    }
}

/// Manage tenants.
#[derive(Subcommand)]
pub enum Tenants {
    /// List tenants
    List {
        /// At most so many
        #[arg(long, default_value_t = 200)]
        limit: usize,
    },
    /// Add a tenant with its first administrator
    Create {
        /// Its id: lower-case letters, digits and hyphens
        tenant: String,
        /// Name for people
        #[arg(long, default_value = "")]
        display_name: String,
        /// Login of the first administrator
        #[arg(long)]
        admin: String,
        /// File with the administrator's first password; asked for when left out
        #[arg(long, value_name = "FILE")]
        admin_password_file: Option<PathBuf>,
    },
    /// Shut a tenant
    Disable {
        /// Its id
        tenant: String,
    },
    /// Open a tenant again
    Enable {
        /// Its id
        tenant: String,
    },
}

impl Tenants {
    pub async fn run(self, context: &Context) -> Result<(), CliError> {
        let mut client = TenantServiceClient::new(context.remote.service("iam").await?);
        let (tenant, disabled) = match self {
            Self::List { limit } => {
                let tenants = pages!(limit, |page_size, page_token| {
                    let answer = client
                        .list_tenants(ListTenantsRequest { page_size, page_token })
                        .await?
                        .into_inner();
                    (answer.tenants, answer.next_page_token)
                });
                context.printer.list(
                    "tenants",
                    &["tenant", "name", "disabled", "created"],
                    &tenants,
                    |tenant| {
                        vec![
                            tenant.name.clone(),
                            tenant.display_name.clone(),
                            tenant.disabled.to_string(),
                            time(tenant.created.as_ref()),
                        ]
                    },
                );
                return Ok(());
            }
            Self::Create {
                tenant,
                display_name,
                admin,
                admin_password_file,
            } => {
                let request = CreateTenantRequest {
                    tenant_id: tenant.clone(),
                    display_name,
                    admin_login: admin,
                    admin_password: secret(admin_password_file.as_ref(), "The administrator's first password: ")?,
                };
                client.create_tenant(request).await?;
                eprintln!("tenant {tenant} is there");
                return Ok(());
            }
            Self::Disable { tenant } => (tenant, true),
            Self::Enable { tenant } => (tenant, false),
        };
        let request = UpdateTenantRequest {
            name: named("tenants", &tenant),
            disabled: Some(disabled),
        };
        client.update_tenant(request).await?;
        eprintln!("tenant {tenant} is {}", if disabled { "shut" } else { "open" });
        Ok(())
    }
}

/// Token signing keys.
#[derive(Subcommand)]
pub enum Keys {
    /// Sign with a new key from now on
    Rotate,
}

impl Keys {
    pub async fn run(self, context: &Context) -> Result<(), CliError> {
        let Self::Rotate = self;
        let mut client = KeyServiceClient::new(context.remote.service("iam").await?);
        let answer = client.rotate_key(RotateKeyRequest {}).await?.into_inner();
        context.printer.record(&answer, &[("key", answer.key_id.clone())]);
        Ok(())
    }
}
