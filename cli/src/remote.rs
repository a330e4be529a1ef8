//! Channels to the services of a fleet, each with the caller's token.

use std::{fs, time::Duration};

use garrison_proto::iam::v1::{RefreshTokenRequest, authentication_service_client::AuthenticationServiceClient};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

use crate::{
    error::CliError,
    profile::Profile,
    session::{Session, TokenFile},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

// A peer that neither answers nor hangs up is found out by pings; streams may then be as long as they like.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// A channel that sends the caller's token.
pub type Authorised = InterceptedService<Channel, Bearer>;

/// Adds the token to every call.
#[derive(Clone)]
pub struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// The services of a profile.
#[derive(Debug)]
pub struct Remote {
    endpoints: std::collections::BTreeMap<String, String>,
    authorities: Certificate,
    token_file: std::path::PathBuf,
    config: std::path::PathBuf,
}

impl Remote {
    /// Reads the authorities; connects to nothing yet.
    ///
    /// # Errors
    /// When the authorities' file cannot be read.
    pub fn new(profile: &Profile) -> Result<Self, CliError> {
        let pem = fs::read(&profile.ca_file).map_err(|source| CliError::file("reading", &profile.ca_file, source))?;
        Ok(Self {
            endpoints: profile.endpoints.clone(),
            authorities: Certificate::from_pem(pem),
            token_file: profile.token_file(),
            config: profile.path.clone(),
        })
    }

    /// A channel without a token, for logging in. The service must prove its name by certificate.
    ///
    /// # Errors
    /// When the profile has no endpoint for it or nobody answers there.
    pub async fn anonymous(&self, service: &'static str) -> Result<Channel, CliError> {
        let endpoint = self.endpoints.get(service).ok_or_else(|| CliError::Configuration {
            path: self.config.clone(),
            problem: format!(
                "the profile has no endpoint for {service}: add `{service} = \"https://host:port\"` to its endpoints"
            ),
        })?;
        let tls = ClientTlsConfig::new()
            .ca_certificate(self.authorities.clone())
            .domain_name(service);
        let unreachable = |error: tonic::transport::Error| CliError::Unreachable {
            service,
            endpoint: endpoint.clone(),
            reason: innermost(&error),
        };
        Endpoint::from_shared(endpoint.clone())
            .and_then(|endpoint| endpoint.tls_config(tls))
            .map_err(unreachable)?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .connect()
            .await
            .map_err(unreachable)
    }

    /// A channel with the caller's token, renewed when it is about to end.
    ///
    /// # Errors
    /// [`CliError::NotLoggedIn`] when there is no session or it has ended.
    pub async fn service(&self, service: &'static str) -> Result<Authorised, CliError> {
        let token = self.access_token().await?;
        let value = format!("Bearer {token}").parse().map_err(|_| CliError::NotLoggedIn)?;
        let channel = self.anonymous(service).await?;
        Ok(InterceptedService::new(channel, Bearer(value)))
    }

    /// The kept tokens, locked.
    ///
    /// # Errors
    /// When the file cannot be locked.
    pub fn tokens(&self) -> Result<TokenFile, CliError> {
        TokenFile::lock(&self.token_file)
    }

    async fn access_token(&self) -> Result<String, CliError> {
        let file = self.tokens()?;
        let session = file.read().ok_or(CliError::NotLoggedIn)?;
        if session.is_fresh() {
            return Ok(session.access_token);
        }
        let request = RefreshTokenRequest {
            refresh_token: session.refresh_token,
        };
        let mut iam = AuthenticationServiceClient::new(self.anonymous("iam").await?);
        match iam.refresh_token(request).await {
            Ok(answer) => {
                let tokens = answer.into_inner().tokens.ok_or(CliError::Answer("iam", "tokens"))?;
                let session = Session::new(&session.tenant, tokens)?;
                file.write(&session)?;
                Ok(session.access_token)
            }
            Err(status) if status.code() == tonic::Code::Unauthenticated => {
                file.clear();
                Err(CliError::NotLoggedIn)
            }
            Err(status) => Err(status.into()),
        }
    }
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
