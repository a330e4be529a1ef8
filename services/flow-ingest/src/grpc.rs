//! `garrison.flow.v1.FlowService`: what the sensors see, for people and integrations.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use garrison_auth::{Denial, KeyRing, accepted_until, caller};
use garrison_flow::{Filter, FilterError};
use garrison_proto::{
    Timestamp,
    flow::v1::{
        FetchPacketSliceRequest, FetchPacketSliceResponse, ListSensorsRequest, ListSensorsResponse,
        Sensor as SensorMessage, StreamFlowsRequest, StreamFlowsResponse, flow_service_server::FlowService,
    },
    to_timestamp,
};
use tokio::sync::{broadcast::error::RecvError, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{
    app::sensor::Sensor,
    bus::hub::Hub,
    ring::{Slice, SliceError, SliceFilter},
};

/// Flows in one response of a stream.
const FLOWS: usize = 512;
/// Responses and chunks that may wait for a client.
const AHEAD: usize = 4;

/// The service.
pub(crate) struct FlowGrpc {
    sensors: Vec<Arc<Sensor>>,
    hub: Arc<Hub>,
    max_slice: u64,
    keys: Arc<KeyRing>,
    stop: CancellationToken,
}

impl FlowGrpc {
    /// Serves these sensors until `stop`. `keys` know which sessions are revoked.
    pub(crate) fn new(
        sensors: Vec<Arc<Sensor>>,
        hub: Arc<Hub>,
        max_slice: u64,
        keys: Arc<KeyRing>,
        stop: CancellationToken,
    ) -> Self {
        Self {
            sensors,
            hub,
            max_slice,
            keys,
            stop,
        }
    }
}

fn wrong(field: &str, message: &str) -> Status {
    let mut details = ErrorDetails::with_bad_request_violation(field, message);
    details.set_error_info("GAR-FLOW-0040", "garrison.dev", HashMap::<String, String>::new());
    Status::with_error_details(
        Code::InvalidArgument,
        format!("GAR-FLOW-0040: {field}: {message}"),
        details,
    )
}

fn filter_error(error: &FilterError) -> Status {
    wrong(&format!("filter.{}", error.field), &error.message)
}

fn time(nanoseconds: i64) -> Timestamp {
    to_timestamp(DateTime::from_timestamp_nanos(nanoseconds))
}

fn describe(sensor: &Sensor) -> SensorMessage {
    let status = sensor.status();
    let ring = sensor.ring.as_ref();
    let range = ring.and_then(|ring| ring.range());
    let problem = status.problem.or_else(|| ring.and_then(|ring| ring.problem()));
    SensorMessage {
        name: format!("sensors/{}", sensor.id),
        source: sensor.source.clone(),
        link_type: status.link.map(|link| link.name().to_owned()).unwrap_or_default(),
        live: sensor.live,
        started: Some(time(sensor.started)),
        ledger: Some(sensor.ledger().to_proto()),
        active_flows: status.active_flows,
        ring_oldest: range.map(|(oldest, _)| time(oldest)),
        ring_newest: range.map(|(_, newest)| time(newest)),
        ring_bytes: ring.map_or(0, |ring| ring.bytes()),
        finished: sensor.finished().is_some(),
        problem: problem.unwrap_or_default(),
        ring_dropped: ring.map_or(0, |ring| ring.dropped()),
    }
}

/// Returns when a time has passed, by the clock on the wall, which may be set meanwhile.
async fn passed(until: Option<DateTime<Utc>>) {
    let Some(until) = until else {
        return std::future::pending().await;
    };
    while let Ok(left) = (until - Utc::now()).to_std()
        && !left.is_zero()
    {
        tokio::time::sleep(left.min(Duration::from_secs(10))).await;
    }
}

#[tonic::async_trait]
impl FlowService for FlowGrpc {
    async fn list_sensors(
        &self,
        request: Request<ListSensorsRequest>,
    ) -> Result<Response<ListSensorsResponse>, Status> {
        let caller = caller(&request)?;
        let sensors = self
            .sensors
            .iter()
            .filter(|sensor| sensor.tenant == caller.tenant)
            .map(|sensor| describe(sensor))
            .collect();
        Ok(Response::new(ListSensorsResponse { sensors }))
    }

    type StreamFlowsStream = ReceiverStream<Result<StreamFlowsResponse, Status>>;

    async fn stream_flows(
        &self,
        request: Request<StreamFlowsRequest>,
    ) -> Result<Response<Self::StreamFlowsStream>, Status> {
        let caller = caller(&request)?;
        let until = accepted_until(&request);
        let filter = request.into_inner().filter.unwrap_or_default();
        let filter = Filter::compile(&filter).map_err(|error| filter_error(&error))?;
        let (sender, receiver) = mpsc::channel(AHEAD);
        // The layer asked once, when the call began; this call may outlast its session and its token.
        let (watcher, keys, stop) = (sender.clone(), Arc::clone(&self.keys), self.stop.clone());
        let ended = CancellationToken::new();
        let end = ended.clone();
        tokio::spawn(async move {
            let denial = tokio::select! {
                () = keys.revoked(caller.session) => Denial::Revoked,
                () = passed(until) => Denial::Expired(
                    "the token expired while flows were followed; renew it and follow again".to_owned()
                ),
                () = stop.cancelled() => return,
                () = watcher.closed() => return,
            };
            end.cancel();
            // A client that is gone need not be told.
            let _ = watcher.send(Err(denial.into_status())).await;
        });
        // A tenant without a sensor here sees an open stream without flows, as it would with an idle one.
        if let Some((mut batches, mut seen)) = self.hub.watch(&caller.tenant) {
            let stop = self.stop.clone();
            tokio::spawn(async move {
                let mut skipped = 0;
                loop {
                    let next = tokio::select! {
                        next = batches.recv() => next,
                        () = stop.cancelled() => return,
                        () = ended.cancelled() => return,
                        () = sender.closed() => return,
                    };
                    let watched = match next {
                        Ok(watched) => watched,
                        // How many records that was shows in the next batch.
                        Err(RecvError::Lagged(_)) => continue,
                        Err(RecvError::Closed) => return,
                    };
                    skipped += watched.before.saturating_sub(seen);
                    seen = watched.before + watched.batch.len() as u64;
                    let mut flows = Vec::new();
                    for row in watched.batch.rows().filter(|row| filter.matches(row)) {
                        flows.push(row.to_proto());
                        if flows.len() == FLOWS {
                            let flows = std::mem::take(&mut flows);
                            let skipped = std::mem::take(&mut skipped);
                            if sender.send(Ok(StreamFlowsResponse { flows, skipped })).await.is_err() {
                                return;
                            }
                        }
                    }
                    if !flows.is_empty() || skipped > 0 {
                        let skipped = std::mem::take(&mut skipped);
                        if sender.send(Ok(StreamFlowsResponse { flows, skipped })).await.is_err() {
                            return;
                        }
                    }
                }
            });
        } else {
            let stop = self.stop.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = ended.cancelled() => {}
                    () = sender.closed() => {}
                }
            });
        }
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    type FetchPacketSliceStream = ReceiverStream<Result<FetchPacketSliceResponse, Status>>;

    async fn fetch_packet_slice(
        &self,
        request: Request<FetchPacketSliceRequest>,
    ) -> Result<Response<Self::FetchPacketSliceStream>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let filter = request.filter.unwrap_or_default();
        let filter = SliceFilter::compile(&filter).map_err(|error| filter_error(&error))?;
        let limit = match request.max_bytes {
            0 => self.max_slice,
            asked if asked < 1024 => return Err(wrong("max_bytes", "must be 0 or at least 1024")),
            asked => asked.min(self.max_slice),
        };
        let rings: Vec<_> = self
            .sensors
            .iter()
            .filter(|sensor| sensor.tenant == caller.tenant)
            .filter_map(|sensor| sensor.ring.clone())
            .collect();
        if rings.is_empty() {
            let mut details = ErrorDetails::new();
            details.set_error_info("GAR-FLOW-0041", "garrison.dev", HashMap::<String, String>::new());
            return Err(Status::with_error_details(
                Code::NotFound,
                "GAR-FLOW-0041: no sensor of this tenant keeps packets here",
                details,
            ));
        }
        let (sender, receiver) = mpsc::channel(AHEAD);
        tokio::task::spawn_blocking(move || {
            let mut total = Slice::default();
            let mut left = limit;
            for (number, ring) in rings.iter().enumerate() {
                // Each ring's part begins with a section of its own, which pcapng allows anywhere.
                let taken = ring.slice(&filter, left, |chunk| {
                    left = left.saturating_sub(chunk.len() as u64);
                    let response = FetchPacketSliceResponse {
                        chunk: chunk.into(),
                        ..FetchPacketSliceResponse::default()
                    };
                    sender.blocking_send(Ok(response)).is_ok()
                });
                match taken {
                    Ok(slice) => {
                        total.packets += slice.packets;
                        total.truncated |= slice.truncated;
                        if slice.truncated || left < 1024 {
                            total.truncated |= number + 1 < rings.len();
                            break;
                        }
                    }
                    Err(SliceError::Gone) => return,
                    Err(error) => {
                        let cause = std::error::Error::source(&error).map(ToString::to_string);
                        tracing::error!(%error, cause, "a packet slice could not be read");
                        let mut details = ErrorDetails::new();
                        details.set_error_info("GAR-FLOW-0023", "garrison.dev", HashMap::<String, String>::new());
                        let status = Status::with_error_details(Code::Internal, error.to_string(), details);
                        // The client may be gone by now.
                        let _ = sender.blocking_send(Err(status));
                        return;
                    }
                }
            }
            let last = FetchPacketSliceResponse {
                chunk: Bytes::new(),
                packets: total.packets,
                truncated: total.truncated,
            };
            // The client may be gone by now.
            let _ = sender.blocking_send(Ok(last));
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    use futures::StreamExt as _;
    use garrison_auth::{Caller, token::LEEWAY};
    use garrison_flow::{FlowBatchBuilder, FlowRow};
    use garrison_proto::TenantId;

    use super::*;

    /// As the layer hands a call on whose token ends then. `None`: a service, by its certificate.
    fn request(tenant: &TenantId, ends: Option<DateTime<Utc>>) -> Request<StreamFlowsRequest> {
        let mut request = Request::new(StreamFlowsRequest { filter: None });
        request.extensions_mut().insert(Caller {
            tenant: tenant.clone(),
            ..Caller::anonymous(None)
        });
        if let Some(ends) = ends {
            let body = URL_SAFE_NO_PAD.encode(format!("{{\"exp\":{}}}", ends.timestamp() - LEEWAY));
            let value = format!("Bearer header.{body}.signature").parse().unwrap();
            request.metadata_mut().insert("authorization", value);
        }
        request
    }

    #[tokio::test]
    async fn following_flows_ends_with_the_token_and_says_so() {
        let tenant: TenantId = "acme".parse().unwrap();
        let hub = Arc::new(Hub::new([tenant.clone()]));
        let keys = Arc::new(KeyRing::new());
        let service = FlowGrpc::new(Vec::new(), Arc::clone(&hub), 1_000, keys, CancellationToken::new());
        let ends = DateTime::from_timestamp(Utc::now().timestamp() + 2, 0).unwrap();
        let follow = async |ends| service.stream_flows(request(&tenant, ends)).await.unwrap().into_inner();
        let (mut short, mut long) = (
            follow(Some(ends)).await,
            follow(Some(ends + Duration::from_secs(600))).await,
        );
        let mut service_own = follow(None).await;
        // A tenant without a sensor here.
        let other: TenantId = "other".parse().unwrap();
        let mut idle = service
            .stream_flows(request(&other, Some(ends)))
            .await
            .unwrap()
            .into_inner();

        let mut builder = FlowBatchBuilder::new(1);
        builder.push(&FlowRow::default());
        let batch = builder.finish();
        hub.show(&tenant, &batch);
        for stream in [&mut short, &mut long, &mut service_own] {
            assert_eq!(stream.next().await.unwrap().unwrap().flows.len(), 1);
        }
        for stream in [&mut short, &mut idle] {
            let status = stream.next().await.unwrap().unwrap_err();
            assert!(Utc::now() >= ends);
            assert_eq!(status.code(), Code::Unauthenticated);
            let info = status.get_details_error_info().unwrap();
            assert_eq!(info.reason, "GAR-AUTH-0003");
            assert!(status.message().contains("renew it"), "{}", status.message());
            assert!(stream.next().await.is_none());
        }
        // The others go on.
        hub.show(&tenant, &batch);
        for stream in [&mut long, &mut service_own] {
            assert_eq!(stream.next().await.unwrap().unwrap().flows.len(), 1);
        }
    }
}
