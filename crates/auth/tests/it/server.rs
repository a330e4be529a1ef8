//! A server as services run it: TLS with optional client certificates, the layer, one real gRPC service.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use chrono::{TimeDelta, Utc};
use futures::future::BoxFuture;
use garrison_auth::{
    AuditError, AuditSink, AuthLayer, Caller, Gate, JwkSet, KeyRing, PublicKey, SpiffeId, TlsIdentity, caller,
    token::{self, Claims, Rules},
};
use garrison_proto::{
    alert::v1::{
        FinishLearningRequest, FinishLearningResponse, GetModelRequest, GetModelResponse, ListDetectorsRequest,
        ListDetectorsResponse, ListIndicatorFeedsRequest, ListIndicatorFeedsResponse, LookupIndicatorRequest,
        LookupIndicatorResponse, StartLearningRequest, StartLearningResponse,
        detection_service_client::DetectionServiceClient,
        detection_service_server::{DetectionService, DetectionServiceServer},
    },
    audit::v1::AuditRecord,
};
use ring::{
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair},
};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, transport::Channel};
use tonic_types::StatusExt;
use uuid::Uuid;

use crate::certificates::{Authority, DOMAIN};

#[derive(Default)]
pub(crate) struct Recorder {
    pub(crate) records: Mutex<Vec<AuditRecord>>,
    pub(crate) broken: AtomicBool,
}

impl AuditSink for Recorder {
    fn record(&self, record: AuditRecord) -> BoxFuture<'_, Result<(), AuditError>> {
        Box::pin(async move {
            if self.broken.load(Ordering::SeqCst) {
                return Err(AuditError("the disk is full".into()));
            }
            self.records.lock().unwrap().push(record);
            Ok(())
        })
    }
}

struct Detection {
    seen: Arc<Mutex<Vec<Caller>>>,
    recorder: Arc<Recorder>,
}

impl Detection {
    fn note<T>(&self, request: &Request<T>) -> Result<(), Status> {
        assert!(
            request.metadata().get("authorization").is_none(),
            "the handler was handed the token"
        );
        self.seen.lock().unwrap().push(caller(request)?);
        Ok(())
    }
}

#[tonic::async_trait]
impl DetectionService for Detection {
    async fn list_detectors(
        &self,
        request: Request<ListDetectorsRequest>,
    ) -> Result<Response<ListDetectorsResponse>, Status> {
        self.note(&request)?;
        Ok(Response::new(ListDetectorsResponse::default()))
    }

    async fn get_model(&self, request: Request<GetModelRequest>) -> Result<Response<GetModelResponse>, Status> {
        self.note(&request)?;
        Ok(Response::new(GetModelResponse::default()))
    }

    async fn start_learning(
        &self,
        request: Request<StartLearningRequest>,
    ) -> Result<Response<StartLearningResponse>, Status> {
        assert!(
            !self.recorder.records.lock().unwrap().is_empty(),
            "the handler ran before the record was made"
        );
        self.note(&request)?;
        Ok(Response::new(StartLearningResponse::default()))
    }

    async fn finish_learning(
        &self,
        request: Request<FinishLearningRequest>,
    ) -> Result<Response<FinishLearningResponse>, Status> {
        self.note(&request)?;
        Ok(Response::new(FinishLearningResponse::default()))
    }

    async fn list_indicator_feeds(
        &self,
        request: Request<ListIndicatorFeedsRequest>,
    ) -> Result<Response<ListIndicatorFeedsResponse>, Status> {
        self.note(&request)?;
        Ok(Response::new(ListIndicatorFeedsResponse::default()))
    }

    async fn lookup_indicator(
        &self,
        request: Request<LookupIndicatorRequest>,
    ) -> Result<Response<LookupIndicatorResponse>, Status> {
        self.note(&request)?;
        Ok(Response::new(LookupIndicatorResponse::default()))
    }
}

pub(crate) struct Fixture {
    pub(crate) authority: Authority,
    pub(crate) endpoint: String,
    pub(crate) identity: Arc<TlsIdentity>,
    pub(crate) ring: Arc<KeyRing>,
    pub(crate) key: Ed25519KeyPair,
    pub(crate) seen: Arc<Mutex<Vec<Caller>>>,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) gate: Gate,
}

pub(crate) fn new_key() -> Ed25519KeyPair {
    let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
    Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap()
}

pub(crate) fn set(id: &str, key: &Ed25519KeyPair) -> JwkSet {
    let bytes = key.public_key().as_ref().try_into().unwrap();
    let id = id.to_owned();
    JwkSet {
        keys: vec![PublicKey { id, bytes }],
    }
}

impl Fixture {
    /// A server that knows keys and revocations.
    pub(crate) async fn start() -> Self {
        let fixture = Self::start_without_keys().await;
        fixture.ring.set_keys(&set("k1", &fixture.key));
        fixture.ring.add_revocations([], Utc::now());
        fixture
    }

    pub(crate) async fn start_without_keys() -> Self {
        let authority = Authority::new();
        let identity = TlsIdentity::load(authority.identity("svc/anomaly"), DOMAIN).unwrap();
        let ring = Arc::new(KeyRing::new());
        let (seen, recorder) = (Arc::default(), Arc::new(Recorder::default()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        let tls = Arc::clone(&identity);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (sender, acceptor) = (sender.clone(), TlsAcceptor::from(tls.server_config()));
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        let _ = sender.send(Ok::<_, std::io::Error>(stream)).await;
                    }
                });
            }
        });
        let sink: Arc<dyn AuditSink> = Arc::clone(&recorder) as _;
        let gate = Gate::new("anomaly", DOMAIN, Arc::clone(&ring), sink);
        let detection = Detection {
            seen: Arc::clone(&seen),
            recorder: Arc::clone(&recorder),
        };
        tokio::spawn(
            tonic::transport::Server::builder()
                .layer(AuthLayer::new(gate.clone()))
                .add_service(DetectionServiceServer::new(detection))
                .serve_with_incoming(ReceiverStream::new(receiver)),
        );
        Self {
            authority,
            endpoint,
            identity,
            ring,
            key: new_key(),
            seen,
            recorder,
            gate,
        }
    }

    pub(crate) fn anomaly() -> SpiffeId {
        SpiffeId::service(DOMAIN, "anomaly").unwrap()
    }

    /// A client without a certificate.
    pub(crate) fn stranger(&self) -> DetectionServiceClient<Channel> {
        let ca_file = self.authority.ca_file();
        let channel = garrison_auth::client::anonymous_channel(&ca_file, &self.endpoint, &Self::anomaly()).unwrap();
        DetectionServiceClient::new(channel)
    }

    /// A client with the certificate of an identity of the fleet.
    pub(crate) fn peer(&self, name: &str) -> DetectionServiceClient<Channel> {
        let identity = TlsIdentity::load(self.authority.identity(name), DOMAIN).unwrap();
        let channel = garrison_auth::client::channel(&identity, &self.endpoint, &Self::anomaly()).unwrap();
        DetectionServiceClient::new(channel)
    }

    pub(crate) fn claims(&self) -> Claims {
        let rules = Rules::for_trust_domain(DOMAIN);
        let now = Utc::now();
        Claims {
            iss: rules.issuer,
            aud: rules.audience,
            sub: format!("users/{}", Uuid::now_v7()),
            preferred_username: "eva".to_owned(),
            tenant: "acme".parse().unwrap(),
            sid: Uuid::now_v7(),
            roles: vec!["analyst".to_owned()],
            amr: vec!["pwd".to_owned(), "otp".to_owned()],
            iat: now.timestamp(),
            nbf: now.timestamp(),
            exp: (now + TimeDelta::minutes(5)).timestamp(),
            jti: Uuid::now_v7(),
        }
    }

    pub(crate) fn token(&self, change: impl FnOnce(&mut Claims)) -> String {
        let mut claims = self.claims();
        change(&mut claims);
        token::sign(&self.key, "k1", &claims)
    }

    pub(crate) fn records(&self) -> Vec<AuditRecord> {
        self.recorder.records.lock().unwrap().clone()
    }

    pub(crate) fn handled(&self) -> usize {
        self.seen.lock().unwrap().len()
    }
}

pub(crate) fn bearer<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

/// The gRPC code and the stable code of a refusal.
pub(crate) fn refusal<T: std::fmt::Debug>(result: Result<T, Status>) -> (tonic::Code, String) {
    let status = result.unwrap_err();
    let info = status.get_details_error_info();
    let reason = info.map(|info| {
        assert_eq!(info.domain, "garrison.dev");
        info.reason
    });
    (status.code(), reason.unwrap_or_else(|| status.to_string()))
}
