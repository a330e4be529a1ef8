//! A span and a measurement for every call the gRPC server takes.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::LazyLock,
    task::{Context, Poll},
    time::Instant,
};

use opentelemetry::{KeyValue, metrics::Histogram};
use tonic::body::Body;
use tower::{Layer, Service};
use tracing::{Instrument, field::Empty};

static DURATION: LazyLock<Histogram<f64>> = LazyLock::new(|| {
    opentelemetry::global::meter("garrison.service")
        .f64_histogram("garrison_service_rpc_duration_seconds")
        .with_description("Time from a call's arrival to the head of its answer, by service and status")
        .with_boundaries(vec![
            0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
        ])
        .build()
});

/// Continues the caller's trace (W3C Trace Context).
#[derive(Debug, Clone, Copy)]
pub(crate) struct TraceLayer;

impl<S> Layer<S> for TraceLayer {
    type Service = TraceService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        TraceService { inner }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct TraceService<S> {
    inner: S,
}

impl<S, B> Service<http::Request<B>> for TraceService<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let began = Instant::now();
        let path: String = request.uri().path().trim_start_matches('/').chars().take(200).collect();
        // Only the service part, and only when it can be one of ours: a label must not grow with what callers send.
        let service = match path.split_once('/') {
            Some((service, _)) if service.starts_with("garrison.") || service.starts_with("grpc.") => service,
            _ => "unknown",
        };
        let service = if service.len() > 64 { "unknown" } else { service }.to_owned();
        let parent = request
            .headers()
            .get("traceparent")
            .and_then(|value| value.to_str().ok());
        let span = garrison_bus::span_with_parent(
            tracing::info_span!(
                "rpc",
                otel.name = %path,
                otel.kind = "server",
                rpc.system = "grpc",
                rpc.grpc.status_code = Empty
            ),
            parent,
        );
        let answer = {
            let _inside = span.enter();
            self.inner.call(request)
        };
        let outer = span.clone();
        Box::pin(
            async move {
                let response = answer.await?;
                // Absent in the head of an answer that has a body; its own status follows in the trailers.
                let code =
                    tonic::Status::from_header_map(response.headers()).map_or(tonic::Code::Ok, |status| status.code());
                outer.record("rpc.grpc.status_code", code as i32);
                let labels = [
                    KeyValue::new("service", service),
                    KeyValue::new("code", format!("{code:?}")),
                ];
                DURATION.record(began.elapsed().as_secs_f64(), &labels);
                Ok(response)
            }
            .instrument(span),
        )
    }
}
