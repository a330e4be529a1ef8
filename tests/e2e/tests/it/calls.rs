//! Calls to the fleet: as a person with a token, as a service with a certificate, or as nobody.

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use garrison_auth::{SpiffeId, TlsFiles, TlsIdentity, client};
use garrison_proto::{
    alert::v1::{
        budget_service_client::BudgetServiceClient, detection_service_client::DetectionServiceClient,
        model_service_client::ModelServiceClient, risk_service_client::RiskServiceClient,
        verdict_service_client::VerdictServiceClient,
    },
    compliance::v1::{
        report_service_client::ReportServiceClient, transparency_log_service_client::TransparencyLogServiceClient,
    },
    flow::v1::flow_service_client::FlowServiceClient,
    forensics::v1::{
        evidence_service_client::EvidenceServiceClient, flow_search_service_client::FlowSearchServiceClient,
    },
    iam::v1::{
        FactorKind, LoginRequest, TokenSet, VerifyFactorRequest,
        authentication_service_client::AuthenticationServiceClient, key_service_client::KeyServiceClient,
        session_service_client::SessionServiceClient, tenant_service_client::TenantServiceClient,
        user_service_client::UserServiceClient,
    },
    policy::v1::policy_service_client::PolicyServiceClient,
    response::v1::{
        alert_service_client::AlertServiceClient, enforcer_service_client::EnforcerServiceClient,
        incident_service_client::IncidentServiceClient, playbook_service_client::PlaybookServiceClient,
        response_service_client::ResponseServiceClient,
    },
};
use garrison_testkit::{Fleet, IdentityFiles, TRUST_DOMAIN};
use ring::hmac;
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};
use tonic_types::StatusExt as _;

/// Where each service of a fleet answers.
#[derive(Clone, Debug)]
pub struct Doors {
    ca: std::path::PathBuf,
    places: std::collections::BTreeMap<&'static str, std::net::SocketAddr>,
}

impl Doors {
    pub fn of(fleet: &Fleet) -> Self {
        let places = garrison_testkit::bootstrap::SERVICES
            .iter()
            .map(|service| (*service, fleet.grpc(service).unwrap()));
        Self {
            ca: fleet.pki().unwrap().ca_file(),
            places: places.collect(),
        }
    }

    pub fn endpoint(&self, service: &str) -> String {
        format!("https://localhost:{}", self.places[service].port())
    }

    /// Without a client certificate. Nothing is connected before the first call.
    pub fn channel(&self, service: &str) -> Channel {
        self.channel_expecting(service, service)
    }

    /// To one service's port, believing that another answers there.
    pub fn channel_expecting(&self, service: &str, expected: &str) -> Channel {
        client::anonymous_channel(&self.ca, &self.endpoint(service), &spiffe(expected)).unwrap()
    }

    /// With a client certificate of the given trust domain.
    pub fn channel_with(&self, service: &str, files: &IdentityFiles, trust_domain: &str) -> Channel {
        let files = TlsFiles {
            cert_file: files.cert_file.clone(),
            key_file: files.key_file.clone(),
            ca_file: self.ca.clone(),
        };
        let identity: Arc<TlsIdentity> = TlsIdentity::load(files, trust_domain).unwrap();
        client::channel(&identity, &self.endpoint(service), &spiffe(service)).unwrap()
    }
}

fn spiffe(service: &str) -> SpiffeId {
    SpiffeId::service(TRUST_DOMAIN, service).unwrap()
}

/// Puts a token on every call.
#[derive(Clone)]
pub struct Bearer(MetadataValue<Ascii>);

impl Bearer {
    pub fn new(token: &str) -> Self {
        Self(format!("Bearer {token}").parse().unwrap())
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

type Authorized = InterceptedService<Channel, Bearer>;

/// A logged-in person with a client for every service.
#[derive(Clone)]
pub struct Desk {
    pub access: String,
    pub refresh: String,
    pub flows: FlowServiceClient<Authorized>,
    pub detection: DetectionServiceClient<Authorized>,
    pub verdicts: VerdictServiceClient<Authorized>,
    pub budgets: BudgetServiceClient<Authorized>,
    pub risks: RiskServiceClient<Authorized>,
    pub models: ModelServiceClient<Authorized>,
    pub policies: PolicyServiceClient<Authorized>,
    pub alerts: AlertServiceClient<Authorized>,
    pub incidents: IncidentServiceClient<Authorized>,
    pub responses: ResponseServiceClient<Authorized>,
    pub playbooks: PlaybookServiceClient<Authorized>,
    pub enforcers: EnforcerServiceClient<Authorized>,
    pub search: FlowSearchServiceClient<Authorized>,
    pub evidence: EvidenceServiceClient<Authorized>,
    pub log: TransparencyLogServiceClient<Authorized>,
    pub reports: ReportServiceClient<Authorized>,
    pub authentication: AuthenticationServiceClient<Authorized>,
    pub users: UserServiceClient<Authorized>,
    pub sessions: SessionServiceClient<Authorized>,
    pub tenants: TenantServiceClient<Authorized>,
    pub keys: KeyServiceClient<Authorized>,
}

/// Larger than the default, for exports and packet slices.
const MESSAGE: usize = 64 << 20;

impl Desk {
    pub fn new(doors: &Doors, access: &str, refresh: &str) -> Self {
        let bearer = Bearer::new(access);
        let on = |service: &str| InterceptedService::new(doors.channel(service), bearer.clone());
        let (responder, iam) = (on("responder"), on("iam"));
        let (forensics, compliance) = (on("forensics"), on("compliance"));
        Self {
            access: access.to_owned(),
            refresh: refresh.to_owned(),
            flows: FlowServiceClient::new(on("flow-ingest")),
            detection: DetectionServiceClient::new(on("anomaly")),
            verdicts: VerdictServiceClient::new(on("anomaly")),
            budgets: BudgetServiceClient::new(on("anomaly")),
            risks: RiskServiceClient::new(on("anomaly")),
            models: ModelServiceClient::new(on("anomaly")),
            policies: PolicyServiceClient::new(on("policy")),
            alerts: AlertServiceClient::new(responder.clone()).max_decoding_message_size(MESSAGE),
            incidents: IncidentServiceClient::new(responder.clone()).max_decoding_message_size(MESSAGE),
            responses: ResponseServiceClient::new(responder.clone()).max_decoding_message_size(MESSAGE),
            playbooks: PlaybookServiceClient::new(responder.clone()),
            enforcers: EnforcerServiceClient::new(responder),
            search: FlowSearchServiceClient::new(forensics.clone()).max_decoding_message_size(MESSAGE),
            evidence: EvidenceServiceClient::new(forensics).max_decoding_message_size(MESSAGE),
            log: TransparencyLogServiceClient::new(compliance.clone()).max_decoding_message_size(MESSAGE),
            reports: ReportServiceClient::new(compliance).max_decoding_message_size(MESSAGE),
            authentication: AuthenticationServiceClient::new(iam.clone()),
            users: UserServiceClient::new(iam.clone()),
            sessions: SessionServiceClient::new(iam.clone()),
            tenants: TenantServiceClient::new(iam.clone()),
            keys: KeyServiceClient::new(iam),
        }
    }
}

/// Logs somebody in with the password, and the authenticator where one is enrolled, of the fleet's secrets.
pub async fn log_in(fleet: &Fleet, doors: &Doors, tenant: &str, login: &str) -> Desk {
    let name = format!("{tenant}-{login}");
    let secrets = &fleet.written().secrets;
    let password = fs::read_to_string(secrets.password(&name).unwrap()).unwrap();
    let tokens = match first_step(doors, tenant, login, &password).await.unwrap() {
        Step::In(tokens) => tokens,
        Step::Challenge(challenge) => {
            let code = code(&secrets.totp(&name).unwrap());
            second_step(doors, &challenge, &code).await.unwrap()
        }
    };
    Desk::new(doors, &tokens.access_token, &tokens.refresh_token)
}

/// What a password leads to.
#[derive(Debug)]
pub enum Step {
    In(TokenSet),
    Challenge(String),
}

pub async fn first_step(doors: &Doors, tenant: &str, login: &str, password: &str) -> Result<Step, Status> {
    let request = LoginRequest {
        tenant: tenant.to_owned(),
        login: login.to_owned(),
        password: password.trim().to_owned(),
    };
    let answer = AuthenticationServiceClient::new(doors.channel("iam"))
        .login(request)
        .await?
        .into_inner();
    Ok(match answer.tokens {
        Some(tokens) => Step::In(tokens),
        None => Step::Challenge(answer.challenge),
    })
}

pub async fn second_step(doors: &Doors, challenge: &str, code: &str) -> Result<TokenSet, Status> {
    let request = VerifyFactorRequest {
        challenge: challenge.to_owned(),
        kind: FactorKind::Totp.into(),
        code: code.to_owned(),
    };
    let answer = AuthenticationServiceClient::new(doors.channel("iam"))
        .verify_factor(request)
        .await?;
    Ok(answer.into_inner().tokens.unwrap())
}

/// The code that an authenticator app shows now (RFC 6238).
pub fn code(secret_file: &Path) -> String {
    let text = fs::read_to_string(secret_file).unwrap();
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let bits: Vec<u8> = text
        .trim()
        .bytes()
        .filter_map(|letter| alphabet.iter().position(|known| *known == letter))
        .flat_map(|value| (0..5).rev().map(move |bit| (value >> bit & 1) as u8))
        .collect();
    let secret: Vec<u8> = bits
        .chunks_exact(8)
        .map(|byte| byte.iter().fold(0, |value, bit| value << 1 | bit))
        .collect();
    let step = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() / 30;
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &secret);
    let tag = hmac::sign(&key, &step.to_be_bytes());
    let digest = tag.as_ref();
    let offset = usize::from(digest[19] & 0x0f);
    let number = u32::from_be_bytes(digest[offset..offset + 4].try_into().unwrap()) & 0x7fff_ffff;
    format!("{:06}", number % 1_000_000)
}

/// The stable code of an error, from its details.
pub fn reason(status: &Status) -> String {
    status
        .get_details_error_info()
        .map(|info| info.reason)
        .unwrap_or_default()
}

/// The call must have found nothing to see or touch.
#[track_caller]
pub fn gone<T: std::fmt::Debug>(outcome: Result<T, Status>) {
    match outcome {
        Err(status) => assert!(
            matches!(status.code(), Code::NotFound | Code::PermissionDenied),
            "refused for another reason: {status:?}"
        ),
        Ok(answer) => panic!("another tenant's object was reached: {answer:?}"),
    }
}

/// The call must have been forbidden.
#[track_caller]
pub fn forbidden<T: std::fmt::Debug>(outcome: Result<T, Status>) {
    match outcome {
        Err(status) => assert_eq!(status.code(), Code::PermissionDenied, "{status:?}"),
        Ok(answer) => panic!("it was allowed: {answer:?}"),
    }
}
