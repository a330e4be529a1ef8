//! The protocols this meter names: one table of name, transport, ports and the probe that recognises the content.

use std::sync::LazyLock;

use super::probe::{self, Guess, Look};

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
    /// Ports it is known by. Only some probes need one of them besides the content.
    pub ports: &'static [u16],
    /// Looks at the first octets of either side.
    pub probe: fn(&Look<'_>) -> Guess,
}

macro_rules! services {
    ($($(#[doc = $doc:literal])+ $variant:ident $name:literal,)+) => {
        /// Application protocols this meter names.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Service {
            /// Not known.
            #[default]
            Unknown,
            $($(#[doc = $doc])+ $variant,)+
        }

        const NAMES: &[&str] = &["", $($name,)+];
        const ALL: &[Service] = &[Service::Unknown, $(Service::$variant,)+];
    };
}

services! {
    /// HTTP/1.
    Http "http",
    /// HTTP/2 without TLS.
    Http2 "http2",
    /// TLS over TCP.
    Tls "tls",
    /// DTLS.
    Dtls "dtls",
    /// QUIC, Google's versions included.
    Quic "quic",
    /// DNS.
    Dns "dns",
    /// Multicast DNS.
    Mdns "mdns",
    /// Link-local multicast name resolution.
    Llmnr "llmnr",
    /// NetBIOS name service.
    NetbiosNs "netbios-ns",
    /// NetBIOS datagram service.
    NetbiosDgm "netbios-dgm",
    /// SSH.
    Ssh "ssh",
    /// SMTP.
    Smtp "smtp",
    /// IMAP.
    Imap "imap",
    /// POP3.
    Pop3 "pop3",
    /// FTP's control connection.
    Ftp "ftp",
    /// SMB, every version.
    Smb "smb",
    /// RDP.
    Rdp "rdp",
    /// RDP over UDP.
    RdpUdp "rdpeudp",
    /// Kerberos.
    Kerberos "kerberos",
    /// LDAP, over UDP too.
    Ldap "ldap",
    /// DHCP.
    Dhcp "dhcp",
    /// DHCPv6.
    Dhcpv6 "dhcpv6",
    /// NTP.
    Ntp "ntp",
    /// SNMP.
    Snmp "snmp",
    /// SIP.
    Sip "sip",
    /// RTSP.
    Rtsp "rtsp",
    /// RTP.
    Rtp "rtp",
    /// RTCP.
    Rtcp "rtcp",
    /// STUN and TURN.
    Stun "stun",
    /// MQTT.
    Mqtt "mqtt",
    /// Modbus/TCP.
    Modbus "modbus",
    /// DNP3.
    Dnp3 "dnp3",
    /// MySQL.
    Mysql "mysql",
    /// PostgreSQL.
    Postgresql "postgresql",
    /// Redis.
    Redis "redis",
    /// MongoDB.
    Mongodb "mongodb",
    /// Kafka.
    Kafka "kafka",
    /// RADIUS.
    Radius "radius",
    /// WireGuard.
    Wireguard "wireguard",
    /// OpenVPN.
    Openvpn "openvpn",
    /// ISAKMP and IKE, and ESP on their port.
    Isakmp "isakmp",
    /// BitTorrent, its distributed table and trackers included.
    Bittorrent "bittorrent",
    /// Syslog.
    Syslog "syslog",
    /// Telnet.
    Telnet "telnet",
    /// VNC.
    Vnc "vnc",
    /// IRC.
    Irc "irc",
    /// XMPP.
    Xmpp "xmpp",
    /// Teredo, a tunnel.
    Teredo "teredo",
    /// VXLAN, a tunnel.
    Vxlan "vxlan",
    /// Geneve, a tunnel.
    Geneve "geneve",
    /// GTP-U, a tunnel.
    Gtpu "gtpu",
}

impl Service {
    /// The name in the `service` column. `None` while it is not known.
    pub fn name(self) -> Option<&'static str> {
        NAMES.get(self as usize).copied().filter(|name| !name.is_empty())
    }

    /// From the number a flow holds.
    pub fn from_number(number: u8) -> Self {
        ALL.get(usize::from(number)).copied().unwrap_or_default()
    }

    /// What it carries is packets.
    pub fn is_tunnel(self) -> bool {
        matches!(self, Self::Teredo | Self::Vxlan | Self::Geneve | Self::Gtpu)
    }

    /// A connection of it may turn into TLS after its first words.
    pub fn upgrades_to_tls(self) -> bool {
        matches!(
            self,
            Self::Smtp
                | Self::Imap
                | Self::Pop3
                | Self::Ftp
                | Self::Ldap
                | Self::Rdp
                | Self::Mysql
                | Self::Postgresql
                | Self::Irc
                | Self::Xmpp
        )
    }
}

const fn row(service: Service, transport: Transport, ports: &'static [u16], probe: fn(&Look<'_>) -> Guess) -> Protocol {
    Protocol {
        service,
        transport,
        ports,
        probe,
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
        text::tls,
    ),
    row(S::Http, Tcp, &[80, 3128, 8000, 8080, 8888], text::http),
    row(S::Http2, Tcp, &[80, 8080], text::http2),
    row(S::Ssh, Tcp, &[22], text::ssh),
    row(S::Dns, Tcp, &[53], name::dns_over_tcp),
    row(S::Smb, Tcp, &[445, 139], remote::smb),
    row(S::Smtp, Tcp, &[25, 465, 587, 2525], text::smtp),
    row(S::Ftp, Tcp, &[21, 2121], text::ftp),
    row(S::Pop3, Tcp, &[110], text::pop3),
    row(S::Imap, Tcp, &[143], text::imap),
    row(S::Rdp, Tcp, &[3389], remote::rdp),
    row(S::Ldap, Tcp, &[389, 3268], network::ldap),
    row(S::Kerberos, Tcp, &[88], network::kerberos_over_tcp),
    row(S::Vnc, Tcp, &[5900, 5901], remote::vnc),
    row(S::Telnet, Tcp, &[23, 2323], remote::telnet),
    row(S::Mysql, Tcp, &[3306], data::mysql),
    row(S::Postgresql, Tcp, &[5432], data::postgresql),
    row(S::Redis, Tcp, &[6379], data::redis),
    row(S::Mongodb, Tcp, &[27017], data::mongodb),
    row(S::Kafka, Tcp, &[9092], data::kafka),
    row(S::Mqtt, Tcp, &[1883], data::mqtt),
    row(S::Modbus, Tcp, &[502], data::modbus),
    row(S::Dnp3, Tcp, &[20000], data::dnp3),
    row(S::Sip, Tcp, &[5060], text::sip),
    row(S::Rtsp, Tcp, &[554, 8554], text::rtsp),
    row(S::Bittorrent, Tcp, &[6881], data::bittorrent_over_tcp),
    row(S::Stun, Tcp, &[3478], media::stun_over_tcp),
    row(S::Openvpn, Tcp, &[1194], vpn::openvpn_over_tcp),
    row(S::Syslog, Tcp, &[514, 601], text::syslog),
    row(S::Xmpp, Tcp, &[5222, 5269], text::xmpp),
    row(S::Irc, Tcp, &[6667], text::irc),
];

/// The table of protocols over UDP.
pub static OVER_UDP: &[Protocol] = &[
    row(S::Vxlan, Udp, &[4789], vpn::vxlan),
    row(S::Geneve, Udp, &[6081], vpn::geneve),
    row(S::Gtpu, Udp, &[2152], vpn::gtpu),
    row(S::Mdns, Udp, &[5353], name::mdns),
    row(S::Llmnr, Udp, &[5355], name::llmnr),
    row(S::NetbiosNs, Udp, &[137], name::netbios_name),
    row(S::NetbiosDgm, Udp, &[138], name::netbios_datagram),
    row(S::Dns, Udp, &[53], name::dns),
    row(S::Quic, Udp, &[443, 80, 784, 853, 8853], vpn::quic),
    row(S::Stun, Udp, &[3478, 3479], media::stun),
    row(S::Dtls, Udp, &[443, 853, 5684], vpn::dtls),
    row(S::Dhcp, Udp, &[67, 68], network::dhcp),
    row(S::Dhcpv6, Udp, &[546, 547], network::dhcpv6),
    row(S::Snmp, Udp, &[161, 162], network::snmp),
    row(S::Sip, Udp, &[5060], text::sip),
    row(S::Kerberos, Udp, &[88], network::kerberos),
    row(S::Ldap, Udp, &[389], network::ldap),
    row(S::Radius, Udp, &[1812, 1813, 1645, 1646, 1700, 3799], network::radius),
    row(S::Isakmp, Udp, &[500, 4500], vpn::isakmp),
    row(S::Wireguard, Udp, &[51820], vpn::wireguard),
    row(S::Bittorrent, Udp, &[6881], data::bittorrent_over_udp),
    row(S::Syslog, Udp, &[514], text::syslog),
    row(S::Dnp3, Udp, &[20000], data::dnp3),
    row(S::RdpUdp, Udp, &[3389], remote::rdp_over_udp),
    row(S::Ntp, Udp, &[123], network::ntp),
    row(S::Openvpn, Udp, &[1194], vpn::openvpn),
    row(S::Teredo, Udp, &[3544], vpn::teredo),
    row(S::Rtcp, Udp, &[], media::rtcp),
    row(S::Rtp, Udp, &[], media::rtp),
];

// Which rows of a table name a port, as bits, sorted by port: a flow's ports are looked up once for all rows.
struct Ports(Vec<(u16, u64)>);

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
        Self(ports)
    }

    fn rows(&self, port: u16) -> u64 {
        let found = self.0.binary_search_by_key(&port, |(port, _)| *port);
        found
            .ok()
            .and_then(|place| self.0.get(place))
            .map_or(0, |(_, rows)| *rows)
    }
}

static TCP_PORTS: LazyLock<Ports> = LazyLock::new(|| Ports::of(OVER_TCP));
static UDP_PORTS: LazyLock<Ports> = LazyLock::new(|| Ports::of(OVER_UDP));

/// Asks the probes of a transport. A port says which of several that could be is asked to decide; the content decides.
pub fn recognise(transport: Transport, look: &mut Look<'_>) -> (Guess, Service) {
    let (table, ports) = match transport {
        Transport::Tcp => (OVER_TCP, &*TCP_PORTS),
        Transport::Udp => (OVER_UDP, &*UDP_PORTS),
    };
    let rows = ports.rows(look.ports.0) | ports.rows(look.ports.1);
    let mut maybe = Guess::No;
    for (row, protocol) in table.iter().enumerate() {
        look.on_port = rows >> row & 1 == 1;
        match (protocol.probe)(look) {
            Guess::Yes => return (Guess::Yes, protocol.service),
            Guess::Maybe => maybe = Guess::Maybe,
            Guess::No => {}
        }
    }
    (maybe, Service::Unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        for (table, ports) in [(OVER_TCP, &*TCP_PORTS), (OVER_UDP, &*UDP_PORTS)] {
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
}
