//! The protocols this meter names: one table of name, transport, ports and the probe that recognises the content.

use std::sync::LazyLock;

use super::probe::{self, Guess, Look};
pub use super::service::Service;

/// What carries a protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Protocol {
    /// What a flow that the probe recognises speaks.
    pub service: Service,
    /// What carries it.
    pub transport: Transport,
    /// Ports it is known by.
    pub ports: &'static [u16],
    /// Without one of its ports it is not recognised.
    pub needs_port: bool,
    /// What its messages begin with, in ranges; any other first octet is not its.
    pub first: &'static [(u8, u8)],
    /// Looks at the first octets of either side.
    pub probe: fn(&Look<'_>) -> Guess,
}

type First = &'static [(u8, u8)];

const ANY: First = &[(0, 0xff)];
const CAPITALS: First = &[(b'A', b'Z')];

const fn row(
    service: Service,
    transport: Transport,
    ports: &'static [u16],
    first: First,
    probe: fn(&Look<'_>) -> Guess,
) -> Protocol {
    Protocol {
        service,
        transport,
        ports,
        needs_port: false,
        first,
        probe,
    }
}

const fn row_on_port(
    service: Service,
    transport: Transport,
    ports: &'static [u16],
    first: First,
    probe: fn(&Look<'_>) -> Guess,
) -> Protocol {
    Protocol {
        needs_port: true,
        ..row(service, transport, ports, first, probe)
    }
}

use Service as S;
use Transport::{Tcp, Udp};
use probe::{data, media, name, network, remote, text, vpn};

/// The table of protocols over TCP, in the order in which they are asked: those that many flows speak come first.
pub static OVER_TCP: &[Protocol] = &[
    row(
        S::Tls,
        Tcp,
        &[443, 465, 563, 636, 853, 989, 990, 993, 995, 8443],
        &[(20, 23)],
        text::tls,
    ),
    row(S::Http, Tcp, &[80, 3128, 8000, 8080, 8888], CAPITALS, text::http),
    row(S::Http2, Tcp, &[80, 8080], &[(0, 0), (b'P', b'P')], text::http2),
    row(S::Ssh, Tcp, &[22], &[(b'S', b'S')], text::ssh),
    row(S::Dns, Tcp, &[53], ANY, name::dns_over_tcp),
    row(S::Smb, Tcp, &[445, 139], &[(0, 0)], remote::smb),
    row(
        S::Smtp,
        Tcp,
        &[25, 465, 587, 2525],
        &[(b'2', b'5'), (b'E', b'L'), (b'e', b'l')],
        text::smtp,
    ),
    row(
        S::Ftp,
        Tcp,
        &[21, 2121],
        &[(b'2', b'5'), (b'A', b'U'), (b'a', b'u')],
        text::ftp,
    ),
    row(
        S::Pop3,
        Tcp,
        &[110],
        &[(b'+', b'+'), (b'A', b'U'), (b'a', b'u')],
        text::pop3,
    ),
    row(
        S::Imap,
        Tcp,
        &[143],
        &[(b'*', b'*'), (b'0', b'9'), (b'A', b'Z'), (b'a', b'z')],
        text::imap,
    ),
    row(S::Rdp, Tcp, &[3389], &[(3, 3)], remote::rdp),
    row(S::Ldap, Tcp, &[389, 3268], &[(0x30, 0x30)], network::ldap),
    row(S::Kerberos, Tcp, &[88], &[(0, 0)], network::kerberos_over_tcp),
    row(S::Vnc, Tcp, &[5900, 5901], &[(b'R', b'R')], remote::vnc),
    row(S::Telnet, Tcp, &[23, 2323], &[(0xff, 0xff)], remote::telnet),
    row(S::Mysql, Tcp, &[3306], ANY, data::mysql),
    row(S::Postgresql, Tcp, &[5432], &[(0, 0), (b'R', b'R')], data::postgresql),
    row(
        S::Redis,
        Tcp,
        &[6379],
        &[(b'$', b':'), (b'P', b'P'), (b'p', b'p')],
        data::redis,
    ),
    row(S::Mongodb, Tcp, &[27017], ANY, data::mongodb),
    row(S::Kafka, Tcp, &[9092], &[(0, 6)], data::kafka),
    row(S::Mqtt, Tcp, &[1883], &[(0x10, 0x10), (0x20, 0x20)], data::mqtt),
    row_on_port(S::Modbus, Tcp, &[502], ANY, data::modbus),
    row(S::Dnp3, Tcp, &[20000], &[(5, 5)], data::dnp3),
    row(S::Sip, Tcp, &[5060], CAPITALS, text::sip),
    row(S::Rtsp, Tcp, &[554, 8554], CAPITALS, text::rtsp),
    row(S::Bittorrent, Tcp, &[6881], &[(0x13, 0x13)], data::bittorrent_over_tcp),
    row(S::Stun, Tcp, &[3478], ANY, media::stun_over_tcp),
    row(S::Openvpn, Tcp, &[1194], ANY, vpn::openvpn_over_tcp),
    row(S::Syslog, Tcp, &[514, 601], &[(b'0', b'<')], text::syslog),
    row(S::Xmpp, Tcp, &[5222, 5269], &[(b'<', b'<')], text::xmpp),
    row(S::Irc, Tcp, &[6667], &[(b':', b':'), (b'C', b'U')], text::irc),
];

/// The table of protocols over UDP.
pub static OVER_UDP: &[Protocol] = &[
    row_on_port(S::Vxlan, Udp, &[4789], ANY, vpn::vxlan),
    row_on_port(S::Geneve, Udp, &[6081], ANY, vpn::geneve),
    row_on_port(S::Gtpu, Udp, &[2152], ANY, vpn::gtpu),
    row_on_port(S::Mdns, Udp, &[5353], ANY, name::mdns),
    row_on_port(S::Llmnr, Udp, &[5355], ANY, name::llmnr),
    row_on_port(S::NetbiosNs, Udp, &[137], ANY, name::netbios_name),
    row_on_port(S::NetbiosDgm, Udp, &[138], &[(0x10, 0x16)], name::netbios_datagram),
    row(S::Dns, Udp, &[53], ANY, name::dns),
    row(
        S::Quic,
        Udp,
        &[443, 80, 784, 853, 8853],
        &[(0x09, 0x3f), (0x80, 0xff)],
        vpn::quic,
    ),
    row(S::Stun, Udp, &[3478, 3479], &[(0, 0x3f)], media::stun),
    row(S::Dtls, Udp, &[443, 853, 5684], &[(20, 23)], vpn::dtls),
    row(S::Dhcp, Udp, &[67, 68], &[(1, 2)], network::dhcp),
    row_on_port(S::Dhcpv6, Udp, &[546, 547], &[(1, 13)], network::dhcpv6),
    row(S::Snmp, Udp, &[161, 162], &[(0x30, 0x30)], network::snmp),
    row(S::Sip, Udp, &[5060], CAPITALS, text::sip),
    row(S::Kerberos, Udp, &[88], &[(0x6a, 0x7e)], network::kerberos),
    row(S::Ldap, Udp, &[389], &[(0x30, 0x30)], network::ldap),
    row(
        S::Radius,
        Udp,
        &[1812, 1813, 1645, 1646, 1700, 3799],
        &[(1, 45)],
        network::radius,
    ),
    row(S::Isakmp, Udp, &[500, 4500], ANY, vpn::isakmp),
    row(S::Wireguard, Udp, &[51820], &[(1, 4)], vpn::wireguard),
    row(
        S::Bittorrent,
        Udp,
        &[6881],
        &[(0, 1), (b'A', b'B'), (b'd', b'd')],
        data::bittorrent_over_udp,
    ),
    row(S::Syslog, Udp, &[514], &[(b'0', b'<')], text::syslog),
    row(S::Dnp3, Udp, &[20000], &[(5, 5)], data::dnp3),
    row_on_port(S::RdpUdp, Udp, &[3389], &[(0xff, 0xff)], remote::rdp_over_udp),
    row_on_port(S::Ntp, Udp, &[123], ANY, network::ntp),
    row(S::Openvpn, Udp, &[1194], &[(8, 80)], vpn::openvpn),
    row(S::Teredo, Udp, &[3544], &[(0, 0), (0x60, 0x6f)], vpn::teredo),
    row(S::Rtcp, Udp, &[], &[(0x80, 0xbf)], media::rtcp),
    row(S::Rtp, Udp, &[], &[(0x80, 0xbf)], media::rtp),
];

// Which rows of a table name a port, as bits, sorted by port: a flow's ports are looked up once for all rows. Most ports
// are in none, which one bit tells.
struct Ports {
    known: Box<[u64; 1024]>,
    rows: Vec<(u16, u64)>,
}

impl Ports {
    fn of(table: &[Protocol]) -> Self {
        let mut ports: Vec<(u16, u64)> = Vec::new();
        for (row, protocol) in table.iter().enumerate() {
            for port in protocol.ports {
                match ports.iter_mut().find(|(other, _)| other == port) {
                    Some((_, rows)) => *rows |= 1 << row,
                    None => ports.push((*port, 1 << row)),
                }
            }
        }
        ports.sort_unstable();
        let mut known = Box::new([0; 1024]);
        for (port, _) in &ports {
            known[usize::from(port >> 6)] |= 1 << (port & 63);
        }
        Self { known, rows: ports }
    }

    fn rows(&self, port: u16) -> u64 {
        if self.known[usize::from(port >> 6)] >> (port & 63) & 1 == 0 {
            return 0;
        }
        let place = self.rows.partition_point(|(other, _)| *other < port);
        self.rows.get(place).map_or(0, |(_, rows)| *rows)
    }
}

// Which rows of a table are to be asked, as bits: most are ruled out by a flow's ports and the first octet.
struct Table {
    rows: &'static [Protocol],
    ports: Ports,
    first: [u64; 256],
    need_port: u64,
}

impl Table {
    fn of(rows: &'static [Protocol]) -> Self {
        let bits = |holds: &dyn Fn(&Protocol) -> bool| {
            let bit = |(row, protocol): (usize, &Protocol)| u64::from(holds(protocol)) << row;
            rows.iter().enumerate().map(bit).sum()
        };
        Self {
            rows,
            ports: Ports::of(rows),
            first: std::array::from_fn(|octet| {
                bits(&|protocol| {
                    let within = |&(low, high): &(u8, u8)| (usize::from(low)..=usize::from(high)).contains(&octet);
                    protocol.first.iter().any(within)
                })
            }),
            need_port: bits(&|protocol| protocol.needs_port),
        }
    }

    fn ask(&self, look: &mut Look<'_>) -> (Guess, Service) {
        let on_port = self.ports.rows(look.ports.0) | self.ports.rows(look.ports.1);
        let Some(&first) = look.data.first() else {
            return (Guess::No, Service::Unknown);
        };
        let mut rows = self.first[usize::from(first)] & (on_port | !self.need_port);
        let mut maybe = Guess::No;
        while rows != 0 {
            let row = rows.trailing_zeros() as usize;
            rows &= rows - 1;
            let protocol = &self.rows[row];
            look.on_port = on_port >> row & 1 == 1;
            match (protocol.probe)(look) {
                Guess::Yes => return (Guess::Yes, protocol.service),
                Guess::Maybe => maybe = Guess::Maybe,
                Guess::No => {}
            }
        }
        (maybe, Service::Unknown)
    }
}

static TCP: LazyLock<Table> = LazyLock::new(|| Table::of(OVER_TCP));
static UDP: LazyLock<Table> = LazyLock::new(|| Table::of(OVER_UDP));

/// Asks the probes of a transport. A port says which of several that could be is asked to decide; the content decides.
/// Where no octet was captured nothing is known.
pub fn recognise(transport: Transport, look: &mut Look<'_>) -> (Guess, Service) {
    match transport {
        Transport::Tcp => TCP.ask(look),
        Transport::Udp => UDP.ask(look),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::service::ALL, *};

    #[test]
    fn every_service_has_a_number_and_a_name_of_its_own() {
        for (number, service) in ALL.iter().enumerate() {
            assert_eq!(Service::from_number(number as u8), *service);
        }
        let mut names: Vec<_> = ALL.iter().filter_map(|service| service.name()).collect();
        assert_eq!(names.len(), ALL.len() - 1);
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len() - 1);
        assert_eq!(Service::from_number(255), Service::Unknown);
    }

    #[test]
    fn ports_are_found_in_their_rows() {
        assert!(OVER_TCP.len() <= 64 && OVER_UDP.len() <= 64);
        for (table, ports) in [(OVER_TCP, &TCP.ports), (OVER_UDP, &UDP.ports)] {
            for port in 0..=u16::MAX {
                let rows = table
                    .iter()
                    .enumerate()
                    .filter(|(_, protocol)| protocol.ports.contains(&port));
                assert_eq!(
                    ports.rows(port),
                    rows.fold(0, |bits, (row, _)| bits | 1 << row),
                    "{port}"
                );
            }
        }
    }

    #[test]
    fn every_service_is_recognised_by_a_row() {
        for service in &ALL[1..] {
            assert!(
                OVER_TCP.iter().chain(OVER_UDP).any(|row| row.service == *service),
                "{service:?}"
            );
        }
    }

    // What a flow would be told by asking every row.
    fn by_all(table: &[Protocol], look: &mut Look<'_>) -> (Guess, Service) {
        let mut maybe = Guess::No;
        for protocol in table {
            let on = |port| protocol.ports.contains(&port);
            look.on_port = on(look.ports.0) || on(look.ports.1);
            match (protocol.probe)(look) {
                Guess::Yes => return (Guess::Yes, protocol.service),
                Guess::Maybe => maybe = Guess::Maybe,
                Guess::No => {}
            }
        }
        (maybe, Service::Unknown)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn rows_that_are_not_asked_would_say_no(
            start in prop::sample::select(probe::tests::starts()),
            change in prop::option::of((0_usize..12, any::<u8>())),
            tail in prop::collection::vec(any::<u8>(), 0..60),
            whole in any::<bool>(),
            port in prop::sample::select(OVER_TCP.iter().chain(OVER_UDP).flat_map(|row| row.ports).copied().chain([40_000]).collect::<Vec<_>>()),
            side in 0_usize..2,
        ) {
            let mut data = start;
            if !whole {
                data.extend(tail);
            }
            if let Some((at, value)) = change && let Some(octet) = data.get_mut(at) {
                *octet = value;
            }
            prop_assume!(!data.is_empty());
            let mut look = Look { data: &data, claimed: data.len() as u32, side, ports: (50_000, port), on_port: false };
            for (transport, table) in [(Transport::Tcp, OVER_TCP), (Transport::Udp, OVER_UDP)] {
                prop_assert_eq!(recognise(transport, &mut look), by_all(table, &mut look));
            }
        }
    }
}
