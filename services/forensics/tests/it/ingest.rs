//! The packet side of flow-ingest: its method and its identity, with packets of the test's own.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
};

use garrison_auth::caller;
use garrison_proto::{
    TenantId,
    flow::v1::{
        FetchPacketSliceRequest, FetchPacketSliceResponse, FlowFilter, ListSensorsRequest, ListSensorsResponse, Sensor,
        StreamFlowsRequest, StreamFlowsResponse,
        flow_service_server::{FlowService, FlowServiceServer},
    },
};
use garrison_service::{Core, Service, ServiceInfo};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, service::Routes};

use crate::world::World;

/// How it answers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    Well,
    /// Breaks off in the middle.
    BreaksOff,
    /// Has nothing any more.
    Empty,
}

pub(crate) struct Ingest {
    pub(crate) endpoint: String,
    pub(crate) asked: Arc<Mutex<Vec<(TenantId, FlowFilter)>>>,
    stop: CancellationToken,
}

impl Drop for Ingest {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Answers {
    manner: Manner,
    asked: Arc<Mutex<Vec<(TenantId, FlowFilter)>>>,
}

type Chunks<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A pcapng file: section header, one Ethernet interface, two packets (draft-ietf-opsawg-pcapng).
pub(crate) fn pcapng() -> Vec<u8> {
    let block = |kind: u32, body: &[u8]| {
        let length = (12 + body.len()) as u32;
        [
            &kind.to_le_bytes()[..],
            &length.to_le_bytes(),
            body,
            &length.to_le_bytes(),
        ]
        .concat()
    };
    let mut file = block(
        0x0a0d_0d0a,
        &[&0x1a2b_3c4du32.to_le_bytes()[..], &[1, 0, 0, 0], &[0xff; 8]].concat(),
    );
    file.extend(block(1, &[1, 0, 0, 0, 0, 0, 4, 0]));
    for byte in [1u8, 2] {
        let mut body = [
            0u32.to_le_bytes(),
            0u32.to_le_bytes(),
            7u32.to_le_bytes(),
            60u32.to_le_bytes(),
        ]
        .concat();
        body.extend(60u32.to_le_bytes());
        body.extend([byte; 60]);
        file.extend(block(6, &body));
    }
    file
}

#[tonic::async_trait]
impl FlowService for Answers {
    type StreamFlowsStream = Chunks<StreamFlowsResponse>;
    type FetchPacketSliceStream = Chunks<FetchPacketSliceResponse>;

    async fn list_sensors(
        &self,
        request: Request<ListSensorsRequest>,
    ) -> Result<Response<ListSensorsResponse>, Status> {
        caller(&request)?;
        // Captured until long after the incident of the tests.
        let oldest = Some(garrison_proto::Timestamp {
            seconds: 1_700_000_010,
            nanos: 0,
        });
        let sensor = Sensor {
            name: "sensors/edge".into(),
            ring_oldest: oldest,
            ..Sensor::default()
        };
        Ok(Response::new(ListSensorsResponse { sensors: vec![sensor] }))
    }

    async fn stream_flows(&self, _: Request<StreamFlowsRequest>) -> Result<Response<Self::StreamFlowsStream>, Status> {
        Err(Status::unimplemented("not part of these tests"))
    }

    async fn fetch_packet_slice(
        &self,
        request: Request<FetchPacketSliceRequest>,
    ) -> Result<Response<Self::FetchPacketSliceStream>, Status> {
        let tenant = caller(&request)?.tenant;
        let filter = request.into_inner().filter.unwrap_or_default();
        self.asked.lock().unwrap().push((tenant, filter));
        let file = if self.manner == Manner::Empty {
            Vec::new()
        } else {
            pcapng()
        };
        let mut messages: Vec<Result<FetchPacketSliceResponse, Status>> = file
            .chunks(50)
            .map(|chunk| {
                Ok(FetchPacketSliceResponse {
                    chunk: chunk.to_vec().into(),
                    ..Default::default()
                })
            })
            .collect();
        match self.manner {
            Manner::BreaksOff => {
                messages.truncate(2);
                messages.push(Err(Status::unavailable("the disk of the ring is gone")));
            }
            _ => messages.push(Ok(FetchPacketSliceResponse {
                packets: if file.is_empty() { 0 } else { 2 },
                ..Default::default()
            })),
        }
        Ok(Response::new(Box::pin(tokio_stream::iter(messages))))
    }
}

impl Ingest {
    pub(crate) async fn start(world: &World, manner: Manner) -> Self {
        let (grpc, admin) = (
            garrison_testkit::free_port().unwrap(),
            garrison_testkit::free_port().unwrap(),
        );
        let mut table: toml::Table = toml::from_str(&world.core("flow-ingest", grpc, admin)).unwrap();
        let core: Core = table.remove("core").unwrap().try_into().unwrap();
        let info = ServiceInfo {
            name: "flow-ingest",
            version: "0",
            migrator: None,
        };
        let service = Service::embedded(info, core).await.unwrap();
        let (stop, asked) = (service.shutdown(), Arc::default());
        let answers = Answers {
            manner,
            asked: Arc::clone(&asked),
        };
        tokio::spawn(service.serve(Routes::new(FlowServiceServer::new(answers))));
        Self {
            endpoint: format!("https://127.0.0.1:{grpc}"),
            asked,
            stop,
        }
    }
}
