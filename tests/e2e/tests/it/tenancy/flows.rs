//! `flow.v1`: sensors, the live stream, packets.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::TryStreamExt as _;
use garrison_proto::flow::v1::{
    FetchPacketSliceRequest, FlowFilter, ListSensorsRequest, StreamFlowsRequest, StreamFlowsResponse,
};

use tokio::task::JoinHandle;

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
        let mut watches = Vec::new();
        for (side, filter) in [(&world.acme, &everything), (&world.globex, &everything), (&world.globex, &theirs)] {
            watches.push(watch(&side.admin, filter.clone()).await);
        }
        // Until some time has passed and both have seen something of their own.
        let began = std::time::Instant::now();
        let seen = |watch: &Watch| watch.seen.lock().unwrap().iter().any(|answer| !answer.flows.is_empty());
        until(Duration::from_secs(120), "flows on both sides", || {
            let done = began.elapsed() >= Duration::from_secs(4) && watches[..2].iter().all(seen);
            std::future::ready(done.then_some(()))
        })
        .await;
        let [acme, globex, peeping] = watches.try_into().map(|watches: [Watch; 3]| watches.map(Watch::end)).ok().unwrap();
        for (seen, side) in [(acme, "wire-acme"), (globex, "wire-globex")] {
            let flows: Vec<_> = seen.into_iter().flat_map(|answer| answer.flows).collect();
            assert!(!flows.is_empty(), "nothing was seen in {side}");
            let foreign: Vec<_> = flows.iter().filter(|flow| flow.sensor != side).collect();
            assert!(foreign.is_empty(), "{side} was shown {foreign:?}");
        }
        assert!(peeping.iter().all(|answer| answer.flows.is_empty()), "{peeping:?}");
    };
    "flow.v1.FlowService/FetchPacketSlice" => |world| {
        until(Duration::from_secs(120), "packets in both rings", || async {
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

/// What is shown to somebody who follows flows.
struct Watch {
    seen: Arc<Mutex<Vec<StreamFlowsResponse>>>,
    task: JoinHandle<()>,
}

impl Watch {
    fn end(self) -> Vec<StreamFlowsResponse> {
        assert!(!self.task.is_finished(), "the stream ended by itself");
        self.task.abort();
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

async fn watch(desk: &Desk, filter: FlowFilter) -> Watch {
    let request = StreamFlowsRequest { filter: Some(filter) };
    let mut stream = desk.flows.clone().stream_flows(request).await.unwrap().into_inner();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let into = Arc::clone(&seen);
    let task = tokio::spawn(async move {
        while let Some(answer) = stream.try_next().await.unwrap() {
            into.lock().unwrap().push(answer);
        }
    });
    Watch { seen, task }
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
