//! The first octets of each protocol, written from its specification.

use proptest::prelude::*;

use super::{Guess, Look, data::dnp3_crc};
use crate::domain::app::{
    Service,
    protocol::{Transport, recognise},
    quic, tls,
};

const ELSEWHERE: u16 = 40_001;

fn shown(transport: Transport, side: usize, port: u16, data: &[u8]) -> (Guess, Service) {
    let mut look = Look {
        data,
        claimed: data.len() as u32,
        side,
        ports: (50_000, port),
        on_port: false,
    };
    recognise(transport, &mut look)
}

fn tcp(side: usize, port: u16, data: &[u8]) -> Service {
    shown(Transport::Tcp, side, port, data).1
}

fn udp(port: u16, data: &[u8]) -> Service {
    shown(Transport::Udp, 0, port, data).1
}

fn length32(data: &[u8]) -> Vec<u8> {
    [&(data.len() as u32).to_be_bytes()[..], data].concat()
}

// Tag, length in the short form, content.
fn ber(tag: u8, content: &[u8]) -> Vec<u8> {
    [&[tag, content.len() as u8][..], content].concat()
}

// What each side says first, over TCP: side, text, its port where the content alone is not enough.
fn over_tcp() -> Vec<(Service, usize, Option<u16>, Vec<u8>)> {
    use Service as S;
    let bind = [ber(2, &[3]), ber(4, b"cn=a"), ber(0x80, b"secret")].concat();
    let bind = ber(0x30, &[ber(2, &[1]), ber(0x60, &bind)].concat());
    let result = [ber(0x0a, &[0]), ber(4, b""), ber(4, b"")].concat();
    let result = ber(0x30, &[ber(2, &[1]), ber(0x61, &result)].concat());
    let kerberos = ber(
        0x6a,
        &ber(0x30, &[ber(0xa1, &ber(2, &[5])), ber(0xa2, &ber(2, &[10]))].concat()),
    );
    let negotiate = [&[1, 0, 8, 0][..], &[3, 0, 0, 0]].concat();
    let x224 = |kind: u8, rest: &[u8]| {
        let body = [&[6 + rest.len() as u8, kind, 0, 0, 0, 0, 0][..], rest].concat();
        [&[3, 0][..], &(4 + body.len() as u16).to_be_bytes(), &body].concat()
    };
    let greeting = [&[10][..], b"8.0.36\0", &[9; 4], &[b'x'; 8], &[0; 40]].concat();
    let mysql = [&[greeting.len() as u8, 0, 0, 0][..], &greeting].concat();
    let startup = [&196_608_u32.to_be_bytes()[..], b"user\0bob\0\0"].concat();
    let startup = [&(startup.len() as u32 + 4).to_be_bytes()[..], &startup].concat();
    let mongo = |operation: u32, body: &[u8]| {
        let words = [16 + body.len() as u32, 7, 0, operation];
        let head: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        [&head[..], body].concat()
    };
    let kafka = length32(&[&[0, 18, 0, 3, 0, 0, 0, 1, 0, 6][..], b"client", &[0]].concat());
    let dnp3 = {
        let head = [5, 0x64, 5, 0xc0, 1, 0, 2, 0];
        [&head[..], &dnp3_crc(&head).to_le_bytes()].concat()
    };
    let smb2 = [&[0, 0, 0, 64, 0xfe][..], b"SMB", &[0; 60]].concat();
    let smb1 = [&[0, 0, 0, 35, 0xff][..], b"SMB", &[0; 31]].concat();
    let stun = [&[0, 1, 0, 0][..], &0x2112_a442_u32.to_be_bytes(), &[5; 12]].concat();
    let openvpn = [&[0, 14, 0x38][..], &[8; 8], &[0; 5]].concat();
    let http2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    let stream =
        b"<?xml version='1.0'?><stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'>";
    let text = |text: &str| text.as_bytes().to_vec();
    vec![
        (S::Http, 0, None, text("GET /a HTTP/1.1\r\nHost: b\r\n\r\n")),
        (S::Http, 1, None, text("HTTP/1.0 200 OK\r\n\r\n")),
        (S::Http2, 0, None, http2),
        (S::Tls, 0, None, tls::tests::example_client_hello()),
        (
            S::Tls,
            1,
            None,
            [&[23, 3, 3, 0, 2, 7, 7][..], &[23, 3, 3, 0, 1, 7]].concat(),
        ),
        (S::Ssh, 1, None, text("SSH-2.0-x\r\n")),
        (
            S::Dns,
            0,
            Some(53),
            [
                &[0, 29, 1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 7][..],
                b"example",
                &[3],
                b"com",
                &[0, 0, 1, 0, 1],
            ]
            .concat(),
        ),
        (S::Smtp, 1, None, text("220 mx.example.net ESMTP ready\r\n")),
        (S::Smtp, 0, None, text("EHLO host\r\n")),
        (S::Smtp, 1, Some(25), text("220-welcome\r\n220 now\r\n")),
        (S::Ftp, 1, None, text("220 FTP server ready\r\n")),
        (S::Ftp, 0, None, text("AUTH TLS\r\n")),
        (S::Ftp, 0, Some(21), text("USER bob\r\n")),
        (S::Pop3, 1, None, text("+OK POP3 ready\r\n")),
        (S::Pop3, 0, Some(110), text("CAPA\r\n")),
        (S::Imap, 1, None, text("* OK IMAP4rev2 ready\r\n")),
        (S::Imap, 0, Some(143), text("a1 STARTTLS\r\n")),
        (S::Smb, 0, None, smb2),
        (S::Smb, 0, None, smb1),
        (
            S::Rdp,
            0,
            None,
            x224(0xe0, &[&b"Cookie: mstshash=a\r\n"[..], &negotiate].concat()),
        ),
        (S::Rdp, 1, None, x224(0xd0, &[2, 0, 8, 0, 1, 0, 0, 0])),
        (S::Kerberos, 0, None, length32(&kerberos)),
        (S::Ldap, 0, None, bind),
        (S::Ldap, 1, None, result),
        (S::Vnc, 1, None, text("RFB 003.008\n")),
        (S::Telnet, 1, None, vec![0xff, 0xfd, 24, 0xff, 0xfd, 32]),
        (S::Mysql, 1, None, mysql),
        (S::Postgresql, 0, None, startup),
        (
            S::Postgresql,
            0,
            None,
            [8_u32.to_be_bytes(), 80_877_103_u32.to_be_bytes()].concat(),
        ),
        (S::Redis, 0, None, text("*1\r\n$4\r\nPING\r\n")),
        (S::Redis, 1, None, text("-NOAUTH Authentication required.\r\n")),
        (S::Mongodb, 0, None, mongo(2013, &[0, 0, 0, 0, 0, 5, 0, 0, 0, 0])),
        (S::Mongodb, 0, None, mongo(2004, b"\0\0\0\0admin.$cmd\0\0\0\0\0")),
        (S::Kafka, 0, None, kafka),
        (
            S::Mqtt,
            0,
            None,
            [&[0x10, 14, 0, 4][..], b"MQTT", &[4, 2, 0, 60, 0, 2, b'a', b'b']].concat(),
        ),
        (S::Modbus, 0, Some(502), vec![0, 1, 0, 0, 0, 6, 17, 3, 0, 107, 0, 3]),
        (S::Dnp3, 0, None, dnp3),
        (S::Sip, 0, None, text("REGISTER sip:example.com SIP/2.0\r\n")),
        (S::Rtsp, 0, None, text("OPTIONS rtsp://host/a RTSP/1.0\r\n")),
        (S::Bittorrent, 0, None, text("\x13BitTorrent protocol\0\0\0\0\0\0\0\0")),
        (S::Stun, 0, None, stun),
        (S::Openvpn, 0, None, openvpn),
        (S::Syslog, 0, None, text("27 <34>1 2026-01-01T00:00:00Z h")),
        (S::Xmpp, 0, None, stream.to_vec()),
        (S::Irc, 0, None, text("NICK a\r\nUSER a 0 * :b\r\n")),
        (S::Irc, 1, None, text(":irc.example NOTICE AUTH :*** Looking up\r\n")),
    ]
}

fn over_udp() -> Vec<(Service, Option<u16>, Vec<u8>)> {
    use Service as S;
    let question = [
        &[0, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'a', 2, b'b', b'c'][..],
        &[0, 0, 1, 0, 1],
    ]
    .concat();
    let mut dhcp = vec![0; 244];
    dhcp[..3].copy_from_slice(&[1, 1, 6]);
    dhcp[236..240].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
    let snmp = |version: u8, rest: &[u8]| ber(0x30, &[&[2, 1, version][..], rest].concat());
    let community = [ber(4, b"public"), ber(0xa0, &[2, 1, 1, 2, 1, 0, 2, 1, 0, 0x30, 0])].concat();
    let header = ber(0x30, &[2, 1, 1, 2, 2, 5, 0, 4, 1, 4, 2, 1, 3]);
    let kerberos = ber(
        0x7e,
        &ber(0x30, &[ber(0xa0, &ber(2, &[5])), ber(0xa1, &ber(2, &[30]))].concat()),
    );
    let mut radius = vec![1, 7, 0, 0];
    radius.extend([4; 16]);
    radius.extend([1, 5, b'b', b'o', b'b', 4, 6, 10, 0, 0, 1, 5, 6, 0, 0, 0, 3]);
    radius[3] = radius.len() as u8;
    let ike = |before: &[u8]| {
        let mut message = vec![1; 8];
        message.extend([0; 8]);
        message.extend([33, 0x20, 34, 8, 0, 0, 0, 0, 0, 0, 0, 40]);
        message.extend([0; 12]);
        [before, &message].concat()
    };
    let wireguard = |kind: u8, length: usize| [&[kind, 0, 0, 0][..], &vec![5; length - 4]].concat();
    let dtls = [&[22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4][..], &[1, 0, 0, 0]].concat();
    let stun = [
        &[0, 1, 0, 4][..],
        &0x2112_a442_u32.to_be_bytes(),
        &[5; 12],
        &[0x80, 0x22, 0, 0],
    ]
    .concat();
    let classic = [&[0, 1, 0, 8][..], &[5; 16], &[0, 3, 0, 4, 0, 0, 0, 0]].concat();
    let openvpn = [&[0x38][..], &[8; 8], &[0; 5]].concat();
    let signed = [&[0x38][..], &[8; 8], &[3; 20], &1_u32.to_be_bytes(), &[1; 4], &[0; 5]].concat();
    let report = [&[0x80, 201, 0, 1, 0, 0, 0, 9][..], &[0x81, 202, 0, 1, 0, 0, 0, 9]].concat();
    let inner = crate::domain::craft::udp6("[2001:0:1::1]:1", "[2001:db8::2]:2", b"x")[14..].to_vec();
    let frame = crate::domain::craft::udp4("10.0.0.1:1", "10.0.0.2:2", b"x");
    let ip = frame[14..].to_vec();
    let text = |text: &str| text.as_bytes().to_vec();
    let mut ntp = vec![0x23];
    ntp.resize(48, 0);
    let mut netbios = vec![0, 1, 1, 0x10, 0, 1, 0, 0, 0, 0, 0, 0, 32];
    netbios.extend(b"CKAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA");
    netbios.extend([0, 0, 0x21, 0, 1]);
    let mut rdp = vec![0xff, 0xff, 0xff, 0xff, 0, 64, 0, 1];
    rdp.resize(1232, 0);
    vec![
        (S::Dns, None, question.clone()),
        (S::Mdns, Some(5353), question.clone()),
        (S::Llmnr, Some(5355), question),
        (S::NetbiosNs, Some(137), netbios),
        (
            S::NetbiosDgm,
            Some(138),
            vec![0x11, 2, 0, 1, 10, 0, 0, 1, 0, 138, 0, 20, 0, 0],
        ),
        (S::Quic, None, quic::tests::client_initial(1)),
        (S::Stun, None, stun),
        (S::Stun, None, classic),
        (S::Dtls, None, dtls),
        (S::Dhcp, None, dhcp),
        (S::Dhcpv6, Some(547), vec![1, 0, 0, 1, 0, 8, 0, 2, 0, 23]),
        (S::Snmp, None, snmp(1, &community)),
        (S::Snmp, None, snmp(3, &header)),
        (S::Sip, None, text("SIP/2.0 200 OK\r\n")),
        (S::Kerberos, None, kerberos),
        (
            S::Ldap,
            None,
            ber(0x30, &[ber(2, &[1]), ber(0x63, &ber(4, b""))].concat()),
        ),
        (S::Radius, None, radius),
        (S::Isakmp, None, ike(&[])),
        (S::Isakmp, Some(4500), ike(&[0; 4])),
        (S::Wireguard, None, wireguard(1, 148)),
        (S::Wireguard, Some(51_820), wireguard(4, 32)),
        (
            S::Bittorrent,
            None,
            text("d1:ad2:id20:abcdefghij0123456789e1:q4:ping1:t2:aa1:y1:qe"),
        ),
        (
            S::Bittorrent,
            None,
            vec![0, 0, 4, 0x17, 0x27, 0x10, 0x19, 0x80, 0, 0, 0, 0, 1, 2, 3, 4],
        ),
        (S::Syslog, None, text("<34>Oct 11 22:14:15 host su: failed")),
        (S::Syslog, Some(514), text("<134>anything goes")),
        (S::RdpUdp, Some(3389), rdp),
        (S::Ntp, Some(123), ntp),
        (S::Openvpn, None, openvpn),
        (S::Openvpn, None, signed),
        (S::Rtcp, None, report),
        (S::Teredo, None, inner),
        (S::Vxlan, Some(4789), [&[8, 0, 0, 0, 0, 0, 5, 0][..], &frame].concat()),
        (
            S::Geneve,
            Some(6081),
            [&[0, 0, 0x65, 0x58, 0, 0, 5, 0][..], &frame].concat(),
        ),
        (
            S::Gtpu,
            Some(2152),
            [&[0x30, 0xff, 0, ip.len() as u8, 0, 0, 0, 1][..], &ip].concat(),
        ),
    ]
}

/// What protocols begin with, and a few that none does.
pub(in crate::domain::app) fn starts() -> Vec<Vec<u8>> {
    let known = over_tcp().into_iter().map(|(_, _, _, data)| data);
    let none = (0..=u8::MAX).map(|octet| vec![octet]);
    known
        .chain(over_udp().into_iter().map(|(_, _, data)| data))
        .chain(none)
        .collect()
}

#[test]
fn what_specifications_say_is_recognised_over_tcp() {
    for (service, side, port, data) in over_tcp() {
        let on = port.unwrap_or(ELSEWHERE);
        assert_eq!(tcp(side, on, &data), service, "{:?}", String::from_utf8_lossy(&data));
        if port.is_some() {
            let elsewhere = tcp(side, ELSEWHERE, &data);
            assert!(
                matches!(elsewhere, Service::Unknown | Service::Dns),
                "{service:?} needs its port, not {elsewhere:?}"
            );
        }
    }
}

#[test]
fn what_specifications_say_is_recognised_over_udp() {
    for (service, port, data) in over_udp() {
        assert_eq!(udp(port.unwrap_or(ELSEWHERE), &data), service, "{data:x?}");
        if port.is_some() {
            let elsewhere = udp(ELSEWHERE, &data);
            assert!(
                matches!(elsewhere, Service::Unknown | Service::Dns | Service::Isakmp),
                "{service:?} needs its port, not {elsewhere:?}"
            );
        }
    }
}

#[test]
fn every_label_but_rtp_is_shown_here() {
    for row in crate::domain::app::protocol::OVER_TCP {
        assert!(
            over_tcp().iter().any(|(service, ..)| *service == row.service),
            "{:?}",
            row.service
        );
    }
    for row in crate::domain::app::protocol::OVER_UDP {
        let shown = over_udp().iter().any(|(service, ..)| *service == row.service);
        // RTP takes two datagrams; DNP3 has the same probe over TCP.
        assert!(
            shown || matches!(row.service, Service::Rtp | Service::Dnp3),
            "{:?}",
            row.service
        );
    }
}

#[test]
fn what_only_resembles_a_protocol_stays_unknown() {
    for text in [
        "GETTING started\r\n",
        "OPTIONS are many\r\n",
        "220 volts\r\n",
        "+OK then\r\n",
        "hello, world\n",
        "*** \r\n",
    ] {
        assert_eq!(tcp(1, ELSEWHERE, text.as_bytes()), Service::Unknown, "{text}");
    }
    let nats = b"CONNECT {\"verbose\":false}\r\n";
    assert_eq!(tcp(0, 4222, nats), Service::Unknown);
    for data in [&[0_u8; 48][..], &[0xff; 48], &[0x80; 48], b"M-SEARCH * HTTP/1.1\r\n"] {
        assert_eq!(udp(ELSEWHERE, data), Service::Unknown, "{data:x?}");
    }
}

#[test]
fn a_beginning_is_waited_for() {
    for text in ["G", "SS", "\x16\x03", "PRI *", "RFB 0", "\x13BitT"] {
        assert_eq!(
            shown(Transport::Tcp, 0, ELSEWHERE, text.as_bytes()).0,
            Guess::Maybe,
            "{text}"
        );
    }
}

proptest! {
    #[test]
    fn probes_take_any_octets(
        data in prop::collection::vec(any::<u8>(), 0..200), side in 0_usize..2, claimed in any::<u32>(),
        port in prop::sample::select(vec![21_u16, 25, 53, 88, 110, 137, 139, 143, 389, 443, 445, 500, 502, 514, 1194, 2152,
            3306, 3389, 3544, 4500, 4789, 5060, 5353, 5432, 6081, 6379, 9092, 20_000, 27_017, 40_001]),
    ) {
        for transport in [Transport::Tcp, Transport::Udp] {
            let mut look = Look { data: &data, claimed, side, ports: (port, 1), on_port: false };
            recognise(transport, &mut look);
        }
    }

    #[test]
    fn probes_take_changed_and_cut_messages(
        which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), value in any::<u8>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let (tcp_messages, udp_messages) = (over_tcp(), over_udp());
        let (_, side, port, data) = which.get(&tcp_messages);
        let mut data = data.clone();
        let place = at.index(data.len());
        data[place] = value;
        tcp(*side, port.unwrap_or(ELSEWHERE), &data);
        tcp(*side, port.unwrap_or(ELSEWHERE), &data[..cut.index(data.len())]);
        let (_, port, data) = which.get(&udp_messages);
        let mut data = data.clone();
        let place = at.index(data.len());
        data[place] = value;
        udp(port.unwrap_or(ELSEWHERE), &data);
        udp(port.unwrap_or(ELSEWHERE), &data[..cut.index(data.len())]);
    }
}
