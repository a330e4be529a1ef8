//! Addresses as 16 bytes: IPv6 as it is, IPv4 mapped into IPv6 (RFC 4291 §2.5.5.2).

use std::net::{IpAddr, Ipv6Addr};

/// The 16 bytes of an address.
pub fn to_bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The address of 16 bytes; a mapped IPv4 address comes back as IPv4.
pub fn from_bytes(bytes: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(bytes).to_canonical()
}
