//! Lines of each log as their writers' documentation shows them, and arbitrary ones.

use std::net::IpAddr;

use garrison_flow::{FlowBatch, FlowBatchBuilder};
use proptest::prelude::*;

use super::*;

struct Keep(FlowBatchBuilder);

impl Sink for Keep {
    fn record(&mut self, row: &FlowRow<'_>) {
        self.0.push(row);
    }
}

fn read(format: Format, text: &str) -> (FlowBatch, Counts, Vec<Fault>) {
    let mut reader = LogReader::new(format, "log", 3);
    let mut keep = Keep(FlowBatchBuilder::new(4));
    for part in text.as_bytes().chunks(7) {
        reader.push(part, &mut keep);
    }
    reader.finish(&mut keep);
    let counts = reader.counts();
    assert!(counts.ledger().balances(), "{counts:?}");
    let batch = keep.0.finish();
    assert_eq!(batch.len() as u64, counts.records);
    (batch, counts, reader.take_faults())
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn extra(row: &FlowRow<'_>) -> serde_json::Value {
    serde_json::from_str(row.extra.unwrap()).unwrap()
}

const ZEEK: &str = "#separator \\x09\n#set_separator\t,\n#empty_field\t(empty)\n#unset_field\t-\n#path\tconn\n\
#fields\tts\tuid\tid.orig_h\tid.orig_p\tid.resp_h\tid.resp_p\tproto\tservice\tduration\torig_bytes\tresp_bytes\t\
conn_state\tlocal_orig\tlocal_resp\tmissed_bytes\thistory\torig_pkts\torig_ip_bytes\tresp_pkts\tresp_ip_bytes\t\
tunnel_parents\n#types\ttime\n\
1591367999.305988\tCMdzit1AMNsmfAIiQc\t192.168.4.76\t36844\t192.168.4.1\t53\tudp\tdns\t0.066852\t62\t141\tSF\t-\t-\t0\tDd\t2\t118\t2\t197\t-\n\
1591367999.5\tCx\t192.168.4.76\t3\t192.168.4.1\t1\ticmp\t-\t-\t-\t-\tOTH\t-\t-\t0\t-\t1\t56\t0\t0\t-\n\
1591368000.0\tCy\tfe80::1\t40000\tfe80::2\t443\ttcp\tssl\t1.5\t100\t-\tRSTO\t-\t-\t7\tShR\t3\t200\t2\t-\tCp\n\
short\tline\n#close\t2020-06-05\n";

#[test]
fn zeek_tab_separated() {
    let (batch, counts, faults) = read(Format::Zeek, ZEEK);
    assert_eq!((counts.records, counts.malformed), (3, 1));
    assert_eq!(
        (faults[0].line, faults[0].problem.as_str()),
        (11, "has 2 columns instead of 21")
    );
    let dns = batch.row(0);
    assert_eq!((dns.origin, dns.service, dns.protocol), ("zeek", Some("dns"), 17));
    assert_eq!(dns.first_seen, 1_591_367_999_305_988_000);
    assert_eq!(dns.last_seen - dns.first_seen, 66_852_000);
    assert_eq!((dns.src_bytes, dns.dst_bytes), (Some(62), Some(141)));
    assert_eq!((dns.src_ip_bytes, dns.dst_ip_bytes), (Some(118), Some(197)));
    assert_eq!(
        (dns.conn_state, dns.history, dns.missed_bytes),
        (Some("SF"), Some("Dd"), None)
    );
    assert_eq!(extra(&dns)["uid"], "CMdzit1AMNsmfAIiQc");
    let icmp = batch.row(1);
    assert_eq!((icmp.protocol, icmp.src_port, icmp.dst_port), (1, 3, 1));
    // What Zeek leaves unset is unknown.
    assert_eq!((icmp.src_bytes, icmp.history), (None, None));
    let tls = batch.row(2);
    assert_eq!(
        (tls.ip_version, tls.service, tls.end_reason),
        (6, Some("tls"), Some("rst"))
    );
    assert_eq!(
        (tls.dst_bytes, tls.dst_ip_bytes, tls.missed_bytes),
        (None, None, Some(7))
    );
}

#[test]
fn zeek_json() {
    let (batch, counts, faults) = read(
        Format::Zeek,
        "{\"ts\":1591367999.305988,\"uid\":\"C1\",\"id.orig_h\":\"10.0.0.1\",\"id.orig_p\":5353,\"id.resp_h\":\"224.0.0.251\",\
         \"id.resp_p\":5353,\"proto\":\"udp\",\"conn_state\":\"S0\",\"orig_pkts\":1,\"orig_ip_bytes\":73,\"community_id\":\"1:x\"}\n\
         {\"ts\":\"2020-06-05T14:39:59.305988Z\",\"id.orig_h\":\"10.0.0.1\",\"id.resp_h\":\"10.0.0.2\",\"proto\":\"tcp\"}\n{oops\n",
    );
    assert_eq!((counts.records, counts.malformed), (2, 1));
    assert!(faults[0].problem.starts_with("is no JSON"), "{faults:?}");
    assert_eq!(batch.row(0).first_seen, batch.row(1).first_seen);
    assert_eq!((batch.row(0).src_packets, batch.row(0).dst_packets), (Some(1), None));
}

#[test]
fn suricata_flows_take_over_what_their_application_events_said() {
    let (batch, counts, faults) = read(
        Format::Suricata,
        "{\"timestamp\":\"2016-07-13T22:42:07.199672+0000\",\"flow_id\":9,\"event_type\":\"http\",\"http\":{\"hostname\":\"a.example\",\"url\":\"/x\",\"http_user_agent\":\"curl\",\"http_method\":\"GET\",\"status\":401}}\n\
         {\"timestamp\":\"2016-07-13T22:42:07.3+0000\",\"flow_id\":9,\"event_type\":\"http\",\"http\":{\"hostname\":\"b.example\",\"status\":200}}\n\
         {\"timestamp\":\"2016-07-13T22:42:08.0+0000\",\"flow_id\":9,\"event_type\":\"alert\",\"alert\":{\"signature\":\"x\"}}\n\
         {\"timestamp\":\"2016-07-13T22:42:09.199672+0000\",\"flow_id\":9,\"event_type\":\"flow\",\"src_ip\":\"10.0.0.5\",\"src_port\":50000,\"dest_ip\":\"10.0.0.6\",\"dest_port\":80,\"proto\":\"TCP\",\"app_proto\":\"http\",\"vlan\":[12],\"flow\":{\"pkts_toserver\":5,\"pkts_toclient\":4,\"bytes_toserver\":590,\"bytes_toclient\":10,\"start\":\"2016-07-13T22:42:07.1+0000\",\"end\":\"2016-07-13T22:42:09.1+0000\",\"reason\":\"timeout\",\"state\":\"closed\"},\"tcp\":{\"tcp_flags_ts\":\"1b\",\"tcp_flags_tc\":\"12\"}}\n\
         {\"event_type\":\"stats\",\"stats\":{}}\n{\"event_type\":\"flow\"}\n",
    );
    assert_eq!((counts.records, counts.no_flow, counts.malformed), (1, 4, 1));
    assert_eq!(faults[0].line, 6);
    let row = batch.row(0);
    assert_eq!(
        (row.http_host, row.http_uri, row.http_method),
        (Some("a.example"), Some("/x"), Some("GET"))
    );
    assert_eq!((row.http_requests, row.http_auth_failures), (Some(2), Some(1)));
    // 590 octets of frames less 18 for Ethernet and one tag on each of five.
    assert_eq!(
        (row.src_ip_bytes, row.dst_ip_bytes, row.src_bytes),
        (Some(500), None, None)
    );
    assert_eq!(
        (row.src_tcp_flags, row.dst_tcp_flags, row.vlan),
        (Some(0x1b), Some(0x12), Some(12))
    );
    assert_eq!(
        (row.end_reason, row.last_seen - row.first_seen),
        (Some("idle"), 2_000_000_000)
    );
    assert_eq!((extra(&row)["alerts"].as_u64(), row.dns_queries), (Some(1), None));
}

#[test]
fn aws_with_and_without_a_header() {
    let (batch, counts, faults) = read(
        Format::AwsVpc,
        "2 123456789010 eni-1235b8ca123456789 172.31.16.139 172.31.16.21 20641 22 6 20 4249 1418530010 1418530070 ACCEPT OK\n\
         2 123456789010 eni-1235b8ca123456789 172.31.9.69 172.31.9.12 443 49761 6 20 4249 1418530010 1418530070 REJECT OK\n\
         2 123456789010 eni-1235b8ca123456789 - - - - - - - 1431280876 1431280934 - NODATA\n\
         2 123456789010 eni-1 nonsense 172.31.9.12 1 2 6 20 4249 1418530010 1418530070 REJECT OK\n",
    );
    assert_eq!((counts.records, counts.no_flow, counts.malformed), (2, 1, 1));
    assert_eq!(
        faults[0],
        Fault {
            line: 4,
            problem: "\"nonsense\" is no address".to_owned()
        }
    );
    let row = batch.row(0);
    assert_eq!(
        (row.src_ip, row.dst_port, row.verdict),
        (ip("172.31.16.139"), 22, Some("accept"))
    );
    assert_eq!(
        (row.src_packets, row.src_ip_bytes, row.src_bytes),
        (Some(20), Some(4249), None)
    );
    assert_eq!(row.last_seen - row.first_seen, 60_000_000_000);
    assert_eq!(extra(&row)["interface-id"], "eni-1235b8ca123456789");
    let answer = batch.row(1);
    assert_eq!(
        (answer.src_ip, answer.dst_port, answer.verdict),
        (ip("172.31.9.12"), 443, Some("deny"))
    );
    assert_eq!((answer.src_packets, answer.dst_packets), (None, Some(20)));

    let (batch, counts, _) = read(
        Format::AwsVpc,
        "version srcaddr dstaddr srcport dstport protocol start end tcp-flags pkt-srcaddr flow-direction packets bytes\n\
         5 10.0.0.1 10.0.0.2 4444 5555 6 1 2 18 10.9.9.9 ingress 3 120\n",
    );
    assert_eq!((counts.records, counts.no_flow), (1, 1));
    let row = batch.row(0);
    // A SYN-ACK was seen from the one that is written first.
    assert_eq!(
        (row.src_ip, row.dst_packets, row.verdict),
        (ip("10.0.0.2"), Some(3), None)
    );
    assert_eq!(extra(&row)["pkt-srcaddr"], "10.9.9.9");
}

#[test]
fn azure_of_both_kinds() {
    let text = "{\"records\":[{\"time\":\"2022-09-14T09:00:52.5625085Z\",\"flowLogVersion\":4,\"macAddress\":\"112233445566\",\n\
        \"category\":\"FlowLogFlowEvent\",\"targetResourceID\":\"/subscriptions/s/x\",\"flowRecords\":{\"flows\":[{\"aclID\":\"a\",\"flowGroups\":[\n\
        {\"rule\":\"Allow\",\"flowTuples\":[\"1663146003599,10.0.0.6,192.0.2.180,23956,443,6,O,B,NX,0,0,0,0\",\n\
        \"1663146003606,10.0.0.6,192.0.2.180,23956,443,6,O,E,NX,3,767,2,1580\",\"1663146003637,203.0.113.17,10.0.0.6,22730,22,6,I,D,NX,0,0,0,0\"]}]}]}},\n\
        {\"category\":\"NetworkSecurityGroupFlowEvent\",\"properties\":{\"Version\":2,\"flows\":[{\"rule\":\"r\",\"flows\":[{\"mac\":\"000D3AF87856\",\n\
        \"flowTuples\":[\"1542110402,185.170.185.105,10.2.0.4,35370,23,T,I,D,B,,,,\",\"1542110437,125.5.61.130,10.2.0.4,59336,80,U,I,A,C,2,66,1,54\"]}]}]}},\n\
        {\"category\":\"other\"}]}";
    let (batch, counts, faults) = read(Format::Azure, text);
    assert_eq!(
        (counts.records, counts.parsed, counts.malformed),
        (4, 2, 1),
        "{faults:?}"
    );
    assert_eq!(faults[0].line, 7);
    let row = batch.row(0);
    assert_eq!(
        (row.first_seen, row.verdict),
        (1_663_146_003_606_000_000, Some("accept"))
    );
    assert_eq!((row.src_packets, row.dst_ip_bytes), (Some(3), Some(1580)));
    assert_eq!(
        (row.src_mac, row.dst_mac),
        (Some([0x11, 0x22, 0x33, 0x44, 0x55, 0x66]), None)
    );
    let denied = batch.row(1);
    // Nobody counted what was refused.
    assert_eq!(
        (denied.verdict, denied.src_packets, denied.dst_port),
        (Some("deny"), None, 22)
    );
    assert_eq!((batch.row(2).verdict, batch.row(2).dst_port), (Some("deny"), 23));
    let group = batch.row(3);
    assert_eq!(
        (group.protocol, group.first_seen, group.dst_packets),
        (17, 1_542_110_437_000_000_000, Some(1))
    );
    assert_eq!(extra(&group)["rule"], "r");
}

#[test]
fn gcp_lines_and_arrays() {
    let entry = "{\"insertId\":\"1\",\"jsonPayload\":{\"bytes_sent\":\"1776\",\"connection\":{\"dest_ip\":\"10.10.0.2\",\"dest_port\":55926,\
        \"protocol\":6,\"src_ip\":\"10.128.0.7\",\"src_port\":443},\"end_time\":\"2022-10-31T06:12:36.5Z\",\"packets_sent\":\"8\",\
        \"reporter\":\"SRC\",\"rtt_msec\":\"12\",\"start_time\":\"2022-10-31T06:12:35Z\",\"src_vpc\":{\"vpc_name\":\"n\"}},\"logName\":\"vpc_flows\"}";
    for text in [format!("{entry}\n{entry}"), format!("[\n{entry},\n{entry}\n]\n")] {
        let (batch, counts, faults) = read(Format::Gcp, &text);
        assert_eq!(counts.records, 2, "{faults:?}");
        let row = batch.row(0);
        assert_eq!((row.src_ip, row.dst_port), (ip("10.10.0.2"), 443));
        assert_eq!(
            (row.dst_ip_bytes, row.dst_packets, row.src_packets),
            (Some(1776), Some(8), None)
        );
        assert_eq!(
            (row.tcp_rtt_ns, row.last_seen - row.first_seen),
            (Some(12_000_000), 1_500_000_000)
        );
        assert_eq!(extra(&row)["src_vpc"]["vpc_name"], "n");
    }
    assert_eq!(read(Format::Gcp, "{\"jsonPayload\":{\"message\":\"x\"}}").1.no_flow, 1);
}

#[test]
fn hubble_packets_and_messages() {
    let packet = "{\"flow\":{\"time\":\"2023-03-08T14:40:43.1Z\",\"verdict\":\"DROPPED\",\"ethernet\":{\"source\":\"02:00:00:00:00:01\",\"destination\":\"02:00:00:00:00:02\"},\
        \"IP\":{\"source\":\"10.0.1.2\",\"destination\":\"10.0.2.9\",\"ipVersion\":\"IPv4\"},\"l4\":{\"TCP\":{\"source_port\":52422,\"destination_port\":8080,\
        \"flags\":{\"SYN\":true}}},\"source\":{\"identity\":54321,\"namespace\":\"default\",\"pod_name\":\"xwing\"},\"Type\":\"L3_L4\",\"is_reply\":false,\
        \"traffic_direction\":\"EGRESS\"},\"node_name\":\"kind\",\"time\":\"2023-03-08T14:40:43.1Z\"}\n";
    let message = "{\"flow\":{\"time\":\"2023-03-08T14:40:44Z\",\"verdict\":\"FORWARDED\",\"IP\":{\"source\":\"10.0.2.9\",\"destination\":\"10.0.1.2\"},\
        \"l4\":{\"TCP\":{\"source_port\":8080,\"destination_port\":52422}},\"is_reply\":true,\"Type\":\"L7\",\"l7\":{\"type\":\"RESPONSE\",\"http\":{\"code\":403,\
        \"method\":\"PUT\",\"url\":\"http://d/v1\",\"headers\":[{\"key\":\"Host\",\"value\":\"d\"}]}}}}\n";
    let (batch, counts, faults) = read(
        Format::Hubble,
        &[packet, message, "{\"node_status\":{}}\n", "{}\n"].concat(),
    );
    assert_eq!(
        (counts.records, counts.no_flow, counts.malformed),
        (2, 1, 1),
        "{faults:?}"
    );
    let row = batch.row(0);
    assert_eq!(
        (row.verdict, row.src_packets, row.dst_packets),
        (Some("drop"), Some(1), None)
    );
    assert_eq!((row.src_tcp_flags, row.src_mac), (Some(2), Some([2, 0, 0, 0, 0, 1])));
    assert_eq!(
        (row.src_ip_bytes, extra(&row)["source"]["pod_name"].as_str()),
        (None, Some("xwing"))
    );
    let row = batch.row(1);
    assert_eq!(
        (row.src_ip, row.dst_port, row.http_status),
        (ip("10.0.1.2"), 8080, Some(403))
    );
    assert_eq!(
        (row.http_host, row.src_packets, row.service),
        (Some("d"), None, Some("http"))
    );
}

fn specimens() -> Vec<(Format, String)> {
    vec![
        (Format::Zeek, ZEEK.to_owned()),
        (Format::Suricata, "{\"event_type\":\"flow\",\"flow_id\":1,\"src_ip\":\"10.0.0.5\",\"dest_ip\":\"10.0.0.6\",\"proto\":\"TCP\",\"flow\":{\"start\":\"2016-07-13T22:42:07.1+0000\"}}\n".to_owned()),
        (Format::AwsVpc, "2 1 eni-1 10.0.0.1 10.0.0.2 20641 22 6 20 4249 1418530010 1418530070 ACCEPT OK\n".to_owned()),
        (Format::Azure, "{\"records\":[{\"flowRecords\":{\"flows\":[{\"flowGroups\":[{\"flowTuples\":[\"1663146003606,10.0.0.6,192.0.2.180,23956,443,6,O,E,NX,3,767,2,1580\"]}]}]}}]}".to_owned()),
        (Format::Gcp, "{\"jsonPayload\":{\"connection\":{\"src_ip\":\"10.0.0.1\",\"dest_ip\":\"10.0.0.2\"},\"start_time\":\"2022-10-31T06:12:35Z\"}}\n".to_owned()),
        (Format::Hubble, "{\"flow\":{\"time\":\"2023-03-08T14:40:43Z\",\"verdict\":\"DROPPED\",\"IP\":{\"source\":\"10.0.1.2\",\"destination\":\"10.0.2.9\"}}}\n".to_owned()),
    ]
}

#[test]
fn each_is_recognised_by_how_it_begins() {
    for (format, text) in specimens() {
        assert_eq!(Format::recognise(text.as_bytes()), Some(format));
        assert!(read(format, &text).1.records > 0, "{format:?}");
    }
    assert_eq!(Format::recognise(b"{\"some\":\"json\"}"), None);
    assert_eq!(Format::recognise(b"GET / HTTP/1.1"), None);
    assert_eq!(Format::recognise(b""), None);
}

#[test]
fn what_is_bad_is_named_only_so_often() {
    let (_, counts, faults) = read(Format::AwsVpc, &"x\n".repeat(1000));
    assert_eq!((counts.malformed, faults.len()), (1000, MAX_FAULTS));
}

proptest! {
    #[test]
    fn damaged_logs_never_panic_and_the_ledger_holds(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        for (format, text) in specimens() {
            let mut octets = text.into_bytes();
            for (at, value) in &changes {
                let at = at.index(octets.len());
                octets[at] = *value;
            }
            let mut reader = LogReader::new(format, "log", 3);
            let mut keep = Keep(FlowBatchBuilder::new(4));
            reader.push(&octets, &mut keep);
            reader.finish(&mut keep);
            prop_assert!(reader.counts().ledger().balances());
            let _ = Format::recognise(&octets);
        }
    }

    #[test]
    fn arbitrary_text_never_panics(text in "\\PC{0,80}", which in 0..6usize) {
        let (format, _) = specimens()[which].clone();
        let (_, counts, _) = read(format, &text);
        prop_assert!(counts.ledger().balances());
    }
}
