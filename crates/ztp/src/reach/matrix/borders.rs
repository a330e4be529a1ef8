//! Places among addresses.

/// Where networks begin and end among addresses.
pub(super) struct Borders {
    v4: Vec<u32>,
    v6: Vec<u128>,
}

impl Borders {
    pub(super) fn of(nets: &[ipnet::IpNet]) -> Self {
        let (mut v4, mut v6) = (vec![0], vec![0]);
        for net in nets {
            match net {
                ipnet::IpNet::V4(net) => {
                    v4.push(u32::from(net.network()));
                    v4.extend(u32::from(net.broadcast()).checked_add(1));
                }
                ipnet::IpNet::V6(net) => {
                    v6.push(u128::from(net.network()));
                    v6.extend(u128::from(net.broadcast()).checked_add(1));
                }
            }
        }
        v4.sort_unstable();
        v4.dedup();
        v6.sort_unstable();
        v6.dedup();
        Self { v4, v6 }
    }

    pub(super) fn place(&self, address: std::net::IpAddr) -> usize {
        match address {
            std::net::IpAddr::V4(a) => self.v4.partition_point(|b| *b <= u32::from(a)),
            std::net::IpAddr::V6(a) => self.v4.len() + self.v6.partition_point(|b| *b <= u128::from(a)),
        }
    }
}
