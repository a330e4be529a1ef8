//! `flow.v1`: sensors, the live stream, packets.

use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use garrison_proto::flow::v1::{
    FetchPacketSliceRequest, FlowFilter, ListSensorsRequest, StreamFlowsRequest, StreamFlowsResponse,
};

use super::cases;
use crate::{calls::Desk, place::until};

cases! {
    "flow.v1.FlowService/ListSensors" => |world| {
        for side in [&world.acme, &world.globex] {
            let answer = side.admin.flows.clone().list_sensors(ListSensorsRequest {}).await.unwrap();
            let names: Vec<String> = answer.into_inner().sensors.into_iter().map(|sensor| sensor.name).collect();
            assert_eq!(names, [format!("sensors/wire-{}", side.id)]);
        }
    };
    "flow.v1.FlowService/StreamFlows" => |world| {
        // Both watch at the same time, without a filter; one also asks for the other's hosts.
        let everything = FlowFilter::default();
        let theirs = FlowFilter { hosts: vec!["10.1.0.0/16".to_owned()], ..FlowFilter::default() };
        let (acme, globex, peeping) = tokio::join!(
            watch(&world.acme.admin, everything.clone()),
            watch(&world.globex.admin, everything),
            watch(&world.globex.admin, theirs),
        );
        for (seen, side) in [(acme, "wire-acme"), (globex, "wire-globex")] {
            let flows: Vec<_> = seen.into_iter().flat_map(|answer| answer.flows).collect();
            assert!(!flows.is_empty(), "nothing was seen in {side}");
            let foreign: Vec<_> = flows.iter().filter(|flow| flow.sensor != side).collect();
            assert!(foreign.is_empty(), "{side} was shown {foreign:?}");
        }
        assert!(peeping.iter().all(|answer| answer.flows.is_empty()), "{peeping:?}");
    };
    "flow.v1.FlowService/FetchPacketSlice" => |world| {
        until(Duration::from_secs(20), "packets in both rings", || async {
            let mut full = true;
            for side in [&world.acme, &world.globex] {
                full &= slice(&side.admin, "192.168.0.10").await.0 > 0;
            }
            full.then_some(())
        })
        .await;
        let (packets, bytes) = slice(&world.globex.admin, "10.1.7.10").await;
        assert_eq!(packets, 0, "packets of acme's host were given to globex");
        assert!(!contains(&bytes, &[10, 1, 7, 10]));
        // What both have, to the last port, is each one's own: their packets' link addresses tell.
        let (packets, bytes) = slice(&world.acme.admin, "10.1.7.10").await;
        assert!(packets > 0 && contains(&bytes, &[10, 1, 7, 10]));
    };
}

async fn watch(desk: &Desk, filter: FlowFilter) -> Vec<StreamFlowsResponse> {
    let request = StreamFlowsRequest { filter: Some(filter) };
    let stream = desk.flows.clone().stream_flows(request).await.unwrap().into_inner();
    let stopped = stream.take_until(tokio::time::sleep(Duration::from_secs(4)));
    stopped.try_collect().await.unwrap()
}

async fn slice(desk: &Desk, host: &str) -> (u64, Vec<u8>) {
    let request = FetchPacketSliceRequest {
        filter: Some(FlowFilter {
            hosts: vec![host.to_owned()],
            ..FlowFilter::default()
        }),
        max_bytes: 0,
    };
    let parts = desk
        .flows
        .clone()
        .fetch_packet_slice(request)
        .await
        .unwrap()
        .into_inner();
    let parts: Vec<_> = parts.try_collect().await.unwrap();
    let packets = parts.iter().map(|part| part.packets).sum();
    (packets, parts.into_iter().flat_map(|part| part.chunk).collect())
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}
