//! The broker goes away in the middle, and the service is killed in the middle.

use std::{
    fs::OpenOptions,
    io::Write as _,
    time::{Duration, Instant},
};

use garrison_testkit::Stack;

use crate::{
    captures::{conversations, pcap},
    world::{World, pipe, stored, write},
};

#[tokio::test(flavor = "multi_thread")]
async fn records_of_a_file_wait_for_the_broker_and_all_arrive() {
    let stack = Stack::start().await;
    let dir = tempfile::tempdir().unwrap();
    // Three seconds of packets, of which half come when the broker is away.
    let (path, capture) = (pipe(dir.path(), "a.pcap"), pcap(&conversations(41, 500, 660_000)));
    let (go_on, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut pipe = OpenOptions::new().write(true).open(path).unwrap();
        let (first, second) = capture.split_at(capture.len() / 2);
        pipe.write_all(first).unwrap();
        told.recv().unwrap();
        pipe.write_all(second).unwrap();
    });
    let sections = "[[sensors]]\nid = 'edge'\ntenant = 'outage'\nfile = '{dir}/a.pcap'\npace = 'realtime'\n";
    let mut world = World::start(&stack, dir, sections);
    world
        .sensor_when("outage", "under way", |s| {
            s.ledger.is_some_and(|l| l.records_published > 50)
        })
        .await;
    // Stopped rather than killed: the stream of flows acknowledges before it syncs, so a crash of the broker itself may
    // cost what it acknowledged last.
    stack.nats().stop();
    go_on.send(()).unwrap();
    world
        .sensor_when("outage", "read to its end", |s| {
            s.ledger.is_some_and(|l| l.received == 4500)
        })
        .await;
    assert!(
        !world.sensors("outage").await[0].finished,
        "records still wait for the broker"
    );
    tokio::time::sleep(Duration::from_millis(300)).await;
    stack.nats().resume().unwrap();
    let ledger = world.finished("outage").await.ledger.unwrap();
    assert_eq!(ledger.records_lost, 0);
    let batches = stored(&stack, "outage").await;
    let rows: usize = batches.iter().map(|(batch, _)| batch.len()).sum();
    assert_eq!(rows as u64, ledger.records_published);
    let ended = batches
        .iter()
        .flat_map(|(batch, _)| batch.rows())
        .filter(|row| row.end_reason.is_some())
        .count();
    assert_eq!(ended, 500, "the end of every flow");
    // In order: the records of a flow come one after the other.
    let mut next = std::collections::HashMap::new();
    for row in batches.iter().flat_map(|(batch, _)| batch.rows()) {
        let expected = next.entry(row.flow_id).or_insert(0);
        assert_eq!(row.record_seq, *expected);
        *expected += 1;
    }
    world.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waited_on_disk_survives_the_service() {
    let stack = Stack::start().await;
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "a.pcap", &pcap(&conversations(42, 200, 100_000)));
    let sections =
        "[[sensors]]\nid = 'edge'\ntenant = 'spooled'\nfile = '{dir}/a.pcap'\n[spool]\npath = '{dir}/spool'\n";
    stack.nats().kill();
    let mut world = World::start(&stack, dir, sections);
    world
        .sensor_when("spooled", "read", |s| s.ledger.is_some_and(|l| l.received == 1800))
        .await;
    // Asked to stop while the broker is away, it leaves its batches on disk.
    world.end();
    let files = std::fs::read_dir(world.dir.path().join("spool")).unwrap().count();
    assert!(files > 0, "{}", world.log());
    stack.nats().resume().unwrap();
    world.kill_and_restart();
    let second = world.finished("spooled").await.ledger.unwrap();
    assert_eq!(second.records_lost, 0);
    // Both runs' records are there, the first run's from disk; and what the broker has is gone from disk.
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let batches = stored(&stack, "spooled").await;
        let rows = batches.iter().map(|(batch, _)| batch.len() as u64).sum::<u64>();
        let files = std::fs::read_dir(world.dir.path().join("spool")).unwrap().count();
        if (rows, files) == (second.records_published * 2, 0) {
            break;
        }
        assert!(
            Instant::now() < deadline && rows <= second.records_published * 2,
            "{rows} records, {files} files\n{}",
            world.log()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.end();
}
