//! Deterministic behaviours: what is suspicious without a model. Each looks at one record at a time and at
//! its own bounded window.

pub mod beacon;
pub mod bruteforce;
pub mod contact;
pub mod dns;
pub mod flood;
pub mod hygiene;
pub mod lateral;
pub mod novelty;
pub mod scan;
pub mod slow;
pub mod volume;

use arrow_array::Array as _;
use garrison_flow::{Columns, FlowState};

use super::{
    facts::Facts,
    shard::News,
    window::{FlowRef, Host},
};

/// One row of a batch, with what it adds to what was known of its flow.
pub struct Row<'a> {
    /// The batch.
    pub columns: &'a Columns<'a>,
    /// The same, in plain columns.
    pub facts: &'a Facts,
    /// Which row.
    pub i: usize,
    /// Its state.
    pub state: FlowState,
    /// What is new.
    pub news: &'a News,
}

impl Row<'_> {
    pub(crate) fn src(&self) -> Host {
        self.facts.src[self.i]
    }

    pub(crate) fn dst(&self) -> Host {
        self.facts.dst[self.i]
    }

    pub(crate) fn rcode(&self) -> Option<u8> {
        let rcodes = self.columns.dns_rcode;
        rcodes.is_valid(self.i).then(|| rcodes.value(self.i))
    }

    pub(crate) fn protocol(&self) -> u8 {
        self.columns.protocol.value(self.i)
    }

    pub(crate) fn dst_port(&self) -> u16 {
        self.columns.dst_port.value(self.i)
    }

    pub(crate) fn flow_ref(&self) -> FlowRef {
        self.facts.flow_ref(self.columns, self.i)
    }
}

/// The address stands for one host: not a group, not everyone, not nobody.
pub fn is_one_host(host: Host) -> bool {
    match host.ip() {
        std::net::IpAddr::V4(v4) => !v4.is_multicast() && !v4.is_broadcast() && !v4.is_unspecified(),
        std::net::IpAddr::V6(v6) => !v6.is_multicast() && !v6.is_unspecified(),
    }
}

#[cfg(test)]
mod tests;
