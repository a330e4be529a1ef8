//! Live capture in a namespace of its own: a host sends as fast as it can, and every count is compared.

use std::{
    fs,
    net::{Ipv4Addr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use flow_ingest::{
    capture::afpacket::{Interface, Ring, RingOptions, wait},
    domain::{Counts, Limits, Meter, record::EndReason},
};
use garrison_testkit::lab::{self, Node};
use serde_json::{Value, json};

use crate::meter::Batches;

const FLOWS: u16 = 200;

/// Captures for some seconds with some workers.
pub fn measure(seconds: u64, workers: usize) -> Result<Value, String> {
    let text = |error: &dyn std::error::Error| error.to_string();
    lab::enter().map_err(|error| text(&error))?;
    let host = Node::attach("sender", Ipv4Addr::new(10, 99, 0, 2)).map_err(|error| text(&error))?;
    let interface = Interface::find(host.router_interface()).map_err(|error| text(&error))?;
    let options = RingOptions {
        promiscuous: false,
        ingress_only: true,
        snaplen: 65_535,
        bytes: 64 << 20,
        retire_ms: 1,
    };
    let rings = Ring::open_several("bench", &options, workers).map_err(|error| text(&error))?;
    let controls: Vec<_> = rings.iter().map(Ring::control).collect();
    // Whoever asks its card for neighbours does so now and not while counts are taken.
    let sink = UdpSocket::bind((host.gateway(), 9999)).map_err(|error| text(&error))?;
    host.run(|| UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.send_to(b"hello", (host.gateway(), 9999))))
        .map_err(|error| text(&error))?
        .map_err(|error| text(&error))?;
    std::thread::sleep(Duration::from_millis(500));
    for control in &controls {
        control
            .listen_on(&[(interface.index, None)])
            .map_err(|error| text(&error))?;
        control.drops().map_err(|error| text(&error))?;
    }
    // Of this namespace, as sysfs shows the one it was mounted in.
    let card = || -> u64 {
        let text = fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
        let name = format!("{}:", host.router_interface());
        let line = text.lines().find_map(|line| line.trim_start().strip_prefix(&name));
        // Octets, then packets received.
        line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
            .unwrap_or_default()
    };
    let (before, stop, began) = (card(), AtomicBool::new(false), Instant::now());
    let (sent, counts) = std::thread::scope(|scope| {
        let meters: Vec<_> = rings
            .into_iter()
            .map(|ring| scope.spawn(|| capture(ring, &stop)))
            .collect();
        let sent = host.run(|| send(host.gateway(), Duration::from_secs(seconds)));
        std::thread::sleep(Duration::from_millis(300));
        stop.store(true, Ordering::Relaxed);
        let mut sum = Counts::default();
        for meter in meters {
            sum += meter.join().unwrap_or_default();
        }
        (sent, sum)
    });
    let on_card = card() - before;
    let sent = sent.map_err(|error| text(&error))?.map_err(|error| text(&error))?;
    drop(sink);
    let (mut offered, mut dropped) = (0, 0);
    for control in &controls {
        let drops = control.drops().map_err(|error| text(&error))?;
        offered += drops.offered;
        dropped += drops.dropped;
    }
    Ok(json!({
        "sent": sent, "on_card": on_card, "offered": offered, "dropped": dropped, "received": counts.received,
        "flows": counts.opened, "records": counts.records, "seconds": seconds,
        "wall_ns": began.elapsed().as_nanos() as u64,
        "adds_up": counts.ledger().balances() && on_card == offered && offered == counts.received + dropped,
    }))
}

// Sends small datagrams of some hundred flows in turn.
fn send(to: Ipv4Addr, time: Duration) -> std::io::Result<u64> {
    let sockets: Vec<UdpSocket> = (0..FLOWS)
        .map(|_| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect((to, 9999))?;
            Ok(socket)
        })
        .collect::<std::io::Result<_>>()?;
    let (began, mut sent) = (Instant::now(), 0);
    while began.elapsed() < time {
        for socket in &sockets {
            sent += u64::from(socket.send(&[0x41; 64]).is_ok());
        }
    }
    Ok(sent)
}

fn capture(mut ring: Ring, stop: &AtomicBool) -> Counts {
    let (mut meter, mut sink) = (Meter::new("bench", Limits::default(), 1), Batches::default());
    loop {
        // Asked first, so that what came before the end is still taken.
        let over = stop.load(Ordering::Relaxed);
        let mut busy = false;
        while let Some(block) = ring.block() {
            busy = true;
            block.bursts(|packets| meter.process(packets, &mut sink));
        }
        if over {
            break;
        }
        if !busy {
            wait(&ring, Duration::from_millis(5));
        }
    }
    meter.finish(EndReason::Shutdown, &mut sink);
    meter.counts()
}
