//! Services and node agents with certificates, and those who only pretend.

use garrison_auth::{Principal, SpiffeId, TlsError, TlsIdentity, client};
use garrison_proto::alert::v1::{
    ListDetectorsRequest, StartLearningRequest, detection_service_client::DetectionServiceClient,
};
use tonic::{Code, Request, transport::Channel};

use crate::{
    certificates::{Authority, DOMAIN},
    server::{Fixture, bearer, refusal},
};

fn for_tenant(tenant: &str) -> Request<ListDetectorsRequest> {
    let mut request = Request::new(ListDetectorsRequest {});
    request
        .metadata_mut()
        .insert("garrison-tenant", tenant.parse().unwrap());
    request
}

#[tokio::test]
async fn a_service_may_do_its_job_in_the_tenant_it_names() {
    let fixture = Fixture::start().await;
    let mut forensics = fixture.peer("svc/forensics");
    forensics.list_detectors(for_tenant("acme")).await.unwrap();
    forensics.list_detectors(ListDetectorsRequest {}).await.unwrap();
    let seen = fixture.seen.lock().unwrap().clone();
    assert_eq!(
        seen[0].principal,
        Principal::Service {
            name: "forensics".into()
        }
    );
    assert_eq!((seen[0].tenant.as_str(), seen[1].tenant.as_str()), ("acme", "system"));

    let identity = TlsIdentity::load(fixture.authority.identity("svc/compliance"), DOMAIN).unwrap();
    let channel = client::channel(&identity, &fixture.endpoint, &Fixture::anomaly()).unwrap();
    let tenant = client::for_tenant(&"globex".parse().unwrap());
    let mut compliance = DetectionServiceClient::with_interceptor(channel, tenant);
    compliance.list_detectors(ListDetectorsRequest {}).await.unwrap();
    assert_eq!(fixture.seen.lock().unwrap()[2].tenant.as_str(), "globex");

    let result = forensics.list_detectors(for_tenant("Not A Tenant")).await;
    assert_eq!(refusal(result), (Code::InvalidArgument, "GAR-AUTH-0011".to_owned()));
}

#[tokio::test]
async fn a_certificate_of_another_service_or_node_is_not_enough() {
    let fixture = Fixture::start().await;
    for name in [
        "svc/flow-ingest",
        "svc/anomaly",
        "svc/iam",
        "svc/invented",
        "enforcer/router",
    ] {
        let result = fixture.peer(name).list_detectors(ListDetectorsRequest {}).await;
        assert_eq!(
            refusal(result),
            (Code::PermissionDenied, "GAR-AUTH-0006".to_owned()),
            "{name}"
        );
    }
    refusal(
        fixture
            .peer("svc/forensics")
            .start_learning(StartLearningRequest::default())
            .await,
    );
    let record = fixture.records().remove(0);
    assert_eq!(record.actor.unwrap().name, "services/forensics");
    assert_eq!(fixture.handled(), 0);
}

#[tokio::test]
async fn a_person_s_token_counts_before_the_certificate_that_carries_it() {
    let fixture = Fixture::start().await;
    let mut carrier = fixture.peer("svc/console");
    carrier
        .list_detectors(bearer(ListDetectorsRequest {}, &fixture.token(|_| {})))
        .await
        .unwrap();
    assert!(matches!(
        fixture.seen.lock().unwrap()[0].principal,
        Principal::User { .. }
    ));
    // A bad token does not fall back to a certificate that would do.
    let mut allowed = fixture.peer("svc/forensics");
    let result = allowed.list_detectors(bearer(ListDetectorsRequest {}, "a.b.c")).await;
    assert_eq!(refusal(result).1, "GAR-AUTH-0002");
}

/// A client that presents a certificate the fleet would never load for itself.
fn odd_client(fixture: &Fixture, files: &garrison_auth::TlsFiles, domain: &str) -> DetectionServiceClient<Channel> {
    let identity = TlsIdentity::load(files.clone(), domain).unwrap();
    let channel = client::channel(&identity, &fixture.endpoint, &Fixture::anomaly()).unwrap();
    DetectionServiceClient::new(channel)
}

#[tokio::test]
async fn a_certificate_of_another_trust_domain_is_refused_even_with_a_good_token() {
    let fixture = Fixture::start().await;
    let files = fixture
        .authority
        .certificate("foreign", &["spiffe://elsewhere/svc/forensics"], |_| {});
    let mut foreign = odd_client(&fixture, &files, "elsewhere");
    let wrong = (Code::Unauthenticated, "GAR-AUTH-0007".to_owned());
    assert_eq!(refusal(foreign.list_detectors(ListDetectorsRequest {}).await), wrong);
    let with_token = foreign
        .list_detectors(bearer(ListDetectorsRequest {}, &fixture.token(|_| {})))
        .await;
    assert_eq!(refusal(with_token), wrong);
    assert_eq!(fixture.handled(), 0);
}

#[tokio::test]
async fn a_certificate_of_another_authority_or_time_does_not_connect() {
    let fixture = Fixture::start().await;
    let theirs = Authority::new();
    // They know our authority and trust us; we do not know theirs.
    let mut files = theirs.identity("svc/forensics");
    files.ca_file = fixture.authority.ca_file();
    let mut impostor = odd_client(&fixture, &files, DOMAIN);
    assert!(impostor.list_detectors(ListDetectorsRequest {}).await.is_err());

    let uri = format!("spiffe://{DOMAIN}/svc/forensics");
    let expired = fixture.authority.certificate("expired", &[&uri], |params| {
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    });
    let mut late = odd_client(&fixture, &expired, DOMAIN);
    assert!(late.list_detectors(ListDetectorsRequest {}).await.is_err());
    assert_eq!(fixture.handled(), 0);
}

#[tokio::test]
async fn a_client_talks_only_to_the_service_it_means() {
    let fixture = Fixture::start().await;
    let identity = TlsIdentity::load(fixture.authority.identity("svc/forensics"), DOMAIN).unwrap();
    let policy = SpiffeId::service(DOMAIN, "policy").unwrap();
    let channel = client::channel(&identity, &fixture.endpoint, &policy).unwrap();
    let status = DetectionServiceClient::new(channel)
        .list_detectors(ListDetectorsRequest {})
        .await
        .unwrap_err();
    let mut said = status.to_string();
    let mut source = std::error::Error::source(&status);
    while let Some(error) = source {
        said.push_str(&error.to_string());
        source = error.source();
    }
    assert!(
        said.contains("svc/anomaly, not spiffe://test.garrison/svc/policy"),
        "{said}"
    );

    // A server of another authority with the right name.
    let theirs = Authority::new();
    let trusting_them = TlsIdentity::load(theirs.identity("svc/forensics"), DOMAIN).unwrap();
    let channel = client::channel(&trusting_them, &fixture.endpoint, &Fixture::anomaly()).unwrap();
    assert!(
        DetectionServiceClient::new(channel)
            .list_detectors(ListDetectorsRequest {})
            .await
            .is_err()
    );
    assert_eq!(fixture.handled(), 0);
}

#[tokio::test]
async fn endpoints_are_https_and_nothing_else() {
    let fixture = Fixture::start().await;
    for bad in [
        "http://localhost:1",
        "localhost:1",
        "https://",
        "https://localhost:1/path",
        "",
        "unix:///x",
    ] {
        let result = client::channel(&fixture.identity, bad, &Fixture::anomaly());
        assert!(result.is_err(), "{bad:?} was taken");
    }
}

#[tokio::test]
async fn an_identity_without_exactly_one_good_spiffe_id_is_not_loaded() {
    let authority = Authority::new();
    let one = format!("spiffe://{DOMAIN}/svc/anomaly");
    for (name, uris) in [
        ("none", vec![]),
        ("two", vec![one.as_str(), "spiffe://test.garrison/svc/policy"]),
        ("web", vec!["https://localhost"]),
        ("foreign", vec!["spiffe://elsewhere/svc/anomaly"]),
    ] {
        let files = authority.certificate(name, &uris, |_| {});
        assert!(
            matches!(TlsIdentity::load(files, DOMAIN), Err(TlsError::Identity { .. })),
            "{name}"
        );
    }
    let missing = authority.files("missing");
    let error = TlsIdentity::load(missing, DOMAIN).unwrap_err().to_string();
    assert!(error.contains("missing.pem"), "{error}");
    let (a, b) = (authority.identity("svc/a"), authority.identity("svc/b"));
    let mixed = garrison_auth::TlsFiles {
        key_file: b.key_file,
        ..a
    };
    assert!(matches!(
        TlsIdentity::load(mixed, DOMAIN),
        Err(TlsError::Configuration { .. })
    ));
}

#[tokio::test]
async fn changed_certificates_are_used_and_broken_ones_are_not() {
    let fixture = Fixture::start().await;
    fixture
        .peer("svc/forensics")
        .list_detectors(ListDetectorsRequest {})
        .await
        .unwrap();
    assert!(!fixture.identity.reload().unwrap(), "nothing changed");

    let files = fixture.authority.files("svc-anomaly");
    let good = std::fs::read(&files.cert_file).unwrap();
    std::fs::write(&files.cert_file, "half a file").unwrap();
    assert!(fixture.identity.reload().is_err());
    fixture
        .peer("svc/forensics")
        .list_detectors(ListDetectorsRequest {})
        .await
        .unwrap();

    // The new certificate is another service's: clients that mean anomaly notice, so it is really in use.
    fixture
        .authority
        .certificate("svc-anomaly", &["spiffe://test.garrison/svc/policy"], |_| {});
    assert!(fixture.identity.reload().unwrap());
    assert!(
        fixture
            .peer("svc/forensics")
            .list_detectors(ListDetectorsRequest {})
            .await
            .is_err()
    );
    assert_ne!(std::fs::read(&files.cert_file).unwrap(), good);
}

#[tokio::test]
async fn unknown_methods_are_unknown_to_identities_and_shut_to_strangers() {
    let fixture = Fixture::start().await;
    let call = async |channel: Channel| {
        let mut grpc = tonic::client::Grpc::new(channel);
        grpc.ready().await.unwrap();
        let path = http::uri::PathAndQuery::from_static("/garrison.alert.v1.DetectionService/Nothing");
        let codec = tonic_prost::ProstCodec::<ListDetectorsRequest, ListDetectorsRequest>::default();
        grpc.unary(Request::new(ListDetectorsRequest {}), path, codec).await
    };
    let identity = TlsIdentity::load(fixture.authority.identity("svc/forensics"), DOMAIN).unwrap();
    let known = client::channel(&identity, &fixture.endpoint, &Fixture::anomaly()).unwrap();
    assert_eq!(
        refusal(call(known).await),
        (Code::Unimplemented, "GAR-AUTH-0012".to_owned())
    );
    let ca_file = fixture.authority.ca_file();
    let stranger = client::anonymous_channel(&ca_file, &fixture.endpoint, &Fixture::anomaly()).unwrap();
    assert_eq!(
        refusal(call(stranger).await),
        (Code::Unauthenticated, "GAR-AUTH-0001".to_owned())
    );
}
