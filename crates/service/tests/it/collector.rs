//! A collector of traces, as OTLP over gRPC wants it.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) name: String,
    pub(crate) trace: String,
    pub(crate) parent: String,
    pub(crate) service: String,
}

type Spans = Arc<Mutex<Vec<Seen>>>;

struct Collector(Spans);

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for resource in request.into_inner().resource_spans {
            let attributes = resource
                .resource
                .map(|resource| resource.attributes)
                .unwrap_or_default();
            let service = attributes.into_iter().find(|pair| pair.key == "service.name");
            let service = match service.and_then(|pair| pair.value?.value) {
                Some(Value::StringValue(name)) => name,
                other => panic!("{other:?} is no service name"),
            };
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                self.0.lock().unwrap().push(Seen {
                    name: span.name,
                    trace: hexadecimal(&span.trace_id),
                    parent: hexadecimal(&span.parent_span_id),
                    service: service.clone(),
                });
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

pub(crate) async fn start() -> (SocketAddr, Spans) {
    let (spans, listener) = (Spans::default(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let address = listener.local_addr().unwrap();
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(Collector(Arc::clone(&spans))))
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    (address, spans)
}
