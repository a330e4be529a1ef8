use std::path::PathBuf;

use clap::{Args, Subcommand};
use garrison_proto::iam::v1::{
    ChangePasswordRequest, ConfirmTotpRequest, EnrollTotpRequest, FactorKind, GetCallerRequest, LoginRequest,
    LogoutRequest, VerifyFactorRequest, authentication_service_client::AuthenticationServiceClient,
};

use crate::{Context, commands::secret, error::CliError, session::Session};

/// Log in.
#[derive(Args)]
#[command(after_help = "Examples:\n  garrison login --tenant acme ana\n  \
                        garrison login --tenant acme ana --password-file pw.txt --code-file -")]
pub struct Login {
    /// Login name; asked for when left out
    login: Option<String>,
    /// Tenant; the profile's when left out
    #[arg(long)]
    tenant: Option<String>,
    /// File with the password, or - for standard input; asked for when left out
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// File with the authenticator's code, or - for standard input; asked for when left out and needed
    #[arg(long, value_name = "FILE")]
    code_file: Option<PathBuf>,
    /// Use a recovery code instead of the authenticator
    #[arg(long)]
    recovery_code: bool,
}

impl Login {
    pub async fn run(self, context: &Context) -> Result<(), CliError> {
        let tenant = self.tenant.or_else(|| context.profile.tenant.clone());
        let tenant = tenant.ok_or_else(|| CliError::Argument("name the tenant with --tenant".to_owned()))?;
        let login = match self.login {
            Some(login) => login,
            None => ask("Login: ")?,
        };
        let password = secret(self.password_file.as_ref(), "Password: ")?;
        let mut iam = AuthenticationServiceClient::new(context.remote.anonymous("iam").await?);
        let request = LoginRequest {
            tenant: tenant.clone(),
            login,
            password,
        };
        let answer = iam.login(request).await?.into_inner();
        let tokens = match answer.tokens {
            Some(tokens) => tokens,
            None => {
                let code = secret(self.code_file.as_ref(), "Code: ")?;
                let kind = if self.recovery_code {
                    FactorKind::RecoveryCode
                } else {
                    FactorKind::Totp
                };
                let request = VerifyFactorRequest {
                    challenge: answer.challenge,
                    kind: kind.into(),
                    code,
                };
                let answer = iam.verify_factor(request).await?.into_inner();
                answer.tokens.ok_or(CliError::Answer("iam", "tokens"))?
            }
        };
        context.remote.tokens()?.write(&Session::new(&tenant, tokens)?)?;
        eprintln!("logged in to {tenant}");
        Ok(())
    }
}

fn ask(prompt: &str) -> Result<String, CliError> {
    use std::io::Write as _;
    let failed = |source| CliError::Io {
        what: "asking for the login".to_owned(),
        source,
    };
    eprint!("{prompt}");
    std::io::stderr().flush().map_err(failed)?;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).map_err(failed)?;
    Ok(line.trim().to_owned())
}

/// End the session, here and in iam.
pub async fn logout(context: &Context) -> Result<(), CliError> {
    let ended = match context.remote.service("iam").await {
        Ok(channel) => AuthenticationServiceClient::new(channel)
            .logout(LogoutRequest {})
            .await
            .map(drop),
        // Without a session there is nothing to end.
        Err(CliError::NotLoggedIn) => Ok(()),
        Err(error) => return Err(error),
    };
    context.remote.tokens()?.clear();
    ended?;
    eprintln!("logged out");
    Ok(())
}

/// Show who is logged in.
pub async fn whoami(context: &Context) -> Result<(), CliError> {
    let mut iam = AuthenticationServiceClient::new(context.remote.service("iam").await?);
    let caller = iam.get_caller(GetCallerRequest {}).await?.into_inner();
    let user = caller.user.clone().unwrap_or_default();
    let fields = [
        ("login", user.login),
        ("name", user.display_name),
        ("user", user.name),
        ("tenant", caller.tenant.clone()),
        ("roles", user.roles.join(", ")),
        (
            "second factor",
            if caller.second_factor { "proved" } else { "not proved" }.to_owned(),
        ),
        ("session", caller.session.clone()),
    ];
    context.printer.record(&caller, &fields);
    Ok(())
}

/// Manage one's own account.
#[derive(Subcommand)]
pub enum Account {
    /// Enrol an authenticator app; prints its secret, then asks for a code
    EnrollTotp {
        /// File with a code from the app, or - for standard input; asked for when left out
        #[arg(long, value_name = "FILE")]
        code_file: Option<PathBuf>,
    },
    /// Change the password
    ChangePassword {
        /// File with the present password; asked for when left out
        #[arg(long, value_name = "FILE")]
        old_password_file: Option<PathBuf>,
        /// File with the new password; asked for when left out
        #[arg(long, value_name = "FILE")]
        new_password_file: Option<PathBuf>,
    },
}

impl Account {
    pub async fn run(self, context: &Context) -> Result<(), CliError> {
        let mut iam = AuthenticationServiceClient::new(context.remote.service("iam").await?);
        match self {
            Self::EnrollTotp { code_file } => {
                let enrolment = iam.enroll_totp(EnrollTotpRequest {}).await?.into_inner();
                eprintln!(
                    "Add this to your authenticator app:\n  {}\n  secret {}",
                    enrolment.uri, enrolment.secret
                );
                let code = secret(code_file.as_ref(), "Code from the app: ")?;
                let confirmed = iam.confirm_totp(ConfirmTotpRequest { code }).await?.into_inner();
                eprintln!("Enrolled. Keep these recovery codes; they are shown once:");
                for code in confirmed.recovery_codes {
                    println!("{code}");
                }
            }
            Self::ChangePassword {
                old_password_file,
                new_password_file,
            } => {
                let request = ChangePasswordRequest {
                    old_password: secret(old_password_file.as_ref(), "Present password: ")?,
                    new_password: secret(new_password_file.as_ref(), "New password: ")?,
                };
                iam.change_password(request).await?;
                eprintln!("password changed");
            }
        }
        Ok(())
    }
}
