//! The gRPC server: TLS with optional client certificates that may change while it runs, bounded connections,
//! reflection and health in step with readiness.

use std::{sync::Arc, time::Duration};

use garrison_auth::{AuthLayer, Gate, TlsIdentity};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    service::Routes,
    transport::{Server, server::Connected},
};
use tonic_health::ServingStatus;

use crate::{BoxError, GrpcConfig, ServiceError, readiness::Readiness, trace::TraceLayer};

/// How often an idle connection is probed.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes of metadata a call may carry.
const MAX_HEADERS: u32 = 16 * 1024;

/// Time to record what was refused in the last minute, at the end.
const SETTLE: Duration = Duration::from_secs(1);

pub(crate) struct GrpcServer {
    pub(crate) config: GrpcConfig,
    pub(crate) identity: Arc<TlsIdentity>,
    pub(crate) gate: Gate,
    pub(crate) readiness: Readiness,
    pub(crate) stop: CancellationToken,
    pub(crate) drain: Duration,
}

impl GrpcServer {
    /// Serves until told to stop, then lets calls under way finish; those that do not are cut off shortly before
    /// the drain time is over.
    pub(crate) async fn serve(self, listener: TcpListener, routes: Routes) -> Result<(), ServiceError> {
        let routes = self.complete(routes)?;
        let incoming = accept(listener, &self.config, Arc::clone(&self.identity), self.stop.clone());
        let server = Server::builder()
            .max_concurrent_streams(self.config.max_streams_per_connection)
            .http2_keepalive_interval(Some(KEEP_ALIVE))
            .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
            .http2_max_header_list_size(MAX_HEADERS)
            .tcp_nodelay(true)
            .layer(TraceLayer)
            .layer(AuthLayer::new(self.gate.clone()))
            .add_routes(routes)
            .serve_with_incoming_shutdown(incoming, self.stop.clone().cancelled_owned());
        let cut = async {
            self.stop.cancelled().await;
            tokio::time::sleep(self.drain.mul_f64(0.8)).await;
        };
        let outcome = tokio::select! {
            result = server => result.map_err(|e| ServiceError::Grpc(e.into())),
            () = cut => {
                tracing::warn!("calls that were still open after most of the drain time were cut off");
                Ok(())
            }
        };
        if tokio::time::timeout(SETTLE, self.gate.settle()).await.is_err() {
            tracing::error!("the count of repeated refusals was not recorded in time");
        }
        outcome
    }

    fn complete(&self, routes: Routes) -> Result<Routes, ServiceError> {
        let failed = |e: tonic_reflection::server::Error| ServiceError::Grpc(Box::new(e));
        let describe = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(garrison_proto::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let (reporter, health) = tonic_health::server::health_reporter();
        let (mut ready, stop) = (self.readiness.subscribe(), self.stop.clone());
        tokio::spawn(async move {
            loop {
                let status = if *ready.borrow_and_update() {
                    ServingStatus::Serving
                } else {
                    ServingStatus::NotServing
                };
                reporter.set_service_status("", status).await;
                tokio::select! {
                    changed = ready.changed() => if changed.is_err() { return },
                    () = stop.cancelled() => break,
                }
            }
            reporter.set_service_status("", ServingStatus::NotServing).await;
        });
        Ok(routes
            .add_service(health)
            .add_service(describe().build_v1().map_err(failed)?)
            .add_service(describe().build_v1alpha().map_err(failed)?))
    }
}

/// An accepted connection that gives its place back when it is closed.
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    _place: tokio::sync::OwnedSemaphorePermit,
}

fn accept(
    listener: TcpListener,
    config: &GrpcConfig,
    identity: Arc<TlsIdentity>,
    stop: CancellationToken,
) -> ReceiverStream<Result<Connection, BoxError>> {
    let places = Arc::new(Semaphore::new(config.max_connections.min(Semaphore::MAX_PERMITS)));
    let limit = Duration::from_millis(config.handshake_timeout_ms);
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(async move {
        loop {
            let next = async {
                let place = Arc::clone(&places).acquire_owned().await.ok()?;
                Some((listener.accept().await, place))
            };
            let Some(Some((accepted, place))) = stop.run_until_cancelled(next).await else {
                return;
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, or a connection that is already gone: neither may end the server.
                    tracing::warn!(%error, "accepting a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let acceptor = TlsAcceptor::from(identity.server_config());
            let sender = sender.clone();
            tokio::spawn(async move {
                let _ = stream.set_nodelay(true);
                match tokio::time::timeout(limit, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => {
                        // The server is gone when this fails; then there is nobody to serve the connection.
                        let _ = sender.send(Ok(Connection { stream, _place: place })).await;
                    }
                    Ok(Err(error)) => tracing::info!(%peer, %error, "TLS handshake refused"),
                    Err(_) => tracing::info!(%peer, "TLS handshake took too long"),
                }
            });
        }
    });
    ReceiverStream::new(receiver)
}

mod connection {
    use std::{
        io,
        pin::Pin,
        task::{Context, Poll},
    };

    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

    use super::{Connected, Connection, TcpStream, TlsStream};

    impl Connected for Connection {
        type ConnectInfo = <TlsStream<TcpStream> as Connected>::ConnectInfo;

        fn connect_info(&self) -> Self::ConnectInfo {
            self.stream.connect_info()
        }
    }

    impl AsyncRead for Connection {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for Connection {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.stream).poll_write(cx, buf)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_shutdown(cx)
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bufs: &[io::IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
        }

        fn is_write_vectored(&self) -> bool {
            self.stream.is_write_vectored()
        }
    }
}
