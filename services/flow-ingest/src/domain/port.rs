//! Ports of servers, and which side of a conversation is called.

use super::packet::{Decoded, ICMP, ICMPV6, TCP, flag};

/// Whether servers are usually called on this port: the direction of a flow whose beginning was not seen, and of a record
/// of one direction, is told by it.
pub fn is_server_port(port: u16) -> bool {
    // 68 is the port of DHCP's clients.
    matches!(
        port,
        1..=67
            | 69..=1023
            | 1080
            | 1433
            | 1521
            | 1812
            | 1813
            | 1883
            | 2049
            | 2152
            | 3128
            | 3268
            | 3269
            | 3306
            | 3389
            | 3544
            | 4789
            | 5060
            | 5061
            | 5222
            | 5223
            | 5269
            | 5353
            | 5355
            | 5432
            | 5671
            | 5672
            | 5900
            | 5985
            | 5986
            | 6081
            | 6379
            | 6443
            | 6660..=6669
            | 8000
            | 8008
            | 8080
            | 8081
            | 8443
            | 8888
            | 9090
            | 9092
            | 9200
            | 11211
            | 27017
    )
}

/// Whether the first packet came from the called side, told by its ports (Zeek's `likely_server_ports`).
pub(super) fn is_flipped(packet: &Decoded<'_>) -> bool {
    let (src, dst) = (packet.src_port, packet.dst_port);
    match packet.protocol {
        TCP => {
            let syn = packet.tcp.flags & flag::SYN != 0;
            if syn && packet.tcp.flags & flag::ACK == 0 {
                return false;
            }
            // Two likely servers: a SYN-ACK may be a stealth scan, so it is believed.
            is_server_port(src) && (!is_server_port(dst) || (!syn && src < dst))
        }
        ICMP | ICMPV6 => false,
        // What is sent to many is no answer.
        _ => is_server_port(src) && !is_server_port(dst) && !is_group(packet),
    }
}

fn is_group(packet: &Decoded<'_>) -> bool {
    match packet.ip_version {
        4 => packet.dst[12] >= 0xe0,
        _ => packet.dst[0] == 0xff,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_called_and_clients_call() {
        for port in [53, 67, 443, 6443, 6667, 5985, 8443, 9090] {
            assert!(is_server_port(port), "{port}");
        }
        for port in [0, 68, 1024, 6659, 6670, 40_000, u16::MAX] {
            assert!(!is_server_port(port), "{port}");
        }
    }
}
