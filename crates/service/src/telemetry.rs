//! Logs to standard error, traces and metrics by OTLP, metrics for Prometheus.

use std::{io::IsTerminal, sync::Arc, time::Duration};

use garrison_auth::TlsIdentity;
use opentelemetry::{KeyValue, trace::TracerProvider};
use opentelemetry_otlp::{MetricExporter, SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::{
    Resource,
    metrics::{PeriodicReader, SdkMeterProvider},
    propagation::TraceContextPropagator,
    trace::{Sampler, SdkTracerProvider},
};
use prometheus::Registry;
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{ConfigError, LogFormat, ServiceError, ServiceInfo, TelemetryConfig};

/// How long what is left may take to be sent at exit.
const FLUSH_LIMIT: Duration = Duration::from_secs(3);
/// How long one export may take.
const EXPORT_LIMIT: Duration = Duration::from_secs(5);

/// Keeps telemetry alive. [`Telemetry::flush`] sends what is left.
#[derive(Debug)]
pub(crate) struct Telemetry {
    tracer: Option<SdkTracerProvider>,
    meter: SdkMeterProvider,
    pub(crate) registry: Registry,
}

/// Sets the process's telemetry up. Must run inside the runtime, which the exporters' connections use.
pub(crate) fn start(
    config: &TelemetryConfig,
    info: &ServiceInfo,
    identity: Option<&Arc<TlsIdentity>>,
) -> Result<Telemetry, ServiceError> {
    let failed = |e: &dyn std::fmt::Display| ServiceError::Telemetry(e.to_string());
    let filter = EnvFilter::try_new(&config.log)
        .map_err(|e| ConfigError::invalid("core.telemetry.log", format!("{:?} is not a filter: {e}", config.log)))?;
    let resource = Resource::builder()
        .with_service_name(format!("garrison-{}", info.name))
        .with_attribute(KeyValue::new("service.version", info.version))
        .with_attribute(KeyValue::new("service.instance.id", std::process::id().to_string()))
        .build();

    let registry = Registry::new();
    let prometheus = opentelemetry_prometheus::exporter()
        .with_registry(registry.clone())
        .build()
        .map_err(|e| failed(&e))?;
    let mut meter = SdkMeterProvider::builder()
        .with_resource(resource.clone())
        .with_reader(prometheus);
    let mut tracer = None;
    if let Some(endpoint) = &config.otlp_endpoint {
        let channel = collector(endpoint, identity)?;
        let exporter = MetricExporter::builder()
            .with_tonic()
            .with_channel(channel.clone())
            .with_timeout(EXPORT_LIMIT)
            .build()
            .map_err(|e| failed(&e))?;
        let reader = PeriodicReader::builder(exporter)
            .with_interval(Duration::from_millis(config.metrics_interval_ms))
            .build();
        meter = meter.with_reader(reader);
        let exporter = SpanExporter::builder()
            .with_tonic()
            .with_channel(channel)
            .with_timeout(EXPORT_LIMIT)
            .build()
            .map_err(|e| failed(&e))?;
        let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.sampling_ratio)));
        let provider = SdkTracerProvider::builder()
            .with_resource(resource)
            .with_sampler(sampler)
            .with_batch_exporter(exporter)
            .build();
        tracer = Some(provider);
    }
    let meter = meter.build();
    opentelemetry::global::set_meter_provider(meter.clone());
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());

    let json = match config.log_format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !std::io::stderr().is_terminal(),
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = if json {
        lines.json().flatten_event(true).with_span_list(false).boxed()
    } else {
        lines.boxed()
    };
    let spans = tracer.as_ref().map(|provider| {
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("garrison"))
            // The exporters' own calls would otherwise be traced and exported for ever.
            .with_filter(tracing_subscriber::filter::filter_fn(|meta| {
                !["h2", "hyper", "tonic", "tower", "opentelemetry"]
                    .iter()
                    .any(|own| meta.target().starts_with(own))
            }))
    });
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .with(spans)
        .try_init()
        .map_err(|e| failed(&e))?;
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let message = panic
            .payload()
            .downcast_ref::<&str>()
            .map(ToString::to_string)
            .or_else(|| panic.payload().downcast_ref::<String>().cloned())
            .unwrap_or_default();
        tracing::error!(place, message, "panicked");
    }));
    Ok(Telemetry {
        tracer,
        meter,
        registry,
    })
}

fn collector(endpoint: &str, identity: Option<&Arc<TlsIdentity>>) -> Result<tonic::transport::Channel, ServiceError> {
    const KEY: &str = "core.telemetry.otlp_endpoint";
    let invalid = |e: &dyn std::fmt::Display| ServiceError::from(ConfigError::invalid(KEY, e.to_string()));
    if endpoint.starts_with("https://") {
        let identity =
            identity.ok_or_else(|| invalid(&"this program has no identity for TLS; use a collector on loopback"))?;
        return garrison_auth::client::named_channel(identity, endpoint).map_err(|e| invalid(&e));
    }
    let parsed = tonic::transport::Endpoint::from_shared(endpoint.to_owned()).map_err(|e| invalid(&e))?;
    let uri = parsed.uri().clone();
    let host = uri.host().unwrap_or_default();
    let local = host == "localhost"
        || host
            .trim_matches(['[', ']'])
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback());
    if uri.scheme_str() != Some("http") || !local {
        return Err(invalid(&format!(
            "{endpoint:?} must be https://host:port, or http://host:port with a loopback host"
        )));
    }
    Ok(parsed.connect_timeout(EXPORT_LIMIT).connect_lazy())
}

impl Telemetry {
    /// Sends what is left, for at most a few seconds. Blocks.
    pub(crate) fn flush(&self) {
        if let Some(tracer) = &self.tracer
            && let Err(error) = tracer.shutdown_with_timeout(FLUSH_LIMIT)
        {
            tracing::warn!(%error, "the last traces were not sent");
        }
        if let Err(error) = self.meter.shutdown_with_timeout(FLUSH_LIMIT) {
            tracing::debug!(%error, "the last metrics were not sent");
        }
    }
}
