use std::{
    convert::Infallible,
    future::Future,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, LazyLock, Mutex, PoisonError},
    task::{Context, Poll},
    time::Instant,
};

use chrono::Utc;
use futures::future::BoxFuture;
use garrison_proto::{
    TenantId,
    audit::v1::{AuditRecord, Decision},
    to_timestamp,
};
use opentelemetry::{KeyValue, metrics::Counter, trace::TraceContextExt};
use tonic::{
    body::Body,
    transport::server::{TcpConnectInfo, TlsConnectInfo},
};
use tower::{Layer, Service};
use uuid::Uuid;

use crate::{
    authorize::{Authorizer, Effect, Verdict},
    caller::{Caller, Principal},
    denial::Denial,
    identity::{Role, SpiffeId},
    keys::{KeyRing, Refused},
    refusals::Refusals,
    token::{Rules, TokenError},
};

/// The metadata by which a service asks for a tenant.
pub const TENANT_METADATA: &str = "garrison-tenant";

/// A decision could not be recorded.
#[derive(Debug, thiserror::Error)]
#[error("recording an audit entry")]
pub struct AuditError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// Where decisions about mutating methods are recorded.
pub trait AuditSink: Send + Sync + 'static {
    /// Records durably. A call that is allowed reaches its handler only after this returned `Ok`.
    fn record(&self, record: AuditRecord) -> BoxFuture<'_, Result<(), AuditError>>;
}

/// What the layer decides with.
#[derive(Clone)]
pub struct Gate {
    service: &'static str,
    trust_domain: Arc<str>,
    rules: Arc<Rules>,
    keys: Arc<KeyRing>,
    authorizer: Arc<Authorizer>,
    audit: Arc<dyn AuditSink>,
    strangers: Arc<Mutex<Bucket>>,
    refusals: Arc<Refusals>,
}

impl Gate {
    /// A gate for the service of this name.
    pub fn new(service: &'static str, trust_domain: &str, keys: Arc<KeyRing>, audit: Arc<dyn AuditSink>) -> Self {
        Self {
            service,
            trust_domain: Arc::from(trust_domain),
            rules: Arc::new(Rules::for_trust_domain(trust_domain)),
            keys,
            authorizer: Authorizer::shared(),
            refusals: Refusals::new(Arc::clone(&audit)),
            audit,
            strangers: Arc::new(Mutex::new(Bucket::full())),
        }
    }

    /// Records the repeated refusals that were only counted so far. For the end of a service; while it runs they are
    /// recorded once a minute.
    pub async fn settle(&self) {
        self.refusals.settle().await;
    }

    async fn admit(&self, head: &Head) -> Result<Caller, Denial> {
        let effect = self.authorizer.effect(&head.method);
        let (caller, outcome) = match self.identify(head).await {
            Ok(caller) => {
                let outcome = self.authorize(&caller, head, effect);
                (caller, outcome)
            }
            Err(denial) => (Caller::anonymous(head.address), Err(denial)),
        };
        DECISIONS.add(
            1,
            &[
                KeyValue::new(
                    "method",
                    if effect.is_some() {
                        head.method.clone()
                    } else {
                        "unknown".to_owned()
                    },
                ),
                KeyValue::new("decision", if outcome.is_ok() { "allow" } else { "deny" }),
                KeyValue::new("code", outcome.as_ref().err().map(Denial::code).unwrap_or_default()),
            ],
        );
        if let Err(denial) = &outcome {
            tracing::info!(
                method = %head.method, caller = %caller.principal, tenant = %caller.tenant,
                code = denial.code(), "refused: {denial}"
            );
        }
        if effect != Some(Effect::Mutates) {
            return outcome.map(|()| caller);
        }
        let record = self.record(&caller, head, &outcome);
        match outcome {
            Ok(()) => match self.audit.record(record).await {
                Ok(()) => Ok(caller),
                Err(error) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error, method = %head.method,
                        "the audit record was not stored; the call was not carried out"
                    );
                    Err(Denial::AuditUnavailable)
                }
            },
            Err(denial) => {
                if caller.principal != Principal::Anonymous {
                    self.refusals.take(&caller, denial.code(), record).await;
                } else if self.strangers.lock().unwrap_or_else(PoisonError::into_inner).take() {
                    if let Err(error) = self.audit.record(record).await {
                        tracing::error!(
                            error = &error as &dyn std::error::Error, method = %head.method,
                            "the audit record of a refusal was not stored"
                        );
                    }
                } else {
                    SUPPRESSED.add(1, &[]);
                }
                Err(denial)
            }
        }
    }

    /// A token counts before a certificate, because a service may carry a person's call; one that is wrong is
    /// refused and never falls back.
    async fn identify(&self, head: &Head) -> Result<Caller, Denial> {
        let certificate = match &head.certificate {
            Some(der) => Some(
                SpiffeId::from_certificate(der)
                    .and_then(|id| id.within(&self.trust_domain))
                    .map_err(|e| Denial::WrongCertificate(e.to_string()))?,
            ),
            None => None,
        };
        if let Some(authorization) = &head.authorization {
            return self.person(authorization, head).await;
        }
        let Some(id) = certificate else {
            return Ok(Caller::anonymous(head.address));
        };
        let (principal, tenant) = match id.role() {
            Role::Service(name) => {
                let tenant = match &head.tenant {
                    Some(text) => parse_tenant(text)?,
                    None => TenantId::system(),
                };
                (Principal::Service { name: name.clone() }, tenant)
            }
            Role::Enforcer(node) => (Principal::Enforcer { node: node.clone() }, TenantId::system()),
        };
        Ok(Caller {
            tenant,
            principal,
            ..Caller::anonymous(head.address)
        })
    }

    async fn person(&self, authorization: &[u8], head: &Head) -> Result<Caller, Denial> {
        let bad = |reason: &str| Denial::BadToken(reason.to_owned());
        let text = std::str::from_utf8(authorization).map_err(|_| bad("authorization is not text"))?;
        let token = match text.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
            _ => return Err(bad("authorization is not `Bearer <token>`")),
        };
        let claims = self
            .keys
            .verify(token, &self.rules, Utc::now())
            .await
            .map_err(|refused| match refused {
                Refused::Unready => Denial::KeysUnavailable,
                Refused::Revoked => Denial::Revoked,
                Refused::Token(TokenError::UnknownKey(id)) => Denial::UnknownKey(id),
                Refused::Token(error @ (TokenError::Expired { .. } | TokenError::NotYet { .. })) => {
                    Denial::Expired(error.to_string())
                }
                Refused::Token(error) => Denial::BadToken(error.to_string()),
            })?;
        let id = claims.user().ok_or_else(|| bad("sub is not a user"))?;
        if let Some(asked) = &head.tenant
            && asked.as_slice() != claims.tenant.as_str().as_bytes()
        {
            return Err(Denial::BadTenant(
                "the token is of another tenant; leave this metadata out".to_owned(),
            ));
        }
        Ok(Caller {
            tenant: claims.tenant.clone(),
            principal: Principal::User {
                id,
                login: claims.preferred_username.clone(),
            },
            second_factor: claims.second_factor(),
            session: Some(claims.sid),
            roles: claims.roles,
            address: head.address,
        })
    }

    fn authorize(&self, caller: &Caller, head: &Head, effect: Option<Effect>) -> Result<(), Denial> {
        let anonymous = caller.principal == Principal::Anonymous;
        if effect.is_none() {
            // Strangers do not learn which methods exist.
            return Err(if anonymous {
                Denial::NoCredentials
            } else {
                Denial::UnknownMethod(head.method.clone())
            });
        }
        match self.authorizer.decide(caller, &head.method) {
            Verdict::Allow => Ok(()),
            Verdict::Deny if anonymous => Err(Denial::NoCredentials),
            Verdict::SecondFactor => Err(Denial::SecondFactor {
                method: head.method.clone(),
            }),
            Verdict::Deny => Err(Denial::Forbidden {
                principal: caller.principal.to_string(),
                method: head.method.clone(),
                tenant: caller.tenant.to_string(),
            }),
        }
    }

    fn record(&self, caller: &Caller, head: &Head, outcome: &Result<(), Denial>) -> AuditRecord {
        let now = Utc::now();
        let (decision, reason) = match outcome {
            Ok(()) => (Decision::Allow, String::new()),
            Err(denial) => (Decision::Deny, format!("{}: {denial}", denial.code())),
        };
        AuditRecord {
            record_id: Uuid::now_v7().to_string(),
            time: Some(to_timestamp(now)),
            tenant: caller.tenant.to_string(),
            service: self.service.to_owned(),
            actor: Some(caller.actor()),
            action: head.method.clone(),
            resource: String::new(),
            decision: decision.into(),
            reason,
            details: Default::default(),
            trace_id: head.trace_id.clone(),
            request_sha256: String::new(),
        }
    }
}

fn parse_tenant(value: &[u8]) -> Result<TenantId, Denial> {
    let text = String::from_utf8_lossy(value);
    text.parse()
        .map_err(|e: garrison_proto::InvalidTenant| Denial::BadTenant(e.to_string()))
}

/// Refusals of strangers that are recorded: a hundred at once, ten a second for long. More are only counted, or
/// anyone who reaches the port could fill the audit log.
#[derive(Debug)]
struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    const SIZE: f64 = 100.0;
    const PER_SECOND: f64 = 10.0;

    fn full() -> Self {
        Self {
            tokens: Self::SIZE,
            filled: Instant::now(),
        }
    }

    fn take(&mut self) -> bool {
        let now = Instant::now();
        let gained = now.duration_since(self.filled).as_secs_f64() * Self::PER_SECOND;
        self.tokens = (self.tokens + gained).min(Self::SIZE);
        self.filled = now;
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}

static DECISIONS: LazyLock<Counter<u64>> = LazyLock::new(|| {
    opentelemetry::global::meter("garrison.auth")
        .u64_counter("garrison_auth_decisions")
        .with_description("Requests admitted or refused, by method and code")
        .build()
});

static SUPPRESSED: LazyLock<Counter<u64>> = LazyLock::new(|| {
    opentelemetry::global::meter("garrison.auth")
        .u64_counter("garrison_auth_audit_suppressed")
        .with_description("Refusals of strangers that were counted instead of recorded, because there were too many")
        .build()
});

/// What is read off a request before its body.
#[derive(Debug)]
struct Head {
    /// `package.Service/Method`.
    method: String,
    certificate: Option<Vec<u8>>,
    authorization: Option<Vec<u8>>,
    tenant: Option<Vec<u8>>,
    address: Option<IpAddr>,
    trace_id: String,
}

impl Head {
    fn of<B>(request: &http::Request<B>) -> Self {
        let header = |name: &str| request.headers().get(name).map(|value| value.as_bytes().to_vec());
        let connection = request.extensions().get::<TlsConnectInfo<TcpConnectInfo>>();
        let certificate = connection
            .and_then(TlsConnectInfo::peer_certs)
            .and_then(|chain| chain.first().map(|leaf| leaf.to_vec()));
        let address = connection
            .and_then(|info| info.get_ref().remote_addr())
            .map(|address| address.ip().to_canonical());
        Self {
            method: request.uri().path().trim_start_matches('/').chars().take(200).collect(),
            certificate,
            authorization: header("authorization"),
            tenant: header(TENANT_METADATA),
            address,
            trace_id: trace_id(request),
        }
    }
}

fn trace_id<B>(request: &http::Request<B>) -> String {
    let context = opentelemetry::Context::current();
    let span = context.span().span_context().clone();
    if span.is_valid() {
        return span.trace_id().to_string();
    }
    // W3C Trace Context: version, trace id, parent id, flags.
    request
        .headers()
        .get("traceparent")
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split('-').nth(1))
        .filter(|id| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()))
        .unwrap_or_default()
        .to_owned()
}

/// Authenticates, authorises and records every request of a gRPC server before its handler sees it.
#[derive(Clone)]
pub struct AuthLayer {
    gate: Gate,
}

impl AuthLayer {
    /// A layer that decides with `gate`.
    pub fn new(gate: Gate) -> Self {
        Self { gate }
    }
}

impl<S> Layer<S> for AuthLayer {
    type Service = AuthService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        AuthService {
            inner,
            gate: self.gate.clone(),
        }
    }
}

/// See [`AuthLayer`].
#[derive(Clone)]
pub struct AuthService<S> {
    inner: S,
    gate: Gate,
}

impl<S, B> Service<http::Request<B>> for AuthService<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        // The clone takes the place of the one that was polled ready (tower's rule).
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        let gate = self.gate.clone();
        Box::pin(async move {
            let head = Head::of(&request);
            match gate.admit(&head).await {
                Ok(caller) => {
                    request.headers_mut().remove(http::header::AUTHORIZATION);
                    request.extensions_mut().insert(caller);
                    inner.call(request).await
                }
                Err(denial) => Ok(denial.into_status().into_http()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_fill_a_bounded_part_of_the_audit_log() {
        let mut bucket = Bucket::full();
        let taken = (0..10_000).filter(|_| bucket.take()).count();
        assert!((100..=102).contains(&taken), "{taken}");
    }

    #[test]
    fn reads_the_trace_from_the_header_only_when_it_is_one() {
        let with = |value: &str| {
            let request = http::Request::builder().header("traceparent", value).body(()).unwrap();
            trace_id(&request)
        };
        assert_eq!(
            with("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            "0af7651916cd43dd8448eb211c80319c"
        );
        assert_eq!(with("00-xyz-b7ad6b7169203331-01"), "");
        assert_eq!(with(""), "");
    }
}
