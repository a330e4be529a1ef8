//! Real packets on real interfaces, in a network namespace of their own.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use flow_ingest::{
    app::{
        recorder::Recorder,
        sensor::Sensor,
        watch::{Watched, now, watch},
    },
    bus::{hub::Hub, outbound, queue::Queue},
    capture::{Filter, afpacket::RingOptions},
    config::BatchConfig,
    domain::{Limits, Meter},
};
use garrison_flow::{FlowBatch, decode};
use garrison_testkit::lab::Node;

use crate::craft;

pub fn in_a_namespace(test: &str) {
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    print!("{said}");
    assert!(output.status.success() && said.contains("1 passed"));
}

#[test]
fn what_is_sent_is_what_is_counted() {
    in_a_namespace("live::inside_counting");
}

#[test]
fn several_workers_share_what_one_would_count() {
    in_a_namespace("live::inside_sharing");
}

#[test]
fn datagrams_in_parts_stay_with_their_flow_among_workers() {
    in_a_namespace("live::inside_parts");
}

#[test]
fn an_interface_may_come_late_and_come_back() {
    in_a_namespace("live::inside_coming_and_going");
}

#[test]
fn a_tag_that_the_kernel_took_out_is_known() {
    in_a_namespace("live::inside_tagged");
}

pub fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

pub struct Watching {
    pub sensor: Arc<Sensor>,
    queue: Arc<Queue>,
    stop: Arc<AtomicBool>,
    worker: JoinHandle<()>,
    outbound: JoinHandle<()>,
}

impl Watching {
    fn start(interfaces: &[&str]) -> Self {
        Self::start_with(interfaces, 1)
    }

    fn start_with(interfaces: &[&str], workers: usize) -> Self {
        Self::filtered(interfaces, workers, None)
    }

    pub fn filtered(interfaces: &[&str], workers: usize, filter: Option<&str>) -> Self {
        let tenant: garrison_proto::TenantId = "acme".parse().unwrap();
        let sensor = Arc::new(Sensor::new(
            "live",
            tenant.clone(),
            interfaces.join(","),
            true,
            now(),
            None,
        ));
        let queue = Arc::new(Queue::new(64 << 20, None));
        let hub = Arc::new(Hub::new([tenant]));
        let sensors = vec![Arc::clone(&sensor)];
        let (outlet, outbound) = outbound::start(Arc::clone(&queue), hub, sensors, Vec::new(), 1 << 20).unwrap();
        let share: Vec<_> = (0..workers)
            .map(|number| {
                let recorder = Recorder::new(Arc::clone(&sensor), outlet.clone(), None, &BatchConfig::default());
                (Meter::new("live", Limits::default(), 1), recorder.of_worker(number))
            })
            .collect();
        drop(outlet);
        let options = RingOptions {
            promiscuous: false,
            ingress_only: true,
            snaplen: 65_535,
            bytes: 4 << 20,
            retire_ms: 1,
        };
        let stop = Arc::new(AtomicBool::new(false));
        let worker = std::thread::spawn({
            let watched = Watched {
                interfaces: interfaces.iter().map(|&i| i.to_owned()).collect(),
                options,
                filter: filter.map(|expression| Filter::new(expression).unwrap()),
            };
            let (sensor, stop) = (Arc::clone(&sensor), Arc::clone(&stop));
            move || watch(&sensor, watched, share, &stop)
        });
        Self {
            sensor,
            queue,
            stop,
            worker,
            outbound,
        }
    }

    pub fn until(&self, what: &str, holds: impl Fn(&Sensor) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(120);
        while !holds(&self.sensor) {
            assert!(Instant::now() < deadline, "never {what}: {:?}", self.sensor.status());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn capturing(&self) {
        self.until("capturing", |s| {
            s.status().link.is_some() && s.status().problem.is_none()
        });
    }

    pub fn finish(self) -> (Arc<Sensor>, Vec<FlowBatch>) {
        self.stop.store(true, Ordering::Relaxed);
        self.worker.join().unwrap();
        self.outbound.join().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut batches = Vec::new();
        let before = self.sensor.ledger().records_published;
        while let Some(item) = runtime.block_on(self.queue.next()) {
            let (batch, meta) = decode(&item.message.payload).unwrap();
            assert!(meta.ledger.balances());
            batches.push(batch);
            item.stored();
        }
        assert_eq!(self.sensor.waiting(), 0);
        let ledger = self.sensor.ledger();
        assert!(ledger.balances(), "{ledger:?}");
        let rows: usize = batches.iter().map(FlowBatch::len).sum();
        assert_eq!(ledger.records_published, before + rows as u64);
        (self.sensor, batches)
    }
}

#[test]
#[ignore = "run by what_is_sent_is_what_is_counted in a namespace of its own"]
fn inside_counting() {
    ip("link set lo up");
    let watching = Watching::start(&["lo"]);
    watching.capturing();

    let receiver = UdpSocket::bind("127.0.0.1:9999").unwrap();
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut buffer = [0; 2000];
    // One at a time, so that the socket's buffer drops none; and a few before they are looked at, so that the ring has
    // room for them even if nobody looks at it for a while.
    for i in 0..3000_u32 {
        let payload = vec![0x41; 100 + (i % 500) as usize];
        sender.send_to(&payload, "127.0.0.1:9999").unwrap();
        receiver.recv(&mut buffer).unwrap();
        if i % 25 == 24 {
            watching.until("caught up", |s| s.status().counts.received > u64::from(i));
        }
    }
    let listener = TcpListener::bind("127.0.0.1:8080").unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 1000];
        let n = stream.read(&mut request).unwrap();
        assert!(n > 0);
        stream
            .write_all(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .unwrap();
    });
    let mut client = TcpStream::connect("127.0.0.1:8080").unwrap();
    client.write_all(b"GET /secret HTTP/1.1\r\nHost: lab\r\n\r\n").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    server.join().unwrap();
    drop(client);
    watching.until("all seen", |s| {
        s.status().counts.opened >= 2 && s.status().counts.received >= 3009
    });

    let (sensor, batches) = watching.finish();
    let ledger = sensor.ledger();
    assert_eq!(
        ledger.malformed + ledger.shed + ledger.dropped_by_kernel,
        0,
        "{ledger:?}"
    );
    let rows: Vec<_> = batches.iter().flat_map(FlowBatch::rows).collect();
    let ended = |port| {
        let found: Vec<_> = rows
            .iter()
            .filter(|r| r.dst_port == port && r.end_reason.is_some())
            .collect();
        assert_eq!(found.len(), 1, "port {port}");
        found[0]
    };
    // With frames that leave left out, each packet on the loopback is seen once.
    let udp = ended(9999);
    assert_eq!((udp.src_packets, udp.dst_packets), (Some(3000), Some(0)));
    let octets: u64 = (0..3000).map(|i| 100 + i % 500).sum();
    assert_eq!(udp.src_bytes, Some(octets));
    let http = ended(8080);
    assert_eq!(
        (http.http_uri, http.http_status, http.http_auth_failures),
        (Some("/secret"), Some(403), Some(1))
    );
    assert_eq!(http.conn_state, Some("SF"));
    let packets = http.src_packets.unwrap() + http.dst_packets.unwrap();
    assert_eq!(ledger.received, 3000 + packets);

    // How soon the refusal was known, for information: machines differ.
    let told = rows.iter().find(|r| r.http_auth_failures == Some(1)).unwrap();
    println!("refused login told {} records into its flow", told.record_seq);
}

#[test]
#[ignore = "run by several_workers_share_what_one_would_count in a namespace of its own"]
fn inside_sharing() {
    ip("link set lo up");
    let watching = Watching::start_with(&["lo"], 3);
    watching.capturing();
    let server = UdpSocket::bind("127.0.0.1:9999").unwrap();
    let mut buffer = [0; 2000];
    let mut sent = 0;
    for client in 0..60_u8 {
        let socket = UdpSocket::bind((format!("127.0.1.{client}").as_str(), 0)).unwrap();
        socket.connect("127.0.0.1:9999").unwrap();
        for _ in 0..=client {
            socket.send(&[0x41; 100]).unwrap();
            let (_, from) = server.recv_from(&mut buffer).unwrap();
            server.send_to(&[0x42; 200], from).unwrap();
            socket.recv(&mut buffer).unwrap();
            sent += 2;
            if sent % 20 == 0 {
                // The ring has room for a few, even if nobody looks at it for a while.
                watching.until("caught up", |s| s.status().counts.received >= sent);
            }
        }
    }
    let packets = (1..=60).sum::<u64>();
    watching.until("all seen", |s| s.status().counts.received >= 2 * packets);
    let (sensor, batches) = watching.finish();
    let ledger = sensor.ledger();
    assert_eq!(
        (ledger.received, ledger.parsed),
        (2 * packets, 2 * packets),
        "{ledger:?}"
    );
    assert_eq!((ledger.dropped_by_kernel, ledger.flows_opened), (0, 60), "{ledger:?}");
    // Both directions of each flow met in one worker.
    let mut ended: Vec<_> = batches
        .iter()
        .flat_map(FlowBatch::rows)
        .filter(|row| row.end_reason.is_some())
        .map(|row| (row.src_packets.unwrap(), row.dst_packets.unwrap()))
        .collect();
    ended.sort_unstable();
    assert_eq!(ended, (1..=60).map(|count| (count, count)).collect::<Vec<_>>());
}

#[test]
#[ignore = "run by datagrams_in_parts_stay_with_their_flow_among_workers in a namespace of its own"]
fn inside_parts() {
    ip("link set lo up");
    let client = Node::attach("client", [10, 1, 0, 2].into()).unwrap();
    let watching = Watching::start_with(&[client.router_interface()], 2);
    watching.capturing();
    let server = UdpSocket::bind("10.1.0.1:9999").unwrap();
    let mut buffer = [0; 8000];
    client
        .run(|| {
            for flow in 0..24_usize {
                watching.until("caught up", |s| s.status().counts.received >= 3 * flow as u64);
                let socket = UdpSocket::bind(("10.1.0.2", 20_000 + flow as u16)).unwrap();
                // Whole, in three parts, whole.
                for length in [100, 4000 + flow, 200] {
                    socket.send_to(&vec![0x41; length], "10.1.0.1:9999").unwrap();
                    assert_eq!(server.recv(&mut buffer).unwrap(), length);
                }
            }
        })
        .unwrap();
    let seen = |s: &Sensor| s.status().counts.received >= 24 * 3;
    watching.until("all seen", seen);
    let (_, batches) = watching.finish();
    let mut flows: Vec<_> = batches
        .iter()
        .flat_map(FlowBatch::rows)
        .filter(|row| row.protocol == 17 && row.dst_ip.to_string() == "10.1.0.1" && row.end_reason.is_some())
        .map(|row| {
            (
                row.src_port,
                row.dst_port,
                row.src_packets.unwrap(),
                row.src_bytes.unwrap(),
            )
        })
        .collect();
    flows.sort_unstable();
    let one = |flow: u16| (20_000 + flow, 9999, 3, 4300 + u64::from(flow));
    assert_eq!(flows, (0..24).map(one).collect::<Vec<_>>());
}

#[test]
#[ignore = "run by an_interface_may_come_late_and_come_back in a namespace of its own"]
fn inside_coming_and_going() {
    let watching = Watching::start(&["late0"]);
    watching.until("missed", |s| {
        s.status()
            .problem
            .is_some_and(|problem| problem.starts_with("GAR-FLOW-0010"))
    });
    let make = || {
        ip("link add late0 type veth peer name far0");
        ip("address add 10.9.0.1/24 dev late0");
        ip("link set late0 up");
        ip("link set far0 up");
    };
    make();
    watching.capturing();
    let frame = craft::udp4("10.9.0.2:7000", "10.9.0.1:7001", b"hello");
    let packets_come = |before| {
        watching.until("seen packets", |s| {
            send("far0", &frame);
            s.status().counts.received > before
        });
    };
    packets_come(0);
    ip("link delete late0");
    watching.until("missed again", |s| s.status().problem.is_some());
    let before = watching.sensor.status().counts.received;
    make();
    packets_come(before);
    watching.finish();
}

#[test]
#[ignore = "run by a_tag_that_the_kernel_took_out_is_known in a namespace of its own"]
fn inside_tagged() {
    ip("link add near type veth peer name far");
    ip("link set near up");
    ip("link set far up");
    let watching = Watching::start(&["near"]);
    watching.capturing();
    let mut frame = craft::udp4("10.8.0.2:7000", "10.8.0.1:7001", b"tagged");
    frame.splice(12..12, [0x81, 0x00, 0x20, 42]);
    for _ in 0..20 {
        send("far", &frame);
    }
    watching.until("seen", |s| s.status().counts.received >= 20);
    let (_, batches) = watching.finish();
    let tagged = batches
        .iter()
        .flat_map(FlowBatch::rows)
        .find(|row| row.dst_port == 7001 && row.end_reason.is_some())
        .unwrap();
    assert_eq!((tagged.vlan, tagged.src_packets), (Some(42), Some(20)));
}

// Puts a frame on an interface as it is.
#[allow(unsafe_code)]
pub fn send(interface: &str, frame: &[u8]) {
    let index = flow_ingest::capture::afpacket::interface_index(interface).unwrap();
    // SAFETY: system calls; the address is a whole `sockaddr_ll` whose length is given, the frame a slice, and both
    // live through the calls.
    unsafe {
        let socket = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0);
        assert!(socket >= 0);
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = index as i32;
        let sent = libc::sendto(
            socket,
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        );
        assert_eq!(sent, frame.len() as isize);
        libc::close(socket);
    }
}

#[test]
fn on_a_router_forwarded_packets_count_once_and_directions_meet() {
    in_a_namespace("live::inside_router");
}

#[test]
#[ignore = "run by on_a_router_forwarded_packets_count_once_and_directions_meet in a namespace of its own"]
fn inside_router() {
    ip("link set lo up");
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    let client = Node::attach("client", [10, 1, 0, 2].into()).unwrap();
    let server = Node::attach("server", [10, 2, 0, 2].into()).unwrap();
    let watching = Watching::start(&[client.router_interface(), server.router_interface()]);
    watching.capturing();
    let listener = server.run(|| TcpListener::bind("10.2.0.2:8080").unwrap()).unwrap();
    let serving = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 64];
        assert!(stream.read(&mut request).unwrap() > 0);
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")
            .unwrap();
    });
    client
        .run(|| {
            let mut stream = TcpStream::connect("10.2.0.2:8080").unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
        })
        .unwrap();
    serving.join().unwrap();
    // Neighbour discovery is captured too, so a number of packets says nothing.
    watching.until("the end of the flow", |s| s.status().counts.ended > 0);
    let (sensor, batches) = watching.finish();
    let rows: Vec<_> = batches.iter().flat_map(FlowBatch::rows).collect();
    let flows: Vec<_> = rows
        .iter()
        .filter(|row| row.protocol == 6 && row.end_reason.is_some())
        .collect();
    assert_eq!(flows.len(), 1, "one flow, seen from both sides");
    let flow = flows[0];
    assert_eq!((flow.src_ip.to_string(), flow.dst_port), ("10.1.0.2".to_owned(), 8080));
    assert_eq!((flow.conn_state, flow.http_status), (Some("SF"), Some(200)));
    // A packet counted on both interfaces would look like a repeat.
    assert_eq!((flow.src_retransmits, flow.dst_retransmits), (Some(0), Some(0)));
    assert_eq!(sensor.ledger().dropped_by_kernel, 0);
}

#[test]
fn a_lone_packet_is_told_soon() {
    in_a_namespace("live::inside_latency");
}

#[test]
#[ignore = "run by a_lone_packet_is_told_soon in a namespace of its own"]
fn inside_latency() {
    ip("link set lo up");
    let watching = Watching::start(&["lo"]);
    watching.capturing();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let mut latencies = Vec::new();
    for i in 0..200_u16 {
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        std::thread::sleep(Duration::from_millis(3));
        let sent = Instant::now();
        sender.send_to(b"hello", ("127.0.0.1", 10_000 + i)).unwrap();
        // The kernel's answer that nobody listens is a flow of its own.
        loop {
            let next = async { tokio::time::timeout(Duration::from_secs(60), watching.queue.next()).await };
            let item = runtime.block_on(next).expect("a record").expect("the queue is open");
            let (batch, _) = decode(&item.message.payload).unwrap();
            let found = batch.rows().any(|row| row.dst_port == 10_000 + i);
            item.stored();
            if found {
                break;
            }
        }
        latencies.push(sent.elapsed());
    }
    latencies.sort();
    // For information: how long it takes depends on the machine.
    println!(
        "packet to encoded batch: median {:?}, 99 % {:?}",
        latencies[100], latencies[197]
    );
    watching.finish();
}
