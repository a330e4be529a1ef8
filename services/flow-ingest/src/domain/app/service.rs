//! The names of application protocols.

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
        pub(super) const ALL: &[Service] = &[Service::Unknown, $(Service::$variant,)+];
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
