use std::{borrow::Cow, future::Future, sync::Arc, time::Duration};

use futures::StreamExt;
use garrison_auth::{
    AuditSink, Gate, IamKeySource, KeyRing, RefreshIntervals, Revoked, SpiffeId, SpiffeRole, TlsIdentity,
};
use garrison_bus::{Bus, ConsumerSpec, Dispatch, Handler, Publisher, run_consumer};
use garrison_db::Db;
use garrison_proto::event::v1::{KeySetChanged, SessionRevoked};
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{service::Routes, transport::Channel};

use crate::{
    BoxError, ConfigError, Core, ServiceError, ServiceInfo,
    audit::{OutboxAudit, PublishAudit},
    client,
    grpc::GrpcServer,
    health,
    lifecycle::{Stages, Supervisor},
    readiness::{Readiness, ReadinessFlag},
};

/// How often the broker's and iam's state is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// How often the database is asked while it answers, and while it does not.
const PING: Duration = Duration::from_secs(5);
const PING_FAILING: Duration = Duration::from_millis(500);
/// How long the database may take to answer.
const PING_LIMIT: Duration = Duration::from_secs(1);

/// A running service: connections, identity and life cycle. It starts when its dependencies are absent, says what
/// it lacks in `/readyz`, and becomes ready when they come.
pub struct Service {
    /// What this binary is.
    pub info: ServiceInfo,
    /// The broker.
    pub bus: Bus,
    /// Publishes to the broker and waits for its acknowledgement.
    pub publisher: Publisher,
    core: Core,
    db: Option<Db>,
    identity: Arc<TlsIdentity>,
    keys: Arc<KeyRing>,
    readiness: Readiness,
    stages: Stages,
    supervisor: Supervisor,
    relaying: bool,
    registry: Registry,
}

impl Service {
    pub(crate) fn load_identity(info: &ServiceInfo, core: &Core) -> Result<Arc<TlsIdentity>, ConfigError> {
        let identity = TlsIdentity::load(core.identity.files(), &core.identity.trust_domain)
            .map_err(|e| ConfigError::invalid("core.identity", format!("{e}{}", causes(&e))))?;
        let id = identity.id();
        let fits = match id.role() {
            SpiffeRole::Service(name) => name == info.name,
            SpiffeRole::Enforcer(_) => info.name == "enforcer",
        };
        if !fits {
            return Err(ConfigError::invalid(
                "core.identity.cert_file",
                format!("the certificate is of {id}, not of the service {}", info.name),
            ));
        }
        Ok(identity)
    }

    /// A service inside another program, such as a test: it leaves the process's telemetry and signals alone and
    /// stops when [`Service::shutdown`] is cancelled. Binaries use [`crate::main`].
    ///
    /// # Errors
    /// [`ServiceError::Config`] when values or files cannot be used.
    pub async fn embedded(info: ServiceInfo, core: Core) -> Result<Self, ServiceError> {
        core.validate()?;
        let identity = Self::load_identity(&info, &core)?;
        Self::new(info, core, identity, Registry::new(), Stages::default()).await
    }

    pub(crate) async fn new(
        info: ServiceInfo,
        core: Core,
        identity: Arc<TlsIdentity>,
        registry: Registry,
        stages: Stages,
    ) -> Result<Self, ServiceError> {
        let bus = Bus::connect(&core.bus, info.name)
            .await
            .map_err(|e| ConfigError::invalid("core.bus", format!("{e}{}", causes(&e))))?;
        let db = match &core.database {
            Some(config) => {
                let db = Db::connect(config, info.schema())
                    .map_err(|e| ConfigError::invalid("core.database", format!("{e}{}", causes(&e))))?;
                Some(db)
            }
            None if info.migrator.is_some() => {
                return Err(ConfigError::invalid("core.database", "this service needs the section").into());
            }
            None => None,
        };
        let mut service = Self {
            info,
            publisher: bus.publisher(),
            bus,
            core,
            db,
            identity,
            keys: Arc::new(KeyRing::new()),
            readiness: Readiness::default(),
            stages,
            supervisor: Supervisor::default(),
            relaying: false,
            registry,
        };
        service.watch_dependencies()?;
        Ok(service)
    }

    /// The database.
    ///
    /// # Panics
    /// When the service has neither migrations nor a `core.database` section: its wiring is wrong. A service with
    /// migrations does not start without the section.
    pub fn db(&self) -> &Db {
        self.db
            .as_ref()
            .expect("the service was declared without a database and asks for one")
    }

    /// The database, for services that can do without one.
    pub fn try_db(&self) -> Option<&Db> {
        self.db.as_ref()
    }

    /// The sections every service has.
    pub fn core(&self) -> &Core {
        &self.core
    }

    /// This service's own SPIFFE id.
    pub fn identity(&self) -> SpiffeId {
        self.identity.id()
    }

    /// This service's TLS identity, kept fresh from disk.
    pub fn tls(&self) -> &Arc<TlsIdentity> {
        &self.identity
    }

    /// The keys that tokens are verified with. iam sets its own here; in every other service they follow iam.
    pub fn key_ring(&self) -> Arc<KeyRing> {
        Arc::clone(&self.keys)
    }

    /// Cancelled when the service is to stop taking work. What is under way may still finish.
    pub fn shutdown(&self) -> CancellationToken {
        self.stages.stop.clone()
    }

    /// Adds something that must be there before the service is ready.
    pub fn readiness(&self, name: &'static str) -> ReadinessFlag {
        self.readiness.flag(name)
    }

    /// A lazy channel to another service, which must prove to be `service`. `key` names the configuration key with
    /// the endpoint, for the error.
    ///
    /// # Errors
    /// [`ConfigError`] for an endpoint that is not `https://host:port`.
    pub fn channel(&self, service: &str, key: &str, endpoint: &str) -> Result<Channel, ConfigError> {
        let invalid = |e: &dyn std::fmt::Display| ConfigError::invalid(key, e.to_string());
        let expected = SpiffeId::service(self.identity.trust_domain(), service).map_err(|e| invalid(&e))?;
        client::channel(&self.identity, endpoint, &expected).map_err(|e| invalid(&e))
    }

    /// Starts a supervised task. Its error or panic ends the service with status 1; ending well is fine at any
    /// time. It should end soon after [`Service::shutdown`].
    pub fn spawn<F, E>(&mut self, name: impl Into<Cow<'static, str>>, task: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        self.supervisor.spawn(name.into(), task);
    }

    /// Consumes a durable consumer with a handler until shutdown.
    pub fn consume<H: Handler>(&mut self, consumer: &ConsumerSpec, dispatch: Dispatch, handler: H) {
        self.consume_shared(consumer, dispatch, Arc::new(handler));
    }

    /// [`Service::consume`] with a handler that others hold too.
    pub fn consume_shared<H: Handler>(&mut self, consumer: &ConsumerSpec, dispatch: Dispatch, handler: Arc<H>) {
        let (bus, shutdown, consumer) = (self.bus.clone(), self.shutdown(), consumer.clone());
        self.spawn(consumer.name.clone(), async move {
            run_consumer(&bus, &consumer, dispatch, handler, shutdown).await
        });
    }

    /// Publishes what transactions appended to the outbox. Services with a database get it by themselves.
    pub fn relay_outbox(&mut self) {
        if self.relaying {
            return;
        }
        let Some(db) = self.db.clone() else {
            return;
        };
        self.relaying = true;
        let (publisher, shutdown) = (self.publisher.clone(), self.shutdown());
        self.spawn("outbox", garrison_db::run_outbox_relay(db, publisher, shutdown));
    }

    /// Serves gRPC and the admin port until asked to stop or a task fails, then drains.
    ///
    /// # Errors
    /// [`ServiceError`], after everything has been stopped.
    pub async fn serve(mut self, routes: Routes) -> Result<(), BoxError> {
        let config = self
            .core
            .grpc
            .clone()
            .ok_or_else(|| ConfigError::invalid("core.grpc", "the section is missing; this service serves gRPC"))?;
        let listener = listen("core.grpc.listen", config.listen).await?;
        tracing::info!(address = %address(&listener), "serving gRPC");
        let sink: Arc<dyn AuditSink> = match &self.db {
            Some(db) => Arc::new(OutboxAudit {
                info: self.info,
                db: db.clone(),
            }),
            None => Arc::new(PublishAudit {
                info: self.info,
                publisher: self.publisher.clone(),
            }),
        };
        let server = GrpcServer {
            config,
            identity: Arc::clone(&self.identity),
            gate: Gate::new(
                self.info.name,
                self.identity.trust_domain(),
                Arc::clone(&self.keys),
                sink,
            ),
            readiness: self.readiness.clone(),
            stop: self.stages.stop.clone(),
            drain: self.core.lifecycle.drain_timeout(),
        };
        self.spawn("gRPC server", server.serve(listener, routes));
        self.serve_admin().await
    }

    /// Serves only the admin port until asked to stop or a task fails, then drains. For programs without a gRPC
    /// server, such as node agents.
    ///
    /// # Errors
    /// [`ServiceError`], after everything has been stopped.
    pub async fn serve_admin(mut self) -> Result<(), BoxError> {
        self.relay_outbox();
        serve_admin(
            self.info,
            self.core.admin.listen,
            self.core.lifecycle.drain_timeout(),
            self.readiness,
            self.registry,
            &self.stages,
            self.supervisor,
        )
        .await
    }

    fn watch_dependencies(&mut self) -> Result<(), ConfigError> {
        let reload = Duration::from_millis(self.core.identity.reload_interval_ms);
        tokio::spawn(Arc::clone(&self.identity).watch(reload, self.shutdown()));

        let (bus, flag) = (self.bus.clone(), self.readiness("bus"));
        tokio::spawn(self.shutdown().run_until_cancelled_owned(async move {
            loop {
                if bus.is_connected() {
                    flag.ready()
                } else {
                    flag.not_ready("the broker is not connected")
                }
                tokio::time::sleep(LOOK).await;
            }
        }));
        if let Some(db) = self.db.clone() {
            let flag = self.readiness("database");
            tokio::spawn(self.shutdown().run_until_cancelled_owned(async move {
                loop {
                    // The pool tries for longer than people want to wait for an answer.
                    let pause = match tokio::time::timeout(PING_LIMIT, db.ping()).await {
                        Ok(Ok(())) => {
                            flag.ready();
                            PING
                        }
                        Ok(Err(error)) => {
                            flag.not_ready(format!("{error}{}", causes(&error)));
                            PING_FAILING
                        }
                        Err(_) => {
                            flag.not_ready("the database does not answer");
                            PING_FAILING
                        }
                    };
                    tokio::time::sleep(pause).await;
                }
            }));
        }
        let Some(endpoint) = self.core.auth.iam_endpoint.clone() else {
            return Ok(());
        };
        let channel = self.channel("iam", "core.auth.iam_endpoint", &endpoint)?;
        let (keys, stop) = (Arc::clone(&self.keys), self.shutdown());
        tokio::spawn(async move {
            keys.keep_fresh(IamKeySource::new(channel), RefreshIntervals::default(), stop)
                .await;
        });
        let (keys, flag) = (Arc::clone(&self.keys), self.readiness("iam"));
        tokio::spawn(self.shutdown().run_until_cancelled_owned(async move {
            flag.not_ready("token keys and revocations were not obtained yet");
            while !keys.is_ready() {
                tokio::time::sleep(LOOK).await;
            }
            flag.ready();
        }));
        let (bus, keys) = (self.bus.clone(), Arc::clone(&self.keys));
        tokio::spawn(
            self.shutdown()
                .run_until_cancelled_owned(async move { follow_news(&bus, &keys).await }),
        );
        Ok(())
    }
}

/// Serves the admin port until asked to stop or a task fails, then drains.
pub(crate) async fn serve_admin(
    info: ServiceInfo,
    listen_on: std::net::SocketAddr,
    drain: Duration,
    readiness: Readiness,
    registry: Registry,
    stages: &Stages,
    supervisor: Supervisor,
) -> Result<(), BoxError> {
    let listener = listen("core.admin.listen", listen_on).await?;
    tracing::info!(address = %address(&listener), "serving health and metrics");
    // Readiness is answered until the very end, so that a balancer sees the service going.
    let gone = CancellationToken::new();
    let admin = tokio::spawn(health::serve(listener, info, readiness.clone(), registry, gone.clone()));
    let stop = stages.stop.clone();
    tokio::spawn(async move {
        stop.cancelled().await;
        readiness.drain();
    });
    let result = supervisor.supervise(stages, drain).await;
    stages.stop.cancel();
    gone.cancel();
    // A slow reader of the admin port must not hold the process.
    let _ = tokio::time::timeout(Duration::from_millis(200), admin).await;
    Ok(result?)
}

/// Takes revocations and key changes from the bus the moment iam publishes them. The poll of iam makes up for
/// what is missed while the broker is away.
async fn follow_news(bus: &Bus, keys: &KeyRing) {
    let subscriptions = futures::future::try_join(
        bus.subscribe_core("events.v1.*.revocation"),
        bus.subscribe_core("events.v1.*.keys"),
    );
    let (revocations, changes) = match subscriptions.await {
        Ok(both) => both,
        Err(error) => {
            tracing::error!(%error, "not following revocations on the bus; they are only polled");
            return;
        }
    };
    let mut news = futures::stream::select(revocations.boxed(), changes.boxed());
    while let Some(delivery) = news.next().await {
        if delivery.source != "iam" {
            tracing::warn!(
                source = delivery.source,
                subject = delivery.subject,
                "not from iam; ignored"
            );
            continue;
        }
        if delivery.subject.ends_with(".keys") {
            match delivery.decode::<KeySetChanged>() {
                Ok(_) => keys.keys_changed(),
                Err(reason) => tracing::warn!(?reason, "a key change could not be read"),
            }
            continue;
        }
        let revoked = delivery
            .decode::<SessionRevoked>()
            .ok()
            .and_then(|event| Revoked::from_parts(&event.session, event.until.as_ref()));
        match revoked {
            Some(entry) => keys.revoke(entry),
            None => tracing::warn!(subject = delivery.subject, "a revocation could not be read"),
        }
    }
}

async fn listen(key: &'static str, address: std::net::SocketAddr) -> Result<TcpListener, ServiceError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| ServiceError::Listen { key, address, source })
}

fn address(listener: &TcpListener) -> String {
    listener
        .local_addr()
        .map(|address| address.to_string())
        .unwrap_or_default()
}

/// The causes of an error as a suffix.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = String::new();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        next = cause.source();
    }
    text
}
