//! A packet of a flow that is already known costs no allocation.

#![allow(unsafe_code)] // an allocator that counts must be one

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use flow_ingest::domain::{
    Limits, Meter, Sink,
    packet::{LinkType, Packet},
};
use garrison_flow::FlowRow;

use crate::craft;

pub struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator unchanged; counting touches only a thread-local integer, which
// needs no allocation.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = COUNT.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let _ = COUNT.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(at, layout, size) }
    }
}

struct Nothing(u64);

impl Sink for Nothing {
    fn record(&mut self, _: &FlowRow<'_>) {
        self.0 += 1;
    }
}

#[test]
fn the_steady_packet_path_allocates_nothing() {
    let mut frames = Vec::new();
    for flow in 0..500_u16 {
        let client = format!("10.0.{}.{}:{}", flow / 250, flow % 250, 30_000 + flow);
        let server = "192.168.0.1:80";
        frames.push(craft::tcp4(&client, server, 2, 99, 0, b""));
        frames.push(craft::tcp4(server, &client, 0x12, 499, 100, b""));
        frames.push(craft::tcp4(
            &client,
            server,
            0x10,
            100,
            500,
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        ));
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n";
        frames.push(craft::tcp4(server, &client, 0x10, 500, 126, head));
        frames.push(craft::udp4(&client, "192.168.0.2:9999", &[0x80; 100]));
    }
    let opening = frames.len();
    for round in 0..20_u32 {
        for flow in 0..500_u16 {
            let client = format!("10.0.{}.{}:{}", flow / 250, flow % 250, 30_000 + flow);
            let server = "192.168.0.1:80";
            let seq = 544 + round * 1000;
            frames.push(craft::tcp4(server, &client, 0x10, seq, 126, &[7; 1000]));
            frames.push(craft::tcp4(&client, server, 0x10, 126, seq + 1000, b""));
            frames.push(craft::udp4("192.168.0.2:9999", &client, &[0x80; 100]));
        }
    }
    let packets: Vec<Packet<'_>> = frames
        .iter()
        .enumerate()
        .map(|(i, data)| Packet {
            time: 1_700_000_000_000_000_000 + i as i64 * 20_000,
            link: LinkType::Ethernet,
            data,
            wire_len: data.len() as u32,
            vlan_tci: None,
        })
        .collect();
    let mut meter = Meter::new("s", Limits::default(), 1);
    let mut sink = Nothing(0);
    meter.process(&packets[..opening], &mut sink);
    let before = COUNT.with(Cell::get);
    meter.process(&packets[opening..], &mut sink);
    let allocations = COUNT.with(Cell::get) - before;
    assert_eq!(allocations, 0, "in {} packets", packets.len() - opening);
    assert_eq!(meter.counts().parsed, packets.len() as u64);
    assert_eq!(meter.counts().opened, 1000);
}
