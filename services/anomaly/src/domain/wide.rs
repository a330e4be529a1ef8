//! What is known across the sources of a tenant: sketches that merge by `or`, by addition or by the later time, so that
//! replicas that divide the shards can join what each has seen.

use garrison_models::rng::mix;

use super::{
    behaviour::{
        flood::{Probed, Victim},
        volume::Group,
    },
    bounded::BoundedMap,
    settings::WideBounds,
    window::{Host, Nanos},
};

/// How many hosts turn to something, in 64 bits: linear counting (Whang, Vander-Zanden, Taylor 1990), good up to some
/// hundred hosts, which is more than any question here needs.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Crowd {
    /// One bit for each remainder of a host's hash.
    #[prost(fixed64, tag = "1")]
    pub bits: u64,
    /// When the first came.
    #[prost(sfixed64, tag = "2")]
    pub first: Nanos,
}

impl Crowd {
    /// Notes a host.
    pub fn add(&mut self, host: Host) {
        self.bits |= 1 << (host_hash(host) & 63);
    }

    /// Adds what another one has seen.
    pub fn merge(&mut self, other: &Self) {
        self.bits |= other.bits;
        self.first = self.first.min(other.first);
    }

    /// The estimate.
    pub fn hosts(&self) -> f64 {
        let zeros = f64::from(self.bits.count_zeros()).max(0.5);
        -64.0 * (zeros / 64.0).ln()
    }
}

/// When something was last seen.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Seen {
    /// The time.
    #[prost(sfixed64, tag = "1")]
    pub at: Nanos,
}

/// The state that all shards of a tenant share. Every map is bounded and forgets the least active first.
#[derive(Debug)]
pub struct Wide {
    /// Hosts that turn to a destination, by the hash of its name or address.
    pub crowds: BoundedMap<u64, Crowd>,
    /// When a name was last asked of a proxy, by its hash.
    pub proxied: BoundedMap<u64, Seen>,
    /// Connections by service.
    pub victims: BoundedMap<(Host, u16), Victim>,
    /// Failed attempts by the host they were made at.
    pub probed: BoundedMap<Host, Probed>,
    /// Hourly volumes of groups of neighbours, by the hash of the group.
    pub groups: BoundedMap<u64, Group>,
    /// Hosts that use a client program, by its hash.
    pub clients: BoundedMap<u64, Crowd>,
    /// Addresses of a device, by the hash of its link address or address.
    pub devices: BoundedMap<u64, Crowd>,
    /// What is told once a day, by its hash.
    pub told: BoundedMap<u64, Seen>,
    /// It changed since the last checkpoint.
    pub dirty: bool,
}

impl Wide {
    /// Starts empty.
    pub fn new(bounds: WideBounds) -> Self {
        Self {
            crowds: BoundedMap::new(bounds.destinations),
            proxied: BoundedMap::new(bounds.names),
            victims: BoundedMap::new(bounds.victims),
            probed: BoundedMap::new(bounds.victims),
            groups: BoundedMap::new(bounds.devices),
            clients: BoundedMap::new(bounds.devices),
            devices: BoundedMap::new(bounds.devices),
            told: BoundedMap::new(bounds.devices),
            dirty: false,
        }
    }

    /// Entries held, over all maps.
    pub fn entities(&self) -> usize {
        self.crowds.len()
            + self.proxied.len()
            + self.victims.len()
            + self.probed.len()
            + self.groups.len()
            + self.clients.len()
            + self.devices.len()
            + self.told.len()
    }

    /// Entries that had to make room, over all maps.
    pub fn evicted(&self) -> u64 {
        self.crowds.evicted()
            + self.proxied.evicted()
            + self.victims.evicted()
            + self.probed.evicted()
            + self.groups.evicted()
            + self.clients.evicted()
            + self.devices.evicted()
            + self.told.evicted()
    }
}

/// Hash of a host.
pub fn host_hash(host: Host) -> u64 {
    mix(mix(host.0 as u64) ^ (host.0 >> 64) as u64)
}

/// Hash of a domain name, whatever its case and with or without the last dot.
pub fn name_hash(name: &str) -> u64 {
    let name = name.strip_suffix('.').unwrap_or(name);
    let mut hash = 0xCBF2_9CE4_8422_2325_u64;
    for byte in name.bytes() {
        hash = (hash ^ u64::from(byte.to_ascii_lowercase())).wrapping_mul(0x0000_0100_0000_01B3);
    }
    mix(hash)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_few_hosts_are_counted_well_enough_to_tell_few_from_many() {
        for n in [1_u128, 3, 5, 10, 30] {
            let mut crowd = Crowd::default();
            for host in 0..n {
                crowd.add(Host(host + 0x0A00_0001));
                crowd.add(Host(host + 0x0A00_0001));
            }
            let error = (crowd.hosts() / n as f64 - 1.0).abs();
            assert!(error < 0.25, "{n}: {}", crowd.hosts());
        }
    }

    #[test]
    fn names_are_the_same_whatever_their_case() {
        assert_eq!(name_hash("Example.ORG."), name_hash("example.org"));
        assert_ne!(name_hash("example.org"), name_hash("example.com"));
    }

    proptest! {
        #[test]
        fn parts_merge_into_the_whole(hosts in prop::collection::vec(any::<u128>(), 0..100), cut in any::<prop::sample::Index>()) {
            let crowd = |hosts: &[u128]| {
                let mut crowd = Crowd::default();
                hosts.iter().for_each(|h| crowd.add(Host(*h)));
                crowd
            };
            let cut = cut.index(hosts.len() + 1);
            let mut merged = crowd(&hosts[..cut]);
            merged.merge(&crowd(&hosts[cut..]));
            prop_assert_eq!(merged, crowd(&hosts));
        }
    }
}
