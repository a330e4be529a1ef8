use std::net::SocketAddr;

use garrison_flow::{FlowBatch, FlowBatchBuilder, FlowRow, FlowState};
use proptest::prelude::*;

use super::{
    Counts, Limits, Meter, Sink,
    app::{dns::tests as dns, tls::tests as tls},
    craft,
    packet::{
        LinkType, Packet,
        flag::{ACK, FIN, RST, SYN},
    },
    record::EndReason,
};

const MS: i64 = 1_000_000;
const CLIENT: &str = "10.0.0.1:40000";
const SERVER: &str = "10.0.0.2:80";

struct Rows(FlowBatchBuilder);

impl Sink for Rows {
    fn record(&mut self, row: &FlowRow<'_>) {
        self.0.push(row);
    }
}

struct Lab {
    meter: Meter,
    rows: Rows,
    time: i64,
}

impl Lab {
    fn new(limits: Limits) -> Self {
        Self {
            meter: Meter::new("lab", limits, 7),
            rows: Rows(FlowBatchBuilder::new(16)),
            time: 1_700_000_000_000_000_000,
        }
    }

    fn frame(&mut self, data: &[u8]) {
        self.time += MS;
        let packet = Packet {
            time: self.time,
            link: LinkType::Ethernet,
            data,
            wire_len: data.len() as u32,
            vlan_tci: None,
        };
        self.meter.process(&[packet], &mut self.rows);
    }

    fn tcp(&mut self, src: &str, dst: &str, flags: u8, seq: u32, ack: u32, payload: &[u8]) {
        self.frame(&craft::tcp4(src, dst, flags, seq, ack, payload));
    }

    fn handshake(&mut self) {
        self.tcp(CLIENT, SERVER, SYN, 99, 0, b"");
        self.tcp(SERVER, CLIENT, SYN | ACK, 499, 100, b"");
        self.tcp(CLIENT, SERVER, ACK, 100, 500, b"");
    }

    fn pass(&mut self, milliseconds: i64) {
        self.time += milliseconds * MS;
        self.meter.tick(self.time, &mut self.rows);
    }

    fn taken(&mut self) -> FlowBatch {
        self.rows.0.finish()
    }

    fn finished(mut self) -> (FlowBatch, Counts) {
        self.meter.finish(EndReason::EndOfFile, &mut self.rows);
        assert_eq!(self.meter.active_flows(), 0);
        let counts = self.meter.counts();
        assert!(counts.ledger().balances(), "{counts:?}");
        assert_eq!(counts.opened, counts.ended);
        (self.taken(), counts)
    }
}

fn states(batch: &FlowBatch) -> Vec<FlowState> {
    batch
        .rows()
        .map(|row| FlowState::from_column(row.state).unwrap())
        .collect()
}

#[test]
fn an_http_conversation_is_told_exactly() {
    let mut lab = Lab::new(Limits::default());
    let request = b"GET /a HTTP/1.1\r\nHost: shop\r\nUser-Agent: t\r\n\r\n";
    let response = b"HTTP/1.1 401 No\r\nContent-Length: 3\r\n\r\nabc";
    let (q, r) = (request.len() as u32, response.len() as u32);
    lab.handshake();
    // The head comes in two parts, the later one first.
    lab.tcp(CLIENT, SERVER, ACK, 110, 500, &request[10..]);
    lab.tcp(CLIENT, SERVER, ACK, 100, 500, &request[..10]);
    lab.tcp(SERVER, CLIENT, ACK, 500, 100 + q, response);
    lab.tcp(CLIENT, SERVER, ACK | FIN, 100 + q, 500 + r, b"");
    lab.tcp(SERVER, CLIENT, ACK | FIN, 500 + r, 101 + q, b"");
    lab.tcp(CLIENT, SERVER, ACK, 101 + q, 501 + r, b"");
    let (batch, counts) = lab.finished();
    assert_eq!(counts.received, 9);
    // First packet, request known, the response's refusal 1 ms later and yet at once, end.
    use FlowState::{Active, Ended, New};
    assert_eq!(states(&batch), [New, Active, Active, Ended]);
    let sequence: Vec<u32> = batch.rows().map(|row| row.record_seq).collect();
    assert_eq!(sequence, [0, 1, 2, 3]);
    assert_eq!(batch.row(2).http_auth_failures, Some(1));
    let last = batch.row(3);
    assert!(batch.rows().all(|row| row.flow_id == last.flow_id));
    assert_eq!((last.src_packets, last.dst_packets), (Some(6), Some(3)));
    assert_eq!(
        (last.src_bytes, last.dst_bytes),
        (Some(u64::from(q)), Some(u64::from(r)))
    );
    assert_eq!(last.src_ip_bytes, Some(6 * 40 + u64::from(q)));
    assert_eq!(last.conn_state, Some("SF"));
    assert_eq!(last.history, Some("ShADTdFf"));
    assert_eq!(last.end_reason, Some("fin"));
    assert_eq!(last.tcp_rtt_ns, Some(MS as u64));
    assert_eq!(last.missed_bytes, Some(0));
    assert_eq!(last.service, Some("http"));
    assert_eq!(
        (last.http_method, last.http_uri, last.http_host),
        (Some("GET"), Some("/a"), Some("shop"))
    );
    assert_eq!(
        (last.http_status, last.http_requests, last.http_auth_failures),
        (Some(401), Some(1), Some(1))
    );
    let lengths = last.first_lengths.unwrap();
    assert_eq!(lengths[..4], [q as i16 - 10, 10, -(r as i16), 0]);
    assert_eq!(last.src_mac, Some([2, 0, 0, 0, 0, 1]));
    assert_eq!(last.dst_mac, Some([2, 0, 0, 0, 0, 2]));
}

#[test]
fn each_refused_login_is_told_soon_and_none_is_forgotten() {
    let mut lab = Lab::new(Limits::default());
    lab.handshake();
    let request = b"GET / HTTP/1.1\r\n\r\n";
    let response = b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n";
    let (mut seq, mut ack) = (100, 500);
    for _ in 0..50 {
        lab.tcp(CLIENT, SERVER, ACK, seq, ack, request);
        seq += request.len() as u32;
        lab.tcp(SERVER, CLIENT, ACK, ack, seq, response);
        ack += response.len() as u32;
    }
    // The last ones are told although no packet comes any more.
    lab.pass(40);
    let batch = lab.taken();
    let told: Vec<u32> = batch.rows().filter_map(|row| row.http_auth_failures).collect();
    assert_eq!(told.last(), Some(&50));
    assert!((8..=15).contains(&told.len()), "at most one in 10 ms: {told:?}");
    assert!(told.windows(2).all(|pair| pair[0] <= pair[1]));
}

#[test]
fn a_client_hello_is_read_however_its_segments_arrive() {
    let hello = tls::example_client_hello();
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [0, 2, 1]] {
        let mut lab = Lab::new(Limits::default());
        lab.handshake();
        let third = hello.len().div_ceil(3);
        for part in order {
            let at = part * third;
            let data = &hello[at..(at + third).min(hello.len())];
            lab.tcp(CLIENT, SERVER, ACK, 100 + at as u32, 500, data);
        }
        let (batch, _) = lab.finished();
        let last = batch.row(batch.len() - 1);
        assert_eq!(last.ja4, Some("t13d1516h2_8daaf6152771_e5627efa2ab1"), "{order:?}");
        assert_eq!((last.service, last.tls_sni), (Some("tls"), Some("example.com")));
    }
}

#[test]
fn a_dns_question_is_in_the_first_record_and_its_answer_in_the_next() {
    let mut lab = Lab::new(Limits::default());
    let ask = dns::query("db.internal", 28);
    lab.frame(&craft::udp4("10.0.0.1:5000", "10.0.0.9:53", &ask));
    lab.frame(&craft::udp4("10.0.0.9:53", "10.0.0.1:5000", &dns::answer_to(&ask, 3)));
    let batch = lab.taken();
    assert_eq!(states(&batch), [FlowState::New, FlowState::Active]);
    assert_eq!(
        (batch.row(0).dns_query, batch.row(0).dns_rcode),
        (Some("db.internal"), None)
    );
    assert_eq!((batch.row(1).dns_qtype, batch.row(1).dns_rcode), (Some(28), Some(3)));
    assert_eq!(batch.row(1).conn_state, Some("SF"));
}

#[test]
fn scans_look_like_scans() {
    let mut lab = Lab::new(Limits::default());
    // Open, closed and silent ports.
    lab.tcp(CLIENT, "10.0.0.2:22", SYN, 1, 0, b"");
    lab.tcp("10.0.0.2:22", CLIENT, SYN | ACK, 9, 2, b"");
    lab.tcp(CLIENT, "10.0.0.2:22", RST, 2, 0, b"");
    lab.tcp(CLIENT, "10.0.0.2:23", SYN, 1, 0, b"");
    lab.tcp("10.0.0.2:23", CLIENT, RST | ACK, 0, 2, b"");
    lab.tcp(CLIENT, "10.0.0.2:24", SYN, 1, 0, b"");
    lab.pass(10_000);
    let batch = lab.taken();
    let ended: Vec<_> = batch
        .rows()
        .filter(|row| row.state == FlowState::Ended as u8)
        .map(|row| {
            (
                row.dst_port,
                row.conn_state.unwrap(),
                row.history.unwrap(),
                row.end_reason.unwrap(),
            )
        })
        .collect();
    assert_eq!(
        ended,
        [
            (22, "RSTO", "ShR", "rst"),
            (23, "REJ", "Sr", "rst"),
            (24, "S0", "S", "idle")
        ]
    );
}

#[test]
fn the_opener_is_the_client_even_if_its_first_packet_was_missed() {
    let mut lab = Lab::new(Limits::default());
    lab.tcp(SERVER, CLIENT, SYN | ACK, 499, 100, b"");
    lab.tcp(CLIENT, SERVER, ACK, 100, 500, b"");
    let (batch, _) = lab.finished();
    let last = batch.row(batch.len() - 1);
    assert_eq!((last.src_port, last.dst_port), (40_000, 80));
    assert_eq!(last.history, Some("^hA"));
    assert_eq!(last.conn_state, Some("S1"));
}

#[test]
fn an_answer_captured_before_its_question_does_no_harm() {
    let mut lab = Lab::new(Limits::default());
    lab.tcp(SERVER, CLIENT, SYN | ACK, 499, 100, b"");
    lab.tcp(CLIENT, SERVER, SYN, 99, 0, b"");
    lab.tcp(CLIENT, SERVER, ACK, 100, 500, b"");
    lab.tcp(CLIENT, SERVER, FIN | ACK, 100, 500, b"");
    lab.tcp(SERVER, CLIENT, FIN | ACK, 500, 101, b"");
    let (batch, counts) = lab.finished();
    assert_eq!(counts.opened, 1);
    let last = batch.row(batch.len() - 1);
    assert_eq!((last.src_port, last.conn_state), (40_000, Some("SF")));
    assert_eq!(last.history, Some("^hSAFf"));
}

#[test]
fn ports_used_again_make_another_flow() {
    let mut lab = Lab::new(Limits::default());
    for seq in [1000, 70_000] {
        lab.tcp(CLIENT, SERVER, SYN, seq, 0, b"");
        lab.tcp(SERVER, CLIENT, SYN | ACK, 9, seq + 1, b"");
        lab.tcp(CLIENT, SERVER, FIN | ACK, seq + 1, 10, b"");
        lab.tcp(SERVER, CLIENT, FIN | ACK, 10, seq + 2, b"");
    }
    let (batch, counts) = lab.finished();
    assert_eq!(counts.opened, 2);
    let mut ids: Vec<_> = batch.rows().map(|row| row.flow_id).collect();
    ids.dedup();
    assert_eq!(ids.len(), 2);
}

#[test]
fn flows_that_go_on_are_reported_and_idle_ones_end() {
    let mut lab = Lab::new(Limits::default());
    lab.handshake();
    for _ in 0..3 {
        lab.pass(9_000);
        lab.tcp(CLIENT, SERVER, ACK, 100, 500, b"x");
        lab.pass(2_000);
    }
    let batch = lab.taken();
    assert_eq!(states(&batch)[1..], [FlowState::Active; 3]);
    // Silence is not reported again and again.
    lab.pass(200_000);
    assert!(lab.taken().len() <= 1);
    lab.pass(200_000);
    let batch = lab.taken();
    assert_eq!(batch.row(0).end_reason, Some("idle"));
    assert_eq!(lab.meter.active_flows(), 0);
}

#[test]
fn a_full_table_gives_up_what_is_worth_least() {
    let limits = Limits {
        flows: 16,
        ..Limits::default()
    };
    let mut lab = Lab::new(limits);
    lab.handshake();
    lab.tcp(CLIENT, SERVER, ACK, 100, 500, b"x");
    for port in 1000..1500 {
        lab.tcp("10.0.0.7:5", &format!("10.0.0.8:{port}"), SYN, 1, 0, b"");
        assert!(lab.meter.active_flows() <= 16);
    }
    let counts = lab.meter.counts();
    assert_eq!(counts.shed, 0);
    assert!(counts.evicted >= 480);
    let (batch, _) = lab.finished();
    let kept = batch
        .rows()
        .find(|row| row.dst_port == 80 && row.state == FlowState::Ended as u8)
        .unwrap();
    assert_eq!(kept.end_reason, Some("eof"), "the established flow survived the flood");
}

#[test]
fn a_newcomer_is_shed_and_counted_when_every_flow_is_in_use() {
    let limits = Limits {
        flows: 16,
        ..Limits::default()
    };
    let mut lab = Lab::new(limits);
    for port in 0..16 {
        let client = format!("10.0.0.1:{}", 2000 + port);
        lab.frame(&craft::udp4(&client, "10.0.0.2:9", b"a"));
        lab.frame(&craft::udp4("10.0.0.2:9", &client, b"b"));
    }
    lab.frame(&craft::udp4("10.0.0.1:3000", "10.0.0.2:9", b"a"));
    assert_eq!(lab.meter.counts().shed, 1);
    assert!(lab.meter.counts().ledger().balances());
}

#[test]
fn a_gap_that_was_acknowledged_is_missed_and_counts() {
    let mut lab = Lab::new(Limits::default());
    lab.handshake();
    lab.tcp(CLIENT, SERVER, ACK, 100, 500, &[1; 10]);
    lab.tcp(CLIENT, SERVER, ACK, 160, 500, &[1; 10]);
    lab.tcp(SERVER, CLIENT, ACK, 500, 170, b"");
    let (batch, _) = lab.finished();
    let last = batch.row(batch.len() - 1);
    assert_eq!((last.src_bytes, last.missed_bytes), (Some(70), Some(50)));
    assert_eq!(last.history, Some("ShADaG"));
}

#[derive(Clone, Debug)]
struct Segment {
    from_client: bool,
    len: usize,
    repeat: bool,
}

fn segment() -> impl Strategy<Value = Segment> {
    (any::<bool>(), 0_usize..1400, prop::bool::weighted(0.1)).prop_map(|(from_client, len, repeat)| Segment {
        from_client,
        len,
        repeat,
    })
}

proptest! {
    #[test]
    fn conversations_are_counted_exactly(
        segments in prop::collection::vec(segment(), 0..60),
        starts in any::<(u32, u32)>(),
        close in 0_usize..4,
        six in any::<bool>(),
    ) {
        let mut lab = Lab::new(Limits::default());
        let (client, server): (SocketAddr, SocketAddr) = match six {
            true => ("[2001:db8::1]:40000".parse().unwrap(), "[2001:db8::2]:9999".parse().unwrap()),
            false => ("10.0.0.1:40000".parse().unwrap(), "10.0.0.2:9999".parse().unwrap()),
        };
        let header = if six { 60 } else { 40 };
        let ends = [(client, server), (server, client)];
        let mut seq = [starts.0, starts.1];
        let (mut packets, mut ip_bytes, mut bytes, mut repeats) = ([0_u64; 2], [0_u64; 2], [0_u64; 2], [0_u32; 2]);
        let mut send = |lab: &mut Lab, side: usize, flags, at: u32, ack, payload: &[u8]| {
            let (src, dst) = ends[side];
            lab.frame(&craft::tcp(src, dst, flags, at, ack, payload));
            packets[side] += 1;
            ip_bytes[side] += header + payload.len() as u64;
        };
        send(&mut lab, 0, SYN, seq[0], 0, b"");
        seq[0] = seq[0].wrapping_add(1);
        send(&mut lab, 1, SYN | ACK, seq[1], seq[0], b"");
        seq[1] = seq[1].wrapping_add(1);
        send(&mut lab, 0, ACK, seq[0], seq[1], b"");
        for segment in &segments {
            let side = usize::from(!segment.from_client);
            let payload = vec![0x80; segment.len];
            send(&mut lab, side, ACK, seq[side], seq[1 - side], &payload);
            if segment.repeat && segment.len > 0 {
                send(&mut lab, side, ACK, seq[side], seq[1 - side], &payload);
                repeats[side] += 1;
            }
            seq[side] = seq[side].wrapping_add(segment.len as u32);
            bytes[side] += segment.len as u64;
        }
        let state = match close {
            0 => "S1",
            1 => {
                send(&mut lab, 0, RST, seq[0], 0, b"");
                "RSTO"
            }
            2 => {
                send(&mut lab, 1, FIN | ACK, seq[1], seq[0], b"");
                "S3"
            }
            _ => {
                send(&mut lab, 0, FIN | ACK, seq[0], seq[1], b"");
                send(&mut lab, 1, FIN | ACK, seq[1], seq[0].wrapping_add(1), b"");
                "SF"
            }
        };
        let (batch, counts) = lab.finished();
        prop_assert_eq!(counts.opened, 1);
        prop_assert_eq!(counts.parsed, packets[0] + packets[1]);
        let last = batch.row(batch.len() - 1);
        prop_assert_eq!([last.src_packets.unwrap(), last.dst_packets.unwrap()], packets);
        prop_assert_eq!([last.src_ip_bytes.unwrap(), last.dst_ip_bytes.unwrap()], ip_bytes);
        prop_assert_eq!([last.src_bytes.unwrap(), last.dst_bytes.unwrap()], bytes);
        prop_assert_eq!([last.src_retransmits.unwrap(), last.dst_retransmits.unwrap()], repeats);
        prop_assert_eq!(last.missed_bytes, Some(0));
        prop_assert_eq!(last.conn_state, Some(state));
    }

    #[test]
    fn no_packets_break_the_meter(
        frames in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..120), any::<u8>(), 0_i64..400_000), 1..120),
        flows in 16_usize..40,
    ) {
        let limits = Limits { flows, applications: 4, stream_bytes: 1024, ..Limits::default() };
        let mut lab = Lab::new(limits);
        for (bytes, kind, gap) in frames {
            lab.time += gap * MS;
            // Mostly valid headers over few addresses, so that flows meet their own and each other's packets.
            let (a, b) = (kind & 3, kind >> 2 & 3);
            let (src, dst) = (format!("10.0.0.{a}:{}", 50 + b), format!("10.0.0.{b}:{}", 50 + a));
            let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes.get(at + i).copied().unwrap_or(0)));
            match kind >> 4 & 3 {
                0 => lab.frame(&bytes),
                1 => lab.frame(&craft::udp4(&src, &dst, &bytes)),
                _ => {
                    let payload = bytes.get(9..).unwrap_or_default();
                    lab.tcp(&src, &dst, word(8) as u8, word(0) % 4096, word(4) % 4096, payload);
                }
            }
            prop_assert!(lab.meter.active_flows() <= flows);
            prop_assert!(lab.meter.counts().ledger().balances());
        }
        let (batch, counts) = lab.finished();
        prop_assert_eq!(batch.len() as u64, counts.records);
    }
}
