//! Capture files through the whole service.

use std::{fs, path::Path, time::Duration};

use flow_ingest::{
    capture::CaptureFile,
    domain::{
        Limits,
        packet::{Verdict, address, decode},
    },
    standalone::meter_file,
};
use garrison_flow::FlowBatchBuilder;
use garrison_proto::flow::v1::{FetchPacketSliceRequest, FlowFilter, StreamFlowsRequest};
use garrison_testkit::Stack;
use tonic::Code;

use crate::{
    captures::{conversations, pcap},
    world::{World, pipe, records, stored, write},
};

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_reaches_the_broker_record_by_record() {
    let stack = Stack::shared().await;
    let dir = folder();
    let file = write(dir.path(), "a.pcap", &pcap(&conversations(1, 700, 50_000)));
    let sections = "[[sensors]]\nid = 'edge'\ntenant = 'whole'\nfile = '{dir}/a.pcap'\n[batch]\nrows = 100\n";
    let mut world = World::start(stack, dir, sections);
    let sensor = world.finished("whole").await;
    let ledger = sensor.ledger.unwrap();
    assert_eq!((ledger.received, ledger.parsed), (6300, 6300));
    assert_eq!((ledger.flows_opened, ledger.flows_ended), (700, 700));
    assert_eq!(ledger.records_lost, 0);
    assert_eq!(
        (sensor.name.as_str(), sensor.link_type.as_str(), sensor.live),
        ("sensors/edge", "ETHERNET", false)
    );
    assert_eq!(sensor.problem, "");

    let batches = stored(stack, "whole").await;
    let mut expected = FlowBatchBuilder::new(16);
    meter_file(&file, "edge", Limits::default(), 1, |row| expected.push(row)).unwrap();
    let expected = expected.finish();
    assert_eq!(ledger.records_published, expected.len() as u64);
    assert_eq!(records(batches.iter().map(|(batch, _)| batch)), records([&expected]));
    let mut sequences: Vec<u64> = batches.iter().map(|(_, meta)| meta.batch_seq).collect();
    sequences.sort_unstable();
    assert!(
        sequences.windows(2).all(|pair| pair[0] + 1 == pair[1]),
        "no batch is missing"
    );
    world.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_see_only_their_own() {
    let stack = Stack::shared().await;
    let dir = folder();
    let pipes = [("one.pcap", 11), ("two.pcap", 12)].map(|(name, net)| (pipe(dir.path(), name), net));
    let sensor = |id, tenant, file| {
        format!(
            "[[sensors]]\nid = '{id}'\ntenant = '{tenant}'\nfile = '{{dir}}/{file}'\npace = 'realtime'\ntimestamps = 'now'\n"
        )
    };
    let sections = sensor("a", "left", "one.pcap")
        + &sensor("b", "right", "two.pcap")
        + "[ring]\npath = '{dir}/ring'\nbytes = 1000000\nsegment_bytes = 65536\nflush_ms = 1\n";
    let mut world = World::start(stack, dir, &sections);

    // Watching while it plays.
    let mut watching = world
        .client("left")
        .stream_flows(StreamFlowsRequest { filter: None })
        .await
        .unwrap()
        .into_inner();
    let mut nobody = world
        .client("third")
        .stream_flows(StreamFlowsRequest { filter: None })
        .await
        .unwrap()
        .into_inner();
    // There is nothing to see before somebody watches.
    for (path, net) in pipes {
        std::thread::spawn(move || fs::write(path, pcap(&conversations(net, 40, 3_000_000))).unwrap());
    }
    let mut seen = 0;
    while seen < 20 {
        let response = tokio::time::timeout(Duration::from_secs(120), watching.message())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        for flow in &response.flows {
            assert!(flow.src_ip.starts_with("10.11."), "{flow:?}");
            assert_eq!(flow.sensor, "a");
        }
        seen += response.flows.len();
    }
    assert!(
        tokio::time::timeout(Duration::from_millis(200), nobody.message())
            .await
            .is_err()
    );

    for (tenant, id, net) in [("left", "a", "10.11."), ("right", "b", "10.12.")] {
        world.finished(tenant).await;
        let sensors = world.sensors(tenant).await;
        assert_eq!(sensors.len(), 1);
        assert_eq!(sensors[0].name, format!("sensors/{id}"));
        let batches = stored(stack, tenant).await;
        assert!(
            batches
                .iter()
                .flat_map(|(b, _)| b.rows())
                .all(|row| row.src_ip.to_string().starts_with(net))
        );
        let packets = whole_slice(&world, tenant, FlowFilter::default(), 360).await;
        assert!(packets.iter().all(|packet| packet.1.starts_with(net)));
    }
    // The other tenant's hosts give an empty slice, a tenant without sensors none at all.
    let foreign = FlowFilter {
        hosts: vec!["10.12.0.0/16".into()],
        ..FlowFilter::default()
    };
    assert!(slice(&world, "left", foreign).await.unwrap().is_empty());
    assert!(world.sensors("third").await.is_empty());
    assert_eq!(
        slice(&world, "third", FlowFilter::default()).await.unwrap_err().code(),
        Code::NotFound
    );
    world.end();
}

/// A slice of so many packets. The ring's writer may be a moment behind the records.
async fn whole_slice(
    world: &World<'_>,
    tenant: &str,
    filter: FlowFilter,
    packets: usize,
) -> Vec<(i64, String, Vec<u8>)> {
    let deadline = std::time::Instant::now() + Duration::from_secs(120);
    loop {
        let found = slice(world, tenant, filter.clone()).await.unwrap();
        if found.len() >= packets || std::time::Instant::now() > deadline {
            assert_eq!(found.len(), packets);
            return found;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Packets of a slice: time, source address, octets.
async fn slice(
    world: &World<'_>,
    tenant: &str,
    filter: FlowFilter,
) -> Result<Vec<(i64, String, Vec<u8>)>, tonic::Status> {
    let request = FetchPacketSliceRequest {
        filter: Some(filter),
        max_bytes: 0,
    };
    let mut stream = world.client(tenant).fetch_packet_slice(request).await?.into_inner();
    let (mut file, mut said) = (Vec::new(), 0);
    while let Some(response) = stream.message().await? {
        file.extend_from_slice(&response.chunk);
        said = response.packets;
    }
    let mut capture = CaptureFile::new(&file[..], Path::new("slice")).unwrap();
    let mut packets = Vec::new();
    while let Some(burst) = capture.burst().unwrap() {
        for packet in burst.packets() {
            let Verdict::Flow(decoded) = decode(packet) else {
                panic!()
            };
            packets.push((packet.time, address(&decoded.src).to_string(), packet.data.to_vec()));
        }
    }
    assert_eq!(packets.len() as u64, said);
    Ok(packets)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slice_holds_exactly_the_packets_of_a_flow_and_a_time() {
    let stack = Stack::shared().await;
    let dir = folder();
    let frames = conversations(21, 60, 1_000_000);
    write(dir.path(), "a.pcap", &pcap(&frames));
    let sections = "[[sensors]]\nid = 'edge'\ntenant = 'slices'\nfile = '{dir}/a.pcap'\n\
                    [ring]\npath = '{dir}/ring'\nbytes = 10000000\nsegment_bytes = 65536\nflush_ms = 1\n";
    let mut world = World::start(stack, dir, sections);
    world.finished("slices").await;
    let all = whole_slice(&world, "slices", FlowFilter::default(), frames.len()).await;
    let want: Vec<_> = frames.iter().map(|(time, frame)| (*time, frame.clone())).collect();
    let got: Vec<_> = all.iter().map(|(time, _, data)| (*time, data.clone())).collect();
    assert_eq!(got, want, "every packet, to the nanosecond and the octet");

    let batches = stored(stack, "slices").await;
    let wanted = batches[0].0.row(0);
    let by_id = FlowFilter {
        community_ids: vec![wanted.community_id.to_owned()],
        ..FlowFilter::default()
    };
    let packets = slice(&world, "slices", by_id.clone()).await.unwrap();
    assert_eq!(packets.len(), 9);
    let (client, server) = (wanted.src_ip.to_string(), wanted.dst_ip.to_string());
    assert!(packets.iter().all(|packet| packet.1 == client || packet.1 == server));

    let (from, to) = (packets[2].0, packets[5].0);
    let at = |ns: i64| {
        Some(garrison_proto::Timestamp {
            seconds: ns / 1_000_000_000,
            nanos: (ns % 1_000_000_000) as i32,
        })
    };
    let within = FlowFilter {
        since: at(from),
        until: at(to),
        ..by_id.clone()
    };
    assert_eq!(slice(&world, "slices", within).await.unwrap(), packets[2..5]);
    let opened = FlowFilter {
        src_hosts: vec![client.clone()],
        ports: vec![80],
        ..FlowFilter::default()
    };
    assert_eq!(slice(&world, "slices", opened).await.unwrap(), packets);

    // What packets cannot be selected by is said.
    let status = slice(
        &world,
        "slices",
        FlowFilter {
            services: vec!["http".into()],
            ..FlowFilter::default()
        },
    )
    .await
    .unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(
        status.message().contains("GAR-FLOW-0040: filter.services"),
        "{}",
        status.message()
    );

    // The ring survives the process, however it ends.
    world.kill_and_restart();
    world.finished("slices").await;
    // The old ones and those of the second run.
    whole_slice(&world, "slices", by_id, 18).await;
    world.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_file_is_said_and_harms_no_other_sensor() {
    let stack = Stack::shared().await;
    let dir = folder();
    let good = pcap(&conversations(31, 10, 1000));
    write(dir.path(), "good.pcap", &good);
    write(dir.path(), "cut.pcap", &good[..good.len() - 5]);
    write(dir.path(), "empty.pcap", b"");
    write(dir.path(), "garbage.pcap", &[0x5a; 4096]);
    let mut link = good.clone();
    link[20] = 147;
    write(dir.path(), "link.pcap", &link);
    let mut damaged = good.clone();
    damaged[24 + 11] = 0xff;
    write(dir.path(), "damaged.pcap", &damaged);
    let cases = [
        ("good", "", 90),
        ("cut", "GAR-FLOW-0005", 89),
        ("empty", "GAR-FLOW-0002", 0),
        ("garbage", "GAR-FLOW-0003", 0),
        ("link", "GAR-FLOW-0004", 0),
        ("damaged", "GAR-FLOW-0006", 0),
        ("absent", "GAR-FLOW-0001", 0),
    ];
    let sections: String = cases
        .iter()
        .map(|(name, ..)| {
            format!("[[sensors]]\nid = '{name}'\ntenant = 'files-{name}'\nfile = '{{dir}}/{name}.pcap'\n")
        })
        .collect();
    let mut world = World::start(stack, dir, &sections);
    for (name, code, packets) in cases {
        let sensor = world.finished(&format!("files-{name}")).await;
        assert!(sensor.problem.starts_with(code), "{name}: {}", sensor.problem);
        assert_eq!(sensor.problem.is_empty(), code.is_empty(), "{name}: {}", sensor.problem);
        assert_eq!(sensor.ledger.unwrap().received, packets, "{name}");
    }
    assert!(world.readiness().contains("GAR-FLOW-000"), "{}", world.readiness());
    world.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_configuration_names_its_key_and_ends_with_64() {
    let dir = folder();
    for (sections, key) in [
        (
            "[[sensors]]\nid = 'a b'\ntenant = 'acme'\nfile = 'x'\n",
            "sensors[0].id",
        ),
        ("[[sensors]]\nid = 'a'\ntenant = 'acme'\n", "sensors[0].interfaces"),
        (
            "[[sensors]]\nid = 'a'\ntenant = 'acme'\nfile = 'x'\nfiles = 'y'\n",
            "files",
        ),
        (
            "[[sensors]]\nid = 'a'\ntenant = 'acme'\nfile = 'x'\n[batch]\nrows = 0\n",
            "batch.rows",
        ),
    ] {
        let head = "core.identity = { trust_domain = 't', cert_file = 'c', key_file = 'k', ca_file = 'a' }\n\
                    core.bus = { urls = ['tls://n:4222'], ca_file = 'a', cert_file = 'c', key_file = 'k' }\n";
        let path = write(dir.path(), "wrong.toml", format!("{head}{sections}").as_bytes());
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_flow-ingest"))
            .arg("check")
            .arg("--config")
            .arg(&path)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(64), "{said}");
        assert!(said.contains(key), "{key}: {said}");
    }
    fs::remove_dir_all(dir.path()).unwrap();
}
