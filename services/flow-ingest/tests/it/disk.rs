//! The packet ring on a disk that is too small.

use std::{fs, path::Path, process::Command, time::Duration};

use flow_ingest::{
    config::RingConfig,
    domain::packet::{LinkType, Packet},
    ring::{PacketRing, RingFeed, SliceFilter},
};

fn options(bytes: u64) -> RingConfig {
    RingConfig {
        path: "unused".into(),
        bytes,
        segment_bytes: 64 << 10,
        snaplen: 1500,
        flush_ms: 1,
        max_slice_bytes: 1 << 30,
    }
}

const START: i64 = 1_700_000_000_000_000_000;

fn feed_packets(feed: &mut RingFeed, from: i64, count: usize) {
    let data = [0x55; 1000];
    for i in 0..count {
        let packet = Packet {
            time: START + from + i as i64,
            link: LinkType::Raw,
            data: &data,
            wire_len: 1000,
            vlan_tci: None,
        };
        feed.packet(&packet, None);
    }
    feed.flush();
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..12_000 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("never {what}");
}

#[test]
fn the_ring_keeps_the_newest_within_its_bound() {
    let folder = tempfile::tempdir().unwrap();
    let (ring, mut feed, thread) = PacketRing::open(folder.path(), &options(1 << 20)).unwrap();
    for turn in 0..50 {
        feed_packets(&mut feed, turn * 100, 100);
        // Only so much may wait for the writer, and this is not about what does not.
        let newest = START + turn * 100 + 99;
        eventually("written", || ring.range().is_some_and(|(_, last)| last == newest));
        assert!(ring.bytes() <= 1 << 20, "{}", ring.bytes());
    }
    drop(feed);
    thread.join().unwrap();
    assert_eq!(ring.dropped(), 0);
    let on_disk: u64 = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().extension().unwrap() == "pcapng")
        .map(|entry| entry.metadata().unwrap().len())
        .sum();
    assert!(on_disk <= 1 << 20 && on_disk > 500_000, "{on_disk}");
    assert_eq!(ring.bytes(), on_disk);
}

#[test]
fn a_full_disk_costs_packets_and_nothing_else() {
    // A file system of one megabyte, in a mount namespace of its own.
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "disk::inside_a_small_disk", "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
#[ignore = "run by a_full_disk_costs_packets_and_nothing_else in a namespace of its own"]
fn inside_a_small_disk() {
    let folder = Path::new("/mnt");
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
        .arg(folder)
        .status()
        .unwrap();
    assert!(mounted.success());
    let other = folder.join("other");
    fs::write(&other, vec![0; 700_000]).unwrap();
    let (ring, mut feed, thread) = PacketRing::open(&folder.join("ring"), &options(1 << 30)).unwrap();
    for _ in 0..10 {
        feed_packets(&mut feed, 0, 100);
    }
    eventually("stopped", || ring.problem().is_some());
    let problem = ring.problem().unwrap();
    assert!(problem.starts_with("GAR-FLOW-0020"), "{problem}");
    assert!(ring.dropped() > 0);
    // What was kept is still whole.
    let filter = SliceFilter::compile(&Default::default()).unwrap();
    let kept = || ring.slice(&filter, u64::MAX, |_| true).unwrap().packets;
    eventually("accounted for", || kept() + ring.dropped() == 1000);
    let kept = kept();
    // Once there is room it goes on by itself.
    fs::remove_file(&other).unwrap();
    eventually("kept packets again", || {
        feed_packets(&mut feed, 0, 10);
        ring.problem().is_none()
    });
    assert!(ring.slice(&filter, u64::MAX, |_| true).unwrap().packets > kept);
    drop(feed);
    thread.join().unwrap();
}
