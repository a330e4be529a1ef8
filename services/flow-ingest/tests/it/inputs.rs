//! Files of every kind, a watched folder and a followed log, through the whole service.

use std::{
    fs::{self, OpenOptions},
    io::{Read as _, Write as _},
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use flow_ingest::{
    capture::Source,
    domain::{Limits, Sink},
    input::{Input, Kind, Options},
};
use garrison_flow::{FlowBatch, FlowRow};
use garrison_testkit::{Stack, corpora};

use crate::{
    captures::{conversations, pcap},
    world::{World, stored, write},
};

fn line(second: u32, port: u16) -> String {
    format!(
        "2 1 eni-1 10.0.0.1 10.0.0.2 {port} 443 6 3 300 {second} {} ACCEPT OK\n",
        second + 1
    )
}

fn append(path: &Path, text: &str) {
    let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

// How far a followed log was read, as it is noted on disk.
fn noted(world: &Path) -> Option<u64> {
    let text = fs::read(world.join("state/follow/cloud.place.json")).ok()?;
    let place: serde_json::Value = serde_json::from_slice(&text).ok()?;
    place["offset"].as_u64()
}

async fn ports(stack: &Stack, tenant: &str) -> Vec<u16> {
    let batches = stored(stack, tenant).await;
    let mut ports: Vec<u16> = batches
        .iter()
        .flat_map(|(batch, _)| FlowBatch::rows(batch))
        .map(|row| row.src_port)
        .collect();
    ports.sort_unstable();
    ports
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_followed_through_rotation_truncation_and_a_restart() {
    let stack = Stack::shared().await;
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("flow.log");
    append(&log, &line(1, 1001));
    let sections = "[[sensors]]\nid = 'cloud'\ntenant = 'follow'\nlog = '{dir}/flow.log'\nformat = 'aws-vpc'\n[state]\npath = '{dir}/state'\n";
    let mut world = World::start(stack, dir, sections);
    let reached = |records: u64| {
        let world = &world;
        async move {
            world
                .sensor_when("follow", &format!("at {records} records"), |sensor| {
                    sensor.ledger.unwrap().records_published == records
                })
                .await
        }
    };
    reached(1).await;
    // A line in two parts, and a bad one.
    let whole = line(2, 1002);
    append(&log, &whole[..20]);
    tokio::time::sleep(Duration::from_millis(200)).await;
    append(&log, &(whole[20..].to_owned() + "bad\n"));
    let ledger = reached(2).await.ledger.unwrap();
    assert_eq!((ledger.received, ledger.malformed), (3, 1));
    // Rotated; what was written to the old file meanwhile is read too.
    let rotated = log.with_extension("1");
    fs::rename(&log, &rotated).unwrap();
    append(&rotated, &line(3, 1003));
    append(&log, &(line(4, 1004) + &line(4, 1004)));
    reached(5).await;
    // Truncated and begun anew: shorter than it was, whenever that is looked at.
    fs::write(&log, "").unwrap();
    append(&log, &line(5, 1005));
    reached(6).await;
    // A kill costs nothing once the place is noted.
    let length = fs::metadata(&log).unwrap().len();
    let deadline = Instant::now() + Duration::from_secs(120);
    while noted(world.dir.path()) != Some(length) {
        assert!(Instant::now() < deadline, "the place was never noted: {}", world.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    world.kill_and_restart();
    append(&log, &line(6, 1006));
    world
        .sensor_when("follow", "at one more", |sensor| {
            sensor.ledger.unwrap().records_published == 1
        })
        .await;
    world.end();
    assert_eq!(ports(stack, "follow").await, [1001, 1002, 1003, 1004, 1004, 1005, 1006]);
    assert!(world.log().contains("GAR-FLOW-0057"));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_file_of_a_folder_is_read_once_also_while_it_is_written() {
    let stack = Stack::shared().await;
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("in");
    fs::create_dir(&folder).unwrap();
    let capture = pcap(&conversations(31, 200, 50_000));
    let half = write(&folder, "a.pcap", &capture[..capture.len() / 2]);
    // As if it were written still, however long that takes.
    let file = OpenOptions::new().append(true).open(half).unwrap();
    file.set_modified(SystemTime::now() + Duration::from_secs(3_600))
        .unwrap();
    drop(file);
    write(&folder, "b.log", line(1, 2001).as_bytes());
    write(&folder, "c.pcap.tmp", b"not yet");
    write(&folder, ".hidden", b"nor this");
    let sections = "[[sensors]]\nid = 'drop'\ntenant = 'folder'\nfolder = '{dir}/in'\nsettle_ms = 1500\n\
                    [state]\npath = '{dir}/state'\n";
    let mut world = World::start(stack, dir, sections);
    // The second half comes while the first is read.
    world
        .sensor_when("folder", "reading", |sensor| sensor.ledger.unwrap().received > 100)
        .await;
    let mut file = OpenOptions::new().append(true).open(folder.join("a.pcap")).unwrap();
    file.write_all(&capture[capture.len() / 2..]).unwrap();
    drop(file);
    let packets = 1_800;
    let received =
        |count: u64| move |sensor: &garrison_proto::flow::v1::Sensor| sensor.ledger.unwrap().received == count;
    let sensor = world.sensor_when("folder", "read both", received(packets + 1)).await;
    assert_eq!(sensor.problem, "");
    // Another, compressed; and one that is nothing.
    write(&folder, "d.log.gz", &gzip((line(2, 2002) + &line(3, 2003)).as_bytes()));
    write(&folder, "e.bin", b"\x01\x02\x03 nothing");
    let sensor = world
        .sensor_when("folder", "read all", |sensor| {
            received(packets + 3)(sensor) && sensor.problem.contains("GAR-FLOW-0003")
        })
        .await;
    let ledger = sensor.ledger.unwrap();
    assert_eq!((ledger.parsed, ledger.malformed), (packets + 3, 0));
    // Nothing is read again, neither by this run nor by the next.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(world.sensors("folder").await[0].ledger.unwrap().received, packets + 3);
    world.end();
    let before = ports(stack, "folder").await;
    assert_eq!(before.iter().filter(|port| (2001..=2003).contains(*port)).count(), 3);
    world.kill_and_restart();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(world.sensors("folder").await[0].ledger.unwrap().received, 0);
    write(&folder, "f.log", line(4, 2004).as_bytes());
    world.sensor_when("folder", "read the new one", received(1)).await;
    world.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_may_be_a_log_and_compressed() {
    let stack = Stack::shared().await;
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "flows.log.gz", &gzip((line(1, 3001) + "bad\n").as_bytes()));
    let packed = zstd::stream::encode_all(&pcap(&conversations(32, 10, 50_000))[..], 1).unwrap();
    write(dir.path(), "a.pcap.zst", &packed);
    let sections = "[[sensors]]\nid = 'log'\ntenant = 'filelog'\nfile = '{dir}/flows.log.gz'\n\
                    [[sensors]]\nid = 'packets'\ntenant = 'filezst'\nfile = '{dir}/a.pcap.zst'\n";
    let mut world = World::start(stack, dir, sections);
    let ledger = world.finished("filelog").await.ledger.unwrap();
    assert_eq!((ledger.received, ledger.parsed, ledger.malformed), (2, 1, 1));
    assert_eq!(ledger.records_published, 1);
    let ledger = world.finished("filezst").await.ledger.unwrap();
    assert_eq!((ledger.received, ledger.flows_ended), (90, 10));
    world.end();
}

struct Count(u64);

impl Sink for Count {
    fn record(&mut self, row: &FlowRow<'_>) {
        assert!(row.first_seen <= row.last_seen);
        self.0 += 1;
    }
}

#[test]
fn zeek_s_own_logs_are_read_to_the_last_line() {
    let Some(corpora) = corpora("inputs::zeek_s_own_logs_are_read_to_the_last_line") else {
        return;
    };
    let mut logs = Vec::new();
    let mut folders = vec![corpora.join("flows/zeek-labelled")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() {
                folders.push(path);
            } else if name.starts_with("conn") && name.contains("log") {
                logs.push(path);
            }
        }
    }
    assert!(!logs.is_empty());
    for path in logs {
        let mut text = Vec::new();
        Source::open(&path).unwrap().read_to_end(&mut text).unwrap();
        let connections = text
            .split(|&b| b == b'\n')
            .filter(|line| !line.is_empty() && line[0] != b'#')
            .count() as u64;
        let input = Input::open(&path, None).unwrap();
        assert!(matches!(input.kind(), Kind::Log(_)), "{}", path.display());
        let options = Options {
            sensor: "zeek".to_owned(),
            limits: Limits::default(),
            filter: None,
            random: 1,
            format: None,
            extra: true,
        };
        let mut count = Count(0);
        let summary = input.read(&options, &mut count, &mut |_| true).unwrap();
        println!("{}: {connections} connections, {:?}", path.display(), summary.faults);
        assert_eq!(
            (summary.counts.malformed, count.0),
            (0, connections),
            "{}",
            path.display()
        );
        assert!(summary.counts.ledger().balances());
    }
}
