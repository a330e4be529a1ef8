//! iam's side of the two calls that every service makes, as a service of its own: real certificates, real gRPC.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use chrono::{TimeDelta, Utc};
use futures::future::BoxFuture;
use garrison_auth::{
    AuditError, AuditSink, AuthLayer, Gate, JwkSet, KeyRing, PublicKey, TlsFiles, TlsIdentity,
    token::{self, Claims, Rules},
};
use garrison_proto::{
    audit::v1::AuditRecord,
    iam::v1::{
        ChangePasswordRequest, ChangePasswordResponse, ConfirmTotpRequest, ConfirmTotpResponse, EnrollTotpRequest,
        EnrollTotpResponse, GetCallerRequest, GetCallerResponse, GetKeySetRequest, GetKeySetResponse,
        ListRevocationsRequest, ListRevocationsResponse, LoginRequest, LoginResponse, LogoutRequest, LogoutResponse,
        RefreshTokenRequest, RefreshTokenResponse, Revocation, VerifyFactorRequest, VerifyFactorResponse,
        authentication_service_server::{AuthenticationService, AuthenticationServiceServer},
    },
};
use garrison_testkit::{IdentityFiles, TRUST_DOMAIN};
use ring::{
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair},
};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use uuid::Uuid;

pub(crate) struct Iam {
    key: Ed25519KeyPair,
    revoked: Arc<Mutex<Vec<Revocation>>>,
}

struct Answers {
    jwks: String,
    revoked: Arc<Mutex<Vec<Revocation>>>,
}

struct NoRecords;

impl AuditSink for NoRecords {
    fn record(&self, _: AuditRecord) -> BoxFuture<'_, Result<(), AuditError>> {
        Box::pin(async { Err(AuditError("nothing here changes anything".into())) })
    }
}

impl Iam {
    pub(crate) fn new() -> Self {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self {
            key: Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap(),
            revoked: Arc::default(),
        }
    }

    pub(crate) async fn serve(&self, address: SocketAddr, files: IdentityFiles) {
        let files = TlsFiles {
            cert_file: files.cert_file,
            key_file: files.key_file,
            ca_file: files.ca_file,
        };
        let identity = TlsIdentity::load(files, TRUST_DOMAIN).unwrap();
        let listener = TcpListener::bind(address).await.unwrap();
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (sender, acceptor) = (sender.clone(), TlsAcceptor::from(identity.server_config()));
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        let _ = sender.send(Ok::<_, std::io::Error>(stream)).await;
                    }
                });
            }
        });
        let bytes = self.key.public_key().as_ref().try_into().unwrap();
        let keys = JwkSet {
            keys: vec![PublicKey { id: "k1".into(), bytes }],
        };
        let answers = Answers {
            jwks: keys.to_json(),
            revoked: Arc::clone(&self.revoked),
        };
        let gate = Gate::new("iam", TRUST_DOMAIN, Arc::new(KeyRing::new()), Arc::new(NoRecords));
        tokio::spawn(
            tonic::transport::Server::builder()
                .layer(AuthLayer::new(gate))
                .add_service(AuthenticationServiceServer::new(answers))
                .serve_with_incoming(ReceiverStream::new(receiver)),
        );
    }

    pub(crate) fn revoke_listed(&self, session: Uuid) {
        let now = Utc::now();
        self.revoked.lock().unwrap().push(Revocation {
            tenant: "acme".into(),
            session: format!("sessions/{session}"),
            time: Some(garrison_proto::to_timestamp(now)),
            until: Some(garrison_proto::to_timestamp(now + TimeDelta::minutes(10))),
        });
    }

    pub(crate) fn token(&self, session: Uuid) -> String {
        let (rules, now) = (Rules::for_trust_domain(TRUST_DOMAIN), Utc::now().timestamp());
        let claims = Claims {
            iss: rules.issuer,
            aud: rules.audience,
            sub: format!("users/{}", Uuid::now_v7()),
            preferred_username: "eva".into(),
            tenant: "acme".parse().unwrap(),
            sid: session,
            roles: vec!["analyst".into()],
            amr: vec!["pwd".into(), "otp".into()],
            iat: now,
            nbf: now,
            exp: now + 600,
            jti: Uuid::now_v7(),
        };
        token::sign(&self.key, "k1", &claims)
    }
}

macro_rules! elsewhere {
    ($($method:ident: $request:ty => $response:ty),* $(,)?) => {
        #[tonic::async_trait]
        impl AuthenticationService for Answers {
            async fn get_key_set(&self, _: Request<GetKeySetRequest>) -> Result<Response<GetKeySetResponse>, Status> {
                Ok(Response::new(GetKeySetResponse { jwks_json: self.jwks.clone() }))
            }

            async fn list_revocations(
                &self,
                _: Request<ListRevocationsRequest>,
            ) -> Result<Response<ListRevocationsResponse>, Status> {
                Ok(Response::new(ListRevocationsResponse { revocations: self.revoked.lock().unwrap().clone() }))
            }

            $(async fn $method(&self, _: Request<$request>) -> Result<Response<$response>, Status> {
                Err(Status::unimplemented("not part of these tests"))
            })*
        }
    };
}

elsewhere! {
    login: LoginRequest => LoginResponse,
    verify_factor: VerifyFactorRequest => VerifyFactorResponse,
    refresh_token: RefreshTokenRequest => RefreshTokenResponse,
    logout: LogoutRequest => LogoutResponse,
    get_caller: GetCallerRequest => GetCallerResponse,
    enroll_totp: EnrollTotpRequest => EnrollTotpResponse,
    confirm_totp: ConfirmTotpRequest => ConfirmTotpResponse,
    change_password: ChangePasswordRequest => ChangePasswordResponse,
}
