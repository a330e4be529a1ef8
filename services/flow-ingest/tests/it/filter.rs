//! Filters in the kernel, in a network namespace of their own.

use std::net::UdpSocket;

use garrison_flow::FlowBatch;

use crate::{
    craft,
    live::{Watching, in_a_namespace, ip, send},
};

#[test]
fn only_what_is_wanted_is_captured() {
    in_a_namespace("filter::inside_wanted");
}

#[test]
fn a_tag_that_the_kernel_took_out_can_be_asked_for() {
    in_a_namespace("filter::inside_tagged");
}

#[test]
fn what_does_not_hold_for_an_interface_is_its_problem() {
    in_a_namespace("filter::inside_refused");
}

// Called ports and packets of what was seen.
fn seen(batches: &[FlowBatch]) -> Vec<(u16, u64)> {
    let mut seen: Vec<_> = batches
        .iter()
        .flat_map(FlowBatch::rows)
        .filter(|row| row.end_reason.is_some())
        .map(|row| (row.dst_port, row.src_packets.unwrap()))
        .collect();
    seen.sort_unstable();
    seen
}

#[test]
#[ignore = "run by only_what_is_wanted_is_captured in a namespace of its own"]
fn inside_wanted() {
    ip("link set lo up");
    ip("link add far0 type veth peer name near0");
    ip("link set near0 up");
    let watching = Watching::filtered(&["near0", "lo"], 2, Some("udp dst port 9001 or udp dst port 9003"));
    watching.capturing();
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    let receivers: Vec<_> = (9000..9004)
        .map(|port| UdpSocket::bind(("127.0.0.1", port)).unwrap())
        .collect();
    for (place, receiver) in receivers.iter().enumerate() {
        for _ in 0..=place {
            sender.send_to(b"x", receiver.local_addr().unwrap()).unwrap();
        }
    }
    watching.until("all seen", |s| s.status().counts.received >= 6);
    let (sensor, batches) = watching.finish();
    assert_eq!(seen(&batches), [(9001, 2), (9003, 4)]);
    assert_eq!(sensor.ledger().received, 6);
}

#[test]
#[ignore = "run by a_tag_that_the_kernel_took_out_can_be_asked_for in a namespace of its own"]
fn inside_tagged() {
    ip("link add near type veth peer name far");
    ip("link set near up");
    ip("link set far up");
    let watching = Watching::filtered(&["near"], 1, Some("vlan 42 and udp port 7001"));
    watching.capturing();
    let plain = craft::udp4("10.8.0.2:7000", "10.8.0.1:7001", b"plain");
    let tagged = |id: u8, frame: &[u8]| [&frame[..12], &[0x81, 0, 0, id], &frame[12..]].concat();
    let other = craft::udp4("10.8.0.2:7000", "10.8.0.1:7002", b"another port");
    for _ in 0..5 {
        for frame in [
            plain.clone(),
            tagged(41, &plain),
            tagged(42, &other),
            tagged(42, &plain),
        ] {
            send("far", &frame);
        }
    }
    watching.until("seen", |s| s.status().counts.received >= 5);
    let (sensor, batches) = watching.finish();
    assert_eq!(seen(&batches), [(7001, 5)]);
    assert_eq!(sensor.ledger().received, 5);
}

#[test]
#[ignore = "run by what_does_not_hold_for_an_interface_is_its_problem in a namespace of its own"]
fn inside_refused() {
    ip("link set lo up");
    let watching = Watching::filtered(&["lo"], 1, Some("wlan type data"));
    watching.until("refused", |s| {
        s.status()
            .problem
            .is_some_and(|problem| problem.starts_with("GAR-FLOW-0015"))
    });
    watching.finish();
}
