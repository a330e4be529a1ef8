//! Bounded maps as lists of keys and values in the order of their use. Values are messages already, because the state of
//! the newer behaviours is kept in the form it is saved in.

use std::hash::Hash;

use garrison_proto::TenantId;
use prost::Message;

use crate::{
    domain::{bounded::BoundedMap, settings::Settings, wide::Wide, window::Host},
    error::Error,
    store::form::{EntryState, WideState},
};

/// A key of a saved map: so many octets, never another number.
pub(super) trait Key: Sized + Hash + Eq + Clone {
    /// Appends it.
    fn write(&self, to: &mut Vec<u8>);
    /// Takes it from the front. `None` when there is too little.
    fn read(from: &mut &[u8]) -> Option<Self>;
}

impl Key for u64 {
    fn write(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.to_be_bytes());
    }

    fn read(from: &mut &[u8]) -> Option<Self> {
        let (head, rest) = from.split_first_chunk()?;
        *from = rest;
        Some(Self::from_be_bytes(*head))
    }
}

impl Key for u16 {
    fn write(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.to_be_bytes());
    }

    fn read(from: &mut &[u8]) -> Option<Self> {
        let (head, rest) = from.split_first_chunk()?;
        *from = rest;
        Some(Self::from_be_bytes(*head))
    }
}

impl Key for Host {
    fn write(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.0.to_be_bytes());
    }

    fn read(from: &mut &[u8]) -> Option<Self> {
        let (head, rest) = from.split_first_chunk()?;
        *from = rest;
        Some(Self(u128::from_be_bytes(*head)))
    }
}

impl<A: Key, B: Key> Key for (A, B) {
    fn write(&self, to: &mut Vec<u8>) {
        self.0.write(to);
        self.1.write(to);
    }

    fn read(from: &mut &[u8]) -> Option<Self> {
        Some((A::read(from)?, B::read(from)?))
    }
}

/// Every entry, least recently used first.
pub(super) fn entries<K: Key, V: Message>(map: &BoundedMap<K, V>) -> Vec<EntryState> {
    map.iter()
        .map(|(key, value)| {
            let mut bytes = Vec::with_capacity(24);
            key.write(&mut bytes);
            EntryState {
                key: bytes,
                value: value.encode_to_vec(),
            }
        })
        .collect()
}

/// Puts the entries back. What cannot be read, because another release wrote it otherwise, is left out.
pub(super) fn fill<K: Key, V: Message + Default>(map: &mut BoundedMap<K, V>, entries: &[EntryState]) {
    for entry in entries {
        let mut key = entry.key.as_slice();
        if let (Some(key), Ok(value)) = (K::read(&mut key), V::decode(entry.value.as_slice())) {
            map.get_or_insert_with(key, || value);
        }
    }
}

/// Writes what the shards share.
pub fn write_wide(wide: &Wide) -> Vec<u8> {
    WideState {
        version: super::snapshot::VERSION,
        crowds: entries(&wide.crowds),
        proxied: entries(&wide.proxied),
        victims: entries(&wide.victims),
        probed: entries(&wide.probed),
        groups: entries(&wide.groups),
        clients: entries(&wide.clients),
        devices: entries(&wide.devices),
        told: entries(&wide.told),
    }
    .encode_to_vec()
}

/// Reads what the shards share.
///
/// # Errors
/// [`Error::State`].
pub fn read_wide(id: &TenantId, settings: &Settings, bytes: &[u8]) -> Result<Wide, Error> {
    let wrong = |problem: String| Error::State {
        tenant: id.clone(),
        problem,
    };
    let state = WideState::decode(bytes).map_err(|e| wrong(e.to_string()))?;
    super::snapshot::check_version(state.version).map_err(wrong)?;
    let mut wide = Wide::new(settings.wide);
    fill(&mut wide.crowds, &state.crowds);
    fill(&mut wide.proxied, &state.proxied);
    fill(&mut wide.victims, &state.victims);
    fill(&mut wide.probed, &state.probed);
    fill(&mut wide.groups, &state.groups);
    fill(&mut wide.clients, &state.clients);
    fill(&mut wide.devices, &state.devices);
    fill(&mut wide.told, &state.told);
    Ok(wide)
}
