//! Tokens and certificates that must open nothing, on every service's port; and revocation.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use garrison_auth::token::{Claims, Rules, sign};
use garrison_proto::{
    alert::v1::{GetModelRequest, StartLearningRequest, detection_service_client::DetectionServiceClient},
    compliance::v1::{
        CreateReportRequest, GetCheckpointRequest, report_service_client::ReportServiceClient,
        transparency_log_service_client::TransparencyLogServiceClient,
    },
    flow::v1::{FetchPacketSliceRequest, ListSensorsRequest, flow_service_client::FlowServiceClient},
    forensics::v1::{DownloadBundleRequest, ListBundlesRequest, evidence_service_client::EvidenceServiceClient},
    iam::v1::{
        GetCallerRequest, ListSessionsRequest, ListUsersRequest, RefreshTokenRequest, RevokeSessionRequest,
        authentication_service_client::AuthenticationServiceClient, user_service_client::UserServiceClient,
    },
    policy::v1::{ApplyPolicyRequest, ListPoliciesRequest, policy_service_client::PolicyServiceClient},
    response::v1::{
        CreateResponseRequest, ListIncidentsRequest, incident_service_client::IncidentServiceClient,
        response_service_client::ResponseServiceClient,
    },
};
use garrison_testkit::{Fleet, IdentityFiles, TRUST_DOMAIN, bootstrap::SERVICES};
use rcgen::{CertificateParams, DistinguishedName, DnType, Issuer, KeyPair, SanType};
use ring::{
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair as _},
};
use tonic::{Code, Status, service::interceptor::InterceptedService, transport::Channel};
use uuid::Uuid;

use crate::{
    calls::{Bearer, Doors, log_in, reason},
    place::{folder, run},
    stimuli::tenant,
    world::{ACME, World, options, sensors},
};

/// Calls something harmless of a service, with a token.
async fn knock(doors: &Doors, service: &str, token: &str) -> Result<(), Status> {
    knock_on(
        InterceptedService::new(doors.channel(service), Bearer::new(token)),
        service,
    )
    .await
}

async fn knock_on<T>(channel: T, service: &str) -> Result<(), Status>
where
    T: tonic::client::GrpcService<tonic::body::Body>,
    T::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    T::ResponseBody: tonic::transport::Body<Data = bytes::Bytes> + Send + 'static,
    <T::ResponseBody as tonic::transport::Body>::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
{
    match service {
        "flow-ingest" => FlowServiceClient::new(channel)
            .list_sensors(ListSensorsRequest {})
            .await
            .map(drop),
        "anomaly" => DetectionServiceClient::new(channel)
            .get_model(GetModelRequest {})
            .await
            .map(drop),
        "policy" => PolicyServiceClient::new(channel)
            .list_policies(ListPoliciesRequest::default())
            .await
            .map(drop),
        "responder" => IncidentServiceClient::new(channel)
            .list_incidents(ListIncidentsRequest::default())
            .await
            .map(drop),
        "forensics" => EvidenceServiceClient::new(channel)
            .list_bundles(ListBundlesRequest::default())
            .await
            .map(drop),
        "compliance" => TransparencyLogServiceClient::new(channel)
            .get_checkpoint(GetCheckpointRequest {})
            .await
            .map(drop),
        "iam" => AuthenticationServiceClient::new(channel)
            .get_caller(GetCallerRequest {})
            .await
            .map(drop),
        other => panic!("{other} is no service"),
    }
}

/// Tries to change something of a service without being a person.
async fn meddle(channel: Channel, service: &str) -> Result<(), Status> {
    match service {
        "flow-ingest" => FlowServiceClient::new(channel)
            .fetch_packet_slice(FetchPacketSliceRequest::default())
            .await
            .map(drop),
        "anomaly" => DetectionServiceClient::new(channel)
            .start_learning(StartLearningRequest::default())
            .await
            .map(drop),
        "policy" => PolicyServiceClient::new(channel)
            .apply_policy(ApplyPolicyRequest::default())
            .await
            .map(drop),
        "responder" => ResponseServiceClient::new(channel)
            .create_response(CreateResponseRequest::default())
            .await
            .map(drop),
        "forensics" => EvidenceServiceClient::new(channel)
            .download_bundle(DownloadBundleRequest::default())
            .await
            .map(drop),
        "compliance" => ReportServiceClient::new(channel)
            .create_report(CreateReportRequest::default())
            .await
            .map(drop),
        "iam" => UserServiceClient::new(channel)
            .list_users(ListUsersRequest::default())
            .await
            .map(drop),
        other => panic!("{other} is no service"),
    }
}

fn claims() -> Claims {
    let rules = Rules::for_trust_domain(TRUST_DOMAIN);
    let now = chrono::Utc::now().timestamp();
    Claims {
        iss: rules.issuer,
        aud: rules.audience,
        sub: format!("users/{}", Uuid::now_v7()),
        preferred_username: "admin".to_owned(),
        tenant: tenant(ACME),
        sid: Uuid::now_v7(),
        roles: ["admin", "auditor", "analyst"].map(str::to_owned).to_vec(),
        amr: vec!["pwd".to_owned(), "otp".to_owned()],
        iat: now - 5,
        nbf: now - 5,
        exp: now + 300,
        jti: Uuid::now_v7(),
    }
}

fn part(token: &str, at: usize) -> serde_json::Value {
    let part = token.split('.').nth(at).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

fn encoded(value: &serde_json::Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

#[test]
fn forged_expired_and_foreign_tokens_open_nothing() {
    run(async {
        let world = World::shared().await;
        let good = world.log_in(ACME, "reader").await.access;
        let key = Ed25519KeyPair::from_pkcs8(Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap().as_ref());
        let key = key.unwrap();
        let known = part(&good, 0)["kid"].as_str().unwrap().to_owned();
        let body = good.split('.').nth(1).unwrap();
        let signature = good.split('.').nth(2).unwrap();
        let header = |value: serde_json::Value| encoded(&value);

        let mut promoted = part(&good, 1);
        promoted["roles"] = serde_json::json!(["admin"]);
        let mut moved = part(&good, 1);
        moved["tenant"] = "globex".into();
        let mut lengthened = part(&good, 1);
        lengthened["exp"] = (chrono::Utc::now().timestamp() + 1800).into();
        let mut expired = claims();
        (expired.iat, expired.nbf, expired.exp) = (expired.iat - 900, expired.nbf - 900, expired.exp - 900);
        // An HMAC keyed with the public key fools verifiers that let the token choose.
        let public = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key.public_key().as_ref());
        let hmac_head = header(serde_json::json!({ "alg": "HS256", "kid": known }));
        let hmac_text = format!("{hmac_head}.{body}");
        let hmac = URL_SAFE_NO_PAD.encode(ring::hmac::sign(&public, hmac_text.as_bytes()));
        let first = good.split('.').next().unwrap();
        let cases: BTreeMap<&str, String> = [
            ("no token at all", String::new()),
            ("garbage", "not.a.token".to_owned()),
            (
                "alg none",
                format!("{}.{body}.", header(serde_json::json!({ "alg": "none", "kid": known }))),
            ),
            (
                "alg none with the signature",
                format!("{}.{body}.{signature}", header(serde_json::json!({ "alg": "none" }))),
            ),
            ("alg HS256", format!("{hmac_text}.{hmac}")),
            ("another key under a known id", sign(&key, &known, &claims())),
            ("another key under its own id", sign(&key, "mine", &claims())),
            (
                "an embedded key",
                format!(
                    "{}.{body}.{signature}",
                    header(serde_json::json!({ "alg": "EdDSA", "kid": known, "jwk": { "kty": "OKP" } }))
                ),
            ),
            ("roles changed", format!("{first}.{}.{signature}", encoded(&promoted))),
            ("tenant changed", format!("{first}.{}.{signature}", encoded(&moved))),
            ("time changed", format!("{first}.{}.{signature}", encoded(&lengthened))),
            (
                "signature cut",
                format!("{first}.{body}.{}", &signature[..signature.len() - 4]),
            ),
            ("no signature", format!("{first}.{body}.")),
            ("expired and of another key", sign(&key, &known, &expired)),
            ("very long", "x".repeat(5_000)),
        ]
        .into();
        for service in SERVICES {
            knock(&world.doors, service, &good).await.unwrap();
            for (what, token) in &cases {
                match knock(&world.doors, service, token).await {
                    Err(status) => assert_eq!(status.code(), Code::Unauthenticated, "{what} at {service}: {status:?}"),
                    Ok(()) => panic!("{service} took a token: {what}"),
                }
            }
            let nobody = knock_on(world.doors.channel(service), service).await.unwrap_err();
            assert_eq!(
                (nobody.code(), reason(&nobody).as_str()),
                (Code::Unauthenticated, "GAR-AUTH-0001"),
                "{service}"
            );
        }
    });
}

#[test]
fn certificates_of_others_open_nothing() {
    run(async {
        let world = World::shared().await;
        let pki = world.fleet.pki().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let foreign_domain = certificate_of_domain(&pki.ca_file(), dir.path(), "evil.example");
        let other_authority = garrison_testkit::Pki::open_or_create(&dir.path().join("pki"), TRUST_DOMAIN).unwrap();
        let other_authority = other_authority.identity("svc/responder").unwrap();
        for service in SERVICES {
            // Our authority, another trust domain: recognised, and refused.
            let channel = world.doors.channel_with(service, &foreign_domain, "evil.example");
            let refused = knock_on(channel, service).await.unwrap_err();
            assert_eq!(
                (refused.code(), reason(&refused).as_str()),
                (Code::Unauthenticated, "GAR-AUTH-0007"),
                "{service}"
            );
            // Another authority, our names: no connection.
            let channel = world.doors.channel_with(service, &other_authority, TRUST_DOMAIN);
            let refused = knock_on(channel, service).await.unwrap_err();
            assert!(
                matches!(
                    refused.code(),
                    Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled
                ),
                "{service}: {refused:?}"
            );
            // Services of the fleet that have no business here.
            let mut strangers = vec!["svc/nats", "svc/bus-admin", "enforcer/router"];
            strangers.extend(["svc/flow-ingest", "svc/anomaly", "svc/iam"]);
            for stranger in strangers {
                let channel = world
                    .doors
                    .channel_with(service, &pki.identity(stranger).unwrap(), TRUST_DOMAIN);
                let refused = meddle(channel, service).await.unwrap_err();
                assert_eq!(
                    (refused.code(), reason(&refused).as_str()),
                    (Code::PermissionDenied, "GAR-AUTH-0006"),
                    "{stranger} at {service}: {refused:?}"
                );
            }
            // A caller that meant another service notices.
            let other = if service == "iam" { "responder" } else { "iam" };
            let mistaken = knock_on(world.doors.channel_expecting(service, other), service)
                .await
                .unwrap_err();
            assert_eq!(mistaken.code(), Code::Unavailable, "{service}: {mistaken:?}");
        }
    });
}

// Signed by the fleet's own authority, whose distinguished name must be given as it stands in its certificate.
fn certificate_of_domain(ca_file: &std::path::Path, dir: &std::path::Path, domain: &str) -> IdentityFiles {
    let named = |name: String| {
        let mut distinguished = DistinguishedName::new();
        distinguished.push(DnType::CommonName, name);
        distinguished
    };
    let ca_key = std::fs::read_to_string(ca_file.with_file_name("ca.key")).unwrap();
    let ca_key = KeyPair::from_pem(&ca_key).unwrap();
    let mut ca_params = CertificateParams::default();
    ca_params.distinguished_name = named(format!("Garrison development CA ({TRUST_DOMAIN})"));
    let issuer = Issuer::from_params(&ca_params, &ca_key);
    let mut params = CertificateParams::default();
    params.distinguished_name = named("responder".to_owned());
    params.subject_alt_names = vec![SanType::URI(
        format!("spiffe://{domain}/svc/responder").try_into().unwrap(),
    )];
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let files = IdentityFiles {
        cert_file: dir.join("evil.pem"),
        key_file: dir.join("evil.key"),
        ca_file: ca_file.to_owned(),
    };
    std::fs::write(&files.cert_file, certificate.pem()).unwrap();
    std::fs::write(&files.key_file, key.serialize_pem()).unwrap();
    files
}

#[test]
fn a_revoked_session_is_shut_out_everywhere_and_its_open_call_ends() {
    run(async {
        let world = World::shared().await;
        let desk = world.log_in(ACME, "reader").await;
        for service in SERVICES {
            knock(&world.doors, service, &desk.access).await.unwrap();
        }
        let follow = garrison_proto::flow::v1::StreamFlowsRequest::default();
        let mut followed = desk.flows.clone().stream_flows(follow).await.unwrap().into_inner();
        let session = desk
            .authentication
            .clone()
            .get_caller(GetCallerRequest {})
            .await
            .unwrap()
            .into_inner()
            .session;
        let request = RevokeSessionRequest {
            name: session.clone(),
            user: String::new(),
        };
        let revoked = world.acme.admin.sessions.clone().revoke_session(request).await.unwrap();
        let since = Instant::now();
        assert_eq!(revoked.into_inner().revoked, 1);
        let waits = SERVICES.map(|service| {
            let (doors, access) = (world.doors.clone(), desk.access.clone());
            tokio::spawn(async move {
                loop {
                    if let Err(status) = knock(&doors, service, &access).await {
                        assert_eq!(reason(&status), "GAR-AUTH-0004", "{service}: {status:?}");
                        return (service, since.elapsed());
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    assert!(since.elapsed() < Duration::from_secs(60), "{service} never heard of it");
                }
            })
        });
        for wait in waits {
            let (service, took) = wait.await.unwrap();
            // For information: how long it takes depends on the machine.
            eprintln!("{service} refused the session {took:?} after its revocation");
        }
        // A call that was open already ends too.
        let ended = async {
            loop {
                match followed.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("the stream ended without saying why"),
                    Err(status) => return status,
                }
            }
        };
        let ended = tokio::time::timeout(Duration::from_secs(60), ended)
            .await
            .expect("the stream went on");
        assert_eq!(reason(&ended), "GAR-AUTH-0004", "{ended:?}");
        // Who hears nothing of a revocation asks within the second that is promised.
        assert!(garrison_auth::RefreshIntervals::default().revocations < Duration::from_secs(1));

        // Its refresh token is worth nothing either.
        let request = RefreshTokenRequest {
            refresh_token: desk.refresh.clone(),
        };
        let nobody = AuthenticationServiceClient::new(world.doors.channel("iam"))
            .refresh_token(request)
            .await;
        assert_eq!(nobody.unwrap_err().code(), Code::Unauthenticated);
        let left = ListSessionsRequest {
            user: format!(
                "users/{}",
                part(&desk.access, 1)["sub"].as_str().unwrap().replace("users/", "")
            ),
        };
        let left = world
            .acme
            .admin
            .sessions
            .clone()
            .list_sessions(left)
            .await
            .unwrap()
            .into_inner()
            .sessions;
        assert!(left.iter().all(|other| other.name != session));
    });
}

#[test]
fn an_access_token_ends_at_its_time_everywhere_and_its_session_goes_on() {
    const LIFE: Duration = Duration::from_secs(30);
    run(async {
        let dir = folder("expiry");
        let mut options = options(&dir, true);
        let sessions = format!(
            "[sessions]\naccess_token_seconds = {}\nidle_minutes = 5\n",
            LIFE.as_secs()
        );
        options.extra.insert("iam".to_owned(), sessions);
        options.extra.insert("flow-ingest".to_owned(), sensors(&dir));
        let fleet = match Fleet::start(options).await {
            Ok(fleet) => fleet,
            Err(error) => panic!("the fleet does not start: {error}"),
        };
        let doors = Doors::of(&fleet);
        let desk = log_in(&fleet, &doors, ACME, "reader").await;
        let issued = Instant::now();
        for service in SERVICES {
            knock(&doors, service, &desk.access).await.unwrap();
        }
        // Clocks may differ by so much.
        let over = LIFE + Duration::from_secs(garrison_auth::token::LEEWAY as u64 + 1);
        tokio::time::sleep(over.saturating_sub(issued.elapsed())).await;
        for service in SERVICES {
            let refused = knock(&doors, service, &desk.access).await.unwrap_err();
            assert_eq!(
                (refused.code(), reason(&refused).as_str()),
                (Code::Unauthenticated, "GAR-AUTH-0003"),
                "{service}: {refused:?}"
            );
        }
        let request = RefreshTokenRequest {
            refresh_token: desk.refresh,
        };
        let mut iam = AuthenticationServiceClient::new(doors.channel("iam"));
        let next = iam.refresh_token(request).await.unwrap().into_inner().tokens.unwrap();
        for service in SERVICES {
            knock(&doors, service, &next.access_token).await.unwrap();
        }
    });
}
