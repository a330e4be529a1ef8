//! Conversations from the first packet to the record.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use garrison_flow::{FlowBatch, FlowBatchBuilder, FlowRow};
use proptest::prelude::*;

use super::{quic, ssh, tls::tests as tls};
use crate::domain::{
    Limits, Meter, Sink, craft,
    packet::{LinkType, Packet},
    record::EndReason,
};

const CLIENT: &str = "10.0.0.1:40000";

struct Rows(FlowBatchBuilder);

impl Sink for Rows {
    fn record(&mut self, row: &FlowRow<'_>) {
        if row.end_reason.is_some() {
            self.0.push(row);
        }
    }
}

fn metered(frames: &[Vec<u8>]) -> FlowBatch {
    let mut meter = Meter::new("lab", Limits::default(), 7);
    let mut rows = Rows(FlowBatchBuilder::new(4));
    for (i, data) in frames.iter().enumerate() {
        let packet = Packet {
            time: 1_700_000_000_000_000_000 + i as i64 * 1_000_000,
            link: LinkType::Ethernet,
            data,
            wire_len: data.len() as u32,
            vlan_tci: None,
        };
        meter.process(&[packet], &mut rows);
    }
    meter.finish(EndReason::EndOfFile, &mut rows);
    rows.0.finish()
}

// A TCP conversation: who speaks (0 for the client), and what.
fn conversation(port: u16, turns: &[(usize, &[u8])]) -> FlowBatch {
    let server = format!("10.0.0.2:{port}");
    let ends = [CLIENT, &server];
    let mut next = [100_u32, 500];
    let mut frames = vec![
        craft::tcp4(ends[0], ends[1], 2, 99, 0, b""),
        craft::tcp4(ends[1], ends[0], 0x12, 499, 100, b""),
    ];
    for &(side, text) in turns {
        let (from, to) = (ends[side], ends[1 - side]);
        for part in text.chunks(1400) {
            frames.push(craft::tcp4(from, to, 0x18, next[side], next[1 - side], part));
            next[side] += part.len() as u32;
        }
    }
    metered(&frames)
}

// An Ed25519 certificate that signs itself, made for this test.
const CERTIFICATE: &str = "MIIBZzCCARmgAwIBAgIUckUW0efv2KvbcxinROICTlwk138wBQYDK2VwMCkxEDAOBgNVBAoMB0V4YW1wbGUxFTATBgNVBAMM\
DHNlbGYuZXhhbXBsZTAeFw0yNjExMjIxMjExMzVaFw0zNjExMTkxMjExMzVaMCkxEDAOBgNVBAoMB0V4YW1wbGUxFTATBgNVBAMMDHNlbGYuZXhhbXBsZTAq\
MAUGAytlcAMhAPzwWvuAAP+9jbPKzbB43xMGZsdbv4jgTgp4Rg2M8V7Go1MwUTAdBgNVHQ4EFgQUbJIi+uuJQWWnw4ufcfeuA7syb4gwHwYDVR0jBBgwFoAU\
bJIi+uuJQWWnw4ufcfeuA7syb4gwDwYDVR0TAQH/BAUwAwEB/zAFBgMrZXADQQClHaeCpPXbUL7aCyRqoV7haoMoFCTMwvOayv7UGOLQsL86Nod6u+f033/r\
aFmmDTxq+7J3fkSIzM2VnVcLcN8H";

fn handshake(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u32).to_be_bytes();
    [&[kind][..], &length[1..], body].concat()
}

fn record(body: &[u8]) -> Vec<u8> {
    [&[22, 3, 3][..], &(body.len() as u16).to_be_bytes(), body].concat()
}

// A server's flight of TLS 1.2: hello without extensions, certificate, and the end of its part.
fn server_flight() -> Vec<u8> {
    let hello = [&[3, 3][..], &[9; 32], &[0, 0xc0, 0x2f, 0]].concat();
    let der = STANDARD.decode(CERTIFICATE).unwrap();
    let length = |n: usize| (n as u32).to_be_bytes()[1..].to_vec();
    let chain = [length(der.len() + 3), length(der.len()), der].concat();
    [
        record(&handshake(2, &hello)),
        record(&handshake(11, &chain)),
        record(&handshake(14, &[])),
    ]
    .concat()
}

fn has_certificate(row: &FlowRow<'_>) {
    assert_eq!((row.tls_version, row.tls_cipher), (Some(0x0303), Some(0xc02f)));
    assert_eq!(row.tls_subject, Some("O=Example, CN=self.example"));
    assert_eq!(row.tls_issuer, row.tls_subject);
    assert_eq!(row.tls_not_before, Some(1_795_349_495_000_000_000));
    assert_eq!(row.tls_not_after, Some(2_110_709_495_000_000_000));
    assert_eq!(row.tls_self_signed, Some(1));
    assert_eq!(
        row.tls_cert_sha256,
        Some("31e491b7eef538daaa6e7be1463bca64f0e466e10df374e889005201fae919d7")
    );
}

#[test]
fn tls_tells_both_fingerprints_and_the_certificate() {
    let hello = tls::example_client_hello();
    let batch = conversation(8443, &[(0, &hello), (1, &server_flight())]);
    let row = batch.row(0);
    assert_eq!((row.service, row.tls_sni), (Some("tls"), Some("example.com")));
    has_certificate(&row);
    // JA3 of what the hello says: version, ciphers, extensions, no groups, no formats, all without GREASE.
    let text = "771,4865-4866-4867-49195-49199-49196-49200-52393-52392-49171-49172-156-157-47-53,\
                27-0-51-17513-23-16-43-13-5-10-45-11-18-35-65281-21,,";
    assert_eq!(row.ja3, Some(super::tls::md5_hex(text).as_str()));
    assert_eq!(row.ja3s, Some(super::tls::md5_hex("771,49199,").as_str()));
}

#[test]
fn mail_that_turns_into_tls_is_mail_with_tls() {
    let hello = tls::example_client_hello();
    let turns: [(usize, &[u8]); 8] = [
        (1, b"220 mx ESMTP\r\n"),
        (0, b"EHLO a\r\n"),
        (1, b"250-mx\r\n250 STARTTLS\r\n"),
        (0, b"STARTTLS\r\n"),
        (1, b"220 go\r\n"),
        (0, &hello),
        (1, &server_flight()),
        (0, &[23, 3, 3, 0, 1, 7]),
    ];
    let batch = conversation(2500, &turns);
    let row = batch.row(0);
    assert_eq!((row.service, row.tls_sni), (Some("smtp"), Some("example.com")));
    has_certificate(&row);
}

#[test]
fn ssh_tells_banners_and_hassh() {
    let packet = ssh::tests::key_exchange(["k", "h", "e", "e", "m", "m", "c", "c", "", ""]);
    let banner = b"SSH-2.0-a\r\n";
    let turns: [(usize, &[u8]); 4] = [(1, banner), (0, banner), (0, &packet), (1, &packet)];
    let batch = conversation(2222, &turns);
    let row = batch.row(0);
    assert_eq!(
        (row.service, row.ssh_client, row.ssh_server),
        (Some("ssh"), Some("SSH-2.0-a"), Some("SSH-2.0-a"))
    );
    assert!(row.hassh.is_some() && row.hassh == row.hassh_server);
}

#[test]
fn http_tells_how_long_bodies_are() {
    let turns: [(usize, &[u8]); 2] = [
        (0, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"),
        (
            1,
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n2\r\nef\r\n0\r\n\r\n",
        ),
    ];
    let batch = conversation(8080, &turns);
    let row = batch.row(0);
    assert_eq!((row.http_request_bytes, row.http_response_bytes), (Some(3), Some(6)));
}

#[test]
fn names_over_tcp_are_read_message_by_message() {
    let question = [
        &[0, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'a', 2, b'b', b'c'][..],
        &[0, 0, 1, 0, 1],
    ]
    .concat();
    let framed = [&[0, question.len() as u8][..], &question].concat();
    let batch = conversation(53, &[(0, &framed[..7]), (0, &framed[7..])]);
    let row = batch.row(0);
    assert_eq!(
        (row.service, row.dns_query, row.dns_queries),
        (Some("dns"), Some("a.bc"), Some(1))
    );
}

#[test]
fn the_shortest_time_to_live_is_told() {
    let mut answer = vec![0, 9, 0x81, 0x80, 0, 1, 0, 2, 0, 0, 0, 0, 1, b'a', 0, 0, 1, 0, 1];
    for (ttl, last) in [(300_u32, 1), (60, 2)] {
        answer.extend([0xc0, 12, 0, 1, 0, 1]);
        answer.extend(ttl.to_be_bytes());
        answer.extend([0, 4, 192, 0, 2, last]);
    }
    let batch = metered(&[craft::udp4("10.0.0.2:53", CLIENT, &answer)]);
    let row = batch.row(0);
    assert_eq!((row.dns_ttl, row.dns_answers), (Some(60), Some("192.0.2.1,192.0.2.2")));
}

#[test]
fn quic_tells_what_its_hello_says() {
    let batch = metered(&[craft::udp4(CLIENT, "10.0.0.2:443", &quic::tests::client_initial(1))]);
    let row = batch.row(0);
    assert_eq!(
        (row.service, row.tls_sni, row.tls_alpn),
        (Some("quic"), Some("example.com"), Some("h2"))
    );
    assert_eq!(row.ja4, Some("q13d1516h2_8daaf6152771_e5627efa2ab1"));
}

#[test]
fn dtls_tells_what_its_hello_says() {
    let hello = tls::example_client_hello();
    // The hello's body with an empty cookie behind the session.
    let body = [&[0xfe, 0xfd][..], &hello[11..43], &[0, 0], &hello[44..]].concat();
    let length = (body.len() as u32).to_be_bytes();
    let message = [&[1][..], &length[1..], &[0, 0, 0, 0, 0], &length[1..], &body].concat();
    let header = [22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0];
    let datagram = [&header[..], &(message.len() as u16).to_be_bytes(), &message].concat();
    let batch = metered(&[craft::udp4(CLIENT, "10.0.0.2:9000", &datagram)]);
    let row = batch.row(0);
    assert_eq!((row.service, row.tls_sni), (Some("dtls"), Some("example.com")));
    assert!(row.ja4.is_some_and(|ja4| ja4.starts_with('d')), "{:?}", row.ja4);
}

fn rtp(sequence: u16) -> Vec<u8> {
    let mut datagram = vec![0x80, 0];
    datagram.extend(sequence.to_be_bytes());
    datagram.extend([0, 0, 0, 1, 0, 0, 0, 9]);
    datagram.extend([5; 160]);
    datagram
}

#[test]
fn media_is_sure_once_two_packets_follow_each_other() {
    let send = |numbers: &[u16]| {
        let frames: Vec<_> = numbers
            .iter()
            .map(|&n| craft::udp4(CLIENT, "10.0.0.2:30000", &rtp(n)))
            .collect();
        metered(&frames).row(0).service.map(str::to_owned)
    };
    assert_eq!(send(&[7]), None);
    assert_eq!(send(&[7, 900]), None);
    assert_eq!(send(&[7, 900, 901]).as_deref(), Some("rtp"));
}

#[test]
fn what_nobody_knows_stays_unknown() {
    let noise: Vec<u8> = (0..200_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8 | 0x80)
        .collect();
    let turns: Vec<(usize, &[u8])> = (0..12).map(|i| (i % 2, &noise[..])).collect();
    assert_eq!(conversation(4444, &turns).row(0).service, None);
}

proptest! {
    #[test]
    fn any_turns_are_taken(
        turns in prop::collection::vec((0_usize..2, prop::collection::vec(any::<u8>(), 1..80), 0_usize..8), 1..12),
        port in prop::sample::select(vec![21_u16, 25, 53, 80, 443, 3306, 5432, 9999]),
    ) {
        let hello = tls::example_client_hello();
        let flight = server_flight();
        let openings: [&[u8]; 8] = [b"220 x ESMTP\r\n", b"SSH-2.0-a\r\n", &hello, &flight, b"GET / HTTP/1.1\r\n\r\n", b"", b"* OK IMAP\r\n", b"\0\x10"];
        let texts: Vec<(usize, Vec<u8>)> = turns
            .into_iter()
            .map(|(side, noise, opening)| (side, [openings[opening], &noise].concat()))
            .collect();
        let turns: Vec<(usize, &[u8])> = texts.iter().map(|(side, text)| (*side, &text[..])).collect();
        prop_assert_eq!(conversation(port, &turns).len(), 1);
    }
}

fn http2_frame(kind: u8, flags: u8, stream: u32, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), body].concat()
}

// GET / of www.example.com, as in RFC 7541, appendix C.4.1, and an answer with status 200 and a body of three octets.
fn http2_turns() -> (Vec<u8>, Vec<u8>) {
    let request = hex::decode("828684418cf1e3c2e5f23a6ba0ab90f4ff").unwrap();
    let settings = http2_frame(4, 0, 0, &[0, 3, 0, 0, 0, 100]);
    let sent = [super::http2::PREFACE, &settings, &http2_frame(1, 5, 1, &request)].concat();
    let answered = [settings, http2_frame(1, 4, 1, &[0x88]), http2_frame(0, 1, 1, b"yes")].concat();
    (sent, answered)
}

#[test]
fn http2_with_prior_knowledge_is_told_whoever_speaks_first() {
    let (sent, answered) = http2_turns();
    let (hello, rest) = answered.split_at(15);
    for turns in [
        vec![(0, &sent[..]), (1, &answered)],
        vec![(1, hello), (0, &sent), (1, rest)],
    ] {
        let batch = conversation(50_051, &turns);
        let row = batch.row(0);
        assert_eq!((row.service, row.http_method), (Some("http2"), Some("GET")));
        assert_eq!((row.http_host, row.http_uri), (Some("www.example.com"), Some("/")));
        assert_eq!((row.http_status, row.http_requests), (Some(200), Some(1)));
        assert_eq!((row.http_request_bytes, row.http_response_bytes), (Some(0), Some(3)));
    }
}

#[test]
fn http_that_turns_into_http2_goes_on() {
    let request = b"GET /old HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
        HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n";
    let agreed = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n";
    let (sent, answered) = http2_turns();
    // The server answers the old request in the new way, too.
    let first = [&agreed[..], &http2_frame(4, 0, 0, &[]), &http2_frame(1, 5, 1, &[0x8d])].concat();
    let batch = conversation(80, &[(0, request), (1, &first), (0, &sent), (1, &answered)]);
    let row = batch.row(0);
    assert_eq!((row.service, row.http_uri), (Some("http2"), Some("/old")));
    assert_eq!((row.http_requests, row.http_status), (Some(2), Some(200)));
    assert_eq!(row.http_response_bytes, Some(3));
}
